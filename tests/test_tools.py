"""The programs of tools/: what they print, and that a mistake is one line."""

import json
import runpy
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic_run

SPEED = ["--model=m", "--peer_python=absent"]
TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs a tool; its exit code, output and error lines."""

    def run(name, *arguments):
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


@pytest.mark.parametrize("name", [path.stem for path in TOOLS.glob("*.py")])
def test_help(tool, name):
    code, out, err = tool(name, "--help")
    assert (code, err) == (0, []) and out.startswith(f"usage: {name}.py")


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("learning_curve", [], "the following arguments are required: RUN"),
        ("learning_curve", ["absent"], "absent: not a run's folder, it has no metrics.jsonl"),
        ("learning_curve", ["{folder}"], "no evaluations there"),
        (
            "evaluate_speed",
            [*SPEED, "--data=absent.parquet"],
            "--data=absent.parquet: no such file",
        ),
        ("evaluate_speed", [*SPEED, f"--data={__file__}"], "--peer_python=absent: no such program"),
        ("training_table", ["{folder}"], "not a run's folder, nor one of runs"),
        ("reply_table", ["{folder}"], "no evaluation, it has no responses.parquet"),
        ("plan_table", [], "the following arguments are required: FOLDER"),
        ("kill_campaign", ["--what=fire"], "--what must be some of: kill, term"),
        ("convert_speed", ["much"], "invalid float value: 'much'"),
    ],
)
def test_mistakes(tool, tmp_path, name, arguments, message):
    line = {"round": 1, "stage": "follower", "step": 1, "kl": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    code, out, err = tool(name, *(argument.format(folder=tmp_path) for argument in arguments))
    assert (code, out) == (2, "") and message in err[-1]


def test_the_learning_curve(tool, tmp_path):
    for number, followed in enumerate((0.25, 0.75)):
        lines = [
            {
                "stage": "evaluate",
                "step": 0,
                "eval/held/reply_tokens": 40,
                "eval/held/followed": 0.5,
            },
            {"stage": "follower", "step": 1, "kl": 0.125},
            {"stage": "evaluate", "step": 1, "eval/held/followed": followed},
        ]
        rest = {"round": 1, "eval/held/reply_tokens": 40.0, "eval/held/clipped_share": 0.0}
        folder = tmp_path / str(number)
        folder.mkdir()
        text = "".join(json.dumps({**rest, **line}) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
    code, out, _ = tool("learning_curve", tmp_path / "0", tmp_path / "1")
    assert code == 0 and out.splitlines() == [
        "| step | held/followed | held/reply_tokens | held/clipped_share | KL |",
        "|---|---|---|---|---|",
        "| 0 | 0.500 ± 0.000 | 40.000 ± 0.000 | 0.000 ± 0.000 | 0 |",
        "| 1 | 0.500 ± 0.250 | 40.000 ± 0.000 | 0.000 ± 0.000 | 0.125 ± 0.000 |",
    ]


def test_the_training_table(tool, tmp_path):
    for number in range(2):
        synthetic_run.make(
            tmp_path / f"seed_{number}", rounds=2, steps=3, seed=number, reply="Yes."
        )
    code, out, _ = tool("training_table", tmp_path, "--reply=Yes.")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
    assert code == 0 and [row[:2] for row in rows[2:]] == [
        ["seed_0", "1"], ["seed_0", "2"], ["seed_1", "1"], ["seed_1", "2"],
    ]  # fmt: skip
    titles = rows[0]
    assert titles[2:5] == ["distinct instructions", "constraints met", "checked by a rule"]
    assert titles[5:] == [
        "Judger agrees with the rule", "tokens per reply", "KL",
        "rule says yes", "Judger says yes", "kappa", "Yes.",
    ]  # fmt: skip
    run = tmp_path / "seed_1"
    kept = pq.read_table(run / "round_2" / "instructions.parquet", filters=[("kept", "=", True)])
    samples = pq.read_table(run / "round_2" / "follower" / "samples.parquet")
    steps = [
        line
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if (line["round"], line["stage"]) == (2, "follower")
    ]
    assert rows[-1][2] == str(len(set(kept["prompt"].to_pylist())))
    for column, metric in ((3, "followed"), (5, "judge_agreement"), (6, "reply_tokens"), (7, "kl")):
        shown = float(rows[-1][column])
        assert shown == pytest.approx(sum(line[metric] for line in steps) / 3, rel=1e-2)
    assert float(rows[-1][-1]) == pytest.approx(1 / len(samples), rel=1e-2)
    both = [
        (verdict["rule"], verdict["judge"])
        for verdicts in samples["verdicts"].to_pylist()
        for verdict in verdicts
        if None not in (verdict["rule"], verdict["judge"])
    ]
    rule, judge, same = (
        sum(values) / len(both)
        for values in (*zip(*both, strict=True), [one == other for one, other in both])
    )
    chance = rule * judge + (1 - rule) * (1 - judge)
    expected = (rule, judge, (same - chance) / (1 - chance))
    assert [float(cell) for cell in rows[-1][8:11]] == pytest.approx(expected, rel=1e-2)
    (run / "round_2" / "instructions.parquet").unlink()
    code, out, _ = tool("training_table", run)
    assert code == 0 and out.splitlines()[-1].startswith("| seed_1 | 2 |  |")


def test_the_reply_table(tool, tmp_path):
    prompt = "Say what you had for breakfast, and say it twice."
    loop = "on and on " * 5
    replies = [
        (prompt, "Tea."),  # fewer than four words
        (prompt, loop + "on and"),  # "on and on on" five times
        (prompt, loop + "on and on on"),  # and once more
        (prompt, "What you had for breakfast, and then more."),  # 3 of 5 are in the prompt
        (prompt, "What you had for lunch, and then more."),  # 1 of 5
    ]
    columns = dict(zip(("prompt", "response"), zip(*replies, strict=True), strict=True))
    named = {"suite": ["ifeval"] * 4 + ["ifbench"], "model": ["base"] * 5}
    table = pa.table(named | {name: list(texts) for name, texts in columns.items()})
    folders = [tmp_path / run / "evaluate" for run in ("one", "other")]
    for folder, rows in zip(folders, (table, table.slice(1, 1)), strict=True):
        folder.mkdir(parents=True)
        pq.write_table(rows, folder / "responses.parquet")
    code, out, _ = tool("reply_table", *folders)
    assert code == 0
    assert out.splitlines()[2:] == [
        f"| {folders[0]} | ifeval | base | 4 | 12.5 | 0.25 | 0.25 |",
        f"| {folders[0]} | ifbench | base | 1 | 8 | 0.00 | 0.00 |",
        f"| {folders[1]} | ifeval | base | 1 | 17 | 0.00 | 0.00 |",
    ]


def made_plan(command: list[str]) -> dict[str, object]:
    """A plan as `seif plan --json` prints it, of two stages with three programs each."""
    (topology,) = (part.partition("=")[2] for part in command if part.startswith("--topology="))
    names = ("gradient", "rollout: decode", "judge: decode")
    programs = [
        {
            "stage": stage, "program": name, "total_bytes": (n + 1) * size << 30,
            "share_of_memory": (n + 1) * size / 95,
        }
        for stage, size in (("instructor", 20), ("follower", 10))
        for n, name in enumerate(names)
    ]  # fmt: skip
    secs = {"instructor": 1234.4, "follower": 99.6}
    stages = {name: {"step_secs": x, "rollout_tokens_per_sec": 5e4} for name, x in secs.items()}
    step = {"programs": programs, "stages": stages, "fits": "v6e" not in topology}
    waste = {"attention": 1.104, "judge_prompts": 1.2, "kv_read": 2.5}
    mesh = {"data": 1, "fsdp": 16, "sequence": 1, "tensor": 2}
    model = {"name": "someone/Some-7B"}
    return {"model": model, "topology": topology, "mesh": mesh, "waste": waste, **step,
            "all_longest": {**step, "fits": True}}  # fmt: skip


def test_plans_go_on_where_they_stopped(tool, tmp_path, monkeypatch):
    """A call makes the plans that are missing, those of the whole table in the end."""
    commands: list[list[str]] = []

    def run(command, *, env, **options):
        if len(commands) == 4:
            commands.append([])
            raise KeyboardInterrupt
        commands.append([*command, env.get("XLA_CLIENT_MEM_FRACTION", "")])
        text = "a line of the log\n" + json.dumps(made_plan(command))
        return subprocess.CompletedProcess(command, int("v6e" in text), stdout=text)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    with pytest.raises(KeyboardInterrupt):
        tool("plan_table", tmp_path)
    assert len([*tmp_path.iterdir()]) == 4
    code, out, err = tool("plan_table", tmp_path, "--print")
    assert code == 0 and err[-1] == "11 of 15 plans are missing"
    assert len(out.splitlines()) == 3 * 7
    code, out, err = tool("plan_table", tmp_path)
    lines = out.splitlines()
    assert (code, len(commands), len(lines)) == (0, 16, 3 * (15 + 3))
    done = [command for command in commands if command]
    assert len({(command[6], command[7]) for command in done}) == 15  # of config and topology
    assert all("--lengths=1000,1.0" in command for command in done)
    assert {command[-1] for command in done} == {"", "0.9"}
    memory = "instructor judge: decode: 60.0 GiB, 63% | 20.0 | 40.0 | 60.0"
    rest = f"{memory} | 1,234, 100 | yes |"
    assert f"| Some-7B | v5p:2x4x4 | {rest}" in lines
    assert f"| Some-7B | v6e:8x8 | {rest[:-6]} no | 50,000 | 1.10, 1.20, 2.50 |" in lines


def test_a_plan_that_cannot_be_made(tool, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 2, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    code, out, err = tool("plan_table", tmp_path)
    assert (code, out) == (2, "") and "seif plan failed with exit code 2" in err[-1]
    assert not [*tmp_path.iterdir()]
