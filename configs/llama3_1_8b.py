"""Llama-3.1-8B-Instruct with the paper's numbers.

    seif run --config=configs/llama3_1_8b.py --workdir=DIR --config.data.seeds=SEEDS.parquet

Planned, not measured. The family is read (rotary scaling `llama3` included); one device must hold
the weights, their gradient and AdamW's moments in float32: 8 x 16 = 128 GB, besides activations.
"""

from default import Config
from default import get_config as default


def get_config() -> Config:
    c = default()
    c.model = "meta-llama/Llama-3.1-8B-Instruct"
    c.mesh.tensor = 2
    c.sample_batch, c.filter.batch_size, c.judger.batch_size = 64, 32, 32
    return c
