"""Holds the directions of imports: which room may know which, and what some rooms never touch."""

import ast
import functools
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "seif_jax"

BASELINES = set(PACKAGE.glob("bench/baselines/*.py")) - {PACKAGE / "bench/baselines/__init__.py"}

# From the top down, by dotted path inside the package; the longest prefix that is listed counts.
# A module imports modules of its own level or below, never in a circle.
LEVELS = [
    {"__main__"},
    {
        "bench",
        "evaluate.command",
        "evaluate.evaluated_models",
        "generate",
        "plan",
        "python_api",
        "sweep",
    },
    {"evolve", "report"},
    {
        "checks_before_jax",
        "checks_with_models",
        "config_checks",
        "config_file",
        "config_parsing",
        "fingerprints",
        "frozen_roles",
        "model_card",
        "resume",
        "role_weights",
        "run_config",
        "run_data",
        "run_dir",
        "stage_settings",
    },
    {"evaluate", "propose", "rl"},
    {
        "chat",
        "checkpoint",
        "compile_progress",
        "data",
        "display",
        "metrics_log",
        "model_bundle",
        "sample_files",
    },
    {"data_rows", "diversity", "rewards", "roles", "sampling", "tokenizer", "tokenizer_files"},
    {"compilation", "models"},
    {
        "accelerator_detection",
        "array_digests",
        "array_views",
        "chat_template",
        "collectives",
        "processes",
        "sharding",
        "signals",
    },
    {
        "bench.baselines",
        "config_types",
        "data_files",
        "errors",
        "files",
        "instruction",
        "jax_private",
        "json_io",
        "length_distribution",
        "model_names",
        "number_format",
        "object_store",
        "unicode_text",
        "options",
        "process_log",
        "profiling",
        "run_clock",
        "run_paths",
        "shipped_configs",
        "storage",
        "sweep.launchers",
        "topologies",
        "user_functions",
        "watchdog",
    },
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

ARRAYS = {"jax", "jaxlib", "flax", "optax", "orbax"}
TEXT = {
    "transformers",
    "tokenizers",
    "seif_jax.tokenizer",
    "seif_jax.tokenizer_files",
    "seif_jax.roles",
    "seif_jax.rewards",
}
NEVER = {
    "evolve": {"jax.numpy", "numpy"},
    "roles": ARRAYS,
    "diversity": ARRAYS,
    "rewards": ARRAYS,
    "config_checks": ARRAYS,
    "config_file": ARRAYS,
    "config_parsing": ARRAYS,
    "checks_before_jax": ARRAYS,
    "length_distribution": ARRAYS,
    "model_names": ARRAYS,
    "resume": ARRAYS,
    "rl.answerer": ARRAYS,
    "rl.config": ARRAYS,
    "run_config": ARRAYS,
    "rl.tasks": ARRAYS,
    "data_rows": ARRAYS,
    "data_files": ARRAYS | {"seif_jax.rewards", "seif_jax.roles"},
    "models": {"ml_collections", "seif_jax.rl", "seif_jax.sampling"},
    "sampling": {"ml_collections", "seif_jax.rl"} | TEXT,
    "rl.advantages": {"ml_collections", "flax"} | TEXT,
    "rl.grpo": {"ml_collections", "flax"} | TEXT,
    "rl.batch": {"ml_collections", "flax"} | TEXT,
    "rl.packing": {"ml_collections"} | ARRAYS | TEXT,
    "rl.learner": TEXT,
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
    """{module, dotted, below the package: what it imports}; no baselines, which run elsewhere."""
    imports = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path in BASELINES:
            continue
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts[1:]).removesuffix(".__init__")
        imports[module] = set(imported(path.read_text("utf-8"), ".".join(parts)))
    return imports


def longest_prefix(module: str, names: Iterable[str]) -> str | None:
    """The longest of these names that the dotted path is, or lies in."""
    return max((name for name in names if within(module, {name})), key=len, default=None)


def level(module: str) -> int:
    room = longest_prefix(module, LEVEL)
    assert room, f"{module} has no level"
    return LEVEL[room]


@functools.cache
def module_graph() -> dict[str, set[str]]:
    """{module: the modules of this package that it imports}"""
    modules = set(all_imports()) - {"__init__"}
    graph = {}
    for module in modules:
        own = {n.removeprefix("seif_jax.") for n in all_imports()[module] if "seif_jax." in n}
        graph[module] = {longest_prefix(name, modules) for name in own} - {module, None}
    return graph


def test_imports_go_down_only():
    up = [
        f"{module} imports {other}"
        for module, others in module_graph().items()
        for other in others
        if level(module) > level(other)
    ]
    assert up == []


def test_modules_do_not_import_each_other_in_a_circle():
    order = list(TopologicalSorter(module_graph()).static_order())  # a CycleError names the circle
    assert order.index("errors") < order.index("data")


def test_what_rooms_never_touch():
    touched = [
        f"{module} imports {name}"
        for module, names in all_imports().items()
        for name in names
        if within(name, NEVER.get(longest_prefix(module, NEVER) or "", set()))
    ]
    assert touched == []


def test_text_rooms_reach_no_arrays_through_others():
    text = [m for m in all_imports() if longest_prefix(m, ("roles", "rewards", "rl.tasks"))]
    reached, new = set(), set(text)
    while new:
        reached |= new
        new = set().union(*(module_graph()[module] for module in new)) - reached
    assert [m for m in reached if any(within(n, ARRAYS) for n in all_imports()[m])] == []


def test_libraries_kept_in_one_place_or_out():
    having = {
        library: [
            module
            for module, names in all_imports().items()
            if any(within(n, {library}) for n in names)
        ]
        for library in ("orbax", "torch", "tensorflow")
    }
    assert set(having["orbax"]) <= {"checkpoint"}
    assert having["torch"] == having["tensorflow"] == []


def test_private_parts_of_jax_are_used_in_one_file():
    private = [
        m for m, names in all_imports().items() if any(within(n, {"jax._src"}) for n in names)
    ]
    assert private == ["jax_private"]


def test_baselines_run_without_this_package():
    assert len(BASELINES) == 5
    for path in BASELINES:
        names = set(imported(path.read_text("utf-8"), path.stem))
        assert not any(within(name, {"seif_jax"}) for name in names), path


def test_no_way_of_importing_is_overlooked():
    source = """
import jax.numpy as jnp, os
from seif_jax.rl import grpo
def late():
    from .layers import weight
    from .. import errors
    importlib.import_module("torch")
"""
    assert set(imported(source, "seif_jax.models.llama")) == {
        "jax.numpy",
        "os",
        "seif_jax.rl.grpo",
        "seif_jax.models.layers.weight",
        "seif_jax.errors",
        "torch",
    }
    assert within("jax.numpy", {"jax"}) and not within("jaxtyping.Array", {"jax"})
