"""DeepSeek-R1-0528-Qwen3-8B with the paper's numbers.

    seif run --config=configs/deepseek_r1_qwen3_8b.py --workdir=DIR

Planned, not measured. The family is read (qwen3, YaRN); one device must hold the weights, their
gradient and AdamW's moments in float32: 8.2 x 16 = 131 GB, besides activations.
A reasoning model writes its own <think> part, which is removed before parsing and judging; the
format is therefore `plain`.
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
