"""Profiles of single steps: `seif run --profile=STEP[,STEP]`."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

import jax

from seif_jax import storage


class Profiler:
    """Writes a trace of each of these steps of every stage to FOLDER/STAGE_step_N, which
    TensorBoard and Perfetto open. In it, the time is named by the kinds of `run_clock`."""

    def __init__(self, folder: Path = Path(), steps: Collection[int] = ()):
        self._folder, self._steps = folder, steps

    @contextlib.contextmanager
    def step(self, stage: str, step: int) -> Iterator[None]:
        """The body is a step of a stage, which may be named `round 1 follower`."""
        if step not in self._steps:
            yield
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # millions of Python calls would bury the phases
        folder = self._folder / f"{stage.replace(' ', '_')}_step_{step}"
        jax.profiler.start_trace(str(folder), profiler_options=options)
        try:
            with jax.profiler.StepTraceAnnotation(stage, step_num=step):
                yield
        finally:
            jax.profiler.stop_trace()
            storage.upload(folder)
