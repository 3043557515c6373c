"""Profiles of single steps: `seif run --profile=STEP[,STEP]`."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

import jax

from seif_jax import storage


class Profiler:
    """Writes a trace of each of the given steps of every stage to FOLDER/STAGE_step_N. TensorBoard
    and Perfetto can open it. The phases in it have the names of the kinds in `run_clock`."""

    def __init__(self, folder: Path = Path(), steps: Collection[int] = ()):
        self._folder, self._steps = folder, steps

    @contextlib.contextmanager
    def step(self, stage: str, step: int) -> Iterator[None]:
        """Traces the body, a step of a stage, if the step was chosen. stage: its name, such as
        `round 1 follower`."""
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
