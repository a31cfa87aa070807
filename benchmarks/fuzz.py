"""Fuzz every reader of files, guided by coverage: `python benchmarks/fuzz.py --seconds 60`; the targets are those of tests/fuzzing.py.

Each target runs in a process of its own for that many seconds. What is found stands, with its bytes, in the directory `--out`, and the exit
code is 1. Needs the extra `fuzz` (atheris).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SKIPPED = "skipped: atheris is not installed. pip install -c constraints.txt '.[fuzz]'"
MODULES = ["clnp", "json", "yaml", "pydantic"]
DICTIONARY = [
    "{",
    "}",
    "[",
    "]",
    '\\"',
    ":",
    ",",
    "null",
    "true",
    "NaN",
    "1e999",
    "!!bool",
    "\\x0a",
    "\\x00",
    "kind",
    "undone",
    "format",
    "widened",
    "../",
]


def fuzz_one(name: str, seconds: int, out: Path) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    sys.path.insert(0, str(ROOT / "tests"))
    with atheris.instrument_imports(include=MODULES, enable_loader_override=False):
        from fuzzing import TARGETS
    target, whole = TARGETS[name]
    target(whole())
    with tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "whole").write_bytes(whole())
        words = Path(corpus) / ".words"
        words.write_text("".join(f'"{word}"\n' for word in DICTIONARY), encoding="utf-8")
        arguments = [
            f"-max_total_time={seconds}",
            "-timeout=10",
            "-rss_limit_mb=4096",
            f"-max_len={4 * len(whole()) + 500}",
            f"-dict={words}",
        ]
        atheris.Setup([sys.argv[0], corpus, *arguments, f"-artifact_prefix={out}/{re.sub('[^a-z0-9]+', '-', name.lower())}-"], target)
        atheris.Fuzz()


def run(name: str, seconds: int, out: Path) -> tuple[bool, dict[str, object]]:
    """Fuzz one target in a process of its own; whether it held, and what it says of it."""
    command = [sys.executable, __file__, "--seconds", str(seconds), "--target", name, "--out", str(out), "--here"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=seconds + 300)
    said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    counted = re.findall(r"#(\d+)\s+\w+\s+cov: (\d+)", said)
    found = {"runs": int(counted[-1][0]) if counted else 0, "covered": int(counted[-1][1]) if counted else 0}
    if done.returncode:
        print(said[-4000:])
    return done.returncode == 0 and bool(counted), found


def main() -> int:
    """Fuzz all targets, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", help="one of them alone")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fuzz", help="where findings are kept")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print(SKIPPED)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.here:
        fuzz_one(arguments.target, arguments.seconds, arguments.out)
        return 0
    sys.path.insert(0, str(ROOT / "tests"))
    from fuzzing import TARGETS

    if arguments.target is not None and arguments.target not in TARGETS:
        parser.error(f"no such target: expected one of {', '.join(TARGETS)}")
    good = True
    for name in TARGETS if arguments.target is None else [arguments.target]:
        held, found = run(name, arguments.seconds, arguments.out)
        print(json.dumps({"target": name, "held": held, **found}), flush=True)
        good &= held
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
