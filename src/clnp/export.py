"""Export one task's predictor as ONNX or as a program of torch.export, and check what was written before it is put in place."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from clnp.errors import DataError, ExportError, first_line
from clnp.files import replacing
from clnp.inputs import Inputs, parts
from clnp.modes import exactly
from clnp.narrow import CHECKED_BATCHES
from clnp.seeds import generator
from clnp.training import EVALUATION_BATCH
from clnp.wiring import mode

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from os import PathLike

Format: TypeAlias = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)

TOLERANCE = 1e-4
"""How far an exported output may lie from the predictor's, as a part of the predictor's largest output."""

SMALLEST_SCALE = 1e-2
"""Outputs that are all smaller than this are compared as if one were so large: below lies rounding."""

ONNX_LIMIT = 2**31 - 2**20
"""Bytes of weights that fit into one ONNX file (protobuf ends at 2 GiB)."""

_Run: TypeAlias = "Callable[[tuple[Tensor, ...]], Tensor]"


@dataclass(frozen=True)
class ExportResult:
    """What was exported, and how well it agrees with the predictor.

    Attributes:
        path: of the file.
        format: "onnx" or "pt2".
        largest_difference: between an output of the file and the predictor's, over all examples checked.
        top1_agreement: the fraction of the examples checked whose largest output is at the same place. It may be a little under 1
            although the check was passed: where two outputs tie to within the tolerance, rounding decides.
        n_checked: how many examples were checked, random and real.
        n_bytes: size of the file.
    """

    path: Path
    format: Format
    largest_difference: float
    top1_agreement: float
    n_checked: int
    n_bytes: int


def export(
    predictor: nn.Module,
    path: str | PathLike[str],
    example: Inputs,
    *,
    to: Format | None = None,
    inputs: Inputs | None = None,
    name: str = "the predictor",
) -> ExportResult:
    """Export a predictor for any number of examples at once, checked against it before the file is put in place.

    An exporter that miscompiles one operation tells nobody. So the file is written beside its place, run at batch sizes 1, 3, 17
    and more on random examples and on the real ones, and renamed only when its outputs are the predictor's: to a relative
    1e-4, and with the same top-1 except where two outputs tie. An ONNX file is read back, by ONNX Runtime, or where that is
    not installed by the reference evaluator of `onnx`. A `.pt2` file is written, never read (reading it may unpickle): the
    program that is checked is the one in memory from which it is written.

    Args:
        predictor: a module from one input (B, ...), or from several, to logits (B, classes), on the CPU. It is left as it was.
        path: of the new file; its directory exists, a file of that name is replaced.
        example: inputs whose sizes are those of the exported network, except for B, which may be any number there and in the
            file. It becomes part of a `.pt2` file: do not give private data.
        to: "onnx" or "pt2"; by default what the suffix of `path` says.
        inputs: real inputs (n, ...) to check on, all of them. None: only random ones. Random integers are never made up, but drawn
            from `inputs`, or from `example`, position by position, so that no token is out of vocabulary.
        name: what is exported, for messages; it is written into an ONNX file, too.

    Raises:
        ExportError: the format is unknown, a package is missing, the network cannot be exported, the file cannot be written, or it
            does not compute what the predictor computes. No file is left; an earlier one stays as it was.
        DataError: `inputs` have other sizes or another dtype than `example`.
    """
    path = Path(path)
    try:
        chosen = _format(path, to)
        _require_packages(chosen)
        batches = list(_batches(parts(example), None if inputs is None else parts(inputs)))
        with exactly(), mode(predictor, training=False), torch.no_grad(), replacing(path) as beside:
            beside.touch()  # a place that cannot be written to is found out before the work is done
            program = _captured(predictor, parts(example))
            run = _write_onnx(program, beside, len(parts(example)), name) if chosen == "onnx" else _write_pt2(program, beside)
            difference, agreement, n_checked = _compared(predictor, run, batches)
            n_bytes = beside.stat().st_size
    except OSError as error:
        raise ExportError(f"cannot export {name} to '{path}': {error.strerror or error}.") from error
    except (ExportError, DataError) as error:
        raise type(error)(f"cannot export {name} to '{path}': {error}") from error.__cause__
    return ExportResult(path, chosen, difference, agreement, n_checked, n_bytes)


# ---- what is asked for


def _format(path: Path, to: str | None) -> Format:
    """Return the format that was asked for, or that the suffix of the file says, for a file that can be there."""
    if not path.parent.is_dir() or path.is_dir():
        raise ExportError("there is a directory of that name." if path.is_dir() else "there is no such directory. Make it first.")
    suffix = path.suffix.lower().removeprefix(".")
    asked = to or suffix
    chosen: Format | None = next((known for known in FORMATS if known == asked), None)
    if chosen is None:
        wanted = f"to={to!r}" if to else f"the suffix '{path.suffix}'"
        raise ExportError(f"unknown format: expected 'onnx' or 'pt2', found {wanted}.")
    if suffix in FORMATS and suffix != chosen:
        raise ExportError(f"the file's suffix says '{suffix}', but '{chosen}' was asked for. Name it .{chosen}.")
    return chosen


def _require_packages(chosen: Format) -> None:
    """Check that what writes a format is installed."""
    if chosen == "onnx":
        for package in ("onnx", "onnxscript"):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ExportError(f"the package '{package}' is not installed. Run: pip install onnx onnxscript onnxruntime.") from error


# ---- the examples that it is checked on


def _batches(example: tuple[Tensor, ...], real: tuple[Tensor, ...] | None) -> Iterator[tuple[Tensor, ...]]:
    """Return random examples in batches of several sizes, then the real ones, each once, beginning with the same sizes."""
    pool = example if real is None else real
    wanted, found = ([(tuple(x.shape[1:]), x.dtype) for x in several] for several in (example, pool))
    if wanted != found:
        raise DataError(f"expected real inputs of shapes and dtypes {wanted}, found {found}.")
    lengths = {len(x) for x in pool}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"expected equally many examples in each input and at least one, found {sorted(lengths)}.")
    draw = generator(0, "export")
    for n in CHECKED_BATCHES:
        yield tuple(_random(x, n, draw) for x in pool)
    if real is not None:
        rest, sizes = list(real), list(CHECKED_BATCHES)
        while len(rest[0]):
            n = sizes.pop(0) if sizes else EVALUATION_BATCH
            yield tuple(x[:n] for x in rest)
            rest = [x[n:] for x in rest]


def _random(pool: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """Return n random examples like those of a pool (m, ...): normal reals, or what stands at the same position in the pool."""
    shape = (n, *pool.shape[1:])
    if pool.is_floating_point():
        return torch.randn(shape, generator=draw).to(pool.dtype)
    if pool.dtype == torch.bool:  # a mask that hides everything may be one that no network can work with: keep whole rows
        return pool[torch.randint(len(pool), (n,), generator=draw)]
    return pool.gather(0, torch.randint(len(pool), shape, generator=draw))


# ---- capture, write, read back


def _captured(predictor: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Return the predictor as a program in which only the number of examples is free."""
    taken = {size for x in example for size in x.shape[1:]}
    n = next(n for n in range(2, len(taken) + 3) if n not in taken)  # torch.export takes 0 and 1, and may take equal sizes, for constants
    args = tuple(x[:1].expand(n, *x.shape[1:]).clone() for x in example)
    shapes = torch.export.ShapesCollection()
    for x in args:
        shapes[x] = {0: torch.export.Dim.DYNAMIC}
    try:
        with _silence():
            return torch.export.export(predictor, args, dynamic_shapes=shapes.dynamic_shapes(predictor, args), strict=False)
    except Exception as error:
        raise ExportError(f"torch.export cannot capture it ({first_line(error)}).") from error


