"""DeepSeek-R1-Distill-Qwen-14B with the paper's numbers.

    seif run --config=configs/deepseek_r1_qwen_14b.py --workdir=DIR

Planned with `seif plan --topology=v5p:4x4x4`, not run: on 64 chips of 95 GiB all programs fit, the
largest (instructor, rollout: store) takes 79.7 GiB. If every prompt and sample has the greatest
length, a step takes at least 18 minutes for the Instructor and 14 for the Follower; at a mean of
1,000 tokens per response, at least 101 and 66 seconds. Mesh and batches are chosen for that slice;
docs/plan.md has others. Its chat template opens <think> itself: the thoughts of a reply are removed
before parsing and judging, and the format is therefore `plain`.

On NVIDIA GPUs: two nodes of eight H100 80GB (`--topology=h100:2x8`, planned as well, not run) with
XLA_CLIENT_MEM_FRACTION=0.9 and --config.mesh.tensor=8 --config.mesh.sequence=2: the largest program
(instructor, rollout: prefill) takes 62.2 of the 71.2 GiB that JAX may allocate on a GPU. If every
prompt and sample has the greatest length, a step takes at least 62 minutes for the Instructor and
48 for the Follower; at a mean of 1,000 tokens per response, at least 210 and 162 seconds.
"""

from default import Config
from default import get_config as default


def get_config() -> Config:
    c = default()
    c.model = "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"
    c.format = "plain"
    c.mesh.tensor = 4
    c.sample_batch, c.filter.batch_size, c.judger.batch_size = 64, 32, 32
    return c
