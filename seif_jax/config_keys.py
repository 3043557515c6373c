"""Every key of a config: which values it may have, and whether a resumed run may change it.

configs/default.py says what the keys mean; this table is the one place that says what they may be.
"""

import difflib
import re
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

from seif_jax.errors import UserError
from seif_jax.models.lora import TARGETS
from seif_jax.models.tree_forward import REMAT_POLICIES
from seif_jax.rewards import phrase
from seif_jax.rewards.score import CHECKS
from seif_jax.rl.grpo import ADVANTAGES, AGGREGATIONS, KL_ESTIMATORS, POLICY_LOSSES
from seif_jax.rl.optim import SCHEDULES
from seif_jax.rl.quantized_adam import KINDS as MOMENTS
from seif_jax.sampling.methods import TEMPERATURE, TOP_K, TOP_P
from seif_jax.values import Choice, Flag, Many, Number, Scalar, Text, Values

STAGES = ("instructor", "generate", "follower")
DTYPES = ("bfloat16", "float32")


class Key(NamedTuple):
    values: Values
    resume: Literal["fixed", "free", "later"]


def fixed(values: Values) -> Key:
    """The key changes what a run computes."""
    return Key(values, "fixed")


def free(values: Values) -> Key:
    """The key changes no result, beyond the rounding of sums that are taken in another order."""
    return Key(values, "free")


def later(values: Values) -> Key:
    """The key may change for rounds that have not begun."""
    return Key(values, "later")


def whole(low: int, high: int, *special: int) -> Number:
    return Number(int, low, high, special)


def real(low: float, high: float, *special: float) -> Number:
    return Number(float, low, high, special)


TEXT, PATH, FLAG = Text(), Text(optional=True), Flag()
SHARE = real(0, 1)
COUNT = whole(0, 10**9)  # of things that 0 leaves out or does not limit
BATCH = whole(1, 10**6)  # of prompts, samples, or questions
TOKENS = whole(1, 10**7)
SEED = whole(0, 2**32 - 1)
SAMPLED = real(TEMPERATURE.low, TEMPERATURE.high)  # a policy that is trained is never greedy
DEVICES = whole(1, 10**6, -1)
DECAY = real(0, 0.999999)  # the next float32 numbers round to 1, and 1 - decay is divided by


def trained_role(name: str) -> dict[str, Key]:
    return {
        f"{name}.init": fixed(PATH),
        f"{name}.epochs": later(Many(whole(1, 1000), least=1)),
        f"{name}.rollout_prompts": fixed(BATCH),
        f"{name}.group_size": fixed(whole(2, 10**4)),
        f"{name}.optimizer_prompts": fixed(BATCH),
        f"{name}.micro_tokens": free(TOKENS),
        f"{name}.max_prompt_tokens": fixed(TOKENS),
        f"{name}.max_response_tokens": fixed(TOKENS),
        f"{name}.temperature": fixed(SAMPLED),
        f"{name}.top_k": fixed(TOP_K),
        f"{name}.top_p": fixed(TOP_P),
        f"{name}.shots": fixed(COUNT),
        f"{name}.prompts": fixed(PATH),
        f"{name}.prefill": fixed(TEXT),
    }


def verdict_role(name: str, *modes: str) -> dict[str, Key]:
    return {
        f"{name}.mode": fixed(Choice(modes)),
        f"{name}.shots": fixed(COUNT),
        f"{name}.prompts": fixed(PATH),
        f"{name}.prefill": fixed(TEXT),
        f"{name}.max_prompt_tokens": fixed(TOKENS),
        f"{name}.max_tokens": fixed(TOKENS),
        f"{name}.temperature": fixed(TEMPERATURE),
        f"{name}.batch_size": free(BATCH),
    }


def rule_set(name: str, policy: Any) -> dict[str, Key]:
    return {
        f"{name}.path": policy(PATH),
        f"{name}.kinds": policy(Many(Choice(sorted(phrase.KINDS)))),
        f"{name}.per_prompt": policy(whole(1, len(phrase.KINDS))),
        f"{name}.first": policy(COUNT),
        f"{name}.last": policy(COUNT),
        f"{name}.seed": policy(SEED),
    }


