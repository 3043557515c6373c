"""The suites by name, and the sources of their data."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from seif_jax.errors import UserError
from seif_jax.evaluate.constraints_suite import ConstraintsSuite
from seif_jax.evaluate.followbench_suite import FollowBenchSuite
from seif_jax.evaluate.ifeval_suite import VerifiableSuite
from seif_jax.evaluate.judge_suite import JudgeSuite
from seif_jax.evaluate.lm_eval_suite import PREFIX as LM_EVAL
from seif_jax.evaluate.lm_eval_suite import LmEvalSuite
from seif_jax.evaluate.multiif_suite import MultiIFSuite
from seif_jax.evaluate.suite import Suite
from seif_jax.evaluate.user_suite import UserSuite

Loader = Callable[[str, str], Suite]  # the suite's name, its data

SUITES: dict[str, tuple[Loader, str | None]] = {  # and the data set on the Hugging Face hub
    "ifeval": (VerifiableSuite.load, "google/IFEval"),
    "ifbench": (VerifiableSuite.load, "allenai/IFBench_test"),
    "multiif": (MultiIFSuite.load, "facebook/Multi-IF"),
    "followbench": (FollowBenchSuite.load, None),
    "constraints": (ConstraintsSuite.load, None),
    "judge": (JudgeSuite.load, None),
}


def load_suite(name: str, data: str | None) -> Suite:
    """The suite with this name, or of the function `module:function`. data: a file or data set to
    use in place of the suite's default.

    Raises UserError for an unknown name, and for a suite without data.
    """
    if name.startswith(LM_EVAL):
        return LmEvalSuite.load(name, data)
    loader, source = find_suite(name, data)
    return loader(name, source)


def find_suite(name: str, data: str | None) -> tuple[Loader, str]:
    """The function that loads a suite other than lm-eval's, and its data. Raises UserError as
    `load_suite` does, and reads nothing."""
    if ":" in name:
        loader, source = UserSuite.load, data
    elif name in SUITES:
        loader, default = SUITES[name]
        source = data or default
    else:
        close = get_close_matches(name, SUITES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        names = ", ".join([*SUITES, "lm-eval:TASK"])
        raise UserError(f"a suite must be one of: {names}, or module:function (got {name!r}){hint}")
    if not source:
        raise UserError(f"the suite {name} needs data: name a file")
    return loader, source


def names_of(texts: Sequence[str]) -> list[str]:
    """The suites of --suite options. After `lm-eval:TASK`, names that are not suites are further
    tasks. Raises UserError if a suite is named twice."""
    names: list[str] = []
    for text in texts:
        prefix = ""
        for name in text.split(","):
            if name in SUITES or ":" in name:
                prefix = LM_EVAL if name.startswith(LM_EVAL) else ""
                names.append(name)
            else:
                names.append(prefix + name)
    if len(set(names)) < len(names):
        raise UserError(f"--suite names a suite twice: {', '.join(names)}")
    return names


def data_of(names: Sequence[str], data: Sequence[str]) -> Mapping[str, str]:
    """{suite: its data} from --data=FILE, or with several suites --data=SUITE=FILE. One folder is
    for all tasks of lm-eval; SUITE is `lm-eval` if there are other suites, too."""
    sources: dict[str, str] = {}
    for text in data:
        suite, assigned, source = text.partition("=")
        owners = [
            n for n in names if n == suite or f"{suite}:" == LM_EVAL and n.startswith(LM_EVAL)
        ]
        if not assigned or not owners:
            owners, source = list(names), text
            if len(names) > 1 and not all(name.startswith(LM_EVAL) for name in names):
                raise UserError(
                    f"--data={text}: with several suites, name the suite: --data=SUITE=FILE"
                )
        if not source:
            raise UserError(f"--data={text} names no file or data set")
        for owner in owners:
            if owner in sources:
                raise UserError(f"--data is given twice for {owner}")
            sources[owner] = source
    return sources


def load_run_suites(names: Sequence[str], limit: int, judged: bool) -> list[Suite]:
    """The suites of config.eval.suites, which are NAME or NAME=DATA. limit: of items per suite; 0
    is all. judged: whether the run has a Judger.

    Raises UserError for a suite that needs a Judger if the run has none.
    """
    suites: list[Suite] = []
    for text in names:
        name, assigned, source = text.partition("=")
        try:
            if assigned and not source:
                raise UserError(f"{text} names no file or data set")
            suite = load_suite(name, source or None)
        except UserError as error:
            raise UserError(f"config.eval.suites: {error}") from None
        if suite.asks_judger and not judged:
            raise UserError(
                f"config.eval.suites: {name} asks a Judger: config.reward.checks must have 'judge'"
            )
        suites.append(suite.limited(limit) if limit else suite)
    if len({suite.name for suite in suites}) < len(suites):
        raise UserError(f"config.eval.suites names a suite twice: {', '.join(names)}")
    return suites
