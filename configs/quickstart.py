"""Two rounds of all three stages on SmolLM2-135M-Instruct: the smallest complete run.

    bash launch/quickstart.sh

Hardware: a CPU. Measured on 2 shared AMD cores (2026-11-28): 3m10s, a fifth of it spent
compiling, and 4.5 GB. Expected result: the table in the README. The run shows every stage and
writes samples to read, but it is far too short to learn much; configs/follower_rules.py learns.
"""

from default import Config
from smollm2 import get_config as smollm2


def get_config() -> Config:
    c = smollm2()
    c.rounds = 2
    c.sample_batch = 12
    c.data.limit = 10
    role = c.instructor
    role.rollout_prompts = role.optimizer_prompts = 6
    role.group_size, role.max_response_tokens = 3, 72
    role.max_prompt_tokens = 320  # drops the one seed that contains a long text
    role = c.follower
    role.rollout_prompts = role.optimizer_prompts = 3
    role.group_size, role.max_response_tokens = 4, 48
    c.instructor.micro_tokens = c.follower.micro_tokens = 3072  # one pass per update
    c.generate.prompts, c.generate.temperature = 10, 0.5
    c.judger.batch_size = 48
    c.checkpoint.every_steps = 100
    return c
