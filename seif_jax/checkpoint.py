"""A stage's checkpoints, written and read with Orbax.

Orbax keeps checksums of its indices, but not of the arrays' bytes. If bits of an array have flipped
on the disk, Orbax restores it without an error. Each checkpoint therefore contains the digests of
its arrays, and `restore` compares them with the digests of the arrays that it has loaded.
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
# Of an array, only the shape, dtype and sharding are used.
Shapes = PyTree[jax.ShapeDtypeStruct | jax.Array]

RECORDS = "records"  # the item of a checkpoint that describes its trees
KEPT = 2  # how many checkpoints are kept: if the newest one is damaged, the other is used
INCOMPLETE = "*.orbax-checkpoint-tmp*"  # folders of checkpoints that are being written
# Errors that are raised unchanged: they have a clear message already, or their cause is not the
# checkpoint. JAX raises RuntimeError, ConnectionError and TimeoutError when another process ends.
PASSED_ON = (UserError, RuntimeError, ConnectionError, TimeoutError, MemoryError)

# Orbax logs every step of a save, and a traceback for every error that it also raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)
# After an error, Orbax leaves unfinished tasks and coroutines, about which asyncio and Python warn.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


class ArrayRecord(TypedDict):
    """What a checkpoint says about an array."""

    shape: list[int]
    digests: Digests


Records = dict[str, dict[str, ArrayRecord]]  # by tree, and by path in it


class DamagedCheckpoint(UserError):
    """A checkpoint has missing files or changed bytes; the message names it."""


class Checkpoints:
    """The checkpoints of one stage, by step. A step is saved completely or not at all.

    All processes must call the methods. These raise UserError, naming the folder, if it cannot be
    read or written, or if it contains the weights of another model.
    """

    def __init__(self, folder: Path, barrier_secs: int):
        """barrier_secs: how long processes wait for each other at the end of a save."""
        self._folder = StagePaths(folder).checkpoints
        self._saving = 0  # the step of the last save
        self._uploaded: list[int] = []  # the steps that an object store has, if there is one
        self._in_background_since = math.inf  # the `perf_counter` when the last save returned
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
        """Saves trees of arrays under their names (`params`, `optimizer`), and removes existing
        checkpoints of this step and of later ones.

        Returns as soon as the arrays are copied to the host's memory; they are written in the
        background. The next call of any method but `take` raises the background thread's error, if
        there was one. wait: whether to return only when the checkpoint is complete; on CPUs, the
        arrays are then not copied.
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
            for later in later_steps:  # damaged, or saved before the stage was started again
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
        """Metrics of the saves since the last call: the seconds that blocked the caller, the
        seconds in the background, and the bytes that this process saved. If the last save is
        complete, this also uploads it to the object store, if there is one."""
        if not self._manager.is_saving_in_progress():
            with self._save_errors():
                self._upload()
        metrics, self._metrics = self._metrics, _no_save()
        return metrics

    @CLOCK("saving")
    def keep_only(self, step: int) -> None:
        """Removes all other checkpoints, and incomplete ones that a killed process has left."""
        with self._save_errors():
            for other in self.steps():
                if other != step:
                    self._manager.delete(other)
            for incomplete in self._folder.glob(INCOMPLETE) if processes.first() else ():
                remove(incomplete)
            self._upload()

    @CLOCK("loading")
    def restore(self, step: int, **shapes: Shapes) -> dict[str, Arrays]:
        """Returns the trees of a step by name. shapes: for each name, a tree of shapes, dtypes and
        shardings; an array without a sharding is loaded on one device.

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
        """Is called by the background thread when the files of a save are written."""
        secs = time.perf_counter() - self._in_background_since
        self._metrics["secs/save_background"] += max(secs, 0.0)

    def _upload(self) -> None:
        """Makes the object store, if there is one, have the checkpoints that are complete on the
        disk, and no others."""
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
    """A copy of an array on a CPU, whose buffer the next step overwrites; otherwise `x` itself."""
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
    """The records of a checkpoint; {} if an earlier version saved it, without records."""
    if not (path / RECORDS).exists():
        return {}
    item = ocp.JsonCheckpointHandler().restore(epath.Path(path / RECORDS))
    if _checksum(item["trees"]) != item["crc32"]:
        raise DamagedCheckpoint(f"{path} is damaged: bytes of {RECORDS} have changed")
    return item["trees"]


def _load(path: Path, shapes: Shapes) -> Arrays:
    """Reads a tree without the manager, in which a process would wait for others that failed."""
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
    text = str(error.args[0] if error.args else type(error).__name__)  # a KeyError's str has quotes
    return " ".join(text.partition(" [tensorstore_spec")[0].split())[:500]
