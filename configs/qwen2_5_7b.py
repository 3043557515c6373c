"""Qwen2.5-7B-Instruct with the paper's numbers.

    seif run --config=configs/qwen2_5_7b.py --workdir=DIR --config.data.seeds=SEEDS.parquet

Planned, not measured. The family is read (qwen2); one device must hold the weights, their
gradient and AdamW's moments in float32: 7.6 x 16 = 122 GB, besides activations.
Hardware to be planned for: 8 to 16 accelerators of 80 GB.
"""

from default import Config
from default import get_config as default


def get_config() -> Config:
    c = default()
    c.model = "Qwen/Qwen2.5-7B-Instruct"
    c.mesh.tensor = 2
    c.sample_batch, c.filter.batch_size, c.judger.batch_size = 128, 64, 64
    return c
