"""What a plan takes for granted, as it tells its readers."""

from seif_jax.plan import gpus
from seif_jax.plan.chips import Chip, platform_of
from seif_jax.plan.programs import CONSTRAINTS

USABLE = 0.97  # of what JAX may allocate: the runtime keeps some, and what is free lies in chunks
ALWAYS = (
    "every prompt and every sample is as long as the config allows, no two prompts begin alike",
    f"every instruction has {CONSTRAINTS} constraints, each put to the Judger",
    "memory is that of a round after the first, in which no two roles' weights are the same unless "
    "they always are",
    f"a program fits if arguments, temporaries, output and what lies beside take {USABLE:.0%} of "
    "the memory at most that JAX may allocate",
    "seconds of a call are the largest of FLOPs, bytes of memory and bytes to other devices over "
    "the chip's peak rates (bfloat16; links in one direction): a lower bound, without host, data "
    "and compiling",
    "FLOPs are those of matrix products, bytes what instructions read from and write to memory; "
    "blocks that a kernel leaves out are counted",
)


UNTRIED = (
    "XLA's compiler has no GPU to try kernels on: what autotuning would choose, and the workspace "
    "of cuDNN and cuBLAS, are unknown (cuDNN's counts as 0)"
)


def of(topology: str | None, chip: Chip) -> tuple[str, ...]:
    """Of a plan, one sentence each."""
    if chip.network_bytes_per_sec is None:
        return ALWAYS
    untried = (UNTRIED,) if platform_of(topology) == "gpu" else ()
    return (*ALWAYS, *of_gpus(chip, chip.network_bytes_per_sec), *untried)


def of_gpus(chip: Chip, network_bytes_per_sec: float) -> tuple[str, ...]:
    """What else is assumed of NVIDIA GPUs."""
    return (
        f"JAX allocates {chip.pool_fraction:.0%} of a GPU's memory, its default being "
        f"{gpus.DEFAULT_FRACTION:.0%}: set {gpus.FRACTION[0]} for the plan, and to the same value "
        "for the run, to change that; NCCL's buffers and CUDA's context are in the rest",
        "cuDNN's attention computes all pairs of queries and keys",
        "within a host each GPU reaches the others over NVLink at its full rate; between hosts "
        f"over a network adapter of its own with {8e-9 * network_bytes_per_sec:.0f} Gb/s: as in "
        "NCCL's rings, the GPUs of a host that take part in a collective share its bytes",
    )
