"""Writes adapter_*.npz: logits that peft computes for small random models with random adapters.

    python -m venv V && V/bin/pip install torch==2.13.0 transformers peft safetensors
    V/bin/python tests/reference/make_adapters.py

Each file holds config.json, PEFT's config, the seeds of weights and adapter, the names and shapes
under which peft saves an adapter, input ids and float32 logits. Weights as in make_logits.py.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from make_logits import BASE, weights

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # heads wider than the model, so that no two sides of a projection are of one size
    "qwen3": ({"head_dim": 12}, {"r": 3, "lora_alpha": 12.0, "target_modules": ALL}),
    "qwen2": ({}, {"r": 8, "lora_alpha": 4.0, "target_modules": ["q_proj", "v_proj"]}),
}


def main() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch = importlib.import_module("torch")  # in no environment of this project
    peft = importlib.import_module("peft")
    for seed, (kind, (changes, lora)) in enumerate(CASES.items(), 41):
        config = {**BASE, "model_type": kind, **changes}
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval().float()
        drawn = weights({n: tuple(p.shape) for n, p in base.named_parameters()}, seed)
        base.load_state_dict({n: torch.from_numpy(v) for n, v in drawn.items()})
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **lora)).eval()
        shapes = {n: tuple(p.shape) for n, p in peft.get_peft_model_state_dict(model).items()}
        drawn = {n: torch.from_numpy(v) for n, v in weights(shapes, seed + 100).items()}
        peft.set_peft_model_state_dict(model, drawn)
        ids = np.random.default_rng(seed).integers(0, config["vocab_size"], (2, 24))
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)).logits.numpy()
            with model.disable_adapter():
                change = np.abs(logits - model(torch.from_numpy(ids)).logits.numpy()).mean()
        np.savez_compressed(
            Path(__file__).parent / f"adapter_{kind}.npz",
            config=json.dumps(config), lora=json.dumps(lora), seed=seed, shapes=json.dumps(shapes),
            ids=ids.astype(np.int32), logits=logits,
        )  # fmt: skip
        print(kind, logits.shape, float(np.abs(logits).mean()), "change", float(change))


if __name__ == "__main__":
    main()
