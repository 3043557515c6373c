"""SmolLM2-135M-Instruct evolves for three rounds on a CPU: the config of sweeps/evidence.py.

    seif sweep --config=evidence_cpu --sweep=evidence --workdir=DIR --launcher=local \
        --config.data.seeds=FILE

FILE has short questions in a column `prompt`, such as the seeds of the SEIF release.
A round takes 3 Instructor steps, writes up to 96 instructions, and takes 8 Follower steps,
whatever share of the instructions is kept.
"""

from default import Config
from smollm2 import get_config as smollm2


def get_config() -> Config:
    c = smollm2()
    c.rounds = 3
    c.data.limit = 96
    role = c.instructor
    role.steps, role.rollout_prompts, role.optimizer_prompts = 3, 6, 6
    role.group_size, role.max_response_tokens = 4, 80
    role.max_prompt_tokens = 512
    role = c.follower
    role.steps, role.rollout_prompts, role.optimizer_prompts = 8, 6, 6
    role.group_size, role.max_response_tokens = 6, 96
    role.max_prompt_tokens, role.micro_tokens = 256, 2048
    c.generate.prompts = 64
    c.judger.batch_size = 48
    c.optim.learning_rate = 3e-5
    c.optim.warmup_updates = 2
    c.grpo.kl_coef = 0.02
    c.checkpoint.every_steps = 3
    return c
