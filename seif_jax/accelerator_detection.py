"""Detects the accelerators of this machine, and warns if JAX does not use them.

JAX loads and tries every accelerator plugin that is installed. On a machine without such a device,
libtpu and the CUDA plugin print pages of errors although nothing is wrong.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
from jax.experimental import topologies

from seif_jax.errors import RunError
from seif_jax.jax_private import has_nvidia_gpu as has_nvidia_gpu
from seif_jax.jax_private import num_tpu_chips


def has_tpu() -> bool:
    return num_tpu_chips() > 0


@dataclass(frozen=True)
class Accelerator:
    """A type of accelerator, and what JAX needs to use it."""

    name: str
    is_present: Callable[[], bool]
    platforms: frozenset[str]  # its names in JAX_PLATFORMS
    packages: tuple[str, ...]  # JAX needs one of these
    extra: str  # the extra in pyproject.toml that installs them


ACCELERATORS = (
    Accelerator(
        "an NVIDIA GPU",
        has_nvidia_gpu,
        frozenset({"cuda", "gpu"}),
        ("jax_cuda12_plugin", "jax_cuda13_plugin"),
        "cuda12",
    ),
    Accelerator("a TPU", has_tpu, frozenset({"tpu"}), ("libtpu",), "tpu"),
)
# libtpu assumes that the machine has a TPU, and asks a metadata server unless these are set.
WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # safe, because no process takes a chip
}
NO_DEVICES = ("", "-1", "NoDevFiles")  # SLURM sets the last one for a job without GPUs


# What Linux calls the bfloat16 instructions of x86 and Arm CPUs. Without them bfloat16 is emulated,
# and a step with SmolLM2 takes 1.25 times as long as in float32.
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
BFLOAT16_CAPABILITY = 8.0  # of NVIDIA GPUs: from Ampere on


def native_dtype() -> Literal["bfloat16", "float32"]:
    """bfloat16 if JAX's devices have instructions for it, else float32."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        native = not BFLOAT16_FLAGS.isdisjoint(_cpu_flags())
    else:
        capability = getattr(device, "compute_capability", BFLOAT16_CAPABILITY)  # none of a TPU
        native = float(capability) >= BFLOAT16_CAPABILITY
    return "bfloat16" if native else "float32"


def _cpu_flags() -> set[str]:
    """The features of the CPU as Linux lists them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    features = (line for line in lines if line.startswith(("flags", "Features")))
    return {flag for line in features for flag in line.split()}


def let_libtpu_load() -> None:
    """Lets libtpu load quietly without a TPU, for instance to compile for one."""
    for name, value in WITHOUT_TPU.items():
        os.environ.setdefault(name, value)


def skip_absent() -> None:
    """Keeps JAX from trying accelerators that this machine lacks, and from complaining about them.

    Call it before JAX initializes its backends. It does not affect devices that are present, or
    platforms that the user chose (JAX_PLATFORMS).
    """
    if not has_tpu():
        let_libtpu_load()
    if has_nvidia_gpu() or _other_plugins():
        return
    if not (jax.config.values["jax_platforms"] or has_tpu()):
        jax.config.update("jax_platforms", "cpu")
    if importlib.util.find_spec("jax_plugins") is not None:
        # The CUDA plugin complains while it loads, even with JAX_PLATFORMS=cpu. Asking for any
        # topology makes JAX load its plugins, here in silence, without initializing a backend.
        with _muted_stderr(), contextlib.suppress(NotImplementedError):
            topologies.get_topology_desc(platform="cpu")


def warn_if_unused(command: str) -> None:
    """Warns, with the reason and a remedy, if the machine has an accelerator that JAX does not use.

    Initializes JAX's backends. Raises RunError if one of them does not start.
    """
    try:
        platform = jax.default_backend()
    except RuntimeError as error:
        raise RunError(f"JAX does not start: {' '.join(str(error).split())}") from error
    accelerator = next((a for a in ACCELERATORS if a.is_present()), None)
    if platform == "cpu" and accelerator is not None:
        print(
            f"seif {command}: warning: this machine has {accelerator.name}, but JAX runs on the "
            f"CPU: {_why_unused(accelerator)}",
            file=sys.stderr,
        )


def _why_unused(accelerator: Accelerator) -> str:
    chosen = jax.config.values["jax_platforms"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    if chosen and accelerator.platforms.isdisjoint(chosen.split(",")):
        return f"JAX_PLATFORMS={chosen} excludes it"
    if "cuda" in accelerator.platforms and visible.split(",")[0] in NO_DEVICES:
        return f"CUDA_VISIBLE_DEVICES={visible} hides it"
    if not any(importlib.util.find_spec(package) for package in accelerator.packages):
        return (
            "JAX's support for it is not installed; run `bash launch/install.sh`, or "
            f"`pip install 'seif_jax[{accelerator.extra}]'`"
        )
    return "JAX's support for it did not start, for the reason that JAX logged"


def _other_plugins() -> bool:
    """Whether JAX has plugins for devices that this module cannot detect, such as AMD GPUs."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    libraries = os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS")
    return bool(libraries) or any(not plugin.name.startswith("xla_cuda") for plugin in plugins)


@contextlib.contextmanager
def _muted_stderr() -> Iterator[None]:
    """Discards what is written to file descriptor 2: C++ code bypasses sys.stderr."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    sys.stderr.flush()
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
