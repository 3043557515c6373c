"""A stage's checkpoints, written and read with Orbax.

Orbax keeps checksums of its indices, but not of the arrays' bytes: it restores an array whose bits
have flipped without an error. Each checkpoint therefore contains the digests of its arrays, and
`restore` compares them with those of the arrays that it has loaded.
"""

import contextlib
import errno
import logging
import math
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from seif_jax import processes, storage
from seif_jax.array_digests import Digests, digests, named_leaves
from seif_jax.errors import UserError, and_more, os_error
from seif_jax.files import make_folder, os_errors, remove, uninterrupted
from seif_jax.json_io import dumps
from seif_jax.models.io.to_device import single_device
from seif_jax.run_clock import CLOCK
from seif_jax.run_paths import StagePaths

Arrays = PyTree[jax.Array]
Shapes = PyTree[jax.ShapeDtypeStruct | jax.Array]  # of an array, only its shape, dtype, sharding

RECORDS = "records"  # the item of a checkpoint that describes its trees
KEPT = 2  # checkpoints: if the newest one is damaged, there is another one
INCOMPLETE = "*.orbax-checkpoint-tmp*"  # folders of checkpoints that are being written
# Errors that say nothing about a checkpoint. JAX raises three of them when another process ends.
PASSED_ON = (UserError, RuntimeError, ConnectionError, TimeoutError, MemoryError)

# Orbax logs every step of a save, and a traceback for every error that it also raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)
# After an error, Orbax leaves tasks and coroutines of whose end asyncio and Python complain.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


class ArrayRecord(TypedDict):
    """What a checkpoint says about an array."""

    shape: list[int]
    digests: Digests


Records = dict[str, dict[str, ArrayRecord]]  # by tree, and by path in it


class DamagedCheckpoint(UserError):
    """A checkpoint with missing files or changed bytes; the message names it."""


class Checkpoints:
    """The checkpoints of one stage, by step. A step is saved completely or not at all.

    Methods raise UserError, naming the folder, if it cannot be read or written, or if it holds the
    weights of another model. All processes must call them.
    """

    def __init__(self, folder: Path, barrier_secs: int):
        """barrier_secs: how long processes wait for each other at the end of a save."""
        self._folder = StagePaths(folder).checkpoints
        self._saving = 0  # the step of the last save
        self._uploaded: list[int] = []  # the steps that an object store has, if there is one
        self._in_background_since = math.inf  # seconds of the clock: when the last save returned
        self._metrics = _no_save()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            async_options=ocp.options.AsyncOptions(
                timeout_secs=barrier_secs, post_finalization_callback=self._written
            ),
        )
        with _orbax_errors(self._folder, "no checkpoints can be saved here"):
            make_folder(self._folder)
            self._manager = ocp.CheckpointManager(self._folder.resolve(), options=options)

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, the newest first."""
        self.wait()
        return sorted(self._manager.all_steps(), reverse=True)

    @CLOCK("saving")
    @uninterrupted()
    def save(self, step: int, *, wait: bool = False, **trees: Arrays) -> None:
        """Saves trees of arrays under their names (`params`, `optimizer`), and removes checkpoints
        of later steps.

        Returns as soon as the arrays are copied to the host's memory; they are written in the
        background. An error of the background thread is raised by the next call of any method.
        wait: returns when the checkpoint is complete, without a copy on CPUs.
        """
        later_steps = [later for later in self.steps() if later >= step]
        start, size = time.perf_counter(), _local_bytes(trees)
        records = _records(trees)
        description = {"trees": records, "crc32": _checksum(records)}
        items: dict[str, ocp.args.CheckpointArgs] = {RECORDS: ocp.args.JsonSave(description)}
        if not wait:
            trees = jax.tree.map(_copy_if_shared, trees)
        items |= {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._saving, self._in_background_since = step, math.inf
        with self._save_errors():
            for later in later_steps:  # damaged, or from before the stage was started again
                self._manager.delete(later)
            if later_steps:
                self._upload()
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._in_background_since = time.perf_counter()
        self._metrics["secs/save_blocking"] += self._in_background_since - start
        self._metrics["host/save_bytes"] += size
        if wait:
            self.wait()

    @CLOCK("saving")
    @uninterrupted()
    def wait(self) -> None:
        """Returns when the last save is complete."""
        start = time.perf_counter()
        with self._save_errors():
            self._manager.wait_until_finished()
            self._upload()
        self._metrics["secs/save_blocking"] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Metrics of the saves since the last call: seconds that blocked the caller, seconds in the
        background, and the bytes that this process wrote. A save that has ended is uploaded."""
        if not self._manager.is_saving_in_progress():
            with self._save_errors():
                self._upload()
        metrics, self._metrics = self._metrics, _no_save()
        return metrics

    @CLOCK("saving")
    def keep_only(self, step: int) -> None:
        """Removes all other checkpoints, also incomplete ones that a kill has left."""
        with self._save_errors():
            for other in self.steps():
                if other != step:
                    self._manager.delete(other)
            for incomplete in self._folder.glob(INCOMPLETE) if processes.first() else ():
                remove(incomplete)
            self._upload()

    @CLOCK("loading")
    def restore(self, step: int, **shapes: Shapes) -> dict[str, Arrays]:
        """Restores the trees of a step by name. shapes: their names, shapes, dtypes and shardings
        (by default one device).

        Raises DamagedCheckpoint, in all processes, if files are missing or bytes have changed.
        Checkpoints of earlier versions have no digests; changed bytes go unnoticed in them.
        """
        self.wait()
        path, error = self._folder / str(step), None
        records: Records = {}
        loaded: dict[str, Arrays] = {}
        try:
            # If a read of Orbax is interrupted, its event loop prints tracebacks.
            with uninterrupted(), _restore_errors(path):
                records = _read_records(path)
                for name, tree in shapes.items():
                    _check_shapes(path / name, tree, records.get(name))
                    loaded[name] = _load(path / name, tree)
        except UserError as caught:
            error = caught
        errors = [error for error in processes.allgather_objects(error) if error]
        if errors:
            raise errors[0]
        _check_digests(path, loaded, records)
        return loaded

    @CLOCK("saving")
    def close(self) -> None:
        """Waits until the last save is complete."""
        with self._save_errors():
            self._manager.close()
            self._upload()

    def _written(self) -> None:
        """Called in the background when the files of a save are written."""
        secs = time.perf_counter() - self._in_background_since
        self._metrics["secs/save_background"] += max(secs, 0.0)

    def _upload(self) -> None:
        """Gives an object store the checkpoints that are complete on the disk, and no others."""
        steps = StagePaths(self._folder.parent).steps()
        if steps != self._uploaded:
            storage.upload_new(self._folder, map(str, steps))
            self._uploaded = steps

    def _save_errors(self) -> contextlib.AbstractContextManager[None]:
        return _orbax_errors(self._folder / str(self._saving), "the checkpoint cannot be saved")