NEW_RULE_SET = {  # what rule_set() of configs/default.py returns
    "path": None,
    "kinds": (),
    "per_prompt": 2,
    "first": 0,
    "last": 0,
    "seed": 0,
}
KEYS: dict[str, Key] = {  # "*" is a name that the user chose
    "seed": fixed(SEED),
    "model": fixed(PATH),
    "dtype": fixed(Choice(DTYPES)),
    "remat": free(Choice(tuple(REMAT_POLICIES))),
    "scan_weights": free(FLAG),
    "rounds": later(whole(1, 999)),
    "stages": fixed(Many(Choice(STAGES), least=1)),
    "format": fixed(Choice(("think_answer", "plain"))),
    "template_arguments.*": fixed(Scalar()),
    "sample_batch": free(BATCH),
    "mesh.data": free(DEVICES),
    "mesh.fsdp": free(DEVICES),
    "mesh.sequence": free(DEVICES),
    "mesh.tensor": free(DEVICES),
    "data.seeds": fixed(PATH),
    "data.column": fixed(TEXT),
    "data.split": fixed(Text(optional=True)),
    "data.limit": fixed(COUNT),
    "data.instructions": fixed(PATH),
    **rule_set("data.rules", fixed),
    "lora.rank": fixed(whole(0, 4096)),
    "lora.alpha": fixed(real(1e-3, 1e6)),
    "lora.targets": fixed(Many(Choice(TARGETS))),
    **trained_role("instructor"),
    "instructor.soft_share": fixed(SHARE),
    **trained_role("follower"),
    "generate.temperature": fixed(TEMPERATURE),
    "generate.prompts": fixed(BATCH),
    "generate.filter": fixed(FLAG),
    "answer.temperature": fixed(TEMPERATURE),
    **verdict_role("filter", "generate", "verdict"),
    "filter.on": fixed(FLAG),
    **verdict_role("judger", "generate", "verdict", "random"),
    "judger.model": fixed(PATH),
    "judger.dtype": fixed(Choice(DTYPES, optional=True)),
    "judger.devices": free(TEXT),
    "judger.max_no_verdict": free(SHARE),
    "reward.checks": fixed(Choice(CHECKS)),
    "grpo.advantage": fixed(Choice(tuple(ADVANTAGES))),
    "grpo.policy_loss": fixed(Choice(tuple(POLICY_LOSSES))),
    "grpo.loss_aggregation": fixed(Choice(tuple(AGGREGATIONS))),
    "grpo.clip_low": fixed(SHARE),
    "grpo.clip_high": fixed(real(0, 100)),
    "grpo.clip_dual": fixed(real(1, 1000)),
    "grpo.kl": fixed(Choice(tuple(KL_ESTIMATORS))),
    "grpo.kl_coef": fixed(real(0, 100)),
    "grpo.skip_equal_groups": fixed(FLAG),
    "grpo.mask_truncated": fixed(FLAG),
    "optim.learning_rate": fixed(real(1e-12, 1)),
    "optim.schedule": fixed(Choice(tuple(SCHEDULES))),
    "optim.warmup_updates": fixed(COUNT),
    "optim.end_rate": fixed(SHARE),
    "optim.b1": fixed(DECAY),
    "optim.b2": fixed(DECAY),
    "optim.eps": fixed(real(1e-30, 1)),
    "optim.weight_decay": fixed(SHARE),
    "optim.clip_norm": fixed(real(1e-9, 1e9)),
    "optim.moments": fixed(Choice(MOMENTS)),
    "eval.every_steps": free(COUNT),
    "eval.temperature": free(TEMPERATURE),
    **rule_set("eval.sets.*", free),
    "checkpoint.every_steps": free(whole(1, 10**9)),
}


def key(name: str) -> Key | None:
    """The entry of a key as the config names it, "eval.sets.mine.seed"; None: there is no such."""
    return KEYS.get(re.sub(r"^(eval\.sets|template_arguments)\.[^.]+", r"\1.*", name))


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A ConfigDict or nested dicts as {"a.b": value}."""
    leaves: dict[str, Any] = {}
    for name in config:
        value = config[name]  # not items(), which gives a ConfigDict's references unresolved
        nested = hasattr(value, "keys")
        leaves |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return leaves


def check_values(config: Any) -> None:
    """Raises UserError naming the first key that is unknown, missing, or has a value outside its
    range."""
    leaves = flat(config)
    for name in leaves:
        if not key(name):
            raise UserError(unknown(name, KEYS))
    for name in KEYS:
        if name not in leaves and "*" not in name:
            raise UserError(f"the config has no key {name}; base it on configs/default.py")
    for name, value in leaves.items():
        entry = key(name)
        assert entry, "all keys were found above"
        if value not in entry.values:
            raise UserError(refusal(name, entry, value))


def read(name: str, text: str | None) -> Any:
    """The value of a key that a command line spells; None: the key stands there without a value.
    Raises UserError if it is not of the key's type."""
    entry = key(name)
    if not entry:
        raise UserError(unknown(name, KEYS))
    if text is None and not isinstance(entry.values, Flag):
        raise UserError(f"--config.{name} needs a value: --config.{name}=VALUE")
    try:
        return entry.values.read("true" if text is None else text)
    except ValueError:
        raise UserError(refusal(name, entry, text)) from None


def refusal(name: str, entry: Key, value: Any) -> str:
    return f"config.{name} must be {entry.values} (got {value!r})"


def unknown(name: str, names: Collection[str]) -> str:
    """What to say of a key that is none of `names`, with the ones that may have been meant."""
    scores = {other: likeness(name, other) for other in names}
    best = max(scores.values())
    if best:
        close = [other for other, score in scores.items() if score > best - 0.1]
        return f"no config key {name}; did you mean {' or '.join(close)}?"
    group = name.rpartition(".")[0]
    words = [other.removeprefix(f"{group}.") for other in names if other.startswith(f"{group}.")]
    if words:
        return f"no config key {name}; the keys of {group} are {', '.join(words)}"
    return f"no config key {name}; configs/default.py has them all"


def likeness(name: str, other: str) -> float:
    """How much a mistyped key is like another: 0, or the likeness of the last words (which may be
    abbreviated to their initials, as lr for learning_rate) and of the groups."""
    (group, last), (other_group, other_last) = (
        (path, word) for path, _, word in (name.rpartition("."), other.rpartition("."))
    )
    initials = "".join(word[0] for word in other_last.split("_"))
    words = 1.0 if last == initials else _ratio(last, other_last)
    return words + _ratio(group, other_group) if words > 0.6 else 0.0


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
