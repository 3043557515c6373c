"""What the `seif` command understands: its subcommands and their options."""

import argparse
from typing import NoReturn

from seif_jax import __version__

DTYPES = ("bfloat16", "float32")

CONVERT_HELP = """\
Writes a model as a Hugging Face folder that transformers loads: config.json, safetensors (with an
index where there are several), tokenizer, chat template, generation_config.json, model card; or
(--to=orbax) as an Orbax checkpoint that every command here takes for a model.

  seif convert RUN/round_2/follower DST     what a stage of a run trained; or RUN/round_2/instructor
  seif convert MODEL.gguf DST               a GGUF file, dequantized
  seif convert FOLDER DST --dtype=float32   a Hugging Face folder, checked and in another dtype
  seif convert RUN/round_2/follower DST --adapter      the LoRA adapter alone, as peft loads it
  seif convert Qwen/Qwen2.5-0.5B DST        a name on the Hugging Face hub, where there is a network
  seif convert smollm2 DST                  the embedded SmolLM2-135M-Instruct

DST is a new folder, or that of an older model and nothing else, which is replaced. It appears whole
or not at all; the current folder and mount points cannot be replaced: give a folder inside them.
"""

BENCH_HELP = """\
Measures one part of training and prints one JSON object, last: medians of --repeats, the machine's
own limits as measured in the same run, and the share of them that was reached.

  seif bench --what=rollout     sampling alone: decoding, held against the memory's bandwidth
  seif bench --what=judge --prompts=64 --group=5 --repeats=3    verdicts: replies x constraints
  seif bench --what=update      gradient and optimizer
  seif bench --what=step        a whole GRPO step: sample, score, reference, update
  seif bench --what=step --against=trl --peer_python=VENV/bin/python

With --against another library does the same work beside, the two taking turns, repetition by
repetition: hf (rollout, judge), trl (step), tunix (step), vllm (rollout); on the CPU.
JAX_COMPILATION_CACHE_DIR=DIR keeps compiled programs; without it every run compiles its own.
"""

PLAN_HELP = """\
Compiles the programs that a config's stages run, for shapes alone: no weights, no data, and with
--topology no accelerator. Prints for each what lies in a device's memory (arguments, temporaries,
output, what is held beside it), FLOPs, bytes, collectives, and a lower bound of seconds; what does
not fit, and a change of the config that was found to make it fit.

  seif plan --config=configs/qwen2_5_7b.py --topology=v5p:4x4x4
  XLA_CLIENT_MEM_FRACTION=0.9 seif plan --config=configs/qwen2_5_7b.py --topology=h100:8
  seif plan --config=configs/smollm2.py                  for the devices present
  seif plan --config=configs/llama3_1_8b.py --topology=v6e:8x8 --config.mesh.tensor=4 \\
      --config.model=FOLDER                              FOLDER need hold nothing but config.json

Topologies: v5e and v6e by AxB, v5p by AxBxC chips; they need libtpu: pip install 'seif_jax[tpu]'.
a100, h100, h200 and b200 by GPUs (h100:8), or by hosts and GPUs per host (h100:2x8); they need
XLA's CUDA compiler: pip install 'seif_jax[gpu-plan]'. They fit into the share of a GPU's memory
that JAX allocates, 75 % unless XLA_CLIENT_MEM_FRACTION is set.
Exit code 0: everything fits; 1: something does not; 2: the config or the topology cannot be.
"""

RUN_HELP = """\
Starts a run, or resumes the one that DIR holds. Any key of the config can be set:

  seif run --config=configs/quickstart.py --workdir=runs/mine --config.seed=1
  seif run --config=configs/smollm2.py --workdir=runs/follower \\
      --config.stages=follower --config.data.instructions=DATA.parquet
  seif run --config=configs/smollm2.py --workdir=runs/instructor \\
      --config.stages=instructor --config.instructor.init=RUN/round_1/instructor
"""

SWEEP_HELP = """\
Runs a config many times, each run as the sweep file's sweep(add) says (sweeps/), in DIR/NAME; all
are checked before any starts. What is finished is left out, what is not goes on. Without --sweep
there is one run, of the config as it is, in DIR itself: so one run is sent to SLURM or GKE.

  --launcher=print   the commands that are left, one a line
  --launcher=local   here, --jobs at a time; output in DIR/NAME.log; at the end the table
  --launcher=slurm   one array of jobs through submitit, --jobs at a time; a job that is preempted
                     or out of time (a day) is queued again. sbatch's options are --slurm.key=value,
                     by submitit's names: --slurm.partition=gpu --slurm.nodes=2
                     --slurm.gpus_per_node=8 --slurm.ntasks_per_node=8 (a process a GPU; without the
                     last one a process a node)
  --launcher=xpk     a workload a run; options of `xpk workload create` are --xpk.key=value, {name}
                     in them being the run's: --xpk.cluster=NAME --xpk.tpu-type=v5p-16
                     --xpk.docker-image=IMAGE; offline, the manifest alone: --xpk.dry-run
                     --xpk.output-manifest-file=DIR/{name}.yaml
  --launcher=table   starts nothing: how the runs compare; overrides need not be repeated
"""


