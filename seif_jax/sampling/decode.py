"""Decoding: a token for every slot, a chunk of steps in one program.

Activations are columns, [features, slots]: XLA's CPU backend multiplies a weight with few columns
about 1.6 times as fast as few rows with a weight, and the other backends do not mind.
"""

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from seif_jax.models import layers
from seif_jax.models.layers import ModelConfig, Rope
from seif_jax.sampling.methods import Method, sample_token

CHUNK = 16  # steps; slots are refilled between chunks


class KV(NamedTuple):
    """A layer's keys and values of some rows, in the shapes in which decoding reads them: XLA's CPU
    backend would turn or copy any other in every step."""

    k: Float[Array, "n H S"]  # n: K·rows, heads lead
    v: Float[Array, "n S H"]


class Pool(NamedTuple):
    """Prompts, each held once for all of its samples."""

    layers: list[KV]  # n: K·Q, rows of S: the padded length of a prompt
    last: Float[Array, "Q D"]  # final hidden state of the prompt's last token


class Slots(NamedTuple):
    """What the host says of the B slots for one chunk; int32 [B] but where said otherwise."""

    cell: Any  # which sample of which prompt: row of the pool · group + number in the group
    start: Any  # tokens before the completion
    age: Any  # tokens sampled so far
    born: Any  # column of the cache with the first of them
    limit: Any  # tokens to sample; 0: the slot is empty
    key: Any  # uint32 [B, 2]
    table: Any  # int32 [Q, group]: the slot of each cell, any where there is none
    lengths: Any  # int32 [Q], of the prompts, 1 where there is none
    column: Any  # int32 []: of the cache, for the first step


class Chunk(NamedTuple):
    tokens: Int[Array, "n B"]
    logp: Float[Array, "n B"]  # of each token, as `methods.sample_token` says
    count: Int[Array, "B"]  # tokens sampled in this chunk
    stopped: Bool[Array, "B"]  # by a stop token
    steps: Int[Array, ""]  # taken: up to n, fewer where all slots have ended


class _State(NamedTuple):
    hidden: Float[Array, "D B"]  # final hidden state of the last token: says what comes next
    cache: list[KV]
    out: Chunk


@partial(
    jax.jit,
    static_argnames=("c", "method", "stop_ids", "dtype"),
    donate_argnames=("hidden", "cache"),
)
def decode(
    c: ModelConfig,
    params: Mapping[str, Any],
    unstacked: Sequence[Any],
    table: Array,
    prefix: list[KV],
    pool: Pool,
    hidden: Float[Array, "D B"],
    cache: list[KV],
    s: Slots,
    *,
    method: Method,
    stop_ids: tuple[int, ...],
    dtype: Any,
) -> tuple[Float[Array, "D B"], list[KV], Chunk]:
    """CHUNK tokens for every slot, fewer once all have ended.

    table: the embedding, as bits. prefix: of all prompts, one row; [] for none. cache: of the
    slots' own tokens, updated in place. A token is a function of the prompt, the slot's key and its
    age alone.
    """
    B = hidden.shape[1]
    before = prefix[0].v.shape[1] if prefix else 0
    first = jnp.take(pool.last, s.cell // s.table.shape[1], axis=0).T
    hidden = jnp.where(s.age == 0, first, hidden)
    ages = s.age + jnp.arange(CHUNK)[:, None]
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, 1), 1)
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(keys(jax.random.wrap_key_data(s.key), ages))
    stops = jnp.array(stop_ids, jnp.int32)
    columns = jnp.arange(cache[0].v.shape[1])
    prompt = jnp.arange(pool.layers[0].v.shape[1]) < s.lengths[:, None]

    def body(state: _State) -> _State:
        step, out = state.out.steps, state.out
        live = ~out.stopped & (s.age + step < s.limit)
        logits = _product(_head(params), state.hidden, dtype)
        token, logp = sample_token(logits, uniform[step], method)
        out = Chunk(
            out.tokens.at[step].set(jnp.where(live, token, 0)),
            out.logp.at[step].set(jnp.where(live, logp, 0.0)),
            out.count + live,
            out.stopped | (live & jnp.isin(token, stops)),
            step + 1,
        )
        now = s.column + step
        own = (columns >= s.born[:, None]) & (columns <= now)
        rope = layers.rope(c, (s.start + s.age + step)[None])
        rope = Rope(*(x[0, :, 0].transpose(1, 2, 0) for x in rope))
        x = _embed(table, token)
        grown = []
        for i, (w, kv) in enumerate(zip(unstacked, state.cache, strict=True)):
            q, k, v = _heads(c, w, x, rope, dtype)
            kv = KV(
                lax.dynamic_update_slice(kv.k, k.reshape(-1, c.head_dim, 1), (0, 0, now)),
                lax.dynamic_update_slice(kv.v, v.reshape(-1, 1, c.head_dim), (0, now, 0)),
            )
            grown.append(kv)
            parts = [_of_prompts(q, pool.layers[i], prompt, s, dtype), _part(q, kv, own, dtype)]
            if before:
                parts.append(_part(q, prefix[i], None, dtype))
            x = _after(c, w, x, _merge(parts), dtype)
        return _State(_norm(x, params["norm"], c.norm_eps), grown, out)

    def going(state: _State) -> Array:
        step = state.out.steps
        live = ~state.out.stopped & (s.age + step < s.limit)
        return (step < CHUNK) & jnp.any(live)

    empty = Chunk(
        jnp.zeros((CHUNK, B), jnp.int32),
        jnp.zeros((CHUNK, B), jnp.float32),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(B, bool),
        jnp.int32(0),
    )
    state = lax.while_loop(going, body, _State(hidden, cache, empty))
    return state.hidden, state.cache, state.out


