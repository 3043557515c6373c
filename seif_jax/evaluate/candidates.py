"""Which models an evaluation is about, and how each of them is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax

from seif_jax import fingerprints, models, sharding
from seif_jax.chat import ChatModel, Decoding
from seif_jax.chat_template import ChatSettings
from seif_jax.errors import UserError
from seif_jax.evaluate.answer_file import FileRespondent
from seif_jax.evaluate.answer_model import (
    JUDGE_SHOTS,
    SLOTS,
    Form,
    JudgerVerdicts,
    ModelRespondent,
    as_judge,
)
from seif_jax.evaluate.journal import Store
from seif_jax.evaluate.options import EvaluateOptions
from seif_jax.evaluate.progress import EvaluationProgress
from seif_jax.evaluate.subjects import RESPONSES, Subject
from seif_jax.evaluate.suite import Respondent
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.rewards.judge import Judge
from seif_jax.roles import follower, judger
from seif_jax.roles.prompts import load as load_prompts
from seif_jax.run_paths import RunPaths, read_record
from seif_jax.sampling import Engine
from seif_jax.settings import dtype as dtype_of


@dataclass(frozen=True)
class Candidate:
    """A model to be evaluated: `role` is "model", or of a run "base", "round_1", …"""

    label: str
    run: int  # which --model it comes from
    role: str
    path: str
    form: Form
    prefill: str
    chat: ChatSettings | None

    @property
    def fingerprint(self) -> str:
        return _identity(self.path)


def candidates(paths: Sequence[str], format: str | None, prefix: str = "") -> list[Candidate]:
    """The models that paths name: a run's folder stands for its base and the Follower of every
    round that has ended. format: None: as the run's Follower is asked, plain elsewhere."""
    found: list[Candidate] = []
    for i, path in enumerate(paths):
        name = f"{prefix}{path}" if len(paths) > 1 or prefix else ""
        local = models.find_local(path)
        about = read_record(local) if local else None
        found += _of_run(i, name, local, about) if local and about else [_of_path(i, name, path)]
    if format:
        found = [replace(c, form=replace(c.form, format=format)) for c in found]
    return found


def _of_run(i: int, name: str, workdir: Path, about: Mapping[str, Any]) -> list[Candidate]:
    run, config = RunPaths(workdir), about["config"]
    rounds = range(1, config["rounds"] + 1)
    stages = {run.round(round).name: run.stage(round, "follower") for round in rounds}
    trained = {role: stage.folder for role, stage in stages.items() if stage.done.exists()}
    base = config["follower"]["init"] or config["model"] or models.EMBEDDED
    roles = {"base": base} | {role: str(stage) for role, stage in trained.items()}
    form, prefill, chat = _as_asked(workdir, about)
    return [
        Candidate(f"{name}/{role}" if name else role, i, role, where, form, prefill, chat)
        for role, where in roles.items()
    ]


def _of_path(i: int, name: str, path: str) -> Candidate:
    local = models.find_local(path)
    above = [] if not local else [local.resolve(), *local.resolve().parents]
    for folder in above:
        if about := read_record(folder):
            return Candidate(name or path, i, "model", path, *_as_asked(folder, about))
    return Candidate(name or path, i, "model", path, Form(), "", None)


def _as_asked(workdir: Path, about: Mapping[str, Any]) -> tuple[Form, str, ChatSettings]:
    """How a run asks its Follower: form, prefill, and what its chat template is told."""
    config = about["config"]
    role = config["follower"]
    files = sorted(RunPaths(workdir).prompts.glob("follower.*")) if role["prompts"] else []
    told = load_prompts(follower.SCHEMA, str(files[0]), follower.PACKAGED) if files else None
    chat = ChatSettings(config["template_arguments"], datetime.fromisoformat(about["started"]))
    return Form(config["format"], role["shots"], told), role["prefill"], chat


@dataclass
class Loader:
    """Loads one model at a time: the last one is let go of before another comes."""

    dtype: str
    held: tuple[str, ChatModel] | None = None

    def load(self, path: str, chat: ChatSettings | None) -> ChatModel:
        if self.held and self.held[0] == path:
            return self.held[1]
        self.held = None
        bundle = ModelBundle.load(path, chat)
        mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {"data": -1}, jax.devices())
        rule = sharding.sharding_rule(mesh, over=("tensor",))
        kind = dtype_of(self.dtype)
        params = load_params(path, bundle.model, kind, rule=rule)
        model = ChatModel(Engine(bundle.model.config, params, kind), bundle.tokenizer)
        self.held = path, model
        return model


def check_candidate(candidate: Candidate, max_tokens: int) -> int:
    """Positions that are left for a prompt. UserError: the model cannot be asked so."""
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
    """What loads the Judger, once. UserError: it has no chat template that takes its prompts."""
    bundle = ModelBundle.load(path)
    try:
        bundle.tokenizer.check_chat(judger.messages("a", "b", "c", shots=JUDGE_SHOTS, mode=mode))
    except UserError as error:
        raise UserError(f"--judge={path}: {error}") from None
    loader = Loader(dtype)
    return lambda: as_judge(loader.load(path, None), mode)


def model_subjects(
    options: EvaluateOptions,
    folder: Path | None,
    settings: dict[str, Any],
    progress: EvaluationProgress,
) -> tuple[dict[Subject, Respondent], Store]:
    """The models that answer, and the folder that remembers what they and the Judger said."""
    load_judge = None
    if options.judge:
        load_judge = judge_loader(options.judge, options.judge_mode, options.dtype)
        settings |= {"judge": _identity(options.judge), "judge_mode": options.judge_mode}
    key = jax.random.key(options.seed)

    def judger_of(label: str, store: Store) -> JudgerVerdicts | None:
        return JudgerVerdicts(label, load_judge, key, store, progress) if load_judge else None

    if options.responses:
        store = Store(folder, settings)
        file = FileRespondent(Path(options.responses).expanduser(), judger_of(RESPONSES, store))
        return {Subject(RESPONSES, 0, RESPONSES): file}, store
    ours = candidates(options.model, options.format)
    others = candidates(options.against, options.format, "against ")
    rooms = {one.label: check_candidate(one, options.max_tokens) for one in (*ours, *others)}
    for name in ("temperature", "max_tokens", "samples", "dtype"):
        settings[name] = getattr(options, name)
    for one in (*ours, *others):
        settings[f"model.{one.label}"] = one.fingerprint
        settings[f"format.{one.label}"] = one.form.format
    store, loader = Store(folder, settings), Loader(options.dtype)
    respondents: dict[Subject, Respondent] = {}
    for one in (*ours, *others):
        decoding = Decoding(
            rooms[one.label], options.max_tokens, SLOTS, one.prefill, options.temperature
        )
        subject = Subject(one.label, one.run, one.role, one in others)
        respondents[subject] = ModelRespondent(
            one.label,
            partial(loader.load, one.path, one.chat),
            one.form,
            decoding,
            key,
            options.samples,
            store,
            progress,
            judger_of(one.label, store),
        )
    return respondents, store


def _identity(path: str) -> str:
    """What a model is known by: its files, or on the hub its name."""
    local = models.find_local(path)
    return fingerprints.of_model(local) if local and local.exists() else path
