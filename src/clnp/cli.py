"""The command line. Nothing heavy is imported before a command needs it: `clnp --help` answers without torch.

Exit codes: 0 done, 1 a failure that the message explains, 2 a command that cannot be understood, 3 a file is damaged, 4 a task answers
otherwise than its receipt says, 5 a directory was set back, 130 stopped with Ctrl-C, 143 stopped by SIGTERM.
The first Ctrl-C or SIGTERM stops a run after the step under way, the second at once.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clnp import __version__
from clnp.cli_models import AsJson, RunDirectory, register
from clnp.errors import ClnpError, ConfigError, DamageError, StoreError, one_line

if TYPE_CHECKING:
    from clnp.experiment import RunConfig

app = typer.Typer(
    name="clnp",
    help="Teach one network of fixed size task after task; what it has learned never changes again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEMO = Path("clnp-demo")
DEMO_MARK = ".made-by-clnp-demo"
INSPECTED = (3, 32, 32)  # the examples that `clnp inspect MODEL` assumes

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder where the data files lie in their official layout; downloads otherwise.")
]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of LearnConfig, e.g. --set margin=0.01; may be repeated.")
]


def main(argv: list[str] | None = None) -> None:
    """Run the command line, and turn what goes wrong into one line and an exit code; `--debug` anywhere shows the traceback."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]  # a terminal without block characters
    try:
        given = [argument for argument in arguments if argument != "--debug"]
        app(given, prog_name="clnp", obj=shlex.join(["clnp", *given]))
    except KeyboardInterrupt:  # before a command was there to stop
        _say("clnp: stopped")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ClnpError):
            message = str(error)
        elif isinstance(error, OSError):
            message = f"{error.strerror or error}: '{error.filename}'" if error.filename else str(error)
        else:
            message = f"internal error: {type(error).__name__}: {error} (give --debug to see where)"
        _say("clnp: " + one_line(" ".join(message.split())))
        sys.exit(2 if isinstance(error, ConfigError) else 3 if isinstance(error, DamageError) else 1)


def _print_version(wanted: bool) -> None:
    """Print the version, if that was asked for, and stop."""
    if wanted:
        typer.echo(f"clnp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; works after a command too.")] = False,
) -> None:
    """Teach one network of fixed size task after task; what it has learned never changes again."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the demonstration is written; each time anew.")] = DEMO,
) -> None:
    """Learn five small real tasks (handwritten digits) in seconds, forget nothing, and write a report."""
    _clear_demo(out)
    from clnp.experiment import configure
    from clnp.report import write_report

    config = configure("digits")
    _say(f"teaching one network {config.n_tasks} tasks, one after another; each sees only its own two digits")
    # The command that goes on where this one was stopped: `clnp demo` begins anew.
    _run(config, out, None, shlex.join(["clnp", "run", "digits", "--out", str(out)]))
    _show(out)
    page = write_report(out)
    typer.echo(
        f"""
report: {page.resolve()}

