"""DeepSeek-R1-0528-Qwen3-8B with the paper's numbers.

    seif run --config=configs/deepseek_r1_qwen3_8b.py --workdir=DIR

Planned with `seif plan --topology=v5p:2x4x4`, not run: on 32 chips of 95 GiB all programs fit, the
largest (instructor, answers: store) takes 83.5 GiB. If every prompt and sample has the greatest
length, a step takes at least 23 minutes for the Instructor and 17 for the Follower; at a mean of
1,000 tokens per response, at least 116 and 74 seconds. Mesh and batches are chosen for that slice;
docs/plan.md has others. A reasoning model writes its own <think> part, which is removed before
parsing and judging; the format is therefore `plain`.

On NVIDIA GPUs: one node of eight H100 80GB (`--topology=h100:8`, planned as well, not run) with
XLA_CLIENT_MEM_FRACTION=0.9 and --config.mesh.tensor=4: the largest program (follower, rollout:
prefill) takes 61.0 of the 71.2 GiB that JAX may allocate on a GPU. If every prompt and sample has
the greatest length, a step takes at least 68 minutes for the Instructor and 49 for the Follower; at
a mean of 1,000 tokens per response, at least 195 and 139 seconds.
"""

from default import Config
from default import get_config as default


def get_config() -> Config:
    c = default()
    c.model = "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"
    c.format = "plain"
    c.mesh.tensor = 2
    c.sample_batch, c.filter.batch_size, c.judger.batch_size = 64, 32, 32
    return c
