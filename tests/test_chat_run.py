"""Chat templates in the commands: what is refused before anything is sampled, the run's own time
and arguments, and what needs no template."""

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from tiny import CHATML

from seif_jax import run_dir
from seif_jax.__main__ import main
from seif_jax.chat_template import ChatSettings
from seif_jax.model_bundle import ModelBundle
from seif_jax.rl.stage import Stage
from seif_jax.tokenizer_files import CHAT_TEMPLATES

NO_SYSTEM = CHATML.replace("in messages", "in messages if message['role'] != 'system'")
NO_PROMPT = CHATML.partition("{% if add_generation_prompt %}")[0]
DATED = (
    "{{ 'On ' + strftime_now('%d %b %Y') }}{{ ' thinking' if enable_thinking is defined "
    "and enable_thinking }}" + CHATML
)


class Clock:
    """Stands in for datetime.datetime: `now` is what a test says."""

    fromisoformat = datetime.fromisoformat

    def __init__(self, text: str):
        self.text = text

    def now(self) -> datetime:
        return datetime.fromisoformat(self.text)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Stage]]:
    """The stages that runs come to; none is trained."""
    stages: list[Stage] = []
    monkeypatch.setattr("seif_jax.evolve.run_stage", lambda stage, *_: stages.append(stage) or {})
    yield stages


def with_template(place: tiny_run.Place, name: str, template: Any) -> Path:
    """A copy of the model with another chat template: a text, or named ones."""
    folder = place.folder / name
    if not folder.exists():
        shutil.copytree(place.model, folder)
        path = folder / "tokenizer_config.json"
        held = {**json.loads(path.read_text()), "chat_template": template}
        path.write_text(json.dumps(held))
    return folder


def run(place: tiny_run.Place, model: Path, workdir: Path, *more: str) -> list[str]:
    options = [f"--config={place.config}", f"--config.model={model}", f"--workdir={workdir}"]
    return ["run", *options, "--config.stages=instructor", *more]


@pytest.fixture
def done(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must succeed; what it prints."""

    def call(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return call


def test_roles_refuse_what_they_need(place, refused, done, stages, tmp_path):
    model = with_template(place, "no_system", NO_SYSTEM)
    line = refused(*run(place, model, tmp_path / "a"))  # plain: the Instructor has no system turn
    assert f"config.filter: {model}: the chat template drops the system turn; " in line
    line = refused(*run(place, model, tmp_path / "a", "--config.filter.on=False"))
    assert "config.judger: " in line and "drops the system turn" in line
    thinking = ("--config.filter.on=False", "--config.format=think_answer")
    line = refused(*run(place, model, tmp_path / "a", *thinking))
    assert "config.follower: " in line and "drops the system turn" in line  # the one that answers
    assert not (tmp_path / "a").exists() and stages == []
    alone = ("--config.filter.on=False", "--config.reward.checks=ifeval")
    done(*run(place, model, tmp_path / "a", *alone))
    other = with_template(place, "no_prompt", NO_PROMPT)
    line = refused(*run(place, other, tmp_path / "b", *alone))
    assert (
        f"config.follower: {other}: the chat template does not begin the assistant's turn" in line
    )


def test_examples_with_thoughts_that_a_template_cuts(place, refused, done, stages, tmp_path):
    """DeepSeek-R1's and Qwen3's templates leave an example's reply without its thought."""
    content = "message['content']"
    after = f"({content}.split('</think>')[-1] if message['role'] == 'assistant' else {content})"
    cut = CHATML.replace(content, after)
    model = with_template(place, "cut", cut)
    shots = ("--config.format=think_answer", "--config.instructor.shots=1")
    line = refused(*run(place, model, tmp_path / "a", *shots))
    assert "config.instructor: " in line and "with 0 shots there is none" in line
    done(*run(place, model, tmp_path / "a", shots[0]))


def test_the_date_of_a_run_is_that_of_its_start(place, done, stages, tmp_path, monkeypatch):
    model = with_template(place, "dated", DATED)
    prompts = []
    for time, workdir in (
        ("2024-02-28T23:59:30", tmp_path / "a"),
        ("2024-02-29T00:00:10", tmp_path / "a"),  # resumed after midnight
        ("2024-02-29T00:00:10", tmp_path / "b"),
    ):
        shutil.rmtree(workdir / "round_1", ignore_errors=True)  # as if it had stopped
        monkeypatch.setattr(run_dir, "datetime", Clock(time))
        done(*run(place, model, workdir, "--config.rounds=1"))
        tokenizer = stages[-1].model.bundle.tokenizer
        prompts.append(tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "a"}])))
    assert prompts[0] == prompts[1] and prompts[0].startswith("On 28 Feb 2024")
    assert prompts[2].startswith("On 29 Feb 2024")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["started"] == (
        "2024-02-28T23:59:30"
    )


