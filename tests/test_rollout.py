"""Replies and scores as arrays and metrics, by hand."""

import math
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from fakes import NO, UNSURE, YES, judge, report

from seif_jax.chat import Decoding, Reply
from seif_jax.errors import RunError
from seif_jax.instruction import SOFT, Instruction
from seif_jax.metrics_log import Phases
from seif_jax.rewards.checker import Checker
from seif_jax.rewards.judge import Verdict
from seif_jax.rewards.score import Score
from seif_jax.rl.rollout import Grouping, RolloutConfig, make_batch, reply_metrics, rollout
from seif_jax.rl.tasks import FollowerTask

HALF = math.sqrt(0.5)


def reply(
    prompt: list[int],
    ids: list[int],
    logp: list[float] | None = None,
    finished: bool = True,
    text: str = "",
) -> Reply:
    values = np.array([-0.5] * len(ids) if logp is None else logp, np.float32)
    return Reply(text, prompt, np.array(ids, np.int32), values, finished)


FIRST, SECOND = [5, 6, 7], [5, 8]
REPLIES = [
    reply(FIRST, [10, 11, 2], [-0.5, -1.0, -1.5]),
    reply(FIRST, [12, 2], [-0.25, -0.75]),
    reply(FIRST, [13, 14, 15, 16], [-1.0] * 4, finished=False),
    reply(SECOND, [2], [-2.0]),
    reply(SECOND, [17, 2], [-1.0, -3.0]),
    reply(SECOND, [18, 2], [0.0, 0.0]),
]


def scores(*rewards: float | None) -> list[Score]:
    return [Score(r, "no_verdict" if r is None else "") for r in rewards]


def grouping(size: int = 3, advantage: str = "grpo", **switches: bool) -> Grouping:
    return Grouping(size, advantage, **{"skip_equal": False, "mask_truncated": False, **switches})


def configured(grouping: Grouping, chunks: int = 1) -> RolloutConfig:
    return RolloutConfig(Decoding(50, 20, 4), grouping, chunks, max_no_verdict=1.0)


def test_tokens_lengths_and_padding() -> None:
    batch = make_batch(REPLIES, scores(1, 0, 0, 1, 0, 0), grouping(), max_tokens=100)
    assert batch.prefix.tolist() == []  # one token in common is not worth a prefix
    assert batch.prompts.shape == (2, 64) and batch.completions.shape == (6, 64)
    assert batch.prompts[:, :4].tolist() == [[5, 6, 7, 0], [5, 8, 0, 0]]
    assert batch.prompt_lengths.tolist() == [3, 2]
    assert batch.completions[:, :5].tolist() == [
        [10, 11, 2, 0, 0],
        [12, 2, 0, 0, 0],
        [13, 14, 15, 16, 0],
        [2, 0, 0, 0, 0],
        [17, 2, 0, 0, 0],
        [18, 2, 0, 0, 0],
    ]
    assert not batch.completions[:, 5:].any() and not batch.prompts[:, 4:].any()
    assert batch.lengths.tolist() == [3, 2, 4, 1, 2, 2]
    assert batch.sampler_logp[:2, :4].tolist() == [[-0.5, -1.0, -1.5, 0], [-0.25, -0.75, 0, 0]]
    assert not batch.old_logp.any() and not batch.ref_logp.any()
    assert batch.old_logp.shape == batch.ref_logp.shape == (6, 64)
    assert batch.mask().sum(axis=1).tolist() == [3, 2, 4, 1, 2, 2]  # the end token included


