"""The data stage: the trained Instructor writes constraints for every seed, the Filter sorts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import pyarrow.parquet as pq

from seif_jax import data, metrics, processes
from seif_jax.chat import ChatModel, Decoding, Reply
from seif_jax.compiling import Compiles
from seif_jax.display import Display
from seif_jax.instruction import SOFT
from seif_jax.metrics import Phases, Writer
from seif_jax.rewards.recognise import recognise
from seif_jax.rl.rollout import UNREADABLE, ask
from seif_jax.rl.tasks import Proposal, Proposer

ADVICE = {  # by the reason why instructions are dropped
    "truncated": "raise config.instructor.max_response_tokens",
    "prompt_too_long": "raise config.instructor.max_prompt_tokens",
    "contradiction": "set config.generate.filter=False to keep what the Filter rejects",
    "no_verdict": "raise config.filter.max_tokens or config.filter.max_prompt_tokens",
    "format": "set config.format=plain, or raise config.instructor.shots",
    "parse": "raise config.instructor.shots or set config.instructor.prefill",
}


@dataclass(frozen=True)
class ProposeStage:
    round: int
    rounds: int
    folder: Path
    chat_model: ChatModel  # the Instructor, frozen
    task: Proposer
    decoding: Decoding
    batch: int  # seeds a step
    chunks: int  # in which a step's proposals are filtered, while others are still written
    key: jax.Array  # a function of seed, round and stage


def propose_instructions(
    stage: ProposeStage, path: Path, writer: Writer, display: Display
) -> dict[str, float]:
    """Writes instructions.parquet at `path`: every seed has a row, kept or dropped with the reason.

    Goes on after the last step in the stage's samples.parquet.
    """
    samples = stage.folder / "samples.parquet"
    seeds = len(stage.task.rows)
    steps = -(-seeds // stage.batch)
    done = max(pq.read_table(samples)["step"].to_pylist()) if samples.exists() else 0
    writer.resume(stage.round, "generate", done + 1)
    display.start_stage(stage.round, stage.rounds, "generate", steps, done)
    verdicts = {"next_logp" for judge in stage.task.judges() if judge.mode == "verdict"}
    with Compiles({"prefill", "decode"} | verdicts, display):
        for step in range(done + 1, steps + 1):
            rows = range((step - 1) * stage.batch, min(step * stage.batch, seeds))
            found, numbers = _step(stage, rows, step, Phases(display.phase))
            writer.write(stage.round, "generate", step, numbers)
            data.append_samples(samples, found, step)  # last: the step is done once it is in there
            display.step(numbers)
    processes.wait(f"{samples}: written")
    held = pq.read_table(samples).to_pylist()
    names = data.INSTRUCTIONS.names
    if processes.first():
        data.save_instructions(path, [_instruction(row, names) for row in held])
    processes.wait(f"{path}: written")
    shares = _shares([row["reason"] for row in held])
    display.end_stage(shares)
    return shares


def explain_drops(reasons: Sequence[str]) -> str:
    """How many instructions were dropped and why, and what to change about the most frequent
    reason. reasons: of all instructions, "" where they are kept; not all are."""
    counts = Counter(reason for reason in reasons if reason).most_common()
    listed = ", ".join(f"{count} {reason}" for reason, count in counts)
    advice = ADVICE.get(counts[0][0], "read the completions in generate/samples.parquet")
    dropped = sum(count for _, count in counts)
    return f"{dropped} of {len(reasons)} instructions dropped ({listed}); {advice}"


def _step(
    stage: ProposeStage, rows: Sequence[int], step: int, phases: Phases
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    key = jax.random.fold_in(stage.key, step)
    seed, other = (jax.random.fold_in(key, i) for i in range(2))

    def filter(read: Sequence[Proposal], numbers: Sequence[int]) -> list[Proposal]:
        return stage.task.propose(read, numbers, other)

    asked = (stage.task, stage.chat_model, rows, step, stage.decoding, seed, filter)
    names = ("sample", "filter")
    replies, proposals = ask(*asked, chunks=stage.chunks, phases=phases, names=names)
    secs = phases.take()
    tokens = sum(len(reply.ids) for reply in replies if reply)
    numbers = {
        **_shares([p.reason for p in proposals]),
        "sampled_tokens": tokens,
        "tokens_per_sec": tokens / secs["secs/sample"],
        **secs,
        **metrics.host(),
    }
    return [_row(*pair) for pair in zip(proposals, replies, strict=True)], numbers


def _row(p: Proposal, reply: Reply | None) -> dict[str, Any]:
    """A row of the stage's samples.parquet: the instruction, and the reply that it came from."""
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


def _instruction(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The columns of instructions.parquet."""
    kwargs = [{k: v for k, v in each.items() if v is not None} for each in row["kwargs"]]
    return {name: row[name] for name in names} | {"kwargs": kwargs}


def _shares(reasons: Sequence[str]) -> dict[str, float]:
    """format_valid: of all; kept: of those that the Filter saw."""
    seen = [r for r in reasons if r not in (*UNREADABLE, "prompt_too_long")]
    kept = sum(r == "" for r in reasons)
    out = {
        "instructions": kept,
        "format_valid": len(seen) / len(reasons),
        "kept": kept / max(len(seen), 1),
    }
    for reason in sorted(set(reasons) - {""}):
        out[f"reason/{reason}"] = sum(r == reason for r in reasons) / len(reasons)
    return out
