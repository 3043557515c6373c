"""The suites `ifeval` and `ifbench`: every instruction is checked by a program."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from seif_jax.evaluate import published
from seif_jax.evaluate.check import Check, all_met
from seif_jax.evaluate.published import PublishedPrompt
from seif_jax.evaluate.statistics import Statistic
from seif_jax.evaluate.suite import (
    Checks,
    Item,
    Question,
    Replies,
    ReplySuite,
    ratio,
    share,
)

FORMS: tuple[Literal["strict", "loose"], ...] = ("strict", "loose")


@dataclass(frozen=True)
class VerifiableSuite(ReplySuite):
    """Scores by lm-eval's names: prompt_level_strict_acc, inst_level_loose_acc, …"""

    prompts: Sequence[PublishedPrompt] = ()

    @classmethod
    def load(cls, name: str, source: str, split: str | None = None) -> "VerifiableSuite":
        prompts = published.read(source, split)
        items = [Item(prompt.key, (prompt.prompt,)) for prompt in prompts]
        return cls(name, items, len(items), prompts)

    @property
    def fingerprint(self) -> object:
        return [[p.key, p.prompt, p.instruction_ids, p.kwargs] for p in self.prompts]

    def check(self, item: int, replies: Replies) -> list[Check | Question]:
        return list(published.check(self.prompts[item], replies[0]))

    def scores(self, checks: Checks) -> dict[str, Statistic]:
        return verifiable_scores(checks)


def verifiable_scores(checks: Checks) -> dict[str, Statistic]:
    """Prompt- and instruction-level accuracy, strict and loose; the latter also by instruction id
    and by the group that it belongs to."""
    scores: dict[str, Statistic] = {}
    for form in FORMS:
        scores[f"prompt_level_{form}_acc"] = ratio(checks, partial(whole, form))
    for form in FORMS:
        scores[f"inst_level_{form}_acc"] = ratio(checks, partial(part, form, ""))
    ids = {check.kind for of_item in checks for one in of_item for check in one or ()}
    for kind in sorted(ids | {name.partition(":")[0] for name in ids}):
        for form in FORMS:
            scores[f"inst_level_{form}_acc/{kind}"] = ratio(checks, partial(part, form, kind))
    return scores


def whole(form: Literal["strict", "loose"], checks: list[Check]) -> tuple[float, float]:
    """Whether all instructions of a reply are met, and whether that can be told."""
    met = all_met([getattr(check, form) for check in checks])
    return float(met is True), float(met is not None)


def part(form: Literal["strict", "loose"], kind: str, checks: list[Check]) -> tuple[float, float]:
    """How many instructions of a kind are met, and how many have a verdict. kind: an instruction
    id, its group (`keywords` of `keywords:existence`), or "" for all."""
    kinds = [c for c in checks if not kind or kind in (c.kind, c.kind.partition(":")[0])]
    return share([getattr(check, form) for check in kinds])
