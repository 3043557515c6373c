"""`seif bench`: how fast a part of training is, beside the machine's limits and beside peers.

What is timed                              tokens that tokens_per_sec counts
rollout  Engine.sample, never stopped      sampled
judge    ChatModel.choose, verdict mode      of all dialogues, as if they shared nothing
update   gradient and optimizer            of all samples, each with its prompt
step     train.train_step                  sampled

share_of_limit is what must be done at least, over the seconds that it took, over what the machine
can do (formulas: limits.py). For rollout: the bytes of decoding, which is the whole without a
rollout of one token. For the others: model FLOPs. With F for one forward pass over the tree of
prompts and samples (a prompt counts once for its group; of a sample's last token only its
probability is needed), an update is 3F, a backward pass being two forward ones and nothing that is
computed again counted; a step, which samples, asks the reference and updates, is 5F; judging is one
forward pass over the tree of its dialogues.
"""

import importlib.metadata
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import jax
import psutil

from seif_jax import metrics, models, settings
from seif_jax.bench import baselines, roofline
from seif_jax.bench.baselines import Peer
from seif_jax.bench.inputs import BenchModel, WorkloadSizes
from seif_jax.bench.workloads import FULL_BATCH, WORKLOADS, Workload
from seif_jax.checkpoint import ModelBundle, tensors
from seif_jax.errors import UserError
from seif_jax.rl.grpo import LossConfig
from seif_jax.rl.optim import OptimizerConfig

PACKAGES = ("seif_jax", "jax", "jaxlib", "flax", "optax")

Row = dict[str, float]  # a repetition's seconds by name, the whole as "step"


@dataclass(frozen=True)
class BenchOptions:
    """The options of `seif bench`."""

    model: str | None
    what: str
    prompts: int
    group: int
    prompt_tokens: int
    new_tokens: int
    micro_tokens: int | None
    lengths: str
    slots: int | None
    dtype: str
    repeats: int
    against: str | None
    peer_python: str | None
    peer_dtype: str | None

    def check(self) -> None:
        """UserError naming the option whose value cannot be."""
        for name in ("prompts", "group", "prompt_tokens", "micro_tokens", "slots", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}={value} must be 1 or more")
        if self.new_tokens < 2:
            raise UserError(f"--new_tokens={self.new_tokens} must be 2 or more")
        if self.what in ("update", "step") and self.group < 2:
            raise UserError(f"--group={self.group}: a group needs at least 2 samples to compare")
        if self.lengths == "skewed" and (self.what != "rollout" or self.against):
            raise UserError("--lengths=skewed is of --what=rollout, without a peer")
        if bool(self.against) != bool(self.peer_python):
            raise UserError("--against=PEER and --peer_python=FILE go together")
        if self.against and self.what not in baselines.MEASURES[self.against]:
            can = ", ".join(baselines.MEASURES[self.against])
            raise UserError(f"--against={self.against} measures {can}, not {self.what}")
        if self.against and self.against != "trl" and self.peer_dtype == "autocast":
            raise UserError("--peer_dtype=autocast is TRL's alone")
        if self.against and jax.default_backend() != "cpu":
            raise UserError(f"--against compares on the CPU, this is {jax.default_backend()}")

    @property
    def sizes(self) -> WorkloadSizes:
        samples = self.prompts * self.group
        return WorkloadSizes(
            self.prompts,
            self.group,
            self.prompt_tokens,
            self.new_tokens,
            self.micro_tokens or samples * (self.prompt_tokens + self.new_tokens),
            self.lengths,
            self.slots or samples,
        )


def run(r: BenchOptions) -> dict[str, Any]:
    """Measures; progress goes to standard error. UserError for what cannot be asked for, and for
    a peer that fails."""
    r.check()
    base = ModelBundle.load(r.model)
    if r.prompt_tokens + r.new_tokens > base.model.config.max_positions:
        raise UserError(
            f"--prompt_tokens={r.prompt_tokens} and --new_tokens={r.new_tokens} exceed the "
            f"model's {base.model.config.max_positions} positions"
        )
    model = BenchModel(base, r.model, settings.dtype(r.dtype))
    found: dict[str, Any] = {
        **asdict(r),
        "model_type": base.model.hf_config["model_type"],
        "parameters": models.num_params(base.model),
    }
    found |= measured(r, model)  # in a function of its own: what it held is free for the limits
    limit = roofline.measure(model.dtype, r.repeats)
    name, cost, way = needed(r, found, model)
    found |= {
        "limits": limit,
        "limit": name,
        "share_of_limit": cost / found["secs"][way]["median"] / limit[name],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": roofline.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    tell(
        f"the machine: {limit['bytes_per_sec']:.3g} bytes/s, {limit['flops_per_sec']:.3g} FLOP/s; "
        f"reached: {found['share_of_limit']:.1%} of {name}"
    )
    return found


