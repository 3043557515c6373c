"""The command line: what a user can mend is one line and exit code 2, and leaves nothing behind."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from mounts import mounted, read_only
from safetensors.numpy import load_file, save_file

from seif_jax import __main__, models, run_dir
from seif_jax.__main__ import main
from seif_jax.errors import RunError, UserError
from seif_jax.generate import heading
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.models.io import gguf


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in "run report evaluate generate convert bench plan sweep".split())],
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert "usage: seif" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, message",
    [
        ("nope=1", "no config key nope"),
        ("optim.lr=1e-5", r"no config key optim.lr; did you mean optim.learning_rate\?"),
        ("optim.learning_rate=nan", r"config.optim.learning_rate must be .* to 1 \(got nan\)"),
        ("stages=training", r"config.stages must be .* instructor, generate, .*\('training',\)"),
        ("instructor.rollout_prompts=3 optimizer_prompts=2", "a multiple of .*prompts=2 .got 3"),
        (
            "instructor.rollout_prompts=7",
            r"config.instructor.rollout_prompts must be at most 6 \(got 7\): there are only 6 seed",
        ),
        ("follower.rollout_prompts=7", "follower.rollout_prompts must be at most 6 .* is written"),
        ("data.limit=1", r"must be at most 1 \(got 2\): there are only 1 seed questions .*limit"),
        (
            "instructor.max_prompt_tokens=9",
            "round 1 instructor: all 6 prompts are longer than config.instructor.max_prompt_tokens",
        ),
        (
            "instructor.max_response_tokens=9000",
            r"config.instructor.max_prompt_tokens=\d+ and "
            "config.instructor.max_response_tokens=9000 exceed the model's 8192 positions",
        ),
        (
            "judger.max_tokens=8192",
            r"config.judger.max_prompt_tokens=\d+ and config.judger.max_tokens=8192 exceed",
        ),
        ("eval.sets.mine.pth=x", r"key eval.sets.mine.pth; did you mean eval.sets.mine.path\?"),
        ("data.column=question", "the columns are 'prompt'; set config.data.column to"),
        ("data.seeds=absent.jsonl", "absent.jsonl: no such file"),
        ("data.instructions=absent.parquet", "config.stages must not contain 'generate'"),
        (
            "judger.devices=[7]",
            r"config.judger.devices must be 'shared', a number of devices, or a list of some",
        ),
        ("judger.devices=1", "config.judger.devices='1' takes 1 of 1 devices; each process must"),
        ("judger.model=/absent", "/absent"),
        ("lora.rank=2 targets=()", "config.lora.targets is empty: with config.lora.rank=2 nothing"),
    ],
)
def test_a_config_that_cannot_be(place, refused, override, message):
    """The key is named; no folder is left, so that the mended command can have it."""
    key, *more = override.split()
    role = key.partition(".")[0]
    options = [f"--config.{key}", *(f"--config.{role}.{other}" for other in more)]
    workdir = place.folder / "refused"
    line = refused("run", f"--config={place.config}", f"--workdir={workdir}", *options)
    assert line.startswith("seif run: ")
    assert re.search(message, line), line
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("argument", "hint"),
    [("--rounds=3", True), ("--optim.learning_rate=1", True), ("--lr=1", False), ("more", False)],
)
def test_a_key_without_its_prefix(place, refused, argument, hint):
    key = argument.removeprefix("--").partition("=")[0]
    line = refused("run", f"--config={place.config}", "--workdir=never", argument)
    told = f"; a key of the config is set by --config.{key}=VALUE" if hint else ""
    assert line == f"seif run: unknown argument {argument}{told}"


def test_a_workdir_that_is_no_path(place, refused):
    line = refused("run", f"--config={place.config}", "--workdir=https://bucket/run")
    assert "https://bucket/run: a URL must be gs://BUCKET/NAME or s3://BUCKET/NAME" in line
    assert not Path("https:").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty.jsonl: no rows"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "row 2: no column 'prompt'"),
        ('{"prompt": "a"}\n{"prompt": 5}\n', "row 2: 'prompt' must be text"),
        ('{"prompt": "a"}\nnot JSON\n', "line 2 is not JSON"),
    ],
)
def test_seeds_that_cannot_be(place, refused, text, message):
    seeds, workdir = place.folder / "empty.jsonl", place.folder / "refused"
    seeds.write_text(text)
    options = (f"--config={place.config}", f"--workdir={workdir}", f"--config.data.seeds={seeds}")
    assert message in refused("run", *options)
    assert not workdir.exists()


@pytest.mark.parametrize("key", ["data.instructions", "eval.sets.held.path"])
@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"instruction_id_list": "length_constraints:number_words", "kwargs": {"num_words": 5}},
            "row 2: length_constraints:number_words: argument 'relation' is missing",
        ),
        (
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "berlin"}]},
            "row 2: keywords:existence: keywords must be a list of words that is not empty (got "
            "'berlin')",
        ),
        ({"constraint": ["a", 5]}, "row 2: 'constraint' must be text (got 5)"),
    ],
)
def test_rows_that_cannot_be(place, refused, key, row, message):
    """They are refused when the run starts, not when they are first scored."""
    good = {"prompt": "Say this.", "constraint": "Be kind."}
    path, workdir = place.folder / "rows.jsonl", place.folder / "refused"
    path.write_text("".join(json.dumps(one) + "\n" for one in (good, {**good, **row})))
    options = ["--config.stages=follower", f"--config.{key}={path}"]
    if key != "data.instructions":
        options.append("--config.data.rules.kinds=punctuation:no_comma")
        options.append("--config.data.rules.per_prompt=1")
    line = refused("run", f"--config={place.config}", f"--workdir={workdir}", *options)
    assert f"{path}: {message}" in line
    assert not workdir.exists()


def test_config_files_that_cannot_be(place, refused):
    for number, (text, message) in enumerate((
        (None, "bad_0.py: no such config file"),
        ("def get_config(:", "invalid syntax"),
        ("import absent_module", "absent_module"),
        ("def get_config():\n    return undefined", "undefined"),
    )):  # fmt: skip
        bad = place.folder / f"bad_{number}.py"
        if text is not None:
            bad.write_text(text)
        assert message in refused("run", f"--config={bad}", f"--workdir={place.folder}/refused")
    assert not (place.folder / "refused").exists()


def test_models_that_cannot_be(place, refused):
    folder, workdir = place.folder / "other", place.folder / "refused"
    base = ModelBundle.load(place.model)
    base.save(folder)
    options = (f"--config={place.config}", f"--workdir={workdir}", f"--config.model={folder}")
    assert "other: no weights (no model.safetensors" in refused("run", *options)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin is a pickle" in refused("run", *options)
    for changes, message in (
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported, only llama"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"vocab_size": 100}, "the tokenizer has 323 tokens, the model only 100"),
    ):
        config = {**base.model.hf_config, **changes}
        (folder / "config.json").write_text(json.dumps(config))
        assert message in refused("run", *options)
        assert message in refused("generate", f"--model={folder}", "--prompt=x")
        assert message in refused("convert", folder, place.folder / "refused")
    (folder / "config.json").unlink()
    assert "config.json: no such file" in refused("run", *options)
    assert not workdir.exists()


def test_workdirs_that_cannot_be(place, refused, monkeypatch, capsys):
    monkeypatch.setattr("seif_jax.evolve.run_stage", lambda *_: {})
    run = ("run", f"--config={place.config}", "--config.stages=instructor")
    workdir = place.folder / "taken"
    assert main([*run, f"--workdir={workdir}"]) == 0
    capsys.readouterr()
    line = refused(*run, f"--workdir={workdir}", "--config.seed=3")
    assert "holds a run of another config: seed is 0 there, 3 here" in line
    notes = place.folder / "notes"
    notes.mkdir()
    (notes / "todo.txt").write_text("mine")
    for other in (notes, place.model):
        assert "holds other files and no run" in refused(*run, f"--workdir={other}")
    assert [path.name for path in notes.iterdir()] == ["todo.txt"]
    empty = place.folder / "empty"
    empty.mkdir()
    assert main([*run, f"--workdir={empty}"]) == 0


HOLDS = """
import sys, time
from pathlib import Path
from seif_jax.files import sole_use

