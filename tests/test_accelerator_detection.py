"""JAX keeps quiet about devices that are not there; an unused device is reported."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import jax
import pytest
from jax._src import hardware_utils

from seif_jax import accelerator_detection, stage_settings
from seif_jax.__main__ import COMMANDS, main
from seif_jax.errors import RunError
from seif_jax.run_config import RunConfig

no_accelerator = pytest.mark.skipif(
    accelerator_detection.has_nvidia_gpu() or accelerator_detection.has_tpu(),
    reason="needs a machine without one",
)
# Stands in for the CUDA plugin: it complains in C++ and through logging, and then fails.
PLUGIN = """
import logging, os
os.write(2, b"I0000 cudart_stub.cc: Could not find cuda drivers\\n")
def initialize():
    logging.getLogger(__name__).warning("cuda_plugin_extension is not found.")
    raise RuntimeError("Unable to load CUDA. Is it installed?")
"""
START = """
import sys
from jax._src import hardware_utils
hardware_utils.has_visible_nvidia_gpu = lambda: sys.argv[1] == "gpu"
from seif_jax import accelerator_detection
accelerator_detection.skip_absent()
import jax
print(jax.devices()[0].platform)
print("an error of the run", file=sys.stderr)
"""


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine has and which platforms the user chose."""

    def make(gpu=False, tpu=False, platforms=None, plugins=(), **variables):
        chips = (4, None) if tpu else (0, None)
        monkeypatch.setattr(hardware_utils, "has_visible_nvidia_gpu", lambda: gpu)
        monkeypatch.setattr(hardware_utils, "num_available_tpu_chips_and_device_id", lambda: chips)
        jax.config.update("jax_platforms", platforms)
        monkeypatch.setattr(
            accelerator_detection.importlib.metadata,
            "entry_points",
            lambda group: [EntryPoint(name, "plugin", group) for name in plugins],
        )
        for name in ("CUDA_VISIBLE_DEVICES", *accelerator_detection.WITHOUT_TPU):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    before = jax.config.values["jax_platforms"]
    yield make
    jax.config.update("jax_platforms", before)


@pytest.fixture
def plugin(tmp_path):
    """A folder for PYTHONPATH with the plugin that complains."""
    package = tmp_path / "plugins" / "jax_plugins" / "xla_cuda12"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PLUGIN)
    return tmp_path / "plugins"


def variables(plugins, **more):
    """The environment of a process that finds this plugin, and chooses nothing about devices."""
    ours = {"JAX_PLATFORMS", *accelerator_detection.WITHOUT_TPU}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(plugins), *sys.path]), **more}