def _write_onnx(program: torch.export.ExportedProgram, file: Path, n_inputs: int, name: str) -> _Run:
    """Write an ONNX file, read it back and return what it computes."""
    n_bytes = sum(tensor.nbytes for tensor in {**program.state_dict, **program.constants}.values() if isinstance(tensor, Tensor))
    if n_bytes > ONNX_LIMIT:
        raise ExportError(f"its weights take {n_bytes / 2**30:.1f} GiB, and one ONNX file holds less than 2. Export it as pt2.")
    try:
        with _silence():
            batch = tuple({0: "batch"} for _ in range(n_inputs))
            if any(node.target is torch.ops.aten.adaptive_avg_pool3d.default for node in program.graph.nodes):  # ONNX has none
                program = program.run_decompositions({torch.ops.aten.adaptive_avg_pool3d.default: _means_of_bins})
            written = torch.onnx.export(program, (), dynamo=True, verbose=False, output_names=["logits"], dynamic_shapes=batch)
            assert written is not None
            written.model.metadata_props["clnp.name"] = name
            written.save(file, external_data=False)
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"torch.onnx cannot translate it ({first_line(error)}).") from error
    try:
        with _silence():
            return _read_onnx(file)
    except Exception as error:
        raise ExportError(f"the ONNX file that was written cannot be read ({first_line(error)}).") from error


