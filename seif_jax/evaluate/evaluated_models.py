"""The models of an evaluation, and how each of them is prompted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import jax

from seif_jax import accelerator_detection, fingerprints, models, sharding, storage
from seif_jax.chat import ChatModel, Decoding
from seif_jax.chat_template import ChatSettings
from seif_jax.errors import UserError, displayed
from seif_jax.evaluate.journal import Store
from seif_jax.evaluate.progress import EvaluationProgress
from seif_jax.evaluate.replies_from_file import FileRespondent
from seif_jax.evaluate.replies_from_model import (
    JUDGE_SHOTS,
    SLOTS,
    Form,
    JudgerVerdicts,
    ModelRespondent,
    as_judge,
)
from seif_jax.evaluate.subjects import RESPONSES, Subject
from seif_jax.evaluate.suite import Respondent
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.options.evaluate import EvaluateOptions
from seif_jax.rewards.judge import Judge
from seif_jax.roles import follower, judger
from seif_jax.roles.prompts import load as load_prompts
from seif_jax.run_paths import Record, RunPaths, read_record
from seif_jax.sampling import Engine
from seif_jax.stage_settings import dtype as dtype_of


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate."""

    label: str
    run: int  # which --model it comes from
    role: str  # "model", or in a run "base", "round_1", …
    path: str
    form: Form
    prefill: str
    chat: ChatSettings | None

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.path)


def candidates(paths: Sequence[str], format: str | None, prefix: str = "") -> list[Candidate]:
    """The models of these paths. A run's folder stands for its base and for the Follower of every
    finished round. format: None is the format of the run's Follower, or plain if there is no run.
    prefix: of the models' labels."""
    result: list[Candidate] = []
    for i, path in enumerate(paths):
        name = f"{prefix}{path}" if len(paths) > 1 or prefix else ""
        local = models.find_local(path)
        record = read_record(local) if local else None
        result += _of_run(i, name, local, record) if local and record else [_of_path(i, name, path)]
    if format:
        result = [replace(c, form=replace(c.form, format=format)) for c in result]
    return result


def _of_run(i: int, name: str, workdir: Path, record: Record) -> list[Candidate]:
    run, config = RunPaths(workdir), record["config"]
    rounds = range(1, config["rounds"] + 1)
    stages = {run.round(round).name: run.stage(round, "follower") for round in rounds}
    trained = {role: stage.folder for role, stage in stages.items() if stage.done.exists()}
    base = config["follower"]["init"] or config["model"] or models.EMBEDDED
    roles = {"base": base} | {role: displayed(str(stage)) for role, stage in trained.items()}
    form, prefill, chat = _follower_form(workdir, record)
    return [
        Candidate(f"{name}/{role}" if name else role, i, role, path, form, prefill, chat)
        for role, path in roles.items()
    ]


def _of_path(i: int, name: str, path: str) -> Candidate:
    local = models.find_local(path)
    folders = [local.resolve(), *local.resolve().parents] if local else []
    for folder in folders:
        if record := read_record(folder):
            return Candidate(name or path, i, "model", path, *_follower_form(folder, record))
    return Candidate(name or path, i, "model", path, Form(), "", None)


def _follower_form(workdir: Path, record: Record) -> tuple[Form, str, ChatSettings]:
    """How a run prompts its Follower: the form, the prefill and the chat template's settings."""
    config = record["config"]
    role = config["follower"]
    files = sorted(RunPaths(workdir).prompts.glob("follower.*")) if role["prompts"] else []
    prompts = load_prompts(follower.SCHEMA, str(files[0]), follower.PACKAGED) if files else None
    chat = ChatSettings(config["template_arguments"], datetime.fromisoformat(record["started"]))
    return Form(config["format"], role["shots"], prompts), role["prefill"], chat


