"""Decoding: one program computes a chunk of steps, a token for every slot in each."""

from collections.abc import Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from seif_jax.models.attention import EMPTY, MASKED, Visible, heads_first, heads_last
from seif_jax.models.decoder import LayerWeights, ModelConfig
from seif_jax.models.dense_forward import logits
from seif_jax.models.layers import Params
from seif_jax.models.matmul import cache_dtype
from seif_jax.sampling.cache import KV, PromptPool
from seif_jax.sampling.methods import Method, sample_token

CHUNK = 16  # steps per program; slots are refilled between chunks


class Slots(NamedTuple):
    """The B slots of one chunk, as the host describes them (in numpy)."""

    cell: Int[Array, "B"]  # which sample of which prompt: pool row · group + its number
    start: Int[Array, "B"]  # tokens before the completion
    age: Int[Array, "B"]  # tokens sampled so far
    born: Int[Array, "B"]  # the cache column of the first sampled token
    limit: Int[Array, "B"]  # tokens to sample; 0: the slot is empty
    key: UInt32[Array, "B 2"]
    table: Int[Array, "Q group"]  # the slot of each cell; arbitrary if it has none
    lengths: Int[Array, "Q"]  # of the prompts; 1 if there is none
    column: Int[Array, ""]  # the cache column of the first step


class Chunk(NamedTuple):
    """What a chunk of n steps sampled."""

    tokens: Int[Array, "n B"]
    logp: Float[Array, "n B"]  # of each token, as `methods.sample_token` returns it
    count: Int[Array, "B"]  # tokens sampled in this chunk
    stopped: Bool[Array, "B"]  # by a stop token
    steps: Int[Array, ""]  # steps run: n, or fewer if all slots have ended


class _State(NamedTuple):
    hidden: Float[Array, "B D"]  # final hidden state of the last token: predicts the next one
    cache: list[KV]
    out: Chunk


@partial(
    jax.jit,
    static_argnames=("c", "method", "stop_ids", "dtype"),
    donate_argnames=("hidden", "cache"),
)
def decode(
    c: ModelConfig,
    params: Params,
    unstacked: Sequence[LayerWeights],
    table: Shaped[Array, "V D"],
    prefix: list[KV],
    pool: PromptPool,
    hidden: Float[Array, "B D"],
    cache: list[KV],
    s: Slots,
    *,
    method: Method,
    stop_ids: tuple[int, ...],
    dtype: DTypeLike,
) -> tuple[Float[Array, "B D"], list[KV], Chunk]:
    """Samples CHUNK tokens for every slot, fewer once all have ended.

    table: the embedding, `as_bits`. prefix: of all prompts, one row; [] if there is none. cache:
    of the slots' own tokens, updated in place. A token is a function of the prompt, the slot's key
    and its age alone.
    """
    B, model = hidden.shape[0], c.architecture
    first = jnp.take(pool.last, s.cell // s.table.shape[1], axis=0)
    hidden = jnp.where((s.age == 0)[:, None], first, hidden)
    uniform = _uniform(s)
    stops = jnp.array(stop_ids, jnp.int32)
    keys = _key_positions(prefix, pool, cache, s)

    def alive(out: Chunk) -> Bool[Array, "B"]:
        return ~out.stopped & (s.age + out.steps < s.limit)

    def step(state: _State) -> _State:
        out, live, now = state.out, alive(state.out), s.column + state.out.steps
        scores = logits(params, state.hidden, dtype)
        token, logp = sample_token(scores.T, uniform[out.steps], method)
        positions = s.start + s.age + out.steps
        x = model.embed(c, table, token[:, None])
        rope = model.rope(c, positions[:, None])
        new_cache = []
        for i, (w, own) in enumerate(zip(unstacked, state.cache, strict=True)):
            layer = [*prefix[i : i + 1], pool.layers[i], own]
            read = partial(_read, layer, keys, positions, now, s, dtype, model.visible)
            x, own = model.layer(c, w, x, rope, read, dtype)
            new_cache.append(own)
        out = Chunk(
            out.tokens.at[out.steps].set(jnp.where(live, token, 0)),
            out.logp.at[out.steps].set(jnp.where(live, logp, 0.0)),
            out.count + live,
            out.stopped | (live & jnp.isin(token, stops)),
            out.steps + 1,
        )
        return _State(model.norm(c, x, params["norm"])[:, 0], new_cache, out)

    def running(state: _State) -> Bool[Array, ""]:
        return (state.out.steps < CHUNK) & jnp.any(alive(state.out))

    empty = Chunk(
        jnp.zeros((CHUNK, B), jnp.int32),
        jnp.zeros((CHUNK, B), jnp.float32),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(B, bool),
        jnp.int32(0),
    )
    state = lax.while_loop(running, step, _State(hidden, cache, empty))
    return state.hidden, state.cache, state.out


def _uniform(s: Slots) -> Float[Array, "n B"]:
    """One uniform number per step and slot, a function of the slot's key and its age."""
    ages = s.age + jnp.arange(CHUNK)[:, None]
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, 1), 1)
    return jax.vmap(jax.vmap(jax.random.uniform))(keys(jax.random.wrap_key_data(s.key), ages))


