"""The data stage: the Instructor writes an instruction per seed, and the Filter drops some."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax

from seif_jax import data, diversity, metrics_log, processes, sample_files, signals
from seif_jax.chat import Decoding, Replier, Reply
from seif_jax.compilation import compile_in_parallel, compiles_ahead
from seif_jax.compile_progress import Compiles
from seif_jax.display import Display
from seif_jax.instruction import SOFT
from seif_jax.metrics_log import Phases, Writer
from seif_jax.profiling import Profiler
from seif_jax.rewards.recogniser import recognise
from seif_jax.rl.rollout import UNREADABLE, SampleRow, sample_and_score, sampling_signatures
from seif_jax.rl.stage import StageInfo
from seif_jax.rl.tasks import Proposal, Proposer
from seif_jax.roles import instructor
from seif_jax.run_clock import CLOCK

ADVICE = {  # what to change, by the reason for which instructions are dropped
    "truncated": "raise config.instructor.max_response_tokens",
    "prompt_too_long": "raise config.instructor.max_prompt_tokens",
    "contradiction": "set config.generate.filter=False to keep what the Filter rejects",
    "no_verdict": "raise config.filter.max_tokens or config.filter.max_prompt_tokens",
    "format": "set config.format=plain, or raise config.instructor.shots",
    "parse": "raise config.instructor.shots or set config.instructor.prefill",
}


@dataclass(frozen=True)
class ProposeStage:
    """Everything that the data stage needs."""

    info: StageInfo
    chat_model: Replier  # the Instructor, frozen
    task: Proposer
    decoding: Decoding
    seeds_per_step: int
    chunks: int  # in which a step's proposals are filtered while others are still being sampled
    key: jax.Array  # a function of seed, round and stage


def propose_instructions(
    stage: ProposeStage, path: Path, writer: Writer, display: Display, profiler: Profiler
) -> dict[str, float]:
    """Writes an instructions.parquet to `path`, with a row per seed, kept or dropped with a reason.

    Resumes after the last step in the stage's samples.parquet. Returns shares of the instructions.
    """
    info = stage.info
    samples_path = info.paths.samples
    seeds = len(stage.task.rows)
    steps = -(-seeds // stage.seeds_per_step)
    done = sample_files.last_step(samples_path)
    writer.resume(info.round, info.name, done + 1)
    display.start_stage(info.round, info.rounds, info.name, steps, done)
    verdicts = {"next_logp" for judge in stage.task.judges() if judge.mode == "verdict"}
    with Compiles(["prefill", "decode", *verdicts], display):
        if done < steps:
            _compile(stage)
        for step in range(done + 1, steps + 1):
            rows = range(seeds)[(step - 1) * stage.seeds_per_step : step * stage.seeds_per_step]
            with profiler.step(str(info), step):
                samples, step_metrics = _step(stage, rows, step, Phases(display.phase))
            writer.write(info.round, info.name, step, step_metrics | CLOCK.take())
            sample_files.append(samples_path, samples, step)  # last: it marks the step as done
            display.step(step_metrics)
            if stop := signals.stop_request(f"after {info}, step {step}"):
                raise stop
    processes.wait(f"{samples_path}: written")
    samples = sample_files.read(samples_path).to_pylist()
    if processes.first():
        data.save_instructions(path, map(_instruction, samples))
    processes.wait(f"{path}: written")
    shares = _shares([sample["reason"] for sample in samples])
    display.end_stage(shares)
    if signs := collapse_signs(stage.task, samples):
        display.warn(
            f"round {info.round} {info.name}: the Instructor writes the same over and over: {signs}"
        )
    return shares


def collapse_signs(task: Proposer, samples: Sequence[SampleRow]) -> str:
    """The signs that a stage's kept instructions hardly vary, in words; "" if there are none."""
    kept_samples = [sample for sample in samples if sample["kept"]]
    texts = [text for sample in kept_samples for text in sample["constraint"]]
    ids = [name for sample in kept_samples for name in sample["instruction_id_list"]]
    examples = instructor.shown_constraints(task.shots, task.prompts)
    return diversity.collapse(texts, ids, examples)


