"""SmolLM2-135M-Instruct evolves for three rounds on one GPU: evidence_cpu.py at a larger size.

    seif sweep --config=evidence_gpu --sweep=evidence --workdir=DIR --launcher=local --jobs=4 \
        --config.data.seeds=FILE --config.eval.suites=ifeval=FILE,ifbench=FILE

With XLA_CLIENT_MEM_FRACTION=0.2, four runs fit on the GPU at once. The numbers of steps and updates
are those of evidence_cpu.py; a step has 192 samples (24 x 8) instead of 24 (Instructor) or 36
(Follower), replies may be longer, and there are 768 seed questions. With --config.eval.suites as
above, IFEval and IFBench are scored after every round, with greedy replies.
"""

from default import Config
from evidence_cpu import get_config as evidence_cpu


def get_config() -> Config:
    c = evidence_cpu()
    c.data.limit = 768
    c.sample_batch = 256
    for role in (c.instructor, c.follower):
        role.rollout_prompts, role.optimizer_prompts = 24, 24
        role.micro_tokens = 16384
    c.instructor.group_size = 8
    c.instructor.max_response_tokens = 96
    c.follower.group_size = 8
    c.follower.max_response_tokens = 256
    c.generate.prompts = 256
    c.filter.batch_size = c.judger.batch_size = 256
    c.eval.temperature = 0.0
    c.checkpoint.every_steps = 8
    return c
