"""The update: gradients by any route and in any micro-batch size, AdamW, clipping, skipping."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from seif_jax import models, sharding
from seif_jax.models.tree_forward import REMAT_POLICIES, completion_logp
from seif_jax.rl import learner, optim
from seif_jax.rl.batch import Batch
from seif_jax.rl.grpo import BatchTotals, LossConfig
from seif_jax.rl.optim import OptimizerConfig, TrainState
from seif_jax.rl.packing import pack
from seif_jax.rl.stage import BatchSizes, Programs, apply_updates, with_logp

MODEL = models.describe(tiny.tiny_config(96))
C = MODEL.config
PARAMS = models.init(MODEL, 1)
LOSS = LossConfig(
    policy_loss="grpo", loss_aggregation="token", clip_low=0.2, clip_high=0.3, clip_dual=3.0,
    kl="k3", kl_coef=0.1, max_response_tokens=6,
)  # fmt: skip
OPTIMIZER = OptimizerConfig(
    learning_rate=1.0, schedule="constant", warmup_updates=0, end_rate=0.0, b1=0.9, b2=0.999,
    eps=1e-8, weight_decay=0.0, clip_norm=1e9, moments="float32",
)  # fmt: skip
ALGORITHM = learner.Algorithm(LOSS, OPTIMIZER, remat="full")
# 4 prompts of 2 samples; lengths differ so that a mean of micro-batch means would show.
LENGTHS = np.array([6, 2, 1, 5, 3, 3, 6, 4], np.int32)
TRAINED = np.array([1, 1, 0, 1, 1, 1, 1, 1], bool)
TOKENS = int(LENGTHS[TRAINED].sum())
ADVANTAGES = np.array([1.0, -1.0, 9.0, 0.5, -0.5, 2.0, 0.7, -0.7], np.float32)


def packed_logp(params, flat, remat="none", dtype=jnp.float32):
    part = tiny.one_part(flat)
    return completion_logp(C, params, part, temperature=0.8, dtype=dtype, remat=remat)[0]


def bare_batch() -> Batch:
    rng = np.random.default_rng(0)
    nothing = np.zeros((8, 6), np.float32)
    fields: dict[str, Any] = dict(
        prefix=rng.integers(3, 64, 5, np.int32),
        prompts=rng.integers(3, 64, (4, 6), np.int32),
        prompt_lengths=np.array([6, 1, 4, 3], np.int32),
        completions=rng.integers(3, 64, (8, 6), np.int32),
        lengths=LENGTHS,
        sampler_logp=nothing, old_logp=nothing, ref_logp=nothing,
        advantages=ADVANTAGES, trained=TRAINED,
    )  # fmt: skip
    return Batch(**fields)


BARE = bare_batch()


def plain_logp(params):
    """Every sequence by itself: its tokens in one row, one forward pass, one log-softmax."""
    rows = np.zeros((8, 5 + 6 + 6), np.int32)
    lengths = np.repeat(BARE.prompt_lengths, 2)
    for i in range(8):
        prompt = BARE.prompts[i // 2, : lengths[i]]
        row = [*BARE.prefix, *prompt, *BARE.completions[i, : LENGTHS[i]]]
        rows[i, : len(row)] = row
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    hidden, _ = models.forward(C, params, jnp.array(rows), positions, dtype=jnp.float32)
    logp = jax.nn.log_softmax(models.logits(params, hidden, jnp.float32) / 0.8)
    places = 5 + lengths[:, None] - 1 + np.arange(6)
    return logp[np.arange(8)[:, None], places, BARE.completions]


LOGP = np.asarray(jax.jit(plain_logp)(PARAMS))
NOISE = np.random.default_rng(1).normal(size=(3, 8, 6)).astype(np.float32) * 0.2
BATCH = replace(
    BARE, sampler_logp=LOGP + NOISE[0], old_logp=LOGP + NOISE[1], ref_logp=LOGP + NOISE[2]
)


@pytest.fixture(autouse=True, scope="module")
def quick_compiles():
    """These programs take long to compile and no time to run."""
    with tiny.jax_settings(jax_disable_most_optimizations=True):
        yield


LEARNER = learner.Learner(packed_logp, optax.sgd(1.0), ALGORITHM)


def step(batch, on_policy=False, tokens=100, learner=LEARNER):
    """An update by plain gradient descent at rate 1: (gradient, new params, numbers)."""
    start = jax.tree.map(jnp.array, PARAMS)  # the update takes the buffers that it is given
    state = TrainState(start, optim.init(optax.sgd(1.0), start))
    micros = [micro for _, micro in pack(batch, tokens)]
    state, numbers = learner.update(state, {}, micros, BatchTotals.of([batch.mask()]), on_policy)
    gradient = jax.tree.map(lambda old, new: np.asarray(old - new), PARAMS, state.params)
    return gradient, state.params, numbers


def close(got, wanted, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), got, wanted)


@pytest.mark.parametrize("tokens, parts", [(41, 1), (24, 2)])
def test_the_tree_is_each_sequence_by_itself(tokens, parts):
    found = pack(BATCH, tokens)
    assert len(found) == parts
    inside = BATCH.mask()
    tree = np.zeros_like(LOGP)
    for samples, micro in found:
        logp = jax.jit(packed_logp)(PARAMS, micro.packed)
        tree[samples, : logp.shape[1]] = logp[: len(samples)]
    np.testing.assert_allclose(tree[inside], LOGP[inside], atol=1e-5)


def test_micro_batches_do_not_matter():
    _, whole, numbers = step(BATCH)
    _, parts, others = step(BATCH, tokens=24)
    close(parts, whole, atol=1e-5)
    assert numbers.keys() == others.keys()
    for name, value in numbers.items():
        assert others[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_padding_cannot_be_seen():
    """Rubbish in it does not get into a pass; room for a prompt that is not there changes none."""
    inside = np.arange(6) < LENGTHS[:, None]
    prompts = np.where(np.arange(6) < BATCH.prompt_lengths[:, None], BATCH.prompts, 77)
    junk = replace(BATCH, prompts=prompts, completions=np.where(inside, BATCH.completions, 33))
    (_, clean), (_, other) = pack(BATCH, 100)[0], pack(junk, 100)[0]
    close(other, clean, atol=0)
    samples, micro = pack(BATCH.take(np.array([3, 0, 1])), 100)[0]
    assert len(samples) == 6 and micro.mask.shape[0] == 8
    logp = jax.jit(packed_logp)(PARAMS, micro.packed)
    wanted, mask = LOGP[[6, 7, 0, 1, 2, 3]], BATCH.mask()[[6, 7, 0, 1, 2, 3]]
    np.testing.assert_allclose(logp[:6][mask], wanted[mask], atol=1e-5)


def test_gradient_is_that_of_the_plain_formula():
    """-mean(A·logp) + 0.1·mean(exp(d) - d - 1) over 29 tokens, by the plain forward."""
    mask = BATCH.mask()
    assert TOKENS == int(mask.sum()) == 29

    def objective(params):
        logp = plain_logp(params)
        d = BATCH.ref_logp - logp
        terms = -ADVANTAGES[:, None] * logp + 0.1 * (jnp.exp(d) - d - 1)
        return jnp.sum(jnp.where(mask, terms, 0.0)) / 29

    wanted = jax.jit(jax.grad(objective))(PARAMS)
    gradient, _, numbers = step(BATCH, on_policy=True)
    close(gradient, wanted, atol=2e-6)
    assert numbers["grad_norm"] == pytest.approx(float(optax.tree.norm(wanted)), rel=1e-5)


def test_numbers_of_an_update():
    mask = BATCH.mask()
    numbers = step(BATCH)[2]
    gap = np.abs(BATCH.old_logp - BATCH.sampler_logp)[mask]
    assert numbers["sampler_gap"] == pytest.approx(gap.mean(), rel=1e-5)
    assert numbers["sampler_gap_max"] == pytest.approx(gap.max(), rel=1e-5)
    assert numbers["approx_kl"] == pytest.approx((BATCH.old_logp - LOGP)[mask].mean(), abs=1e-5)
    assert numbers["trained_tokens"] == 29 and numbers["skipped_updates"] == 0


def test_fresh_decides_whose_log_probabilities_are_the_old_ones():
    """Old ones 0.1 lower make the ratio e^0.1 = 1.105, inside the clip: the gradient grows so."""
    still = replace(BATCH, ref_logp=LOGP, old_logp=LOGP - np.float32(0.1))
    on_policy, _, first = step(still, on_policy=True)
    later, _, second = step(still, on_policy=False)
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert second["approx_kl"] == pytest.approx(-0.1, abs=1e-5)
    close(later, jax.tree.map(lambda g: g * np.exp(0.1), on_policy), atol=5e-6)
    close(step(replace(still, old_logp=LOGP + 7), on_policy=True)[0], on_policy, atol=0)


def test_a_gradient_that_is_not_finite_changes_nothing():
    broken = replace(BATCH, advantages=np.where(np.arange(8) == 3, np.inf, ADVANTAGES))
    gradient, _, numbers = step(broken)
    assert numbers["skipped_updates"] == 1 and not np.isfinite(numbers["grad_norm"])
    close(gradient, jax.tree.map(np.zeros_like, gradient), atol=0)


def test_an_infinity_that_is_not_trained_on_does_no_harm():
    left_out = replace(BATCH, advantages=np.where(TRAINED, ADVANTAGES, np.nan))
    _, params, numbers = step(left_out)
    assert numbers["skipped_updates"] == 0
    close(params, step(BATCH)[1], atol=0)


def test_what_is_computed_again_does_not_matter_but_takes_no_memory():
    """The same gradient; what is held between the passes: full < dots < none. Four layers."""
    model = models.describe({**tiny.tiny_config(96), "num_hidden_layers": 4})
    bare = replace(BATCH, prefix=BATCH.prefix[:0])  # less to compile
    (_, micro), params = pack(bare, 100)[0], models.init(model, 1)
    micro = tiny.one_part(micro)
    held, gradients = {}, {}
    for remat in REMAT_POLICIES:
        logp = partial(completion_logp, model.config, temperature=0.8, dtype=jnp.float32)
        whole = partial(learner.gradient, logp, replace(ALGORITHM, remat=remat))
        arguments = (params, {}, micro, np.bool_(True), BatchTotals.of([BATCH.mask()]))
        program = jax.jit(whole).lower(*arguments).compile()
        analysis: Any = program.memory_analysis()
        held[remat] = analysis.temp_size_in_bytes
        gradients[remat] = program(*arguments)[0]
    assert held["full"] < held["dots"] < held["none"]
    close(gradients["dots"], gradients["full"], atol=2e-6)
    close(gradients["none"], gradients["full"], atol=2e-6)


def test_gradients_are_float32_under_bfloat16():
    logp = partial(packed_logp, dtype=jnp.bfloat16)
    (_, micro), shapes = pack(BATCH, 100)[0], models.shapes(MODEL)
    gradient = partial(learner.gradient, logp, ALGORITHM)
    found, *_ = jax.eval_shape(
        gradient, shapes, {}, micro, np.bool_(True), BatchTotals.of([BATCH.mask()])
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
        lambda x: (x.shape, np.dtype(np.float32)), shapes
    )


def programs_of(stage: Any, **parts: Any) -> Programs:
    """The stage's programs on one device, some parts of them replaced."""
    programs = object.__new__(Programs)
    stage.mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    programs.__dict__ |= {"stage": stage, "parts": 1, **parts}
    return programs


