"""The `seif` command: run, report, generate, convert, bench, plan, sweep."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from seif_jax.errors import RunError, UserError, exit_code, one_line
from seif_jax.files import local_path, os_errors, recover
from seif_jax.json_io import dumps
from seif_jax.options import DTYPES, parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 failed, 2 wrong usage or input, 130 stopped
    by Ctrl-C, 141 where nobody reads the output any more."""
    command = "seif"
    try:
        options, rest = parser().parse_known_args(arguments)
        command = f"seif {options.command}"
        unknown = [r for r in rest if not r.startswith(PASSED_ON.get(options.command, ()))]
        if unknown:
            raise UserError(unknown_argument(options.command, unknown[0]))
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        COMMANDS[options.command](options, rest)
        sys.stdout.flush()  # here, where an error of the output can still be reported
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if code is None:
            raise
        if not isinstance(error, BrokenPipeError):
            resumed = isinstance(error, KeyboardInterrupt) and command in RESUMED
            hint = "; the same command resumes it" if resumed else ""
            with contextlib.suppress(OSError):  # nobody reads standard error, either
                print(f"{command}: {one_line(error)}{hint}", file=sys.stderr)
        flush_or_discard()
        return code
    return 0


def unknown_argument(command: str, argument: str) -> str:
    """What to say of an argument that a command does not know."""
    from seif_jax import config_keys

    key = argument.removeprefix("--").partition("=")[0]
    hint = ""
    if "--config." in PASSED_ON.get(command, ()) and config_keys.key(key):
        hint = f"; a key of the config is set by --config.{key}=VALUE"
    return f"unknown argument {argument}{hint}"


def flush_or_discard() -> None:
    """Empties the buffer of standard output, which Python's exit would complain about."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    workdir = local_path(options.workdir)
    from seif_jax.config_file import config_folder, read_config

    config = read_config(options.config, overrides)
    folders = (config_folder(options.config), Path())
    use_compilation_cache()
    from seif_jax import accelerators, evolve, processes
    from seif_jax.display import Display

    accelerators.skip_absent()
    with processes.together(options.coordinator, options.processes, options.process):
        if processes.first():
            accelerators.warn_if_unused(options.command)
        stream = None if processes.first() else open(os.devnull, "w")
        with Display(stream, stream) as display:
            evolve.run(config, workdir, display, folders)


def use_compilation_cache() -> None:
    """Compiled programs outlive the process, where the XDG base directories say."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(cache / "seif_jax" / "xla"))


