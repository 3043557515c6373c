"""A stage's checkpoints, written and read with Orbax."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from seif_jax.errors import UserError
from seif_jax.files import make_folder, os_errors, uninterrupted
from seif_jax.models.io.to_device import single_device
from seif_jax.run_paths import StagePaths

Arrays = PyTree[jax.Array]
Shapes = PyTree[jax.ShapeDtypeStruct | jax.Array]  # of an array, only its shape, dtype, sharding

# Orbax logs every step of a save, and a traceback for every error that it also raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one stage, by step. A step is saved completely or not at all.

    Methods raise UserError, naming the folder, if it cannot be read or written, or if it holds the
    weights of another model.
    """

    def __init__(self, folder: Path, keep: int):
        self._folder = StagePaths(folder).checkpoints
        # An asynchronous save would read buffers that the next step donates.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        with _orbax_errors(self._folder, "no checkpoints can be saved here"):
            make_folder(self._folder)
            self._manager = ocp.CheckpointManager(self._folder.resolve(), options=options)

    def latest(self) -> int | None:
        """The step of the latest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, **trees: Arrays) -> None:
        """Saves trees of arrays under their names (`params`, `optimizer`)."""
        args = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        path = self._folder / str(step)
        with uninterrupted(), _orbax_errors(path, "the checkpoint cannot be saved"):
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def restore(self, step: int, **shapes: Shapes) -> dict[str, Arrays]:
        """Restores the trees of a step by name. shapes: their names, shapes, dtypes and shardings
        (by default one device)."""
        args = {
            name: ocp.args.StandardRestore(_with_sharding(tree)) for name, tree in shapes.items()
        }
        path = self._folder / str(step)
        # If a read of Orbax is interrupted, its event loop prints tracebacks.
        with uninterrupted(), _orbax_errors(path, "the checkpoint cannot be restored"):
            for name, tree in shapes.items():
                _check_shapes(path / name, tree)
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in shapes}

    def close(self) -> None:
        self._manager.close()


@contextlib.contextmanager
def open_checkpoints(folder: Path, keep: int = 1) -> Iterator[Checkpoints]:
    """Opens the checkpoints of the stage in `folder`, of which only the last `keep` are kept."""
    checkpoints = Checkpoints(folder, keep)
    try:
        yield checkpoints
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            checkpoints.close()
        raise
    checkpoints.close()


def _check_shapes(path: Path, shapes: Shapes) -> None:
    """Raises UserError if the stored arrays do not have these names and shapes."""
    metadata = ocp.StandardCheckpointHandler().metadata(epath.Path(path.resolve()))
    saved, expected = _leaf_shapes(metadata), _leaf_shapes(shapes)
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            raise UserError(
                f"{path}: weights of another model: {name} is {saved.get(name, 'absent')}, "
                f"expected {expected.get(name, 'absent')}"
            )


def _leaf_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The leaves' shapes by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


@contextlib.contextmanager
def _orbax_errors(path: Path, problem: str) -> Iterator[None]:
    """Turns Orbax's errors, which may be a bare `Exception`, into a UserError of one line."""
    try:
        with os_errors(path):
            yield
    except (UserError, RuntimeError, ConnectionError, TimeoutError):
        raise  # JAX raises the last three when another process has ended
    except Exception as error:
        text = str(error.args[0] if error.args else type(error).__name__)  # a KeyError quotes it
        reason = " ".join(text.partition(" [tensorstore_spec")[0].split())
        raise UserError(f"{path}: {problem}: {reason[:500]}") from error


def _with_sharding(tree: Shapes) -> Shapes:
    """Gives leaves without a sharding that of a single device."""
    return jax.tree.map(lambda x: x if x.sharding else x.update(sharding=single_device()), tree)
