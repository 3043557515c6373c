"""Benchmarks of this package on this machine, next to its limits and to other libraries."""
