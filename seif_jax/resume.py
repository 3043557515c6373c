"""Decides whether a config may continue the run in a folder, and lists what has changed."""

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from seif_jax import config_parsing, run_config
from seif_jax.errors import UserError
from seif_jax.run_config import RunConfig
from seif_jax.run_paths import Record, RunPaths, read_record

# A key that changes what a run computes is fixed once the run has begun. These change results at
# most by rounding, and may change at any time.
FREE = (
    "checkpoint.*",
    "distributed.*",
    "eval.*",
    "filter.batch_size",
    "follower.micro_tokens",
    "instructor.micro_tokens",
    "judger.batch_size",
    "judger.devices",
    "judger.max_no_verdict",
    "mesh.*",
    "remat",
    "sample_batch",
    "sample_memory",
    "scan_weights",
)
# These may change for rounds that have not begun.
LATER = ("rounds", "follower.epochs", "instructor.epochs")

Changes = dict[str, tuple[object, object]]  # {key: (old value, new value)}
MISSING = object()  # the value of a key that a config does not have
MAX_SHOWN = 3  # keys in a message


def check_workdir(config: RunConfig, workdir: Path) -> None:
    """Raises UserError if `workdir` is a file, or holds a run that cannot be resumed with this
    config. The contents of files that keys name are not compared."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; give another --workdir")
    if record := read_record(workdir):
        prints = record.get("fingerprints", {})
        check_resumable(
            record, {"config": config_parsing.as_json(config), "fingerprints": prints}, workdir
        )


def check_resumable(old: Record, new: Record, workdir: Path) -> None:
    """Raises UserError if the run in `workdir` began with the record `old` and the keys in which
    the record `new` differs would change results that the run already has."""
    refused = list(_refused(old, new, RunPaths(workdir)))
    if refused:
        more = f" (and {len(refused) - MAX_SHOWN} more keys)" if len(refused) > MAX_SHOWN else ""
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(refused[:MAX_SHOWN])}{more}; "
            "give another --workdir"
        )


def _refused(old: Record, new: Record, run: RunPaths) -> Iterator[str]:
    """A phrase for each key that changed and must not change."""
    for key, (old_value, new_value) in config_changes(old, new).items():
        exists = config_parsing.values_of_key(key) is not None  # False: it is of another version
        if exists and is_one_of(key, FREE):
            continue
        reason = f"{_text(old_value)} there, {_text(new_value)} here"
        if old_value == new_value:
            reason = f"{_text(old_value)} with other contents there, {_text(new_value)} here"
        if exists and is_one_of(key, LATER) and MISSING not in (old_value, new_value):
            begun = run.rounds(key.rpartition(".")[0])
            changed = [n for n in begun if not _same_in_round(n, old_value, new_value)]
            if not changed:
                continue
            reason += f", and round {changed[0]} has begun"
        yield f"{key} is {reason}"


def is_one_of(key: str, patterns: Sequence[str]) -> bool:
    """Whether a key matches one of the patterns, in which `*` stands for any text."""
    return any(fnmatch(key, pattern) for pattern in patterns)


def _text(value: object) -> str:
    return "None" if value is MISSING else json.dumps(value)


def _same_in_round(round: int, old: object, new: object) -> bool:
    """Whether two values of `rounds`, or of a role's `epochs`, mean the same for a round."""
    if isinstance(old, list) and isinstance(new, list):
        return run_config.epochs(old, round) == run_config.epochs(new, round)
    return isinstance(new, int) and round <= new


def config_changes(old: Record, new: Record) -> Changes:
    """The config keys whose values, or the contents that the values name, differ.

    A key with a fingerprint in both records is compared by its fingerprint alone, so its two values
    may be equal paths whose files differ.
    """
    old_values, new_values = config_parsing.flat(old["config"]), config_parsing.flat(new["config"])
    old_prints, new_prints = old.get("fingerprints", {}), new["fingerprints"]
    changes: Changes = {}
    for key in sorted(old_values.keys() | new_values.keys()):
        values = old_values.get(key, MISSING), new_values.get(key, MISSING)
        if key in old_prints and key in new_prints:
            same = old_prints[key] == new_prints[key]
        else:
            same = values[0] == values[1]
        if not same:
            changes[key] = values
    return changes


def record_changes(old: Record, new: Record) -> Changes:
    """All keys of config.json that differ except its history, {"config.rounds": (3, 4)}; the value
    of an absent key is None."""
    old_values, new_values = config_parsing.flat(old), config_parsing.flat(new)
    keys = sorted((old_values.keys() | new_values.keys()) - {"history"})
    pairs = {key: (old_values.get(key), new_values.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
