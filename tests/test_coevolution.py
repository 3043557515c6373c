"""What a report computes with models: hidden states, their principal components, the pick."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from seif_jax import models
from seif_jax.instruction import Instruction
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.report import coevolution, coevolution_matrix
from seif_jax.report.coevolution_matrix import Cell
from seif_jax.report.run_files import RunFiles
from seif_jax.sampling import Engine

TEXTS = ["Say this.", "Use no commas, but three words.", "x", "Say this. " * 40, "Be kind."]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tiny_run.model_folder(tmp_path_factory.mktemp("models") / "model", num_hidden_layers=2)
    bundle = ModelBundle.load(str(folder))
    params = load_params(folder, bundle.model, jnp.float32)
    return Engine(bundle.model.config, params, jnp.float32), bundle.tokenizer


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_mean_states_are_those_of_each_text_alone(engine, monkeypatch, batch_tokens):
    model, tokenizer = engine
    monkeypatch.setattr(coevolution, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(coevolution, "MAP_TOKENS", 50)
    found = coevolution.mean_states(model, tokenizer, TEXTS)
    for text, state in zip(TEXTS, found, strict=True):
        ids = jnp.array([tokenizer.encode(text)[:50]])
        positions = jnp.arange(ids.shape[1])[None]
        (hidden,), _ = models.forward(model.config, model.params, ids, positions, dtype=jnp.float32)
        np.testing.assert_allclose(state, hidden.mean(0), atol=1e-5)


def test_principal_components_are_the_eigenvectors_of_the_covariance():
    rng = np.random.default_rng(5)
    states = rng.normal(size=(60, 7)) @ rng.normal(size=(7, 7)) + 3
    places, explained = coevolution.principal_components(states)
    values, vectors = np.linalg.eigh(np.cov(states.T))
    assert explained == pytest.approx(tuple((values / values.sum())[:-3:-1]))
    wanted = (states - states.mean(0)) @ vectors[:, :-3:-1]
    np.testing.assert_allclose(np.abs(places), np.abs(wanted), atol=1e-9)


@pytest.mark.parametrize("rows", [1, 2])
def test_few_texts_have_fewer_components(rows):
    places, explained = coevolution.principal_components(np.eye(4)[:rows])
    assert places.shape == (rows, 2) and np.isfinite(places).all() and np.isfinite(explained).all()


def test_the_same_instructions_are_picked_every_time():
    rows = [Instruction(f"q{i}", ("c",), f"q{i} c", ({},), ("soft",)) for i in range(50)]
    picked = coevolution.pick(rows, 20)
    assert picked == coevolution.pick(rows, 20) and len({row.prompt for row in picked}) == 20
    assert coevolution.pick(rows, 99) == rows


def test_matrix_is_drawn_with_intervals(tmp_path):
    run = RunFiles("r", tmp_path)
    assert coevolution_matrix.load(run) == [] and coevolution_matrix.chart([]) is None
    shares = {(0, 1): [0.5] * 8, (1, 1): [1.0, 0.0, None], (0, 2): [None]}
    cells = [Cell(f, r, 8, ["a", "b"], values) for (f, r), values in shares.items()]
    coevolution_matrix.save(run, cells)
    chart = coevolution_matrix.chart(coevolution_matrix.load(run))
    assert chart
    (trace,) = chart.figure["data"]
    assert list(trace["y"]) == ["base", "after round 1"]
    assert list(trace["x"]) == ["round 1", "round 2"]
    assert [list(row) for row in trace["z"]] == [[0.5, None], [0.5, None]]
    assert [list(row) for row in trace["text"]] == [
        ["50% (50% to 50%)", "–"], ["50% (0% to 100%)", "–"],
    ]  # fmt: skip
