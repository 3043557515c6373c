"""Compares the speed of `seif evaluate` with lm-eval's `hf` model on IFEval.

    python tools/evaluate_speed.py --model=HF_FOLDER --data=IFEVAL.parquet --peer_python=PYTHON

Both models write greedy bfloat16 replies to every tenth prompt, one after the other, and every
command is repeated. PYTHON is an interpreter with torch, accelerate and lm-eval. Each command's
first repetition is not reported: it compiles, or reads its files from the disk for the first time.
Prints one JSON object per repetition: wall-clock and CPU seconds of the whole command. lm-eval does
not score its replies (`--predict_only`), because that needs NLTK data which it downloads.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

TASK = """
task: ifeval_speed
dataset_path: parquet
dataset_kwargs: {{data_files: {data}}}
output_type: generate_until
test_split: train
doc_to_text: prompt
doc_to_target: 0
generation_kwargs: {{until: [], do_sample: false, temperature: 0.0, max_gen_toks: {tokens}}}
metric_list: [{{metric: bypass, aggregation: bypass, higher_is_better: true}}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--data", required=True, help="IFEval's prompts, a parquet file")
    parser.add_argument("--peer_python", required=True, help="has torch, accelerate and lm-eval")
    parser.add_argument("--every", type=int, default=10, help="takes every n-th prompt")
    parser.add_argument("--max_tokens", type=int, default=1280, help="per reply")
    parser.add_argument("--batches", default="27", help="batch sizes of hf, comma-separated")
    parser.add_argument("--repeat", type=int, default=1, help="measured repetitions per command")
    args = parser.parse_args()
    if not Path(args.data).is_file():
        parser.error(f"--data={args.data}: no such file")
    if not shutil.which(args.peer_python):
        parser.error(f"--peer_python={args.peer_python}: no such program")
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        data = folder / "prompts.parquet"
        table = pq.read_table(args.data)
        pq.write_table(table.take(list(range(0, table.num_rows, args.every))), data)
        (folder / "task.yaml").write_text(TASK.format(data=data, tokens=args.max_tokens))
        commands = {"seif": seif_command(args, data)}
        for batch in args.batches.split(","):
            commands[f"hf, batch {batch}"] = hf_command(args, folder, batch)
        for repetition in range(args.repeat + 1):
            for name, command in commands.items():
                secs = measure(command, folder / "log")
                if repetition:
                    print(json.dumps({"command": name, **secs}), flush=True)


def seif_command(args: argparse.Namespace, data: Path) -> list[str]:
    command = [sys.executable, "-m", "seif_jax", "evaluate", f"--model={args.model}"]
    return [*command, "--suite=ifeval", f"--data={data}", f"--max_tokens={args.max_tokens}"]


def hf_command(args: argparse.Namespace, folder: Path, batch: str) -> list[str]:
    command = [
        str(shutil.which(args.peer_python)),
        "-m",
        "lm_eval",
        "--model",
        "hf",
        "--device",
        "cpu",
    ]
    command += ["--model_args", f"pretrained={args.model},dtype=bfloat16", "--batch_size", batch]
    command += ["--tasks", "ifeval_speed", "--include_path", str(folder), "--apply_chat_template"]
    return [*command, "--predict_only", "--output_path", str(folder / "hf")]


def measure(command: list[str], log: Path) -> dict[str, float]:
    """Runs a command. Returns its wall-clock and CPU seconds; exits with its output if it fails."""
    start = time.perf_counter()
    pid = os.posix_spawn(
        command[0],
        command,
        {**os.environ, "HF_HUB_OFFLINE": "1"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()}")
    return {"wall_secs": round(wall, 1), "cpu_secs": round(usage.ru_utime + usage.ru_stime, 1)}


if __name__ == "__main__":
    main()
