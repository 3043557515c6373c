"""The clock: kinds add up to the wall-clock time, and a profile shows them by name."""

import gzip
import io
import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest
import synthetic_run

from seif_jax import metrics_log, run_clock
from seif_jax.compilation import Signature, compile_in_parallel
from seif_jax.display import Display
from seif_jax.metrics_log import Phases, Writer
from seif_jax.options import parser
from seif_jax.profiling import Profiler
from seif_jax.report import rounds_table
from seif_jax.report.page_blocks import Chart, Table
from seif_jax.report.run_files import open_runs
from seif_jax.report.section_goodput import section
from seif_jax.run_clock import CLOCK, KINDS, RunClock


class Now:
    """A clock that is set by hand."""

    secs = 100.0

    def __call__(self) -> float:
        return self.secs


def test_the_innermost_kind_counts():
    now = Now()
    clock = RunClock(now)
    clock.start(secs_before=7.0)
    with clock("sampling"):
        now.secs += 5
        with clock("waiting"):
            now.secs += 2
        now.secs += 1
    now.secs += 3
    with pytest.raises(ValueError), clock("saving"):
        now.secs += 4
        raise ValueError
    metrics = clock.take()
    expected = {"loading": 7.0, "sampling": 6.0, "waiting": 2.0, "other": 3.0, "saving": 4.0}
    for kind in KINDS:
        assert metrics[f"clock/{kind}"] == expected.get(kind, 0.0), kind
    assert metrics["clock/goodput"] == pytest.approx(6 / 22)
    now.secs += 1
    with clock("update"):
        now.secs += 3
        assert clock.take()["clock/update"] == 3.0
        now.secs += 2
    assert clock.take()["clock/update"] == 2.0