with sole_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("begun", [False, True])
def test_a_workdir_that_another_process_uses(place, refused, monkeypatch, capsys, tmp_path, begun):
    """The other one keeps its folder as it is; killed, it leaves no lock."""
    monkeypatch.setattr("seif_jax.evolve.run_stage", lambda *_: {})
    workdir = tmp_path / "run"
    workdir.mkdir()
    run = ["run", f"--config={place.config}", f"--workdir={workdir}", "--config.stages=instructor"]
    if begun:
        assert main(run) == 0
        capsys.readouterr()
    before = sorted(workdir.rglob("*"))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(workdir)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout and other.stdout.readline() == "held\n"
    assert f"{workdir} is in use by another process" in refused(*run)
    assert sorted(workdir.rglob("*")) == before
    other.kill()
    other.wait()
    assert main(run) == 0


def test_a_run_is_the_same_from_another_folder(place, refused, monkeypatch, tmp_path, capsys):
    """Files are named relatively: the same ones go on, others of the same names are refused."""
    monkeypatch.setattr("seif_jax.evolve.run_stage", lambda *_: {})
    project, below, moved = tmp_path / "project", tmp_path / "project" / "below", tmp_path / "moved"
    below.mkdir(parents=True)
    shutil.copytree(place.model, project / "model")
    seeds = "".join(json.dumps({"prompt": f"Say {word}."}) + "\n" for word in ("this", "that"))
    (project / "seeds.jsonl").write_text(seeds)
    row = {"prompt": "Say this. Be kind.", "constraint": ["Be kind."]}
    (project / "held.jsonl").write_text(json.dumps(row) + "\n")

    def command(workdir: Path, folder: str) -> list[str]:
        names = {"model": "model", "data.seeds": "seeds.jsonl", "eval.sets.held.path": "held.jsonl"}
        given = [f"--config.{key}={folder}{name}" for key, name in names.items()]
        sizes = [f"--config.instructor.{key}_prompts=1" for key in ("rollout", "optimizer")]
        run = ["run", f"--config={place.config}", f"--workdir={workdir}"]
        return [*run, "--config.stages=instructor", *given, *sizes]

    monkeypatch.chdir(project)
    assert main(command(Path("run"), "")) == 0
    monkeypatch.chdir(below)
    assert main(command(Path("../run"), "../")) == 0
    shutil.copytree(project, moved)
    monkeypatch.chdir(moved)
    assert main(command(Path("run"), "")) == 0
    capsys.readouterr()
    (moved / "seeds.jsonl").write_text(seeds.replace("that", "those"))
    line = refused(*command(Path("run"), ""))
    assert 'data.seeds is "seeds.jsonl" with other contents there, "seeds.jsonl" here' in line
    monkeypatch.chdir(tmp_path)
    tiny_run.model_folder(tmp_path / "model", seed=12)
    for name in ("seeds.jsonl", "held.jsonl"):
        shutil.copy(project / name, name)
    line = refused(*command(project / "run", ""))
    assert 'run of another config: model is "model" with other contents there, "model" here' in line


