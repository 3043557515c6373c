"""Learning rate x KL coefficient, around the paper's 1e-6 and 0.01; without KL no reference is
computed.

seif sweep --config=FILE --sweep=sweeps/learning_rate_kl.py --workdir=DIR --launcher=print

Nine runs.
"""


def sweep(add):
    for rate in (3e-7, 1e-6, 3e-6):
        for coef in (0.0, 0.01, 0.1):
            add(**{"optim.learning_rate": rate, "grpo.kl_coef": coef})
