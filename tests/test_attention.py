"""Every attention against the plain one, forward and backward, and which is chosen where."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax._src.cudnn import fused_attention_stablehlo
from jax.flatten_util import ravel_pytree
from jax.sharding import AbstractMesh, AxisType

from seif_jax import models
from seif_jax.models import attention
from seif_jax.models.attention import (
    EMPTY,
    Segment,
    attend,
    attend_rows,
    cudnn,
    plain,
    splash,
    with_kernel,
)
from seif_jax.sharding import AXES

# The kernels as they run here: cuDNN's caller with XLA behind it, Pallas's own interpreter.
HERE = {"gpu": partial(cudnn, implementation="xla"), "tpu": partial(splash, interpret=True)}
CALLS = {"gpu": "__cudnn$fmha", "tpu": "tpu_custom_call"}
LOWERED = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}  # platforms by the compiler's names


def case(K=2, B=4, R=2, T=150, H=64):
    """A prefix for all, right-padded prompts for two rows each (the second of no token), and own
    tokens; 273 keys and 150 queries fill no block."""
    rng = np.random.default_rng(0)

    def segment(positions):
        k, v = jnp.array(rng.normal(size=(2, K, *positions.shape, H)), jnp.float32)
        return Segment(k, v, positions)

    q = jnp.array(rng.normal(size=(K, B, R, T, H)), jnp.float32)
    prefix = segment(jnp.arange(33)[None])
    lengths, column = jnp.array([[70], [0]]), jnp.arange(90)
    prompts = segment(jnp.where(column < lengths, 33 + column, EMPTY))
    own = segment(33 + jnp.repeat(lengths, B // 2, axis=0) + jnp.arange(T))
    return q, [prefix, prompts, own]


def compiled(attention, q, segments, dtype=jnp.float32):
    """Values, and gradients of q and of all keys and values: a program, and what it takes."""
    positions = [s.positions for s in segments]

    @jax.checkpoint
    def of(q, keys_values):
        pairs = zip(keys_values, positions, strict=True)
        return attention(q, positions[-1], [Segment(k, v, at) for (k, v), at in pairs], dtype)

    @jax.jit
    def both(q, keys_values):
        out, pull = jax.vjp(of, q, keys_values)
        return out, pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    return both, (q, [(s.k, s.v) for s in segments])


def by_kernel(kernel):
    return lambda q, positions, segments, dtype: with_kernel(kernel, q, segments, dtype)


def test_kernels_are_the_plain_one():
    q, segments = case(H=16)
    kernels = [by_kernel(kernel) for kernel in HERE.values()]
    programs = [compiled(attention, q, segments) for attention in (plain, *kernels)]
    wanted, *results = (jax.tree.leaves(program(*inputs)) for program, inputs in programs)
    assert len(wanted) == 8  # out, q, three times k and v
    for got in results:
        for one, other in zip(got, wanted, strict=True):
            largest = float(jnp.max(jnp.abs(other)))
            np.testing.assert_allclose(one, other, atol=1e-5 * largest)
        for gradient in got[4:6]:  # of the prompts: nothing of what is hidden
            assert not gradient[:, 0, 70:].any() and not gradient[:, 1].any()


@pytest.fixture(scope="module")
def meshed():
    """What kernels.py says, with eight devices."""
    return tiny.on_devices(8, "kernels.py")


def test_a_kernel_over_a_mesh_is_the_plain_one_on_one_device(meshed):
    """Forward and backward; key/value heads fewer than devices, and heads that only one of the two
    axes divides."""
    (first, heads), (second, fewer) = meshed["through"]
    assert len(first) == len(second) == 6 and max(first + second) < 2e-6
    assert (heads, fewer) == ([1, 1], [3, 1])


def test_the_kernel_over_packed_trees_is_the_plain_one(meshed):
    """Each device has its own tree and its own heads."""
    trees = meshed["trees"]
    assert [heads for _, heads in trees] == [[2, 1], [2, 1]]
    assert [len(gaps) for gaps, _ in trees] == [4] * 2
    assert max(gap for gaps, _ in trees for gap in gaps) < 5e-6


@pytest.mark.parametrize("blocks", [2, 4])
def test_blocks_of_rows_are_all_at_once(monkeypatch, blocks):
    """One prompt's rows a block, and one row: then a prompt serves two blocks."""
    q, segments = case(T=12, H=16)
    scores = q.size // q.shape[-1] * sum(s.k.shape[2] for s in segments)
    monkeypatch.setattr(attention, "CACHED_SCORES", scores // blocks)
    blocked, wanted = (compiled(attend, q, segments) for attend in (plain, attend_rows))
    assert "while" in blocked[0].lower(*blocked[1]).as_text()
    for got, one in zip(
        *(jax.tree.leaves(f(*inputs)) for f, inputs in (blocked, wanted)), strict=True
    ):
        np.testing.assert_allclose(got, one, atol=1e-5 * float(jnp.max(jnp.abs(one))))


def test_splash_in_the_model(monkeypatch):
    """In bf16, scanned over layers and computed again in the backward pass: hidden states and
    gradients of the weights, where the choice falls on the kernel as on a TPU."""
    changes = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = models.describe({**tiny.tiny_config(96), **changes})
    params = models.init(model, 0)
    tokens = jnp.array(np.random.default_rng(0).integers(0, 96, (2, 130)))
    positions = jnp.tile(jnp.arange(130), (2, 1))

    def loss(params):
        hidden, _ = models.forward(model.config, params, tokens, positions, dtype=jnp.bfloat16)
        return jnp.sum(jnp.cos(hidden)), hidden

    def run():
        (_, hidden), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return np.asarray(hidden), np.asarray(ravel_pytree(gradient)[0])

    wanted = run()
    calls = []
    monkeypatch.setitem(
        attention.KERNELS, "cpu", lambda *x, **y: (calls.append(x[:2]), HERE["tpu"](*x, **y))[1]
    )
    got = run()
    shapes = [((2, 256, 2, 64), jnp.bfloat16), ((2, 256, 1, 64), jnp.bfloat16)]
    assert [(x.shape, x.dtype) for x in calls[0]] == shapes
    for one, other in zip(got, wanted, strict=True):
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other)


