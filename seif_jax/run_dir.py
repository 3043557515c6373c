"""Opens a run's folder: makes it, or checks that the config may continue the run in it."""

import contextlib
import importlib.metadata
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import jax

from seif_jax import (
    __version__,
    config_checks,
    config_parsing,
    metrics_log,
    processes,
    stage_settings,
    storage,
)
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
from seif_jax.metrics_log import Writer
from seif_jax.model_bundle import ModelBundle
from seif_jax.resume import check_resumable, record_changes
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import RunPaths, read_record

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "if-verifiable")


def start_time(workdir: Path) -> str:
    """When the run began, in ISO format: as recorded in its folder, or now for a new run.

    Chat templates that write the date write this one, so that the prompts of a run that is resumed
    on another day stay the same. With several processes, the first one's clock counts.
    """
    record = read_record(workdir) or {}
    now = datetime.now().isoformat(timespec="seconds")
    return processes.allgather_objects(record.get("started", now))[0]


@contextlib.contextmanager
def open_run(
    config: RunConfig, workdir: Path, base: ModelBundle, prints: dict[str, str], started: str
) -> Iterator[Writer]:
    """Makes the run's folder, or checks that this config may continue the run in it. Yields the
    writer of the run's metrics.

    A new run that ends with a UserError before its first metrics leaves nothing behind, so that the
    corrected command can use the same folder.

    prints: the run's fingerprints, `fingerprints.of_run`. started: `start_time`.
    Raises UserError if the config may not continue the run, if another process is running it, or if
    the folder cannot be written.
    """
    with os_errors(workdir):
        new_folder, new_run = not workdir.exists(), processes.first() and not occupied(workdir)
    writer = None
    with _locked(workdir, new_run):
        try:
            if processes.first():
                _record(config, workdir, base, prints, started)
            processes.wait(f"{workdir}: open")
            writer = Writer(workdir)
            yield writer
        except UserError:
            if new_run and not (writer and writer.written):
                with contextlib.suppress(OSError):  # the user's own error is the one to report
                    _discard(workdir, new_folder)
            raise
        finally:
            if writer:
                writer.close()


@contextlib.contextmanager
def _locked(workdir: Path, new: bool) -> Iterator[None]:
    """Makes the folder of a new run, and locks the folder against other `seif run` commands. Only
    the first process of a run does so."""
    with contextlib.ExitStack() as stack:
        if processes.first() and (new or workdir.is_dir()):
            make_folder(workdir)
            stack.enter_context(sole_use(workdir))
        yield


def _discard(workdir: Path, new_folder: bool) -> None:
    """Removes the files that a run has written, and the folder too if it is a `new_folder`."""
    for path in RunPaths(workdir).contents():
        remove(path)
    if new_folder:
        follow(workdir).rmdir()


def _record(
    config: RunConfig, workdir: Path, base: ModelBundle, prints: dict[str, str], started: str
) -> None:
    """Writes config.json, the base model's config and the prompts unless they are there. What has
    changed since the last start goes into the history in config.json."""
    run, old = RunPaths(workdir), read_record(workdir)
    record = {
        "config": config_parsing.as_json(config),
        "fingerprints": prints,
        "started": started,
        "packages": {
            "seif_jax": __version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "git_commit": _git_commit(),
        "devices": [str(device) for device in jax.devices()],
    }
    if not old:
        if occupied(workdir):
            fault = "holds other files and no run" if workdir.is_dir() else "is a file"
            raise UserError(f"{workdir} {fault}; give another --workdir")
        write_json(run.config, {**record, "history": []})
    else:
        check_resumable(old, record, workdir)
        changes = record_changes(old, record)
        if changes and not all(stages_done(config, workdir)):
            entry = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "after": last_step(workdir),
                "changes": changes,
            }
            write_json(run.config, {**record, "history": [*old.get("history", []), entry]})
    if not run.base_model.is_dir():
        base.save(run.base_model, stage_settings.lora(config))
    keep_prompts(config, workdir)


def keep_prompts(config: RunConfig, workdir: Path) -> None:
    """Copies the user's prompt files into the run's folder."""
    for role in config_checks.ROLES:
        if path := config.role(role).prompts:
            path = storage.local(path)
            copy = RunPaths(workdir).prompts / f"{role}{path.suffix}"
            if not copy.exists():
                write_text(copy, read_text(path))


def stages_done(config: RunConfig, workdir: Path) -> list[bool]:
    """Whether each stage of the run has ended, in order."""
    run = RunPaths(workdir)
    return [run.stage(round, stage).done.exists() for round, stage in config.schedule]


def last_step(workdir: Path) -> metrics_log.Line | None:
    """Round, stage and step of the run's last line of metrics; None if it has none yet."""
    lines = metrics_log.read(RunPaths(workdir).metrics)
    return {key: lines[-1][key] for key in ("round", "stage", "step")} if lines else None


def _git_commit() -> str | None:
    """The commit of the clone that this package is in; None for an installed wheel or without
    git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked = [*git, "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        if subprocess.run(tracked, capture_output=True, check=False).returncode:
            return None
        head = [*git, "rev-parse", "HEAD"]
        return subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        return None
