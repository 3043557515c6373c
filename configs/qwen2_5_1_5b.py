"""Qwen2.5-1.5B-Instruct with the paper's numbers.

    seif run --config=configs/qwen2_5_1_5b.py --workdir=DIR --config.data.seeds=SEEDS.parquet

Planned, not measured. The family is read (qwen2); one device must hold the weights, their
gradient and AdamW's moments in float32: 1.5 x 16 = 25 GB, besides activations.
Hardware to be planned for: 8 accelerators of 80 GB.
"""

from default import Config
from default import get_config as default


def get_config() -> Config:
    c = default()
    c.model = "Qwen/Qwen2.5-1.5B-Instruct"
    c.mesh.tensor, c.mesh.sequence = 2, 4
    c.sample_batch, c.filter.batch_size, c.judger.batch_size = 32, 16, 16
    return c
