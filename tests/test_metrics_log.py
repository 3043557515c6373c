import importlib
import json
import re
import struct
import subprocess

import numpy as np
import pytest
from mounts import mounted

from seif_jax import metrics_log
from seif_jax.errors import UserError
from seif_jax.metrics_log import Phases, Writer

Event = importlib.import_module("tensorboardX.proto.event_pb2").Event  # has no types


def points(workdir):
    """{(tag, global step): value} of all TensorBoard files."""
    found = {}
    for path in (workdir / "tensorboard").iterdir():
        content, at = path.read_bytes(), 0
        while at < len(content):  # a record: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                assert (value.tag, event.step) not in found
                found[value.tag, event.step] = value.simple_value
    return found


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def test_one_object_a_line_in_the_order_given(tmp_path):
    writer = Writer(tmp_path)
    numbers = {"reward": np.float32(0.5), "count": np.int64(2**53 + 1), "kl": float("nan")}
    writer.write(1, "instructor", 0, numbers | {"norm": float("-inf"), "skipped": True, "n": 3})
    assert lines(tmp_path) == [  # flushed before the file is closed
        '{"round": 1, "stage": "instructor", "step": 0, "reward": 0.5, '
        '"count": 9007199254740993, "kl": null, "norm": null, "skipped": 1, "n": 3}'
    ]
    writer.close()
    assert points(tmp_path) == {
        ("instructor/reward", 0): 0.5,
        ("instructor/count", 0): 2**53,
        ("instructor/skipped", 0): 1,
        ("instructor/n", 0): 3,
    }


def test_only_scalars_of_known_stages(tmp_path):
    writer = Writer(tmp_path)
    with pytest.raises(TypeError):
        writer.write(1, "follower", 0, {"lengths": np.arange(3)})
    with pytest.raises(ValueError):
        writer.write(1, "judger", 0, {"reward": 1.0})
    assert lines(tmp_path) == []


@pytest.mark.parametrize("size", ["4k", "8k", "16k"])
def test_a_full_disk(tmp_path, size):
    """One line with the path, whichever file is the first without room; with room again, all lines
    that were finished are there."""
    with mounted(tmp_path / "disk", size) as disk:
        with pytest.raises(UserError, match=f"{disk}/.*: No space left on device"):
            writer = Writer(disk)
            for step in range(10_000):
                writer.write(1, "follower", step, {f"number_{i}": float(i) for i in range(20)})
        kept = [line["step"] for line in metrics_log.read(disk / "metrics.jsonl")]
        assert kept == [*range(len(kept))]
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        writer = Writer(disk)
        writer.write(1, "follower", len(kept), {"reward": 0.5})
        writer.close()
        assert len(metrics_log.read(disk / "metrics.jsonl")) == len(kept) + 1
        assert len(points(disk)) == 20 * len(kept) + 1


def test_what_a_user_put_beside_the_points_stays(tmp_path):
    """Also where `tensorboard` is a link to another disk."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tensorboard").symlink_to("elsewhere")
    (tmp_path / "elsewhere/notes.txt").write_text("mine")
    for step in range(2):
        writer = Writer(tmp_path)
        writer.write(1, "follower", step, {"reward": 0.5})
        writer.close()
    (tmp_path / "elsewhere/notes.txt").unlink()
    assert points(tmp_path) == {("follower/reward", step): 0.5 for step in range(2)}
    assert (tmp_path / "tensorboard").is_symlink()


def two_rounds(workdir):
    writer = Writer(workdir)
    value = 0
    for round in (1, 2):
        for stage, steps in (("instructor", 2), ("generate", 1), ("follower", 3)):
            for step in range(steps):
                writer.write(round, stage, step, {"v": value})
                value += 1
    return writer


def test_steps_go_on_over_the_rounds(tmp_path):
    two_rounds(tmp_path).close()
    assert points(tmp_path) == {
        **{("instructor/v", step): v for step, v in enumerate((0, 1, 6, 7))},
        **{("generate/v", step): v for step, v in enumerate((2, 8))},
        **{("follower/v", step): v for step, v in enumerate((3, 4, 5, 9, 10, 11))},
    }


@pytest.mark.parametrize(
    "round, stage, step, kept",
    [
        (1, "instructor", 0, 0),
        (1, "generate", 0, 2),
        (1, "follower", 1, 4),
        (2, "instructor", 1, 7),
        (2, "follower", 3, 12),
    ],
)
def test_resume_drops_what_comes_at_or_after(tmp_path, round, stage, step, kept):
    writer = two_rounds(tmp_path)
    before = lines(tmp_path)
    writer.resume(round, stage, step)
    assert lines(tmp_path) == before[:kept]
    writer.write(round, stage, step, {"v": 99})
    writer.close()
    assert lines(tmp_path)[:-1] == before[:kept]
    found = points(tmp_path)
    assert len(found) == kept + 1
    earlier = {"instructor": 2, "generate": 1, "follower": 3}[stage] * (round - 1)
    assert found[f"{stage}/v", earlier + step] == 99


def test_a_killed_run_is_opened_again(tmp_path):
    writer = Writer(tmp_path)
    writer.write(1, "follower", 0, {"v": 1.5})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 1, "stage": "foll')
    writer = Writer(tmp_path)
    writer.write(1, "follower", 1, {"v": 2.5})
    writer.close()
    assert [json.loads(line)["v"] for line in lines(tmp_path)] == [1.5, 2.5]
    assert points(tmp_path) == {("follower/v", 0): 1.5, ("follower/v", 1): 2.5}


def test_damage_inside_the_file_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"round"\n{}\n')
    with pytest.raises(ValueError, match=re.escape("metrics.jsonl: line 1 is not JSON")):
        metrics_log.read(tmp_path / "metrics.jsonl")


def test_phases_add_up():
    ticks = iter([0.0, 2.0, 2.5, 3.0, 10.0, 14.0, 20.0, 21.0])
    phases = Phases(clock=lambda: next(ticks))
    for name in ("rollout", "judge", "rollout"):
        with phases(name):
            pass
    assert phases.take() == {"secs/rollout": 6.0, "secs/judge": 0.5}
    with pytest.raises(KeyError), phases("update"):
        raise KeyError
    assert phases.take() == {"secs/update": 1.0}
    assert phases.take() == {}


def test_resident_memory_is_in_bytes():
    assert 10e6 < metrics_log.host()["host/resident_bytes"] < 1e12
