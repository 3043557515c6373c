"""Advantages and losses against the release's own functions and against float64, by hand."""

import collections
import functools
import itertools
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seif_jax.errors import UserError
from seif_jax.rl import grpo
from seif_jax.rl.advantages import group_advantages
from seif_jax.rl.grpo import BatchTotals, LossConfig

GOLDEN = sorted((Path(__file__).parent / "golden").glob("grpo_*.npz"))
CONFIG = LossConfig(kl_coef=0.0)
LONGEST = 16  # what max_response_tokens is


advantages = jax.jit(group_advantages, static_argnums=2)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_release_values(path):
    z = dict(np.load(path))
    mask = z["mask"] > 0
    first = np.arange(len(mask)), np.argmax(mask, axis=1)
    config, totals = replace(CONFIG, kl_coef=0.01), BatchTotals.of([mask], LONGEST)
    rewards = z["rewards"].reshape(-1, 5)
    assert (z["group"].reshape(-1, 5) == np.arange(len(rewards))[:, None]).all()
    for kind in ("grpo", "rloo"):
        ours = advantages(rewards, np.ones(rewards.shape, bool), kind)
        np.testing.assert_allclose(ours.ravel(), z[f"adv_{kind}"][first], atol=1e-5)

    old, ref, advantage = z["old_log_probs"], z["ref_log_probs"], z["adv_grpo"][first]

    @jax.jit
    def grads(logp, old, ref, advantage, mask):
        def value(logp):
            return grpo.loss(logp, old, ref, advantage, mask, totals, config)

        return jax.value_and_grad(value, has_aux=True)(logp)

    (total, metrics), gradient = grads(z["log_probs"], old, ref, advantage, mask)
    np.testing.assert_allclose(total, z["loss_with_kl"], atol=1e-5)
    np.testing.assert_allclose(gradient, z["grad_log_probs"], atol=1e-5)
    for name in ("pg_loss", "clipfrac_higher", "clipfrac_lower", "approx_kl"):
        np.testing.assert_allclose(metrics[name], z[name], atol=1e-5, err_msg=name)
    names = {"k1": "kl", "abs": "abs", "k2": "mse", "k3": "low_var_kl"}
    for ours, theirs in names.items():
        kl = np.asarray(grpo.kl_penalty(z["log_probs"], z["ref_log_probs"], ours))
        np.testing.assert_allclose(kl[mask].mean(), z[f"kl_{theirs}"], atol=1e-5, err_msg=ours)


def test_advantages_by_hand():
    rewards, scored = jnp.array([[1.0, 0.0, 0.5, 0.5]]), jnp.ones((1, 4), bool)
    deviation = np.sqrt((0.25 + 0.25) / 3)
    want = np.array([[0.5, -0.5, 0, 0]]) / (deviation + 1e-6)
    np.testing.assert_allclose(advantages(rewards, scored, "grpo"), want, rtol=1e-6)
    np.testing.assert_allclose(
        advantages(rewards, scored, "rloo"), [[1 - 1 / 3, -2 / 3, 0, 0]], atol=1e-6
    )
    np.testing.assert_allclose(advantages(rewards, scored, "dr_grpo"), [[0.5, -0.5, 0, 0]])
    with pytest.raises(UserError) as error:
        advantages(rewards, scored, "ppo")
    assert str(error.value) == (
        "config.grpo.advantage must be one of: grpo, rloo, dr_grpo, zero (got 'ppo')"
    )


def test_unscored_sample_leaves_the_group():
    """What a sample without a verdict carries must not move the others."""
    scored = jnp.array([[True, True, True, False]])
    for kind in ("grpo", "rloo", "dr_grpo"):
        three = advantages(jnp.array([[1.0, 0.0, 0.5]]), jnp.ones((1, 3), bool), kind)
        for junk in (0.0, 1.0, 99.0):
            four = advantages(jnp.array([[1.0, 0.0, 0.5, junk]]), scored, kind)
            np.testing.assert_allclose(four, [[*three[0], 0.0]], atol=1e-6)


def test_a_group_with_one_score_has_no_advantage():
    scored = jnp.array([[True, False, False], [False, False, False]])
    for kind in ("grpo", "rloo", "dr_grpo"):
        assert not np.any(advantages(jnp.ones((2, 3)), scored, kind))


