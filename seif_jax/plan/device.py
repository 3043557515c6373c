"""The type of a device: JAX's own class is no name that a type checker accepts."""

from typing import Any, Protocol


class Device(Protocol):
    """The attributes of a `jax.Device` that plans read."""

    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...
    @property
    def process_index(self) -> int: ...
    def memory_stats(self) -> dict[str, Any]: ...
