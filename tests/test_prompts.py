"""Prompts of a user's own: what is read, what is refused, and that all roles are told by them."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pages
import pytest
from fakes import YES, FakeChatModel, FakeReply, Limits

from seif_jax.__main__ import main
from seif_jax.errors import UserError
from seif_jax.instruction import Instruction, Seed
from seif_jax.rewards.checker import Checker
from seif_jax.rewards.instructor_reward import difficulty
from seif_jax.rewards.judge import Judge
from seif_jax.rl.answerer import Answerer
from seif_jax.rl.tasks import FollowerTask, InstructorTask
from seif_jax.roles import filter, follower, instructor, judger
from seif_jax.roles.prompts import Prompts, load

ROLES: dict[str, ModuleType] = {
    "instructor": instructor, "follower": follower, "filter": filter, "judger": judger,
}  # fmt: skip
PACKAGE = Path(instructor.__file__).parent


def read(role: str, folder: Path, text: str, name: str = "prompts.toml") -> Prompts:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load(ROLES[role].SCHEMA, path, ROLES[role].PACKAGED)


def toml(value: Any) -> str:
    """A value as TOML writes it; its strings are JSON's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value)


@pytest.mark.parametrize("role", ROLES)
def test_the_packaged_prompts_can_be_copied(role, tmp_path):
    source = PACKAGE / f"{role}_prompts.py"
    copied = read(role, tmp_path, source.read_text("utf-8"), "mine.py")
    assert copied == ROLES[role].PACKAGED
    tables = {name: getattr(__import__(f"seif_jax.roles.{role}_prompts", fromlist=["x"]), name)
              for name in ("SYSTEM", "ASK", "SHOTS")}  # fmt: skip
    for case in (str.upper, str.lower):
        lines = [f"{case(name)} = {toml(table)}\n" for name, table in tables.items()]
        written = read(role, tmp_path, "\ufeff" + "".join(lines))
        assert json.loads(json.dumps(vars(written))) == json.loads(json.dumps(vars(copied)))


def test_what_a_file_leaves_out_is_packaged(tmp_path):
    told = read("instructor", tmp_path, '[ask.plain]\nhard = "{seed} (c1, c2, c3)"')
    packaged = instructor.PACKAGED
    assert told.ask == packaged.ask | {"plain.hard": "{seed} (c1, c2, c3)"}
    assert (told.system, told.shots) == (packaged.system, packaged.shots)
    shot = {"instruction": "Why?", "analysis": "Fine.", "consistent": True}
    told = read("filter", tmp_path, f"SHOTS = {[shot]}", "prompts.py")
    assert told.shots == {"": [shot]} and told.ask == filter.PACKAGED.ask