class _KeyPositions(NamedTuple):
    """Positions of the cached keys; EMPTY where there is none."""

    prefix: Int[Array, "1 _"]
    prompts: Int[Array, "Q _"]
    own: Int[Array, "B _"]


def _key_positions(prefix: list[KV], pool: PromptPool, cache: list[KV], s: Slots) -> _KeyPositions:
    before = prefix[0].v.shape[1] if prefix else 0
    column = jnp.arange(pool.layers[0].v.shape[1])
    prompts = jnp.where(column < s.lengths[:, None], before + column, EMPTY)
    column = jnp.arange(cache[0].v.shape[1])
    own = s.start[:, None] + column - s.born[:, None]
    own = jnp.where(column >= s.born[:, None], own, EMPTY)
    return _KeyPositions(jnp.arange(before)[None], prompts, own)


def _read(
    layer: Sequence[KV],
    keys: _KeyPositions,
    positions: Int[Array, "B"],
    column: Int[Array, ""],
    s: Slots,
    dtype: DTypeLike,
    visible: Visible,
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B 1 K H"],
    v: Float[Array, "B 1 K H"],
) -> tuple[Float[Array, "B 1 N H"], KV]:
    """Attention of the new tokens to prefix, prompts and own tokens, and the own cache with the new
    keys and values. layer: these caches; the prefix may be missing."""
    *prefix, prompts, own = layer
    q, k, v = heads_first(q, k, v, dtype)
    H = q.shape[-1]
    own = KV(
        lax.dynamic_update_slice(own.k, k.reshape(-1, H, 1), (0, 0, column)),
        lax.dynamic_update_slice(own.v, v.reshape(-1, 1, H), (0, column, 0)),
    )
    q = q[:, :, :, 0] * H**-0.5
    attend = partial(_partial, dtype=dtype, visible=visible)
    # Queries go to the prompt that they attend to, and the results come back: prompts stay put.
    cells = s.table.reshape(-1)
    to_prompts = attend(q[:, cells], positions[cells], prompts, keys.prompts)
    parts = [_Partial(*(x[:, s.cell] for x in to_prompts)), attend(q, positions, own, keys.own)]
    parts += [attend(q, positions, kv, keys.prefix) for kv in prefix]
    return heads_last(_merge(parts)[:, :, :, None]), own


class _Partial(NamedTuple):
    """Attention to some of the keys, with what it takes to merge it with the others."""

    top: Float[Array, "K B R"]  # the largest score
    total: Float[Array, "K B R"]  # the sum of exp(score - top)
    out: Float[Array, "K B R H"]  # the sum of exp(score - top) · value


def _partial(
    q: Float[Array, "K B R H"],
    positions: Int[Array, "B"],
    kv: KV,
    keys: Int[Array, "b S"],
    *,
    dtype: DTypeLike,
    visible: Visible,
) -> _Partial:
    """Attention to the keys of kv at the positions `keys`; each row serves B/b queries."""
    K, B, R, H = q.shape
    b, S = keys.shape
    kind = jnp.dtype(cache_dtype(dtype))
    matmul = partial(
        lax.dot_general,
        dimension_numbers=(((2,), (1,)), ((0,), (0,))),
        precision=lax.Precision.HIGHEST if kind == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    score = matmul(q.astype(kind).reshape(K * b, -1, H), kv.k)
    mask = visible(positions.reshape(b, -1, 1, 1), keys[:, None, None])
    score = jnp.where(mask, score.reshape(K, b, B // b, R, S), MASKED).reshape(score.shape)
    top = jnp.max(score, axis=-1)
    weight = jnp.exp(score - top[..., None])
    out = matmul(weight.astype(kind), kv.v)
    total = jnp.sum(weight, axis=-1)
    return _Partial(top.reshape(K, B, R), total.reshape(K, B, R), out.reshape(q.shape))


def _merge(parts: Sequence[_Partial]) -> Float[Array, "K B R H"]:
    top = reduce(jnp.maximum, (p.top for p in parts))
    total, out = jnp.zeros(()), jnp.zeros(())
    for p in parts:
        share = jnp.exp(p.top - top)
        total, out = total + p.total * share, out + p.out * share[..., None]
    return out / total[..., None]
