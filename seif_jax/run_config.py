"""Every key of a config: its type, range, default and unit.

To add a key, add a line here; keys of the loss and the optimizer are in rl/config.py. Neither file
imports JAX, so that a mistake in a config is reported at once.

`configs/default.py` makes an `ml_collections.ConfigDict` of these defaults, which config files and
`--config.key=value` options change. `config_parsing.parse` checks the result once and returns a
`RunConfig`. All other code takes these dataclasses.

A key is fixed once a run has begun, unless `resume` lists it among those that may change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from seif_jax.config_types import AtLeast, OneOf, Plain, Range, Temperature, TopK, TopP
from seif_jax.rewards import constraint_writer
from seif_jax.rewards.instructor_reward import REWARDS
from seif_jax.rewards.user_checks import BUILT_IN, IFEVAL, JUDGE
from seif_jax.rl.config import Advantage, LossConfig, OptimizerConfig

STAGES = ("instructor", "generate", "follower")

Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(0, 10**9)]  # 0 usually means none, or no limit
Batch = Annotated[int, Range(1, 10**6)]  # prompts, samples or questions
Tokens = Annotated[int, Range(1, 10**7)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
TrainingTemperature = Annotated[float, Range(0.01, 10)]  # a policy that is trained is never greedy
Devices = Annotated[int, Range(1, 10**6, (-1,))]
Epochs = Annotated[tuple[Annotated[int, Range(1, 1000)], ...], AtLeast(1)]
DType = Literal["bfloat16", "float32"]
Remat = Literal["full", "dots", "none"]
Stage = Literal["instructor", "generate", "follower"]
CheckName = Annotated[str, OneOf(BUILT_IN, functions=True)]
LoraTarget = Literal["q", "k", "v", "o", "gate", "up", "down"]
Location = str | None  # a file, a folder, or a name on a hub


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one axis may be -1, all the remaining devices."""

    slices: Devices = 1  # TPU slices or groups of GPU nodes, which send each other gradients only
    data: Devices = 1  # data parallel: each group trains on its own samples, with all weights
    fsdp: Devices = -1  # data parallel too, but weights and optimizer state are sharded
    sequence: Devices = 1  # shards the tokens of a micro-batch: for long responses
    tensor: Devices = 1  # shards heads and feed-forward width, also while sampling


@dataclass(frozen=True)
class RuleSetConfig:
    """Rule-checked instructions: read from a file, or written from the seeds without a model."""

    path: Location = None  # a data file; unset: written from `kinds`
    kinds: tuple[
        Annotated[str, OneOf(sorted(constraint_writer.KINDS))], ...
    ] = ()  # IFEval ids; (): no set
    per_prompt: Annotated[int, Range(1, len(constraint_writer.KINDS))] = 2  # constraints per prompt
    first: Count = 0  # uses seeds, or the rows of `path`, first to last - 1
    last: Count = 0  # 0: to the end
    seed: Seed = 0


