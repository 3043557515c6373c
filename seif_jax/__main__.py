"""The `seif` command. Each subcommand imports what it needs, so that --help takes no time."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seif_jax.errors import RunError, Stopped, UserError, displayed, exit_code, one_line
from seif_jax.files import check_output, os_errors, output_folder, recover
from seif_jax.json_io import dumps
from seif_jax.options import parser
from seif_jax.options.shared import DTYPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 failed, 2 wrong usage or input, 130
    stopped by Ctrl-C, 143 by SIGTERM, 141 if the reader of its output has closed it."""
    command, resumable = "seif", False
    try:
        options, rest = parser().parse_known_args(arguments)
        command = f"seif {options.command}"
        resumable = options.command in RESUMED or saves_replies(options)
        prefixes = PASSED_ON.get(options.command, ())
        unknown = [argument for argument in rest if not argument.startswith(prefixes)]
        if unknown:
            raise UserError(unknown_argument(options.command, unknown[0]))
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        COMMANDS[options.command](options, rest)
        sys.stdout.flush()  # here an error can still be reported
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if code is None:
            raise
        if not isinstance(error, BrokenPipeError):
            stopped = isinstance(error, (KeyboardInterrupt, Stopped))
            hint = "; the same command resumes it" if stopped and resumable else ""
            with contextlib.suppress(OSError):  # standard error may be closed, too
                print(f"{command}: {one_line(error)}{hint}", file=sys.stderr)
        flush_or_discard()
        return code
    return 0


def unknown_argument(command: str, argument: str) -> str:
    """The message for an argument that a command does not know."""
    from seif_jax import config_parsing

    key = argument.removeprefix("--").partition("=")[0]
    hint = ""
    if "--config." in PASSED_ON.get(command, ()) and config_parsing.values_of_key(key):
        hint = f"; a key of the config is set by --config.{key}=VALUE"
    return f"unknown argument {argument}{hint}"


def saves_replies(options: argparse.Namespace) -> bool:
    """Whether the command is an evaluation that continues after a stop."""
    return options.command == "evaluate" and options.out is not None


def flush_or_discard() -> None:
    """Empties the buffer of standard output, so that Python does not complain at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    start = time.perf_counter()
    check_output(options.workdir)
    from seif_jax import checks_before_jax
    from seif_jax.config_file import import_folders, read_config

    config = read_config(options.config, overrides)
    folders = import_folders(options.config)
    checks_before_jax.check(config, Path(options.workdir), folders)
    use_compilation_cache()
    from seif_jax import accelerator_detection, evolve, processes, resume, run_clock, signals
    from seif_jax.display import Display

    accelerator_detection.skip_absent()
    run_clock.CLOCK.start(time.perf_counter() - start)
    joined = options.coordinator, options.processes, options.process
    with processes.together(*joined, config.distributed.heartbeat_secs):
        if processes.first():
            accelerator_detection.warn_if_unused(options.command)
        stream = None if processes.first() else open(os.devnull, "w")
        with Display(stream, stream) as display, signals.stop_at_safe_points(display.warn):
            workdir = processes.output_folder(options.workdir)
            resume.check_workdir(config, workdir)
            evolve.run(config, workdir, display, folders, options.profile)


def start_jax(command: str) -> None:
    """Sets JAX up for a command that runs a model in this process."""
    from seif_jax import accelerator_detection

    use_compilation_cache()
    accelerator_detection.skip_absent()
    accelerator_detection.warn_if_unused(command)


def use_compilation_cache() -> None:
    """Keeps compiled programs for later processes, in the XDG cache directory if the user has not
    set JAX_COMPILATION_CACHE_DIR."""
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "seif_jax" / "xla"))


def generate(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax import data_files, model_names
    from seif_jax.options.generate import check

    check(options)
    model_names.check(options.model)
    if options.prompts:
        data_files.check_exists(options.prompts)
    from seif_jax import generate

    prompts = generate.read_prompts(options)
    start_jax(options.command)
    generate.run(options, prompts)


def evaluate(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax import signals
    from seif_jax.evaluate import command
    from seif_jax.options.evaluate import EvaluateOptions

    with signals.stop_at_once():
        command.run(EvaluateOptions(**values(options)), partial(start_jax, options.command))


def convert(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax import model_names

    if options.adapter and options.to != "hf":
        raise UserError(f"--adapter needs --to=hf (got --to={options.to})")
    start = time.perf_counter()
    dst = output_folder(options.dst)
    with os_errors(options.src):
        recover(options.src)  # DST may be the same folder, and its replacement may have been killed
    model_names.check(options.src)
    from seif_jax import accelerator_detection, models
    from seif_jax.json_io import TEXT, field
    from seif_jax.model_bundle import ModelBundle, export_adapter, load_params, tensors
    from seif_jax.model_card import card
    from seif_jax.run_paths import RunPaths, run_of, stage_of

    accelerator_detection.skip_absent()
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
    from seif_jax import run_paths
    from seif_jax.report import run_files

    if options.matrix is not None and options.matrix < 1:
        raise UserError(f"--matrix must be 1 or more (got {options.matrix})")
    writes = options.matrix or options.pca  # into the run's folder, and reads its weights
    local = output_folder if writes else run_paths.local_run
    runs = run_files.open_runs([local(name) for name in options.dirs])
    from seif_jax.report import page

    folder = output_folder(options.out or displayed(str(page.default_folder(runs))))
    if options.matrix or options.pca:
        from seif_jax.report import coevolution

        start_jax(options.command)
        coevolution.compute(runs, options.matrix, options.pca)
    print(displayed(str(page.write(runs, folder))))


def bench(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax import model_names
    from seif_jax.options.bench import BenchOptions

    bench_options = BenchOptions(**values(options))
    bench_options.check()
    model_names.check(options.model)
    from seif_jax import accelerator_detection
    from seif_jax.bench import command

    accelerator_detection.skip_absent()
    accelerator_detection.warn_if_unused(options.command)
    print(dumps(command.run(bench_options)))


def plan(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from seif_jax import config_checks, length_distribution, topologies
    from seif_jax.config_file import read_config

    if options.topology is not None:
        topologies.check(options.topology)
    drawn = None if options.lengths is None else length_distribution.parse(options.lengths)
    config = read_config(options.config, overrides)
    if drawn:
        config_checks.check_mean_length(drawn, config)
    from seif_jax import accelerator_detection
    from seif_jax.plan import plan, text

    accelerator_detection.skip_absent()
    estimate = plan(config, options.topology, drawn)
    print(dumps(estimate) if options.json else "\n".join(text.lines(estimate)))
    if not estimate["fits"]:
        names = ", ".join(program["program"] for program in estimate["does_not_fit"])
        raise RunError(f"does not fit: {names}")


def sweep(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from seif_jax import sweep
    from seif_jax.config_file import read_config

    overrides = [option for option in rest if option.startswith("--config.")]
    launcher_options = [option for option in rest if option not in overrides]
    sweep_options = sweep.SweepOptions(
        **values(options), overrides=overrides, options=launcher_options
    )
    sweep.run(sweep_options, read_config)


def values(options: argparse.Namespace) -> dict[str, Any]:
    """The values of a command's options."""
    return {name: value for name, value in vars(options).items() if name != "command"}


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
RESUMED = ("run", "sweep")
# The prefixes of further arguments that a command accepts.
PASSED_ON = {
    "run": ("--config.",),
    "plan": ("--config.",),
    "sweep": ("--config.", "--slurm.", "--xpk."),
}

if __name__ == "__main__":
    sys.exit(main())
