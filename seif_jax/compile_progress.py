"""Shows on the display which programs a stage is compiling, and counts them."""

import contextlib
from collections.abc import Iterable

import jax

from seif_jax.display import Display
from seif_jax.run_clock import COMPILED

# The programs that take long to compile, in the order in which a step first runs them: the name
# that JAX reports -> the name that the display shows.
PROGRAMS = {
    "prefill": "prefill",
    "decode": "decoding",
    "next_logp": "verdicts",
    "completion_logp": "log-probabilities",
    "gradient": "gradient",
    "change": "optimizer",
}


class Compiles(contextlib.AbstractContextManager["Compiles"]):
    """Listens to JAX's compilation events inside the `with` block.

    programs: the keys of PROGRAMS that the stage runs. JAX also reports programs that it reads from
    its cache, and it reports every shape of a program separately.
    """

    def __init__(self, programs: Iterable[str], display: Display):
        self._left = set(programs)  # not compiled yet
        self._display = display
        self._secs: list[float] = []

    def __enter__(self) -> "Compiles":
        jax.monitoring.register_scalar_listener(self._begin)
        jax.monitoring.register_event_duration_secs_listener(self._end)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_scalar_listener(self._begin)
        jax.monitoring.unregister_event_duration_listener(self._end)

    def take(self) -> dict[str, float]:
        """Returns metrics of the programs compiled since the last call."""
        secs, self._secs = self._secs, []
        return {"host/compiled_programs": len(secs), "secs/compile": sum(secs)}

    def _begin(self, event: str, value: float, **details: object) -> None:
        name = str(details.get("fun_name")).removeprefix("jit(").removesuffix(")")
        if event != COMPILED or name not in PROGRAMS:
            return
        # If the programs before this one were not compiled now, an earlier stage has done it.
        order = list(PROGRAMS)
        self._left &= {*order[order.index(name) + 1 :]}
        self._display.compiling(PROGRAMS[name], len(self._left))

    def _end(self, event: str, duration_secs: float, **details: object) -> None:
        if event == COMPILED:
            self._secs.append(duration_secs)
            self._display.compiled(duration_secs)