def explain_drops(reasons: Sequence[str]) -> str:
    """How many instructions were dropped and why, and what to change about the most frequent
    reason. reasons: one per instruction, "" if it was kept; at least one was dropped."""
    counts = Counter(reason for reason in reasons if reason).most_common()
    listed = ", ".join(f"{count} {reason}" for reason, count in counts)
    advice = ADVICE.get(counts[0][0], "read the completions in generate/samples.parquet")
    dropped = sum(count for _, count in counts)
    return f"{dropped} of {len(reasons)} instructions dropped ({listed}); {advice}"


def _compile(stage: ProposeStage) -> None:
    """Compiles the large programs of the stage in parallel, before its first step. On CPUs,
    programs are compiled when they are first needed."""
    if compiles_ahead():
        compile_in_parallel(
            sampling_signatures(stage.task, stage.chat_model, stage.seeds_per_step, stage.decoding)
        )
        metrics_log.trim()  # frees the compiler's memory


def _step(
    stage: ProposeStage, rows: Sequence[int], step: int, phases: Phases
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Rows of samples.parquet, and metrics."""
    key = jax.random.fold_in(stage.key, step)
    sampling_key, filter_key = (jax.random.fold_in(key, i) for i in range(2))

    def apply_filter(parsed: Sequence[Proposal], sample_ids: Sequence[int]) -> list[Proposal]:
        return stage.task.propose(parsed, sample_ids, filter_key)

    replies, proposals = sample_and_score(
        stage.task,
        stage.chat_model,
        rows,
        step,
        sampling_key,
        stage.decoding,
        apply_filter,
        chunks=stage.chunks,
        phases=phases,
        phase_names=("sample", "filter"),
    )
    secs = phases.take()
    tokens = sum(len(reply.ids) for reply in replies if reply)
    step_metrics = {
        **_shares([p.reason for p in proposals]),
        "sampled_tokens": tokens,
        "tokens_per_sec": tokens / secs["secs/sample"],
        **secs,
        **metrics_log.host(),
    }
    samples = [_row(*pair) for pair in zip(proposals, replies, strict=True)]
    return samples, step_metrics


def _row(p: Proposal, reply: Reply | None) -> dict[str, object]:
    """A row of samples.parquet: the instruction, and the reply that it was read from."""
    rules = [recognise(constraint) for constraint in p.instruction.constraints]
    return {
        "seed_question": p.instruction.seed_question,
        "constraint": list(p.instruction.constraints),
        "prompt": p.instruction.prompt,
        "kwargs": [data.all_kwargs(rule.kwargs if rule else {}) for rule in rules],
        "instruction_id_list": [rule.instruction_id if rule else SOFT for rule in rules],
        "recognised": [rule is not None for rule in rules],
        "variant": p.variant,
        "kept": not p.reason,
        "reason": p.reason,
        "detail": p.detail,
        "completion": reply.text if reply else None,
        "tokens": len(reply.ids) if reply else 0,
        "filter": asdict(p.filter) if p.filter else None,
    }


def _instruction(sample: SampleRow) -> dict[str, object]:
    """The columns of instructions.parquet, from a row of samples.parquet."""
    used = [{k: v for k, v in kwargs.items() if v is not None} for kwargs in sample["kwargs"]]
    return {**{name: sample[name] for name in data.INSTRUCTIONS.names}, "kwargs": used}


def _shares(reasons: Sequence[str]) -> dict[str, float]:
    """format_valid: the share of all replies; kept: of those that the Filter saw."""
    filtered = [r for r in reasons if r not in (*UNREADABLE, "prompt_too_long")]
    num_kept = sum(r == "" for r in reasons)
    out = {
        "instructions": num_kept,
        "format_valid": len(filtered) / len(reasons),
        "kept": num_kept / max(len(filtered), 1),
    }
    for reason in sorted(set(reasons) - {""}):
        out[f"reason/{reason}"] = sum(r == reason for r in reasons) / len(reasons)
    return out
