"""Llama-3.1-8B-Instruct with the paper's numbers.

    seif run --config=configs/llama3_1_8b.py --workdir=DIR --config.data.seeds=SEEDS.parquet

Planned with `seif plan --topology=v5p:2x4x4`, not run: on 32 chips of 95 GiB all programs fit, the
largest (follower, judge: store) takes 81.0 GiB. If every prompt and sample has the greatest length,
a step takes at least 22 minutes for the Instructor and 16 for the Follower; at a mean of 1,000
tokens per response, at least 111 and 71 seconds. Mesh and batches are chosen for that slice;
docs/plan.md has others.

On NVIDIA GPUs: one node of eight H100 80GB (`--topology=h100:8`, planned as well, not run) with
XLA_CLIENT_MEM_FRACTION=0.9 and --config.mesh.tensor=4: the largest program (follower, rollout:
prefill) takes 60.0 of the 71.2 GiB that JAX may allocate on a GPU. If every prompt and sample has
the greatest length, a step takes at least 63 minutes for the Instructor and 46 for the Follower; at
a mean of 1,000 tokens per response, at least 187 and 133 seconds.
"""

from default import Config
from default import get_config as default


def get_config() -> Config:
    c = default()
    c.model = "meta-llama/Llama-3.1-8B-Instruct"
    c.mesh.tensor = 2
    c.sample_batch, c.filter.batch_size, c.judger.batch_size = 64, 32, 32
    return c
