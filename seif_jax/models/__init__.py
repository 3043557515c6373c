"""Decoder models: made, loaded, exported and run, the same way for every family.

Weights are nested dicts of arrays, `{"embed": [V, D], "layers": {"q": [L, D, N, H], …}, …}`; the
nnx modules of a family say their names, shapes, axes and initialisation and do nothing else.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from seif_jax import run_paths
from seif_jax.errors import UserError
from seif_jax.models import decoder, layers, llama, mistral, qwen2, qwen3
from seif_jax.models.io import gguf, hf
from seif_jax.models.io.to_device import (
    Index,
    ShardingRule,
    fill,
    finite,
    same_bits,
    single_device,
    to_host,
)
from seif_jax.models.layers import ModelConfig, Segment

FAMILIES = {  # by config.json's model_type
    "llama": llama.config,
    "mistral": mistral.config,
    "qwen2": qwen2.config,
    "qwen3": qwen3.config,
}

HEAD = decoder.NAMES["head"]  # some files of tied models hold it, too

Params = dict[str, Any]


class Source(Protocol):
    """A checkpoint as Hugging Face names and layouts, whatever file holds it."""

    config: dict[str, Any]

    def names(self) -> list[str]: ...
    def get(self, name: str) -> np.ndarray: ...  # read when it is asked for, or where it is sliced


class Model(NamedTuple):
    """What is fixed about a model: its shape, and what its config.json said."""

    config: ModelConfig
    hf_config: dict[str, Any]


EMBEDDED = "smollm2"  # names the embedded SmolLM2-135M-Instruct wherever a model is asked for


def find_local(path: str | Path | None) -> Path | None:
    """Where a model lies on this machine; None: it is a name on the Hugging Face hub.

    path: None or "smollm2" is the embedded model (a folder of that name is written "./smollm2").
    """
    if path is None or path == EMBEDDED:
        return gguf.embedded_path()
    found = Path(path).expanduser()
    return found if found.exists() or not hf.HUB_NAME.fullmatch(str(path)) else None


def resolve(path: str | Path | None) -> Path:
    """`find_local`, or a download from the Hugging Face hub.

    Raises UserError if there is no such model, or only a part of one.
    """
    found = find_local(path)
    run_paths.check_model(found or Path(str(path)))
    found = found or hf.download(str(path))
    if not found.exists():
        raise UserError(
            f"{path}: no such file or folder (the embedded model is called {EMBEDDED!r}, a model "
            "on the Hugging Face hub 'ORGANISATION/NAME')"
        )
    return found


def open_source(path: Path) -> Source:
    """A GGUF file or a Hugging Face folder."""
    return gguf.open_gguf(path) if path.suffix == ".gguf" else hf.open_hf(path)


def describe(hf_config: dict[str, Any], source: str | Path | None = None) -> Model:
    """Reads config.json. source: what holds it, named in errors.

    Raises UserError, naming the key: an unknown model_type, a missing or impossible value, or
    something that is not computed here.
    """
    try:
        kind = hf_config.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise UserError(f"model_type {kind!r} is not supported, only {', '.join(FAMILIES)}")
        return Model(FAMILIES[kind](hf_config), hf_config)
    except UserError as error:
        raise UserError(f"{source}: {error}" if source else str(error)) from None


def _module(model: Model, seed: int = 0) -> nnx.Module:
    return decoder.Decoder(model.config, nnx.Rngs(seed))


def init(model: Model, seed: int) -> Params:
    """Random float32 weights."""
    return nnx.to_pure_dict(nnx.state(_module(model, seed)))


def weights(model: Model) -> dict[str, nnx.Param]:
    """Every weight by its path ("layers/q"), with shape, dtype and `axes`; nothing allocated."""
    state = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: _module(model))))
    return {"/".join(map(str, path)): param for path, param in state}


def shapes(model: Model, dtype: Any = jnp.float32, rule: ShardingRule = single_device) -> Params:
    """The tree of weights as `jax.ShapeDtypeStruct`, each where `rule` says."""
    flat = {
        key: jax.ShapeDtypeStruct(param.shape, dtype, sharding=rule(param.axes, param.shape))
        for key, param in weights(model).items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


class Stored(NamedTuple):
    """A weight as files hold it: one layer of a stack."""

    name: str  # Hugging Face's
    key: str  # ours
    layer: int | None
    shape: tuple[int, ...]  # ours, without the layer
    flat: tuple[int, ...]  # the file's, where a head and its dimensions are one axis


def stored_weights(model: Model) -> list[Stored]:
    """Every weight of the model's files, the layers of a stack in order."""
    found = []
    for key, param in weights(model).items():
        stacked = param.axes[0] == "layer"
        shape = param.shape[stacked:]
        flat = flat_shape(shape, param.axes[stacked:])
        for i in range(param.shape[0]) if stacked else [None]:
            found.append(Stored(decoder.NAMES[key].format(i), key, i, shape, flat))
    return found


def num_params(model: Model) -> int:
    """Number of parameters."""
    return sum(math.prod(one.flat) for one in stored_weights(model))


