"""Other libraries doing the same work, each in its own interpreter: the side of `seif bench`.

A peer is one long-lived process, `python serve.py PEER.py SPEC.json`, that speaks JSON lines: one
with its versions once it is loaded and warm, then one a repetition, for every line that it is
sent. Nothing here is imported there, and nothing there imports seif_jax.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from seif_jax.errors import UserError

FOLDER = Path(__file__).parent
SERVE = FOLDER / "serve.py"
MEASURES = {  # what each can be timed at
    "hf": ("rollout", "judge"),
    "trl": ("step",),
    "tunix": ("step",),
    "vllm": ("rollout",),
}
DTYPES = {"trl": "autocast", "tunix": "float32"}  # their own; others take what is asked for
LAST_BYTES = 20_000  # of what a peer wrote, searched for why it ended


class Peer:
    """A started peer; `with` ends it. UserError wherever it fails, with its own last words."""

    def __init__(self, name: str, python: str, spec: dict[str, Any], folder: Path):
        """spec: what serve.py describes; folder: for the spec and for what the peer writes."""
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
        """Waits until it is loaded and warm; its versions."""
        return self._answer()["ready"]

    def repeat(self) -> dict[str, Any]:
        """One repetition: secs, secs by phase, tokens, peak_bytes."""
        assert self._process.stdin
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # why it ended is read below
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        words = self._log.read_bytes()[-LAST_BYTES:].decode("utf-8", "replace").strip()
        last = words.splitlines()[-1].strip() if words else "it said nothing"
        raise UserError(f"--against={self.name}: the peer ended with exit code {code}: {last}")