def test_completions_are_no_wider_than_the_limit_and_prompts_share_their_start() -> None:
    shared = list(range(100, 132))
    replies = [reply([*shared, *p], [9] * 4) for p in ([1, 2], [1, 2], [3, 4, 5], [3, 4, 5])]
    batch = make_batch(replies, scores(1, 0, 1, 0), grouping(2), max_tokens=4)
    assert batch.completions.shape == (4, 4)
    assert batch.prefix.tolist() == shared
    assert batch.prompts[:, :4].tolist() == [[1, 2, 0, 0], [3, 4, 5, 0]]
    assert batch.prompt_lengths.tolist() == [2, 3]
    longer = [*replies[:3], reply(replies[3].prompt_ids, [9] * 65)]
    assert make_batch(longer, scores(1, 0, 1, 0), grouping(2), 500).completions.shape == (4, 128)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        # (1, 0, 0): mean 1/3, deviation with n - 1 sqrt(1/3); (0.75, 0.25, 0.5): 0.5 and 0.25
        ("grpo", [2 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)], [1, -1, 0]),
        ("rloo", [1, -0.5, -0.5], [0.375, -0.375, 0]),
        ("dr_grpo", [2 / 3, -1 / 3, -1 / 3], [0.25, -0.25, 0]),
        ("zero", [0, 0, 0], [0, 0, 0]),
    ],
)
def test_advantages(kind: str, first: list[float], second: list[float]) -> None:
    batch = make_batch(REPLIES, scores(1, 0, 0, 0.75, 0.25, 0.5), grouping(advantage=kind), 100)
    assert batch.advantages.tolist() == pytest.approx(first + second, abs=1e-5)
    assert batch.trained.tolist() == [True] * 6


def test_a_sample_without_a_reward_leaves_its_group() -> None:
    batch = make_batch(REPLIES, scores(1, None, 0, None, None, 1), grouping(), 100)
    # (1, 0): mean 0.5, deviation sqrt(0.5); a single sample has nothing to compare with
    assert batch.advantages.tolist() == pytest.approx([HALF, 0, -HALF, 0, 0, 0], abs=1e-5)
    assert batch.trained.tolist() == [True, False, True, False, False, True]
    assert batch.mask().sum(axis=1).tolist() == [3, 0, 4, 0, 0, 2]


def test_mask_truncated_leaves_cut_samples_out() -> None:
    values = scores(1, 0, 0.25, 1, 0, 0.5)
    batch = make_batch(REPLIES, values, grouping(mask_truncated=True), 100)
    assert batch.advantages.tolist() == pytest.approx([HALF, -HALF, 0, 1, -1, 0], abs=1e-5)
    assert batch.trained.tolist() == [True, True, False, True, True, True]
    batch = make_batch(REPLIES, values, grouping(), 100)
    assert batch.trained.all() and batch.advantages[2] < 0


def test_skip_equal_leaves_groups_without_a_difference_out() -> None:
    values = scores(0.5, 0.5, 0.5, 1, None, 0)
    batch = make_batch(REPLIES, values, grouping(skip_equal=True), 100)
    assert batch.advantages.tolist() == pytest.approx([0, 0, 0, HALF, 0, -HALF], abs=1e-5)
    assert batch.trained.tolist() == [False, False, False, True, False, True]
    batch = make_batch(REPLIES, values, grouping(), 100)
    assert batch.trained.tolist() == [True, True, True, True, False, True]
    both = grouping(skip_equal=True, mask_truncated=True)  # equal but for the one that is cut
    assert not make_batch(REPLIES, scores(1, 1, 0, 0, 0, 0), both, 100).trained.any()


def test_reply_metrics() -> None:
    scored = [Score(0.0, r) for r in ("", "format", "truncated", "empty", "no_verdict", "count")]
    assert reply_metrics(REPLIES, scored) == pytest.approx(
        {
            "format_valid": 0.5,  # "", empty, no_verdict
            "reply_tokens": 14 / 6,
            "reply_tokens_max": 4,
            "reply_tokens_min": 1,
            "clipped_share": 1 / 6,
            "entropy": 14 / 14,  # 3 + 1 + 4 + 2 + 4 + 0 nats over 14 tokens
            "sampled_tokens": 14,
        }
    )