Next steps
  clnp list                                       what else there is to run
  clnp run permuted-digits --tasks 5              a harder sequence; the same command continues a stopped run
  clnp run digits --method finetune               what plain training forgets
  clnp run digits --set margin=0.05 --out roomy   give up a little accuracy for more room
  clnp inspect digits                             which units of the network are tied together"""
    )


def _clear_demo(out: Path) -> None:
    """Make place for a demonstration; remove an earlier one, and nothing else."""
    from clnp import locks

    if out.is_dir() and any(out.iterdir()):
        if not (out / DEMO_MARK).is_file():
            raise StoreError(
                f"cannot write the demonstration to '{out}': that directory is not of an earlier demonstration. Choose another with --out."
            )
        if locks.is_locked(out):
            raise StoreError(f"cannot write the demonstration to '{out}': process {locks.holder(out)} is at work there.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / DEMO_MARK).write_text("`clnp demo` made this directory and removes it when it starts again.\n", encoding="utf-8")


@app.command("list")
def list_() -> None:
    """List benchmarks, methods, models, importance criteria and settings."""
    from clnp.benchmarks import BENCHMARKS
    from clnp.config import LearnConfig
    from clnp.importance import CRITERIA
    from clnp.methods import METHODS
    from clnp.models import MODELS

    benchmarks = [(name, f"{b.n_tasks} tasks, {b.scenario}. {b.description}") for name, b in BENCHMARKS.items()]
    methods = [(name, (method.__doc__ or "").partition("\n")[0]) for name, method in METHODS.items()]
    settings = [(name, f"{field.description} [{field.default}]") for name, field in LearnConfig.model_fields.items()]
    own = [(name, ", ".join(f"{key}={value}" for key, value in b.config.items())) for name, b in BENCHMARKS.items() if b.config]
    for title, rows in (
        ("Benchmarks", benchmarks),
        ("Methods (--method)", methods),
        ("Settings (--set KEY=VALUE) [default]", settings),
        ("Settings that a benchmark has instead of the defaults", own),
    ):
        width = max(len(name) for name, _ in rows)
        typer.echo("\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows), ""]))
    typer.echo(f"Models (--model)\n  {', '.join(MODELS)}\n")
    typer.echo(f"Importance criteria (--set criterion=NAME)\n  {', '.join(CRITERIA)}")


@app.command()
def run(
    ctx: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="A name from `clnp list`.")],
    method: Annotated[str | None, typer.Option("--method", help="How to learn; clnp by default.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The network; the benchmark's own by default.")] = None,
    tasks: Annotated[int | None, typer.Option("--tasks", help="How many tasks; the benchmark's own number by default.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of tasks, network and training; 0 by default.")] = None,
    file: Annotated[Path | None, typer.Option("--config", help="YAML of the shape of a run's config.yaml, in whole or in part.")] = None,
    settings: SettingsOption = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory; runs/BENCHMARK-METHOD-seedSEED by default.")] = None,
    until_full: Annotated[bool, typer.Option("--until-full", help="End the run, without an error, when a task finds no room.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else, on stdout.")] = False,
) -> None:
    """Learn the tasks of a benchmark in order. The same command continues a run that was stopped."""
    chosen = _settings(settings or [])
    defaults = _read_yaml(file)
    from clnp.config import unread
    from clnp.experiment import configure, said

    config = configure(benchmark, method=method, model=model, seed=seed, n_tasks=tasks, settings=chosen, defaults=defaults)
    for key, readers in unread(config.method, said(config.benchmark, chosen, defaults)).items():
        _say(f"note: method {config.method} does not read '{key}'; {', '.join(readers)} {'does' if len(readers) == 1 else 'do'}")
    out = out or Path("runs") / f"{config.benchmark}-{config.method}-seed{config.seed}"
    summary = _run(config, out, data, ctx.obj, until_full=until_full)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    _show(out)
    typer.echo(f"run: {out}    report: clnp report {shlex.quote(str(out))}")


def _run(config: RunConfig, out: Path, data: Path | None, command: str, *, until_full: bool = False) -> dict[str, Any]:
    """Run with a display on stderr; Ctrl-C and SIGTERM finish the step, and say how to go on."""
    from clnp import experiment, stopping
    from clnp.console import Display

    try:
        with stopping.orderly(), Display(epochs=config.learn.total_epochs, n_tasks=config.n_tasks) as display:
            return experiment.run(config, out, data=data, command=command, progress=display, until_full=until_full)
    except (KeyboardInterrupt, stopping.Stopped) as stop:
        _say(f"stopped; what was learned so far is kept in '{out}'. To continue: {command}")
        raise typer.Exit(stop.exit_code if isinstance(stop, stopping.Stopped) else 130) from None


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Return --set KEY=VALUE options as a mapping; values are YAML."""
    from clnp.parsing import parse_yaml

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"cannot use --set '{pair}': expected KEY=VALUE, for example --set margin=0.01.")
        try:
            settings[key.strip()] = parse_yaml(value)
        except ValueError:
            raise ConfigError(f"cannot use --set '{pair}': expected a YAML value, found '{value}'.") from None
    return settings


def _read_yaml(file: Path | None) -> dict[str, Any]:
    """Return the mapping in a configuration file."""
    from clnp.files import read_bounded
    from clnp.parsing import MAX_YAML, parse_yaml

    if file is None:
        return {}
    try:
        content = parse_yaml(read_bounded(file.resolve(), MAX_YAML, file.resolve().parent))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file '{file}': {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"cannot read the configuration file '{file}': expected YAML: {error}.") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"cannot use the configuration file '{file}': expected keys and values, found {content!r}.")
    return content or {}


@app.command()
def status(directory: RunDirectory) -> None:
    """Show how far a run is and what it has achieved, without loading a network."""
    from clnp import locks
    from clnp.report import read_run
    from clnp.report.wording import continuing

    run = read_run(directory)
    _show(directory)
    if run.finished:
        typer.echo("finished")
    elif locks.is_locked(directory):
        at = run.progress
        where = f", {at.task}: {at.phase}" + (f" epoch {at.epoch}/{at.epochs}" if at.epoch else "") if at else ""
        typer.echo(f"running (process {locks.holder(directory)}{where})")
    elif run.failed is not None:
        typer.echo(f"failed: {run.failed}")
    else:
        typer.echo(f"stopped; to continue: {continuing(run)}" if run.command else "stopped before it began; give its command again")


@app.command()
def report(
    directory: RunDirectory,
    out: Annotated[Path | None, typer.Option("--out", help="The HTML file; report.html in the run directory by default.")] = None,
) -> None:
    """Write the report of a run: one HTML file that needs no network."""
    from clnp.report import write_report

    typer.echo(write_report(directory) if out is None else write_report(directory, out))


