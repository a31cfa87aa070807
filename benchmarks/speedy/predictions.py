"""Who predicts: one task of a network of 784-2000-2000-10, in the full network and in 20 % of its units."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from speedy.steps import N_CLASSES, N_INPUTS, WIDTH, dense

if TYPE_CHECKING:
    from collections.abc import Callable

SHARE = 0.2
REPEATS = {1: 200, 256: 20}


def predictor() -> nn.Module:
    """Return clnp's predictor of a task that needs so large a share of the units."""
    from clnp.narrow import narrow
    from clnp.wiring import trace

    trunk = dense()[:-1]
    wiring = trace(trunk, torch.zeros(2, N_INPUTS))
    units = torch.zeros(wiring.n_units, dtype=torch.bool)
    for group in wiring.groups:
        units[group.mask(wiring.n_units).nonzero()[:, 0][torch.randperm(WIDTH)[: round(SHARE * WIDTH)]]] = True
    state = {name: tensor.detach() for name, tensor in trunk.state_dict().items()}
    return narrow(wiring, state, units, head=(torch.randn(N_CLASSES, WIDTH), torch.zeros(N_CLASSES)))


def by_hand() -> nn.Module:
    """Return a plain dense network of the predictor's size."""
    return dense(width=round(SHARE * WIDTH))


def repeat(network: Callable[[Tensor], Any], batch: int) -> Callable[[], None]:
    """Return a function that predicts many times."""
    x = torch.rand(batch, N_INPUTS)

    def predict() -> None:
        with torch.inference_mode():
            for _ in range(REPEATS[batch]):
                network(x)

    return predict


def write(which: str, file: Path) -> None:
    """Write one of the networks to a file, which another process reads: what it takes to export is no part of predicting."""
    logging.disable(logging.WARNING)
    network = {"full": dense, "predictor": predictor}[which]().eval()
    example, dynamic = (torch.rand(2, N_INPUTS),), ({0: torch.export.Dim("n")},)
    if file.suffix == ".pt2":
        torch.export.save(torch.export.export(network, example, dynamic_shapes=dynamic), file)
    else:
        torch.onnx.export(network, example, str(file), dynamic_shapes=dynamic, external_data=False)


def exported(which: str, suffix: str) -> bytes:
    """Return the file of one of the networks, made by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"network{suffix}"
        subprocess.run([sys.executable, "-m", "speedy.predictions", which, str(file)], check=True, stdout=subprocess.DEVNULL)
        return file.read_bytes()


def pt2(which: str, batch: int) -> Callable[[], None]:
    """Return a function that predicts many times with what torch.export has written."""
    return repeat(torch.export.load(BytesIO(exported(which, ".pt2"))).module(), batch)


def onnx(which: str, batch: int) -> Callable[[], None]:
    """Return a function that predicts many times in ONNX Runtime, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(exported(which, ".onnx"), options, providers=["CPUExecutionProvider"])
    x = torch.rand(batch, N_INPUTS).numpy()
    name = session.get_inputs()[0].name

    def predict() -> None:
        for _ in range(REPEATS[batch]):
            session.run(None, {name: x})

    return predict


def contestants(batch: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """Return who takes part with batches of one size; the first is what all are measured against."""
    return {
        "the full network": lambda: repeat(dense().eval(), batch),
        "20 %, built by hand": lambda: repeat(by_hand().eval(), batch),
        "20 %, built by hand, torch.compile": lambda: repeat(torch.compile(by_hand().eval()), batch),
        "20 %, clnp's predictor": lambda: repeat(predictor().eval(), batch),
        "20 %, clnp's predictor, torch.compile": lambda: repeat(torch.compile(predictor().eval()), batch),
        "20 %, clnp's predictor, loaded from .pt2": lambda: pt2("predictor", batch),
        "20 %, clnp's predictor, ONNX Runtime": lambda: onnx("predictor", batch),
        "the full network, ONNX Runtime": lambda: onnx("full", batch),
    }


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
