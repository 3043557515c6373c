"""Two whole rounds on SmolLM2-135M-Instruct, on a laptop's CPU, in a few minutes.

bash launch/quickstart.sh
"""

from ml_collections import ConfigDict
from smollm2 import get_config as smollm2


def get_config() -> ConfigDict:
    c = smollm2()
    c.rounds = 2
    c.data.limit = 16
    c.instructor.rollout_prompts = c.instructor.optimizer_prompts = 8
    c.follower.rollout_prompts = c.follower.optimizer_prompts = 4
    for role in (c.instructor, c.follower):
        role.micro_prompts = 4
        role.max_response_tokens = 64
    c.generate.prompts = 16
    c.checkpoint.every_steps = 100
    return c
