"""SmolLM2-135M-Instruct learns rule-checked constraints: one Follower stage, KL penalty on.

    seif run --config=configs/follower_rules.py --workdir=DIR --config.seed=0

Hardware: a CPU. Measured on 2 shared Xeon cores with AMX (2026-11-22): 14m53s and 5.4 GB. Expected
result, over two seeds: the share of constraints met rises from 0.34 to 0.66 for the trained kinds
and from 0.31 to 0.40 for the held-out ones. The control, --config.grpo.advantage=zero, learns
nothing.
"""

from default import Config
from smollm2 import get_config as smollm2

TRAINED = (
    "punctuation:no_comma",
    "length_constraints:number_words",
    "keywords:existence",
    "detectable_format:title",
    "detectable_format:number_bullet_lists",
    "detectable_content:postscript",
    "change_case:capital_word_frequency",
)
HELD_OUT = (  # kinds that the untrained model often fails, so that there is something to gain
    "length_constraints:number_sentences",
    "keywords:frequency",
    "startend:end_checker",
    "detectable_format:number_highlighted_sections",
)


def get_config() -> Config:
    c = smollm2()
    c.rounds = 1
    c.stages = ("follower",)
    c.reward.checks = ("ifeval",)
    c.data.rules.kinds = TRAINED
    c.data.rules.first, c.data.rules.last = 0, 54
    c.follower.epochs = (2,)
    c.follower.rollout_prompts = c.follower.optimizer_prompts = 6
    c.follower.group_size, c.follower.micro_tokens = 6, 1536
    c.follower.max_prompt_tokens, c.follower.max_response_tokens = 192, 64
    c.optim.learning_rate = 3e-5
    c.optim.warmup_updates = 2
    c.grpo.kl_coef = 0.02
    c.eval.every_steps = 18
    c.eval.sets.trained = c.data.rules.copy_and_resolve_references()
    c.eval.sets.trained.last = 48
    c.eval.sets.held_out = c.data.rules.copy_and_resolve_references()
    c.eval.sets.held_out.kinds = HELD_OUT
    c.eval.sets.held_out.first, c.eval.sets.held_out.last = 72, 163
    c.checkpoint.every_steps = 100
    return c