@dataclass(frozen=True)
class DataConfig:
    seeds: Location = None  # a data file, hub name or tfds:NAME (docs/reference.md); unset: the
    # packaged ones
    column: str = "prompt"  # of the seeds: texts or chats
    split: str | None = None  # of a data set on the hub or of TFDS; unset: "train"
    limit: Count = 0  # uses only this many seeds, from the first on; 0: all
    instructions: Location = None  # the Follower's data, instead of what the Instructor writes
    rules: RuleSetConfig = RuleSetConfig()  # another alternative: rule-checked constraints


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on frozen projections: docs/models.md."""

    rank: Annotated[int, Range(0, 4096)] = 0  # 0: all weights are trained
    alpha: Annotated[float, Range(1e-3, 1e6)] = 32.0  # adapters are scaled by alpha / rank
    targets: tuple[LoraTarget, ...] = get_args(LoraTarget)


@dataclass(frozen=True)
class TrainedRoleConfig:
    """What Instructor and Follower have in common."""

    init: Location = None  # weights to start from (a run's checkpoint, HF folder, GGUF); unset: the
    # model. With lora: a checkpoint of a run with the same model and lora
    epochs: Epochs = (1,)  # passes over the data in rounds 1, 2, …; the last one repeats
    steps: Count = 0  # per round, whatever the number of prompts; 0: as `epochs` says
    rollout_prompts: Batch = 384  # prompts per step
    group_size: Annotated[int, Range(2, 10**4)] = 5  # samples per prompt
    optimizer_prompts: Batch = 96  # prompts per update
    micro_tokens: Tokens = 16384  # tokens per forward and backward pass
    max_prompt_tokens: Tokens = 2048  # longer prompts are dropped and counted
    max_response_tokens: Tokens = 8192
    temperature: TrainingTemperature = 1.0
    top_k: TopK = 0  # 0: off
    top_p: TopP = 1.0
    shots: Count = 0  # few-shot examples
    prompts: Location = None  # a .toml or .py file instead of the packaged prompts: docs/prompts.md
    prefill: str = ""  # the reply starts with this text


@dataclass(frozen=True)
class InstructorConfig(TrainedRoleConfig):
    soft_share: Share = 0.5  # of prompts: soft variant (5 constraints); the rest: hard (3)
    reward: Annotated[str, OneOf(REWARDS, functions=True)] = "difficulty"  # a function of p, the
    # share of constraints that the frozen Follower meets: "difficulty", 1 - p; "learnability",
    # 4 p (1 - p); or your own "module:function" (docs/howto_check.md)


@dataclass(frozen=True)
class FollowerConfig(TrainedRoleConfig):
    epochs: Epochs = (3, 1)


@dataclass(frozen=True)
class GenerateConfig:
    """The data stage, in which the Instructor writes the Follower's instructions."""

    temperature: Temperature = 0.7
    prompts: Batch = 256  # seeds per step
    filter: bool = True  # drops contradictory instructions (the release keeps them)


@dataclass(frozen=True)
class AnswerConfig:
    """The frozen Follower's answers, which the Instructor's reward is computed from."""

    temperature: Temperature = 1.0
    samples: Annotated[int, Range(1, 1000)] = 1  # answers per instruction; p is the mean over them


@dataclass(frozen=True)
class VerdictRoleConfig:
    """What Filter and Judger have in common."""

    mode: str = "generate"  # "generate": an analysis, then [[1]] or [[0]]; "verdict": one forward
    # pass that compares the probabilities of 1 and 0
    shots: Count = 2  # few-shot examples
    prompts: Location = None  # as for a trained role
    prefill: str = ""  # generate: the reply starts with this; verdict: comes before the "[["
    max_prompt_tokens: Tokens = 12288  # a longer prompt gets no verdict
    max_tokens: Tokens = 2048  # of analysis and verdict
    temperature: Temperature = 0.0
    batch_size: Batch = 256  # generate: replies decoded at a time


@dataclass(frozen=True)
class FilterConfig(VerdictRoleConfig):
    mode: Literal["generate", "verdict"] = "generate"
    on: bool = True  # gives contradictory instructions reward 0 when the Instructor is trained


@dataclass(frozen=True)
class JudgerConfig(VerdictRoleConfig):
    mode: Literal["generate", "verdict", "random"] = "generate"  # "random": a coin flip per
    # constraint; the control, with reward.checks=judge
    model: Location = None  # unset: the last round's Follower; "base": the first one; else a path
    dtype: DType | None = None  # unset: the run's dtype
    devices: str = "shared"  # or the number ("2") or ids ("[6,7]") of devices for
    # Judger, Filter and answers, which then score samples while others are still being sampled
    max_no_verdict: Share = 0.5  # the run stops if more of a step's are unreadable


@dataclass(frozen=True)
class RewardConfig:
    # In order: the first one that can tell decides whether a constraint is met. "ifeval": rules;
    # "judge": the Judger; or your own "module:function" (docs/howto_check.md).
    checks: Annotated[tuple[CheckName, ...], AtLeast(1)] = (IFEVAL, JUDGE)


@dataclass(frozen=True)
class GrpoConfig(LossConfig):
    """The advantages (rl/advantages.py) and the loss (rl/grpo.py)."""

    advantage: Advantage = "grpo"  # "zero": a control that learns nothing
    skip_equal_groups: bool = False  # excludes groups whose rewards are all equal from the update
    mask_truncated: bool = False  # excludes samples cut at the length limit from the update


