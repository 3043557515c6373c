"""The private parts of JAX that this package uses. No other file imports `jax._src`.

None of them has a public counterpart. Reimplementing them could disagree with what JAX itself does.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from jax._src import hardware_utils
from jax._src.clusters import ClusterEnv


def has_nvidia_gpu() -> bool:
    """Whether JAX would find an NVIDIA GPU. Loads no plugin."""
    return hardware_utils.has_visible_nvidia_gpu()


def num_tpu_chips() -> int:
    """How many TPU chips JAX would find. Loads no plugin."""
    return hardware_utils.num_available_tpu_chips_and_device_id()[0]


def num_scheduled_processes() -> int:
    """The number of processes that `jax.distributed.initialize` would detect from a scheduler's
    variables; 1 without a scheduler, where `initialize` would raise."""
    clusters = (cluster for cluster in ClusterEnv._cluster_types if not cluster.opt_in_only_method)
    cluster = next((cluster for cluster in clusters if cluster.is_env_present()), None)
    return 1 if cluster is None else cluster.get_process_count()


@contextmanager
def cudnn_version(version: int) -> Iterator[None]:
    """Makes `jax.nn.dot_product_attention` assume this version of cuDNN without any being
    installed. Lowering checks the version, but only emits a custom call."""
    import jax._src.cudnn.fused_attention_stablehlo as cudnn  # slow, and only plans need it

    check = cudnn.check_cudnn_version
    cudnn.check_cudnn_version = lambda: version
    try:
        yield
    finally:
        cudnn.check_cudnn_version = check