def test_equal_rewards_give_zero():
    equal = jnp.full((2, 5), 0.6)  # the mean of five 0.6 is not 0.6 in float32
    for kind in ("grpo", "rloo", "dr_grpo"):
        assert not np.any(advantages(equal, jnp.ones((2, 5), bool), kind))


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Sequences(NamedTuple):
    """Arguments of `grpo.loss`; numpy, float64."""

    logp: np.ndarray
    old_logp: np.ndarray
    ref_logp: np.ndarray
    advantages: np.ndarray
    mask: np.ndarray

    def arrays(self, rows: slice | np.ndarray = slice(None)) -> Arrays:
        logp, old, ref, advantages = (x[rows].astype(np.float32) for x in self[:-1])
        return logp, old, ref, advantages, self.mask[rows]


def random_sequences(seed: int, lengths: tuple[int, ...] = (9, 1, 0, 4, 7, 2)) -> Sequences:
    """Ratios on both sides of the clip, advantages of both signs; NaN wherever nothing is trained
    on."""
    rng, shape = np.random.default_rng(seed), (len(lengths), max(lengths))
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    logp = -rng.exponential(1.0, shape)
    old_logp, ref_logp = logp + rng.normal(0, 0.4, shape), logp + rng.normal(0, 0.5, shape)
    old_logp[0, 0] = logp[0, 0] - 1.5  # a ratio of 4.5: over the dual clip of 3
    advantages = np.array([-1.3, 0.8, 1.0, 1.1, -0.6, -0.2])
    logp, old_logp, ref_logp = (np.where(mask, x, np.nan) for x in (logp, old_logp, ref_logp))
    advantages = np.where(mask.any(1), advantages, np.nan)
    return Sequences(logp, old_logp, ref_logp, advantages, mask)


def reference_terms(s: Sequences, b: int, config: LossConfig, weights_at: np.ndarray):
    """(loss, clipped above or by the clip, clipped below or by the dual clip) of each token of a
    sequence, as the papers write them. weights_at: the logp that CISPO's constant weights are
    computed from."""
    tokens, a = np.flatnonzero(s.mask[b]), s.advantages[b]
    low, high = 1 - config.clip_low, 1 + config.clip_high
    if config.policy_loss == "cispo":
        ratios = np.exp(weights_at[b, tokens] - s.old_logp[b, tokens])
        weights = np.clip(ratios, low, high)
        return -weights * a * s.logp[b, tokens], ratios > high, ratios < low
    log_ratios = s.logp[b, tokens] - s.old_logp[b, tokens]
    if config.policy_loss == "gspo":
        log_ratios = np.full(len(tokens), log_ratios.sum() / len(tokens))
    terms = []
    for ratio in np.exp(log_ratios):
        objective = min(ratio * a, np.clip(ratio, low, high) * a)
        bounded = max(objective, config.clip_dual * a) if a < 0 else objective
        terms.append((-bounded, objective < ratio * a, bounded > objective))
    return np.array(terms, float).reshape(-1, 3).T


def reference_loss(s: Sequences, config: LossConfig, weights_at: np.ndarray) -> dict[str, float]:
    """Loss and metrics of an optimizer batch in float64, one sequence at a time."""
    trained = [b for b in range(len(s.mask)) if s.mask[b].any()]
    out: dict[str, float] = collections.defaultdict(float)
    for b in trained:
        tokens = np.flatnonzero(s.mask[b])
        weight = {
            "token": 1 / s.mask.sum(),
            "sequence": 1 / len(trained) / len(tokens),
            "constant": 1 / len(trained) / LONGEST,
        }[config.loss_aggregation]
        loss, high, low = reference_terms(s, b, config, weights_at)
        d = s.ref_logp[b, tokens] - s.logp[b, tokens]
        kl = {"k3": np.exp(d) - d - 1, "k2": d**2 / 2}[config.kl]
        out["pg_loss"] += weight * loss.sum()
        out["loss"] += weight * (loss + config.kl_coef * kl).sum()
        for name, x in (("kl", kl), ("clipfrac_higher", high), ("clipfrac_lower", low)):
            out[name] += x.sum() / s.mask.sum()
    return out