def test_kept_is_a_share_of_what_the_filter_saw() -> None:
    scored = [
        Score(1.0, filter=Verdict(True)),
        Score(0.0, "contradiction", filter=Verdict(False)),
        Score(0.0, "no_verdict", filter=Verdict(None)),
        Score(0.0, "parse"),
        Score(0.0, "empty", filter=Verdict(True)),
        Score(0.0, "repeats_seed"),
    ]
    metrics = reply_metrics(REPLIES, scored)
    assert metrics["kept"] == 0.5 and metrics["format_valid"] == pytest.approx(4 / 6)
    assert "kept" not in reply_metrics(REPLIES, [Score(0.0, "parse")] * 6)


KIND, SHORT, COMMA = "Be kind.", "Be brief.", "Do not use any commas."
ROWS = [
    Instruction("Why?", (KIND, COMMA), f"Why?\n{KIND}\n{COMMA}", ({}, {}),
                (SOFT, "punctuation:no_comma")),
    Instruction("How?", (SHORT,), f"How?\n{SHORT}", ({},), (SOFT,)),
]  # fmt: skip


class Policy:
    """Gives fixed replies and remembers its call."""

    processes_per_copy = 1

    def __init__(self, replies: list[Reply]):
        self.replies = replies

    def reply_signatures(self, num_dialogues: Any, decoding: Any, group: Any) -> Iterator[Any]:
        return iter(())

    def reply(
        self, dialogues: Any, decoding: Any, key: Any, group: int, ended: Any, numbers: Any
    ) -> list[Reply]:
        assert [*numbers] == [*range(len(dialogues))]
        self.call = (dialogues, decoding, group)
        return report(self.replies, ended)


def test_rollout() -> None:
    texts = ("Yes", "Yes, so", "", "So", "So", "So")
    policy: Any = Policy(
        [
            reply(r.prompt_ids, r.ids.tolist(), r.logp.tolist(), r.finished, text)
            for r, text in zip(REPLIES, texts, strict=True)
        ]
    )
    checker = Checker(("ifeval", "judge"), judge({KIND: YES, COMMA: NO, SHORT: UNSURE}))
    task = FollowerTask(ROWS, checker, "plain", 0)
    decoding = Decoding(max_prompt_tokens=50, max_tokens=20, batch_size=4)
    phases = Phases()
    config = RolloutConfig(decoding, grouping(skip_equal=True), chunks=1, max_no_verdict=1.0)
    result = rollout(task, policy, [0, 1], 7, jax.random.key(0), config, phases)
    assert policy.call == ([task.dialogue(0, 7), task.dialogue(1, 7)], decoding, 3)
    assert set(phases.take()) == {"secs/sample", "secs/reward"}
    # rewards: 1 (kind, no comma), 0.5 (kind, comma), 0 (cut); three without a verdict
    assert result.batch.advantages.tolist() == pytest.approx([1, 0, -1, 0, 0, 0], abs=1e-5)
    assert result.batch.trained.tolist() == [True] * 3 + [False] * 3
    assert result.batch.completions.shape == (6, 20)
    assert result.metrics == pytest.approx(
        {
            "reward": 0.5,
            "unscored": 0.5,
            "followed": 0.75,
            "top_answer_share": 0.6,  # "So"
            "reason/no_verdict": 0.5,
            "reason/truncated": 1 / 6,
            "rule_share": 2 / 7,
            "no_verdict": 3 / 7,
            "judge_yes": 2 / 7,
            "judge_agreement": 0.5,  # the Judger sees a comma both times
            "judge_agreement_count": 2,
            "format_valid": 5 / 6,
            "reply_tokens": 14 / 6,
            "reply_tokens_max": 4,
            "reply_tokens_min": 1,
            "clipped_share": 1 / 6,
            "entropy": 1.0,
            "sampled_tokens": 14,
            "equal_groups": 0.5,
            "trained_samples": 0.5,
        }
    )
    assert [(s["row"], s["sample"], s["reward"], s["reason"]) for s in result.samples] == [
        (0, 0, 1.0, ""),
        (0, 1, 0.5, ""),
        (0, 2, 0.0, "truncated"),
        (1, 0, None, "no_verdict"),
        (1, 1, None, "no_verdict"),
        (1, 2, None, "no_verdict"),
    ]
    second = result.samples[1]
    assert (second["completion"], second["answer"], second["tokens"]) == ("Yes, so", "Yes, so", 2)
    assert (second["finish_reason"], second["logp"], second["advantage"]) == ("stop", -1.0, 0.0)
    assert (second["seed_question"], second["instruction"]) == ("Why?", ROWS[0].prompt)
    assert [verdict["value"] for verdict in second["verdicts"]] == [True, False]
    assert result.samples[2]["finish_reason"] == "length"