def test_template_arguments_are_part_of_a_run(place, refused, done, stages, tmp_path):
    model = with_template(place, "dated", DATED)
    thinking = "--config.template_arguments.enable_thinking=True"
    once = run(place, model, tmp_path / "a", "--config.rounds=1")
    done(*once, thinking)
    tokenizer = stages[-1].model.bundle.tokenizer
    ids = tokenizer.encode_chat([{"role": "user", "content": "a"}])
    assert " thinking" in tokenizer.decode(ids)
    key = "template_arguments.enable_thinking"
    assert f"another config: {key} is true there, None here" in refused(*once)
    line = refused(*once, thinking.replace("True", "False"))
    assert f"{key} is true there, false here" in line
    another = run(place, model, tmp_path / "b", "--config.rounds=1")
    line = refused(*another, "--config.template_arguments.enable_thinkng=True")
    assert f"config.template_arguments.enable_thinkng: the chat template of {model}" in line


@pytest.mark.parametrize("model_of", ["", "hf"])
def test_a_trained_model_is_asked_as_its_run_asks_it(place, tmp_path, model_of):
    """Also from its Hugging Face folder, as long as that lies in the run's."""
    model = with_template(place, "dated", DATED)
    about = {
        "config": {"template_arguments": {"enable_thinking": True}},
        "started": "2025-03-07T08:09:10",
    }
    run_folder = tmp_path / "run"
    stage = run_folder / "round_2" / "follower"
    (stage / "checkpoints" / "3").mkdir(parents=True)
    for folder in (run_folder / "model", stage / "hf"):
        shutil.copytree(model, folder)
    (run_folder / "config.json").write_text(json.dumps(about))

    def prompt(path: Path, chat: ChatSettings | None = None) -> str:
        tokenizer = ModelBundle.load(path, chat).tokenizer
        return tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "a"}]))

    assert prompt(stage / model_of).startswith("On 07 Mar 2025 thinking")
    shutil.copytree(stage / "hf", tmp_path / "elsewhere")
    assert " thinking" not in prompt(tmp_path / "elsewhere")
    told = ChatSettings({"enable_thinking": False}, datetime(2024, 5, 6))  # another run's, say
    assert prompt(stage / model_of, told).startswith("On 06 May 2024")
    assert " thinking" not in prompt(stage / model_of, told)


def test_a_prefill_does_not_open_a_thought_twice(place, refused, done, stages, tmp_path):
    opened = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
    assert opened != CHATML
    model = with_template(place, "opens", opened)
    options = ("--config.format=think_answer", "--config.filter.on=False")
    again = "--config.instructor.prefill=\n<think>Let me"
    line = refused(*run(place, model, tmp_path / "a", *options, again))
    assert "config.instructor.prefill must not begin with <think>" in line
    line = refused(*run(place, model, tmp_path / "a", "--config.judger.prefill=<think>"))
    assert "config.judger.prefill must not begin with <think>" in line and stages == []
    done(*run(place, model, tmp_path / "a", *options, "--config.instructor.prefill=Let me"))
    plain = with_template(place, "plain", CHATML)
    done(*run(place, plain, tmp_path / "b", *options, "--config.instructor.prefill=<think>Let"))


def test_without_a_default_template(place, refused, done, stages, tmp_path):
    """convert and --raw need none; chats are refused with the names that there are."""
    model = with_template(place, "named", [{"name": "rag", "template": CHATML}])
    reason = f"{model}: the tokenizer has no chat template named 'default', only rag"
    generate = ("generate", f"--model={model}", "--prompt=The", "--max_tokens=2")
    assert refused(*generate).endswith(reason)
    assert refused(*run(place, model, tmp_path / "a")).endswith(reason)
    printed = done(*generate, "--raw", "--json", "--dtype=float32")
    assert json.loads(printed)["prompt"] == "The"
    folder = tmp_path / "converted"
    (model / CHAT_TEMPLATES).mkdir()
    (model / CHAT_TEMPLATES / "rag.jinja").write_text(CHATML)
    done("convert", model, folder)
    for name in ("tokenizer_config.json", f"{CHAT_TEMPLATES}/rag.jinja"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()


def test_generate_asks_no_template_that_drops_the_question(place, refused):
    dropped = CHATML.replace("message['content']", "message['content'][0]['text'] | default('')")
    model = with_template(place, "dropped", dropped)
    line = refused("generate", f"--model={model}", "--prompt=The word?")
    assert f"{model}: the chat template drops the user's text; " in line
