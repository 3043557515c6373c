"""The `seif` command: run, generate, convert."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from seif_jax import __version__
from seif_jax.errors import RunError, UserError

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

DST is made anew or holds an older model, which is replaced. It appears whole or not at all.
"""

RUN_HELP = """\
Starts a run, or resumes the one that DIR holds. Any key of the config can be set:

  seif run --config=configs/quickstart.py --workdir=runs/mine --config.seed=1
  seif run --config=configs/smollm2.py --workdir=runs/follower \\
      --config.stages=follower --config.data.instructions=DATA.parquet
  seif run --config=configs/smollm2.py --workdir=runs/instructor \\
      --config.stages=instructor --config.instructor.init=RUN/round_1/instructor
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 failed, 2 wrong usage or input."""
    options, rest = parser().parse_known_args(arguments)
    if rest and not (options.command == "run" and all(r.startswith("--config.") for r in rest)):
        print(f"seif {options.command}: unknown argument {rest[0]}", file=sys.stderr)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        options.function(options, rest)
    except UserError as error:
        print(f"seif {options.command}: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"seif {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"seif {options.command}: stopped; the same command goes on", file=sys.stderr)
        return 1
    return 0


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="seif", description="Self-evolving RL for instruction following, in JAX.")
    top.add_argument("--version", action="version", version=f"seif_jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add = commands.add_parser(
        "run",
        help="start or resume a run",
        description=RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="seif run --config=FILE --workdir=DIR [--config.key=value …]",
    )
    add.add_argument("--config", required=True, metavar="FILE", help="a file of configs/, or yours")
    add.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    add.set_defaults(function=run)

    add = commands.add_parser(
        "generate",
        help="complete prompts with a model",
        description="Completes prompts with a Hugging Face folder, a GGUF file or a run's "
        "checkpoint. Prompts come from --prompt, --prompts, or standard input (one a line).",
    )
    add.add_argument("--model", metavar="PATH", help="none: the embedded SmolLM2-135M-Instruct")
    add.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    add.add_argument(
        "--prompts", metavar="FILE", help=".txt (one a line), .jsonl or .parquet (column 'prompt')"
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
    add.set_defaults(function=generate)

    add = commands.add_parser(
        "convert",
        help="write a checkpoint in Hugging Face format",
        description=CONVERT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    add.set_defaults(function=convert)
    return top


def add_scan(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no_scan",
        dest="scan",
        action="store_false",
        help="take weights of files as they are, with NaN and infinity",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = read_config(options.config, overrides)
    use_compilation_cache()
    from seif_jax import evolve
    from seif_jax.display import Display

    with Display() as display:
        evolve.run(config, Path(options.workdir), display)


def read_config(path: str, overrides: Sequence[str]) -> Any:
    """The config of a file with `--config.key=value` applied; UserError names what is wrong."""
    if not Path(path.partition(":")[0]).is_file():
        raise UserError(f"{path}: no such config file")
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)  # configs import their base from beside
    called, sys.argv = sys.argv, ["seif", f"--config={path}", *overrides]  # config_flags reads it
    try:
        values(sys.argv)
        return holder.value
    except (flags.Error, ArithmeticError, AttributeError, ImportError, LookupError, NameError,
            SyntaxError, TypeError, ValueError) as error:  # fmt: skip
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        if isinstance(error, KeyError):
            reason = f"no config key {reason.strip(chr(34))}"
        raise UserError(f"{path}: {reason}") from error
    finally:
        sys.path.remove(folder)
        sys.argv = called


def use_compilation_cache() -> None:
    """Compiled programs outlive the process, where the XDG base directories say."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(cache / "seif_jax" / "xla"))


def generate(options: argparse.Namespace, rest: Sequence[str]) -> None:
    prompts = read_prompts(options)
    use_compilation_cache()
    import jax

    from seif_jax.checkpoint import Base, load_params
    from seif_jax.sampling import Engine
    from seif_jax.settings import dtype
    from seif_jax.speaker import Decoding, Speaker

    base = Base.load(options.model)
    config = base.model.config
    kind = dtype(options.dtype)
    params = load_params(options.model, base.model, kind, options.scan)
    engine = Engine(config, params, kind)
    speaker = Speaker(engine, base.tokenizer)
    if options.raw:
        ids = [base.tokenizer.encode(prompt) for prompt in prompts]
    else:
        ids = speaker.encode([[{"role": "user", "content": prompt}] for prompt in prompts], "")
    room = config.max_positions - options.max_tokens
    for prompt, tokens in zip(prompts, ids, strict=True):
        if not 0 < len(tokens) <= room:
            raise UserError(f"the prompt {prompt[:40]!r} has {len(tokens)} tokens, not 1 to {room}")
    decoding = Decoding(
        room, options.max_tokens, 64, "", options.temperature, options.top_k, options.top_p
    )
    replies = speaker.complete(ids, decoding, jax.random.key(options.seed), options.n)
    for i, reply in enumerate(replies):
        assert reply is not None, "lengths were checked above"
        if not options.json:
            print(reply.text if len(replies) == 1 else f"[{i // options.n + 1}] {reply.text}\n")
            continue
        found = {
            "prompt": prompts[i // options.n],
            "text": reply.text,
            "token_ids": reply.ids.tolist(),
            "logprobs": reply.logp.tolist(),
            "finish_reason": "stop" if reply.finished else "length",
        }
        print(json.dumps(found, ensure_ascii=False))


def read_prompts(options: argparse.Namespace) -> list[str]:
    if options.max_tokens < 1 or options.n < 1:
        raise UserError(f"--max_tokens={options.max_tokens} and --n={options.n} must be 1 or more")
    prompts: list[str] = list(options.prompt or ())
    if options.prompts and not options.prompts.endswith(".txt"):
        from seif_jax.data import load_seeds

        prompts += load_seeds(options.prompts)
    elif options.prompts or not prompts:
        try:
            text = Path(options.prompts).read_text("utf-8") if options.prompts else sys.stdin.read()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{options.prompts or 'standard input'}: {error}") from error
        prompts += [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError("no prompts: give --prompt=TEXT, --prompts=FILE or lines on standard input")
    return prompts


def convert(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax import models
    from seif_jax.card import card
    from seif_jax.checkpoint import Base, export_adapter, load_params, run_of, stage_of, tensors

    if options.adapter and options.to != "hf":
        raise UserError("--adapter is a form of --to=hf")
    start = time.perf_counter()
    base = Base.load(options.src)
    config = base.model.hf_config
    said = config.get("dtype") or config.get("torch_dtype")
    dtype = options.dtype or (said if said in DTYPES else "bfloat16")
    stage, dst = stage_of(Path(options.src)), Path(options.dst)
    if stage and run_of(stage) != stage:
        base = base.with_card(card(stage))
    if options.adapter:
        dtype = options.dtype or "float32"
        count = export_adapter(options.src, dst, base, dtype)
    else:
        if options.to == "hf":
            base.write(dst, tensors(options.src, base.model, dtype, options.scan), dtype)
        else:
            base.save_orbax(dst, load_params(options.src, base.model, dtype, options.scan))
        count = models.count(base.model)
    secs = time.perf_counter() - start
    size = sum(path.stat().st_size for path in dst.rglob("*"))
    what = "adapter of " if options.adapter else ""
    print(
        f"{options.dst}: {what}{config['model_type']}, {count:,} parameters, {dtype}, "
        f"{size:,} bytes in {secs:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
