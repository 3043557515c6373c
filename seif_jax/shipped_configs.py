"""The configs and sweeps that come with the package, by name, in a clone and in a wheel."""

import re
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


def folder(kind: str) -> Path:
    """The folder of the shipped "configs" or "sweeps": inside the wheel, or at the clone's top."""
    inside = ASSETS / kind
    return inside if inside.is_dir() else Path(__file__).parents[1] / kind


def names(kind: str) -> list[str]:
    return sorted(path.stem for path in folder(kind).glob("*.py"))


def find(kind: str, name: str) -> Path | None:
    """The shipped file of that name, without its ending; None: there is none."""
    path = folder(kind) / f"{name}.py"
    return path if re.fullmatch(r"\w+", name) and path.is_file() else None
