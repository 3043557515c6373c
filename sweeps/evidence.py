"""Does self-evolution work, and what does each part add? Six arms, three seeds of the first three.

    seif sweep --config=evidence_cpu --sweep=evidence --workdir=DIR --launcher=local \
        --config.data.seeds=FILE

Twelve runs, in the order of their importance. The Follower takes 24 steps in each of them.
"""

ARMS = {
    "full": {},  # three rounds, rules and then the last round's Follower judge
    "no_evolution": {"stages": ("generate", "follower")},  # the Instructor is never trained
    "random_verdicts": {"reward.checks": ("judge",), "judger.mode": "random"},  # the floor
    "one_round": {"rounds": 1, "instructor.steps": 9, "follower.steps": 24},  # no alternation
    "learnability": {"instructor.reward": "learnability", "answer.samples": 4},
    "rules_only": {"reward.checks": ("ifeval",)},
}
THREE_SEEDS = ("full", "no_evolution", "random_verdicts")


def sweep(add):
    for seed in range(3):
        for name, values in ARMS.items():
            if seed == 0 or name in THREE_SEEDS:
                add(f"{name}-seed_{seed}", seed=seed, **values)
