"""The model card names what was trained from."""

import json

import pytest

from seif_jax.model_card import card
from seif_jax.run_paths import RunPaths


@pytest.mark.parametrize(
    ("model", "prints", "base", "front"),
    [
        (None, {"model": "1"}, "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("smollm2", {"model": "1"}, "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("org/name", {}, "org/name", True),
        ("models/mine", {"model": "1"}, "models/mine", False),  # relative to another folder
        ("/models/mine.gguf", {}, "/models/mine.gguf", False),
    ],
)
def test_the_base_model(model, prints, base, front, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    about = {"config": {"model": model, "rounds": 2}, "fingerprints": prints}
    (tmp_path / "config.json").write_text(json.dumps(about))
    text = card(RunPaths(tmp_path).stage(1, "follower"))
    assert f"Trained from `{base}` by seif_jax" in text
    assert (f"base_model: {base}\n" in text) == front
    assert f"# {base.split('/')[-1]} follower 1" in text
