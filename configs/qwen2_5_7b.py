"""Qwen2.5-7B-Instruct with the paper's numbers.

    seif run --config=configs/qwen2_5_7b.py --workdir=DIR --config.data.seeds=SEEDS.parquet

Planned with `seif plan --topology=v5p:2x4x4`, not run: on 32 chips of 95 GiB all programs fit, the
largest (instructor, answers: prefill) takes 82.3 GiB. If every prompt and sample has the greatest
length, a step takes at least 12 minutes for the Instructor and 10 for the Follower; at a mean of
1,000 tokens per response, at least 85 and 53 seconds. Mesh and batches are chosen for that slice;
docs/plan.md has others.

On NVIDIA GPUs: one node of eight H100 80GB (`--topology=h100:8`, planned as well, not run) with
--config.mesh.tensor=4: the largest program (instructor, rollout: prefill) takes 50.4 of the 59.3
GiB that JAX may allocate on a GPU. If every prompt and sample has the greatest length, a step takes
at least 33 minutes for the Instructor and 25 for the Follower; at a mean of 1,000 tokens per
response, at least 110 and 79 seconds. At that mean, with --config.mesh.tensor=1 and
XLA_CLIENT_MEM_FRACTION=0.9, the gradient takes 62.1 of 71.2 GiB (docs/plan.md).
"""

from default import Config
from default import get_config as default


def get_config() -> Config:
    c = default()
    c.model = "Qwen/Qwen2.5-7B-Instruct"
    c.mesh.tensor = 2
    c.sample_batch, c.filter.batch_size, c.judger.batch_size = 128, 64, 64
    return c