@contextlib.contextmanager
def open_checkpoints(folder: Path, barrier_secs: int = 1200) -> Iterator[Checkpoints]:
    """Opens the checkpoints of the stage in `folder`, of which only the last `KEPT` are kept."""
    checkpoints = Checkpoints(folder, barrier_secs)
    try:
        yield checkpoints
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            checkpoints.close()
        raise
    checkpoints.close()


def _no_save() -> dict[str, float]:
    return {"secs/save_blocking": 0.0, "secs/save_background": 0.0, "host/save_bytes": 0}


def _local_bytes(tree: Arrays) -> int:
    """The bytes that this process saves: one copy of each shard."""
    shards = [shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)


def _copy_if_shared(x: jax.Array) -> jax.Array:
    """A copy if the host sees the array itself, in a buffer that the next step overwrites."""
    shared = any(device.platform == "cpu" for device in x.sharding.device_set)
    return x.copy() if shared else x


def _records(trees: Mapping[str, Arrays]) -> Records:
    records: Records = {}
    for name, tree in trees.items():
        by_path = digests(tree)
        records[name] = {
            path: ArrayRecord(shape=[*x.shape], digests=by_path[path])
            for path, x in named_leaves(tree).items()
        }
    return records


def _checksum(records: Records) -> int:
    return zlib.crc32(dumps(records, sort_keys=True).encode())


def _read_records(path: Path) -> Records:
    """The records of a checkpoint; {} if it is of an earlier version, which had none."""
    if not (path / RECORDS).exists():
        return {}
    item = ocp.JsonCheckpointHandler().restore(epath.Path(path / RECORDS))
    if _checksum(item["trees"]) != item["crc32"]:
        raise DamagedCheckpoint(f"{path} is damaged: bytes of {RECORDS} have changed")
    return item["trees"]


def _load(path: Path, shapes: Shapes) -> Arrays:
    """Reads a tree, not through the manager: there, a process would wait for failed ones."""
    tree = jax.tree.map(lambda x: x if x.sharding else x.update(sharding=single_device()), shapes)
    arguments = ocp.args.StandardRestore(tree)
    return ocp.StandardCheckpointHandler().restore(epath.Path(path.resolve()), args=arguments)


def _check_shapes(path: Path, shapes: Shapes, records: dict[str, ArrayRecord] | None) -> None:
    """Raises UserError if the stored arrays do not have these names and shapes."""
    if records:
        saved = {name: tuple(record["shape"]) for name, record in records.items()}
    else:
        metadata = ocp.StandardCheckpointHandler().metadata(epath.Path(path.resolve()))
        saved = {name: x.shape for name, x in named_leaves(metadata).items()}
    expected = {name: x.shape for name, x in named_leaves(shapes).items()}
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            raise UserError(
                f"{path}: weights of another model: {name} is {saved.get(name, 'absent')}, "
                f"expected {expected.get(name, 'absent')}"
            )


def _check_digests(path: Path, trees: Mapping[str, Arrays], records: Records) -> None:
    """Raises DamagedCheckpoint if the digest of an array is not the recorded one."""
    changed = []
    for name in trees.keys() & records.keys():
        for leaf, by_dtype in digests(trees[name]).items():
            recorded = records[name][leaf]["digests"]
            if any(recorded.get(dtype, digest) != digest for dtype, digest in by_dtype.items()):
                changed.append(f"{name}/{leaf}")
    if changed:
        names = f"{min(changed)}{and_more(changed)}"
        raise DamagedCheckpoint(f"{path} is damaged: bytes of {names} have changed")


@contextlib.contextmanager
def _orbax_errors(path: Path, problem: str) -> Iterator[None]:
    """Turns Orbax's errors, which may be a bare `Exception`, into a UserError of one line."""
    try:
        with os_errors(path):
            yield
    except PASSED_ON:
        raise
    except Exception as error:
        raise UserError(f"{path}: {problem}: {_reason(error)}") from error


@contextlib.contextmanager
def _restore_errors(path: Path) -> Iterator[None]:
    """Turns Orbax's errors into DamagedCheckpoint, and those of the operating system into a
    UserError, except that of a missing file."""
    try:
        yield
    except PASSED_ON:
        raise
    except Exception as error:
        cause = os_error(error)
        if cause and cause.errno != errno.ENOENT:
            raise UserError(f"{path}: {cause.strerror}") from error
        raise DamagedCheckpoint(f"{path} is damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error.args[0] if error.args else type(error).__name__)  # a KeyError quotes it
    return " ".join(text.partition(" [tensorstore_spec")[0].split())[:500]
