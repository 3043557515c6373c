"""A mistake in a command is reported before JAX is imported, which takes seconds."""

import json
import os
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from seif_jax import config_parsing, run_config, topologies
from seif_jax.config_file import read_config
from seif_jax.config_types import OneOf, unwrap
from seif_jax.models import lora, tree_forward
from seif_jax.plan import chip_specs, gpus
from seif_jax.rl import advantages, grpo, optim, quantized_adam

# Runs commands in one process, and prints for each: exit code, standard error, modules with arrays.
PROGRAM = """
import contextlib, io, json, sys
from seif_jax.__main__ import main
for command in json.loads(sys.argv[1]):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            code = main(command)
        except SystemExit as end:
            code = end.code
    brought = sorted({"jax", "flax", "optax", "orbax", "transformers", "torch"} & {*sys.modules})
    print(json.dumps([code, errors.getvalue(), brought]))
"""

RUN = ("run", "--config=quickstart", "--workdir=DIR/new")
EVALUATE = ("evaluate", "--model=smollm2")
GENERATE = ("generate", "--prompt=Hi")
BENCH = ("bench", "--what=step")
PLAN = ("plan", "--config=smollm2")
COMMANDS = {  # with what the message must contain; DIR: a folder with the files that fixtures make
    ("frobnicate",): "invalid choice: 'frobnicate'",
    ("run", "--config=quickstart"): "--workdir",
    ("run", "--config=quikstart", "--workdir=DIR/new"): "no such config file",
    ("run", "--config=quickstart", "--workdir=DIR/file"): "DIR/file is a file",
    ("run", "--config=quickstart", "--workdir=DIR/run"): "seed is 5 there",
    (*RUN, "--config.sed=1"): "did you mean seed?",
    (*RUN, "--config.optim.lr=1"): "optim.learning_rate",
    (*RUN, "--config.grpo.policy_loss=ppo"): "must be one of: grpo, gspo, cispo",
    (*RUN, "--config.follower.group_size=1"): "config.follower.group_size must be",
    (*RUN, "--config.rounds"): "needs a value",
    (*RUN, "--seed=1"): "--config.seed=VALUE",
    (*RUN, "--config.follower.prompts=DIR/none.toml"): "none.toml: no such file",
    (*RUN, "--config.model=DIR/none"): "DIR/none: no such file or folder",
    (*RUN, "--config.judger.model=DIR/run"): "config.judger.model: DIR/run is a run's folder",
    (*RUN, "--config.data.seeds=DIR/none.jsonl"): "none.jsonl: no such file",
    (*RUN, "--config.eval.sets.mine.path=DIR/none.csv"): "none.csv: no such file",
    (*RUN, "--config.eval.suites=ifevil"): "did you mean ifeval?",
    (*RUN, "--config.reward.checks=seif_none:f"): "config.reward.checks: seif_none:f: there is no "
    "module seif_none in ",
    (*RUN, "--config.reward.checks=ifeval,seif_none.sub:f"): "there is no module seif_none in ",
    (*RUN, "--config.instructor.reward=seif_none:f"): "config.instructor.reward: seif_none:f: ",
    (*EVALUATE, "--suite=seif_none:f", "--data=DIR/file"): "--suite: seif_none:f: there is no ",
    (*EVALUATE, "--suite=ifeval", "--temperature=11"): "--temperature must be 0 or a number from",
    (*EVALUATE, "--suite=ifevil"): "did you mean ifeval?",
    (*EVALUATE, "--suite=ifeval", "--limit=0"): "--limit must be 1 or more",
    (*EVALUATE, "--suite=ifeval", "--data=DIR/none.jsonl"): "none.jsonl: no such file",
    ("evaluate", "--model=DIR/none", "--suite=ifeval"): "DIR/none: no such file or folder",
    ("evaluate", "--responses=DIR/none.jsonl", "--suite=ifeval"): "none.jsonl: no such file",
    ("generate", "--model=DIR/none", "--prompt=Hi"): "DIR/none: no such file or folder",
    ("generate", "--prompts=DIR/none.txt"): "none.txt: no such file",
    (*GENERATE, "--temperature=0.001"): "--temperature must be 0 or a number from 0.01 to 10 (got",
    (*GENERATE, "--temperature=nan"): "--temperature must be 0 or a number from 0.01 to 10 (got",
    (*GENERATE, "--top_k=-1"): "--top_k must be a whole number from 0 to",
    (*GENERATE, "--top_p=0"): "--top_p must be a number from 1e-06 to 1 (got 0.0)",
    (*GENERATE, "--max_tokens=0"): "--max_tokens must be 1 or more (got 0)",
    (*GENERATE, "--n=-3"): "--n must be 1 or more (got -3)",
    ("convert", "DIR/none", "DIR/new"): "DIR/none: no such file or folder",
    ("bench", "--what=step", "--model=DIR/none"): "DIR/none: no such file or folder",
    (*BENCH, "--repeats=0"): "--repeats must be 1 or more (got 0)",
    (*BENCH, "--new_tokens=1"): "--new_tokens must be 2 or more (got 1)",
    (*BENCH, "--group=1"): "--group must be 2 or more with --what=step",
    (*BENCH, "--against=trl"): "--against=PEER and --peer_python=FILE go together",
    (*BENCH, "--lengths=9,0.5"): "--lengths needs --what=rollout or --what=update",
    ("plan", "--config=DIR/none.py"): "no such config file",
    (*PLAN, "--topology=v5e:3x5"): "--topology must be a TPU slice (v5e: 2x2, ",
    (*PLAN, "--topology=h100:9"): "N up to 8",
    (*PLAN, "--topology=x100:8"): "(got 'x100:8')",
    (*PLAN, "--topology="): "(got '')",
    (*PLAN, "--lengths=0,1"): "--lengths must be MEAN,SIGMA",
    ("report", "DIR/none"): "no such folder",
    ("sweep", "--config=smollm2", "--sweep=x", "--workdir=DIR", "--launcher=print"): "no such",
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{command: exit code, standard error, modules}, all of one process."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "file").write_text("text")
    (folder / "run").mkdir()
    config = config_parsing.as_json(read_config("quickstart", ["--config.seed=5"]))
    record = {"config": config, "fingerprints": {"model": "a model's digest"}}
    (folder / "run" / "config.json").write_text(json.dumps(record))
    commands = [[word.replace("DIR", str(folder)) for word in command] for command in COMMANDS]
    python = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(python, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line.replace(str(folder), "DIR")) for line in done.stdout.splitlines()]
    return dict(zip(COMMANDS, lines, strict=True))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_mistake_is_reported_without_jax(command, outcomes):
    code, message, brought = outcomes[command]
    assert code == 2 and COMMANDS[command] in message and message.count("\n") == 1, message
    assert brought == []


