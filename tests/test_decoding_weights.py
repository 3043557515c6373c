"""Decoding reads the layers' weights in the memory of the stack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from seif_jax import models
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
