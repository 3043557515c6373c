"""What a plan assumes, in the words that it is printed with."""

from seif_jax.length_distribution import PROMPT_MEAN, PROMPT_SIGMA, Lengths
from seif_jax.models.matmul import platform
from seif_jax.plan import gpus
from seif_jax.plan.chip_specs import Chip, platform_of
from seif_jax.plan.engine_calls import CONSTRAINTS
from seif_jax.plan.step_lengths import CONSTRAINT_TOKENS, STEPS

USABLE = 0.97  # of what JAX may allocate: the runtime keeps some, and free memory is fragmented
STORAGE_BYTES_PER_SEC = 1e9  # of one host's checkpoints
COPY_BYTES_PER_SEC = 5e9  # from a device to its host: a fifth of what PCIe 4 x16 can do
ALL_LONGEST = (
    "every prompt and every sample has the maximum length that the config allows, and no two "
    "prompts start alike",
)
ALWAYS = (
    f"every instruction has {CONSTRAINTS} constraints, and the Judger is asked about each of them",
    "memory is that of a round after the first, when roles share weights only if they always do",
    "a program fits if its arguments, temporaries and output, and the arrays that are resident at "
    f"the same time, take at most {USABLE:.0%} of the memory that JAX may allocate",
    "the seconds of a call are the largest of FLOPs, bytes of memory and bytes to other devices, "
    "each divided by the chip's peak rate (bfloat16; links in one direction): a lower bound, "
    "without the host, data and compiling; a checkpoint is not part of a step's seconds: it stops "
    "training while every device copies its part to its host at "
    f"{COPY_BYTES_PER_SEC / 1e9:g} GB/s, and each host then writes it at "
    f"{STORAGE_BYTES_PER_SEC / 1e9:g} GB/s in the background",
    "FLOPs are those of matrix products, and bytes what instructions read from and write to "
    "memory; attention over packed rows counts the tiles of scores that it computes",
    "pages of keys and values take at most `sample_memory` of what is free beside all that stays "
    "in memory; a decoding step reads weights, the pages of live samples and their prompts, and "
    "the buffer of recent tokens, and computes scores for these alone",
    "every process samples and scores its share of a step's rows; its copies of the weights take "
    "prompts from one queue, and a step has the calls of the copy that takes longest",
)
NO_GPU = (
    "XLA's compiler has no GPU to try kernels on: what autotuning would choose, and the workspace "
    "of cuBLAS, are unknown"
)


def of(topology: str | None, chip: Chip, lengths: Lengths | None = None) -> tuple[str, ...]:
    """The assumptions of a plan, a sentence each. Called within `chip_specs.compiling_for`."""
    always = (*(of_lengths(lengths) if lengths else ALL_LONGEST), *ALWAYS)
    if chip.network_bytes_per_sec is None:
        return always
    if platform() == "tpu":
        return (*always, of_slices(chip.network_bytes_per_sec))
    no_gpu = (NO_GPU,) if platform_of(topology) == "gpu" else ()
    return (*always, *of_gpus(chip, chip.network_bytes_per_sec), *no_gpu)


def of_slices(network_bytes_per_sec: float) -> str:
    """The further assumption about several TPU slices."""
    return (
        f"over the data center network, a chip sends {8e-9 * network_bytes_per_sec:.0f} Gb/s to "
        "other slices"
    )


def of_lengths(lengths: Lengths) -> tuple[str, ...]:
    """The assumptions about lengths that are drawn."""
    return (
        f"{STEPS} steps are drawn: completions from a log-normal distribution with a mean of "
        f"{lengths.mean:,.0f} tokens after the cut at the maximum and a sigma of "
        f"{lengths.sigma:g}; prompts with a mean of {PROMPT_MEAN:.0f} tokens and a sigma of "
        f"{PROMPT_SIGMA:g}; replies of the Filter and the Judger with the same share of their "
        "maximum as completions",
        "memory is that of the largest call of all these steps; FLOPs, seconds and waste are "
        "means; bytes of decoding are scaled to the mean, other bytes are those of the largest "
        "call",
        "no two prompts start alike, but those of the Judger share their instruction and reply, "
        f"and a constraint adds {CONSTRAINT_TOKENS} tokens; every sample is trained on",
    )


def of_gpus(chip: Chip, network_bytes_per_sec: float) -> tuple[str, ...]:
    """The further assumptions about NVIDIA GPUs."""
    return (
        f"JAX allocates {chip.pool_fraction:.0%} of a GPU's memory, the default being "
        f"{gpus.DEFAULT_FRACTION:.0%}; to change that, set {gpus.FRACTION[0]} to the same value "
        "for the plan and for the run; the rest holds NCCL's buffers and CUDA's context",
        "GPUs of a host reach each other over NVLink at its full rate; between hosts each has a "
        f"network adapter of its own with {8e-9 * network_bytes_per_sec:.0f} Gb/s, and as in "
        "NCCL's rings the GPUs of a host that take part in a collective share its bytes",
    )
