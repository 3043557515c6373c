"""The subcommands of `seif`, their options and their help."""

import argparse
from typing import NoReturn

from seif_jax import __version__

DTYPES = ("bfloat16", "float32")

CONVERT_HELP = """\
Writes a model as a Hugging Face folder that transformers loads: config.json, safetensors (in
several files with an index if it is large), tokenizer, chat template, generation_config.json and a
model card. With --to=orbax it writes an Orbax checkpoint, which every command here accepts as a
model.

  seif convert RUN/round_2/follower DST     the model that a stage of a run trained
  seif convert MODEL.gguf DST               a GGUF file, dequantized
  seif convert FOLDER DST --dtype=float32   a Hugging Face folder, checked and in another dtype
  seif convert RUN/round_2/follower DST --adapter      only the LoRA adapter, as peft loads it
  seif convert Qwen/Qwen2.5-0.5B DST        a model on the Hugging Face hub (needs a network)
  seif convert smollm2 DST                  the embedded SmolLM2-135M-Instruct

DST is a new folder, or one that holds nothing but an older model, which is replaced. It is written
completely or not at all. The current folder and mount points cannot be replaced; give a folder
inside them.
"""

BENCH_HELP = """\
Measures one part of training and compares it with the machine's limits, which are measured in the
same run. Prints one JSON object, last, with medians over --repeats.

  seif bench --what=rollout     sampling alone; its limit is the memory's bandwidth
  seif bench --what=judge --prompts=64 --group=5 --repeats=3    verdicts: replies x constraints
  seif bench --what=update      gradient and optimizer
  seif bench --what=step        a whole GRPO step: sample, score, reference, update
  seif bench --what=step --against=trl --peer_python=VENV/bin/python

With --against another library does the same work on the CPU; the two take turns, repetition by
repetition: hf (rollout, judge), trl (step), tunix (step), vllm (rollout).
JAX_COMPILATION_CACHE_DIR=DIR keeps compiled programs; without it every run compiles its own.
"""

PLAN_HELP = """\
Estimates memory, FLOPs and collective traffic for hardware that you do not have. Compiles the
programs of a config's stages from shapes alone: no weights, no data, and with --topology no
accelerator. Prints for each program the memory it needs on a device (arguments, temporaries,
output, and what stays in memory meanwhile), FLOPs, bytes, collectives and a lower bound on its
time; for a program that does not fit, a change of the config that makes it fit.

  seif plan --config=qwen2_5_7b --topology=v5p:4x4x4
  XLA_CLIENT_MEM_FRACTION=0.9 seif plan --config=qwen2_5_7b --topology=h100:8
  seif plan --config=smollm2                             for the devices present
  seif plan --config=llama3_1_8b --topology=v6e:8x8 --config.mesh.tensor=4 \\
      --config.model=FOLDER                              FOLDER needs only a config.json

Topologies: TPU slices v5e:AxB, v6e:AxB and v5p:AxBxC, in chips; they need libtpu:
pip install 'seif_jax[tpu]'. GPUs a100, h100, h200 and b200, as a number (h100:8) or as hosts x GPUs
per host (h100:2x8); they need XLA's CUDA compiler: pip install 'seif_jax[gpu-plan]'. Of a GPU's
memory, programs may use the share that JAX allocates: 75 % unless XLA_CLIENT_MEM_FRACTION is set.
Exit code: 0 if everything fits, 1 if something does not, 2 for an impossible config or topology.
"""

RUN_HELP = """\
Starts a run, or resumes the one in DIR. FILE is a config file, or the name of one that comes with
seif_jax. Any key of the config can be set:

  seif run --config=quickstart --workdir=runs/mine --config.seed=1
  seif run --config=smollm2 --workdir=runs/follower \\
      --config.stages=follower --config.data.instructions=DATA.parquet
  seif run --config=smollm2 --workdir=runs/instructor \\
      --config.stages=instructor --config.instructor.init=RUN/round_1/instructor
"""

SWEEP_HELP = """\
Runs a config many times. The sweep file's function sweep(add) adds the runs with the keys that
they change; each run has the folder DIR/NAME. All runs are checked before the first one starts. If
the command is repeated, finished runs are skipped and the others resume. Without --sweep there is
one run, of the config as it is, in DIR itself: this is how to send one run to SLURM or GKE.

  --launcher=print   prints the remaining commands, one per line
  --launcher=local   runs them here, --jobs at a time; output goes to DIR/NAME.log; ends with the
                     table
  --launcher=slurm   submits one job array through submitit, --jobs at a time; a job that is
                     preempted or out of time (one day) is queued again. sbatch's options are
                     --slurm.key=value, with submitit's names: --slurm.partition=gpu
                     --slurm.nodes=2 --slurm.gpus_per_node=8 --slurm.ntasks_per_node=8 (one process
                     per GPU; without the last one, one process per node)
  --launcher=xpk     creates one workload per run; options of `xpk workload create` are
                     --xpk.key=value, in which {name} is the run's name: --xpk.cluster=NAME
                     --xpk.tpu-type=v5p-16 --xpk.docker-image=IMAGE; to write the manifest alone,
                     offline: --xpk.dry-run --xpk.output-manifest-file=DIR/{name}.yaml
  --launcher=table   starts nothing and compares the runs; overrides need not be repeated
"""