REPORT_HELP = """\
Writes the page that a run is read from: scores, health, trust, instructions, samples. Open its
index.html from disk; it loads nothing from a network. A run writes its own after every stage.

  seif report runs/mine                     runs/mine/report/index.html
  seif report runs/seed_0 runs/seed_1       side by side: runs/report/index.html
  seif report SWEEP --out=page              the runs of a sweep
  seif report runs/mine --matrix=20 --pca   with what needs the models: computed once, and kept in
                                            the run's folder

Without --out the page of one run lies in its folder, that of several beside them.
"""

GENERATE_HELP = """\
Completes prompts with a Hugging Face folder, a GGUF file or a run's checkpoint. Prompts come from
--prompt, --prompts, or standard input (one per line).

  seif generate --prompt='Name a river.' --prompt='Name a lake.' --max_tokens=40
  seif generate --model=RUN/round_2/follower/hf --prompts=questions.csv --column=question --json
"""


EVALUATE_HELP = """\
Scores a model on benchmarks: every score with its 95 % bootstrap interval, by group in the files.

  seif evaluate --model=MODEL --suite=ifeval,ifbench --out=DIR
  seif evaluate --model=RUN --suite=ifeval --out=DIR     its base and the Follower of every round
  seif evaluate --model=A --against=B --suite=ifeval     the paired difference, McNemar's test
  seif evaluate --model=RUN_1 --model=RUN_2 --suite=ifeval       seeds: mean, deviation, t-test
  seif evaluate --responses=FILE --suite=ifbench --data=IFBench_test.jsonl      no model at all
  seif evaluate --model=MODEL --suite=judge --data=RUN    how far its verdicts can be trusted
  seif evaluate --model=MODEL --suite=mine.py:check --data=prompts.jsonl        a suite of yours

Suites (data come from the Hugging Face hub where they are there, else --data names them):
  ifeval, ifbench    files with the columns prompt, instruction_id_list, kwargs
  multiif            conversations of three turns
  followbench        a folder of *_constraints.json; asks a Judger: --judge=PATH
  constraints        instructions in our format; asks a Judger where there is no rule
  judge              the model's own verdicts: rows of reply, constraint, label, or a run's folder
  module:function    or FILE.py:function: (row, reply) -> bool, grade from 0 to 1, None, or a dict
DIR gets responses.parquet and scores.json; the same command goes on after a stop.
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def run(add: argparse.ArgumentParser) -> None:
    add.add_argument("--config", required=True, metavar="FILE", help="a file of configs/, or yours")
    add.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    add.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of several processes: where the first one listens; with --processes and --process, "
        "where SLURM, Open MPI, TPU slices and GKE do not say it",
    )
    add.add_argument("--processes", type=int, metavar="N", help="how many there are")
    add.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")


def report(add: argparse.ArgumentParser) -> None:
    add.add_argument("dirs", nargs="+", metavar="DIR", help="a run's folder, or a folder of runs")
    add.add_argument("--out", metavar="DIR", help="where the page is written")
    add.add_argument(
        "--matrix",
        type=int,
        metavar="N",
        help="first ask every round's Follower N instructions of every round",
    )
    add.add_argument(
        "--pca", action="store_true", help="first map the instructions by their hidden states"
    )


def generate(add: argparse.ArgumentParser) -> None:
    add_model(add)
    add.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    add.add_argument(
        "--prompts",
        metavar="FILE",
        help=".txt (a prompt per line), .jsonl, .json, .csv or .parquet: texts, or chats of which "
        "the last user turn is the prompt",
    )
    add.add_argument(
        "--column", metavar="NAME", default="prompt", help="of --prompts (default prompt)"
    )
    add.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default 1.0)")
    add.add_argument("--top_k", type=int, default=0, help="0: off (default)")
    add.add_argument("--top_p", type=float, default=1.0)
    add.add_argument("--max_tokens", type=int, default=256, help="default 256")
    add.add_argument("--n", type=int, default=1, help="completions a prompt (default 1)")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    add_scan(add)
    add.add_argument("--raw", action="store_true", help="no chat template: continue the text")
    add.add_argument("--json", action="store_true", help="one object a completion, a line each")


def evaluate(add: argparse.ArgumentParser) -> None:
    add.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PATH",
        help="as of `seif generate`, or a run's folder; several: runs with different seeds",
    )
    add.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="PATH",
        help="what to compare with: one "
        "for all, or one for each --model (a run's models: with its base)",
    )
    add.add_argument("--suite", action="append", required=True, metavar="NAME[,NAME]")
    add.add_argument(
        "--data", action="append", default=[], metavar="[SUITE=]FILE", help="a file or data set"
    )
    add.add_argument(
        "--responses", metavar="FILE", help="score these replies (columns prompt and response)"
    )
    add.add_argument("--limit", type=int, metavar="N", help="the first N prompts of each suite")
    add.add_argument("--samples", type=int, default=1, metavar="K", help="replies per prompt")
    add.add_argument("--temperature", type=float, default=0.0, help="default 0: greedy")
    add.add_argument("--max_tokens", type=int, default=1280, help="of a reply (default 1280)")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    add.add_argument(
        "--format", choices=("plain", "think_answer"), help="default: as the model's run, or plain"
    )
    add.add_argument("--judge", metavar="PATH", help="the Judger of suites that ask one")
    add.add_argument("--judge_mode", choices=("generate", "verdict"), default="generate")
    add.add_argument("--out", metavar="DIR", help="where replies and scores are kept")
    add.add_argument("--json", action="store_true", help="all scores as one object")


def convert(add: argparse.ArgumentParser) -> None:
    add.add_argument("src", metavar="SRC")
    add.add_argument("dst", metavar="DST")
    add.add_argument("--to", choices=("hf", "orbax"), default="hf", help="default hf")
    add.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: as SRC's config.json says, or else bfloat16; with --adapter float32",
    )
    add.add_argument(
        "--adapter",
        action="store_true",
        help="of a run with config.lora; without it the adapter is merged into its base",
    )
    add_scan(add)


def bench(add: argparse.ArgumentParser) -> None:
    add_model(add)
    add.add_argument("--what", choices=("rollout", "judge", "update", "step"), required=True)
    add.add_argument("--prompts", type=int, default=4, help="judge: replies (default 4)")
    add.add_argument("--group", type=int, default=4, help="samples a prompt; judge: constraints")
    add.add_argument("--prompt_tokens", type=int, default=64, help="default 64")
    add.add_argument("--new_tokens", type=int, default=64, help="default 64")
    add.add_argument(
        "--lengths",
        choices=("fixed", "skewed"),
        default="fixed",
        help="rollout: skewed: most samples 50 to 150 tokens, one in ten --new_tokens",
    )
    add.add_argument("--slots", type=int, help="rollout: decoded together (default: all samples)")
    add.add_argument("--micro_tokens", type=int, help="tokens a backward pass (default: all)")
    add.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    add.add_argument("--repeats", type=int, default=5, help="default 5, after one that warms up")
    add.add_argument("--against", choices=("hf", "trl", "tunix", "vllm"), help="a peer")
    add.add_argument("--peer_python", metavar="FILE", help="the interpreter that has it")
    add.add_argument(
        "--peer_dtype",
        choices=(*DTYPES, "autocast"),
        help="default: as --dtype; trl: autocast (bfloat16 over float32 weights); tunix: float32",
    )


def plan(add: argparse.ArgumentParser) -> None:
    add.add_argument("--config", required=True, metavar="FILE", help="as of `seif run`")
    add.add_argument("--topology", metavar="NAME", help="none: the devices present")
    add.add_argument("--json", action="store_true", help="one object, last on standard output")


def sweep(add: argparse.ArgumentParser) -> None:
    add.add_argument("--config", required=True, metavar="FILE", help="as of `seif run`")
    add.add_argument("--sweep", metavar="FILE", help="a file of sweeps/, or yours")
    add.add_argument("--workdir", required=True, metavar="DIR", help="the runs' folders are in it")
    add.add_argument(
        "--launcher", required=True, choices=("print", "local", "slurm", "xpk", "table")
    )
    add.add_argument("--jobs", type=int, metavar="N", help="at once; local: 1 unless given")


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
        help="take weights of files as they are, with NaN and infinity",
    )


COMMANDS = (  # whose options are added, what it does, --help, usage where it is not plain
    (
        run,
        "start or resume a run",
        RUN_HELP,
        "seif run --config=FILE --workdir=DIR [--config.key=value …]",
    ),
    (report, "write the page that one run or several are read from", REPORT_HELP, None),
    (generate, "complete prompts with a model", GENERATE_HELP, None),
    (evaluate, "score a model, or replies, on benchmarks", EVALUATE_HELP, None),
    (convert, "write a checkpoint in Hugging Face format", CONVERT_HELP, None),
    (bench, "measure sampling, judging, updating, a whole step", BENCH_HELP, None),
    (
        plan,
        "what a config takes on devices that need not be there",
        PLAN_HELP,
        "seif plan --config=FILE [--topology=v5p:4x4x4|h100:8] [--json] [--config.key=value …]",
    ),
    (
        sweep,
        "run a config many times, here or on a cluster, and compare",
        SWEEP_HELP,
        "seif sweep --config=FILE [--sweep=FILE] --workdir=DIR --launcher=LAUNCHER "
        "[--jobs=N] [--config.key=value …]",
    ),
)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="seif", description="Self-evolving RL for instruction following, in JAX.")
    top.add_argument("--version", action="version", version=f"seif_jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for options, does, description, usage in COMMANDS:
        command = commands.add_parser(
            options.__name__,
            help=does,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=usage,
        )
        options(command)
    return top
