"""transformers: `generate`, and one forward pass per prompt. Run by serve.py."""

import time

import torch
import transformers


def run(spec, say, wait):
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        spec["model"], dtype=getattr(torch, spec["dtype"]), trust_remote_code=False
    ).eval()
    work = {"rollout": generate, "judge": forward}[spec["what"]](model, spec)
    with torch.inference_mode():
        work(warm=True)
        say(ready={"torch": torch.__version__, "transformers": transformers.__version__})
        while wait():
            start = time.perf_counter()
            tokens = work()
            say(secs=time.perf_counter() - start, tokens=tokens, phases={})


def generate(model, spec):
    """Samples at temperature 1, never stopped."""
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id = None, 0
    ids = torch.tensor(spec["prompts"]).repeat_interleave(spec["group"], 0)

    def work(warm=False):
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=4 if warm else spec["new_tokens"],
        )
        return out[:, ids.shape[1] :].numel()

    return work


def forward(model, spec):
    """The next token's probabilities after every prompt. Prompts share no computation."""
    batches = []
    for start in range(0, len(spec["prompts"]), spec["batch_size"]):
        part = [torch.tensor(ids) for ids in spec["prompts"][start : start + spec["batch_size"]]]
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(ids) for ids in part], batch_first=True, padding_side="left"
        )
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_side="left")
        batches.append((ids, mask))

    def work(warm=False):
        for ids, mask in batches[:1] if warm else batches:
            out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
            out.logits[:, -1].float().softmax(-1)
        return sum(map(len, spec["prompts"]))

    return work
