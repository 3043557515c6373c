"""Shows on the display which programs a stage is compiling, and counts them."""

from collections.abc import Mapping, Sequence
from typing import Self

import jax

from seif_jax.display import Display
from seif_jax.metrics_log import CompileTimer
from seif_jax.run_clock import COMPILED

# The programs that take long to compile: the name that JAX reports -> the name that the display
# shows.
PROGRAMS = {
    "prefill": "prefill",
    "decode": "decoding",
    "next_logp": "verdicts",
    "completion_logp": "log-probabilities",
    "gradient": "gradient",
    "change": "optimizer",
}


class Compiles(CompileTimer):
    """Listens to JAX's compilation events inside the `with` block.

    programs: the keys of PROGRAMS that the stage runs, in the order in which they are compiled. JAX
    also reports programs that it reads from its cache, and it reports every shape of a program
    separately.
    """

    def __init__(self, programs: Sequence[str], display: Display):
        super().__init__()
        self._order = list(programs)
        self._left = set(programs)  # not compiled yet
        self._running: list[str] = []  # being compiled, in the order in which they started
        self._display = display

    def __enter__(self) -> Self:
        jax.monitoring.register_scalar_listener(self._begin)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        jax.monitoring.unregister_scalar_listener(self._begin)

    def metrics(self) -> dict[str, float]:
        """Metrics of the programs compiled since the last call."""
        programs, secs = self.take()
        return {"host/compiled_programs": programs, "secs/compile": secs}

    def _begin(self, event: str, value: float, **details: str | int) -> None:
        name = _name(details)
        if event != COMPILED or name not in PROGRAMS:
            return
        with self._lock:
            # Programs earlier in the order that were not compiled here were compiled by an earlier
            # stage, or are compiling in parallel with this one.
            if name in self._order:
                self._left &= {*self._order[self._order.index(name) + 1 :]}
            self._running.append(name)
            self._show()

    def _end(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event != COMPILED:
            return
        with self._lock:
            self._display.compiled(self._add(duration_secs))
            if (name := _name(details)) in self._running:
                self._running.remove(name)
            self._show()

    def _show(self) -> None:
        if self._running:
            self._display.compiling([PROGRAMS[name] for name in self._running], len(self._left))


def _name(details: Mapping[str, str | int]) -> str:
    """The name of the function that the event reports."""
    return str(details.get("fun_name")).removeprefix("jit(").removesuffix(")")
