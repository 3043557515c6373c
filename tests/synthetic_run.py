"""A run's folder as `seif run` leaves it, made up: for tests of the report."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seif_jax import data
from seif_jax.run_paths import StagePaths

KINDS = {  # constraint, by the id of its rule
    "punctuation:no_comma": "Do not use any commas.",
    "length_constraints:number_words": "The response should contain fewer than 40 words.",
    "soft": "The response should sound cheerful.",
    "detectable_format:title": "The response should have a title, such as <<Welcome>>.",
    "startend:end_checker": "End with the exact phrase 'See you soon.'",
}
WORDS = "river letter garden small light answer travel seven quiet morning bread window".split()
CHUNK = 5000  # rows made at a time


def make(
    folder: Path,
    *,
    rounds: int = 2,
    steps: int = 4,
    prompts: int = 3,
    group: int = 2,
    words: int = 30,
    seed: int = 0,
    evaluate: bool = True,
    reply: str = "",
    **config: Any,
) -> Path:
    """Writes the folder and returns it. reply: stands in the first sample of every stage."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    about = {
        "config": {
            "model": None,
            "rounds": rounds,
            "seed": seed,
            "stages": ["instructor", "generate", "follower"],
            "reward": {"checks": ["ifeval", "judge"]},
            "instructor": {"shots": 2, "prompts": None, "epochs": [1]},
            **config,
        },
        "started": "2026-11-26T09:00:00",
        "devices": ["cpu:0"],
        "git_commit": "0123456789abcdef",
    }
    (folder / "config.json").write_text(json.dumps(about))
    lines: list[dict[str, Any]] = []
    for round in range(1, rounds + 1):
        for stage in ("instructor", "generate", "follower"):
            path = folder / f"round_{round}" / stage
            path.mkdir(parents=True)
            count = 1 if stage == "generate" else steps
            metrics = [_metrics(rng, stage, round, step / count) for step in range(1, count + 1)]
            lines += [
                {"round": round, "stage": stage, "step": step, **values}
                for step, values in enumerate(metrics, 1)
            ]
            rows = _rows(rng, stage, count, prompts, group, words, reply)
            _write(path / "samples.parquet", rows)
            StagePaths(path).done.write_text(json.dumps(metrics[-1]))
        data.save_instructions(
            folder / f"round_{round}" / "instructions.parquet",
            [_instruction(rng, round) for _ in range(prompts * 4)],
        )
        if evaluate:
            rows = _evaluations(rng, round, steps, prompts)
            _write(folder / f"round_{round}" / "follower" / "evaluations.parquet", rows)
            lines += [
                {
                    "round": round,
                    "stage": "evaluate",
                    "step": s,
                    "eval/held_out/followed": 0.4 + 0.02 * s,
                }
                for s in (0, steps)
            ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """One row group, as a run writes it."""
    tables, chunk = [], []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            tables.append(pa.Table.from_pylist(chunk))
            chunk = []
    tables += [pa.Table.from_pylist(chunk)] if chunk else []
    table = pa.concat_tables(tables, promote_options="permissive")
    pq.write_table(table, path, compression="zstd")


def _metrics(rng: random.Random, stage: str, round: int, progress: float) -> dict[str, float]:
    if stage == "generate":
        return {"instructions": 9, "kept": 0.9, "secs/sample": 20.0, "secs/filter": 4.0}
    reward = 0.3 + 0.2 * progress + 0.05 * rng.random()
    return {
        "reward": reward,
        "followed": reward,
        "format_valid": 0.9,
        "kl": 0.01 * progress,
        "entropy": 2.5 - progress / 2,
        "reply_tokens": 40.0 + round,
        "reply_tokens_min": 9,
        "reply_tokens_max": 64,
        "clipped_share": 0.1,
        "top_answer_share": 0.05,
        "grad_norm": 1 + rng.random(),
        "sampler_gap": 0.01,
        "equal_groups": 0.25,
        "reason/none_met": 0.2,
        "reason/truncated": 0.1,
        "judge_agreement": 0.6,
        "judge_yes": 0.8,
        "no_verdict": 0.02,
        "sampled_tokens": 4000,
        "trained_tokens": 3900,
        "secs/sample": 30.0,
        "secs/reward": 12.0,
        "secs/reference": 5.0,
        "secs/update": 25.0,
        "secs/total": 75.0,
        "secs/compile": 8.0,
        "tokens_per_sec": 130.0,
    }


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def _verdict(rng: random.Random, kind: str) -> dict[str, Any]:
    rule = None if kind == "soft" else rng.random() < 0.5
    prob = rng.random()
    return {
        "constraint": KINDS[kind],
        "instruction_id": kind,
        "rule": rule,
        "judge": prob > 0.3,
        "judge_prob": prob,
        "judge_text": "",
        "value": float(prob > 0.3 if rule is None else rule),
    }


def _rows(
    rng: random.Random, stage: str, steps: int, prompts: int, group: int, words: int, reply: str
) -> Iterator[dict[str, Any]]:
    for step in range(1, steps + 1):
        for row in range(prompts):
            question = f"Write about a {rng.choice(WORDS)}."
            for sample in range(group):
                first = step == 1 and row == 0 and sample == 0
                kinds = rng.sample(list(KINDS), 3)
                text = reply if first and reply else _text(rng, words)
                common = {
                    "step": step,
                    "seed_question": question,
                    "completion": f"<think>{_text(rng, 6)}</think>\n{text}",
                    "tokens": words,
                    "reason": "" if rng.random() < 0.7 else "none_met",
                    "detail": "",
                    "filter": {"value": True, "prob": 0.9, "text": "They fit together."},
                }
                if stage == "generate":
                    texts = [KINDS[kind] for kind in kinds]
                    yield common | {
                        "constraint": texts,
                        "prompt": "\n".join([question, *texts]),
                        "instruction_id_list": kinds,
                        "variant": "hard",
                        "kept": True,
                    }
                    continue
                verdicts = [_verdict(rng, kind) for kind in kinds]
                followed = sum(verdict["value"] for verdict in verdicts) / 3
                yield common | {
                    "row": row,
                    "sample": sample,
                    "finish_reason": "stop",
                    "reward": None if rng.random() < 0.02 else followed,
                    "answer": text,
                    "instruction": "\n".join([question, *(v["constraint"] for v in verdicts)]),
                    "followed": followed,
                    "verdicts": verdicts,
                    "advantage": rng.uniform(-1, 1),
                    "logp": -50.0,
                }


def _evaluations(
    rng: random.Random, round: int, steps: int, prompts: int
) -> Iterator[dict[str, Any]]:
    for step in (0, steps):
        for row in range(4 * prompts):
            verdict = _verdict(rng, "punctuation:no_comma")
            yield {
                "step": step,
                "set": "held_out",
                "row": row,
                "completion": _text(rng, 5),
                "reward": float(verdict["value"]),
                "reason": "",
                "detail": "",
                "answer": "",
                "instruction": f"Round {round}, question {row}.",
                "followed": float(verdict["value"]),
                "verdicts": [verdict],
                "filter": None,
            }


def _instruction(rng: random.Random, round: int) -> dict[str, Any]:
    kinds = rng.sample(list(KINDS), 3)
    question = f"Write about a {rng.choice(WORDS)}."
    texts = [KINDS[kind] for kind in kinds]
    texts[0] = texts[0].replace(".", f" {_text(rng, round)}")
    kept = rng.random() < 0.8
    return {
        "seed_question": question,
        "constraint": texts,
        "prompt": "\n".join([question, *texts]),
        "kwargs": [{}] * 3,
        "instruction_id_list": kinds,
        "variant": "hard",
        "kept": kept,
        "reason": "" if kept else "contradiction",
        "recognised": [kind != "soft" for kind in kinds],
    }
