"""Runs in object stores, against servers of their APIs on this machine."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import stores
from test_processes import joined
from test_run import assert_same_run

from seif_jax import metrics_log, object_store, storage
from seif_jax.__main__ import main
from seif_jax.model_bundle import ModelBundle, load_params

METRICS = "metrics.jsonl"


@pytest.fixture(scope="module")
def finished(place):
    """A run of two rounds on the local disk that nothing stopped."""
    workdir = place.folder / "finished"
    assert main(["run", f"--config={place.config}", f"--workdir={workdir}"]) == 0
    return workdir


def kill_after(command: list[str], url: str, name: str) -> None:
    """Runs a command, and kills it once the folder in the store has a file in `name`."""
    process = subprocess.Popen([sys.executable, "-m", "seif_jax", *command])
    location, deadline = storage.parse(url), time.monotonic() + 600
    assert location
    while not any(key.startswith(name) for key in object_store.list_files(location)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("kind", stores.KINDS)
def test_a_run_is_killed_and_goes_on_on_another_machine(kind, finished, place, tmp_path, capsys):
    with stores.server(kind) as variables:
        url = f"{kind}://bucket/runs/a"
        with stores.machine(variables, tmp_path / "writer"):
            data = storage.open_folder(f"{kind}://bucket/data")
            for path in (place.config.parent / "seeds.jsonl", *place.model.iterdir()):
                target = data / ("" if path.suffix == ".jsonl" else "model") / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
            storage.upload(data)
        command = ["run", f"--config={place.config}", f"--workdir={url}"]
        command += [f"--config.model={kind}://bucket/data/model"]
        command += [f"--config.data.seeds={kind}://bucket/data/seeds.jsonl"]
        with stores.machine(variables, tmp_path / "one"):
            kill_after(command, url, "round_1/follower/checkpoints/1/")
        with stores.machine(variables, tmp_path / "two"):
            assert main(command) == 0
        with stores.machine(variables, tmp_path / "three"):
            root = storage.local(url)
            assert_same_run(root, finished)
            model = "round_2/follower/hf/model.safetensors"
            assert (root / model).read_bytes() == (finished / model).read_bytes()
            assert list((root / "tensorboard").iterdir())
            log = (root / "logs" / "process_0.log").read_text()
            assert log.count("devices: ") == 2  # of the killed run, too
            if kind == "gs":
                reads_models_and_reports(url, capsys)
                evaluates(url, tmp_path, capsys)


def reads_models_and_reports(url, capsys):
    """The other commands, with URLs instead of paths."""
    kind = url.partition(":")[0]
    capsys.readouterr()
    stage, copy = f"{url}/round_2/follower", f"{kind}://bucket/converted"
    assert main(["convert", f"{url}/round_1/instructor", copy, "--dtype=float32"]) == 0
    assert capsys.readouterr().out.startswith(f"{copy}: llama, ")
    for model in (stage, f"{stage}/checkpoints", f"{stage}/hf", copy):
        options = [f"--model={model}", "--prompt=Say this.", "--max_tokens=2", "--json"]
        assert main(["generate", *options]) == 0
        assert json.loads(capsys.readouterr().out)["prompt"] == "Say this."
    assert main(["report", url]) == 0
    assert capsys.readouterr().out == f"{url}/report/index.html\n"
    assert main(["report", f"{kind}://bucket/runs", f"--out={kind}://bucket/page"]) == 0
    assert storage.local(f"{kind}://bucket/page/index.html").exists()
    assert main(["generate", f"--model={url}", "--prompt=x"]) == 2
    assert f"{url} is a run's folder; models that it has trained: {stage} or" in (
        capsys.readouterr().err
    )
    assert main(["generate", f"--model={kind}://bucket/none", "--prompt=x"]) == 2
    assert f"seif generate: {kind}://bucket/none: no such file" in capsys.readouterr().err


def evaluates(url, tmp_path, capsys):
    """A model in a store, with its replies and scores in the store, read by another machine."""
    row = {"prompt": "Hi.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    out = f"{url.partition(':')[0]}://bucket/scores"
    options = [f"--model={url}/round_1/follower", "--suite=ifeval", f"--out={out}"]
    options += [f"--data={tmp_path / 'rows.jsonl'}", "--max_tokens=2", "--json"]
    assert main(["evaluate", *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "four"))
        patch.setattr(storage, "_copies", [])
        assert json.loads((storage.local(out) / "scores.json").read_text()) == shown
        assert (storage.local(out) / "responses.parquet").exists()


def test_two_processes_share_a_local_copy(place, tmp_path):
    """Each writes its shards of the checkpoints; the first one uploads."""
    options = [f"--config={place.config}", "--config.rounds=1", "--config.mesh.tensor=2"]
    options += ["--config.stages=('generate', 'follower')"]
    with stores.server("s3") as variables, stores.machine(variables, tmp_path / "pod"):
        url = "s3://bucket/run"
        running = joined("-m", "seif_jax", "run", *options, f"--workdir={url}", devices=2)
        outputs = [process.communicate(timeout=900) for process in running]
        assert [process.returncode for process in running] == [0, 0], outputs
        with stores.machine(variables, tmp_path / "elsewhere"):
            root = storage.local(url)
            steps = [(line["stage"], line["step"]) for line in metrics_log.read(root / METRICS)]
            assert steps == [("generate", 1), ("generate", 2), ("generate", 3)] + [
                ("follower", 1), ("follower", 2)
            ]  # fmt: skip
            stage = root / "round_1" / "follower"
            saved = load_params(stage, ModelBundle.load(stage).model)
            exported = load_params(stage / "hf", ModelBundle.load(stage / "hf").model)
            rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), saved)
            jax.tree.map(np.testing.assert_array_equal, rounded, exported)
