"""DeepSeek-R1-Distill-Qwen-14B with the paper's numbers.

    seif run --config=configs/deepseek_r1_qwen_14b.py --workdir=DIR

Planned in part, not run: of `seif plan --topology=v5p:4x4x4` (64 chips of 95 GiB) update, rollout
and the Filter's prefill are compiled and fit, the largest being the gradient with 73.3 GiB; what
verdicts and answers decode with is not compiled yet. Mesh and batches are chosen for that slice.
Its chat template opens <think> itself: the thoughts of a reply are removed before parsing and
judging, and the format is therefore `plain`.
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