def expected(source: Source, model: Model) -> list[Stored]:
    """The weights of the model; UserError: the source lacks one of them, or has others."""
    found = stored_weights(model)
    wanted = {one.name: one.flat for one in found}
    given = set(source.names())
    if missing := wanted.keys() - given:
        name = min(missing)
        raise UserError(f"weight {name} is missing, of shape {wanted[name]} ({len(missing)} such)")
    if unknown := given - wanted.keys() - ({HEAD} if model.config.tied else set()):
        name = min(unknown)
        raise UserError(
            f"weight {name} of shape {source.get(name).shape} is not one of this model's "
            f"({len(unknown)} such)"
        )
    return found


def _read(
    source: Source, model: Model, one: Stored, index: Index = (), scan: bool = True
) -> np.ndarray:
    """The part of a weight at `index`, in our shape and the source's dtype, checked."""

    def part(name: str) -> np.ndarray:
        value = source.get(name)
        if value.shape != one.flat:
            raise UserError(f"weight {name} has shape {value.shape}, not {one.flat}")
        return value.reshape(one.shape)[index]

    value = part(one.name)
    if scan and not finite(value):
        bad = int(np.sum(~np.isfinite(value)))
        raise UserError(f"weight {one.name} {one.flat}: values that are NaN or infinite: {bad}")
    if one.key == "embed" and model.config.tied and HEAD in source.names():
        if not same_bits(value, part(HEAD)):
            raise UserError(
                f"config.json ties the output projection to the embedding, but {HEAD} {one.flat} "
                f"differs from {one.name}"
            )
    return value


def load(
    source: Source,
    model: Model,
    dtype: Any = jnp.float32,
    rule: ShardingRule = single_device,
    scan: bool = True,
) -> Params:
    """All weights, each where `rule` says; a process reads what its own devices hold, once.

    UserError, with name and shape: missing, unexpected or misshaped weights, a tied model's own
    output projection, with `scan` NaN and infinity.
    """

    def read(held: list[Stored], index: Index) -> Iterator[tuple[int, np.ndarray]]:
        if held[0].layer is None:
            yield 0, _read(source, model, held[0], index, scan)
            return
        for i, one in enumerate(held[index[0]]):
            yield i, _read(source, model, one, index[1:], scan)[None]

    params, flat = weights(model), {}
    for key, held in groupby(expected(source, model), lambda one: one.key):
        param = params[key]
        flat[key] = fill(
            param.shape, dtype, rule(param.axes, param.shape), partial(read, list(held))
        )
    return traverse_util.unflatten_dict(flat, sep="/")


def copy(
    source: Source, model: Model, dtype: Any, scan: bool = True
) -> Iterator[tuple[str, np.ndarray]]:
    """What `export` gives of what `load` loads, straight from the source, one at a time."""
    for one in expected(source, model):
        value = _read(source, model, one, scan=scan)
        yield one.name, value.reshape(one.flat).astype(dtype, copy=False)


def export(model: Model, params: Params, dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Weights under their Hugging Face names and in their layout, one at a time."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for one in stored_weights(model):
        value = to_host(cast(jax.Array, flat[one.key]), one.layer)
        yield one.name, value.reshape(one.flat).astype(dtype, copy=False)


def flat_shape(shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[int, ...]:
    """Shape in Hugging Face's files, where a head and its dimensions are one axis."""
    if "head_dim" not in axes:
        return shape
    i = axes.index("head_dim")
    return (*shape[: i - 1], shape[i - 1] * shape[i], *shape[i + 1 :])


def forward(
    c: ModelConfig,
    params: Mapping[str, Any],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    context: Sequence[Segment] = (),
    *,
    dtype: Any,
) -> tuple[Float[Array, "B T D"], Segment]:
    """Runs T new tokens after `context`; layers are scanned.

    context: keys and values of what came before, stacked over layers: k, v [L, K, b, S, H], mask
    [b, 1, S]. Within the new tokens attention is causal by index; a row's padding must therefore
    be on the right, where nothing that counts can see it.

    Returns the final hidden state (normed, float32) and the new keys and values, k, v
    [L, K, B, T, H] in `dtype` with a mask that hides nothing.
    """
    T = tokens.shape[1]
    r = layers.rope(c, positions)
    causal = jnp.tril(jnp.ones((1, T, T), bool))

    def layer(x: Array, scanned: tuple[Any, list[tuple[Array, Array]]]):
        w, before = jax.tree.map(layers.from_bits, scanned)
        past = [Segment(k, v, s.mask) for (k, v), s in zip(before, context, strict=True)]
        x, new = layers.block(c, w, x, r, lambda k, v: [*past, Segment(k, v, causal)], dtype)
        return x, (new.k, new.v)

    x = layers.embed(params["embed"], tokens)
    stacked = (params["layers"], [(s.k, s.v) for s in context])
    x, (k, v) = lax.scan(layer, x, jax.tree.map(layers.as_bits, stacked))
    hidden = layers.rms_norm(x, params["norm"], c.norm_eps)
    return hidden, Segment(k, v, jnp.ones((1, 1, T), bool))


def logits(
    params: Mapping[str, Any], hidden: Float[Array, "*B D"], dtype: Any
) -> Float[Array, "*B V"]:
    """Output projection, float32."""
    head = params["head"] if "head" in params else params["embed"]
    return layers.linear(hidden, head, dtype)


def length_mask(length: Int[Array, "b"], size: int) -> Bool[Array, "b 1 S"]:
    """Mask of a right-padded segment."""
    return (jnp.arange(size) < length[:, None])[:, None]