def _embed(table: Array, tokens: Int[Array, "B"]) -> Float[Array, "D B"]:
    """Number by number: rows turned afterwards would make XLA turn the operands of all products,
    too, which then run in float32."""
    D = table.shape[1]
    numbers = jnp.take(table.reshape(-1), tokens * D + jnp.arange(D)[:, None])
    return layers.from_bits(numbers).astype(jnp.float32)


def _head(params: Mapping[str, Any]) -> Float[Array, "V D"]:
    return params["head"] if "head" in params else params["embed"]


def _product(w: Float[Array, "O *I"], x: Float[Array, "I B"], dtype: Any) -> Float[Array, "O B"]:
    return lax.dot_general(
        w.reshape(-1, x.shape[0]).astype(dtype),
        x.astype(dtype),
        (((1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _project(
    c: ModelConfig, w: Mapping[str, Array], name: str, x: Float[Array, "I B"], dtype: Any
) -> Float[Array, "O B"]:
    """`layers.project`, of columns."""
    out = _product(w[name], x, dtype)
    if f"{name}_a" in w:
        low = _product(w[f"{name}_a"], x, dtype) * c.lora_scale
        out = out + _product(w[f"{name}_b"], low, dtype)
    return out


def _norm(x: Float[Array, "*h D B"], scale: Float[Array, "D"], eps: float) -> Array:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-2, keepdims=True) + eps) * scale[:, None]


def _rotate(x: Float[Array, "h H B"], r: Rope) -> Float[Array, "h H B"]:
    halves = x.reshape(x.shape[0], 2, -1, x.shape[2])
    return (halves * r.cos + halves[:, ::-1] * r.sin).reshape(x.shape)


def _heads(
    c: ModelConfig, w: Mapping[str, Array], x: Float[Array, "D B"], r: Rope, dtype: Any
) -> tuple[Float[Array, "K B R H"], Float[Array, "K B H"], Float[Array, "K B H"]]:
    """Queries, scaled, keys and values of the new tokens, heads leading."""
    K, H, B = c.kv_heads, c.head_dim, x.shape[1]
    h = _norm(x, w["attn_norm"], c.norm_eps)
    q, k, v = (_project(c, w, name, h, dtype).reshape(-1, H, B) for name in "qkv")
    if c.qkv_bias:
        q, k, v = q + w["q_bias"][..., None], k + w["k_bias"][..., None], v + w["v_bias"][..., None]
    if c.qk_norm:
        q, k = _norm(q, w["q_norm"], c.norm_eps), _norm(k, w["k_norm"], c.norm_eps)
    q = _rotate(q, r).reshape(K, -1, H, B).transpose(0, 3, 1, 2) * H**-0.5
    kind = layers.cache_dtype(dtype)
    k, v = (y.transpose(0, 2, 1).astype(kind) for y in (_rotate(k, r), v))
    return q, k, v


def _after(
    c: ModelConfig, w: Mapping[str, Array], x: Array, seen: Float[Array, "K B R H"], dtype: Any
) -> Float[Array, "D B"]:
    """The rest of the layer, after attention."""
    seen = seen.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
    x = x + _project(c, w, "o", seen, dtype)
    h = _norm(x, w["mlp_norm"], c.norm_eps)
    gate, up = (_project(c, w, name, h, dtype) for name in ("gate", "up"))
    return x + _project(c, w, "down", jax.nn.silu(gate) * up, dtype)


class _Part(NamedTuple):
    """Attention over some of the keys: what it takes to put it together with the others."""

    top: Float[Array, "K B R"]  # largest score
    total: Float[Array, "K B R"]  # sum of exp(score - top)
    out: Float[Array, "K B R H"]  # sum of exp(score - top) · value


def _part(q: Float[Array, "K B R H"], kv: KV, mask: Array | None, dtype: Any) -> _Part:
    """Attention over kv, each of whose rows serves as many queries as there are; mask: of the keys
    that a row's queries see, broadcastable to [rows, S]."""
    n, H, S = kv.k.shape
    kind = layers.cache_dtype(dtype)
    product = partial(
        lax.dot_general,
        precision=lax.Precision.HIGHEST if kind == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    dims = (((2,), (1,)), ((0,), (0,)))
    score = product(q.astype(kind).reshape(n, -1, H), kv.k, dims)
    if mask is not None:
        heads = score.reshape(len(q), -1, score.shape[1], S)
        score = jnp.where(mask[None, :, None], heads, -jnp.inf).reshape(score.shape)
    top = jnp.max(score, axis=-1)
    weight = jnp.exp(score - top[..., None])
    out = product(weight.astype(kind), kv.v, dims)
    total = jnp.sum(weight, axis=-1)
    return _Part(top.reshape(q.shape[:3]), total.reshape(q.shape[:3]), out.reshape(q.shape))


def _of_prompts(q: Array, kv: KV, mask: Bool[Array, "Q S"], s: Slots, dtype: Any) -> _Part:
    """Queries go to the prompt that they see, and what they saw comes back: prompts stay put."""
    seen = _part(jnp.take(q, s.table.reshape(-1), axis=1), kv, mask, dtype)
    return _Part(*(jnp.take(x, s.cell, axis=1) for x in seen))


def _merge(parts: Sequence[_Part]) -> Float[Array, "K B R H"]:
    top = reduce(jnp.maximum, (p.top for p in parts))
    total, out = jnp.zeros(()), jnp.zeros(())
    for p in parts:
        share = jnp.exp(p.top - top)
        total, out = total + p.total * share, out + p.out * share[..., None]
    return out / total[..., None]
