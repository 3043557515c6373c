"""The options of `seif evaluate`, and the checks of their values and combinations."""

from dataclasses import dataclass

from seif_jax.errors import UserError


@dataclass(frozen=True)
class EvaluateOptions:
    """The command's options, which have the same names."""

    model: list[str]
    against: list[str]
    suite: list[str]
    data: list[str]
    responses: str | None
    limit: int | None
    samples: int
    temperature: float
    max_tokens: int
    seed: int
    dtype: str | None  # None: the devices' native one
    format: str | None
    judge: str | None
    judge_mode: str
    out: str | None
    json: bool


def check(options: EvaluateOptions) -> None:
    """Raises UserError for values out of range and for options that exclude each other."""
    if options.responses and (options.model or options.against):
        raise UserError("--responses scores replies from a file: leave out --model and --against")
    for name in ("model", "against"):
        if not all(getattr(options, name)):
            raise UserError(f"--{name} must be a model's path or name (got '')")
    if not options.responses and not options.model:
        raise UserError("give --model=PATH, or --responses=FILE")
    for name in ("samples", "max_tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be 1 or more (got {getattr(options, name)})")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit must be 1 or more (got {options.limit})")
    if options.temperature and not 0.01 <= options.temperature <= 10:
        raise UserError(
            f"--temperature must be 0 or a number from 0.01 to 10 (got {options.temperature})"
        )
    if options.samples > 1 and not options.temperature:
        raise UserError(
            f"--samples={options.samples} greedy replies would all be the same: give --temperature"
        )
    if len(options.against) not in (0, 1, len(options.model)):
        raise UserError(
            f"--against is given {len(options.against)} times and --model {len(options.model)} "
            "times: give one for all, or one for each"
        )
    for name in ("model", "against"):
        paths = getattr(options, name)
        if len(set(paths)) < len(paths):
            raise UserError(f"--{name} names the same model twice")
