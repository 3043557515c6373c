"""Does self-evolution work, and what does each part add? Nine arms, most with three seeds.

    seif sweep --config=evidence_cpu --sweep=evidence --workdir=DIR --launcher=local \
        --config.data.seeds=FILE

The Follower takes 24 steps in each run. On a GPU, use --config=evidence_gpu, which has larger
batches.
"""

from pathlib import Path

EXAMPLES = Path(__file__).with_name("evidence_examples.toml")

ARMS = {
    "full": {},  # three rounds, rules and then the last round's Follower judge
    "no_evolution": {"stages": ("generate", "follower")},  # the Instructor is never trained
    "random_verdicts": {"reward.checks": ("judge",), "judger.mode": "random"},  # the floor
    "one_round": {"rounds": 1, "instructor.steps": 9, "follower.steps": 24},  # no alternation
    # The share of constraints met needs several answers to be estimated.
    "learnability": {"instructor.reward": "learnability", "answer.samples": 4},
    "rules_only": {"reward.checks": ("ifeval",)},
    "rules_only_no_evolution": {"reward.checks": ("ifeval",), "stages": ("generate", "follower")},
    # Two attempts to prevent the full arm's collapse to one phrase:
    "high_kl": {"grpo.kl_coef": 0.2},
    "other_examples": {"instructor.prompts": str(EXAMPLES)},
}
SEEDS = {"learnability": 1, "rules_only": 2, "rules_only_no_evolution": 2}  # the others have 3


def sweep(add):
    for seed in range(3):
        for name, values in ARMS.items():
            if seed < SEEDS.get(name, 3):
                add(f"{name}-seed_{seed}", seed=seed, **values)
