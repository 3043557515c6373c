"""What each part of the loop is worth: one part changed at a time, three seeds of each.

seif sweep --config=FILE --sweep=sweeps/ablations.py --workdir=DIR --launcher=print

Twenty-seven runs. The schedules give each of three rounds its passes over the data, five in all.
"""

FRONT, EVEN, BACK = (3, 1, 1), (2, 2, 1), (1, 1, 3)
VARIANTS = {
    "full": {},  # nothing left out: rules and the last round's Follower judge, front-loaded
    "instructor_untrained": {"stages": ("generate", "follower")},
    "no_filter": {"filter.on": False, "generate.filter": False},
    "judge_rules": {"reward.checks": ("ifeval",)},
    "judge_self": {"reward.checks": ("judge",)},
    "judge_base": {"reward.checks": ("judge",), "judger.model": "base"},
    "judge_random": {"reward.checks": ("judge",), "judger.mode": "random"},  # the control
    "epochs_even": {"follower.epochs": EVEN},
    "epochs_back": {"follower.epochs": BACK},
}


def sweep(add):
    for seed in range(3):
        for name, values in VARIANTS.items():
            add(f"{name}-seed_{seed}", **{"follower.epochs": FRONT, "seed": seed, **values})
