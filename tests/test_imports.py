"""Holds the directions of imports: which room may know which, and what some rooms never touch."""

import ast
import functools
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "seif_jax"

PEERS = set(PACKAGE.glob("peers/*.py")) - {PACKAGE / "peers" / "__init__.py"}

# From the top down; a room imports rooms of its own level or below, never in a circle.
LEVELS = [
    {"__main__"},
    {"bench", "config_file"},
    {
        "evolve",
        "weights",
        "settings",
        "config_keys",
        "preflight",
        "run_dir",
        "report",
        "card",
        "fingerprints",
        "evaluate",
        "plan",
        "jobs",
        "inputs",
        "sweep",
    },
    {"train", "generate", "validate", "learner", "limits"},
    {
        "compiling",
        "rollout",
        "grpo",
        "optim",
        "checkpoint",
        "metrics",
        "display",
        "data",
        "speaker",
        "tasks",
    },
    {"sampling", "roles", "rewards", "tokenizer", "rows"},
    {"models"},
    {"packing", "moments"},
    {"sharding", "masked", "batch", "processes", "accelerators"},
    {"peers"},
    {"launch", "chat_template"},
    {
        "instruction",
        "errors",
        "files",
        "json_io",
        "options",
        "pieces",
        "run_paths",
        "sources",
        "values",
    },
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

ARRAYS = {"jax", "jaxlib", "flax", "optax", "orbax"}
TEXT = {"transformers", "tokenizers", "seif_jax.tokenizer", "seif_jax.roles", "seif_jax.rewards"}
NEVER = {
    "roles": ARRAYS,
    "rewards": ARRAYS,
    "tasks": ARRAYS,
    "rows": ARRAYS,
    "sources": ARRAYS | {"seif_jax.rewards", "seif_jax.roles"},
    "models": {"ml_collections"},
    "sampling": {"ml_collections"} | TEXT,
    "grpo": {"ml_collections", "flax"} | TEXT,
    "masked": {"ml_collections", "flax"} | TEXT,
    "batch": {"ml_collections", "flax"} | TEXT,
    "packing": {"ml_collections"} | ARRAYS | TEXT,
}


def imported(source: str, module: str) -> Iterator[str]:
    """Full dotted names of all that the source of `module` imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def within(name: str, names: set[str]) -> bool:
    """Whether a dotted name is one of these or lies in one."""
    parts = name.split(".")
    return any(".".join(parts[:n]) in names for n in range(1, len(parts) + 1))


@functools.cache
def all_imports() -> dict[str, set[str]]:
    """{path inside the package: what it imports}; of the peers, which run elsewhere, nothing"""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path in PEERS:
            continue
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found[str(path.relative_to(PACKAGE))] = set(imported(path.read_text("utf-8"), module))
    return found


def room(path: str) -> str:
    return path.removesuffix(".py").split("/")[0]


def rooms_imported(names: set[str]) -> set[str]:
    """Rooms among these names; what the package's own __init__ defines belongs to none."""
    rooms = {room(path) for path in all_imports()}
    return {name.split(".")[1] for name in names if name.startswith("seif_jax.")} & rooms


def test_every_room_has_its_level():
    assert {room(path) for path in all_imports()} - set(LEVEL) - {"__init__"} == set()


def test_imports_go_down_only():
    up = [
        f"{path} imports {other}"
        for path, names in all_imports().items()
        for other in rooms_imported(names)
        if LEVEL[room(path)] > LEVEL[other]
    ]
    assert up == []


def test_rooms_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path, names in all_imports().items():
        graph.setdefault(room(path), set()).update(rooms_imported(names) - {room(path)})
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle
    assert order.index("errors") < order.index("data")


def test_what_rooms_never_touch():
    touched = [
        f"{path} imports {name}"
        for path, names in all_imports().items()
        for name in names
        if within(name, NEVER.get(room(path), set()))
    ]
    assert touched == []


def test_text_rooms_reach_no_arrays_through_others():
    graph: dict[str, set[str]] = {}
    for path, names in all_imports().items():
        graph.setdefault(room(path), set()).update(names)
    reached, new = set(), {"roles", "rewards", "tasks"}
    while new:
        reached |= new
        new = set().union(*(rooms_imported(graph[one]) for one in new)) - reached
    assert [one for one in reached if any(within(name, ARRAYS) for name in graph[one])] == []


def test_libraries_kept_in_one_place_or_out():
    having = {
        library: [
            path
            for path, names in all_imports().items()
            if any(within(n, {library}) for n in names)
        ]
        for library in ("orbax", "torch", "tensorflow")
    }
    assert set(having["orbax"]) <= {"checkpoint.py"}
    assert having["torch"] == having["tensorflow"] == []


def test_peers_run_without_this_package():
    assert len(PEERS) == 5
    for path in PEERS:
        names = set(imported(path.read_text("utf-8"), path.stem))
        assert not any(within(name, {"seif_jax"}) for name in names), path


def test_no_way_of_importing_is_overlooked():
    source = """
import jax.numpy as jnp, os
from seif_jax import masked
def late():
    from .layers import weight
    from .. import errors
    importlib.import_module("torch")
"""
    assert set(imported(source, "seif_jax.models.llama")) == {
        "jax.numpy",
        "os",
        "seif_jax.masked",
        "seif_jax.models.layers.weight",
        "seif_jax.errors",
        "torch",
    }
    assert within("jax.numpy", {"jax"}) and not within("jaxtyping.Array", {"jax"})
