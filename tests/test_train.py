"""The update: gradients by any route and in any micro-batch size, AdamW, clipping, skipping."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from seif_jax import models, sharding
from seif_jax.models.tree_forward import REMAT_POLICIES, completion_logp
from seif_jax.rl.batch import Batch
from seif_jax.rl.grpo import BatchTotals, LossConfig
from seif_jax.rl.learner import Learner, LearnerConfig, Update, step_metrics
from seif_jax.rl.optim import OptimizerConfig, TrainState
from seif_jax.rl.packing import RowLimits, pack
from seif_jax.rl.train_step import optimizer_batches
from seif_jax.sampling import Engine

MODEL = models.describe(tiny.tiny_config(96))
C = MODEL.config
PARAMS = models.init(MODEL, 1)
LOSS = LossConfig(kl_coef=0.1)
CONFIG = LearnerConfig(
    LOSS,
    OptimizerConfig(clip_norm=1e9),
    jnp.float32,
    remat="full",
    micro_tokens=100,
    max_response_tokens=6,
)
MESH = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
# 4 prompts of 2 samples; lengths differ so that a mean of micro-batch means would show.
LENGTHS = np.array([6, 2, 1, 5, 3, 3, 6, 4], np.int32)
TRAINED = np.array([1, 1, 0, 1, 1, 1, 1, 1], bool)
TOKENS = int(LENGTHS[TRAINED].sum())
ADVANTAGES = np.array([1.0, -1.0, 9.0, 0.5, -0.5, 2.0, 0.7, -0.7], np.float32)


def packed_logp(params, packed):
    part = tiny.one_part(packed)
    return completion_logp(C, params, part, temperature=0.8, dtype=jnp.float32)[0]


def make_learner(cls=Learner, model=MODEL, **changes: Any) -> Learner:
    """A learner on one device. changes: of CONFIG."""
    shapes = models.shapes(model, rule=sharding.sharding_rule(MESH))
    config = replace(CONFIG, **changes)
    return cls(model.config, MESH, shapes, config, temperature=0.8, updates=1)


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


shared_learner = cache(lambda tokens, loss: make_learner(micro_tokens=tokens, loss=loss))


def step(batch, on_policy=False, micro_tokens=100, loss=LOSS):
    """One update: (gradient, new params, metrics)."""
    learner = shared_learner(micro_tokens, loss)
    gradient, _ = tiny.gradient(learner, PARAMS, batch, on_policy)
    start = jax.tree.map(jnp.array, PARAMS)  # the update reuses the buffers that it is given
    state, update = learner.update(learner.start(start), batch, on_policy)
    return jax.tree.map(np.asarray, gradient), state.params, update.metrics


def close(actual, expected, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), actual, expected)


@pytest.mark.parametrize("micro_tokens, count", [(41, 1), (24, 2)])
def test_the_tree_is_each_sequence_by_itself(micro_tokens, count):
    learner = shared_learner(micro_tokens, LOSS)
    assert len([*learner.passes(BATCH)]) == count
    inside = BATCH.mask()
    np.testing.assert_allclose(learner.logp(PARAMS, BATCH)[inside], LOGP[inside], atol=1e-5)


def test_all_completions_may_be_shorter_than_allowed():
    """The batch has columns for its longest completion, 6 tokens, where 9 are allowed."""
    learner, inside = make_learner(max_response_tokens=9), BATCH.mask()
    logp = learner.logp(PARAMS, BATCH)
    assert logp.shape == BATCH.completions.shape
    np.testing.assert_allclose(logp[inside], LOGP[inside], atol=1e-5)
    found, _ = tiny.gradient(learner, PARAMS, BATCH, False)
    expected, _ = tiny.gradient(shared_learner(100, LOSS), PARAMS, BATCH, False)
    close(found, expected, atol=1e-6)


def test_the_policy_starts_at_its_reference():
    reference = shared_learner(100, LOSS).logp(PARAMS, BATCH)
    _, _, metrics = step(replace(BATCH, ref_logp=reference), on_policy=True)
    assert metrics["kl"] < 1e-9


@pytest.mark.parametrize(
    "loss", [LOSS, replace(LOSS, policy_loss="gspo", loss_aggregation="sequence")]
)
def test_micro_batches_do_not_matter(loss):
    one, _, metrics = step(BATCH, loss=loss)
    several, _, others = step(BATCH, micro_tokens=24, loss=loss)
    close(several, one, atol=1e-5)
    assert metrics.keys() == others.keys()
    for name, value in metrics.items():
        assert others[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_padding_cannot_be_seen():
    """Rubbish in it does not get into a pass; room for a prompt that is not there changes none."""
    inside = np.arange(6) < LENGTHS[:, None]
    prompts = np.where(np.arange(6) < BATCH.prompt_lengths[:, None], BATCH.prompts, 77)
    junk = replace(BATCH, prompts=prompts, completions=np.where(inside, BATCH.completions, 33))
    clean, other = (next(pack(batch, RowLimits(100, 6))).micro for batch in (BATCH, junk))
    close(jax.tree.leaves(other), jax.tree.leaves(clean), atol=0)
    (part,) = pack(BATCH.take(np.array([3, 0, 1])), RowLimits(100, 6))
    assert part.micro.mask.shape[0] == 8
    logp = jax.jit(packed_logp)(PARAMS, part.micro.packed)
    expected, mask = LOGP[[6, 7, 0, 1, 2, 3]], BATCH.mask()[[6, 7, 0, 1, 2, 3]]
    np.testing.assert_allclose(logp[:6][mask], expected[mask], atol=1e-5)


def test_gradient_is_that_of_the_plain_formula():
    """-mean(A·logp) + 0.1·mean(exp(d) - d - 1) over 29 tokens, by the plain forward."""
    mask = BATCH.mask()
    assert TOKENS == int(mask.sum()) == 29

    def objective(params):
        logp = plain_logp(params)
        d = BATCH.ref_logp - logp
        terms = -ADVANTAGES[:, None] * logp + 0.1 * (jnp.exp(d) - d - 1)
        return jnp.sum(jnp.where(mask, terms, 0.0)) / 29

    expected = jax.jit(jax.grad(objective))(PARAMS)
    gradient, _, metrics = step(BATCH, on_policy=True)
    close(gradient, expected, atol=2e-6)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(expected)), rel=1e-5)


def test_numbers_of_an_update():
    mask = BATCH.mask()
    metrics = step(BATCH)[2]
    gap = np.abs(BATCH.old_logp - BATCH.sampler_logp)[mask]
    assert metrics["sampler_gap"] == pytest.approx(gap.mean(), rel=1e-5)
    assert metrics["sampler_gap_max"] == pytest.approx(gap.max(), rel=1e-5)
    assert metrics["approx_kl"] == pytest.approx((BATCH.old_logp - LOGP)[mask].mean(), abs=1e-5)
    assert metrics["trained_tokens"] == 29 and metrics["skipped_updates"] == 0


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
    _, params, metrics = step(broken)
    assert metrics["skipped_updates"] == 1 and not np.isfinite(metrics["grad_norm"])
    close(params, PARAMS, rtol=0, atol=0)


def test_an_infinity_that_is_not_trained_on_does_no_harm():
    left_out = replace(BATCH, advantages=np.where(TRAINED, ADVANTAGES, np.nan))
    _, params, metrics = step(left_out)
    assert metrics["skipped_updates"] == 0
    close(params, step(BATCH)[1], atol=0)


def test_what_is_computed_again_does_not_matter_but_takes_no_memory():
    """The same gradient; what is held between the passes: full < dots < none. Four layers."""
    model = models.describe({**tiny.tiny_config(96), "num_hidden_layers": 4})
    bare = replace(BATCH, prefix=BATCH.prefix[:0])  # less to compile
    params, temporaries, gradients = models.init(model, 1), {}, {}
    for remat in REMAT_POLICIES:
        learner = make_learner(model=model, remat=remat)
        (micros,) = map(learner.place, learner.passes(bare))
        arguments = (params, {}, micros, np.bool_(True), BatchTotals.of([BATCH.mask()], 6))
        with jax.set_mesh(MESH):
            program = learner.gradient.lower(*arguments).compile()
            gradients[remat] = program(*arguments)[0]
        memory = program.memory_analysis()
        assert memory
        temporaries[remat] = memory.temp_size_in_bytes
    assert temporaries["full"] < temporaries["dots"] < temporaries["none"]
    close(gradients["dots"], gradients["full"], atol=2e-6)
    close(gradients["none"], gradients["full"], atol=2e-6)


def test_gradients_are_float32_under_bfloat16():
    learner = make_learner(dtype=jnp.bfloat16)
    (micros,) = map(learner.place, learner.passes(BATCH))
    totals = BatchTotals.of([BATCH.mask()], 6)
    grads, *_ = jax.eval_shape(learner.gradient, learner.shapes, {}, micros, np.bool_(True), totals)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), grads) == jax.tree.map(
        lambda x: (x.shape, np.dtype(np.float32)), learner.shapes
    )


def test_metrics_of_a_step():
    """Means over the updates, sums of counts, and shares of the work of all updates together."""
    learner = make_learner()
    batch = replace(BATCH, trained=np.array([1, 0, 0, 0, 1, 1, 0, 1], bool))
    passes = [[*learner.passes(batch.take(np.array([i])))] for i in range(4)]
    assert passes[1] == []  # nothing is trained on: no update
    updates = [
        Update(
            {"loss": float(i), "skipped_updates": 1.0, "trained_tokens": 10.0},
            passes[i][0][0].work,
        )
        for i in (0, 2, 3)
    ]
    # prefix 5, prompts of 6, 4 and 3, completions without their last tokens: 16, 13, 11
    needed = [16 * 17 / 2, 9 * 10 / 2 + 2 * (10 + 11), 11 * 12 / 2]
    waste = pytest.approx(3 * 32**2 / sum(needed))  # each is in one tile
    assert step_metrics(updates) == {
        "loss": pytest.approx(5 / 3), "skipped_updates": 3.0, "trained_tokens": 30.0, "updates": 3,
        "padding": pytest.approx(1 - (16 + 13 + 11) / (3 * 32)), "attention_waste": waste,
    }  # fmt: skip
    counts = {"skipped_updates": 0, "trained_tokens": 0, "updates": 0}
    assert step_metrics([]) == {**counts, "padding": 1.0, "attention_waste": 0.0}


class Scaled(Learner):
    """Has log-probabilities that are the tokens, scaled by the only weight."""

    def compile(self, state, batches):
        reference = [3.0] if self.config.loss.kl_coef else []
        for i, (_, weights) in enumerate(batches):
            assert [float(x["scale"]) for x in weights] == ([2.0] if i else []) + reference

    def logp(self, weights, batch):
        return batch.completions * np.asarray(weights["scale"])


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
@pytest.mark.parametrize("prompts", [2, 4])
def test_log_probabilities_are_computed_where_they_are_needed(prompts, kl_coef):
    """Those of the policy where updates of this rollout come before."""
    learner = make_learner(Scaled, loss=replace(LOSS, kl_coef=kl_coef))
    policy, reference = ({"scale": jnp.float32(x)} for x in (2.0, 3.0))
    bare = replace(BATCH, old_logp=np.zeros((8, 6)), ref_logp=np.zeros((8, 6)))
    batches = optimizer_batches(
        learner,
        TrainState({}, {}),
        bare,
        prompts,
        policy,
        lambda: Engine(C, reference, jnp.float32),
    )
    assert [len(part.prompts) for part in batches] == [prompts] * (4 // prompts)
    tokens = np.split(BATCH.completions, 4 // prompts)
    for i, (part, completions) in enumerate(zip(batches, tokens, strict=True)):
        np.testing.assert_array_equal(part.old_logp, completions * 2.0 * (i > 0))
        np.testing.assert_array_equal(part.ref_logp, completions * (3.0 if kl_coef else 0))