def start(plugins, gpu="no GPU", **more):
    """Standard output and error of a process that starts JAX."""
    command = [sys.executable, "-c", START, gpu]
    done = subprocess.run(
        command, env=variables(plugins, **more), capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


@no_accelerator
@pytest.mark.parametrize("platforms", ["", "cpu"])
def test_nothing_is_printed_about_absent_devices(plugin, platforms):
    """With libtpu, which the tests install, and the CUDA plugin; errors of the run are printed."""
    assert start(plugin, JAX_PLATFORMS=platforms) == ("cpu\n", "an error of the run\n")


@no_accelerator
def test_errors_of_a_device_that_is_there_are_printed(plugin):
    _, err = start(plugin, gpu="gpu")
    assert "Could not find cuda drivers" in err and "cuda_plugin_extension is not found" in err
    assert "Unable to load CUDA. Is it installed?" in err
    assert "libtpu" not in err and "TPU_ACCELERATOR_TYPE" not in err


@no_accelerator
def test_a_command_prints_nothing_about_absent_devices(plugin):
    command = [sys.executable, "-m", "seif_jax", "generate", "--model=absent", "--prompt=hello"]
    done = subprocess.run(command, env=variables(plugin), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("seif generate: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "present, chosen",
    [
        ({}, "cpu"),
        ({"plugins": ("xla_cuda12",)}, "cpu"),
        ({"plugins": ("xla_cuda13", "xla_rocm7")}, None),
        ({"plugins": ("metal",)}, None),
        ({"PJRT_NAMES_AND_LIBRARY_PATHS": "mine:/lib/mine.so"}, None),
        ({"gpu": True}, None),
        ({"tpu": True}, None),
        ({"gpu": True, "tpu": True}, None),
        ({"platforms": "cpu"}, "cpu"),
        ({"platforms": "cuda,cpu"}, "cuda,cpu"),
        ({"platforms": "tpu", "plugins": ("xla_cuda12",)}, "tpu"),
    ],
)
def test_platforms_are_chosen_only_without_any_device(machine, present, chosen):
    machine(**present)
    accelerator_detection.skip_absent()
    assert jax.config.values["jax_platforms"] == chosen
    answered = {name: os.environ.get(name) for name in accelerator_detection.WITHOUT_TPU}
    unanswered = dict.fromkeys(accelerator_detection.WITHOUT_TPU)
    assert answered == (unanswered if present.get("tpu") else accelerator_detection.WITHOUT_TPU)


def test_libtpus_variables_are_the_users(machine):
    machine(TPU_WORKER_HOSTNAMES="a,b")
    accelerator_detection.skip_absent()
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "a,b"


@pytest.mark.parametrize(
    "present, packages, why",
    [
        ({"gpu": True}, (), "support for it is not installed; run `bash launch/install.sh`, or"),
        ({"gpu": True}, ("libtpu", "jax_plugins"), r"pip install 'seif_jax\[cuda12\]'"),
        ({"gpu": True}, ("jax_cuda12_plugin",), "did not start, for the reason that JAX logged"),
        ({"gpu": True}, ("jax_cuda13_plugin",), "did not start, for the reason that JAX logged"),
        ({"gpu": True, "platforms": "cpu"}, (), "JAX_PLATFORMS=cpu excludes it"),
        ({"gpu": True, "platforms": "tpu,cpu"}, (), "JAX_PLATFORMS=tpu,cpu excludes it"),
        ({"gpu": True, "CUDA_VISIBLE_DEVICES": ""}, (), "CUDA_VISIBLE_DEVICES= hides it"),
        ({"gpu": True, "CUDA_VISIBLE_DEVICES": "-1"}, (), "CUDA_VISIBLE_DEVICES=-1 hides it"),
        ({"gpu": True, "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, (), "=NoDevFiles hides it"),
        ({"gpu": True, "CUDA_VISIBLE_DEVICES": "2,3"}, (), "support for it is not installed"),
        ({"tpu": True}, (), r"pip install 'seif_jax\[tpu\]'"),
        ({"tpu": True, "platforms": "cuda,cpu"}, ("libtpu",), "JAX_PLATFORMS=cuda,cpu excludes"),
        ({"tpu": True, "CUDA_VISIBLE_DEVICES": ""}, ("libtpu",), "did not start"),
    ],
)
def test_an_unused_device_is_one_line(machine, monkeypatch, capsys, present, packages, why):
    machine(**present)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(
        accelerator_detection.importlib.util, "find_spec", lambda name: name in packages or None
    )
    accelerator_detection.warn_if_unused("run")
    out, err = capsys.readouterr()
    device = "a TPU" if "tpu" in present else "an NVIDIA GPU"
    start = f"seif run: warning: this machine has {device}, but JAX runs on the CPU: "
    assert not out and len(err.splitlines()) == 1 and err.startswith(start)
    assert re.search(why, err), err


@pytest.mark.parametrize(
    "present, backend", [({}, "cpu"), ({"gpu": True}, "gpu"), ({"tpu": True}, "tpu")]
)
def test_no_warning_where_all_is_well(machine, monkeypatch, capsys, present, backend):
    machine(**present)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    accelerator_detection.warn_if_unused("run")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "line, dtype",
    [
        ("flags\t\t: fpu sse2 avx2", "float32"),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni", "bfloat16"),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", "bfloat16"),
        ("Features\t: fp asimd sve", "float32"),
        ("Features\t: fp asimd i8mm bf16", "bfloat16"),
        ("model name\t: bf16 inside", "float32"),
        (None, "float32"),
    ],
)
def test_the_dtype_that_a_cpu_does_well(monkeypatch, line, dtype):
    def read_text(path, encoding):
        assert str(path) == "/proc/cpuinfo"
        if line is None:
            raise FileNotFoundError
        return f"processor\t: 0\n{line}\n"

    jax.devices()  # reads files when it is first called
    monkeypatch.setattr(Path, "read_text", read_text)
    assert accelerator_detection.native_dtype() == dtype


@dataclass
class OneDevice:
    """What JAX says about a device."""

    platform: str
    compute_capability: str | float = 8.0


@pytest.mark.parametrize(
    "device, dtype",
    [
        (OneDevice("gpu", "7.5"), "float32"),
        (OneDevice("gpu", "8.0"), "bfloat16"),
        (OneDevice("gpu", "10.0"), "bfloat16"),
        (OneDevice("tpu"), "bfloat16"),
    ],
)
def test_the_dtype_that_an_accelerator_does_well(monkeypatch, device, dtype):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert accelerator_detection.native_dtype() == dtype


def test_auto_is_the_devices_dtype():
    assert RunConfig().dtype == "auto"
    for native in ("bfloat16", "float32"):
        assert stage_settings.with_dtype(RunConfig(), native).dtype == native
        assert stage_settings.with_dtype(RunConfig(dtype="float32"), native).dtype == "float32"


def test_a_device_that_does_not_start_is_one_line(machine, monkeypatch):
    def fails():
        raise RuntimeError(
            "Unable to initialize backend 'tpu': ABORTED: The TPU is already\nin use"
        )

    machine(tpu=True)
    monkeypatch.setattr(jax, "default_backend", fails)
    with pytest.raises(RunError, match="^JAX does not start: Unable .* The TPU is already in use$"):
        accelerator_detection.warn_if_unused("run")


STARTS = {  # commands that use JAX, each as far as it must come before it starts JAX
    "run": ("--config={config}", "--workdir={folder}/run", "--config.rounds=1"),
    "generate": ("--model=smollm2", "--prompt=hello"),
    "evaluate": ("--model=smollm2", "--suite=ifeval", "--data={data}"),
    "convert": ("smollm2", "{folder}/out"),
    "bench": ("--model=smollm2", "--what=update"),
    "plan": ("--config={config}",),
}
WITHOUT_JAX = {"report", "sweep"}


def test_every_command_is_listed():
    assert STARTS.keys() | WITHOUT_JAX == COMMANDS.keys()


@pytest.mark.parametrize("command", STARTS)
def test_every_command_skips_absent_devices(monkeypatch, tmp_path, command):
    class Called(Exception):
        pass

    def called():
        raise Called

    monkeypatch.setattr(accelerator_detection, "skip_absent", called)
    config = Path(__file__).parents[1] / "configs" / "default.py"
    data = tmp_path / "prompts.jsonl"
    rule = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    data.write_text(json.dumps({"prompt": "Say hello.", **rule}) + "\n")
    arguments = [a.format(config=config, folder=tmp_path, data=data) for a in STARTS[command]]
    with pytest.raises(Called):
        main([command, *arguments])
