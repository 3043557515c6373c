"""Qwen2.5-1.5B-Instruct with the paper's numbers.

    seif run --config=configs/qwen2_5_1_5b.py --workdir=DIR --config.data.seeds=SEEDS.parquet

Planned with `seif plan --topology=v5e:4x8`, not run: on 32 chips of 16 GiB all programs fit, the
largest (instructor, answers: prefill) takes 14.5 GiB. If every prompt and sample has the greatest
length, a step takes at least 18 minutes for the Instructor and 13 for the Follower; at a mean of
1,000 tokens per response, at least 91 and 60 seconds. Mesh and batches are chosen for that slice;
docs/plan.md has others.

On NVIDIA GPUs: one node of eight H100 80GB (`--topology=h100:8`, planned as well, not run) with
--config.mesh.sequence=1 --config.sample_batch=256 --config.filter.batch_size=128
--config.judger.batch_size=128: the largest program (instructor, rollout: prefill) takes 49.3 of the
59.3 GiB that JAX may allocate on a GPU. If every prompt and sample has the greatest length, a step
takes at least 12 minutes for the Instructor and 8 for the Follower; at a mean of 1,000 tokens per
response, at least 29 and 20 seconds.
"""

from default import Config
from default import get_config as default


def get_config() -> Config:
    c = default()
    c.model = "Qwen/Qwen2.5-1.5B-Instruct"
    c.mesh.tensor, c.mesh.sequence = 2, 4
    c.sample_batch, c.filter.batch_size, c.judger.batch_size = 32, 16, 16
    return c
