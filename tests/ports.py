"""Ports of this machine."""

import socket


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
