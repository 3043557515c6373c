"""Decoding: one program runs a chunk of steps, each of which samples one token per slot."""

from collections.abc import Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from seif_jax.models.attention import EMPTY, MASKED, Visible, heads_first, heads_last
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.dense_forward import logits
from seif_jax.models.layers import Params
from seif_jax.models.matmul import cache_dtype
from seif_jax.sampling.cache import KV, PromptPool
from seif_jax.sampling.methods import Method, sample_token
from seif_jax.sampling.weights import Layers, layer

CHUNK = 16  # steps per program; slots are refilled between chunks


class Slots(NamedTuple):
    """What the host tells the program about the B slots (in numpy)."""

    cell: Int[Array, "B"]  # which sample of which prompt: pool row · group + index in the group
    start: Int[Array, "B"]  # tokens before the completion
    age: Int[Array, "B"]  # tokens sampled so far
    born: Int[Array, "B"]  # the cache column of the first sampled token
    limit: Int[Array, "B"]  # tokens to sample; 0: the slot is empty
    key: UInt32[Array, "B 2"]
    table: Int[Array, "Q group"]  # the slot of each cell; arbitrary for a cell without a slot
    lengths: Int[Array, "Q"]  # lengths of the prompts in the pool; 1 for an unused row
    prefix: Int[Array, ""]  # the length of the prompts' common prefix
    column: Int[Array, ""]  # the cache column of the first step


class Chunk(NamedTuple):
    """What a chunk of n steps sampled."""

    tokens: Int[Array, "n B"]
    logp: Float[Array, "n B"]  # log-probability of each token, from `methods.sample_token`
    count: Int[Array, "B"]  # tokens sampled in this chunk
    stopped: Bool[Array, "B"]  # whether a stop token was sampled
    steps: Int[Array, ""]  # steps that were run: n, or fewer if all slots have ended

    @classmethod
    def empty(cls, slots: int) -> "Chunk":
        """A chunk before its first step."""
        return cls(
            jnp.zeros((CHUNK, slots), jnp.int32),
            jnp.zeros((CHUNK, slots), jnp.float32),
            jnp.zeros(slots, jnp.int32),
            jnp.zeros(slots, bool),
            jnp.int32(0),
        )

    def append(
        self,
        token: Int[Array, "B"],
        logp: Float[Array, "B"],
        live: Bool[Array, "B"],
        stop_ids: Int[Array, "_"],
    ) -> "Chunk":
        """Adds a step's tokens. Slots that are not live have ended: they get zeros."""
        return Chunk(
            self.tokens.at[self.steps].set(jnp.where(live, token, 0)),
            self.logp.at[self.steps].set(jnp.where(live, logp, 0.0)),
            self.count + live,
            self.stopped | (live & jnp.isin(token, stop_ids)),
            self.steps + 1,
        )


class _State(NamedTuple):
    hidden: Float[Array, "B D"]  # final hidden state of the last token: predicts the next one
    cache: list[KV]
    chunk: Chunk


@partial(
    jax.jit,
    static_argnames=("c", "method", "stop_ids", "dtype"),
    donate_argnames=("hidden", "cache"),
)
def decode(
    c: ModelConfig,
    params: Params,
    layers: Layers,
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
    """Samples CHUNK tokens for every slot, or fewer if all slots end before.

    layers, table: the layers' weights and the embedding, as `weights` makes them of `params`.
    prefix: the keys and values of the prompts' common prefix, a single row per layer; [] if there
    is no such prefix. hidden: the final hidden state of each slot's last token. cache: the keys and
    values of the tokens that slots have sampled, updated in place.

    What a slot samples depends only on its prompt and its key.
    """
    model = c.architecture
    first = jnp.take(pool.last, s.cell // s.table.shape[1], axis=0)
    hidden = jnp.where((s.age == 0)[:, None], first, hidden)
    uniform = _uniform(s)
    stops = jnp.array(stop_ids, jnp.int32)
    key_positions = _key_positions(prefix, pool, cache, s)

    def live_slots(chunk: Chunk) -> Bool[Array, "B"]:
        return ~chunk.stopped & (s.age + chunk.steps < s.limit)

    def step(state: _State) -> _State:
        chunk, live = state.chunk, live_slots(state.chunk)
        scores = logits(params, state.hidden, dtype)
        token, logp = sample_token(scores.T, uniform[chunk.steps], method)
        positions, column = s.start + s.age + chunk.steps, s.column + chunk.steps
        x = model.embed(c, table, token[:, None])
        rope = model.rope(c, positions[:, None])
        new_cache = []
        for i in range(len(state.cache)):
            caches = [*prefix[i : i + 1], pool.layers[i], state.cache[i]]
            attend = partial(
                _attend, caches, key_positions, positions, column, s, dtype, model.visible
            )
            x, layer_cache = model.layer(c, layer(layers, i), x, rope, attend, dtype)
            new_cache.append(layer_cache)
        hidden = model.norm(c, x, params["norm"])[:, 0]
        return _State(hidden, new_cache, chunk.append(token, logp, live, stops))

    def running(state: _State) -> Bool[Array, ""]:
        return (state.chunk.steps < CHUNK) & jnp.any(live_slots(state.chunk))

    state = _State(hidden, cache, Chunk.empty(len(hidden)))
    state = lax.while_loop(running, step, state)
    return state.hidden, state.cache, state.chunk


def _uniform(s: Slots) -> Float[Array, "n B"]:
    """One uniform random number per step and slot, which depends on the slot's key and age."""
    ages = s.age + jnp.arange(CHUNK)[:, None]
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, 1), 1)
    return jax.vmap(jax.vmap(jax.random.uniform))(keys(jax.random.wrap_key_data(s.key), ages))