def reference_gradient(s: Sequences, config: LossConfig) -> np.ndarray:
    """d loss / d logp by central differences."""
    gradient = np.zeros_like(s.logp)
    for b, t in np.argwhere(s.mask):
        step = np.zeros_like(s.logp)
        step[b, t] = 1e-6
        ends = [s._replace(logp=s.logp + sign * step) for sign in (1, -1)]
        up, down = (reference_loss(end, config, s.logp)["loss"] for end in ends)
        gradient[b, t] = (up - down) / 2e-6
    return gradient


VARIANTS = tuple(itertools.product(grpo.POLICY_LOSSES, grpo.AGGREGATIONS))
variants = pytest.mark.parametrize("policy_loss, aggregation", VARIANTS)


def variant(policy_loss: str, aggregation: str, kl: str = "k3") -> LossConfig:
    """GSPO's ratios are means, and so nearer to 1: it gets closer bounds."""
    clip = {"clip_low": 0.05, "clip_high": 0.1} if policy_loss == "gspo" else {}
    config = replace(CONFIG, policy_loss=policy_loss, loss_aggregation=aggregation, **clip)
    return replace(config, kl=kl, kl_coef=0.07)


@functools.partial(jax.jit, static_argnames="kl")
def grads_of_variants(arrays, totals, kl="k3"):
    """For each of VARIANTS: ((loss, metrics), d loss / d logp); one program, to compile once."""
    logp, old, ref, advantages, mask = arrays

    def grads(config):
        def value(logp):
            return grpo.loss(logp, old, ref, advantages, mask, totals, config)

        return jax.value_and_grad(value, has_aux=True)(logp)

    return {names: grads(variant(*names, kl)) for names in VARIANTS}


@functools.cache
def grads_of(seed: int, kl: str):
    s = random_sequences(seed)
    return s, jax.device_get(grads_of_variants(s.arrays(), BatchTotals.of([s.mask], LONGEST), kl))


@variants
@pytest.mark.parametrize("seed, kl", [(11, "k3"), (12, "k2")])
def test_loss_and_gradient_in_float64(policy_loss, aggregation, seed, kl):
    s, grads = grads_of(seed, kl)
    (loss, metrics), gradient = grads[policy_loss, aggregation]
    config = variant(policy_loss, aggregation, kl)
    want = reference_loss(s, config, s.logp)
    np.testing.assert_allclose(loss, want["loss"], rtol=1e-5)
    for name, number in want.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-5, err_msg=name)
    assert 0 < want["clipfrac_higher"] < 1
    approx_kl = (s.old_logp - s.logp)[s.mask].mean()
    np.testing.assert_allclose(metrics["approx_kl"], approx_kl, rtol=1e-5)
    np.testing.assert_allclose(gradient, reference_gradient(s, config), rtol=1e-3, atol=1e-6)


def test_totals():
    """Of all micro-batches, sequences without a trained token left out."""
    s = random_sequences(11)
    for parts in (1, 2, 3):
        totals = BatchTotals.of(np.split(s.mask, parts), LONGEST)
        assert (totals.tokens, totals.sequences) == (9 + 1 + 0 + 4 + 7 + 2, 5)
        assert totals.max_tokens == 5 * LONGEST


def test_aggregations_by_hand():
    """Sequences of 3, 1 and no tokens, where at most 5 are sampled."""
    mask = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
    x = jnp.array([[1.0, 2.0, 6.0], [4.0, jnp.nan, 9.0], [7.0, 7.0, jnp.inf]])
    totals = BatchTotals.of([mask], 5)
    values = {name: float(f(x, mask, totals)) for name, f in grpo.AGGREGATIONS.items()}
    assert values == pytest.approx({"token": 13 / 4, "sequence": (3 + 4) / 2, "constant": 13 / 10})


