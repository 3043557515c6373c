"""The error that a user can mend: one clear line, exit code 2, no traceback."""


class UserError(ValueError):
    """Wrong usage or input; the message names the file, key, row, shape or number at fault."""


class RunError(RuntimeError):
    """A run that must not go on, for a reason in its data or model: one line, exit code 1."""


def shown(value: object, limit: int = 80) -> str:
    """The value as Python writes it, cut short: for messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