def measured(r: BenchOptions, model: BenchModel) -> dict[str, Any]:
    """All numbers but those of the machine."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seif_bench_")))
        job = WORKLOADS[r.what](model, r.sizes)
        peer = stack.enter_context(start_peer(r, model, job, folder)) if r.against else None
        versions = peer.ready() if peer else {}
        secs = stack.enter_context(metrics.compile_secs())
        first = timed(job.work)
        compiled = list(secs)
        tell(f"{r.what}: {len(compiled)} programs, ready after {first['step']:.2f} s")
        for way in job.warm:
            way()
        secs.clear()
        rows, others = alternate(job, peer, r.repeats)
        out = {
            "compiled_programs": len(compiled),
            "compiled_again": len(secs),  # in the repetitions
            "compile_secs": sum(compiled),
            "first_secs": first["step"],
            "peak_bytes": roofline.peak_bytes(),
            "flops": job.flops,
            **job.notes,
            **summary(rows, job.tokens),
        }
    if "full_forward" in job.beside:
        out["times_full_forward"] = spread([row["full_forward"] / row["step"] for row in rows])
    if peer:
        out["peer"] = {
            "name": peer.name,
            "dtype": peer_dtype(r),
            "versions": versions,
            "peak_bytes": max(other["peak_bytes"] for other in others),
            **summary([other["phases"] | {"step": other["secs"]} for other in others], job.tokens),
        }
        pairs = zip(rows, others, strict=True)
        out["secs_over_peer"] = spread([row["step"] / other["secs"] for row, other in pairs])
        out["peak_over_peer"] = out["peak_bytes"] / out["peer"]["peak_bytes"]
    return out


def alternate(
    job: Workload, peer: Peer | None, repeats: int
) -> tuple[list[Row], list[dict[str, Any]]]:
    """The repetitions of both sides, which take turns."""
    rows, others = [], []
    for i in range(repeats):
        row = timed(job.work)
        for name, way in job.beside.items():
            row[name] = timed(way)["step"]
        said = ", ".join(f"{name} {secs:.3f} s" for name, secs in row.items())
        if peer:
            others.append(peer.repeat())
            said += f"; {peer.name} {others[-1]['secs']:.3f} s"
        rows.append(row)
        tell(f"repetition {i + 1} of {repeats}: {said}")
    return rows, others


def timed(work: Callable[[], dict[str, float] | None]) -> Row:
    start = time.perf_counter()
    phases = work() or {}
    return {"step": time.perf_counter() - start, **phases}


def summary(rows: Sequence[Row], tokens: int) -> dict[str, Any]:
    secs = {name: spread([row[name] for row in rows]) for name in rows[0]}
    if "first_token" in secs:
        secs["decode"] = spread([row["step"] - row["first_token"] for row in rows])
    step_secs = secs["step"]["median"]
    return {"tokens_per_sec": tokens / step_secs, "step_secs": step_secs, "secs": secs}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def needed(r: BenchOptions, found: dict[str, Any], model: BenchModel) -> tuple[str, float, str]:
    """Which limit the work is held against, how much of that it takes, in which seconds."""
    if r.what != "rollout":
        return "flops_per_sec", found["flops"], "step"
    lengths = r.sizes.new_lengths()
    steps = max(max(lengths), sum(lengths) / r.sizes.slots) - 1  # with no slot ever empty
    per_step = roofline.decode_bytes(
        model.config,
        found["parameters"],
        model.dtype.dtype.itemsize,
        prompt_tokens=r.sizes.slots // r.group * r.prompt_tokens,
        new_tokens=sum(n * n / 2 for n in lengths) / (steps + 1),
    )
    return "bytes_per_sec", per_step * steps, "decode"


def peer_dtype(r: BenchOptions) -> str:
    return r.peer_dtype or baselines.DTYPES.get(r.against or "", r.dtype)


def start_peer(r: BenchOptions, model: BenchModel, job: Workload, folder: Path) -> Peer:
    """Starts it on the same work, with a Hugging Face folder of the model."""
    source = models.resolve(r.model)
    if not (source / "config.json").is_file():
        source = folder / "model"
        weights = tensors(r.model, model.base.model, r.dtype)
        model.base.write(source, weights, r.dtype)
    spec = {
        "what": r.what,
        "model": str(source.resolve()),
        "prompts": job.prompts,
        "texts": [model.base.tokenizer.decode(ids) for ids in job.prompts],
        "group": r.group,
        "new_tokens": r.new_tokens,
        "dtype": peer_dtype(r),
        "threads": psutil.cpu_count(),
        "batch_size": FULL_BATCH,
        "kl_coef": LossConfig().kl_coef,
        "learning_rate": OptimizerConfig().learning_rate,
        "folder": str(folder),
    }
    assert r.against and r.peer_python
    return Peer(r.against, r.peer_python, spec, folder)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
