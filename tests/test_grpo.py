"""GRPO against the values of the release's own functions, and by hand."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seif_jax.errors import UserError
from seif_jax.rl import grpo
from seif_jax.rl.grpo import BatchTotals, LossConfig

GOLDEN = sorted((Path(__file__).parent / "golden").glob("grpo_*.npz"))
CONFIG = LossConfig(
    policy_loss="grpo", loss_aggregation="token", clip_low=0.2, clip_high=0.3, clip_dual=3.0,
    kl="k3", kl_coef=0.0, max_response_tokens=16,
)  # fmt: skip


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_release_values(path):
    z = {name: jnp.array(values) for name, values in np.load(path).items()}
    mask = z["mask"] > 0
    first = np.arange(len(mask)), np.argmax(mask, axis=1)
    config, totals = replace(CONFIG, kl_coef=0.01), BatchTotals.of([mask])
    groups = [np.flatnonzero(z["group"] == g) for g in np.unique(z["group"])]
    for kind in ("grpo", "rloo"):
        for rows in groups:
            ours = grpo.advantages(z["rewards"][rows][None], jnp.ones((1, len(rows)), bool), kind)
            np.testing.assert_allclose(ours[0], z[f"adv_{kind}"][first][rows], atol=1e-5)

    def value(logp):
        old, ref, advantages = z["old_log_probs"], z["ref_log_probs"], z["adv_grpo"][first]
        return grpo.loss(logp, old, ref, advantages, mask, totals, config)

    (total, metrics), gradient = jax.value_and_grad(value, has_aux=True)(z["log_probs"])
    np.testing.assert_allclose(total, z["loss_with_kl"], atol=1e-5)
    np.testing.assert_allclose(gradient, z["grad_log_probs"], atol=1e-5)
    for name in ("pg_loss", "clipfrac_higher", "clipfrac_lower", "approx_kl"):
        np.testing.assert_allclose(metrics[name], z[name], atol=1e-5, err_msg=name)
    names = {"k1": "kl", "abs": "abs", "k2": "mse", "k3": "low_var_kl"}
    for ours, theirs in names.items():
        kl = grpo.kl_penalty(z["log_probs"], z["ref_log_probs"], ours)
        np.testing.assert_allclose(kl[mask].mean(), z[f"kl_{theirs}"], atol=1e-5, err_msg=ours)


def test_advantages_by_hand():
    rewards, scored = jnp.array([[1.0, 0.0, 0.5, 0.5]]), jnp.ones((1, 4), bool)
    deviation = np.sqrt((0.25 + 0.25) / 3)
    want = np.array([[0.5, -0.5, 0, 0]]) / (deviation + 1e-6)
    np.testing.assert_allclose(grpo.advantages(rewards, scored, "grpo"), want, rtol=1e-6)
    np.testing.assert_allclose(
        grpo.advantages(rewards, scored, "rloo"), [[1 - 1 / 3, -2 / 3, 0, 0]], atol=1e-6
    )
    np.testing.assert_allclose(grpo.advantages(rewards, scored, "dr_grpo"), [[0.5, -0.5, 0, 0]])
    with pytest.raises(UserError) as error:
        grpo.advantages(rewards, scored, "ppo")
    assert str(error.value) == (
        "config.grpo.advantage must be one of: grpo, rloo, dr_grpo, zero (got 'ppo')"
    )


def test_unscored_sample_leaves_the_group():
    """What a sample without a verdict carries must not move the others."""
    scored = jnp.array([[True, True, True, False]])
    for kind in ("grpo", "rloo", "dr_grpo"):
        three = grpo.advantages(jnp.array([[1.0, 0.0, 0.5]]), jnp.ones((1, 3), bool), kind)
        for junk in (0.0, 1.0, 99.0):
            four = grpo.advantages(jnp.array([[1.0, 0.0, 0.5, junk]]), scored, kind)
            np.testing.assert_allclose(four, [[*three[0], 0.0]], atol=1e-6)


def test_a_group_with_one_score_has_no_advantage():
    scored = jnp.array([[True, False, False], [False, False, False]])
    for kind in ("grpo", "rloo", "dr_grpo"):
        assert not np.any(grpo.advantages(jnp.ones((2, 3)), scored, kind))


def test_equal_rewards_give_zero():
    equal = jnp.full((2, 5), 0.6)  # the mean of five 0.6 is not 0.6 in float32
    for kind in ("grpo", "rloo", "dr_grpo"):
        assert not np.any(grpo.advantages(equal, jnp.ones((2, 5), bool), kind))


def random_batch(seed, shape=(6, 9)):
    rng = np.random.default_rng(seed)
    logp, old, ref = (jnp.array(-rng.exponential(1.0, shape), jnp.float32) for _ in range(3))
    advantage = jnp.array(rng.normal(size=shape[0]), jnp.float32)
    mask = jnp.arange(shape[1]) < jnp.array(rng.integers(1, shape[1] + 1, shape[0]))[:, None]
    return logp, old, ref, advantage, mask


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_micro_batches_add_up(parts):
    logp, old, ref, advantage, mask = random_batch(3)
    totals, config = BatchTotals.of([mask]), replace(CONFIG, kl_coef=0.05)

    def value(logp, rows):
        return grpo.loss(
            logp[rows],
            old[rows],
            ref[rows],
            advantage[rows],
            mask[rows],
            totals,
            config,
        )[0]

    whole, gradient = jax.value_and_grad(value)(logp, slice(None))
    cut = [slice(i, i + 6 // parts) for i in range(0, 6, 6 // parts)]
    pieces = [jax.value_and_grad(value)(logp, rows) for rows in cut]
    np.testing.assert_allclose(sum(p[0] for p in pieces), whole, rtol=1e-5)
    np.testing.assert_allclose(sum(p[1] for p in pieces), gradient, atol=1e-7)


def test_extreme_values_stay_finite():
    """A reference far from the policy, and rubbish in the padding, in value and gradient."""
    logp = jnp.array([[-1.0, -200.0, jnp.nan], [-0.1, -jnp.inf, -3.0]])
    ref = jnp.array([[-900.0, -0.001, jnp.inf], [-0.1, jnp.nan, -500.0]])
    mask = jnp.array([[True, True, False], [True, False, True]])

    def value(logp):
        config, totals = replace(CONFIG, kl_coef=0.1), BatchTotals.of([mask])
        return grpo.loss(logp, logp * 0.9, ref, jnp.array([1.0, -1.0]), mask, totals, config)[0]

    total, gradient = jax.value_and_grad(value)(logp)
    assert np.isfinite(total) and np.all(np.isfinite(gradient))
    assert not np.any(gradient[~np.array(mask)])


def test_float64_reference():
    """The loss against the formulas written out in numpy float64, a token at a time."""
    logp, old, ref, advantage, mask = (np.array(x, np.float64) for x in random_batch(11))
    want = []
    for b, t in np.argwhere(mask > 0):
        a, ratio = advantage[b], np.exp(logp[b, t] - old[b, t])
        term = max(-a * ratio, -a * np.clip(ratio, 0.8, 1.3))
        term = min(term, -a * 3.0) if a < 0 else term
        d = ref[b, t] - logp[b, t]
        want.append(term + 0.02 * min(np.exp(d) - d - 1, 10.0))
    logp, old, ref, advantage = (jnp.array(x, jnp.float32) for x in (logp, old, ref, advantage))
    trained, config = jnp.array(mask > 0), replace(CONFIG, kl_coef=0.02)
    ours, _ = grpo.loss(logp, old, ref, advantage, trained, BatchTotals.of([trained]), config)
    np.testing.assert_allclose(ours, np.mean(want), rtol=1e-5)
