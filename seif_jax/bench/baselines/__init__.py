"""Runs other libraries on the same work, each in its own Python interpreter.

A peer is a long-lived process, `python serve.py PEER.py SPEC.json`. It writes a JSON line with its
versions once it is loaded and warm. For every line that it reads, it repeats the work and writes a
JSON line with the measurements. Peers' scripts do not import seif_jax.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from seif_jax.errors import UserError

FOLDER = Path(__file__).parent
SERVE = FOLDER / "serve.py"
MEASURES = {  # the workloads that each peer supports
    "hf": ("rollout", "judge"),
    "trl": ("step",),
    "tunix": ("step",),
    "vllm": ("rollout",),
}
WITH_LENGTHS = ("vllm",)  # peers that can give each sample its own length
DTYPES = {"trl": "autocast", "tunix": "float32"}  # their defaults; others use --dtype
LAST_BYTES = 20_000  # of a peer's log, searched for the reason why it ended


class Repetition(TypedDict):
    """A peer's report on one repetition of the work."""

    secs: float
    phases: dict[str, float]  # seconds by phase
    tokens: int
    peak_bytes: int


class Peer:
    """A peer's process, which ends with the `with` block. Methods raise UserError, with the last
    line of its log, if it fails."""

    def __init__(self, name: str, python: str, spec: Mapping[str, object], folder: Path):
        """spec: as serve.py describes. folder: for the spec and for what the peer writes."""
        self.name, self._log = name, folder / f"{name}.log"
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        command = [python, str(SERVE), str(FOLDER / f"{name}.py")]
        threads = str(spec["threads"])
        variables = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        variables |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        try:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [*command, str(folder / "spec.json")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=variables,
                )
        except OSError as error:
            raise UserError(f"--peer_python={python}: {error.strerror}") from error

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ready(self) -> dict[str, str]:
        """Waits until the peer is loaded and warm. Returns its packages' versions."""
        return json.loads(self._read_line())["ready"]

    def repeat(self) -> Repetition:
        """Repeats the work once."""
        assert self._process.stdin
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `_read_line` reports why it ended
        return json.loads(self._read_line())

    def _read_line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return line
        code = self._process.wait()
        log = self._log.read_bytes()[-LAST_BYTES:].decode("utf-8", "replace").strip()
        last = log.splitlines()[-1].strip() if log else "it wrote nothing"
        raise UserError(f"--against={self.name}: the peer ended with exit code {code}: {last}")
