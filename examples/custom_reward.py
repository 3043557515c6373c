"""A run with your own check: a reply that nearly meets its word limit gets partial credit.

    seif run --config=examples/custom_reward.py --workdir=runs/custom_reward

A config file can hold its checks. Here the Follower learns word limits, whose rule says met or not
met; `word_limit` decides first and says how nearly. Twelve steps of SmolLM2-135M-Instruct.
"""

from smollm2 import Config
from smollm2 import get_config as smollm2


def word_limit(row: dict, reply: str) -> float | None:
    """1 if the limit is met, less for every word too many or too few; None: no word limit."""
    if row["instruction_id"] != "length_constraints:number_words":
        return None  # the next check decides
    limit, words = row["kwargs"]["num_words"], len(reply.split())
    excess = limit - words if row["kwargs"]["relation"] == "at least" else words - (limit - 1)
    return max(0.0, 1.0 - max(0, excess) / limit)


def get_config() -> Config:
    c = smollm2()
    c.rounds, c.stages = 1, ("follower",)
    c.reward.checks = ("custom_reward:word_limit", "ifeval")
    c.data.rules.kinds = ("length_constraints:number_words", "punctuation:no_comma")
    c.data.rules.last = 72
    c.follower.rollout_prompts = c.follower.optimizer_prompts = 6
    c.follower.group_size = 6
    c.follower.max_response_tokens = 96
    c.optim.learning_rate = 3e-5
    return c