def test_the_embedded_model_is_named_wherever_a_model_is(place, monkeypatch, tmp_path, capsys):
    """Also beside a folder of that name."""
    monkeypatch.setattr(gguf, "embedded_path", lambda: place.model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2" / "checkpoints").mkdir(parents=True)
    sizes = ["--prompt=The word", "--max_tokens=2", "--dtype=float32"]
    assert main(["generate", "--model=smollm2", *sizes]) == 0
    assert main(["convert", "smollm2", "out"]) == 0
    assert "embedded" not in capsys.readouterr().err
    stages = []
    monkeypatch.setattr("seif_jax.evolve.run_stage", lambda stage, *_: stages.append(stage) or {})
    keys = ("model", "instructor.init", "judger.model")
    names = [f"--config.{key}=smollm2" for key in keys]
    run = ["run", f"--config={place.config}", "--config.stages=instructor", "--config.rounds=1"]
    assert main([*run, "--workdir=run", *names]) == 0
    model = load_params(place.model, ModelBundle.load(place.model).model)
    jax.tree.map(np.testing.assert_array_equal, stages[0].model.load(), model)
    judger = stages[0].task.checker.judge.chat_model.engine.params
    jax.tree.map(np.testing.assert_array_equal, judger, model)


ERROR = "--config.instructor.max_prompt_tokens=9"  # found once the run's folder is there


@pytest.mark.parametrize("workdir", [".", "./", "../{here}", "../link", "../dangling", "new"])
def test_a_users_error_leaves_the_workdir_as_it_was(place, refused, tmp_path, monkeypatch, workdir):
    """Nothing in it, and there only if it was; so the mended command can have it."""
    here, absent = tmp_path / "here", tmp_path / "absent"
    here.mkdir()
    (tmp_path / "link").symlink_to("here")
    (tmp_path / "dangling").symlink_to("absent")
    monkeypatch.chdir(here)
    path = workdir.format(here="here")
    line = refused("run", f"--config={place.config}", f"--workdir={path}", ERROR)
    assert "prompts are longer than config.instructor.max_prompt_tokens=9" in line
    assert not list(here.iterdir()) and not absent.exists()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dangling").is_symlink()
    monkeypatch.setattr("seif_jax.evolve.run_stage", lambda *_: {})
    run = ["run", f"--config={place.config}", f"--workdir={path}", "--config.stages=instructor"]
    assert main(run) == 0
    assert (Path(path) / "config.json").is_file()


def test_a_users_error_is_not_hidden_by_cleaning_up(place, refused, tmp_path, monkeypatch):
    """A file that cannot be removed; and one that somebody else put there meanwhile stays."""

    def train_and_fail(*_):
        (tmp_path / "run" / "notes.txt").write_text("mine")
        raise UserError("row 3 is bad")

    monkeypatch.setattr("seif_jax.evolve.run_stage", train_and_fail)
    run = ("run", f"--config={place.config}", f"--workdir={tmp_path}/run")
    assert refused(*run).endswith("row 3 is bad")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    shutil.rmtree(tmp_path / "run")

    def refuse(path):
        raise PermissionError(errno.EPERM, "no", str(path))

    monkeypatch.setattr(run_dir, "remove", refuse)
    assert refused(*run).endswith("row 3 is bad")


@pytest.mark.parametrize(
    "workdir, message",
    [
        ("file", "file is a file; give another --workdir"),
        ("", "the path of the folder to write is empty"),
        ("file/run", "file/run: Not a directory"),
        ("loop", "loop: Too many levels of symbolic links"),
        ("/proc/run", "/proc/run: No such file or directory"),
        ("x" * 300, "x: File name too long"),
    ],
)
def test_workdirs_that_cannot_be_made(place, refused, tmp_path, monkeypatch, workdir, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    line = refused("run", f"--config={place.config}", f"--workdir={workdir}")
    assert message in line and Path("file").read_text() == "mine"
    assert sorted(os.listdir()) == ["file", "loop"]


def test_a_workdir_on_a_read_only_disk(place, refused, tmp_path):
    with mounted(tmp_path / "disk", "1m") as disk:
        read_only(disk)
        line = refused("run", f"--config={place.config}", f"--workdir={disk}/run")
        assert line == f"seif run: {disk}/run: Read-only file system"


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("row 3 is bad"), 2, "row 3 is bad"),
        (RunError("no verdicts"), 1, "no verdicts"),
        (KeyboardInterrupt(), 130, "stopped"),
        (
            PermissionError(errno.EACCES, "x", "m/config.json"),
            2,
            "m/config.json: Permission denied",
        ),
        (OSError(errno.ENOSPC, "x"), 2, "standard output: No space left on device"),
        (TimeoutError("the hub does not answer"), 1, "the hub does not answer"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), 1, "reset by peer"),
        (BrokenPipeError(errno.EPIPE, "x"), 141, None),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, line):
    def fail(options, rest):
        print("what was finished")
        raise error

    monkeypatch.setitem(__main__.COMMANDS, "generate", fail)
    assert main(["generate"]) == code
    out, err = capsys.readouterr()
    assert out == "what was finished\n"
    assert err == (f"seif generate: {line}\n" if line else "")


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(__main__.COMMANDS, "generate", lambda options, rest: [][0])
    with pytest.raises(IndexError):
        main(["generate"])


