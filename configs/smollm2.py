"""The embedded SmolLM2-135M-Instruct in all roles, three rounds.

    seif run --config=configs/smollm2.py --workdir=DIR

Hardware: a CPU or any accelerator. Duration and result are not measured; its smaller versions
quickstart.py and follower_rules.py are. A 135M model does not keep to the think_answer format, so
the format is plain, and as Instructor it needs few-shot turns and a prefill. Its verdicts are close
to guesses, so a rule decides where there is one.
"""

from default import Config
from default import get_config as default


def get_config() -> Config:
    c = default()
    c.format = "plain"
    c.sample_batch = 64
    for role in (c.instructor, c.follower):
        role.rollout_prompts, role.optimizer_prompts = 8, 8
        role.group_size, role.micro_tokens = 4, 1536
        role.max_prompt_tokens, role.max_response_tokens = 384, 128
    c.instructor.shots = 2
    c.instructor.prefill = '{"c1": "The response should'
    c.instructor.soft_share = 0.0
    c.follower.epochs = (1,)
    c.generate.prompts = 32
    for judge in (c.filter, c.judger):
        judge.mode = "verdict"
        judge.max_prompt_tokens, judge.max_tokens, judge.batch_size = 1024, 128, 16
    c.optim.learning_rate = 1e-5
    c.checkpoint.every_steps = 5
    return c