def test_sequence_ratio_by_hand():
    """Ratios of e^0.3 and e^-0.1: their geometric mean is e^0.1, over the bound of 1.05; the
    second sequence, with e^0.04, is within it."""
    old = jnp.full((2, 2), -2.0)
    logp = old + jnp.array([[0.3, -0.1], [0.02, 0.06]])
    mask = jnp.ones((2, 2), bool)
    config = replace(CONFIG, policy_loss="gspo", loss_aggregation="sequence", clip_high=0.05)
    advantages, totals = jnp.array([1.0, 3.0]), BatchTotals.of([mask], LONGEST)

    def value(logp):
        return grpo.loss(logp, old, None, advantages, mask, totals, config)[0]

    loss, gradient = jax.value_and_grad(value)(logp)
    np.testing.assert_allclose(loss, -(1.05 + 3 * np.exp(0.04)) / 2, rtol=1e-6)
    want = -3 * np.exp(0.04) / 2 / 2
    np.testing.assert_allclose(gradient, [[0, 0], [want, want]], rtol=1e-6)


def test_clipped_tokens_keep_their_gradient_in_cispo():
    """Ratios of e^0.5, e^-0.5 and 1, clipped to 1.3, 0.8 and 1: the weights of -A·logp."""
    old = jnp.full((1, 3), -2.0)
    logp, mask = old + jnp.array([[0.5, -0.5, 0.0]]), jnp.ones((1, 3), bool)
    config, totals = replace(CONFIG, policy_loss="cispo"), BatchTotals.of([mask], LONGEST)

    def value(logp):
        return grpo.loss(logp, old, None, jnp.array([-2.0]), mask, totals, config)

    (loss, metrics), gradient = jax.value_and_grad(value, has_aux=True)(logp)
    np.testing.assert_allclose(gradient, [[2.6 / 3, 1.6 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(loss, 2 * (1.3 * -1.5 + 0.8 * -2.5 - 2.0) / 3, rtol=1e-6)
    assert metrics["clipfrac_higher"] == metrics["clipfrac_lower"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("parts", [2, 6])
def test_micro_batches_add_up(parts):
    """Loss, metrics and gradient, split between calls or along a leading axis, as on a mesh."""
    s, unsplit = grads_of(11, "k3")
    totals = BatchTotals.of([s.mask], LONGEST)
    alone = [grads_of_variants(s.arrays(rows), totals) for rows in np.split(np.arange(6), parts)]
    together = grads_of_variants(
        jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), s.arrays()), totals
    )
    for names, ((_, metrics), gradient) in unsplit.items():
        for name, number in metrics.items():
            added = sum(part[names][0][1][name] for part in alone)
            np.testing.assert_allclose(added, number, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(together[names][0][1][name], number, rtol=1e-5, atol=1e-7)
        joined = np.concatenate([part[names][1] for part in alone])
        np.testing.assert_allclose(joined, gradient, atol=1e-7)
        np.testing.assert_allclose(together[names][1].reshape(6, -1), gradient, atol=1e-7)


def test_extreme_values_stay_finite():
    """A reference far from the policy, and rubbish in the padding, in value and gradient."""
    logp = np.array([[-1.0, -200.0, np.nan], [-0.1, -np.inf, -3.0]], np.float32)
    ref = np.array([[-900.0, -0.001, np.inf], [-0.1, np.nan, -500.0]], np.float32)
    mask = np.array([[True, True, False], [True, False, True]])
    arrays = (logp, logp * 0.9, ref, np.array([1.0, -1.0], np.float32), mask)
    for names, grads in grads_of_variants(arrays, BatchTotals.of([mask], LONGEST)).items():
        (total, _), gradient = grads
        assert np.isfinite(total) and np.all(np.isfinite(gradient)), names
        assert not np.any(gradient[~mask]), names


@pytest.mark.parametrize(
    "field, message",
    [
        ("policy_loss", "config.grpo.policy_loss must be one of: grpo, gspo, cispo (got 'ppo')"),
        (
            "loss_aggregation",
            "config.grpo.loss_aggregation must be one of: token, sequence, constant (got 'ppo')",
        ),
        ("kl", "config.grpo.kl must be one of: k1, abs, k2, k3 (got 'ppo')"),
    ],
)
def test_an_unknown_variant_is_refused(field, message):
    s, config = random_sequences(1), replace(CONFIG, **{field: "ppo"})
    with pytest.raises(UserError) as error:
        grpo.loss(
            *map(jnp.array, s.arrays()), totals=BatchTotals.of([s.mask], LONGEST), config=config
        )
    assert str(error.value) == message
