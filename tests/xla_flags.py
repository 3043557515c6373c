"""XLA flags of the tests. Their programs are small, and most of their time would go into compiling
them: compiled as users compile it, a gradient of the tiny model takes ten times as long.

Whatever imports this before it uses a device has the flags, and so have the processes that it
starts. What is compiled for TPUs and GPUs (test_compiled.py) is compiled with the flags of users.
"""

import os
from importlib import metadata

QUICK_COMPILES = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if metadata.version("jaxlib").startswith("0.10."):  # others abort at a flag that they do not know
    QUICK_COMPILES.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_COMPILES))


def with_devices(count: int) -> str:
    """XLA_FLAGS of a process with `count` devices of the CPU."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