@dataclass
class Loader:
    """Loads models, and keeps only the last one."""

    dtype: str
    loaded: tuple[str, ChatModel] | None = None

    def load(self, path: str, chat: ChatSettings | None) -> ChatModel:
        if self.loaded and self.loaded[0] == path:
            return self.loaded[1]
        self.loaded = None
        bundle = ModelBundle.load(path, chat)
        mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {"data": -1}, jax.devices())
        rule = sharding.sharding_rule(mesh, over=("tensor",))
        dtype = dtype_of(self.dtype)
        params = load_params(path, bundle.model, dtype, rule=rule)
        model = ChatModel(Engine(bundle.model.config, params, dtype), bundle.tokenizer)
        self.loaded = path, model
        return model


def check_candidate(candidate: Candidate, max_tokens: int) -> int:
    """The positions that are left for a prompt. Raises UserError if there are none, or if the chat
    template does not take the Follower's prompts."""
    bundle = ModelBundle.load(candidate.path, candidate.chat)
    room = bundle.model.config.max_positions - max_tokens
    if room < 1:
        raise UserError(
            f"--max_tokens={max_tokens} leaves no room for a prompt in the "
            f"{bundle.model.config.max_positions} positions of {candidate.path}"
        )
    try:
        bundle.tokenizer.check_chat(candidate.form.dialogue(["A question."], []))
    except UserError as error:
        raise UserError(f"--model={candidate.path}: {error}") from None
    return room


def judge_loader(path: str, mode: str, dtype: str) -> Callable[[], Judge]:
    """A function that loads the Judger. Raises UserError if its chat template does not take the
    Judger's prompts."""
    bundle = ModelBundle.load(path)
    try:
        bundle.tokenizer.check_chat(judger.messages("a", "b", "c", shots=JUDGE_SHOTS, mode=mode))
    except UserError as error:
        raise UserError(f"--judge={path}: {error}") from None
    loader = Loader(dtype)
    return lambda: as_judge(loader.load(path, None), mode)


def _dtype(options: EvaluateOptions) -> str:
    return options.dtype or accelerator_detection.native_dtype()


def model_subjects(
    options: EvaluateOptions,
    folder: Path | None,
    settings: dict[str, object],
    progress: EvaluationProgress,
) -> tuple[dict[Subject, Respondent], Store]:
    """The models with what answers for them, and the evaluation's folder. settings: see `Store`;
    those of the models and the Judger are added."""
    load_judge = None
    if options.judge:
        load_judge = judge_loader(options.judge, options.judge_mode, _dtype(options))
        settings |= {"judge": _fingerprint(options.judge), "judge_mode": options.judge_mode}
    key = jax.random.key(options.seed)

    def judger_of(label: str, store: Store) -> JudgerVerdicts | None:
        return JudgerVerdicts(label, load_judge, key, store, progress) if load_judge else None

    if options.responses:
        store = Store(folder, settings)
        file = FileRespondent(storage.local(options.responses), judger_of(RESPONSES, store))
        return {Subject(RESPONSES, 0, RESPONSES): file}, store
    others = candidates(options.against, options.format, "against ")
    all_models = [*candidates(options.model, options.format), *others]
    prompt_tokens = {c.label: check_candidate(c, options.max_tokens) for c in all_models}
    for name in ("temperature", "max_tokens", "samples"):
        settings[name] = getattr(options, name)
    settings["dtype"] = _dtype(options)
    for candidate in all_models:
        settings[f"model.{candidate.label}"] = candidate.fingerprint
        settings[f"format.{candidate.label}"] = candidate.form.format
    store, loader = Store(folder, settings), Loader(_dtype(options))
    respondents: dict[Subject, Respondent] = {}
    for c in all_models:
        decoding = Decoding(
            prompt_tokens[c.label], options.max_tokens, SLOTS, c.prefill, options.temperature
        )
        respondents[Subject(c.label, c.run, c.role, c in others)] = ModelRespondent(
            c.label,
            partial(loader.load, c.path, c.chat),
            c.form,
            decoding,
            key,
            options.samples,
            store,
            progress,
            judger_of(c.label, store),
        )
    return respondents, store


def _fingerprint(path: str) -> str:
    """A digest of a model's files, or the name of a model on the hub."""
    local = models.find_local(path)
    return fingerprints.of_model(local) if local and local.exists() else path