def generate(options: argparse.Namespace, rest: Sequence[str]) -> None:
    prompts = read_prompts(options)
    use_compilation_cache()
    import jax

    from seif_jax import accelerators
    from seif_jax.chat import ChatModel, Decoding
    from seif_jax.checkpoint import ModelBundle, load_params
    from seif_jax.sampling import Engine
    from seif_jax.sampling.methods import Method
    from seif_jax.settings import dtype

    accelerators.skip_absent()
    accelerators.warn_if_unused(options.command)
    sampling = options.temperature, options.top_k, options.top_p
    try:
        Method(*sampling)
    except UserError as error:
        raise UserError(f"--{error}") from None
    base = ModelBundle.load(options.model)
    tokenizer, positions = base.tokenizer, base.model.config.max_positions
    if options.raw:
        ids = [tokenizer.encode(prompt) for prompt in prompts]
    else:
        dialogues = [[{"role": "user", "content": prompt}] for prompt in prompts]
        tokenizer.check_chat(dialogues[0])
        ids = [tokenizer.encode_chat(dialogue) for dialogue in dialogues]
    check_room(options, prompts, ids, positions)
    kind = dtype(options.dtype)
    params = load_params(options.model, base.model, kind, options.scan)
    chat_model = ChatModel(Engine(base.model.config, params, kind), tokenizer)
    decoding = Decoding(positions - options.max_tokens, options.max_tokens, 64, "", *sampling)
    replies = chat_model.complete(ids, decoding, jax.random.key(options.seed), options.n)
    for i, reply in enumerate(replies):
        assert reply is not None, "lengths were checked above"
        if not options.json:
            if len(replies) > 1:
                print(heading(i, prompts, options.n))
            print(reply.text, end="\n" if len(replies) == 1 else "\n\n")
            continue
        found = {
            "prompt": prompts[i // options.n],
            "text": reply.text,
            "token_ids": reply.ids.tolist(),
            "logprobs": reply.logp.tolist(),
            "finish_reason": "stop" if reply.finished else "length",
        }
        print(dumps(found))


def check_room(
    options: argparse.Namespace,
    prompts: Sequence[str],
    ids: Sequence[Sequence[int]],
    positions: int,
) -> None:
    """Raises UserError unless every prompt (`ids` are its tokens) has a token, and fits the model's
    positions together with its reply."""
    room = positions - options.max_tokens
    if room < 1:
        raise UserError(
            f"--max_tokens must be less than the model's {positions} positions "
            f"(got {options.max_tokens})"
        )
    for prompt, tokens in zip(prompts, ids, strict=True):
        if not tokens:
            raise UserError("a prompt is empty, and --raw leaves nothing to continue")
        if len(tokens) > room:
            raise UserError(
                f"the prompt {prompt[:40]!r} has {len(tokens)} tokens; at most {room} fit the "
                f"model's {positions} positions with --max_tokens={options.max_tokens}"
            )


def read_prompts(options: argparse.Namespace) -> list[str]:
    if options.max_tokens < 1 or options.n < 1:
        raise UserError(f"--max_tokens={options.max_tokens} and --n={options.n} must be 1 or more")
    from seif_jax import data, files, sources

    prompts: list[str] = list(options.prompt or ())
    if options.prompts:
        seeds = data.load_seeds(options.prompts, options.column, warn=warn)
        prompts += [seed.question for seed in seeds]
    elif not prompts:
        text = files.decode(sys.stdin.buffer.read(), "standard input")
        prompts += [line for line in sources.lines(text) if line.strip()]
    if not prompts:
        raise UserError("no prompts: give --prompt=TEXT, --prompts=FILE or lines on standard input")
    return prompts


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def heading(i: int, prompts: Sequence[str], n: int) -> str:
    """Says which prompt reply i answers, where each of them has n."""
    number, completion = divmod(i, n)
    of_prompt = f", completion {completion + 1}/{n}" if n > 1 else ""
    prompt = " ".join(prompts[number].split())
    prompt = prompt if len(prompt) <= 80 else f"{prompt[:79]}…"
    return f"[{number + 1}/{len(prompts)}{of_prompt}] {prompt}"


def evaluate(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax.evaluate import command
    from seif_jax.evaluate.options import EvaluateOptions

    values = {name: value for name, value in vars(options).items() if name != "command"}
    if not options.responses or options.judge:
        from seif_jax import accelerators

        use_compilation_cache()
        accelerators.skip_absent()
        accelerators.warn_if_unused(options.command)
    command.run(EvaluateOptions(**values))


def convert(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax import accelerators, models
    from seif_jax.card import card
    from seif_jax.checkpoint import ModelBundle, export_adapter, load_params, tensors
    from seif_jax.json_io import TEXT, field
    from seif_jax.run_paths import RunPaths, run_of, stage_of

    if options.adapter and options.to != "hf":
        raise UserError("--adapter is a form of --to=hf")
    accelerators.skip_absent()
    start = time.perf_counter()
    dst = local_path(options.dst)
    with os_errors(options.src):
        recover(options.src)  # DST may be the same folder, and its replacement may have been killed
    base = ModelBundle.load(options.src)
    config = base.model.hf_config
    stored = field(config, "dtype", TEXT, None) or field(config, "torch_dtype", TEXT, None)
    dtype = options.dtype or (stored if stored in DTYPES else "bfloat16")
    stage = stage_of(models.resolve(options.src))
    if stage and run_of(stage.folder) != RunPaths(stage.folder):  # not what --to=orbax made
        base = base.with_card(card(stage))
    if options.adapter:
        dtype = options.dtype or "float32"
        count = export_adapter(options.src, dst, base, dtype)
    else:
        if options.to == "hf":
            weights = tensors(options.src, base.model, dtype, options.scan)
            base.write(dst, weights, dtype, options.scan)
        else:
            load = partial(load_params, options.src, base.model, dtype, options.scan)
            base.save_orbax(dst, load)
        count = models.num_params(base.model)
    secs = time.perf_counter() - start
    size = sum(path.stat().st_size for path in dst.rglob("*"))
    what = "adapter of " if options.adapter else ""
    print(
        f"{options.dst}: {what}{config['model_type']}, {count:,} parameters, {dtype}, "
        f"{size:,} bytes in {secs:.1f} s"
    )


def report(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax.report import page, run_files

    if options.matrix is not None and options.matrix < 1:
        raise UserError(f"--matrix must be 1 or more (got {options.matrix})")
    runs = run_files.open_runs([Path(name) for name in options.dirs])
    folder = local_path(options.out) if options.out else page.default_folder(runs)
    if options.matrix or options.pca:
        use_compilation_cache()
        from seif_jax import accelerators
        from seif_jax.report import coevolution

        accelerators.skip_absent()
        accelerators.warn_if_unused(options.command)
        coevolution.compute(runs, options.matrix, options.pca)
    print(page.write(runs, folder))


def bench(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax import accelerators, bench

    accelerators.skip_absent()
    accelerators.warn_if_unused(options.command)
    given = {name: value for name, value in vars(options).items() if name != "command"}
    print(dumps(bench.run(bench.BenchOptions(**given))))


def plan(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from seif_jax import accelerators
    from seif_jax.config_file import read_config
    from seif_jax.plan import plan, text

    config = read_config(options.config, overrides)
    accelerators.skip_absent()
    found = plan(config, options.topology)
    print(dumps(found) if options.json else "\n".join(text.lines(found)))
    if not found["fits"]:
        names = ", ".join(each["program"] for each in found["does_not_fit"])
        raise RunError(f"does not fit: {names}")


def sweep(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax import sweep
    from seif_jax.config_file import read_config

    given = {name: value for name, value in vars(options).items() if name != "command"}
    overrides = [option for option in rest if option.startswith("--config.")]
    own = [option for option in rest if option not in overrides]
    sweep.run(sweep.SweepOptions(**given, overrides=overrides, options=own), read_config)


COMMANDS = {
    "run": run,
    "report": report,
    "generate": generate,
    "evaluate": evaluate,
    "convert": convert,
    "bench": bench,
    "plan": plan,
    "sweep": sweep,
}
RESUMED = ("seif run", "seif sweep")
# What arguments that are no options of a command may start with.
PASSED_ON = {
    "run": ("--config.",),
    "plan": ("--config.",),
    "sweep": ("--config.", "--slurm.", "--xpk."),
}

if __name__ == "__main__":
    sys.exit(main())