@pytest.mark.parametrize(
    ("role", "text", "message"),
    [
        ("judger", '[ASK]\nverdict = "{instruction} {reply} [[1]] [[0]]"',
         "ASK.verdict must contain {constraint}"),
        ("judger", '[ASK]\ngenerate = "{reply} {constraint} [[1]] [[0]]"',
         "ASK.generate must contain {instruction}"),
        ("filter", '[ASK]\nverdict = "{Instruction}"', "ASK.verdict must contain {instruction}"),
        ("instructor", '[ASK.plain]\nsoft = "Write c1 to c5."', "ASK.plain.soft must contain {see"),
        ("instructor", '[ASK.plain]\nsoft = "c1, c2, c3: {seed}"',
         "SYSTEM.plain.soft or ASK.plain.soft must mention c5"),
        ("instructor", '[SYSTEM.think_answer]\nhard = "<think></think><answer></answer> c1, c30"',
         "SYSTEM.think_answer.hard or ASK.think_answer.hard must mention c3"),
        ("instructor", '[SYSTEM.think_answer]\nhard = "c1 c2 c3 <think></think><answer>"',
         "must mention </answer>"),
        ("follower", '[SYSTEM]\nthink_answer = "Think first."', "must mention <think>"),
        ("filter", '[SYSTEM]\ngenerate = "Write [[1]] or 0."',
         "SYSTEM.generate or ASK.generate must mention [[0]]"),
        ("judger", '[SYSTEMS]\nverdict = "x"', "SYSTEMS is unknown; did you mean SYSTEM?"),
        ("judger", '[system]\nverdikt = "x"',
         "SYSTEM.verdikt is unknown; did you mean SYSTEM.verdict?"),
        ("follower", '[system]\nxml = "x"', "SYSTEM.xml is unknown; known are think_answer, plain"),
        ("instructor", '[ask]\nplain = "x"', "ASK.plain is unknown; did you mean ASK.plain."),
        ("follower", "[system]\nplain = 3", "SYSTEM.plain must be text (got 3)"),
        ("follower", 'system = "x"', "SYSTEM must be a table with the keys think_answer, plain"),
        ("follower", "title = 3", "TITLE is unknown; known are SYSTEM, ASK, SHOTS"),
        ("follower", "", "it must contain one or more of: SYSTEM, ASK, SHOTS"),
        ("follower", "[system", "not TOML: "),
        ("follower", 'shots = "none"', "SHOTS must be a list of examples (got 'none')"),
        ("follower", '[[shots]]\ninstruction = "a"\nthought = "b"',
         "SHOTS: example 1 must have the keys instruction, thought, answer"),
        ("follower", '[[shots]]\ninstruction = "a"\nthought = "b"\nanswer = "</answer>"',
         "SHOTS: example 1: the answer is empty, or a text holds a tag"),
        ("judger", '[[shots]]\ninstruction="a"\nreply="b"\nconstraint="c"\nanalysis="d"\n'
         'satisfied = "yes"', "example 1: satisfied must be true or false (got 'yes')"),
        ("filter", '[[shots]]\ninstruction = "a"\nanalysis = "[[0]]\\n"\nconsistent = true',
         "example 1: no verdict can be read after the analysis"),
        ("instructor", '[[shots]]\nseed = "a"', "SHOTS must be a table with the keys soft, hard"),
        ("instructor", '[[shots.mild]]\nseed = "a"', "SHOTS.mild is unknown; known are soft, hard"),
        ("instructor", '[[shots.hard]]\nseed = "a"\nthought = "b"\nconstraints = ["x", "y"]',
         "SHOTS.hard: example 1: found c1, c2, expected c1 to c3"),
        ("instructor", '[[shots.hard]]\nseed = "a"\nthought = "b"\nconstraints = ["x", "y", 3]',
         "SHOTS.hard: example 1: constraints must be a list of texts"),
        ("instructor", '[[shots.hard]]\nseed = "a"\nthought = "b"\nconstraints = ["x", "y", "X."]',
         "SHOTS.hard: example 1: c3 repeats c1"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_used(role, text, message, tmp_path):
    with pytest.raises(UserError) as error:
        read(role, tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/prompts.toml: ")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.py", "SYSTEM = {'plain': ''\n", "SyntaxError: "),
        ("p.py", "import nonsense", "No module named 'nonsense'"),
        ("p.py", "system = {}", "it must contain one or more of: SYSTEM, ASK, SHOTS"),
        ("p.py", "SHOTS = 3", "SHOTS must be a list of examples (got 3)"),
        ("p.json", "{}", "prompts must be a .toml or .py file"),
    ],
)
def test_files_that_cannot_be_read(name, text, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        read("follower", tmp_path, text, name)
    with pytest.raises(UserError, match="absent.toml: no such file"):
        load(follower.SCHEMA, tmp_path / "absent.toml", follower.PACKAGED)


def test_data_fill_their_own_place_only(tmp_path):
    ask = "C {constraint} R {reply} I {instruction} {other} {} {{reply}} [[1]] [[0]]"
    told = read("judger", tmp_path, f"[ask]\nverdict = {json.dumps(ask)}")
    data = ("{reply}", "{constraint}\n[[1]]", "{instruction}")
    chat = judger.messages(*data, shots=0, mode="verdict", prompts=told)
    assert chat[-1]["content"] == (
        "C > {instruction} R > {constraint}\n> [[1]] I > {reply} {other} {} "
        "{> {constraint}\n> [[1]]} [[1]] [[0]]"
    )


def test_quotation_marks_in_examples_are_escaped(tmp_path):
    constraints = ['Say "tea".', "Use \\beta.", "Écris en français."]
    shot = {"seed": "Why?", "thought": "Well.", "constraints": constraints}
    told = read("instructor", tmp_path, f"shots.hard = {toml([shot])}")
    for form in ("plain", "think_answer"):
        chat = instructor.messages("Who?", "hard", format=form, shots=1, prompts=told)
        reply = chat[-2]["content"]
        assert instructor.parse(reply, "hard", "Why?", format=form).constraints == constraints
    with pytest.raises(UserError, match="shots must be from 0 to 1 .got 2"):
        instructor.messages("Who?", "hard", format="plain", shots=2, prompts=told)


def test_every_role_is_told_by_its_own(tmp_path):
    """…in every call: as author, answerer, policy, Filter and Judger."""
    own = {
        "instructor": '[ask.plain]\nhard = "AUTHOR c1 c3 {seed}"',
        "follower": '[ask]\nplain = "ANSWER {instruction}"',
        "filter": '[ask]\nverdict = "FILTER {instruction}"',
        "judger": '[ask]\nverdict = "JUDGE {instruction} {reply} {constraint}"',
    }
    told = {role: read(role, tmp_path, text) for role, text in own.items()}
    answerer, screen, jury = (
        FakeChatModel(lambda turn, answer=answer: answer)
        for answer in (FakeReply("Tea."), YES, YES)
    )
    checker = Checker(("judge",), Judge(jury, "verdict", 0, Limits(), told["judger"]))
    task = InstructorTask(
        rows=[Seed("Why?")],
        filter=Judge(screen, "verdict", 0, Limits(), told["filter"]),
        format="plain",
        shots=0,
        soft_share=0.0,
        seed="0",
        prompts=told["instructor"],
        checker=checker,
        answerer=Answerer(answerer, "decoding", "plain", 0, told["follower"]),
        reward=difficulty,
    )
    assert task.dialogue(0, 1)[-1]["content"] == "AUTHOR c1 c3 Why?"
    reply = FakeReply('{"c1": "Be kind.", "c2": "Be odd.", "c3": "Be brief."}')
    (score,) = task.score([task.read(0, 1, reply)], [0], "key")
    assert score.reason == "all_met"
    instruction = "Why?\nBe kind.\nBe odd.\nBe brief."
    assert answerer.asked == [f"ANSWER {instruction}"]
    quoted = instruction.replace("\n", "\n> ")
    assert screen.asked == [f"FILTER > {quoted}"]
    assert jury.asked == [f"JUDGE > {quoted} > Tea. > {c}" for c in instruction.split("\n")[1:]]
    row = Instruction("Q?", ("Be kind.",), "Q?\nBe kind.", ({},), ("soft",))
    policy = FollowerTask([row], checker, "plain", 0, told["follower"])
    assert policy.dialogue(0, 1)[-1]["content"] == "ANSWER Q?\nBe kind."


def test_the_page(tmp_path):
    """Its examples can be used, and its table says what the schemas say."""
    page = (Path(pages.__file__).parents[1] / "docs" / "prompts.md").read_text("utf-8")
    examples = re.findall(r"```toml\n# (\w+)\.toml\n(.*?)```", page, re.DOTALL)
    assert [role for role, _ in examples] == ["judger", "instructor"]
    for role, text in examples:
        assert read(role, tmp_path, text) != ROLES[role].PACKAGED
    for role, module in ROLES.items():
        (cells,) = re.findall(rf"^\| {role} \|(.*)\|$", page, re.MULTILINE)
        kinds, data, mentions, shot = (re.findall("`([^`]+)`", cell) for cell in cells.split("|"))
        schema = module.SCHEMA
        assert sorted(kinds) == sorted(schema.kinds)
        assert data == [f"{{{name}}}" for name in schema.data]
        assert [name for name in shot if name not in schema.variants] == [*schema.shot]
        needed = {mention for kind in kinds for mention in schema.mentions(kind)}
        assert needed - {"<think>", "</think>", "<answer>", "</answer>"} == {
            mention for mention in mentions if mention != "think_answer"
        }


def test_a_run_keeps_its_prompts_and_is_resumed_with_the_same(
    place, refused, monkeypatch, tmp_path, capsys
):
    """Their texts count, not the file or what else stands in it."""
    stages: list[Any] = []
    monkeypatch.setattr("seif_jax.evolve.run_stage", lambda stage, *_: stages.append(stage) or {})
    monkeypatch.chdir(tmp_path)
    text = '[ask]\nplain = "ANSWER {instruction}"\n'
    Path("follower.toml").write_text(text)

    def command(name: str, *more: str) -> list[str]:
        run = ["run", f"--config={place.config}", "--workdir=run", "--config.stages=instructor"]
        return [*run, "--config.format=plain", f"--config.follower.prompts={name}", *more]

    assert main(command("follower.toml")) == 0
    answerer = stages[0].task.answerer
    assert answerer.prompts.ask["plain"] == "ANSWER {instruction}"
    assert Path("run/prompts/follower.toml").read_text() == text
    assert [path.name for path in Path("run/prompts").iterdir()] == ["follower.toml"]

    Path("same.py").write_text('ASK = {"plain": "ANSWER {instruction}"}  # a comment')
    Path("follower.toml").write_text("# translated\n" + text)
    assert main(command("same.py")) == main(command("follower.toml")) == 0
    assert Path("run/prompts/follower.toml").read_text() == text
    capsys.readouterr()
    Path("follower.toml").write_text(text.replace("ANSWER", "REPLY"))
    assert 'follower.prompts is "follower.toml" with other contents' in refused(
        *command("follower.toml")
    )
    line = refused(*command("follower.toml", "--config.follower.shots=3"))
    assert (
        "config.follower.shots must be at most 2, the number of examples in follower.toml" in line
    )
    Path("follower.toml").write_text(text.replace("{instruction}", ""))
    line = refused(*command("follower.toml"))
    assert "config.follower.prompts: follower.toml: ASK.plain must contain {instruction}" in line
    assert "absent.toml: no such file" in refused(*command("absent.toml"))
    run = [option for option in command("") if "prompts" not in option]
    assert "follower.prompts is " in refused(*run)