def _means_of_bins(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Pool (B, C, D, H, W) to the means of overlapping bins, as adaptive pooling cuts them: a product with a matrix for each dimension."""
    for dim, n in zip((2, 3, 4), sizes, strict=True):
        full = x.shape[dim]
        rows = torch.arange(n, device=x.device)[:, None]
        place = torch.arange(full, device=x.device)
        bins = ((place >= rows * full // n) & (place < -(-(rows + 1) * full // n))).to(x.dtype)
        x = torch.matmul(x.movedim(dim, -1), (bins / bins.sum(1, keepdim=True)).t()).movedim(-1, dim)
    return x


def _read_onnx(file: Path) -> _Run:
    """Open an ONNX file with ONNX Runtime, or else with the reference evaluator."""
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError:
        evaluator: Any = importlib.import_module("onnx.reference").ReferenceEvaluator(str(file))
        names: list[str] = list(evaluator.input_names)
        run = evaluator.run
    else:
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [found.name for found in session.get_inputs()]
        run = session.run
    return lambda inputs: torch.as_tensor(run(None, {key: x.numpy() for key, x in zip(names, inputs, strict=True)})[0])


def _write_pt2(program: torch.export.ExportedProgram, file: Path) -> _Run:
    """Write a program, and return what the program in memory computes: such a file is never read."""
    try:
        with _silence(), file.open("wb") as stream:
            torch.export.save(program, stream)
            module = program.module()
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"torch.export cannot write it ({first_line(error)}).") from error
    return lambda inputs: module(*inputs)


@contextlib.contextmanager
def _silence() -> Generator[None]:
    """Keep the exporters' talk (prints, warnings, log lines) off the terminal; what goes wrong is raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    sink = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


# ---- the check


def _compared(predictor: nn.Module, run: _Run, batches: list[tuple[Tensor, ...]]) -> tuple[float, float, int]:
    """Return the largest difference, the top-1 agreement and the number of examples; refuse what differs."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        n, expected = len(batch[0]), predictor(*batch)
        if not isinstance(expected, Tensor) or expected.dim() < 2 or len(expected) != n:
            raise ExportError(
                f"expected logits (B, classes) of it, found {getattr(expected, 'shape', type(expected).__name__)} for B = {n}."
            )
        if not bool(expected.isfinite().all()):
            raise ExportError("the predictor itself gives NaN or infinite outputs. Check it, and the inputs.")
        try:
            found = run(batch)
        except Exception as error:
            raise ExportError(f"what was exported fails on a batch of {n} ({first_line(error)}).") from error
        if found.shape != expected.shape:
            raise ExportError(
                f"what was exported gives {tuple(found.shape)} for a batch of {n}, where the predictor gives {tuple(expected.shape)}."
            )
        pairs.append((expected.double(), found.double()))
    expected, found = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))  # (n, classes, ...)
    scale = max(SMALLEST_SCALE, float(expected.abs().max()))
    largest = float((expected - found).abs().max())
    if not largest <= TOLERANCE * scale:  # NaN is not
        raise ExportError(
            f"what was exported differs from the predictor by {largest:.2g}, expected at most {TOLERANCE * scale:.2g} "
            f"(outputs reach {scale:.2g})."
        )
    picked = found.argmax(1, keepdim=True)
    lost = expected.amax(1, keepdim=True) - expected.gather(1, picked)  # 0 where the same output is largest
    n_lost = int((lost > TOLERANCE * scale).sum())
    if n_lost:
        raise ExportError(f"what was exported has another top-1 than the predictor for {n_lost} of {lost.numel()} examples, and no tie.")
    return largest, float((picked == expected.argmax(1, keepdim=True)).double().mean()), len(expected)
