"""Hold the plan of DESIGN.md section 5: floors, sizes, the public surface, what must never be imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clnp

SRC = Path(__file__).parent.parent / "src"
FILES = sorted((SRC / "clnp").rglob("*.py"))

# A module imports only from lower floors.
FLOORS = {
    "errors": 0,
    "files": 0,
    "locks": 0,
    "names": 0,
    "parsing": 0,
    "tensorfile": 1,
    "entries": 2,
    "chain": 2,
    "ledger": 2,
    "describe": 3,
    "undoing": 3,
    "patches": 3,
    "auditing": 4,
    "verification": 5,
    "receipts": 4,
    "persistence": 4,
    "commit": 4,
    "config": 0,
    "modes": 0,
    "seeds": 0,
    "rundir": 0,
    "stopping": 0,
    "allocation": 1,
    "isolation": 1,
    "dropout": 1,
    "importance": 1,
    "inputs": 1,
    "records": 1,
    "sources": 1,
    "selection": 1,
    "metrics": 1,
    "wiring": 2,
    "emit": 3,
    "kinds": 3,
    "narrow": 3,
    "layers": 3,
    "pieces": 3,
    "pool": 3,
    "split": 3,
    "widening": 3,
    "training": 3,
    "measuring": 3,
    "course": 3,
    "work": 3,
    "advice": 3,
    "candidates": 3,
    "recall": 3,
    "pruning": 3,
    "room": 3,
    "heads": 3,
    "learner": 4,
    "forecast": 4,
    "store": 4,
    "export": 4,
    "wider": 4,
    "methods": 5,
    "data": 2,
    "benchmarks": 5,
    "models": 5,
    "experiment": 6,
    "runs": 6,
    "report": 7,
    "console": 8,
    "cli": 8,
    "cli_models": 8,
}
# Neighbours on one floor that may lean on each other, in this direction only.
NEIGHBOURS = {
    ("config", "errors"),
    ("seeds", "errors"),
    ("ledger", "entries"),
    ("ledger", "chain"),
    ("undoing", "describe"),
    ("patches", "describe"),
    ("patches", "undoing"),
    ("chain", "entries"),
    ("learner", "persistence"),
    ("learner", "commit"),
    ("commit", "receipts"),
    ("commit", "learner"),  # its type alone
    ("persistence", "store"),
    ("persistence", "wider"),
    ("persistence", "learner"),  # its type alone
    ("learner", "receipts"),
    ("locks", "errors"),
    ("locks", "files"),
    ("rundir", "errors"),
    ("rundir", "files"),
    ("rundir", "parsing"),
    ("isolation", "allocation"),
    ("sources", "inputs"),
    ("kinds", "emit"),
    ("narrow", "emit"),
    ("advice", "training"),
    ("candidates", "narrow"),
    ("candidates", "recall"),
    ("recall", "emit"),
    ("recall", "layers"),
    ("recall", "narrow"),
    ("recall", "split"),  # its types alone
    ("candidates", "pruning"),  # its types alone
    ("candidates", "split"),
    ("candidates", "training"),
    ("pruning", "advice"),
    ("pruning", "candidates"),
    ("measuring", "emit"),
    ("measuring", "narrow"),
    ("measuring", "training"),
    ("measuring", "kinds"),
    ("measuring", "split"),
    ("pruning", "measuring"),
    ("narrow", "kinds"),
    ("pool", "emit"),
    ("pool", "layers"),
    ("split", "layers"),
    ("pieces", "emit"),
    ("pool", "kinds"),
    ("pool", "pieces"),
    ("split", "emit"),
    ("split", "kinds"),
    ("split", "narrow"),
    ("split", "pieces"),
    ("split", "pool"),
    ("course", "work"),
    ("training", "course"),
    ("training", "work"),
    ("training", "emit"),
    ("training", "narrow"),
    ("training", "split"),
    ("heads", "emit"),
    ("heads", "split"),
    ("pruning", "narrow"),
    ("pruning", "split"),
    ("pruning", "training"),
    ("pruning", "work"),
    ("room", "narrow"),
    ("learner", "export"),
    ("learner", "forecast"),
    ("wider", "learner"),  # its type alone: the learner calls `widen_` when it is loaded
    ("benchmarks", "models"),
    ("cli", "console"),
    ("cli", "cli_models"),
    ("runs", "experiment"),
}
# What `import clnp` offers. A name more or less is a decision, and is made here.
PUBLIC = {
    "CRITERIA",
    "FREE",
    "Allocation",
    "CapacityError",
    "ClnpError",
    "ConfigError",
    "DamageError",
    "DataError",
    "ExportError",
    "ExportResult",
    "Forecast",
    "GroupCapacity",
    "LearnConfig",
    "LearnResult",
    "Learner",
    "StoreError",
    "TaskError",
    "TrainingError",
    "Verification",
    "WiringError",
    "apply_patch",
    "audit",
    "make_patch",
    "verify",
    "widen",
    "wiring",
}
LONG_FILES: dict[str, str] = {}  # "path": the reason
LONG_FUNCTIONS: dict[str, str] = {}  # "path:function": the reason


def name_of(path):
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports_of(path, *, for_types=True):
    """Return the modules of clnp that a file imports, wherever in the file it does."""
    tree = ast.parse(path.read_text())
    if not for_types:
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "clnp"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what is imported"
            if (node.module or "").split(".")[0] == "clnp":
                # `from clnp.a import b` is the module clnp.a.b where there is one.
                deeper = {f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"}
                found |= {name if name in MODULES else node.module for name in deeper}
    return found


def room_of(module):
    """Return the first part below clnp: the module or the package that stands in the plan."""
    return module.split(".")[1] if "." in module else ""


def test_every_module_stands_in_the_plan():
    assert {room_of(module) for module in MODULES} - {""} <= set(FLOORS)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"clnp"}))
def test_imports_come_from_lower_floors(module):
    here = room_of(module)
    for imported in sorted(imports_of(MODULES[module])):
        there = room_of(imported)
        assert there, f"{module} imports from the public surface; import from the module that has the name"
        allowed = there == here or FLOORS[there] < FLOORS[here] or (here, there) in NEIGHBOURS
        assert allowed, f"{module} (floor {FLOORS[here]}) imports {imported} (floor {FLOORS[there]})"


def test_every_pair_of_neighbours_is_used():
    used = {(room_of(module), room_of(imported)) for module, path in MODULES.items() for imported in imports_of(path)}
    assert used >= NEIGHBOURS


def test_no_import_cycle():
    # What only a type checker imports cannot go round in circles when the program runs.
    graph = {module: imports_of(path, for_types=False) & set(MODULES) for module, path in MODULES.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for imported in sorted(graph[module]):
            visit(imported)
        path.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_sizes_keep_to_the_budget(path):
    text = path.read_text()
    relative = str(path.relative_to(SRC))
    assert len(text.splitlines()) <= 400 or relative in LONG_FILES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # The docstring does not count: a budget must not be met by saying less.
            documented = ast.get_docstring(node, clean=False) is not None
            length = node.end_lineno - (node.body[0].end_lineno if documented else node.lineno)
            assert length <= 50 or f"{relative}:{node.name}" in LONG_FUNCTIONS, f"{node.name} has {length} lines"


def test_the_public_names_are_these():
    assert set(clnp.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(clnp, name) is not None
    with pytest.raises(AttributeError):
        clnp.no_such_name  # noqa: B018


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_nothing_is_read_or_written_with_pickle(path):
    tree = ast.parse(path.read_text())
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "_pickle"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            call = ast.unparse(node)
            assert call not in {"torch.load", "torch.save", "torch.export.load", "np.load", "numpy.load", "yaml.load"} or _is_safe(
                call, tree
            ), call


def _is_safe(call, tree):
    """Return whether every np.load refuses pickles; nothing excuses the others."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == call]
    refuses = [any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords) for node in calls]
    return call in {"np.load", "numpy.load"} and bool(refuses) and all(refuses)


def test_the_command_line_is_imported_without_torch():
    code = "import sys, clnp.cli; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