class _KeyPositions(NamedTuple):
    """Positions of the cached keys; EMPTY in columns without a key."""

    prefix: Int[Array, "1 _"]
    prompts: Int[Array, "Q _"]
    completions: Int[Array, "B _"]


def _key_positions(prefix: list[KV], pool: PromptPool, cache: list[KV], s: Slots) -> _KeyPositions:
    column = jnp.arange(prefix[0].v.shape[1] if prefix else 0)
    before = jnp.where(column < s.prefix, column, EMPTY)[None]
    column = jnp.arange(pool.layers[0].v.shape[1])
    prompts = jnp.where(column < s.lengths[:, None], s.prefix + column, EMPTY)
    column = jnp.arange(cache[0].v.shape[1])
    completions = s.start[:, None] + column - s.born[:, None]
    completions = jnp.where(column >= s.born[:, None], completions, EMPTY)
    return _KeyPositions(before, prompts, completions)


def _attend(
    caches: Sequence[KV],
    key_positions: _KeyPositions,
    positions: Int[Array, "B"],
    column: Int[Array, ""],
    s: Slots,
    dtype: DTypeLike,
    visible: Visible,
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B 1 K H"],
    v: Float[Array, "B 1 K H"],
) -> tuple[Float[Array, "B 1 N H"], KV]:
    """The new tokens' attention to the common prefix, their prompts and their completions so far.

    caches: one layer's `KV` of the prefix (if there is one), the prompts and the completions. Also
    returns that of the completions, with the new tokens' keys and values written to `column`.
    """
    *prefix, prompts, completions = caches
    q, k, v = heads_first(q, k, v, dtype)
    H = q.shape[-1]
    completions = KV(
        lax.dynamic_update_slice(completions.k, k.reshape(-1, H, 1), (0, 0, column)),
        lax.dynamic_update_slice(completions.v, v.reshape(-1, 1, H), (0, column, 0)),
    )
    q = q[:, :, :, 0] * H**-0.5
    attend = partial(_partial_attention, dtype=dtype, visible=visible)
    # Queries are gathered by prompt and their results scattered back: prompts are not moved.
    slots = s.table.reshape(-1)
    by_cell = attend(q[:, slots], positions[slots], prompts, key_positions.prompts)
    parts = [
        _PartialAttention(*(x[:, s.cell] for x in by_cell)),
        attend(q, positions, completions, key_positions.completions),
    ]
    parts += [attend(q, positions, kv, key_positions.prefix) for kv in prefix]
    return heads_last(_merge(parts)[:, :, :, None]), completions


class _PartialAttention(NamedTuple):
    """Attention to some of the keys, in a form that can be merged with attention to others."""

    top: Float[Array, "K B R"]  # the largest score
    total: Float[Array, "K B R"]  # the sum of exp(score - top)
    out: Float[Array, "K B R H"]  # the sum of exp(score - top) · value


def _partial_attention(
    q: Float[Array, "K B R H"],
    positions: Int[Array, "B"],
    kv: KV,
    key_positions: Int[Array, "b S"],
    *,
    dtype: DTypeLike,
    visible: Visible,
) -> _PartialAttention:
    """Attention to the keys in kv. Each of its b rows serves B/b consecutive queries."""
    K, B, R, H = q.shape
    b, S = key_positions.shape
    dtype = jnp.dtype(cache_dtype(dtype))
    matmul = partial(
        lax.dot_general,
        dimension_numbers=(((2,), (1,)), ((0,), (0,))),
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    score = matmul(q.astype(dtype).reshape(K * b, -1, H), kv.k)
    mask = visible(positions.reshape(b, -1, 1, 1), key_positions[:, None, None])
    score = jnp.where(mask, score.reshape(K, b, B // b, R, S), MASKED).reshape(score.shape)
    top = jnp.max(score, axis=-1)
    weight = jnp.exp(score - top[..., None])
    out = matmul(weight.astype(dtype), kv.v)
    total = jnp.sum(weight, axis=-1)
    return _PartialAttention(top.reshape(K, B, R), total.reshape(K, B, R), out.reshape(q.shape))


def _merge(parts: Sequence[_PartialAttention]) -> Float[Array, "K B R H"]:
    """Attention to the keys of all parts together."""
    top = reduce(jnp.maximum, (p.top for p in parts))
    total, out = jnp.zeros(()), jnp.zeros(())
    for p in parts:
        share = jnp.exp(p.top - top)
        total, out = total + p.total * share, out + p.out * share[..., None]
    return out / total[..., None]