def test_without_a_judger_no_verdict_of_it_is_counted() -> None:
    policy: Any = Policy([reply(FIRST, [1, 2], text="Yes"), reply(FIRST, [1, 2], text="Yes, so")])
    task = FollowerTask(ROWS, Checker(("ifeval",)), "plain", 0)
    result = rollout(task, policy, [0], 1, jax.random.key(0), configured(grouping(2)), Phases())
    assert result.metrics["reward"] == 0.5 and result.metrics["equal_groups"] == 0.0
    assert not {"no_verdict", "judge_agreement", "judge_yes"} & set(result.metrics)


class Waits(Policy):
    """Says its last reply once the first piece was scored: without overlap it would never."""

    scored = threading.Event()

    def reply(
        self, dialogues: Any, decoding: Any, key: Any, group: int, ended: Any, numbers: Any
    ) -> list[Reply]:
        for i, reply in enumerate(self.replies):
            if i == len(self.replies) - 1:
                assert self.scored.wait(60)
            ended(i, reply)
        return self.replies


def test_what_was_sampled_first_is_scored_while_the_rest_is_sampled() -> None:
    """The same scores as in one go, and seconds of scoring before the last reply was there."""
    texts = ("Yes", "Yes, so", "No", "So", "So", "So")
    replies = [
        reply(r.prompt_ids, r.ids.tolist(), text=t) for r, t in zip(REPLIES, texts, strict=True)
    ]
    checker = Checker(("ifeval", "judge"), judge({KIND: YES, COMMA: NO, SHORT: YES}))
    task = FollowerTask(ROWS, checker, "plain", 0)
    policy: Any = Waits(replies)

    class Notes(FollowerTask):
        def score(self, parsed: Any, sample_ids: Any, key: Any) -> list[Score]:
            scores = super().score(parsed, sample_ids, key)
            calls.append([*sample_ids])
            policy.scored.set()
            return scores

    calls: list[list[int]] = []
    overlapping, phases = Notes(ROWS, checker, "plain", 0), Phases()
    arguments = ([0, 1], 7, jax.random.key(0))
    overlapped = rollout(overlapping, policy, *arguments, configured(grouping(), chunks=2), phases)
    assert calls == [[0, 1, 2], [3, 4, 5]]
    assert phases.take()["secs/scored_early"] > 0
    plain: Any = Policy(replies)
    expected = rollout(task, plain, *arguments, configured(grouping()), Phases())
    assert overlapped.samples == expected.samples and overlapped.metrics == expected.metrics


def test_an_error_in_scoring_beside_is_raised() -> None:
    class Fails(FollowerTask):
        def score(self, parsed: Any, sample_ids: Any, key: Any) -> list[Score]:
            raise RunError("no verdict today")

    policy: Any = Policy(REPLIES)
    task = Fails(ROWS, Checker(("ifeval",)), "plain", 0)
    for chunks in (1, 2):
        config = configured(grouping(), chunks)
        with pytest.raises(RunError, match="no verdict today"):
            rollout(task, policy, [0, 1], 7, jax.random.key(0), config, Phases())
