"""The commands on model directories: verify, undo, diff, apply, audit. Each takes a model directory or the run directory around it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clnp.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from clnp.verification import TaskReceipt, Verification


def _run_of(given: Path) -> Path:
    """Return the run directory that is meant."""
    from clnp import rundir

    return rundir.around(given)


Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A model directory, or a run directory.")]
RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", callback=_run_of, help="A run directory, or the model directory in it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (verify, undo, diff, audit):
        app.command()(command)
    app.command("apply")(apply_)


def _model_in(directory: Path) -> Path:
    """Return the model directory that a run directory holds, or the directory itself."""
    from clnp import rundir

    return directory / rundir.MODEL if (directory / rundir.CONFIG).is_file() else directory


def _say(text: str) -> None:
    typer.echo(text, err=True)


def verify(
    directory: Directory,
    receipt: Annotated[
        Path | None, typer.Option("--receipt", help="A receipt kept elsewhere: is this that directory, or a newer state of it?")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The network of a bare model directory, if it is one of `clnp list`; a run knows its own.")
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option("--out", help="Write the receipt: FILE.json for a pipeline, FILE.html for a person; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that every file is what was committed, and that every task answers as it did.

    Exit codes: 0 all is well, 1 cannot be checked, 3 a file is damaged, 4 a task answers otherwise, 5 the directory was set back.
    """
    for file in out or []:
        if file.suffix not in {".json", ".html"}:
            raise ConfigError(f"cannot write the receipt '{file}': expected a name that ends in .json or .html.")
    from clnp.verification import verify as check

    found = check(_model_in(directory), _network(directory, model), receipt=receipt)
    for file in out or []:
        _write_receipt(found, file)
    if as_json:
        typer.echo(json.dumps(found.content(), indent=2, allow_nan=False))
    else:
        _show_verification(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _network(directory: Path, name: str | None) -> Any:
    """Build the network of a run, or the named one; None where nobody says which."""
    from clnp import rundir

    if (directory / rundir.CONFIG).is_file():
        from clnp.runs import trunk_of

        return trunk_of(directory)
    if name is None:
        return None
    from clnp.describe import open_ledger
    from clnp.models import MODELS, lookup

    shapes = [tuple(entry.shape) for entry in open_ledger(directory)[1].inputs]
    return lookup("model", name, MODELS)(*shapes)


def _write_receipt(found: Verification, file: Path) -> None:
    from clnp.files import write_atomic
    from clnp.report import render_receipt

    content = json.dumps(found.content(), indent=2, allow_nan=False) + "\n" if file.suffix == ".json" else render_receipt(found)
    try:
        write_atomic(file, content)
    except OSError as error:
        raise StoreError(f"cannot write the receipt '{file}': {error.strerror or error}. Choose another place.") from error
    _say(f"receipt: {file}")


def _show_verification(found: Verification) -> None:
    """Print what a person wants to know."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for title, side in (("task", "left"), ("file", "left"), ("bytes", "right"), ("answers to the probe", "left")):
        table.add_column(title, justify=side, overflow="fold")  # pyright: ignore[reportArgumentType]
    for task in found.tasks:
        table.add_row(escape(task.task), task.file, f"{task.bytes:,}", _answer(task))
    console.print(table)
    typer.echo(f"record {found.record}, hash {found.sha256}")
    for name, purged in found.undone:
        typer.echo(f"undone: '{name}'" + (", its file was deleted" if purged else ", its file is kept"))
    typer.echo(verdict(found))


def _answer(task: TaskReceipt) -> str:
    comparison = task.comparison
    texts = {
        "bitwise": "as committed, bit for bit",
        "within tolerance": f"as committed, within {comparison.largest_difference or 0:.1e}",
        "differs": f"OTHERWISE than committed, by up to {comparison.largest_difference or 0:.1e}",
        "no receipt": "committed without a receipt",
        "not checked": "not asked: give --model, or clnp.verify(DIR, model)",
    }
    other = ", ".join(f"{key} was {then}" for key, (then, _) in (comparison.different or {}).items())
    return texts[comparison.verdict] + (f" ({other})" if other else "")


def verdict(found: Verification) -> str:
    """Return one sentence on a directory."""
    if found.problem is not None:
        return f"not the directory of the receipt: {found.problem}"
    if found.differing:
        return f"every file is what was committed, but {', '.join(map(repr, found.differing))} answers otherwise than when it was committed"
    kept = "; it is the directory of the receipt, or a newer state of it" if found.kept else ""
    return f"verified: every file is what was committed{kept}"


def undo(
    directory: Directory,
    task: Annotated[str | None, typer.Option("--task", help="The name of the task; the newest one by default.")] = None,
    purge: Annotated[bool, typer.Option("--purge", help="Delete the task's file as well, and record that.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a task exactly: its units are free again, and no other task changes. Refused when later tasks need its units."""
    from clnp import rundir

    run = rundir.around(directory)
    if (run / rundir.CONFIG).is_file():  # the run has to know
        from clnp.runs import undo as undo_in_run

        tombstone = undo_in_run(run, task, purge=purge)
    else:
        from clnp.undoing import undo as undo_in_model

        tombstone = undo_in_model(directory, task, purge=purge)
    if as_json:
        typer.echo(json.dumps({**tombstone.model_dump(), "directory": str(directory)}, indent=2))
        return
    typer.echo(f"undone: task '{tombstone.task}'; its units are free again, and no other task has changed")
    if tombstone.purged:
        typer.echo(f"purged: its file is deleted, as record {tombstone.number} says")
    else:
        typer.echo("its file is kept; --purge deletes it")


def diff(
    directory: Directory,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TASK", help="The newest task that the other copy has; without: everything.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; stdout by default.")] = None,
) -> None:
    """Write a patch: what brings another copy of a model directory up to date, and no more."""
    if out is None and sys.stdout.isatty():
        raise ConfigError("cannot write a patch to the terminal: redirect it into a file (clnp diff DIR > FILE), or give --out FILE.")
    from clnp.describe import open_ledger
    from clnp.files import write_atomic
    from clnp.patches import make_patch

    model = _model_in(directory)
    patch = make_patch(model, since)
    whole = open_ledger(model)[1].n_bytes
    if out is None:
        sys.stdout.buffer.write(patch)
        sys.stdout.buffer.flush()
    else:
        try:
            write_atomic(out, patch)
        except OSError as error:
            raise StoreError(f"cannot write the patch '{out}': {error.strerror or error}. Choose another place.") from error
    share = f": {100 * len(patch) / whole:.1f} % of the network's {whole:,}" if whole else ""
    _say(f"patch: {len(patch):,} bytes{share}")


def apply_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A copy of a model directory; a new one for a patch of everything.")],
    patch: Annotated[Path, typer.Argument(help="What `clnp diff` wrote; - reads stdin.")],
    as_json: AsJson = False,
) -> None:
    """Bring a copy of a model directory up to date by a patch: as a whole and verified, or not at all."""
    from clnp import files, rundir
    from clnp.patches import MAX_PATCH, apply_patch

    if (directory / rundir.CONFIG).is_file():
        raise StoreError(f"cannot apply a patch to '{directory}': a run learns its tasks itself. Give a copy of its model directory.")
    try:
        is_stdin = str(patch) == "-"
        content = sys.stdin.buffer.read(MAX_PATCH) if is_stdin else files.read_bounded(patch.resolve(), MAX_PATCH, patch.resolve().parent)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read the patch '{patch}': {getattr(error, 'strerror', None) or error}.") from error
    done = apply_patch(directory, content)
    if as_json:
        typer.echo(json.dumps({"directory": str(directory), "bytes": len(content), **asdict(done)}, indent=2))
        return
    if done.was_there:
        typer.echo(f"nothing to do: '{directory}' has all of this patch, up to record {done.record}")
        return
    for what, names in (("learned", done.learned), ("undone", done.undone)):
        if names:
            typer.echo(f"{what}: {', '.join(names)}")
    typer.echo(f"applied and verified: '{directory}' is at record {done.record}, hash {done.sha256}")


def audit(directory: Directory, as_json: AsJson = False) -> None:
    """List every file, tensor and byte of a model directory with its purpose: it holds no training example."""
    from clnp.auditing import audit as items_of

    items = items_of(_model_in(directory))
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in items], indent=2))
        return
    width = max(len(f"{item.bytes:,}") for item in items)
    for item in items:
        indent = "  " if ": " in item.name else ""
        typer.echo(f"{item.bytes:>{width},}  {indent}{item.name.partition(': ')[2] or item.name}  {item.purpose}")
    total = sum(item.bytes for item in items if ": " not in item.name)
    data = any(item.name == "probe.safetensors" for item in items)
    unknown = sum(not item.known for item in items)
    typer.echo(
        f"{total:,} bytes in {sum(': ' not in item.name for item in items)} files; "
        + ("the probe holds examples that the user named, nothing else does" if data else "no training example among them")
        + (f"; {unknown} files are not of clnp" if unknown else "")
    )
