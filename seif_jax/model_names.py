"""Names of models: the embedded model, a path, or a name on the Hugging Face hub.

This module does not import JAX, so that a wrong name is reported at once.
"""

import re
from pathlib import Path

from seif_jax import run_paths
from seif_jax.errors import UserError

EMBEDDED = "smollm2"  # the embedded SmolLM2-135M-Instruct
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # "./model" and "../model" are paths


def is_on_hub(name: str | Path) -> bool:
    """Whether this looks like the name of a model on the hub, and is not a path that exists."""
    return bool(HUB_NAME.fullmatch(str(name))) and not Path(name).expanduser().exists()


def check(name: str | Path | None) -> None:
    """Raises UserError for a path that does not exist, or that is a run's folder or an adapter
    instead of a model. name: None is the embedded model. The hub is not asked whether a name
    exists there."""
    if name in (None, EMBEDDED):
        return
    path = run_paths.local_model(name)
    run_paths.check_model(path)
    if not path.exists() and not is_on_hub(name):
        raise UserError(
            f"{name}: no such file or folder (the embedded model is called {EMBEDDED!r}, a model "
            "on the Hugging Face hub 'ORGANISATION/NAME')"
        )
