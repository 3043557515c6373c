"""What is impossible from the start is refused before anything is computed."""

import json
from typing import Any

import pytest
import tiny_run

from seif_jax import checks_with_models, config_checks, propose
from seif_jax.config_file import read_config
from seif_jax.errors import UserError
from seif_jax.evolve import Evolution
from seif_jax.instruction import Instruction
from seif_jax.model_bundle import ModelBundle
from seif_jax.rewards import rule_library
from seif_jax.roles.reply_format import Message

ROWS = [
    {"prompt": f"{seed}\nBe kind.", "constraint": ["Be kind."], "seed_question": seed}
    for seed in tiny_run.SEEDS[:3]
]


@pytest.fixture(scope="module")
def begin(place):
    """Reads a config with options and everything that the run needs; the UserError's line."""
    data = place.folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(*options: str) -> str:
        named = [option.replace("ROWS", str(data)) for option in options]
        config = read_config(str(place.config), [f"--config.{option}" for option in named])
        silent: Any = None  # nothing is shown
        try:
            Evolution(config, place.folder / "never", ModelBundle.load(config.model), silent)
        except UserError as error:
            return str(error)
        return ""

    return run


FOLLOWER = ("stages=follower", "data.instructions=ROWS")


@pytest.mark.parametrize(
    "options, message",
    [
        (FOLLOWER, ""),
        ((*FOLLOWER, "follower.rollout_prompts=3"), ""),
        (
            (*FOLLOWER, "follower.rollout_prompts=4"),
            "config.follower.rollout_prompts must be at most 3 (got 4): there are only 3 instruct",
        ),
        (("stages=follower", "data.rules.kinds=punctuation:no_comma", "data.rules.per_prompt=1",
          "data.rules.last=1"), "config.follower.rollout_prompts must be at most 1 (got 2)"),
        (("stages=follower", "data.rules.kinds=punctuation:no_comma", "data.rules.first=6"),
         "config.data.rules.first must be less than 6, the number of seed questions (got 6)"),
        (("stages=generate", "follower.rollout_prompts=9"), ""),
        (("stages=generate,follower", "follower.rollout_prompts=9"), "at most 6 (got 9): at most"),
        (
            (*FOLLOWER, "follower.max_prompt_tokens=9"),
            "the length of the shortest prompt of config.data (got 9)",
        ),
        (
            ("stages=instructor,follower", "data.instructions=ROWS", "instructor.shots=0",
             "follower.shots=2", "follower.max_prompt_tokens=60"),
            "the length of the shortest prompt of config.data (got 60)",
        ),
        (("eval.every_steps=1", "eval.sets.held.kinds="), "config.eval.sets.held is empty: set"),
        (("eval.sets.held.kinds=",), ""),  # sets that are not evaluated do not matter
        (
            ("eval.every_steps=1", "eval.sets.held.path=ROWS", "follower.max_prompt_tokens=20"),
            "the length of the shortest prompt of config.eval.sets.held (got 20)",
        ),
        (
            ("eval.sets.held.path=ROWS", "eval.sets.held.first=3", "eval.sets.held.last=4"),
            "config.eval.sets.held.first must be less than 3, the number of rows of ",
        ),
        (("judger.model=/absent/model",), "config.judger.model: /absent/model: no such file"),
        (("follower.init=/absent/model",), "config.follower.init: /absent/model: no such file"),
    ],
)  # fmt: skip
def test_runs_that_cannot_end(begin, options, message):
    line = begin(*options)
    assert message in line and bool(message) == bool(line) and "\n" not in line


@pytest.mark.parametrize("key", ["judger.model", "instructor.init"])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_hidden_layers": 2}, "layers is 2, not 1"),
        ({"rope_theta": 5000.0}, "rope_frequencies is"),
        ({"intermediate_size": 48}, "mlp is 48, not 64"),
        ({"max_position_embeddings": 4096, "rms_norm_eps": 1.000001e-05}, ""),
    ],
)
def test_models_of_another_architecture(place, begin, key, changes, message):
    folder = place.folder / "_".join(changes)
    if not folder.exists():
        tiny_run.model_folder(folder, **changes)
    line = begin(f"{key}={folder}")
    assert message in line and bool(message) == bool(line)
    assert not line or line.startswith(f"config.{key}={folder} has another architecture than")


@pytest.mark.parametrize(
    "mode, checks, wanted",
    [("verdict", "judge", True), ("generate", "judge", False), ("verdict", "ifeval", False)],
)
def test_verdicts_that_are_more_than_a_token(place, monkeypatch, mode, checks, wanted):
    """Of the roles that the stages ask, in the mode that looks for a token."""
    tokenizer = ModelBundle.load(place.model).tokenizer
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: encode(text.replace("[[0", "?")))
    stages = ["--config.stages=follower", f"--config.reward.checks={checks}"]
    config = read_config(str(place.config), [*stages, f"--config.judger.mode={mode}"])
    if wanted:
        with pytest.raises(UserError, match="config.judger.prefill: '0' is not one token after"):
            checks_with_models.check_verdicts(config, tokenizer)
    else:
        checks_with_models.check_verdicts(config, tokenizer)


@pytest.mark.parametrize("checks", ["ifeval", "judge"])
def test_data_of_the_rules_that_are_not_installed(begin, monkeypatch, checks):
    monkeypatch.setattr(rule_library, "has_data", lambda path: False)
    assert "punkt_tab, which the rules need, is not inst" in begin(f"reward.checks={checks}")


def test_only_one_prompt_must_fit(place, monkeypatch):
    """The others are dropped; nothing after the first that fits is encoded."""
    config = read_config(str(place.config), ["--config.follower.max_prompt_tokens=40"])
    tokenizer = ModelBundle.load(place.model).tokenizer
    rows = [Instruction("", ("x",), text, ({},), ("soft",)) for text in ("long " * 50, "Hi", "")]
    encode_chat, seen = tokenizer.encode_chat, []

    def counting(dialogue: list[Message], prefill: str) -> list[int]:
        seen.append(dialogue)
        return encode_chat(dialogue, prefill)

    monkeypatch.setattr(tokenizer, "encode_chat", counting)
    checks_with_models.check_prompts(config, tokenizer, config_checks.prompts(config), "data", rows)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "reasons, message",
    [
        (["truncated"] * 7 + [""], "7 of 8 instructions dropped (7 truncated); raise config.instr"),
        (
            ["", "parse", "contradiction", "contradiction", "prompt_too_long"],
            "4 of 5 instructions dropped (2 contradiction, 1 parse, 1 prompt_too_long); set config",
        ),
        (["count"], "1 of 1 instructions dropped (1 count); read the completions in generate/"),
    ],
)
def test_why_instructions_are_dropped(reasons, message):
    assert propose.explain_drops(reasons).startswith(message)
