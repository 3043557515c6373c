"""The private parts of JAX that this package uses; no other file imports `jax._src`.

Each of them has no public counterpart, and using JAX's own code keeps us from disagreeing with it.
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
    """How many processes the scheduler started that `jax.distributed.initialize` would detect; 1
    without a scheduler, where `initialize` raises."""
    clusters = (cluster for cluster in ClusterEnv._cluster_types if not cluster.opt_in_only_method)
    cluster = next((cluster for cluster in clusters if cluster.is_env_present()), None)
    return 1 if cluster is None else cluster.get_process_count()


@contextmanager
def cudnn_version(version: int) -> Iterator[None]:
    """Makes `jax.nn.dot_product_attention` assume this version of cuDNN, which need not be
    installed: it asks for the version, but a lowered program only has a custom call."""
    import jax._src.cudnn.fused_attention_stablehlo as cudnn  # slow, and only plans need it

    before = cudnn.check_cudnn_version
    cudnn.check_cudnn_version = lambda: version
    try:
        yield
    finally:
        cudnn.check_cudnn_version = before
