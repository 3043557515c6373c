"""The programs of tools/: what they print, and that a mistake is one line."""

import json
import runpy
from pathlib import Path

import pytest

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
        ("plan_table", [], "the following arguments are required: PLAN.json"),
        ("plan_table", ["absent.json"], "absent.json: not a plan (FileNotFoundError"),
        ("plan_table", ["{folder}/metrics.jsonl"], "metrics.jsonl: not a plan (KeyError"),
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
