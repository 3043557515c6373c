"""SEIF with the paper's numbers: three rounds of Instructor, data and Follower.

    seif run --config=configs/default.py --workdir=DIR --config.model=PATH --config.data.seeds=PATH

The base of every other config. Every key has its unit; a key that is not here is an error.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

Config = Any  # a ConfigDict: its own types know no keys


def text(default: str | None = None) -> config_dict.FieldReference:
    """A text that may be left out."""
    return config_dict.placeholder(str) if default is None else config_dict.FieldReference(default)


def trained_role() -> ConfigDict:
    """What Instructor and Follower have in common."""
    c = ConfigDict()
    c.init = text()  # weights to start from; none: the model (a run's checkpoint, HF folder, GGUF);
    # with lora: a checkpoint of a run with the same model and lora
    c.epochs = (1,)  # passes over the data in round 1, 2, …; the last goes on for later rounds
    c.rollout_prompts = 384  # prompts a step
    c.group_size = 5  # samples a prompt
    c.optimizer_prompts = 96  # prompts an update
    c.micro_tokens = 16384  # tokens a forward and backward pass: memory, not results
    c.max_prompt_tokens = 2048  # tokens; longer prompts are dropped and counted
    c.max_response_tokens = 8192  # tokens
    c.temperature = 1.0
    c.top_k = 0  # 0: off
    c.top_p = 1.0
    c.shots = 0  # few-shot turns
    c.prompts = text()  # a .toml or .py file in place of the packaged prompts: docs/prompts.md
    c.prefill = ""  # the reply starts with this text
    return c


def verdict_role() -> ConfigDict:
    """What Filter and Judger have in common."""
    c = ConfigDict()
    c.mode = "generate"  # "generate": analysis, then [[1]] or [[0]]; "verdict": forward pass only;
    # the Judger's also "random": a coin for each constraint, with reward.checks="judge" the control
    c.shots = 2  # few-shot turns
    c.prompts = text()  # as of a trained role
    c.prefill = ""  # generate: the reply starts with this; verdict: comes before the "[["
    c.max_prompt_tokens = 12288  # tokens; a longer prompt gets no verdict
    c.max_tokens = 2048  # tokens of analysis and verdict
    c.temperature = 0.0
    c.batch_size = 256  # questions at a time
    return c


def get_config() -> Config:
    c = ConfigDict()
    c.seed = 0
    c.model = text()  # HF folder, hub name, GGUF, run's checkpoint; none or "smollm2": the embedded
    c.dtype = "bfloat16"  # of sampling and of matrix products in training; weights are float32
    c.remat = "full"  # what a backward pass computes again of a layer: all of it ("full"), all but
    # matrix products ("dots"), nothing ("none"): memory against time, not results
    c.scan_weights = True  # refuse NaN and infinity in the weights of files
    c.rounds = 3
    c.stages = ("instructor", "generate", "follower")  # of every round, in this order
    c.format = "think_answer"  # of both trained roles' replies; "plain" for very small models
    c.template_arguments = ConfigDict()  # read by the chat template: enable_thinking = False, …
    c.sample_batch = 256  # samples in one sampling program at a time

    c.mesh = ConfigDict()  # devices along each axis; -1: all that are left
    c.mesh.data = 1  # each trains on its own samples, with all weights
    c.mesh.fsdp = -1  # the same, but each holds a share of weights and optimizer
    c.mesh.sequence = 1  # share the tokens of a part of the batch: for long responses
    c.mesh.tensor = 1  # share heads and feed-forward width, in sampling, too

    c.data = ConfigDict()
    c.data.seeds = text()  # a data file, hub name, tfds:name (docs/reference.md); none: packaged
    c.data.column = "prompt"  # of the seeds: texts or chats
    c.data.split = text()  # of a data set on the hub or of TFDS; none: "train"
    c.data.limit = 0  # seeds used, the first ones; 0: all
    c.data.instructions = text()  # the Follower's data, in place of what the Instructor writes
    c.data.rules = rule_set()  # or this: rule-checked constraints, written without a model

    c.lora = ConfigDict()  # small matrices trained beside frozen projections: docs/models.md
    c.lora.rank = 0  # 0: all weights are trained
    c.lora.alpha = 32.0  # what they add counts alpha/rank
    c.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")  # projections that have them

    c.instructor = trained_role()
    c.instructor.soft_share = 0.5  # of prompts: soft variant (5 constraints); rest hard (3)
    c.follower = trained_role()
    c.follower.epochs = (3, 1)

    c.generate = ConfigDict()
    c.generate.temperature = 0.7
    c.generate.prompts = 256  # seeds a step
    c.generate.filter = True  # drop contradictory instructions (the release does not)

    c.answer = ConfigDict()  # the frozen Follower's answers, in the Instructor's reward
    c.answer.temperature = 1.0
    c.filter = verdict_role()
    c.filter.on = True  # in the Instructor's reward
    c.judger = verdict_role()
    c.judger.model = text()  # none: the last round's Follower; "base": the first one; else a path
    c.judger.dtype = text()  # none: as dtype
    c.judger.devices = "shared"  # or its own, Filter's and answerer's, too: "2" (so many), "[6,7]"
    # (these); what was sampled first is then scored while the rest is being sampled
    c.judger.max_no_verdict = 0.5  # share of a step's verdicts that, unreadable, stops the run

    c.reward = ConfigDict()
    c.reward.checks = "hybrid"  # "judge", "rules", or "hybrid": the rule where there is one

    c.grpo = ConfigDict()
    c.grpo.advantage = "grpo"  # grpo, rloo, dr_grpo, or "zero": a control that learns nothing
    c.grpo.policy_loss = "grpo"  # grpo, gspo (one ratio per sequence), cispo: docs/learner.md
    c.grpo.loss_aggregation = "token"  # mean over tokens, or over sequences ("sequence"), or the
    # sum over tokens divided by sequences x max_response_tokens ("constant")
    c.grpo.clip_low = 0.2  # the ratio is clipped to 1 - clip_low ... 1 + clip_high
    c.grpo.clip_high = 0.3
    c.grpo.clip_dual = 3.0  # bound of the ratio where the advantage is negative; not for cispo
    c.grpo.kl = "k3"  # k1, abs, k2, k3
    c.grpo.kl_coef = 0.01  # 0: no reference policy is computed
    c.grpo.skip_equal_groups = False  # leave groups without any difference out of the update
    c.grpo.mask_truncated = False  # leave samples cut at the length limit out of the update

    c.optim = ConfigDict()
    c.optim.learning_rate = 1e-6
    c.optim.schedule = "constant"  # constant, linear, cosine
    c.optim.warmup_updates = 0
    c.optim.end_rate = 0.0  # of linear and cosine, as a share of the learning rate
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = 1.0  # global norm of the gradient
    c.optim.moments = "float32"  # bfloat16, int8: AdamW's two in 1/2, 1/4 of the memory, rounded

    c.eval = ConfigDict()
    c.eval.every_steps = 0  # of a Follower stage, and before and after it; 0: never
    c.eval.temperature = 0.5
    c.eval.sets = ConfigDict()  # name: rule_set(); or --config.eval.sets.NAME.path=FILE

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 1
    return c


def rule_set() -> ConfigDict:
    """Rule-checked instructions written from the seeds, or read from a file."""
    c = ConfigDict()
    c.path = text()  # a data file; none: written from the kinds below
    c.kinds = ()  # IFEval ids to draw from; none: no such set
    c.per_prompt = 2  # constraints a prompt
    c.first, c.last = 0, 0  # seeds first to last-1; 0, 0: all
    c.seed = 0
    return c
