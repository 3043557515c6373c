"""The table of config keys, config files, and options on the command line."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seif_jax import config_checks, config_parsing
from seif_jax.config_file import read_config
from seif_jax.config_types import Choice, Flag, Many, Number, Scalar, Text, Values
from seif_jax.errors import UserError
from seif_jax.run_config import RuleSetConfig

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / "configs" / "default.py"
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
NAN, INF = float("nan"), float("inf")


def with_a_set() -> Any:
    """The default config with an evaluation set, so that every entry of the table has its key."""
    spec = importlib.util.spec_from_file_location("default_config", DEFAULT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.eval.sets.mine = module.rule_set()
    config.template_arguments.mine = False
    return config


LEAVES = config_parsing.flat(with_a_set().to_dict())
NUMBERS = [name for name, value in LEAVES.items() if isinstance(value, (int, float))]
NUMBERS = [name for name in NUMBERS if not isinstance(LEAVES[name], bool)]


def values_of(name: str) -> Values:
    values = config_parsing.values_of_key(name)
    assert values, f"configs/default.py has {name}, the table has not"
    return values


def numbers_of(values: Any) -> Number | None:
    """The range of a number, or of the numbers in a tuple."""
    values = values.element if isinstance(values, Many) else values
    return values if isinstance(values, Number) else None


def refused(name: str, value: Any) -> str:
    """The one line that refuses the value in a config file."""
    config = with_a_set()
    with config.ignore_type():
        config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError) as error:
        config_parsing.parse(config.to_dict())
    line = str(error.value)
    assert "\n" not in line
    return line


def test_the_table_has_every_key_and_no_other():
    named = {name.replace(".mine", ".*") for name in LEAVES}
    assert named == config_parsing.KEYS.keys()


@pytest.mark.parametrize("name", LEAVES)
def test_a_default_is_of_the_kind_that_the_table_says(name):
    value, values = LEAVES[name], values_of(name)
    assert value in values
    if value is not None:
        kinds = {int: Number, float: Number, bool: (Flag, Scalar), tuple: Many}
        kinds |= {str: (Text, Choice)}
        assert isinstance(values, kinds[type(value)])
    found = numbers_of(values)
    if found and not isinstance(values, Many):
        assert found.type is type(value)


def test_every_number_has_a_range():
    assert len(NUMBERS) > 60
    for name in NUMBERS:
        values = values_of(name)
        assert isinstance(values, Number) and -INF < values.low < values.high < INF


@pytest.mark.parametrize("name", [*NUMBERS, "follower.epochs", "instructor.epochs"])
def test_numbers_that_cannot_be(name):
    """NaN, infinities, what is out of range, True for 1, other types."""
    values = values_of(name)
    found = numbers_of(values)
    assert found
    assert True not in values  # a ConfigDict itself makes 1.0 of it where the default is a float
    bad = [NAN, INF, -INF, None, "1", found.type(found.high * 2 + 1), found.type(found.low - 3)]
    bad += [1.5, 2.0, True] if found.type is int else []
    for value in bad:
        value = (1, value) if isinstance(values, Many) else value
        assert value not in values
        assert refused(name, value) == f"config.{name} must be {values} (got {value!r})"
    for value in (found.low, found.high, *found.special):
        assert ((value,) if isinstance(values, Many) else value) in values


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("format", "xml", "config.format must be one of: think_answer, plain (got 'xml')"),
        ("dtype", "float16", "one of: auto, bfloat16, float32 (got 'float16')"),
        ("dtype", None, "one of: auto, bfloat16, float32 (got None)"),
        ("judger.dtype", "int8", "one of: bfloat16, float32 (or unset) (got 'int8')"),
        ("filter.mode", "random", "one of: generate, verdict (got 'random')"),
        ("reward.checks", "judge", "1 or more values separated by commas, each one of: ifeval"),
        ("reward.checks", "hybrid", "(got 'hybrid'; write ifeval,judge)"),
        ("reward.checks", ("rules",), "MODULE:FUNCTION (got ('rules',); write ifeval)"),
        ("reward.checks", ("my-checks:f",), "MODULE:FUNCTION (got ('my-checks:f',))"),
        ("reward.checks", ("a:b:c",), "(got ('a:b:c',))"),
        ("reward.checks", (), "(got ())"),
        ("instructor.reward", "hard", "difficulty, learnability, MODULE:FUNCTION (got 'hard')"),
        ("optim.moments", "int4", "one of: float32, bfloat16, int8 (got 'int4')"),
        ("remat", ("full",), "one of: full, dots, none (got ('full',))"),
        ("filter.on", 1, "config.filter.on must be True or False (got 1)"),
        ("data.column", None, "config.data.column must be text (got None)"),
        ("data.seeds", 3, "config.data.seeds must be text or unset (got 3)"),
        ("stages", (), "1 or more values separated by commas, each one of: instructor, generate"),
        ("stages", ("follower", "train"), "(got ('follower', 'train'))"),
        ("follower.epochs", (), "1 or more values separated by commas, each a whole number"),
        ("follower.epochs", (1.5,), "each a whole number from 1 to 1000 (got (1.5,))"),
        ("lora.targets", ("embed",), "each one of: q, k, v, o, gate, up, down (got ('embed',))"),
        ("eval.sets.mine.kinds", ("nope",), "config.eval.sets.mine.kinds must be values separated"),
        ("template_arguments.mine", (1,), "text, a number, True, False or None (got (1,))"),
        ("follower.shots", -1, "config.follower.shots must be a whole number from 0 to 1000000000"),
    ],
)
def test_texts_flags_and_tuples_that_cannot_be(name, value, message):
    assert message in refused(name, value)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"instructor.rollout_prompts": 100},
            "config.instructor.rollout_prompts must be a multiple of "
            "config.instructor.optimizer_prompts=96 (got 100)",
        ),
        (
            {"eval.sets.mine.first": 9, "eval.sets.mine.last": 9},
            "config.eval.sets.mine.last must be 0 (to the end) or more than "
            "config.eval.sets.mine.first=9 (got 9)",
        ),
        ({"data.rules.first": 9, "data.rules.last": 3}, "config.data.rules.last must be 0"),
        ({"lora.rank": 4, "lora.targets": ()}, "config.lora.targets is empty"),
        (
            {"follower.shots": 3},
            "config.follower.shots must be at most 2, the number of examples in the packaged "
            "prompts (got 3)",
        ),
        ({"filter.shots": 5}, "config.filter.shots must be at most 4"),
    ],
)
def test_values_that_do_not_go_together(changes, message):
    config = with_a_set()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        config_parsing.parse(config.to_dict())
    assert message in str(error.value)


def test_keys_that_are_unknown_or_missing_in_a_file():
    config = with_a_set()
    config.optim.lr = 1e-5
    with pytest.raises(UserError, match="no config key optim.lr; did you mean optim.learning_rate"):
        config_parsing.parse(config.to_dict())
    config = with_a_set()
    del config.grpo.clip_dual
    with pytest.raises(UserError, match="the config has no key grpo.clip_dual; base it on"):
        config_parsing.parse(config.to_dict())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configs_are_in_the_ranges(path):
    config_checks.check(read_config(str(path), []))


@given(st.integers() | st.floats() | st.booleans() | st.none() | st.text())
def test_a_number_in_a_range_is_one_number_of_its_type(value):
    for kind in (int, float):
        if value in Number(kind, -5, 5, (9,)):
            assert type(value) in (int, kind) and (-5 <= value <= 5 or value == 9)
            assert math.isfinite(value)


def config_of(*options: str, path: Any = DEFAULT) -> Any:
    return read_config(str(path), [f"--config.{option}" for option in options])


STAGES = {"data.rules.kinds": ("stages=follower",)}  # that do not contradict a key's value


@pytest.mark.parametrize(
    "name, text, wanted",
    [
        ("stages", "follower", ("follower",)),
        ("stages", "generate,follower", ("generate", "follower")),
        ("stages", "generate, follower", ("generate", "follower")),
        ("stages", "('generate', 'follower')", ("generate", "follower")),
        ("stages", "(generate,follower)", ("generate", "follower")),
        ("stages", "['generate']", ("generate",)),
        ("stages", "[generate,follower]", ("generate", "follower")),
        ("follower.epochs", "6", (6,)),
        ("follower.epochs", "6,", (6,)),
        ("follower.epochs", "(6,)", (6,)),
        ("follower.epochs", "3,1,2", (3, 1, 2)),
        ("lora.targets", "q", ("q",)),
        ("lora.targets", "", ()),
        ("lora.targets", "()", ()),
        (
            "data.rules.kinds",
            "punctuation:no_comma,keywords:existence",
            ("punctuation:no_comma", "keywords:existence"),
        ),
        ("filter.on", "false", False),
        ("filter.on", "True", True),
        ("generate.filter", "no", False),
        ("optim.learning_rate", "1e-5", 1e-5),
        ("optim.learning_rate", "1", 1.0),
        ("model", "a=b,c", "a=b,c"),
        ("model", "", ""),
        ("instructor.prefill", '{"c1": "x', '{"c1": "x'),
        ("judger.dtype", "float32", "float32"),
        ("mesh.tensor", "-1", -1),
    ],
)
def test_values_on_the_command_line(name, text, wanted):
    value = config_parsing.get(config_of(f"{name}={text}", *STAGES.get(name, ())), name)
    assert (value, type(value)) == (wanted, type(wanted))


def test_a_flag_needs_no_value():
    config = config_of("grpo.mask_truncated", "scan_weights=0")
    assert (config.grpo.mask_truncated, config.scan_weights) == (True, False)


@pytest.mark.parametrize(
    "name, values",
    [
        ("follower.epochs", ["(6,)", "(9,)"]),
        ("follower.epochs", ["1,2,3", "4,5"]),
        ("stages", ["generate", "instructor,follower"]),
        ("lora.targets", ["q,k", "v"]),
        ("seed", ["1", "2"]),
        ("filter.on", ["false", "true"]),
    ],
)
def test_of_a_key_given_twice_the_last_value_counts(name, values):
    twice, once = (
        config_of("rounds=2", *(f"{name}={value}" for value in some))
        for some in (values, values[-1:])
    )
    assert twice == once


@pytest.mark.parametrize(
    "option, message",
    [
        ("optim.lr=1", "no config key optim.lr; did you mean optim.learning_rate?"),
        ("lr=1", "no config key lr; did you mean optim.learning_rate?"),
        ("learning_rate=1", "did you mean optim.learning_rate?"),
        ("optim.learning_rat=1", "did you mean optim.learning_rate?"),
        ("learning_rte=1", "did you mean optim.learning_rate?"),
        ("grpo.learning_rate=1", "did you mean optim.learning_rate?"),
        ("follower.tempalte=1", "follower.tempalte; did you mean follower.temperature?"),
        ("amateur=1", "no config key amateur; configs/default.py has them all"),
        ("optim.wd=1", "did you mean optim.weight_decay?"),
        ("optimizer.lr=1", "did you mean optim.learning_rate?"),
        ("follwer.epochs=1", "did you mean follower.epochs?"),
        ("kl_coef=1", "did you mean grpo.kl_coef?"),
        ("judge.mode=verdict", "did you mean judger.mode?"),
        ("follower.max_tokens=5", "follower.max_response_tokens"),
        ("rollout_prompts=4", "follower.rollout_prompts or instructor.rollout_prompts?"),
        ("grpo.beta=1", "no config key grpo.beta; the keys of grpo are advantage, clip_"),
        ("rounds.first=1", "no config key rounds.first"),
        ("model.path=x", "no config key model.path"),
        ("nope=1", "no config key nope; configs/default.py has them all"),
        ("=1", "no config key "),
        (
            "eval.sets.mine.sed=1",
            "no config key eval.sets.mine.sed; did you mean eval.sets.mine.seed",
        ),
        ("eval.sets.seed=1", "no config key eval.sets.seed"),
        ("optim=1", "config.optim is a group of keys: set one of them, config.optim.KEY"),
        ("seed", "--config.seed needs a value: --config.seed=VALUE"),
        ("rounds=1.5", "config.rounds must be a whole number from 1 to 999 (got '1.5')"),
        ("rounds=True", "config.rounds must be a whole number from 1 to 999 (got 'True')"),
        ("rounds=", "config.rounds must be a whole number from 1 to 999 (got '')"),
        ("optim.learning_rate=fast", "a number from 1e-12 to 1 (got 'fast')"),
        ("filter.on=maybe", "config.filter.on must be True or False (got 'maybe')"),
    ],
)
def test_options_that_cannot_be(option, message):
    with pytest.raises(UserError) as error:
        config_of(option)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_evaluation_set_on_the_command_line():
    rules = {"kinds": ("punctuation:no_comma",), "per_prompt": 1, "first": 0, "last": 4, "seed": 0}
    rules["path"] = None
    config = config_of(f"eval.sets={ {'mine': rules} }", "eval.sets.mine.last=8")
    assert config.eval.sets["mine"].last == 8
    config = config_of("eval.sets.held.path=h.jsonl", "eval.sets.other.kinds=punctuation:no_comma")
    assert config.eval.sets == {
        "held": RuleSetConfig(path="h.jsonl"),
        "other": RuleSetConfig(kinds=("punctuation:no_comma",)),
    }


def test_colons_in_the_path_of_a_config(tmp_path, monkeypatch):
    """The longest part that is a file is the file; what follows is get_config's argument."""
    base = (
        f"import sys; sys.path.insert(0, {str(DEFAULT.parent)!r})\nfrom default import get_config"
    )
    text = base + " as default\n\n\ndef get_config(seed='7'):\n    c = default()\n"
    text += "    c.seed = int(seed)\n    return c\n"
    folder = tmp_path / "host:8080"
    folder.mkdir()
    for name in ("x.py", "x.py:5"):
        (folder / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    seeds = {
        "host:8080/x.py": 7, "host:8080/x.py:3": 3, "host:8080/x.py:5": 7, "host:8080/x.py:5:4": 4,
        f"{folder}/x.py": 7, f"{folder}/x.py:12": 12,
    }  # fmt: skip
    for path, seed in seeds.items():
        assert read_config(path, []).seed == seed, path
        assert read_config(path, ["--config.seed=1"]).seed == 1
    for path in ("host", "host:8080", "host:8081/x.py", "host:8080/y.py:3", ":", ""):
        with pytest.raises(UserError, match="no such config file"):
            read_config(path, [])
    with pytest.raises(UserError, match=r"x.py, line \d+: ValueError: invalid literal"):
        read_config("host:8080/x.py:many", [])


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config(:", "SyntaxError: "),
        ("import absent_module", "line 1: ModuleNotFoundError: No module named 'absent_module'"),
        ("\ndef get_config():\n    return undefined", "line 3: NameError: name 'undefined'"),
        ("def get_config():\n    raise RuntimeError", "line 2: RuntimeError: RuntimeError"),
        ("def config():\n    pass", "no function get_config() that returns a ConfigDict"),
        ("def get_config():\n    return {}", "no function get_config() that returns a ConfigDict"),
        ("def get_config(arg):\n    pass", "TypeError: get_config() missing 1 required"),
    ],
)
def test_config_files_that_cannot_be(tmp_path, text, message):
    bad = tmp_path / "bad.py"
    bad.write_text(text)
    with pytest.raises(UserError) as error:
        read_config(str(bad), [])
    assert str(error.value).startswith(str(bad)) and message in str(error.value)