REPORT_HELP = """\
Writes a page to read runs from: scores, health, trust, instructions, samples. Open its index.html
from disk; it loads nothing from a network. A run writes its own page after every stage.

  seif report runs/mine                     runs/mine/report/index.html
  seif report runs/seed_0 runs/seed_1       side by side: runs/report/index.html
  seif report SWEEP --out=page              the runs of a sweep
  seif report runs/mine --matrix=20 --pca   with what needs the models: computed once, and kept in
                                            the run's folder

Without --out, the page of one run is in its folder, and that of several runs is next to them.
"""

GENERATE_HELP = """\
Completes prompts with a Hugging Face folder, a GGUF file or a run's checkpoint. Prompts come from
--prompt, --prompts, or standard input (one per line).

  seif generate --prompt='Name a river.' --prompt='Name a lake.' --max_tokens=40
  seif generate --model=RUN/round_2/follower/hf --prompts=questions.csv --column=question --json
"""


EVALUATE_HELP = """\
Scores a model on benchmarks, each score with its 95 % bootstrap interval.

  seif evaluate --model=MODEL --suite=ifeval,ifbench --out=DIR
  seif evaluate --model=RUN --suite=ifeval --out=DIR     its base and the Follower of every round
  seif evaluate --model=A --against=B --suite=ifeval     the paired difference, McNemar's test
  seif evaluate --model=RUN_1 --model=RUN_2 --suite=ifeval       seeds: mean, deviation, t-test
  seif evaluate --responses=FILE --suite=ifbench --data=IFBench_test.jsonl      without a model
  seif evaluate --model=MODEL --suite=judge --data=RUN    how far its verdicts can be trusted
  seif evaluate --model=MODEL --suite=mine.py:check --data=prompts.jsonl        your own suite

Suites, and their data (from the Hugging Face hub if it is there, or else from --data):
  ifeval, ifbench    files with the columns prompt, instruction_id_list, kwargs
  multiif            conversations of three turns
  followbench        a folder of *_constraints.json; asks a Judger: --judge=PATH
  constraints        instructions in our format; asks a Judger if a constraint has no rule
  judge              the model's own verdicts: rows of reply, constraint, label, or a run's folder
  lm-eval:TASK[,TASK]   any task of lm-eval: pip install 'seif_jax[eval]'
  module:function    or FILE.py:function: (row, reply) -> bool, grade from 0 to 1, None, or a dict
DIR gets responses.parquet and scores.json (scores by group, too). After a stop, the same command
continues.
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exits with one line, as for every other mistake."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


CONFIG_HELP = "a config file, or the name of one that comes with seif_jax"


def run(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    command.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    command.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of the first of several processes; with --processes and --process, only "
        "where SLURM, Open MPI, TPU slices or GKE do not set it",
    )
    command.add_argument("--processes", type=int, metavar="N", help="number of processes")
    command.add_argument("--process", type=int, metavar="I", help="index of this one, from 0")


def report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "dirs", nargs="+", metavar="DIR", help="a run's folder, or a folder of runs"
    )
    command.add_argument("--out", metavar="DIR", help="folder of the page")
    command.add_argument(
        "--matrix",
        type=int,
        metavar="N",
        help="first ask every round's Follower N instructions of every round",
    )
    command.add_argument(
        "--pca", action="store_true", help="first map the instructions by their hidden states"
    )


def generate(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help=".txt (a prompt per line), .jsonl, .json, .csv or .parquet: texts, or chats whose "
        "last user turn is the prompt",
    )
    command.add_argument(
        "--column", metavar="NAME", default="prompt", help="column of --prompts (default prompt)"
    )
    command.add_argument("--temperature", type=float, default=1.0, help="default 1.0; 0: greedy")
    command.add_argument("--top_k", type=int, default=0, help="default 0: off")
    command.add_argument("--top_p", type=float, default=1.0, help="default 1.0: off")
    command.add_argument("--max_tokens", type=int, default=256, help="default 256")
    command.add_argument("--n", type=int, default=1, help="completions per prompt (default 1)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    add_scan(command)
    command.add_argument("--raw", action="store_true", help="continue the text, no chat template")
    command.add_argument("--json", action="store_true", help="one object per line and completion")


def evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PATH",
        help="as for `seif generate`, or a run's folder; repeat it for runs with different seeds",
    )
    command.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="PATH",
        help="the model to compare with: one for all, or one per --model (a run's models are "
        "compared with its base)",
    )
    command.add_argument("--suite", action="append", required=True, metavar="NAME[,NAME]")
    command.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[SUITE=]FILE",
        help="a file or data set; for lm-eval a folder with tasks of your own",
    )
    command.add_argument(
        "--responses", metavar="FILE", help="scores these replies (columns prompt and response)"
    )
    command.add_argument("--limit", type=int, metavar="N", help="first N prompts of each suite")
    command.add_argument("--samples", type=int, default=1, metavar="K", help="replies per prompt")
    command.add_argument("--temperature", type=float, default=0.0, help="default 0: greedy")
    command.add_argument("--max_tokens", type=int, default=1280, help="per reply (default 1280)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    command.add_argument(
        "--format", choices=("plain", "think_answer"), help="default: that of the model's run"
    )
    command.add_argument("--judge", metavar="PATH", help="the Judger, for suites that need one")
    command.add_argument("--judge_mode", choices=("generate", "verdict"), default="generate")
    command.add_argument("--out", metavar="DIR", help="folder of replies and scores")
    command.add_argument("--json", action="store_true", help="prints all scores as one object")


def convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("src", metavar="SRC")
    command.add_argument("dst", metavar="DST")
    command.add_argument("--to", choices=("hf", "orbax"), default="hf", help="default hf")
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: that of SRC's config.json, or bfloat16; with --adapter float32",
    )
    command.add_argument(
        "--adapter",
        action="store_true",
        help="for a run with config.lora; by default the adapter is merged into its base",
    )
    add_scan(command)


def bench(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument("--what", choices=("rollout", "judge", "update", "step"), required=True)
    command.add_argument("--prompts", type=int, default=4, help="judge: replies (default 4)")
    command.add_argument(
        "--group", type=int, default=4, help="samples per prompt; judge: constraints (default 4)"
    )
    command.add_argument("--prompt_tokens", type=int, default=64, help="default 64")
    command.add_argument("--new_tokens", type=int, default=64, help="default 64")
    command.add_argument(
        "--lengths",
        choices=("fixed", "skewed"),
        default="fixed",
        help="rollout; skewed: most samples have 50 to 150 tokens, one in ten --new_tokens",
    )
    command.add_argument(
        "--slots", type=int, help="rollout: samples decoded together (default: all)"
    )
    command.add_argument("--micro_tokens", type=int, help="tokens per backward pass (default: all)")
    command.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    command.add_argument("--repeats", type=int, default=5, help="default 5, after one to warm up")
    command.add_argument(
        "--against", choices=("hf", "trl", "tunix", "vllm"), help="library to compare with"
    )
    command.add_argument("--peer_python", metavar="FILE", help="the interpreter that has it")
    command.add_argument(
        "--peer_dtype",
        choices=(*DTYPES, "autocast"),
        help="default: as --dtype; trl: autocast (bfloat16 over float32 weights); tunix: float32",
    )


def plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    command.add_argument("--topology", metavar="NAME", help="default: the devices present")
    command.add_argument("--json", action="store_true", help="prints one object, last")


def sweep(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    command.add_argument(
        "--sweep", metavar="FILE", help="a sweep file, or the name of one that comes with seif_jax"
    )
    command.add_argument("--workdir", required=True, metavar="DIR", help="folder of the runs")
    command.add_argument(
        "--launcher", required=True, choices=("print", "local", "slurm", "xpk", "table")
    )
    command.add_argument(
        "--jobs", type=int, metavar="N", help="runs at the same time (default for local: 1)"
    )


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        metavar="PATH",
        default="smollm2",
        help="a Hugging Face folder or hub name, a GGUF file, a run's checkpoint; default smollm2: "
        "the embedded SmolLM2-135M-Instruct",
    )


def add_scan(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no_scan",
        dest="scan",
        action="store_false",
        help="accept weight files that contain NaN or infinity",
    )


COMMANDS = (  # adds the options, one line of help, --help, usage if it is not the default
    (
        run,
        "start or resume a run",
        RUN_HELP,
        "seif run --config=FILE --workdir=DIR [--config.key=value …]",
    ),
    (report, "write a page to read runs from", REPORT_HELP, None),
    (generate, "complete prompts with a model", GENERATE_HELP, None),
    (evaluate, "score a model, or replies, on benchmarks", EVALUATE_HELP, None),
    (convert, "write a model in Hugging Face format", CONVERT_HELP, None),
    (bench, "measure sampling, judging, updating or a whole step", BENCH_HELP, None),
    (
        plan,
        "estimate what a config needs on hardware that you do not have",
        PLAN_HELP,
        "seif plan --config=FILE [--topology=v5p:4x4x4|h100:8] [--json] [--config.key=value …]",
    ),
    (
        sweep,
        "run a config many times, here or on a cluster, and compare the runs",
        SWEEP_HELP,
        "seif sweep --config=FILE [--sweep=FILE] --workdir=DIR --launcher=LAUNCHER "
        "[--jobs=N] [--config.key=value …]",
    ),
)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="seif", description="Self-evolving RL for instruction following, in JAX.")
    top.add_argument("--version", action="version", version=f"seif_jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_options, short_help, description, usage in COMMANDS:
        command = commands.add_parser(
            add_options.__name__,
            help=short_help,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=usage,
        )
        add_options(command)
    return top
