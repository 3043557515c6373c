"""What `seif bench` makes up: texts of exact lengths, the Judger's questions, a stage to train."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seif_jax import data, models, sharding
from seif_jax.chat import Decoding
from seif_jax.checkpoint import ModelBundle, load_params
from seif_jax.errors import UserError
from seif_jax.evaluate.in_run import Evaluation
from seif_jax.instruction import Instruction
from seif_jax.models.io.to_device import ShardingRule, single_device
from seif_jax.models.layers import ModelConfig
from seif_jax.rewards.checker import Checker
from seif_jax.rewards.phrase import instructions
from seif_jax.rewards.score import Score
from seif_jax.rl.grpo import LossConfig
from seif_jax.rl.learner import LearnerConfig
from seif_jax.rl.optim import OptimizerConfig
from seif_jax.rl.rollout import Grouping, RolloutConfig
from seif_jax.rl.stage import Batching, Stage, StageInfo, TrainedModel
from seif_jax.rl.tasks import FollowerTask
from seif_jax.roles import judger
from seif_jax.run_config import JudgerConfig
from seif_jax.sampling import Engine
from seif_jax.tokenizer import Tokenizer

REPLIES = 4  # to one instruction that are judged
KINDS = (  # constraints that go together
    "punctuation:no_comma", "length_constraints:number_words", "keywords:existence",
    "detectable_format:title", "detectable_content:postscript", "keywords:frequency",
    "change_case:capital_word_frequency", "detectable_format:number_highlighted_sections",
)  # fmt: skip


@dataclass(frozen=True)
class BenchModel:
    """What is to be measured: whose weights, in which dtype."""

    base: ModelBundle
    path: str | None
    dtype: Any

    @property
    def config(self) -> ModelConfig:
        return self.base.model.config

    def engine(self) -> Engine:
        return Engine(self.config, self.weights(self.dtype), self.dtype)

    def weights(self, dtype: Any, rule: ShardingRule = single_device) -> Any:
        return load_params(self.path, self.base.model, dtype, rule=rule)


@dataclass(frozen=True)
class WorkloadSizes:
    """judge: `prompts` replies, REPLIES to an instruction, `group` constraints each; an instruction
    of prompt_tokens, a reply of new_tokens."""

    prompts: int
    group: int
    prompt_tokens: int
    new_tokens: int
    micro_tokens: int
    lengths: str  # "skewed": most samples of a rollout 50 to 150 tokens, one in ten new_tokens
    slots: int  # samples decoded together

    @property
    def samples(self) -> int:
        return self.prompts * self.group

    def new_lengths(self) -> list[int]:
        """Tokens of each sample of a rollout."""
        if self.lengths == "fixed":
            return [self.new_tokens] * self.samples
        rng = np.random.default_rng(0)
        long = rng.random(self.samples) < 0.1
        short = np.minimum(rng.integers(50, 151, self.samples), self.new_tokens)
        return np.where(long, self.new_tokens, short).tolist()


class Plain(Tokenizer):
    """A model's tokenizer without chat template or stop tokens: lengths stay as they are made."""

    def __init__(self, tokenizer: Tokenizer):
        self.__dict__ |= tokenizer.__dict__
        self.stop_ids = ()

    def encode_chat(self, messages: Any, prefill: str = "") -> list[int]:
        return self.encode("".join(turn["content"] for turn in messages) + prefill)

    def opening(self, messages: Any) -> str:
        return ""


class Letters(FollowerTask):
    """Its reward is the share of lower-case letters."""

    def read(self, row: int, step: int, reply: Any) -> Any:
        return Score(sum(map(str.islower, reply.text)) / max(len(reply.text), 1))

    def score(self, parsed: Sequence[Score], sample_ids: Sequence[int], key: Any) -> list[Score]:
        return list(parsed)


def passages(tokenizer: Tokenizer, count: int, tokens: int) -> list[list[int]]:
    """Ids of texts of so many tokens, cut from the packaged seed questions, that are the same when
    decoded and encoded again. UserError: there are none."""
    ids = tokenizer.encode("\n".join(seed.question for seed in data.load_seeds(None)))
    text = ids * (tokens // len(ids) + 2)
    starts = iter(range(len(ids)))
    found: list[list[int]] = []
    for i in range(count):
        first = i * len(ids) // count
        cuts = (text[start : start + tokens] for start in starts if start >= first)
        whole = next((cut for cut in cuts if tokenizer.encode(tokenizer.decode(cut)) == cut), None)
        if whole is None:
            raise UserError(f"the seed questions make no {count} prompts of {tokens} tokens")
        found.append(whole)
    return found


def questions(tokenizer: Tokenizer, s: WorkloadSizes) -> list[Any]:
    """The Judger's dialogues, in the order of a rollout: the replies to an instruction side by
    side, and so the constraints of a reply."""
    asked = passages(tokenizer, -(-s.prompts // REPLIES), s.prompt_tokens)
    replies = passages(tokenizer, s.prompts, s.new_tokens)[::-1]
    rows = instructions([tokenizer.decode(ids) for ids in asked], KINDS, s.group, 0)
    return [
        judger.messages(
            rows[i // REPLIES]["prompt"],
            tokenizer.decode(reply),
            constraint,
            shots=JudgerConfig().shots,
            mode="verdict",
        )
        for i, reply in enumerate(replies)
        for constraint in rows[i // REPLIES]["constraint"]
    ]


def training(m: BenchModel, s: WorkloadSizes) -> tuple[Stage, list[list[int]]]:
    """A stage that trains on prompts of exactly `prompt_tokens`, and the token ids of these."""
    tokenizer = Plain(m.base.tokenizer)
    prompts = passages(tokenizer, s.prompts, s.prompt_tokens)
    rows = [Instruction("", (), tokenizer.decode(ids), (), ()) for ids in prompts]
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    rule = sharding.sharding_rule(mesh)
    decoding = Decoding(s.prompt_tokens, s.new_tokens, s.samples)
    stage = Stage(
        info=StageInfo("bench", round=1, rounds=1, folder=Path()),
        model=TrainedModel(
            bundle=replace(m.base, tokenizer=tokenizer),
            mesh=mesh,
            shapes=models.shapes(m.base.model, rule=rule),
            frozen={},
            load=lambda: m.weights(jnp.float32, rule),
            reference=cache(m.engine),
        ),
        task=Letters(rows, Checker(("ifeval",)), "plain", 0),
        rollout=RolloutConfig(
            decoding, Grouping(s.group, "grpo", False, False), chunks=1, max_no_verdict=1.0
        ),
        learner=LearnerConfig(
            LossConfig(),
            OptimizerConfig(),
            m.dtype,
            remat="full",
            micro_tokens=s.micro_tokens,
            max_response_tokens=s.new_tokens,
        ),
        batching=Batching(s.prompts, s.prompts, epochs=1, seed=0),
        evaluation=Evaluation({}, decoding, 0),
        key=jax.random.key(0),
        checkpoint_every_steps=1,
    )
    return stage, prompts