def test_updates_of_a_rollout():
    """Only the first is on_policy; one without a trained sample is left out; counts are sums."""
    calls = []

    def update(state, frozen, micros, trained, on_policy):
        calls.append((next(micros).advantages[0].tolist(), on_policy))
        numbers = {"loss": float(len(calls)), "skipped_updates": 1.0, "trained_tokens": 10.0}
        return state + 1, numbers

    trained = np.array([1, 0, 0, 0, 1, 1, 0, 1], bool)
    stage = cast(Any, SimpleNamespace(sizes=BatchSizes(4, 1, 100, 1), frozen={}))
    programs = programs_of(stage, learner=SimpleNamespace(update=update))
    batch = replace(BATCH, trained=trained)
    batches = [batch.take(np.array([i])) for i in range(4)]
    state, numbers = apply_updates(programs, cast(Any, 0), batches)
    assert calls == [
        (pytest.approx([1.0, -1.0]), True),
        (pytest.approx([-0.5, 2.0]), False),
        (pytest.approx([0.7, -0.7]), False),
    ]
    assert state == 3
    # prefix 5, prompts of 6, 4 and 3, completions without their last tokens: 16 of 16, 13, 11
    assert numbers == {
        "loss": 2.0, "skipped_updates": 3.0, "trained_tokens": 30.0, "updates": 3, "padding": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
@pytest.mark.parametrize("prompts", [2, 4])
def test_log_probabilities_are_computed_where_they_are_needed(prompts, kl_coef):
    """Those of the policy where updates of this rollout come before."""

    def logp(weight, flat):
        return jnp.asarray(flat.targets[0][flat.rows] * weight)

    policy, reference = (cast(Any, SimpleNamespace(params=w)) for w in (2.0, 3.0))
    stage = cast(Any, SimpleNamespace(
        sizes=BatchSizes(4, prompts, 24, 1), reference=lambda: reference,
        algorithm=replace(ALGORITHM, loss=replace(LOSS, kl_coef=kl_coef)),
    ))  # fmt: skip
    empty = replace(BATCH, old_logp=np.zeros((8, 6)), ref_logp=np.zeros((8, 6)))
    found = with_logp(programs_of(stage, packed_logp=logp), empty, policy)
    assert [len(part.prompts) for part in found] == [prompts] * (4 // prompts)
    inside = np.split(BATCH.mask(), 4 // prompts)
    tokens = np.split(np.where(BATCH.mask(), BATCH.completions, 0), 4 // prompts)
    for i, (part, wanted, trained) in enumerate(zip(found, tokens, inside, strict=True)):
        np.testing.assert_array_equal(part.old_logp[trained], (wanted * 2.0 * (i > 0))[trained])
        ref = wanted * (3.0 if kl_coef else 0)
        np.testing.assert_array_equal(part.ref_logp[trained], ref[trained])
