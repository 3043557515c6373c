"""`seif bench`: numbers in range, counts against arrays and programs, turns taken with a peer."""

import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run
from jax.extend.core import jaxprs_in_params

from seif_jax import models
from seif_jax.__main__ import main
from seif_jax.bench import baselines, command, inputs, roofline
from seif_jax.bench.baselines import Peer
from seif_jax.bench.workloads import Workload
from seif_jax.errors import UserError
from seif_jax.length_distribution import Lengths
from seif_jax.model_bundle import ModelBundle

SIZES = ["--prompts=2", "--group=3", "--prompt_tokens=12", "--new_tokens=5", "--repeats=2"]
FAKE = """
from pathlib import Path

def run(spec, say, wait):
    print("not a line of the protocol")
    say(ready={"fake": spec["dtype"]})
    while wait():
        with open(Path(spec["folder"]) / "turns", "a") as turns:
            turns.write("peer ")
        say(secs=0.5, tokens=7, phases={"sample": 0.25})
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny_run.model_folder(tmp_path_factory.mktemp("bench") / "model")


@pytest.fixture
def quick(monkeypatch):
    """Little work where there is nothing to be checked."""
    monkeypatch.setattr(inputs, "JUDGER_SHOTS", 0)
    monkeypatch.setattr(roofline, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(roofline, "SIDES", {"cpu": (32,)})


@pytest.fixture
def write_peer(monkeypatch, tmp_path):
    """Puts a script in the place of the peer hf."""
    monkeypatch.setattr(baselines, "FOLDER", tmp_path)
    return lambda text: (tmp_path / "hf.py").write_text(text)


def check(result, tokens):
    for name, row in result["secs"].items():
        assert row["min"] <= row["median"] <= row["max"]
        assert row["min"] > 0 or name == "decode"  # a difference, here of a few milliseconds
    assert result["step_secs"] == result["secs"]["step"]["median"]
    assert result["tokens_per_sec"] == pytest.approx(tokens / result["step_secs"])


@pytest.mark.parametrize(
    "what, tokens, phases, limit",
    [
        ("rollout", 2 * 3 * 5, {"first_token", "decode"}, "bytes_per_sec"),
        ("judge", None, {"full_forward"}, "flops_per_sec"),
        ("update", 2 * 3 * (12 + 5), set(), "flops_per_sec"),
        ("step", 2 * 3 * 5, {"sample", "reward", "reference", "update"}, "flops_per_sec"),
    ],
)
def test_a_benchmark(model_folder, quick, capsys, what, tokens, phases, limit):
    options = ["bench", f"--model={model_folder}", f"--what={what}", "--dtype=float32", *SIZES]
    assert main(options) == 0
    out, progress = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert f"{what}: {result['compiled_programs']} programs" in progress
    check(result, tokens or result["tokens_per_sec"] * result["step_secs"])
    assert set(result["secs"]) == {"step"} | phases
    assert result["compiled_programs"] > 0 and result["compiled_again"] == 0
    assert 0 < result["compile_secs"] < result["first_secs"]
    assert result["peak_bytes"] > 1e8 and result["flops"] > 1e6
    assert result["limit"] == limit and math.isfinite(result["share_of_limit"])
    if what != "rollout":
        least_secs = result["flops"] / result["limits"][limit]
        assert result["share_of_limit"] == pytest.approx(least_secs / result["step_secs"])
    assert result["limits"].keys() == {"bytes_per_sec", "flops_per_sec"}
    assert result["versions"]["jax"] == jax.__version__
    assert result["machine"]["cores"] >= 1
    if what == "judge":
        assert result["probability_gap_max"] < 1e-4
        assert result["times_full_forward"]["min"] > 0


def test_a_rollout_of_unequal_lengths(model_folder, quick, capsys):
    options = ["bench", f"--model={model_folder}", "--what=rollout", "--dtype=float32", *SIZES]
    assert main([*options, "--new_tokens=160", "--lengths=60,0.9", "--slots=4"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    lengths = inputs.WorkloadSizes(2, 3, 12, 160, 99, Lengths(60, 0.9), 4).new_lengths()
    assert len(lengths) == 6 and 1 <= min(lengths) < max(lengths) <= 160
    check(result, sum(lengths))
    # four samples and then two in four slots, which end with the longest's chunk of 16 steps
    assert sum(lengths) / (4 * 2 * 160) <= result["slot_use"] < 1


@pytest.mark.parametrize("what, tokens", [("rollout", 0), ("update", 12)])
def test_random_weights(tmp_path, quick, capsys, what, tokens):
    """The shape of a config.json without weights, and samples of unequal lengths."""
    shape = {**tiny.tiny_config(50_000), "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    options = ["bench", f"--model={tmp_path}", "--random_weights", f"--what={what}", *SIZES]
    assert main([*options, "--dtype=float32", "--new_tokens=40", "--lengths=20,0.6"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    lengths = inputs.WorkloadSizes(2, 3, 12, 40, 99, Lengths(20, 0.6), 6).new_lengths()
    assert len({*lengths}) > 1
    check(result, sum(lengths) + 2 * 3 * tokens)


def test_too_small_a_vocabulary_for_random_weights(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(tiny.tiny_config(300)))
    assert main(["bench", f"--model={tmp_path}", "--random_weights", "--what=rollout"]) == 2
    error = capsys.readouterr().err
    assert "must have at least 49152 tokens" in error and error.rstrip().endswith("(got 300)")


def test_beside_a_peer(model_folder, quick, write_peer, capsys):
    write_peer(FAKE)
    against = ["--against=hf", f"--peer_python={sys.executable}"]
    options = ["bench", f"--model={model_folder}", "--what=rollout", "--dtype=float32", *SIZES]
    assert main([*options, *against]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["peer"]["versions"] == {"fake": "float32"}
    assert result["peer"]["step_secs"] == 0.5
    assert result["peer"]["secs"]["sample"]["median"] == 0.25
    check(result["peer"], 2 * 3 * 5)
    assert result["secs_over_peer"]["max"] == pytest.approx(result["secs"]["step"]["max"] / 0.5)
    assert result["peak_over_peer"] > 2  # the peer holds nothing


def start(folder: Path, python: str = sys.executable) -> Peer:
    return Peer("hf", python, {"threads": 1, "dtype": "none", "folder": str(folder)}, folder)


def test_sides_take_turns(write_peer, tmp_path, capsys):
    write_peer(FAKE)
    turns = tmp_path / "turns"

    def ours():
        with turns.open("a") as file:
            file.write("ours ")

    with start(tmp_path) as peer:
        assert peer.ready() == {"fake": "none"}
        assert not turns.exists()
        rows, others = command.alternate(Workload(ours, 1, 1, []), peer, 3)
    assert turns.read_text().split() == ["ours", "peer"] * 3
    assert len(rows) == 3 and [other["tokens"] for other in others] == [7] * 3
    assert all(other["peak_bytes"] > 1e6 for other in others)


@pytest.mark.parametrize(
    "script, words",
    [
        ("import absent_library", "exit code 1: ModuleNotFoundError: No module named 'absent_lib"),
        ("def run(*_): raise SystemExit(3)", "exit code 3: it wrote nothing"),
        (FAKE.replace("while wait()", "if wait()"), "exit code 0: not a line of the protocol"),
    ],
)
def test_peers_that_fail(write_peer, tmp_path, script, words):
    write_peer(script)
    with start(tmp_path) as peer, pytest.raises(UserError, match="--against=hf: .*") as error:
        peer.ready()
        peer.repeat()
        peer.repeat()
    assert words in str(error.value)


def test_an_interpreter_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="--peer_python=/absent: No such file"):
        start(tmp_path, "/absent")


@pytest.mark.parametrize(
    "options, message",
    [
        ("--repeats=0", "--repeats must be 1 or more (got 0)"),
        ("--new_tokens=1", "--new_tokens must be 2 or more (got 1)"),
        ("--group=1 --what=update", "--group must be 2 or more with --what=update"),
        (
            "--lengths=9,0.5 --what=step",
            "or --what=update (got --what=step)",
        ),
        ("--lengths=9 --what=update", "--lengths must be MEAN,SIGMA"),
        ("--lengths=90,0.5 --what=update", "the mean must be at most --new_tokens=64 (got 90)"),
        (
            "--random_weights --what=rollout --against=hf --peer_python=x",
            "--random_weights cannot be",
        ),
        (
            "--lengths=9,0.5 --against=hf --peer_python=x",
            "only vllm can sample completions of different lengths (got hf)",
        ),
        ("--micro_tokens=0", "--micro_tokens must be 1 or more"),
        ("--new_tokens=9000", "--new_tokens=9000 exceed the model's 8192 positions"),
        ("--against=hf", "--against=PEER and --peer_python=FILE go together"),
        (
            "--against=trl --peer_python=x",
            "--what must be one of: step with --against=trl (got rollout)",
        ),
        (
            "--peer_dtype=autocast --against=hf --peer_python=x",
            "--peer_dtype=autocast needs --against=trl (got hf)",
        ),
        ("--what=all", "invalid choice: 'all'"),
    ],
)
def test_what_cannot_be_measured(model_folder, capsys, options, message):
    try:
        code = main(["bench", f"--model={model_folder}", "--what=rollout", *options.split()])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and message in err


def products(jaxpr) -> int:
    """Operations of all matrix products of a program, a multiplication and an addition each."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * int(np.prod(equation.outvars[0].aval.shape) * np.prod(inner))
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(products(inner) for inner in jaxprs_in_params(equation.params))
    return total


