"""Two whole rounds on SmolLM2-135M-Instruct, on a laptop's CPU, in a few minutes.

    bash launch/quickstart.sh

Sizes are the smallest with which every stage has something to do: enough to see the loop turn and
to read what it wrote, far too little to learn much. configs/follower_rules.py learns.
"""

from default import Config
from smollm2 import get_config as smollm2


def get_config() -> Config:
    c = smollm2()
    c.rounds = 2
    c.data.limit = 10
    role = c.instructor
    role.rollout_prompts = role.optimizer_prompts = 6
    role.group_size, role.max_response_tokens = 3, 72
    role.max_prompt_tokens = 320  # leaves out the one seed that brings a long text
    role = c.follower
    role.rollout_prompts = role.optimizer_prompts = 3
    role.group_size, role.max_response_tokens = 4, 48
    c.generate.prompts, c.generate.temperature = 10, 0.5
    c.judger.batch_size = 48
    c.checkpoint.every_steps = 100
    return c
