"""The error that a user can mend: one clear line, exit code 2, no traceback."""


class UserError(ValueError):
    """Wrong usage or input; the message names the file, key, row, shape or number at fault."""


class RunError(RuntimeError):
    """A run that must not go on, for a reason in its data or model: one line, exit code 1."""