@pytest.mark.parametrize(
    "where, shape, dtype, chosen",
    [
        ("gpu", {"H": 128}, jnp.bfloat16, True),
        ("tpu", {}, "bfloat16", True),
        ("cpu", {}, jnp.bfloat16, False),
        ("gpu", {}, jnp.float32, False),
        ("tpu", {}, jnp.float32, False),
        ("gpu", {"T": 1}, jnp.bfloat16, False),
        ("tpu", {"H": 8}, jnp.bfloat16, False),
    ],
)
def test_choice(where, shape, dtype, chosen, monkeypatch):
    """Lowered for each platform: the kernel's calls, forward and backward, or none."""
    monkeypatch.setattr(jax, "default_backend", lambda: where)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    program, inputs = compiled(attend, *case(**shape), dtype)
    text = program.trace(*inputs).lower(lowering_platforms=(LOWERED[where],)).as_text()
    kernels = re.findall(r"custom_call @([\w$]+)", text)
    called = [name for name in kernels if name.startswith(tuple(CALLS.values()))]
    assert (len(called) >= 2 and {name[:9] for name in called} == {CALLS[where][:9]}) == chosen
    assert bool(called) == chosen


@pytest.mark.parametrize("where", LOWERED)
def test_products_of_a_platform(where, monkeypatch):
    """bf16 weights, forward and backward. Accelerators multiply bf16 and add up in float32, and
    nothing is done for the CPU's sake; there, batched products are float32. On GPUs the wide
    activations of the MLP are bf16: two outputs per layer and one gradient."""
    monkeypatch.setattr(jax, "default_backend", lambda: where)
    model = models.describe(tiny.tiny_config(96))
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), models.shapes(model)
    )
    tokens = jnp.zeros((2, 24), int)

    def loss(params):
        hidden, _ = models.forward(model.config, params, tokens, tokens, dtype=jnp.bfloat16)
        return jnp.sum(models.logits(params, hidden, jnp.bfloat16))

    lowered = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=(LOWERED[where],))
    text = lowered.as_text()
    products = re.findall(r"dot_general .*: \((\S+), (\S+)\) -> (\S+)", text)
    results = [result for _, _, result in products]
    narrow = [result for result in results if not result.endswith("xf32>")]
    assert all(result.endswith(f"x{model.config.mlp}xbf16>") for result in narrow)
    assert len(narrow) == (3 if where == "gpu" else 0)  # layers are scanned
    kinds: dict[bool, set[str]] = {False: set(), True: set()}  # operands' by whether batched
    for left, right, _ in products:
        kinds[left.count("x") == 3] |= {left[-5:], right[-5:]}
    assert kinds == {False: {"bf16>"}, True: {"xf32>" if where == "cpu" else "bf16>"}}
    assert ("bitcast_convert" in text) == (where == "cpu")


@pytest.mark.parametrize("where", LOWERED)
@pytest.mark.parametrize("tensor", [1, 2])
def test_sums_between_devices(where, tensor, monkeypatch):
    """Accelerators round partial sums over `tensor` to bf16 before they add them up: the outputs of
    two projections, and the gradients of the inputs of the other five, of which there are two. On
    GPUs, three wide activations of the MLP are bf16 in any case."""
    monkeypatch.setattr(jax, "default_backend", lambda: where)
    model = models.describe(tiny.tiny_config(96))
    shapes = {name: x for name, x in models.shapes(model, jnp.bfloat16)["layers"].items()}
    weights = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in shapes.items()}
    c, x = model.config, jnp.zeros((1, 24, model.config.width))

    def loss(w, x):
        rope = c.architecture.rope(c, jnp.zeros((1, 24), int))
        out, _ = c.architecture.layer(
            c, w, x, rope, lambda q, k, v: (q * jnp.mean(k) * jnp.mean(v), None), jnp.bfloat16
        )
        return jnp.sum(out)

    mesh = AbstractMesh(
        (1,) * (len(AXES) - 1) + (tensor,), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(weights, x))
    rounded = re.findall(r"preferred_element_type=bfloat16", jaxpr)
    wide = 3 if where == "gpu" else 0
    assert len(rounded) == wide + (7 if where != "cpu" and tensor > 1 else 0)