@pytest.mark.parametrize(
    "text, value",
    [("False", False), ("true", True), ("2", 2), ("0.5", 0.5), ("None", None), ("'7'", "7"),
     ("a judge", "a judge"), ("", ""), ("26 Jul 2024", "26 Jul 2024")],
)  # fmt: skip
def test_arguments_of_the_chat_template_have_any_name(text, value):
    options = ["--config.template_arguments.enable_thinking=True"]
    options += [f"--config.template_arguments.mine={text}"]
    config = read_config(str(DEFAULT), options)
    assert config.template_arguments == {"enable_thinking": True, "mine": value}
    whole = f"--config.template_arguments={ ({'mine': value})!r}"
    assert read_config(str(DEFAULT), [whole]).template_arguments == {"mine": value}


def test_other_groups_take_no_new_names():
    for option in (
        "optim.lr=1",
        "eval.mine=1",
        "template_arguments.a.b=1",
        "template_argument.a=1",
    ):
        with pytest.raises(UserError, match="no config key"):
            read_config(str(DEFAULT), [f"--config.{option}"])


def test_references_keep_their_types():
    """A config file may set a key with a reference; what it refers to is read and checked."""
    config = with_a_set()
    config.follower.rollout_prompts = config.instructor.get_ref("rollout_prompts")
    assert config_parsing.flat(config.to_dict())["follower.rollout_prompts"] == 384
    assert config_parsing.parse(config.to_dict()).follower.rollout_prompts == 384
