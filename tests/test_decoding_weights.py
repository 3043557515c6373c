"""Decoding reads the layers' weights in the memory of the stack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from seif_jax import models
from seif_jax.sampling import Engine, row_keys, session
from seif_jax.sampling.methods import Method
from seif_jax.sampling.weights import decoding_layers, embedding_table, layer


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_views_on_the_cpu(dtype):
    model = models.describe({**tiny.tiny_config(96), "hidden_size": 64, "num_hidden_layers": 3})
    params = jax.tree.map(lambda x: x.astype(dtype), models.init(model, 2))
    layers = decoding_layers(params["layers"])
    for i in range(3):
        for name, view in layer(layers, i).items():
            stack = params["layers"][name]
            np.testing.assert_array_equal(view, stack[i])
            offset = view.unsafe_buffer_pointer() - stack.unsafe_buffer_pointer()
            if view.nbytes % 64 == 0:
                assert offset == i * view.nbytes, name
    table = embedding_table(params["embed"])
    assert table.unsafe_buffer_pointer() == params["embed"].unsafe_buffer_pointer()


def test_stacked_layers_give_the_same_samples(monkeypatch):
    """As on TPUs."""
    model = models.describe(tiny.tiny_config(96))
    params = models.init(model, 4)

    def sample():
        keys = row_keys(jax.random.key(0), range(4))
        samples = Engine(model.config, params, jnp.float32).sample(
            [[5, 6, 7], [8, 9]], keys, group=2, max_tokens=9, method=Method(1.0, 0, 1.0),
            stop_ids=(), batch_size=4,
        )  # fmt: skip
        return [sample.tokens.tolist() for sample in samples]

    expected = sample()
    monkeypatch.setattr(session, "decoding_layers", lambda stacked: stacked)
    assert sample() == expected
