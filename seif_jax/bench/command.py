"""`seif bench`: measures a part of training, next to the hardware's limits and other libraries.

workload   what is timed                                   tokens_per_sec counts
rollout    Engine.sample, without stop tokens              sampled tokens
judge      ChatModel.next_token_probs, in verdict mode     tokens of all dialogues, shared or not
update     gradient and optimizer                          tokens of all samples with their prompts
step       train_step                                      sampled tokens

share_of_limit is the least work that must be done, divided by the seconds it took and by what the
hardware can do per second (formulas: roofline.py). For `rollout`, the work is the bytes that
decoding reads, and the seconds are those of decoding: the rollout less one of a single token. For
the others it is the model's FLOPs. Let F be those of one forward pass over the tree of prompts and
samples, where a prompt counts once for its group and the last token of a sample is not computed.
An update takes 3F (a backward pass is two forward passes; recomputation does not count), a step 5F
(sampling, reference, update). Judging is one forward pass over the tree of its dialogues.
"""

import importlib.metadata
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import psutil

from seif_jax import length_distribution, metrics_log, models, plan
from seif_jax.accelerator_detection import native_dtype
from seif_jax.bench import baselines, roofline
from seif_jax.bench.baselines import Peer, Repetition
from seif_jax.bench.inputs import BenchModel, WorkloadSizes
from seif_jax.bench.workloads import FULL_BATCH, WORKLOADS, Workload
from seif_jax.errors import UserError
from seif_jax.model_bundle import ModelBundle, tensors
from seif_jax.options.bench import BenchOptions
from seif_jax.run_config import RunConfig
from seif_jax.tokenizer import Tokenizer

PACKAGES = ("seif_jax", "jax", "jaxlib", "flax", "optax")

Secs = dict[str, float]  # the seconds of a repetition: of its phases, and "step" for all of it
Result = dict[str, Any]  # what is printed as JSON


def sizes_of(options: BenchOptions) -> WorkloadSizes:
    samples = options.prompts * options.group
    return WorkloadSizes(
        options.prompts,
        options.group,
        options.prompt_tokens,
        options.new_tokens,
        options.micro_tokens or samples * (options.prompt_tokens + options.new_tokens),
        length_distribution.parse(options.lengths) if options.lengths else None,
        options.slots or samples,
        options.remat,
    )


def dtype_of_peer(options: BenchOptions, model: BenchModel) -> str:
    return options.peer_dtype or baselines.DTYPES.get(options.against or "", model.dtype_name)


def run(options: BenchOptions) -> Result:
    """Runs a benchmark. Returns its result and options; progress goes to standard error.

    options: checked by their `check`. Raises UserError if they do not fit the model or the machine,
    or if a peer fails.
    """
    if options.against and jax.default_backend() != "cpu":
        raise UserError(
            f"--against compares on the CPU, and JAX uses {jax.default_backend()}: set "
            "JAX_PLATFORMS=cpu"
        )
    bundle = load_bundle(options)
    max_positions = bundle.model.config.max_positions
    if options.prompt_tokens + options.new_tokens > max_positions:
        raise UserError(
            f"--prompt_tokens={options.prompt_tokens} and --new_tokens={options.new_tokens} exceed "
            f"the model's {max_positions} positions"
        )
    dtype = options.dtype or native_dtype()
    model = BenchModel(bundle, options.model, options.random_weights, dtype)
    result: Result = {
        **asdict(options),
        "dtype": model.dtype_name,
        "model_type": bundle.model.hf_config["model_type"],
        "parameters": models.num_params(bundle.model),
    }
    # `measure` frees the workload's arrays before the hardware's limits are measured.
    result |= measure(options, model)
    limits = roofline.measure(model.dtype, options.repeats)
    limit, work, phase = least_work(options, result, model)
    result |= {
        "limits": limits,
        "limit": limit,
        "share_of_limit": work / result["secs"][phase]["median"] / limits[limit],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": roofline.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    log(
        f"the machine: {limits['bytes_per_sec']:.3g} bytes/s, {limits['flops_per_sec']:.3g} "
        f"FLOP/s; reached: {result['share_of_limit']:.1%} of {limit}"
    )
    return result


def load_bundle(options: BenchOptions) -> ModelBundle:
    """Loads the model's bundle. With --random_weights, it reads only its config.json and uses the
    embedded model's tokenizer."""
    if not options.random_weights:
        return ModelBundle.load(options.model)
    model, tokenizer = plan.describe(options.model), Tokenizer.load(models.resolve(None))
    if tokenizer.vocab_size > model.config.vocab:
        raise UserError(
            f"--random_weights: the vocabulary of {options.model} must have at least "
            f"{tokenizer.vocab_size} tokens, as many as the embedded model's tokenizer (got "
            f"{model.config.vocab})"
        )
    return ModelBundle(model, tokenizer, {})


