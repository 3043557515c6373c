"""The inputs of benchmarks: texts of exact lengths, dialogues for the Judger, a stage to train."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from seif_jax import data, models, sharding, stage_settings
from seif_jax.chat_template import Dialogue
from seif_jax.errors import UserError
from seif_jax.evaluate.in_run import Evaluation
from seif_jax.length_distribution import Lengths
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.models import Model, Params
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.io.to_device import ShardingRule, single_device
from seif_jax.rewards.constraint_writer import instructions
from seif_jax.rewards.judge import Judge, Key, ReplyLike, Signature
from seif_jax.rewards.score import Score
from seif_jax.rl.stage import Stage, StageInfo, TrainedModel
from seif_jax.roles import judger
from seif_jax.roles.reply_format import Message
from seif_jax.run_config import DType, Remat, RunConfig
from seif_jax.run_paths import StagePaths
from seif_jax.sampling import Engine
from seif_jax.tokenizer import ChatPrompt, Tokenizer

JUDGER_SHOTS = RunConfig().judger.shots
REPLIES_PER_INSTRUCTION = 4  # that are judged, as in a rollout
CONSTRAINT_KINDS = (  # any of them go together
    "punctuation:no_comma", "length_constraints:number_words", "keywords:existence",
    "detectable_format:title", "detectable_content:postscript", "keywords:frequency",
    "change_case:capital_word_frequency", "detectable_format:number_highlighted_sections",
)  # fmt: skip


@dataclass(frozen=True)
class BenchModel:
    """The model that is measured."""

    bundle: ModelBundle
    path: str | None  # of its weights, as `models.resolve` takes it
    random_weights: bool  # initialized on the device, not loaded
    dtype_name: DType

    @property
    def config(self) -> ModelConfig:
        return self.bundle.model.config

    @property
    def dtype(self) -> DTypeLike:
        return stage_settings.dtype(self.dtype_name)

    def engine(self) -> Engine:
        return Engine(self.config, self.load(self.dtype), self.dtype)

    def load(self, dtype: DTypeLike, rule: ShardingRule = single_device) -> Params:
        if self.random_weights:
            return random_params(self.bundle.model, dtype, rule)
        return load_params(self.path, self.bundle.model, dtype, rule=rule)


def random_params(model: Model, dtype: DTypeLike, rule: ShardingRule) -> Params:
    """Initializes random weights on the devices, already sharded."""
    shardings = jax.tree.map(lambda x: x.sharding, models.shapes(model, dtype, rule))
    draw = jax.jit(
        lambda: jax.tree.map(lambda x: x.astype(dtype), models.init(model, seed=0)),
        out_shardings=shardings,
    )
    return draw()


@dataclass(frozen=True)
class WorkloadSizes:
    """How much a workload does.

    `judge` gives verdicts on `prompts` replies of `new_tokens` tokens, to instructions of
    `prompt_tokens` tokens with `group` constraints each.
    """

    prompts: int
    group: int  # samples per prompt
    prompt_tokens: int
    new_tokens: int  # per sample
    micro_tokens: int  # per forward and backward pass
    lengths: Lengths | None  # of new tokens, at most new_tokens; None: all have new_tokens
    slots: int  # samples decoded together
    remat: Remat = "full"  # what the backward pass recomputes

    @property
    def samples(self) -> int:
        return self.prompts * self.group

    def new_lengths(self) -> list[int]:
        """New tokens of each sample."""
        if not self.lengths:
            return [self.new_tokens] * self.samples
        return self.lengths.draw(self.samples, self.new_tokens, seed=(0,)).tolist()


class PlainTokenizer(Tokenizer):
    """A model's tokenizer without chat template and stop tokens, so that lengths are exact."""

    def __init__(self, tokenizer: Tokenizer):
        vars(self).update(vars(tokenizer))
        self.stop_ids = ()

    def encode_chats(
        self, dialogues: Sequence[Dialogue], prefill: str = "", close_thought: bool = False
    ) -> list[ChatPrompt]:
        texts = ["".join(turn["content"] for turn in turns) + prefill for turns in dialogues]
        return [ChatPrompt(self.encode(text), "") for text in texts]


