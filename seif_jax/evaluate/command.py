"""`seif evaluate`: scores models, or replies from a file, on benchmarks."""

from collections.abc import Callable, Mapping

from seif_jax import data_files, model_names, run_paths, storage
from seif_jax.errors import UserError
from seif_jax.evaluate import tables
from seif_jax.evaluate.journal import Store
from seif_jax.evaluate.progress import EvaluationProgress
from seif_jax.evaluate.replies_from_file import FileRespondent
from seif_jax.evaluate.result_files import as_json, digest, write_results
from seif_jax.evaluate.statistics import check_pairs
from seif_jax.evaluate.subjects import RESPONSES, Subject
from seif_jax.evaluate.suite import Respondent, Suite
from seif_jax.evaluate.suite_registry import data_of, load_suite, names_of
from seif_jax.evaluate.summary import summarize
from seif_jax.files import output_folder
from seif_jax.json_io import dumps
from seif_jax.options.evaluate import EvaluateOptions


def run(options: EvaluateOptions, start_jax: Callable[[], None]) -> None:
    """Evaluates and prints. start_jax: called before models are loaded, if there are any."""
    options.check()
    check_paths(options)
    suites = load_suites(options)
    fingerprints = {suite.name: digest(suite.fingerprint) for suite in suites}
    if options.limit:
        suites = [suite.limited(options.limit) for suite in suites]
    for suite in suites:
        if options.against:
            check_pairs(suite.size, f"prompts of {suite.name}")
        if suite.asks_judger and not options.judge:
            raise UserError(
                f"--suite={suite.name} has constraints that no rule checks: give --judge=PATH"
            )
    if not options.responses or options.judge:
        start_jax()
    with EvaluationProgress() as progress:
        by_subject, store = respondents(options, fingerprints, progress)
        results = {
            suite.name: {
                subject.label: suite.run(respondent) for subject, respondent in by_subject.items()
            }
            for suite in suites
        }
        for respondent in by_subject.values():
            if isinstance(respondent, FileRespondent):
                _note_unmatched(respondent, progress)
    summaries = {name: summarize(list(by_subject), result) for name, result in results.items()}
    write_results(store, results, summaries)
    if options.json:
        print(dumps(as_json(summaries)))
    else:
        tables.show(summaries)


def check_paths(options: EvaluateOptions) -> None:
    """Raises UserError for a path that is not there or is not a model or, where one is allowed, a
    run's folder."""
    for path in (*options.model, *options.against):
        if not run_paths.read_record(run_paths.local_model(path)):
            model_names.check(path)
    model_names.check(options.judge)
    if options.responses:
        data_files.check_exists(options.responses)


def load_suites(options: EvaluateOptions) -> list[Suite]:
    names = names_of(options.suite)
    sources = data_of(names, options.data)
    return [load_suite(name, sources.get(name)) for name in names]


def respondents(
    options: EvaluateOptions, suites: Mapping[str, str], progress: EvaluationProgress
) -> tuple[dict[Subject, Respondent], Store]:
    """Who answers the suites, and the evaluation's folder. suites: each suite's fingerprint."""
    folder = output_folder(options.out) if options.out else None
    settings: dict[str, object] = {f"suite.{name}": digest for name, digest in suites.items()}
    settings["seed"] = options.seed
    if options.responses and not options.judge:
        file = FileRespondent(storage.local(options.responses))
        return {Subject(RESPONSES, 0, RESPONSES): file}, Store(folder, settings)
    from seif_jax.evaluate.evaluated_models import model_subjects  # brings JAX

    return model_subjects(options, folder, settings, progress)


def _note_unmatched(file: FileRespondent, progress: EvaluationProgress) -> None:
    unmatched = file.total - len(file.matched)
    if unmatched:
        progress.note(f"{unmatched} of {file.total} responses match no prompt of the suites")