def measure(options: BenchOptions, model: BenchModel) -> Result:
    """Times the workload and its peer."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seif_bench_")))
        workload = WORKLOADS[options.what](model, sizes_of(options))
        peer = None
        if options.against:
            peer = stack.enter_context(start_peer(options, model, workload, folder))
        peer_versions = peer.ready() if peer else {}
        compiled = stack.enter_context(metrics_log.CompileTimer())
        first = timed(workload.run)
        programs, compile_secs = compiled.take()
        log(f"{options.what}: {programs} programs, ready after {first['step']:.2f} s")
        for function in workload.warm_up:
            function()
        compiled.take()
        ours, theirs = alternate(workload, peer, options.repeats)
        result = {
            "compiled_programs": programs,
            "compiled_again": compiled.take()[0],  # during the repetitions
            "compile_secs": compile_secs,
            "first_secs": first["step"],
            "peak_bytes": roofline.peak_bytes(),
            "flops": workload.flops,
            **workload.metrics,
            **summary(ours, workload.tokens),
        }
    if "full_forward" in workload.compared:
        result["times_full_forward"] = spread(
            [secs["full_forward"] / secs["step"] for secs in ours]
        )
    if peer:
        repetitions = [reply["phases"] | {"step": reply["secs"]} for reply in theirs]
        result["peer"] = {
            "name": peer.name,
            "dtype": dtype_of_peer(options, model),
            "versions": peer_versions,
            "peak_bytes": max(reply["peak_bytes"] for reply in theirs),
            **summary(repetitions, workload.tokens),
        }
        pairs = zip(ours, repetitions, strict=True)
        result["secs_over_peer"] = spread([a["step"] / b["step"] for a, b in pairs])
        result["peak_over_peer"] = result["peak_bytes"] / result["peer"]["peak_bytes"]
    return result


def alternate(
    workload: Workload, peer: Peer | None, repeats: int
) -> tuple[list[Secs], list[Repetition]]:
    """Repeats the workload and the peer in turns. Returns our seconds and the peer's reports."""
    ours, theirs = [], []
    for i in range(repeats):
        secs = timed(workload.run)
        for name, function in workload.compared.items():
            secs[name] = timed(function)["step"]
        line = ", ".join(f"{name} {value:.3f} s" for name, value in secs.items())
        if peer:
            theirs.append(peer.repeat())
            line += f"; {peer.name} {theirs[-1]['secs']:.3f} s"
        ours.append(secs)
        log(f"repetition {i + 1} of {repeats}: {line}")
    return ours, theirs


def timed(function: Callable[[], Mapping[str, float] | None]) -> Secs:
    """The seconds of a call, and those of its phases, which it returns."""
    start = time.perf_counter()
    phases = function() or {}
    return {"step": time.perf_counter() - start, **phases}


def summary(repetitions: Sequence[Secs], tokens: int) -> Result:
    secs = {name: spread([row[name] for row in repetitions]) for name in repetitions[0]}
    if "first_token" in secs:
        secs["decode"] = spread([row["step"] - row["first_token"] for row in repetitions])
    step_secs = secs["step"]["median"]
    return {"tokens_per_sec": tokens / step_secs, "step_secs": step_secs, "secs": secs}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def least_work(options: BenchOptions, result: Result, model: BenchModel) -> tuple[str, float, str]:
    """The name of the hardware's limit that bounds the workload, the least work that it must do (in
    the limit's unit), and the phase that does this work."""
    if options.what != "rollout":
        return "flops_per_sec", result["flops"], "step"
    sizes = sizes_of(options)
    lengths = sizes.new_lengths()
    steps = max(max(lengths), sum(lengths) / sizes.slots) - 1  # if no slot were ever empty
    bytes_per_step = roofline.decode_bytes(
        model.config,
        result["parameters"],
        np.dtype(model.dtype).itemsize,
        prompt_tokens=sizes.slots // options.group * options.prompt_tokens,
        new_tokens=sum(n * n / 2 for n in lengths) / (steps + 1),
    )
    return "bytes_per_sec", bytes_per_step * steps, "decode"


def start_peer(options: BenchOptions, model: BenchModel, workload: Workload, folder: Path) -> Peer:
    """Starts the peer on the same work, with the model as a Hugging Face folder."""
    assert options.against and options.peer_python
    source = models.resolve(options.model)
    if not (source / "config.json").is_file():
        source = folder / "model"
        weights = tensors(options.model, model.bundle.model, model.dtype_name)
        model.bundle.write(source, weights, model.dtype_name)
    defaults = RunConfig()
    spec = {
        "what": options.what,
        "model": str(source.resolve()),
        "prompts": workload.prompts,
        "texts": [model.bundle.tokenizer.decode(ids) for ids in workload.prompts],
        "group": options.group,
        "new_tokens": options.new_tokens,
        "lengths": sizes_of(options).new_lengths(),
        "dtype": dtype_of_peer(options, model),
        "threads": psutil.cpu_count(),
        "batch_size": FULL_BATCH,
        "kl_coef": defaults.grpo.kl_coef,
        "learning_rate": defaults.optim.learning_rate,
        "folder": str(folder),
    }
    return Peer(options.against, options.peer_python, spec, folder)


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
