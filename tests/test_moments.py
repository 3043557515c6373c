"""Low-precision moments: their error, no bias, learning as with float32, resuming."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seif_jax.checkpoint import open_checkpoints
from seif_jax.rl import optim, quantized_adam
from seif_jax.rl.optim import OptimizerConfig, TrainState

FEWER = ("bfloat16", "int8")
RNG = np.random.default_rng(0)


def there_and_back(kind, x, signed):
    """What is left of moments of this kind after they were stored."""
    storage = quantized_adam.MOMENTS[kind]
    return np.asarray(storage.decode(storage.encode(x, jnp.int32(3), signed), x.shape))


def test_bits():
    """Each bit is set half of the time, and neither streams nor bits correlate."""
    draws = np.stack([quantized_adam.random_bits((64, 256), jnp.int32(n)) for n in range(8)])
    set_ = np.unpackbits(draws.reshape(8, -1).view(np.uint8), axis=1) * 2.0 - 1
    error = 1 / set_.shape[1] ** 0.5
    assert np.abs(set_.mean(axis=1)).max() < 4 * error
    correlation = set_ @ set_.T / set_.shape[1] - np.eye(8)
    assert np.abs(correlation).max() < 4 * error
    planes = set_.reshape(-1, 32)
    correlation = planes.T @ planes / len(planes) - np.eye(32)
    assert np.abs(correlation).max() < 5 / len(planes) ** 0.5


@pytest.mark.parametrize("kind, step", [("bfloat16", 2**-7), ("int8", 2**-3)])
@pytest.mark.parametrize("signed", [True, False])
def test_the_error_is_below_one_step(kind, step, signed):
    """Three blocks, the last one not full, over four orders of magnitude; zeros stay zeros."""
    x = (10.0 ** RNG.uniform(-4, 0, (6, 100))).astype(np.float32)
    x *= np.where(RNG.random(x.shape) < 0.5, -1, 1) if signed else 1
    stored = there_and_back(kind, jnp.array(x), signed)
    assert np.abs(stored / x - 1).max() < step * 1.0001
    assert not there_and_back(kind, jnp.zeros((3, 100)), signed).any()


@pytest.mark.parametrize("kind", FEWER)
@pytest.mark.parametrize("signed", [True, False])
def test_rounding_is_unbiased(kind, signed):
    """Over 4000 draws."""
    x = jnp.array([1.0, 0.7, 0.013, 3e-5, 0.0 if signed else 0.5])
    copies = jnp.broadcast_to(x, (4000, 5))
    if kind == "int8":  # each row is one block
        copies = jnp.pad(copies, ((0, 0), (0, 251)))
    stored = there_and_back(kind, copies, signed)[:, :5]
    error = np.maximum(stored.std(axis=0) / 4000**0.5, 1e-9)
    assert np.all(np.abs(stored.mean(axis=0) - x) < 4 * error)


def test_the_ends_of_the_scales():
    """The unsigned one above zero, at 2^-32·9/8; the signed one at zero."""
    x, lowest = jnp.array([1.0, 1e-12, 0.0]), 2**-32 * 9 / 8
    np.testing.assert_array_equal(there_and_back("int8", x, False), [1, lowest, lowest])
    np.testing.assert_array_equal(there_and_back("int8", -x, True), [-1, 0, 0])


@pytest.mark.parametrize("kind", FEWER)
def test_small_changes_are_not_lost(kind):
    """A second moment of 1e-3, then 700 updates without a gradient: 0.999^700 is left of it."""
    scaling = quantized_adam.adam(0.9, 0.999, 1e-8, kind)
    weights = jnp.zeros(2048)
    change = jax.jit(lambda g, s: scaling.update(g, s)[1])
    state = change(weights + 1, scaling.init(weights))
    for _ in range(700):
        state = change(weights, state)
    nu = quantized_adam.MOMENTS[kind].decode(state.nu, (2048,))
    assert float(jnp.mean(nu)) == pytest.approx(1e-3 * 0.999**700, rel=0.05)


INPUTS = jnp.array(RNG.normal(size=(50, 32, 40)), jnp.float32)
TRUTH = jnp.array(RNG.normal(size=(40, 30)), jnp.float32)


@functools.cache
def optimizer(kind):
    config = OptimizerConfig(learning_rate=0.03, schedule="linear", weight_decay=0.0, moments=kind)
    transformation = optim.make_optimizer(config, 300)
    return transformation, optim.make_update(transformation, 1e9)


@jax.jit
def gradient(params, i):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (32, 30))

    def loss(params):
        return jnp.mean((INPUTS[i % 50] @ (params["w"] - TRUTH) + noise) ** 2)

    return jax.grad(loss)(params)


def regression(kind, steps, state=None, first=0):
    """Noisy linear regression, 40 to 30; the error, and the state."""
    transformation, update = optimizer(kind)
    if state is None:
        params = {"w": jnp.zeros((40, 30)), "unused": jnp.zeros(3)}
        state = TrainState(params, optim.init(transformation, params))
    for i in range(first, first + steps):
        state, _, taken = update(state, gradient(state.params, i))
        assert taken
    return float(jnp.mean((state.params["w"] - TRUTH) ** 2)), state


@pytest.mark.parametrize("kind", FEWER)
def test_learns_as_with_float32(kind):
    loss, state = regression(kind, 300)
    plain, _ = regression("float32", 300)
    assert plain < 0.05 and loss == pytest.approx(plain, rel=0.1)
    size = {"bfloat16": 2.0, "int8": 1.1}[kind]
    mu = state.opt_state["w"][0].mu
    assert sum(x.nbytes for x in jax.tree.leaves(mu)) < size * 1.1 * 1200
    assert not state.params["unused"].any()  # without a gradient, no NaN


@pytest.mark.parametrize("kind", tuple(quantized_adam.MOMENTS))
def test_stopped_and_started_again(kind, tmp_path):
    _, half = regression(kind, 3)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, params=half.params, optimizer=half.opt_state)
        shapes = jax.eval_shape(lambda: half)
        trees = checkpoints.restore(3, params=shapes.params, optimizer=shapes.opt_state)
    _, resumed = regression(kind, 3, TrainState(trees["params"], trees["optimizer"]), first=3)
    _, uninterrupted = regression(kind, 6)
    jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted)
