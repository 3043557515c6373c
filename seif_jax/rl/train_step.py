"""One GRPO step: sample, score, update."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import jax
import numpy as np

from seif_jax import metrics_log, processes
from seif_jax.chat import ChatModel
from seif_jax.compilation import compile_in_parallel, compiles_ahead
from seif_jax.metrics_log import Phases
from seif_jax.models import Params
from seif_jax.rewards.judge import Judge
from seif_jax.rl import guards
from seif_jax.rl.batch import Batch
from seif_jax.rl.learner import Learner, Update, step_metrics
from seif_jax.rl.optim import TrainState
from seif_jax.rl.packing import BatchSizes
from seif_jax.rl.rollout import rollout, sampling_signatures
from seif_jax.rl.stage import Stage, make_policy
from seif_jax.sampling import Counters, Engine, PromptTokens


def train_step(
    stage: Stage,
    learner: Learner,
    state: TrainState,
    rows: Sequence[int],
    step: int,
    phases: Phases,
) -> tuple[TrainState, dict[str, float], list[dict[str, object]]]:
    """One GRPO step on the prompts of `rows`: sample, score, update.

    Returns the new state, which reuses the buffers of the old one, the step's metrics, and its rows
    for samples.parquet.
    """
    with phases("total"):
        policy, judges = make_policy(stage, learner, state), stage.task.judges()
        judged_before = prompt_tokens(judges)
        key = jax.random.fold_in(stage.key, step)
        sampled = rollout(stage.task, policy, rows, step, key, stage.rollout, phases)
        guards.check_verdicts(str(stage.info), sampled.metrics, stage.rollout.max_no_verdict)
        per_process = processes.allgather_objects(policy.engine.counters, policy.processes_per_copy)
        counters = sum(per_process, Counters())
        waste = {
            **prompt_waste("prompt_waste", policy.engine.prompt_tokens),
            **prompt_waste("judge_prompt_waste", prompt_tokens(judges) - judged_before),
        }
        with phases("reference"):
            batches = optimizer_batches(
                learner,
                state,
                sampled.batch,
                stage.batching.optimizer_prompts,
                policy.engine.params,
                stage.model.reference,
            )
        del policy  # the update needs the memory of its weights
        with phases("update"):
            updates: list[Update] = []
            for i, batch in enumerate(batches):
                if batch.mask().any():
                    # The first batch was sampled with the weights that it updates.
                    state, update = learner.update(state, batch, on_policy=i == 0)
                    updates.append(update)
    secs, tokens = phases.take(), sampled.metrics["sampled_tokens"]
    rates = {
        "slot_use": tokens / counters.slot_steps,
        "kv_waste": counters.kv_read / counters.kv_needed,
        "evicted": counters.evicted,
        "tokens_per_sec": tokens / secs["secs/sample"],
    }
    rollout_metrics = {**sampled.metrics, **rates, **waste, **secs, **metrics_log.host()}
    return state, {**step_metrics(updates), **rollout_metrics}, sampled.samples


def compile_stage(stage: Stage, learner: Learner, state: TrainState, prompts: int) -> None:
    """Compiles the large programs of the stage in parallel, before its first step: the learner's,
    for all usual lengths of rows, and those of rollouts, frozen models and evaluation sets. On
    CPUs, programs are compiled when they are first needed.

    prompts: the number of prompts per step.
    """
    if not compiles_ahead():
        return
    of_update = min(prompts, stage.batching.optimizer_prompts)
    of_policy = [learner.policy_shapes()] if prompts > of_update else []
    references = [stage.model.reference().params] if learner.config.loss.kl_coef else []
    group_size, longest = stage.rollout.grouping.size, stage.rollout.decoding.max_prompt_tokens
    sizes = BatchSizes(of_update, group_size, longest)
    # The policy is in memory, so that the sampler finds as much free memory as in a step.
    policy, decoding = make_policy(stage, learner, state), stage.rollout.decoding
    compile_in_parallel(
        chain(
            learner.usual_signatures(state, sizes, [*of_policy, *references]),
            sampling_signatures(stage.task, policy, prompts, decoding, group_size),
            stage.evaluation.signatures(policy),
        )
    )
    metrics_log.trim()  # frees the compiler's memory


def prompt_tokens(judges: Sequence[Judge]) -> PromptTokens:
    """The prompt tokens that the judges' engines have computed so far in this process."""
    models = [judge.chat_model for judge in judges if judge.mode != "random"]
    engines = {model.engine for model in models if isinstance(model, ChatModel)}
    return sum((engine.prompt_tokens for engine in engines), PromptTokens())


def prompt_waste(name: str, tokens: PromptTokens) -> dict[str, float]:
    """The metric `name`: prompt tokens computed per distinct prompt token, over all processes; {}
    if there were no prompts."""
    total = sum(processes.allgather_objects(tokens), PromptTokens())
    return {name: total.computed / total.distinct} if total.distinct else {}


def optimizer_batches(
    learner: Learner,
    state: TrainState,
    batch: Batch,
    prompts_per_update: int,
    policy: Params,
    reference: Callable[[], Engine],
) -> list[Batch]:
    """Splits a rollout into optimizer batches and adds the log-probabilities that the loss needs.

    Those of the policy are computed from the second batch on; for the first batch, the forward pass
    of its update computes them. Those of the reference are computed only with a KL penalty. Before
    all this, the programs for it and for the updates are compiled.
    """
    prompts = np.arange(len(batch.prompts))
    starts = range(0, len(prompts), prompts_per_update)
    first, *later = [batch.take(prompts[i : i + prompts_per_update]) for i in starts]
    references = [reference().params] if learner.config.loss.kl_coef else []
    learner.compile(
        state, [(first, references), *((part, [policy, *references]) for part in later)]
    )
    later = [replace(part, old_logp=learner.logp(policy, part)) for part in later]
    if not references:
        return [first, *later]
    return [replace(part, ref_logp=learner.logp(references[0], part)) for part in (first, *later)]
