"""vLLM's CPU build: `LLM.generate`. Run by serve.py."""

import os
import time

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process: its memory is all there is
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB

import vllm  # noqa: E402


def run(spec, say, wait):
    prompts = [{"prompt_token_ids": ids} for ids in spec["prompts"] for _ in range(spec["group"])]
    model = vllm.LLM(
        model=spec["model"],
        dtype=spec["dtype"],
        max_model_len=max(map(len, spec["prompts"])) + spec["new_tokens"],
        max_num_seqs=len(prompts),
        enable_prefix_caching=False,  # a repetition would find the last one's prompts
        seed=0,
    )

    settings = [
        vllm.SamplingParams(temperature=1.0, max_tokens=n, min_tokens=n, ignore_eos=True)
        for n in spec["lengths"]
    ]

    def sample():
        out = model.generate(prompts, settings, use_tqdm=False)
        return sum(len(sampled.token_ids) for request in out for sampled in request.outputs)

    sample()
    say(ready={"vllm": vllm.__version__})
    while wait():
        start = time.perf_counter()
        tokens = sample()
        say(secs=time.perf_counter() - start, tokens=tokens, phases={})
