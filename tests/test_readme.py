"""What the README shows can be pasted: its Python runs as it stands, and its commands are commands."""

import re
from pathlib import Path

import pytest
import typer.main

from clnp.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.thorough
def test_its_python_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    exec(compile(block, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[:5]] == [f"digits-{number}" for number in range(5)]
    assert all(f"digits-{number}" in said.splitlines()[-1] for number in range(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-0.pt2", "model"]


def test_its_commands_and_their_options_are_known():
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    lines = re.findall(r"^clnp (.+?)(?:  +#.*| > .*)?$", README, re.MULTILINE)
    assert len(lines) > 10
    for line in lines:
        name, *arguments = line.split()
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert not {word for word in arguments if word.startswith("--")} - known, line
