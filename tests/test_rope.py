"""Rotary settings of config.json: the angles of transformers' own code, or a refusal by name.

transformers computes angles with torch, which is not installed here; a few lines of numpy stand in
for what that code uses of it.
"""

import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config
from transformers import AutoConfig, modeling_rope_utils

from seif_jax import models
from seif_jax.errors import UserError

ORIGINAL = "original_max_position_embeddings"
LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 512}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    ORIGINAL: 128,
}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


class Tensor(np.ndarray):
    """The methods of a torch tensor that the angles need."""

    def to(self, device: Any = None, dtype: Any = np.float64) -> "Tensor":
        return self.astype(dtype).view(Tensor)

    def float(self) -> "Tensor":
        return self.to()


TORCH = ModuleType("torch")
vars(TORCH).update(
    int64=np.int64,
    float=np.float64,
    float32=np.float64,
    arange=lambda *bounds, dtype=None, device=None: np.arange(*bounds, dtype=dtype).view(Tensor),
    tensor=lambda values, dtype=None, device=None: np.array(values, np.float64).view(Tensor),
    clamp=np.clip,
    where=lambda *arguments: np.where(*arguments).view(Tensor),
)


@pytest.fixture(autouse=True, scope="module")
def numpy_for_torch() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_rope_utils, "torch", TORCH, raising=False)
        yield
    logging.disable(logging.NOTSET)


def theirs(changes: dict[str, Any], family: str = "llama") -> tuple[np.ndarray, float]:
    """As LlamaRotaryEmbedding of transformers has it."""
    config: Any = AutoConfig.for_model(**hf_config(changes, family))
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        theta, size = config.rope_parameters["rope_theta"], config.head_dim
        return 1.0 / theta ** (np.arange(0, size, 2) / size), 1.0
    angles, scale = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config)
    return np.asarray(angles), scale


def hf_config(changes: dict[str, Any], family: str) -> dict[str, Any]:
    config = {**tiny_config(96), "head_dim": 16, "model_type": family}
    del config["rope_theta"], config["torch_dtype"]
    return {**config, **changes}


def ours(changes: dict[str, Any], family: str = "llama") -> tuple[np.ndarray, float]:
    config = models.describe(hf_config({"sliding_window": None, **changes}, family)).config
    return np.array(config.rope_frequencies), config.rope_scale


def assert_same(changes: dict[str, Any], family: str = "llama") -> None:
    (got, got_scale), (wanted, scale) = ours(changes, family), theirs(changes, family)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    assert got_scale == pytest.approx(scale)


def plain(theta: float) -> np.ndarray:
    return theta ** -(np.arange(8) / 8)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        LINEAR,
        DYNAMIC,
        YARN,
        {**YARN, "factor": None},
        {**YARN, "beta_fast": 8, "beta_slow": 2, "truncate": False, "mscale": 1.0,
         "mscale_all_dim": 0.7},
        {**YARN, "attention_factor": 1.25, "factor": 40},
        {**YARN, "attn_factor": 0.8782488562869419},
        {"rope_type": "yarn", "factor": 2.5},
        LLAMA3,
        {**LLAMA3, ORIGINAL: 1024, "factor": 32, "low_freq_factor": 2, "high_freq_factor": 5.5},
    ],
)  # fmt: skip
def test_every_scaling_in_every_place(family: str, place: str, scaling: dict[str, Any]) -> None:
    for theta in (500.0, 1_000_000):
        assert_same({place: {**scaling, "rope_theta": theta}}, family)
        assert_same({place: dict(scaling), "rope_theta": theta}, family)
    old = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    assert_same({place: old}, family)


@pytest.mark.parametrize(
    "changes",
    [
        # Both places: the older one wins, with its own theta, the outer one or the default.
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": LINEAR, "rope_parameters": YARN, "rope_theta": 5e5},
        {"rope_scaling": {**LLAMA3, "rope_theta": 5e5}, "rope_parameters": {"rope_theta": 5e5}},
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": LINEAR},
        {"rope_scaling": {}, "rope_parameters": {**YARN, "rope_theta": 5e5}},
        {"rope_scaling": None, "rope_parameters": LINEAR, "rope_theta": 5e5},
        # The theta inside wins over the one outside, the original context outside over that inside.
        {"rope_parameters": {**LINEAR, "rope_theta": 700}, "rope_theta": 5e5},
        {"rope_scaling": YARN, ORIGINAL: 256},
        {"rope_scaling": LLAMA3, ORIGINAL: 64},
        {"rope_scaling": LINEAR, ORIGINAL: 64},
        {"partial_rotary_factor": 1.0, "rope_scaling": LINEAR},
        {"rope_theta": 16},
        {},
    ],
)
def test_what_wins(changes: dict[str, Any]) -> None:
    assert_same(changes)