@app.command("compare")
def compare_(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directories of one benchmark, with one network.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write the comparison as one HTML file with a plot of every seed.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON, and nothing else, on stdout.")] = False,
) -> None:
    """Put finished runs side by side: mean and spread over seeds, forgetting, cost, and whether differences are more than chance."""
    from dataclasses import asdict

    from clnp.report import compare, render_comparison, write_page

    found = compare(directories)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        from rich.console import Console

        from clnp.console import comparison

        Console(highlight=False).print(comparison(found))
    if out is not None:
        out = out / "comparison.html" if out.is_dir() else out
        write_page(out, render_comparison(found), "comparison")
        _say(f"comparison: {out}")


@app.command()
def export(
    directory: RunDirectory,
    task: Annotated[str, typer.Option("--task", help="The name of the task whose predictor is exported.")],
    to: Annotated[str | None, typer.Option("--to", help="onnx or pt2; by default what the suffix of --out says, or onnx.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The file; task-NUMBER.onnx (or .pt2) in the run directory by default.")] = None,
    data: DataOption = None,
    as_json: AsJson = False,
) -> None:
    """Export one task's own small network, checked against the original on its test examples before it is put in place."""
    if to not in (None, "onnx", "pt2"):
        raise ConfigError(f"cannot export to '{to}': expected --to onnx or --to pt2.")
    from dataclasses import asdict

    from clnp import runs

    done = runs.export(directory, task, to=to, file=out, data=data)
    if as_json:
        typer.echo(json.dumps({"task": task, **asdict(done), "path": str(done.path)}, indent=2))
        return
    typer.echo(f"{done.path}: task '{task}' as {done.format}, {done.n_bytes:,} bytes")
    typer.echo(
        f"checked on {done.n_checked:,} examples: largest difference {done.largest_difference:.2g}, "
        f"top-1 agreement {100 * done.top1_agreement:.2f} %"
    )


@app.command()
def widen(
    directory: RunDirectory,
    more: Annotated[list[str] | None, typer.Argument(metavar="GROUP=UNITS...", help="How many units are added to which group.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add free units to groups of a run's network; what it has learned does not change. Without GROUP=UNITS: list the groups."""
    wanted: dict[str, int] = {}
    for pair in more or []:
        group, equals, number = pair.rpartition("=")
        if not equals or not group or not number.isascii() or not number.isdigit():
            raise ConfigError(f"cannot widen by '{pair}': expected GROUP=UNITS, for example {group or pair}=16.")
        wanted[group] = int(number)
    from clnp import runs

    if not wanted:
        units = runs.load_learner(directory)[0].capacity()
        if as_json:
            rooms = {"groups": {name: row.n_units for name, row in units.items()}, "free": {name: row.free for name, row in units.items()}}
            typer.echo(json.dumps(rooms, indent=2))
            return
        for name, row in sorted(units.items(), key=lambda item: item[1].free / item[1].n_units):
            typer.echo(f"{name}: {row.free} of {row.n_units} units free")
        typer.echo(f"to add units: clnp widen {shlex.quote(str(directory))} GROUP=UNITS")
        return
    event = runs.widen(directory, wanted)
    if as_json:
        typer.echo(json.dumps(event, indent=2))
        return
    for name in wanted:
        typer.echo(f"{name}: {event['free'][name]} of {event['groups'][name]} units free")
    typer.echo("every task learned so far answers as before, bit for bit")


register(app)


@app.command()
def inspect(
    name: Annotated[str, typer.Argument(help="A benchmark or a model from `clnp list`.")],
    model: Annotated[str | None, typer.Option("--model", help="The network to look at, for the benchmark's examples.")] = None,
) -> None:
    """Show which units of a network are tied together, and what cannot be pruned and why."""
    import torch

    from clnp import wiring
    from clnp.benchmarks import BENCHMARKS
    from clnp.describe import zeros
    from clnp.inputs import Form
    from clnp.models import MODELS, lookup

    if name in MODELS:
        model, shapes = name, (INSPECTED,)
    else:
        lookup("benchmark or model", name, {**BENCHMARKS, **MODELS})
        model, shapes = model or BENCHMARKS[name].model, BENCHMARKS[name].shapes
    network = lookup("model", model, MODELS)(*shapes)
    typer.echo(f"{model}, for examples of shape {', '.join(map(str, shapes))}")
    typer.echo(wiring.trace(network, zeros([Form(shape, torch.float32) for shape in shapes])).explain())


def _show(directory: Path) -> None:
    """Print the table of a run on stdout."""
    from rich.console import Console

    from clnp.console import results
    from clnp.report import read_run

    Console(highlight=False).print(results(read_run(directory)))


def _say(text: str) -> None:
    """Print a line on stderr."""
    typer.echo(text, err=True)