PRINTS = """
import sys
from seif_jax import __main__
from seif_jax.display import Display

def generate(options, rest):
    for _ in range(int(sys.argv[2])):
        if sys.argv[1] == "stdout":
            print("a line")
        else:
            Display().note("a line")

__main__.COMMANDS["generate"] = generate
sys.exit(__main__.main(["generate"]))
"""


@pytest.mark.parametrize("count", [1, 100_000])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_nobody_reads_the_output(stream, count):
    """As with `seif generate | head -1`: quiet, and the exit code that a shell gives to SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", PRINTS, stream, str(count)]
    out, err = (writer if name == stream else subprocess.PIPE for name in ("stdout", "stderr"))
    done = subprocess.run(command, stdout=out, stderr=err, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert not done.stdout and not done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("count", [1, 100_000])
def test_output_on_a_full_disk(count):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", PRINTS, "stdout", str(count)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr == b"seif generate: standard output: No space left on device\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["run", "--workdir=x"], "--config"),
        (["run", "--config=x", "--workdir=x", "--seed=1"], "unknown argument --seed=1"),
        (["convert", "x"], "DST"),
        (["generate", "--temperature=hot"], "invalid float value: 'hot'"),
        (["generate", "--dtype=int8"], "invalid choice: 'int8'"),
        (["generate", "--beams=4"], "unknown argument --beams=4"),
        (["generate", "--prompt=x", "--n=0"], "--n must be 1 or more (got 0)"),
        (["generate", "--prompt=x", "--max_tokens=0"], "--max_tokens must be 1 or more (got 0)"),
        (["generate", "--prompts=/absent.txt"], "/absent.txt: no such file"),
        (["generate", "--prompts=/absent.jsonl"], "/absent.jsonl: no such file"),
        (["generate", "--model=/absent", "--prompt=x"], "/absent: no such file or folder"),
        (["generate", "--model=smollm", "--prompt=x"], "the embedded model is called 'smollm2'"),
        (["convert", "smolm2", "out"], "the embedded model is called 'smollm2'"),
    ],
)
def test_usage_errors(refused, arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_tokens=8192"], "--max_tokens must be less than the model's 8192 positions"),
        (["--max_tokens=8190"], "at most 2 fit the model's 8192 positions with --max_tokens=8190"),
        (["--prompt=", "--raw"], "a prompt is empty, and --raw leaves nothing to continue"),
        (["--temperature=-2"], "--temperature must be 0 or a number from 0.01 to 10 (got -2.0)"),
        (["--top_k=-3"], "--top_k must be a whole number from 0"),
    ],
)
def test_what_generate_cannot_do(place, refused, options, message):
    assert message in refused("generate", f"--model={place.model}", "--prompt=The word", *options)


def test_prompts_that_cannot_be(place, refused, monkeypatch):
    model = f"--model={place.model}"
    for raw, message in (
        (b"\n \n", "no prompts: give --prompt=TEXT"),
        (b"\xe9", "standard input: "),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert message in refused("generate", model)
    questions = place.folder / "questions.csv"
    questions.write_text("question,n\nWhy?,1\n")
    line = refused("generate", model, f"--prompts={questions}")
    assert "row 1: no column 'prompt', the columns are 'question', 'n'; set --column" in line
    latin = place.folder / "latin.txt"
    latin.write_bytes(b"caf\xe9\n")
    assert "latin.txt: " in refused("generate", model, f"--prompts={latin}")
    line = refused("generate", model, "--prompt=" + "long " * 40, "--max_tokens=8100")
    assert "'long long" in line and "at most 92 fit" in line
    options = ("--temperature=-1", "--temperature=nan", "--temperature=inf", "--top_p=0.0",
               "--top_p=nan", "--top_k=-1")  # fmt: skip
    for option in options:
        name, _, value = option.removeprefix("--").partition("=")
        line = refused("generate", model, "--prompt=x", option)
        assert f"{name} must be " in line and f"(got {value}" in line


def test_generate_json(place, capsys):
    model = f"--model={place.model}"
    more = ["--prompt=The word", "--prompt=user", "--n=2", "--max_tokens=6", "--dtype=float32"]
    assert main(["generate", model, "--raw", "--json", *more]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["prompt"] for one in found] == ["The word", "The word", "user", "user"]
    base = ModelBundle.load(place.model)
    params = load_params(place.model, base.model)
    for one in found:
        assert set(one) == {"prompt", "text", "token_ids", "logprobs", "finish_reason"}
        ids = one["token_ids"]
        assert one["text"] == base.tokenizer.decode(ids)
        assert one["finish_reason"] == ("stop" if ids[-1] == 2 else "length")
        assert len(ids) == 6 or one["finish_reason"] == "stop"
        tokens = jnp.array([[*base.tokenizer.encode(one["prompt"]), *ids]])
        positions = jnp.arange(tokens.shape[1])[None]
        hidden, _ = models.forward(base.model.config, params, tokens, positions, dtype=jnp.float32)
        logp = jax.nn.log_softmax(models.logits(params, hidden, jnp.float32))[0]
        wanted = logp[np.arange(-len(ids), 0) - 1, ids]
        np.testing.assert_allclose(one["logprobs"], wanted, atol=1e-4)


MARK = "\ufeff"
CHAT = json.dumps([{"role": "system", "content": "x"}, {"role": "user", "content": "The word"}])


@pytest.mark.parametrize(
    "name, text, options",
    [
        ("p.txt", f"{MARK}The word\r\n\r\nuser\r\n", []),
        ("p.csv", f"{MARK}n,prompt\n1,The word\n2,user\n", []),
        ("p.csv", "prompt,question\nno,The word\nno,user\n", ["--column=question"]),
        ("p.jsonl", '{"question": "The word"}\n{"question": "user"}\n', ["--column=question"]),
        ("p.json", f'[{{"prompt": {CHAT}}}, {{"prompt": "user"}}]', []),
        (None, f"{MARK}The word\nuser\n", []),
    ],
)
def test_generate_reads_prompts(place, capsys, monkeypatch, name, text, options):
    """Plain output says which prompt each text answers; one alone stands by itself."""
    if name:
        (place.folder / name).write_text(text)
        options = [*options, f"--prompts={place.folder / name}"]
    else:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    sizes = ["--max_tokens=4", "--dtype=float32", "--temperature=0"]
    assert main(["generate", f"--model={place.model}", *sizes, *options]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"\[1/2\] The word\n.*\n\n\[2/2\] user\n.*\n\n", out, re.DOTALL), out
    assert ("1 of 2 prompts are chats" in err) == (name == "p.json")


def test_headings_of_generated_texts():
    assert heading(0, ["Why?", "a\n\n b"], 1) == "[1/2] Why?"
    assert heading(1, ["Why?", "a\n\n b"], 1) == "[2/2] a b"
    assert heading(4, ["Why?", "b"], 3) == "[2/2, completion 2/3] b"
    assert heading(2, ["为什么" * 99], 3) == f"[1/1, completion 3/3] {'为什么' * 26}为…"


def test_generate_prints_no_nan(place, capsys):
    """Of weights that are not finite, which --no_scan takes, the log-probabilities are null."""
    folder = place.folder / "not_finite"
    shutil.copytree(place.model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * np.float32("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    command = ["generate", f"--model={folder}", "--prompt=Hi", "--max_tokens=3", "--dtype=float32"]
    assert main([*command, "--json", "--no_scan"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["logprobs"] == [None] * len(found["token_ids"])