def test_other_threads_count_nothing_but_are_progress():
    now = Now()
    clock = RunClock(now)

    def work() -> None:
        with clock("judging"):
            now.secs += 5

    with clock("sampling"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert clock.idle_secs() == 0
    now.secs += 2
    assert (clock.idle_secs(), clock.kind) == (2.0, "other")
    clock.tick()
    assert clock.idle_secs() == 0
    metrics = clock.take()
    assert (metrics["clock/sampling"], metrics["clock/judging"]) == (5.0, 0.0)


def test_compiling_is_taken_from_the_kind_in_which_it_happens():
    CLOCK.start()
    start = time.perf_counter()
    with CLOCK("update"):
        jax.jit(lambda x: jnp.linalg.svd(x @ x.T + 3.125)[1])(jnp.ones((17, 17)))
    secs = time.perf_counter() - start
    metrics = CLOCK.take()
    assert 0 < metrics["clock/compiling"] < secs and metrics["clock/update"] > 0
    assert metrics["clock/compiling"] + metrics["clock/update"] == pytest.approx(secs, abs=0.05)


def test_programs_compiled_side_by_side_count_once():
    """In other threads, whose seconds add up to more than the time that passes."""
    signatures = [
        Signature(None, jax.jit(lambda x: jnp.linalg.svd(x @ x.T + 2.5)[1]), (x,))
        for n, x in ((n, jax.ShapeDtypeStruct((n, n), jnp.float32)) for n in (13, 14, 15))
    ]
    CLOCK.start()
    start = time.perf_counter()
    with CLOCK("sampling"), metrics_log.CompileTimer() as timer:
        compile_in_parallel(signatures)
        time.sleep(0.1)
    secs = time.perf_counter() - start
    metrics = CLOCK.take()
    assert metrics["clock/compiling"] + metrics["clock/sampling"] == pytest.approx(secs, abs=0.05)
    assert metrics["clock/sampling"] == pytest.approx(0.1, abs=0.05)
    assert 0 < metrics["clock/goodput"] < 1
    programs, compile_secs = timer.take()
    assert programs >= 3 and 0 < compile_secs < metrics["clock/compiling"]


def test_phases_of_a_step_are_kinds():
    CLOCK.start()
    phases = Phases()
    with phases("total"), phases("sample"), phases("filter"):
        time.sleep(0.01)
    metrics = CLOCK.take()
    assert metrics["clock/judging"] >= 0.01 > metrics["clock/sampling"]


def test_steps_that_are_done_again_count_as_redone(tmp_path):
    writer = Writer(tmp_path)
    for step in (1, 2, 3):
        writer.write(1, "follower", step, {"clock/sampling": 10.0 * step, "clock/saving": 1.0,
                                        "clock/goodput": 0.9})  # fmt: skip
    CLOCK.start()
    writer.resume(1, "follower", 2)
    metrics = CLOCK.take()
    assert metrics["clock/redone"] == 52.0
    writer.write(1, "follower", 2, metrics)
    secs = run_clock.totals(metrics_log.read(writer.path))
    assert (secs["sampling"], secs["redone"]) == (10.0, 52.0)
    assert run_clock.goodput(secs) == pytest.approx(10 / 63, rel=0.01)
    out = io.StringIO()
    rounds_table.show_times(tmp_path, Display(out, out))
    title, header, _, row = out.getvalue().splitlines()
    assert title == "Where 1m03s went: goodput 16% (sampling, judging, reference, update)"
    assert header.split()[:1] == ["sampling"] and "redone" in header
    assert row.split()[0] == "15.9%"


def test_the_section_of_the_report(tmp_path):
    folder = synthetic_run.make(tmp_path / "run", rounds=1, steps=2, prompts=1, evaluate=False)
    lines = metrics_log.read(folder / "metrics.jsonl")
    for line in lines:
        line |= {"clock/sampling": 30.0, "clock/redone": 6.0, "clock/update": 24.0}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    chart, table = section(open_runs([folder]), {}).blocks
    assert isinstance(chart, Chart) and isinstance(table, Table)
    bars = {bar["name"]: list(bar["x"]) for bar in json.loads(chart_json(chart))["data"]}
    assert bars == {"sampling": [0.5], "update": [0.4], "redone": [0.1]}
    assert "goodput 90%" in chart.alt
    assert table.columns == ["stage", "minutes", "goodput", "sampling", "update", "redone"]
    assert [row[0] for row in table.rows][:1] == ["round 1 instructor"]


def chart_json(chart: Chart) -> str:
    return json.dumps(chart.figure)


def test_a_profile_names_the_phases(tmp_path):
    """The step that was asked for and no other; Perfetto and TensorBoard read its files."""
    phases, profiler = Phases(), Profiler(tmp_path / "profile", (2,))
    CLOCK.start()
    for step in (1, 2, 3):
        with profiler.step("round 1 follower", step), phases("total"):
            for name in ("sample", "reward", "reference", "update"):
                with phases(name):
                    jnp.ones(5).sum().block_until_ready()
    (folder,) = (tmp_path / "profile").iterdir()
    assert folder.name == "round_1_follower_step_2"
    (trace,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {event["name"].split("#")[0] for event in events if "name" in event}
    assert {*run_clock.GOOD, "round 1 follower"} <= names
    (planes,) = folder.rglob("*.xplane.pb")
    assert b"judging" in planes.read_bytes()


@pytest.mark.parametrize("text, steps", [("3", (3,)), ("12,5", (12, 5)), (None, ())])
def test_the_option(text, steps):
    arguments = ["run", "--config=x", "--workdir=y", *([f"--profile={text}"] if text else [])]
    assert parser().parse_args(arguments).profile == steps


@pytest.mark.parametrize("text", ["0", "", "2,", "a", "-1", "1.5"])
def test_steps_that_are_none(text, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["run", "--config=x", "--workdir=y", f"--profile={text}"])
    assert ended.value.code == 2
    message = f"--profile: must be step numbers from 1, like 3,5 (got {text!r})"
    assert message in capsys.readouterr().err