def test_scalings_change_the_angles() -> None:
    """So that the comparisons above are of different numbers."""
    found = [ours({"rope_scaling": scaling})[0] for scaling in (LINEAR, YARN, LLAMA3)]
    assert not any(np.allclose(angles, plain(1e4)) for angles in found)
    np.testing.assert_allclose(ours({"rope_scaling": DYNAMIC})[0], plain(1e4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 5e5}},
            "rope_scaling replaces rope_parameters, so rope_theta is 10000.0 and not 500000.0",
        ),
        ({"rope_parameters": {"full_attention": LINEAR}}, "by layer type .'full_attention'"),
        (
            {"rope_scaling": {"sliding_attention": YARN, "full_attention": YARN}},
            "rope_scaling by layer type",
        ),
        ({"rope_parameters": {"full_attention": None}}, "'full_attention' is not a setting"),
        ({"rope_scaling": LONGROPE}, "rope scaling 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "'proportional' is not supported"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "'mrope' is not"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "default"}}, "rope_type and type differ"),
        ({"rope_scaling": {"factor": 8.0}}, "'factor' is not a setting of rope type 'default'"),
        ({"rope_scaling": {**LINEAR, "beta_fast": 2}}, "'beta_fast' is not a setting of .*linear"),
        ({"rope_scaling": {**DYNAMIC, ORIGINAL: 64}}, f"'{ORIGINAL}' is not a setting"),
        ({"rope_scaling": {**LLAMA3, "alpha": 2.0}}, "'alpha' is not a setting of .*llama3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "has no 'factor'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "has no 'factor'"),
        ({"rope_scaling": {**LINEAR, "factor": "4.0"}}, 'factor must be .* above 0 .got "4.0"'),
        ({"rope_scaling": {**LINEAR, "factor": None}}, "factor must be .* .got null"),
        ({"rope_scaling": {**YARN, "factor": [4]}}, r"factor must be .* .got \[4\]"),
        ({"rope_scaling": {**YARN, "factor": True}}, "factor must be .* .got true"),
        ({"rope_scaling": {**YARN, "factor": 0}}, "factor must be .* .got 0"),
        ({"rope_scaling": {**YARN, "factor": float("nan")}}, "factor must be .* .got NaN"),
        ({"rope_scaling": {**YARN, "truncate": None}}, "truncate must be true or false"),
        ({"rope_scaling": {**YARN, ORIGINAL: 512.0}}, f"{ORIGINAL} must be a whole number"),
        ({"rope_scaling": YARN, ORIGINAL: None}, f"{ORIGINAL} must be .* .got null"),
        ({"rope_scaling": {**YARN, "attention_factor": 0}}, "attention_factor must be"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, "high_freq_factor=1 must be more"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 5}}, "more than low_freq_factor=5"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type must be a string"),
        ({"rope_scaling": "yarn"}, 'rope_scaling must be an object .got "yarn"'),
        ({"rope_parameters": [LINEAR]}, "rope_parameters must be an object"),
        ({"rope_theta": "10000"}, 'rope_theta must be a number above 1 .got "10000"'),
        ({"rope_theta": None}, "rope_theta must be a number above 1 .got null"),
        ({"rope_parameters": {"rope_theta": 1}}, "rope_theta must be a number above 1 .got 1"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": None}}, "partial_rotary_factor=None is"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ours(changes)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


KINDS = ["default", "linear", "dynamic", "yarn", "llama3", "longrope", "proportional", "other"]
VALUES = st.one_of(
    st.sampled_from([None, True, False, "4.0", "yarn", [], [1.0] * 8, {}, 0, 1, 0.0, 1.0, -2.0]),
    st.integers(1, 4096),
    st.floats(0.25, 64),
)
KEYS = [
    "factor", ORIGINAL, "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale",
    "mscale_all_dim", "attention_factor", "truncate", "rope_theta", "partial_rotary_factor",
    "short_factor", "full_attention", "unknown",
]  # fmt: skip
SCALING = st.one_of(
    st.none(),
    st.builds(
        lambda base, changes, dropped: {
            key: value for key, value in {**base, **changes}.items() if key not in dropped
        },
        st.one_of(
            st.sampled_from([LINEAR, DYNAMIC, YARN, LLAMA3, LONGROPE]),
            st.builds(lambda kind: {"rope_type": kind}, st.sampled_from(KINDS)),
            st.builds(lambda kind: {"type": kind}, st.sampled_from(KINDS)),
        ),
        st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2),
        st.sets(st.sampled_from(["factor", "rope_type", ORIGINAL]), max_size=1),
    ),
)
CONFIGS = st.builds(
    lambda places, outer: {**places, **outer},
    st.fixed_dictionaries({}, optional={"rope_scaling": SCALING, "rope_parameters": SCALING}),
    st.dictionaries(
        st.sampled_from(["rope_theta", ORIGINAL, "partial_rotary_factor"]), VALUES, max_size=1
    ),
)


@settings(max_examples=300, deadline=None)
@given(CONFIGS)
def test_nothing_is_accepted_that_transformers_computes_otherwise(changes: dict[str, Any]) -> None:
    try:
        got = ours(changes)
    except UserError:
        return
    wanted = theirs(changes)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-9)
    assert got[1] == pytest.approx(wanted[1])