@dataclass(frozen=True)
class LowercaseTask:
    """A `Task` that rewards the share of lower-case letters in a reply."""

    rows: Sequence[str]  # prompts

    def judges(self) -> list[Judge]:
        return []

    def dialogues(self, row: int) -> list[list[Message]]:
        return [self.dialogue(row, 0)]

    def signatures(self, num_replies: int) -> Iterator[Signature]:
        return iter(())

    def dialogue(self, row: int, step: int) -> list[Message]:
        return [{"role": "user", "content": self.rows[row]}]

    def columns(self, row: int, step: int) -> dict[str, object]:
        return {}

    def read(self, row: int, step: int, reply: ReplyLike | None) -> float:
        text = reply.text if reply else ""
        return sum(map(str.islower, text)) / max(len(text), 1)

    def score(self, parsed: Sequence[float], sample_ids: Sequence[int], key: Key) -> list[Score]:
        return [Score(reward) for reward in parsed]

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        return {}


def passages(tokenizer: Tokenizer, count: int, tokens: int) -> list[list[int]]:
    """Token ids of `count` texts of exactly `tokens` tokens, cut from the packaged seed questions.

    Each text has the same ids when it is decoded and encoded again. Raises UserError if there are
    not enough such texts.
    """
    ids = tokenizer.encode("\n".join(seed.question for seed in data.load_seeds(None)))
    repeated = ids * (tokens // len(ids) + 2)
    starts = iter(range(len(ids)))
    texts: list[list[int]] = []
    for i in range(count):
        first = i * len(ids) // count
        cuts = (repeated[start : start + tokens] for start in starts if start >= first)
        stable = (cut for cut in cuts if tokenizer.encode(tokenizer.decode(cut)) == cut)
        text = next(stable, None)
        if text is None:
            raise UserError(f"the seed questions make no {count} prompts of {tokens} tokens")
        texts.append(text)
    return texts


def judger_dialogues(tokenizer: Tokenizer, sizes: WorkloadSizes) -> list[list[Message]]:
    """The Judger's dialogues in the order of a rollout: the replies to an instruction follow each
    other, and so do the constraints of a reply."""
    texts = passages(tokenizer, -(-sizes.prompts // REPLIES_PER_INSTRUCTION), sizes.prompt_tokens)
    replies = passages(tokenizer, sizes.prompts, sizes.new_tokens)[::-1]
    rows = instructions(
        [tokenizer.decode(ids) for ids in texts], CONSTRAINT_KINDS, sizes.group, seed=0
    )
    dialogues = []
    for i, reply in enumerate(replies):
        row, text = rows[i // REPLIES_PER_INSTRUCTION], tokenizer.decode(reply)
        for constraint in row["constraint"]:
            dialogue = judger.messages(
                row["prompt"], text, constraint, shots=JUDGER_SHOTS, mode="verdict"
            )
            dialogues.append(dialogue)
    return dialogues


def training_stage(model: BenchModel, sizes: WorkloadSizes) -> tuple[Stage, list[list[int]]]:
    """A stage with the default config whose prompts have exactly `prompt_tokens` tokens, and the
    token ids of these prompts."""
    tokenizer = PlainTokenizer(model.bundle.tokenizer)
    prompts = passages(tokenizer, sizes.prompts, sizes.prompt_tokens)
    config = RunConfig(dtype=model.dtype_name, sample_batch=sizes.samples, remat=sizes.remat)
    role = replace(
        config.follower,
        rollout_prompts=sizes.prompts,
        optimizer_prompts=sizes.prompts,
        group_size=sizes.group,
        micro_tokens=sizes.micro_tokens,
        max_prompt_tokens=sizes.prompt_tokens,
        max_response_tokens=sizes.new_tokens,
    )
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    rule = sharding.sharding_rule(mesh)
    rollout = stage_settings.rollout(config, role)
    stage = Stage(
        info=StageInfo("bench", round=1, rounds=1, paths=StagePaths(Path())),
        model=TrainedModel(
            bundle=replace(model.bundle, tokenizer=tokenizer),
            mesh=mesh,
            shapes=models.shapes(model.bundle.model, rule=rule),
            frozen={},
            load=lambda: model.load(jnp.float32, rule),
            reference=cache(model.engine),
        ),
        task=LowercaseTask([tokenizer.decode(ids) for ids in prompts]),
        rollout=rollout,
        learner=stage_settings.learner(config, role),
        batching=stage_settings.batching(config, role, round=1),
        evaluation=Evaluation(),
        key=jax.random.key(0),
        checkpoint_every_steps=1,
        barrier_secs=config.distributed.barrier_secs,
    )
    return stage, prompts
