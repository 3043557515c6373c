"""AdamW, clipping, skipping and schedules against values computed by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seif_jax.errors import UserError
from seif_jax.rl import optim
from seif_jax.rl.optim import OptimizerConfig, TrainState

CONFIG = OptimizerConfig(learning_rate=0.1, b2=0.99, weight_decay=0.5)
OPTIMIZER = optim.make_optimizer(CONFIG, 1)


def step(state, gradient, clip_norm):
    """One update. It gets copies, because it reuses the buffers of its argument."""
    return optim.make_update(OPTIMIZER, clip_norm)(jax.tree.map(jnp.array, state), gradient)


def state(w=(1.0, -2.0), b=4.0):
    params = {"w": jnp.array(w, jnp.float32), "b": jnp.array(b, jnp.float32)}
    return TrainState(params, optim.init(OPTIMIZER, params))


def gradient(w, b):
    return {"w": jnp.array(w, jnp.float32), "b": jnp.array(b, jnp.float32)}


def flat(params):
    return np.array([*params["w"], params["b"]], np.float64)


def first_moments(state):
    return flat({name: opt_state[0].mu for name, opt_state in state.opt_state.items()})


def test_adamw_by_formula():
    """Two updates with torch's AdamW in float64; the first moves by rate·(sign + 0.5·weight)."""
    grads = [np.array([0.5, -0.25, 2.0]), np.array([-1.0, -0.25, 0.5])]
    now, p, m, v = state(), np.array([1.0, -2.0, 4.0]), np.zeros(3), np.zeros(3)
    for t, g in enumerate(grads, 1):
        now, _, good = step(now, gradient(g[:2], g[2]), 100.0)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        p = p - 0.1 * 0.5 * p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        assert bool(good)
        np.testing.assert_allclose(flat(now.params), p, rtol=1e-6)
        if t == 1:
            np.testing.assert_allclose(p, [0.85, -1.8, 3.7], rtol=1e-6)


def test_the_gradient_is_clipped_to_its_global_norm():
    """(3, 4, 12) has norm 13; clipped to 6.5 it is (1.5, 2, 6), and shows in the first moment."""
    now, norm, _ = step(state(), gradient([3.0, 4.0], 12.0), 6.5)
    assert float(norm) == 13.0
    np.testing.assert_allclose(first_moments(now), [0.15, 0.2, 0.6], rtol=1e-6)
    now, norm, _ = step(state(), gradient([3.0, 4.0], 12.0), 13.5)
    np.testing.assert_allclose(first_moments(now), [0.3, 0.4, 1.2], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_bad_step_leaves_everything_as_it_was(bad):
    """3e38 is finite, but its square, and so the norm, is not."""
    before, _, _ = step(state(), gradient([1.0, 1.0], 1.0), 1.0)
    after, norm, good = step(before, gradient([1.0, bad], 1.0), 1.0)
    assert not bool(good) and not np.isfinite(float(norm))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert int(after.opt_state["w"][0].count) == 1  # a skipped update is not counted


@pytest.mark.parametrize(
    "w, b, wanted",
    [
        ((1.0, -3.4e38), 0.0, []),
        ((np.nan, 1.0), 0.0, ["layers/w"]),
        ((np.nan, np.inf), -np.inf, ["b", "layers/w"]),
    ],
)
def test_weights_that_are_not_finite_are_named(w, b, wanted):
    params = {"b": jnp.array(b), "layers": {"w": jnp.array(w), "codes": jnp.arange(3)}}
    assert optim.not_finite(params) == wanted


def test_no_gradient_is_no_division_by_zero():
    after, norm, good = step(state(), gradient([0.0, 0.0], 0.0), 1.0)
    assert float(norm) == 0 and bool(good)
    np.testing.assert_allclose(flat(after.params), [0.95, -1.9, 3.8], rtol=1e-6)  # decay alone


def test_small_updates_add_up():
    """1 + 1000 steps of 1e-5: bfloat16 weights would not move at all."""
    config = replace(CONFIG, learning_rate=1e-5, weight_decay=0.0)
    optimizer = optim.make_optimizer(config, 1000)
    params = {"w": jnp.ones((), jnp.float32)}

    now, update = (
        TrainState(params, optim.init(optimizer, params)),
        optim.make_update(optimizer, 10.0),
    )
    for _ in range(1000):
        now, _, _ = update(now, {"w": -jnp.ones(())})
    assert float(now.params["w"]) == pytest.approx(1.01, rel=1e-4)


def rates(kind, warmup=0, updates=8, end=0.0):
    config = replace(CONFIG, learning_rate=8.0, schedule=kind, warmup_updates=warmup, end_rate=end)
    rate = optim.learning_rate(config, updates)
    return [float(jnp.asarray(rate(count))) for count in range(updates)]


def test_schedules_by_hand():
    assert rates("constant") == [8.0] * 8
    assert rates("linear") == pytest.approx([8, 7, 6, 5, 4, 3, 2, 1])
    assert rates("linear", end=0.5) == pytest.approx([8, 7.5, 7, 6.5, 6, 5.5, 5, 4.5])
    half = 4 * np.sqrt(0.5)  # cosine of an eighth turn
    assert rates("cosine")[::2] == pytest.approx([8, 4 + half, 4, 4 - half])
    assert rates("cosine", end=0.5)[::2] == pytest.approx([8, 6 + half / 2, 6, 6 - half / 2])


def test_warm_up_climbs_to_the_peak_and_is_not_zero_at_first():
    assert rates("constant", warmup=4) == pytest.approx([2, 4, 6, 8, 8, 8, 8, 8])
    assert rates("constant", warmup=1) == rates("constant", warmup=0) == [8.0] * 8
    assert rates("linear", warmup=4) == pytest.approx([2, 4, 6, 8, 8, 6, 4, 2])
    assert rates("linear", warmup=2, updates=3) == pytest.approx([4, 8, 8])
    assert rates("constant", warmup=16) == pytest.approx([0.5 * n for n in range(1, 9)])


def test_an_unknown_schedule_is_refused():
    message = r"config\.optim\.schedule must be one of: constant, linear, cosine \(got 'step'\)"
    with pytest.raises(UserError, match=message):
        optim.make_optimizer(replace(CONFIG, schedule="step"), 1)


def test_the_update_writes_over_the_state():
    """No other memory: neither the moments nor the weights are copied."""
    params = {"w": jnp.ones((64, 64)), "b": jnp.ones(64)}
    now = TrainState(params, optim.init(OPTIMIZER, params))
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(now) if x.ndim]
    after, _, _ = optim.make_update(OPTIMIZER, 1.0)(now, jax.tree.map(jnp.ones_like, params))
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(after) if x.ndim] == places


def test_stages_share_the_programs_of_equal_optimizers():
    """A constant learning rate does not depend on the number of updates, the others do."""
    for schedule, shared in {"constant": True, "linear": False, "cosine": False}.items():
        config = replace(CONFIG, schedule=schedule)
        one, other = (optim.make_change(optim.make_optimizer(config, n)) for n in (3, 40))
        assert (one is other) == shared, schedule
        assert optim.make_change(optim.make_optimizer(config, 3)) is one
