"""The passes of a stage's optimizer batches, packed by the learner's own code from lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from seif_jax import stage_settings
from seif_jax.bench.roofline import forward_flops
from seif_jax.chat import Reply
from seif_jax.compilation import compiles_ahead
from seif_jax.plan.program import MeanCall
from seif_jax.plan.step_lengths import Draw
from seif_jax.rewards.score import Score
from seif_jax.rl.batch import MicroBatch
from seif_jax.rl.learner import Learner, Pass, total_work
from seif_jax.rl.packing import BatchSizes, Work, usual_lengths
from seif_jax.rl.rollout import make_batch
from seif_jax.run_config import RunConfig, TrainedRoleConfig

Prompts = Int[np.ndarray, "P"]
Completions = Int[np.ndarray, "P G"]


@dataclass(frozen=True)
class PlannedPasses:
    """The passes of all optimizer batches of the steps that are planned."""

    micros: MicroBatch  # of the largest pass that a run compiles, as `jax.ShapeDtypeStruct`
    lengths: list[int]  # of rows, for which a run compiles programs before its first step
    per_batch: float  # passes per optimizer batch, on average
    work: Work  # of all passes
    rows: int  # of that work
    needed_tokens: float  # of a pass, on average, if every prompt is computed once
    needed_pairs: float
    needed_targets: float  # tokens of completions
    mean_call: MeanCall

    @property
    def needed(self) -> tuple[int, int, int]:
        """What a pass needs on average, as arguments of `forward_flops`."""
        return round(self.needed_tokens), round(self.needed_pairs), round(self.needed_targets)


def plan_passes(
    config: RunConfig, role: TrainedRoleConfig, learner: Learner, draws: Sequence[Draw]
) -> PlannedPasses:
    """Packs the optimizer batches of all draws. Every sample is trained on."""
    work, needed, rows, positions, targets = Work(), np.zeros(3), 0, 0, 0
    largest: Pass = []
    batches, passes = 0, 0
    for prompts, completions in optimizer_batches(role, draws):
        needed, batches = needed + _needed(prompts, completions), batches + 1
        for parts in _pack(config, role, learner, prompts, completions):
            work, passes, rows = work + total_work(parts), passes + 1, rows + len(parts)
            positions += sum(part.work.positions for part in parts)
            targets += sum(_num_targets(part.micro) for part in parts)
            largest = max(largest, parts, key=_size)
    sizes = BatchSizes(role.optimizer_prompts, role.group_size, role.max_prompt_tokens)
    lengths = usual_lengths(sizes, learner.row_limits) if compiles_ahead() else []
    if lengths and lengths[0] > largest[0].work.positions:
        largest = next(learner.blank_passes(sizes))
    row, pairs = largest[0], work.pairs / rows
    compiled = row.work.positions, round(pairs), _num_targets(row.micro)
    mean = round(positions / rows), round(pairs), round(targets / rows)
    share = forward_flops(learner.model, *mean) / forward_flops(learner.model, *compiled)
    tokens, needed_pairs, needed_targets = (needed / passes).tolist()
    return PlannedPasses(
        learner.shapes_of_pass(largest),
        lengths,
        passes / batches,
        work,
        rows,
        tokens,
        needed_pairs,
        needed_targets,
        MeanCall(flops=share),
    )


def optimizer_batches(
    role: TrainedRoleConfig, draws: Sequence[Draw]
) -> Iterator[tuple[Prompts, Completions]]:
    """The lengths of the first optimizer batch of each draw. The others are drawn alike."""
    for draw in draws:
        prompts = draw.prompts(role.rollout_prompts, role.max_prompt_tokens, 0)
        completions = draw.completions(
            role.rollout_prompts, role.group_size, role.max_response_tokens, 0
        )
        yield prompts[: role.optimizer_prompts], completions[: role.optimizer_prompts]


def _pack(
    config: RunConfig,
    role: TrainedRoleConfig,
    learner: Learner,
    prompts: Prompts,
    completions: Completions,
) -> Iterator[Pass]:
    """The passes of an optimizer batch."""
    longest = int(completions.max())
    ids, logp = np.zeros(longest, np.int32), np.zeros(longest, np.float32)
    replies = [
        Reply("", [i, *[0] * (int(prompts[i]) - 1)], ids[:n], logp[:n], finished=True)
        for i, group in enumerate(completions)
        for n in map(int, group)
    ]
    scores = [Score(float(i % 2)) for i in range(len(replies))]
    grouping = stage_settings.grouping(config, role)
    return learner.passes(make_batch(replies, scores, grouping, role.max_response_tokens))


def _needed(prompts: Prompts, completions: Completions) -> np.ndarray:
    """Tokens, pairs and targets that a forward pass needs: every prompt is computed once, and
    nothing for the last token of a completion, which nothing follows."""
    before, samples = prompts[:, None], completions - 1
    pairs = (prompts * (prompts + 1) // 2).sum()
    pairs += (samples * before + samples * (samples + 1) // 2).sum()
    return np.array([prompts.sum() + samples.sum(), pairs, completions.sum()], float)


def _num_targets(micro: MicroBatch) -> int:
    """The number of targets of a micro-batch, padding included."""
    return np.shape(micro.packed.targets)[-1]


def _size(parts: Pass) -> int:
    return sum(x.nbytes for part in parts for x in jax.tree.leaves(part.micro))
