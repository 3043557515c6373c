"""SEIF in JAX: self-evolving reinforcement learning for instruction following."""

__version__ = "0.1.0"