def test_flops_are_those_of_the_program():
    model = models.describe(tiny.tiny_config(97))
    params = models.shapes(model)
    B, T = 3, 10

    def forward(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        hidden, _ = models.forward(model.config, params, tokens, positions, dtype=jnp.float32)
        return models.logits(params, hidden, jnp.float32)

    program = jax.make_jaxpr(forward)(params, jax.ShapeDtypeStruct((B, T), jnp.int32))
    # The program computes the whole square of scores, and masks it.
    assert products(program.jaxpr) == roofline.forward_flops(model.config, B * T, B * T * T, B * T)


def test_what_is_shared_counts_once():
    sequences = [[1, 2, 3, 4], [1, 2, 5], [6], [1, 2, 3, 7], [1, 2, 5]]
    starts = {tuple(ids[: i + 1]) for ids in sequences for i in range(len(ids))}
    assert roofline.tree_size(sequences) == (len(starts), sum(map(len, starts)))
    assert roofline.tree_size([[1, 2, 3]]) == (3, 1 + 2 + 3)


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_decoding(tied):
    model = models.describe({**tiny.tiny_config(97), "tie_word_embeddings": tied})
    c, shapes = model.config, models.shapes(model)
    read = {name: tree for name, tree in shapes.items() if tied or name != "embed"}
    weights = sum(x.size * 2 for x in jax.tree.leaves(read))
    least_bytes = roofline.decode_bytes(
        c, models.num_params(model), 2, prompt_tokens=20, new_tokens=24
    )
    cache = np.zeros((2, c.layers, c.kv_heads, 20 + 24, c.head_dim), np.float16)
    assert least_bytes == weights + cache.nbytes


def test_prompts_have_their_length(model_folder):
    base = ModelBundle.load(str(model_folder))
    prompts = inputs.passages(base.tokenizer, 5, 40)
    assert [len(ids) for ids in prompts] == [40] * 5
    assert len(set(map(tuple, prompts))) == 5
    plain = inputs.PlainTokenizer(base.tokenizer)
    for ids in prompts:
        chat = [{"role": "user", "content": base.tokenizer.decode(ids)}]
        assert plain.encode_chats([chat]) == [(ids, "")]
    with pytest.raises(UserError, match="make no 90000 prompts of 4 tokens"):
        inputs.passages(base.tokenizer, 90_000, 4)


def test_remat_reaches_the_learner():
    bundle = ModelBundle.load(None)
    model = inputs.BenchModel(bundle, None, random_weights=True, dtype_name="float32")
    sizes = inputs.WorkloadSizes(2, 3, 12, 40, 99, None, 6, remat="dots")
    stage, _ = inputs.training_stage(model, sizes)
    assert stage.learner.remat == "dots"
