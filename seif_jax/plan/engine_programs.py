"""The programs of the sampling engine: rollouts, answers and verdicts, at their largest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jax.sharding import Mesh
from jax.typing import DTypeLike

from seif_jax import settings
from seif_jax.chat import Decoding
from seif_jax.models import Params
from seif_jax.models.decoder import ModelConfig
from seif_jax.models.packed_attention import kernel_pairs
from seif_jax.models.tree_forward import reads_packed_rows
from seif_jax.plan.cost import device_bytes
from seif_jax.plan.layout import Bytes, Layout, has_own_weights
from seif_jax.plan.program import Program, shapes_of, without
from seif_jax.run_config import RunConfig
from seif_jax.sampling import prefill, worst_case
from seif_jax.sampling.decode import CHUNK, decode
from seif_jax.sampling.trees import largest_read

CONSTRAINTS = 5  # per instruction: the most that a variant asks for
OPTION_IDS = (0, 1)  # of tokens; which ones they are changes no shape


@dataclass(frozen=True)
class EngineCall:
    """What a step samples, or gets verdicts on, with one call of an engine."""

    name: str
    prompts: int
    group_size: int
    decoding: Decoding
    weights: str  # whose: a key of `resident_bytes`
    dtype: DTypeLike
    mode: str = "generate"


def engine_calls(config: RunConfig, stage: str) -> Iterator[EngineCall]:
    """All that a step of a stage samples and judges."""
    role, dtype = config.trained_role(stage), settings.dtype(config.dtype)
    decoding = settings.decoding(config, role, role.temperature)
    answers = role.rollout_prompts * role.group_size  # that are judged
    yield EngineCall("rollout", role.rollout_prompts, role.group_size, decoding, "policy", dtype)
    if stage == "instructor":
        proposals, filter = answers, config.filter
        if filter.on:
            decoding = settings.verdict_decoding(filter, settings.FILTER_RNG_STREAM)
            yield EngineCall("filter", proposals, 1, decoding, "follower", dtype, filter.mode)
        follower, answer = config.follower, config.answer
        decoding = settings.decoding(
            config, follower, answer.temperature, settings.ANSWER_RNG_STREAM
        )
        yield EngineCall("answers", proposals, answer.samples, decoding, "follower", dtype)
        answers = proposals * answer.samples
    judger = config.judger
    if "judge" in config.reward.checks and judger.mode != "random":
        decoding = settings.verdict_decoding(judger, settings.JUDGER_RNG_STREAM)
        weights = "judger" if has_own_weights(config) else "follower"
        dtype = settings.dtype(judger.dtype or config.dtype)
        questions = answers * CONSTRAINTS
        yield EngineCall("judge", questions, 1, decoding, weights, dtype, judger.mode)


def engine_programs(
    layout: Layout, stage: str, call: EngineCall, resident: Mapping[Mesh, Bytes]
) -> Iterator[Program]:
    """The programs of an engine call. Each copy of the weights serves its share of the prompts."""
    all_devices = layout.judger_mesh if call.weights in ("follower", "judger") else layout.mesh
    mesh, decoding = layout.one_copy(all_devices), call.decoding
    config, params = layout.model.config, layout.sampling_weights(mesh, call.dtype)
    others = without(resident[all_devices], "base", call.weights)
    prompts = -(-call.prompts * mesh.size // all_devices.size)  # of one copy
    if call.mode == "verdict":
        yield _verdict_program(stage, call, prompts, config, params, others, mesh)
        return
    worst = worst_case.arguments(
        config, params, call.dtype, prompts=prompts, prompt_tokens=decoding.max_prompt_tokens,
        group=call.group_size, max_tokens=decoding.max_tokens, slots=decoding.batch_size,
    )  # fmt: skip
    _, _, unstacked, _, _, pool, _, cache, _ = worst.decode
    session = {
        "weights by layer": device_bytes(unstacked),
        "prompts": device_bytes(pool),
        "cache": device_bytes(cache),
    }
    read = {"prompts read ahead": device_bytes(worst.read)}
    yield Program(
        stage,
        f"{call.name}: prefill",
        prefill.prefill,
        worst.prefill,
        calls_per_step=-(-prompts // worst.prompts),
        resident_bytes=others | session,
        num_devices=mesh.size,
        mesh=mesh,
        options={"dtype": call.dtype},
        pairs=worst.pairs,
    )
    waves = -(-prompts * call.group_size // worst.slots)
    yield Program(
        stage,
        f"{call.name}: decode",
        decode,
        worst.decode,
        calls_per_step=waves * -(-decoding.max_tokens // CHUNK),
        resident_bytes=others | {call.weights: device_bytes(params["layers"])} | read,
        num_devices=mesh.size,
        options={"method": decoding.method, "stop_ids": OPTION_IDS[:1], "dtype": call.dtype},
        sampled_tokens=call.prompts * call.group_size * decoding.max_tokens,
    )


def _verdict_program(
    stage: str,
    call: EngineCall,
    prompts: int,
    config: ModelConfig,
    params: Params,
    others: Bytes,
    mesh: Mesh,
) -> Program:
    """A forward pass over prompts that differ from their first token on."""
    length, kernel = call.decoding.max_prompt_tokens, reads_packed_rows(config)
    tree, size = largest_read(prompts, length, kernel)
    return Program(
        stage,
        f"{call.name}: verdicts",
        prefill.next_logp,
        (config, params, None, shapes_of(tree)),
        calls_per_step=-(-prompts // size),
        resident_bytes=others,
        num_devices=mesh.size,
        mesh=mesh,
        options={"options": OPTION_IDS, "dtype": call.dtype},
        pairs=kernel_pairs(tree.tiles),
    )
