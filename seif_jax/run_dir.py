"""A run's folder: what it says about the run, and whether a config may go on with it."""

import contextlib
import importlib.metadata
import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from seif_jax import __version__, config_keys, fingerprints, metrics, processes, settings
from seif_jax.checkpoint import ModelBundle
from seif_jax.errors import UserError
from seif_jax.files import (
    follow,
    make_folder,
    occupied,
    os_errors,
    read_text,
    remove,
    sole_use,
    write_json,
    write_text,
)
from seif_jax.metrics import Writer
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import ABOUT, BASE, DONE, read_about
from seif_jax.values import Resume

PROMPTS = "prompts"  # folder of the files that stand for the packaged prompts of some roles
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "if-verifiable")
CONTENTS = (ABOUT, BASE, PROMPTS, "metrics.jsonl", "tensorboard", "report", "round_*")
SHOWN = 3  # keys in a message


def start_time(workdir: Path) -> str:
    """When the run began, in ISO format: as its folder says, or now. Chat templates that write the
    date write this one, so a run that is resumed on another day asks the same. Of several processes
    the first one's clock counts."""
    held = read_about(workdir) or {}
    now = datetime.now().isoformat(timespec="seconds")
    return processes.allgather_objects(held.get("started", now))[0]


@contextlib.contextmanager
def open_run(
    config: RunConfig, workdir: Path, base: ModelBundle, prints: dict[str, str], started: str
) -> Iterator[Writer]:
    """Makes the run's folder, or makes sure that this config may go on with the run in it; yields
    what writes the run's metrics.

    A new run that a UserError ends before its first metrics leaves nothing behind, so that the
    mended command can have the folder.

    prints: `fingerprints.of_run` of what the config's paths name; started: `start_time`.
    Raises UserError if the config may not go on there, another process is running there, or the
    folder cannot be written.
    """
    with os_errors(workdir):
        made, new = not workdir.exists(), processes.first() and not occupied(workdir)
    writer = None
    with _alone(workdir, new):
        try:
            if processes.first():
                _make(config, workdir, base, prints, started)
            processes.wait(f"{workdir}: open")
            writer = Writer(workdir)
            yield writer
        except UserError:
            if new and not (writer and writer.written):
                with contextlib.suppress(OSError):  # the user's own error is the one to report
                    _discard(workdir, made)
            raise
        finally:
            if writer:
                writer.close()


@contextlib.contextmanager
def _alone(workdir: Path, new: bool) -> Iterator[None]:
    """Makes the folder of a new run, and keeps another `seif run` out of it. Of several processes
    of one run, the first one does."""
    with contextlib.ExitStack() as stack:
        if processes.first() and (new or workdir.is_dir()):
            make_folder(workdir)
            stack.enter_context(sole_use(workdir))
        yield


def _discard(workdir: Path, made: bool) -> None:
    """Removes what a run has written; also the folder, if the run `made` it and nothing else is
    there."""
    for pattern in CONTENTS:
        for path in workdir.glob(pattern):
            remove(path)
    if made:
        follow(workdir).rmdir()


def _make(
    config: RunConfig, workdir: Path, base: ModelBundle, prints: dict[str, str], started: str
) -> None:
    """Makes what is missing of the folder, and records what is new."""
    path, held = workdir / ABOUT, read_about(workdir)
    about = {
        "config": config_keys.as_json(config),
        "fingerprints": prints,
        "started": started,
        "packages": {
            "seif_jax": __version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "git_commit": _git_commit(),
        "devices": [str(device) for device in jax.devices()],
    }
    if not held:
        if occupied(workdir):
            what = "holds other files and no run" if workdir.is_dir() else "is a file"
            raise UserError(f"{workdir} {what}; give another --workdir")
        write_json(path, {**about, "history": []})
    else:
        check_resumable(held, about, workdir)
        changes = _changes(held, about)
        if changes and not all(stages_done(config, workdir)):
            entry = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "after": last_step(workdir),
                "changes": changes,
            }
            write_json(path, {**about, "history": [*held.get("history", []), entry]})
    if not (workdir / BASE).is_dir():
        base.save(workdir / BASE, settings.lora(config))
    keep_prompts(config, workdir)


def keep_prompts(config: RunConfig, workdir: Path) -> None:
    """Copies the files of the roles' prompts into the run's folder."""
    for role in settings.ROLES:
        if path := config.role(role).prompts:
            path = Path(path).expanduser()
            copy = workdir / PROMPTS / f"{role}{path.suffix}"
            if not copy.exists():
                write_text(copy, read_text(path))


def check_resumable(held: Any, wanted: Any, workdir: Path) -> None:
    """Raises UserError if a run's config differs in keys that decide the results it already has.

    held, wanted: {"config": nested dicts, "fingerprints": dict} of the run and of the config that
    is to go on with it.
    """
    refused = []
    for key, there, here in fingerprints.changes(held, wanted):
        entry = config_keys.key(key)
        resume = entry.resume if entry else Resume.FIXED
        if resume is Resume.FREE:
            continue
        reason = f"{there} there, {here} here"
        if there == here:
            reason = f"{there} with other contents there, {here} here"
        if resume is Resume.LATER and there and here:
            begun = _begun(workdir, key.rpartition(".")[0] or "*")
            values = json.loads(there), json.loads(here)
            changed = [round for round in begun if not _same(round, *values)]
            if not changed:
                continue
            reason += f", and round {changed[0]} has begun"
        refused.append(f"{key} is {reason}")
    if refused:
        more = f" (and {len(refused) - SHOWN} more keys)" if len(refused) > SHOWN else ""
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(refused[:SHOWN])}{more}; "
            "give another --workdir"
        )


def _same(round: int, there: Any, here: Any) -> bool:
    """Whether two values of `rounds`, or of a role's `epochs`, ask the same of a round."""
    if isinstance(here, list):
        return settings.epochs(there, round) == settings.epochs(here, round)
    return round <= here


def _begun(workdir: Path, stage: str) -> list[int]:
    """The rounds in which a stage has begun, in order; stage "*": any."""
    names = {path.parent.name for path in workdir.glob(f"round_*/{stage}")}
    numbers = [name.removeprefix("round_") for name in names]
    return sorted(int(number) for number in numbers if number.isdecimal())


def _changes(held: Any, about: Any) -> dict[str, tuple[Any, Any]]:
    """{"config.rounds": (before, now)} of everything that config.json says of a run."""
    before, now = config_keys.flat(held), config_keys.flat(about)
    names = sorted(before.keys() | now.keys())
    changes = {name: (before.get(name), now.get(name)) for name in names}
    return {
        name: pair for name, pair in changes.items() if pair[0] != pair[1] and name != "history"
    }


def stages_done(config: RunConfig, workdir: Path) -> list[bool]:
    """Of every stage of the run, in order, whether it has ended."""
    return [
        (workdir / f"round_{round}" / stage / DONE).exists() for round, stage in config.schedule
    ]


def last_step(workdir: Path) -> dict[str, Any] | None:
    """Where the run is: round, stage and step of its last line of metrics; None: nowhere yet."""
    path = workdir / "metrics.jsonl"
    lines = metrics.read(path) if path.exists() else []
    return {key: lines[-1][key] for key in ("round", "stage", "step")} if lines else None


def _git_commit() -> str | None:
    """The commit of the clone that this package is part of; None: it is installed from a wheel, or
    there is no git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked = [*git, "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        if subprocess.run(tracked, capture_output=True, check=False).returncode:
            return None
        head = [*git, "rev-parse", "HEAD"]
        return subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        return None
