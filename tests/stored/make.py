"""Make model directories of formats 1 and 2, with the code that wrote them; see README.md beside this file.

git archive 07cb8a7 src | tar -x -C /tmp/old
PYTHONPATH=/tmp/old/src:tests OMP_NUM_THREADS=1 python tests/stored/make.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import clnp
import clnp.store
from stored_networks import NETWORKS, data, probe

SETTINGS = {"epochs": 3, "finetune_epochs": 0, "rounds": 1, "batch_size": 16, "margin": 0.1, "pool": 0.5}


def learn(learner: clnp.Learner, network: str, name: str, number: int, **settings: object) -> None:
    x, y = data(network, number)
    config = clnp.LearnConfig(**{**SETTINGS, **settings})  # pyright: ignore[reportArgumentType]
    learner.learn(name, (x, y), (x, y), config=config)


def main() -> None:
    """Write every directory anew."""
    here = Path(__file__).parent
    assert not hasattr(clnp, "DamageError"), "give PYTHONPATH=/tmp/old/src"
    assert hasattr(clnp.store, "write_atomic")
    torch.set_num_threads(1)
    for network, build in NETWORKS.items():
        torch.manual_seed(0)
        learner = clnp.Learner(build(), probe(network), seed=3)
        learn(learner, network, "first", 0)
        learn(learner, network, "zweite Aufgabe ß", 1, private=True)
        if network == "widened":
            learner = clnp.widen(learner, {"0": 3})
        learn(learner, network, "third/../x", 2, head="single")
        learner.save(here / network)
        save_file({str(n): learner.predict(probe(network), task=task) for n, task in enumerate(learner.tasks)}, here / f"{network}.logits")
        sys.stdout.write(f"{network}: {sum(file.stat().st_size for file in (here / network).rglob('*'))} bytes\n")


if __name__ == "__main__":
    main()
