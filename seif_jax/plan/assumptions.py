"""What a plan assumes, in the words that it is printed with."""

from seif_jax.plan import gpus
from seif_jax.plan.chips import Chip, platform_of
from seif_jax.plan.engine_programs import CONSTRAINTS

USABLE = 0.97  # of what JAX may allocate: the runtime keeps some, and free memory is fragmented
ALWAYS = (
    "every prompt and every sample has the maximum length that the config allows, and no two "
    "prompts start alike",
    f"every instruction has {CONSTRAINTS} constraints, and the Judger is asked about each of them",
    "memory is that of a round after the first, when roles share weights only if they always do",
    "a program fits if its arguments, temporaries and output, and the arrays that are resident at "
    f"the same time, take at most {USABLE:.0%} of the memory that JAX may allocate",
    "the seconds of a call are the largest of FLOPs, bytes of memory and bytes to other devices, "
    "each divided by the chip's peak rate (bfloat16; links in one direction): a lower bound, "
    "without the host, data and compiling",
    "FLOPs are those of matrix products, and bytes what instructions read from and write to "
    "memory; the learner's attention counts the tiles of scores that it computes, other kernels "
    "count all blocks, even those that they skip",
)
NO_GPU = (
    "XLA's compiler has no GPU to try kernels on: what autotuning would choose, and the workspace "
    "of cuDNN and cuBLAS, are unknown (cuDNN's counts as 0)"
)


def of(topology: str | None, chip: Chip) -> tuple[str, ...]:
    """The assumptions of a plan, a sentence each."""
    if chip.network_bytes_per_sec is None:
        return ALWAYS
    no_gpu = (NO_GPU,) if platform_of(topology) == "gpu" else ()
    return (*ALWAYS, *of_gpus(chip, chip.network_bytes_per_sec), *no_gpu)


def of_gpus(chip: Chip, network_bytes_per_sec: float) -> tuple[str, ...]:
    """The further assumptions about NVIDIA GPUs."""
    return (
        f"JAX allocates {chip.pool_fraction:.0%} of a GPU's memory, the default being "
        f"{gpus.DEFAULT_FRACTION:.0%}; to change that, set {gpus.FRACTION[0]} to the same value "
        "for the plan and for the run; the rest holds NCCL's buffers and CUDA's context",
        "of prefill, cuDNN's attention computes all pairs of queries and keys",
        "GPUs of a host reach each other over NVLink at its full rate; between hosts each has a "
        f"network adapter of its own with {8e-9 * network_bytes_per_sec:.0f} Gb/s, and as in "
        "NCCL's rings the GPUs of a host that take part in a collective share its bytes",
    )
