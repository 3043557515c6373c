"""Whether a config may continue the run in a folder, and what has changed since the run began."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seif_jax import config_keys, settings
from seif_jax.errors import UserError
from seif_jax.run_paths import RunPaths
from seif_jax.values import Resume

Record = Mapping[str, Any]  # a run's config.json, of which "config" and "fingerprints" are read
MISSING = object()
MAX_SHOWN = 3  # keys in a message


def check_resumable(before: Record, now: Record, workdir: Path) -> None:
    """Raises UserError if the config `now` differs from that of the run in `workdir`, `before`, in
    keys that decide the results which the run already has."""
    refused = list(_refused(before, now, RunPaths(workdir)))
    if refused:
        more = f" (and {len(refused) - MAX_SHOWN} more keys)" if len(refused) > MAX_SHOWN else ""
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(refused[:MAX_SHOWN])}{more}; "
            "give another --workdir"
        )


def _refused(before: Record, now: Record, run: RunPaths) -> Iterator[str]:
    """A phrase for every key that may not change."""
    for key, (there, here) in config_changes(before, now).items():
        entry = config_keys.key(key)
        resume = entry.resume if entry else Resume.FIXED
        if resume is Resume.FREE:
            continue
        reason = f"{_text(there)} there, {_text(here)} here"
        if there == here:
            reason = f"{_text(there)} with other contents there, {_text(here)} here"
        if resume is Resume.LATER and MISSING not in (there, here):
            begun = run.rounds(key.rpartition(".")[0])
            changed = [round for round in begun if not _same_round(round, there, here)]
            if not changed:
                continue
            reason += f", and round {changed[0]} has begun"
        yield f"{key} is {reason}"


def _text(value: object) -> str:
    return "None" if value is MISSING else json.dumps(value)


def _same_round(round: int, there: Any, here: Any) -> bool:
    """Whether two values of `rounds`, or of a role's `epochs`, mean the same for a round."""
    if isinstance(here, list):
        return settings.epochs(there, round) == settings.epochs(here, round)
    return round <= here


def config_changes(before: Record, now: Record) -> dict[str, tuple[Any, Any]]:
    """{key: (value before, value now)} of the keys in which two configs differ.

    A key with a fingerprint on both sides is compared by it alone. Its values may then be equal,
    while the contents of the files that they name are not.
    """
    there, here = config_keys.flat(before["config"]), config_keys.flat(now["config"])
    prints = before.get("fingerprints", {}), now["fingerprints"]
    pairs = {}
    for key in sorted(there.keys() | here.keys()):
        pair = there.get(key, MISSING), here.get(key, MISSING)
        known = all(key in side for side in prints)
        same = prints[0][key] == prints[1][key] if known else pair[0] == pair[1]
        if not same:
            pairs[key] = pair
    return pairs


def record_changes(before: Record, now: Record) -> dict[str, tuple[Any, Any]]:
    """{"config.rounds": (before, now)} of everything in config.json that differs; None: absent."""
    there, here = config_keys.flat(before), config_keys.flat(now)
    pairs = {key: (there.get(key), here.get(key)) for key in sorted(there.keys() | here.keys())}
    return {k: pair for k, pair in pairs.items() if pair[0] != pair[1] and k != "history"}