@dataclass(frozen=True)
class EvalConfig:
    every_steps: Count = 0  # of a Follower stage, also before and after it; 0: never
    temperature: Temperature = 0.5
    sets: Mapping[str, RuleSetConfig] = field(default_factory=dict)  # by names of your own; on the
    # command line: --config.eval.sets.NAME.path=FILE
    suites: tuple[str, ...] = ()  # of `seif evaluate`, scored before the first Follower stage and
    # after each: names, or NAME=FILE with the data
    suite_limit: Count = 0  # prompts per suite; 0: all


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: Annotated[int, Range(1, 10**9)] = 1  # written in the background; two are kept


@dataclass(frozen=True)
class DistributedConfig:
    """What ends a run whose processes have died or hang (docs/reliability.md)."""

    heartbeat_secs: Annotated[int, Range(5, 10**5)] = 50  # a process silent for this long is dead
    barrier_secs: Annotated[int, Range(10, 10**6)] = 1200  # for the slowest disk to save to
    hang_minutes: Annotated[float, Range(0, 10**5)] = 60.0  # without progress until a process is
    # ended; must be longer than the longest compilation; 0: never


def epochs(by_round: Sequence[int], round: int) -> int:
    """Passes over the data in a round. The last entry of `by_round` holds for later rounds too."""
    return by_round[min(round, len(by_round)) - 1]


@dataclass(frozen=True)
class RunConfig:
    """The config of a run. The defaults are the paper's numbers.

        config = seif_jax.read_config("smollm2", ["--config.rounds=1"])
        print(config.follower.group_size, config.grpo.kl_coef)

    Values are checked by `read_config` and `config_parsing.parse`, not here.
    """

    seed: Seed = 0
    model: Location = None  # HF folder, hub name, GGUF or checkpoint of a run; unset or "smollm2":
    # the embedded SmolLM2-135M-Instruct
    # Of sampling and of matmuls in training; trained weights are float32. auto: bfloat16 if the
    # devices have instructions for it, float32 if not, as on CPUs with AVX2 alone.
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    # What the backward pass recomputes: the whole layer ("full"), all but matmuls ("dots") or
    # nothing ("none"). Recomputing saves memory and costs time.
    remat: Remat = "full"
    scan_weights: bool = True  # refuses weight files that contain NaN or infinity
    rounds: Annotated[int, Range(1, 999)] = 3
    stages: Annotated[tuple[Stage, ...], AtLeast(1)] = STAGES  # of every round, in this order
    format: Literal["think_answer", "plain"] = "think_answer"  # of replies; plain: small models
    template_arguments: Mapping[str, Plain] = field(default_factory=dict)  # for the chat template
    sample_batch: Batch = 256  # samples decoded at a time
    sample_memory: Share = 0.8  # of the memory that is free when sampling begins: for the keys and
    # values of samples and prompts. If it runs out, samples start again later

    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    instructor: InstructorConfig = InstructorConfig()
    follower: FollowerConfig = FollowerConfig()
    generate: GenerateConfig = GenerateConfig()
    answer: AnswerConfig = AnswerConfig()
    filter: FilterConfig = FilterConfig()
    judger: JudgerConfig = JudgerConfig()
    reward: RewardConfig = RewardConfig()
    grpo: GrpoConfig = GrpoConfig()
    optim: OptimizerConfig = OptimizerConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    distributed: DistributedConfig = DistributedConfig()

    @property
    def schedule(self) -> list[tuple[int, str]]:
        """The run's stages in order, each with its round."""
        stages = [stage for stage in STAGES if stage in self.stages]
        return [(round, stage) for round in range(1, self.rounds + 1) for stage in stages]

    def role(self, name: str) -> TrainedRoleConfig | VerdictRoleConfig:
        """The group of "instructor", "follower", "filter" or "judger"."""
        verdict_roles = {"filter": self.filter, "judger": self.judger}
        return verdict_roles.get(name) or self.trained_role(name)

    def trained_role(self, name: str) -> TrainedRoleConfig:
        """The group of "instructor" or "follower"."""
        return {"instructor": self.instructor, "follower": self.follower}[name]
