"""The jitted programs of inference: sampling, and the log-probabilities of the next token."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from seif_jax.models import forward, layers, logits
from seif_jax.models.layers import Config, Segment
from seif_jax.models.tree import read
from seif_jax.sampling.methods import Method, pick


class Samples(NamedTuple):
    """As jax arrays inside the program, as numpy outside."""

    tokens: Any  # int32 [B, C], right-padded with 0
    logp: Any  # float32 [B, C], of each token, as `methods.pick` says
    lengths: Any  # int32 [B]; the stop token, where there is one, included
    stopped: Any  # bool [B], ended by a stop token; False: cut at C tokens


class State(NamedTuple):
    """Carried through the decoding loop."""

    step: Int[Array, ""]
    hidden: Float[Array, "B D"]  # final hidden state of the last token: says what comes next
    # A layer's keys, values of the completions [K·B, C, H]: as attention reads them, or XLA's CPU
    # backend would update a copy for it in every step.
    cache: list[tuple[Array, Array]]
    out: Samples


def unstack(stacked: Mapping[str, Any]) -> list[Any]:
    """Each layer's weights as arrays of their own: decoding is unrolled over layers, as a scan
    would copy every weight in every step, and slices inside the program are slower on a CPU."""
    return [_layer(stacked, i) for i in range(len(jax.tree.leaves(stacked)[0]))]


@jax.jit
def _layer(stacked: Mapping[str, Any], i: Int[Array, ""]) -> Any:
    def take(w: Array) -> Array:
        return layers.from_bits(lax.dynamic_index_in_dim(layers.as_bits(w), i, keepdims=False))

    return jax.tree.map(take, stacked)


@partial(jax.jit, static_argnames=("c", "group", "max_tokens", "method", "stop_ids", "dtype"))
def sample(
    c: Config,
    params: Mapping[str, Any],
    unstacked: Sequence[Any],
    prefix: Int[Array, "S"],
    prompts: Int[Array, "P T"],
    lengths: Int[Array, "P"],
    keys: Array,
    *,
    group: int,
    max_tokens: int,
    method: Method,
    stop_ids: tuple[int, ...],
    dtype: Any,
) -> Samples:
    """Samples `group` completions of each prompt, all in one program.

    Prompts follow the common prefix and are right-padded; prefix and prompts are computed once,
    however many samples attend to them. `keys` [B] holds one key per sample: a sample depends on
    its prompt and its key alone, not on what else is in the batch. Ends when all have stopped.
    """
    last, context = read(c, params, prefix, prompts, lengths, dtype=dtype)
    B = prompts.shape[0] * group
    start = prefix.shape[0] + jnp.repeat(lengths, group)
    past = [[Segment(s.k[i], s.v[i], s.mask) for s in context] for i in range(c.layers)]

    uniform = jax.vmap(lambda key: jax.random.uniform(key, (max_tokens,)))(keys).T

    def record(out: Samples, step: Array, token: Array, logp: Array) -> Samples:
        live = ~out.stopped
        stop = jnp.isin(token, jnp.array(stop_ids, jnp.int32)) if stop_ids else False
        return Samples(
            out.tokens.at[:, step].set(jnp.where(live, token, 0)),
            out.logp.at[:, step].set(jnp.where(live, logp, 0.0)),
            out.lengths + live,
            out.stopped | (live & stop),
        )

    def advance(cache: list, step: Array, token: Array) -> tuple[Array, list]:
        """Hidden state after `token`, whose keys and values enter the cache at `step`."""
        r = layers.rope(c, (start + step)[:, None])
        x = layers.embed(params["embed"], token)[:, None]
        seen = (jnp.arange(max_tokens) <= step)[None, None]
        grown: list[tuple[Array, Array]] = []
        for w, before, kv in zip(unstacked, past, cache, strict=True):

            def see(k: Array, v: Array, before: list[Segment] = before, kv: tuple = kv):
                at = (0, step, 0)
                new = (x.reshape(-1, 1, c.head_dim) for x in (k, v))
                kv = tuple(map(partial(lax.dynamic_update_slice, start_indices=at), kv, new))
                grown.append(kv)
                k, v = (x.reshape(c.kv_heads, B, max_tokens, c.head_dim) for x in kv)
                return [*before, Segment(k, v, seen)]

            x, _ = layers.block(c, w, x, r, see, dtype)
        return layers.rms_norm(x[:, 0], params["norm"], c.norm_eps), grown

    def decode(s: State) -> State:
        token, logp = pick(logits(params, s.hidden, dtype), uniform[s.step], method)
        hidden, cache = advance(s.cache, s.step, token)
        return State(s.step + 1, hidden, cache, record(s.out, s.step, token, logp))

    empty = jnp.zeros((c.kv_heads * B, max_tokens, c.head_dim), layers.cache_dtype(dtype))
    out = Samples(
        jnp.zeros((B, max_tokens), jnp.int32),
        jnp.zeros((B, max_tokens), jnp.float32),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(B, bool),
    )
    first = State(jnp.int32(0), jnp.repeat(last, group, axis=0), [(empty, empty)] * c.layers, out)
    return lax.while_loop(
        lambda s: (s.step < max_tokens) & ~jnp.all(s.out.stopped), decode, first
    ).out


@partial(jax.jit, static_argnames=("c", "options", "dtype"))
def next_logp(
    c: Config,
    params: Mapping[str, Any],
    prefix: Int[Array, "S"],
    stems: Int[Array, "P T"],
    stem_lengths: Int[Array, "P"],
    leaves: Int[Array, "B C"],
    leaf_lengths: Int[Array, "B"],
    *,
    options: tuple[int, ...],
    dtype: Any,
) -> Float[Array, "B O"]:
    """Log-probability of each of `options` (token ids) as what follows each leaf.

    Requests form a tree: all share the prefix, B/P consecutive leaves share a stem; each is
    computed once.
    """
    _, context = read(c, params, prefix, stems, stem_lengths, dtype=dtype)
    start = prefix.shape[0] + jnp.repeat(stem_lengths, leaves.shape[0] // stems.shape[0])
    positions = start[:, None] + jnp.arange(leaves.shape[1])
    hidden, _ = forward(c, params, leaves, positions, context, dtype=dtype)
    last = jnp.take_along_axis(hidden, leaf_lengths[:, None, None] - 1, axis=1)[:, 0]
    logp = jax.nn.log_softmax(logits(params, last, dtype), axis=-1)
    return logp[:, jnp.array(options)]