def options(group: type, key: str) -> tuple[str, ...]:
    """The names that a key of a config's group accepts."""
    bare, marks = unwrap(get_type_hints(group, include_extras=True)[key])
    return tuple(marks[OneOf].options) if OneOf in marks else get_args(bare)


@pytest.mark.parametrize(
    ("group", "key", "table"),
    [
        (run_config.GrpoConfig, "policy_loss", grpo.POLICY_LOSSES),
        (run_config.GrpoConfig, "loss_aggregation", grpo.AGGREGATIONS),
        (run_config.GrpoConfig, "kl", grpo.KL_ESTIMATORS),
        (run_config.GrpoConfig, "advantage", advantages.ADVANTAGES),
        (run_config.OptimizerConfig, "schedule", optim.SCHEDULES),
        (run_config.OptimizerConfig, "moments", quantized_adam.MOMENTS),
        (run_config.RunConfig, "remat", tree_forward.REMAT_POLICIES),
    ],
)
def test_every_variant_has_its_name_in_the_config(group, key, table):
    assert options(group, key) == tuple(table)


def test_every_gpu_that_can_be_planned_for_has_a_topology():
    assert topologies.GPUS == tuple(gpus.TARGETS) == tuple(chip_specs.GPU_RATES)


def test_adapters_have_the_targets_that_the_config_names():
    assert get_args(run_config.LoraTarget) == run_config.LoraConfig().targets == lora.TARGETS
