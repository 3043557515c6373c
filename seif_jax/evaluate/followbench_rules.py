"""FollowBench's rules: the tasks whose replies a program checks, as in its published script.

The levels of a task add one condition each: a reply meets level n if it meets the first n.
"""

import ast
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Test = Callable[[str], bool]


@dataclass(frozen=True)
class LevelRow:
    """A row of FollowBench's files: an example at one of its levels."""

    example_id: int
    source: str
    level: int
    instruction: str
    target: str


def sentences(reply: str) -> list[str]:
    return [part for part in re.split(r"[.!?]", reply) if part]


def _sentences(count: int) -> Test:
    return lambda reply: len(sentences(reply)) == count


def _words(test: Callable[[int], bool]) -> Test:
    return lambda reply: test(len(reply.split(" ")))


def _word(word: str, present: bool = True) -> Test:
    pattern = re.compile(rf"\b{re.escape(word)}\b")
    return lambda reply: bool(pattern.search(reply)) is present


def _in_sentence(number: int, test: Test) -> Test:
    """A test of one sentence, numbered from 1, which must be there."""

    def check(reply: str) -> bool:
        parts = sentences(reply)
        return len(parts) >= number and test(parts[number - 1])

    return check


def _each_sentence(test: Callable[[int], bool]) -> Test:
    """A test of how many words every sentence has."""
    return lambda reply: all(test(len(part.split())) for part in sentences(reply))


def _all(*tests: Test) -> Test:
    return lambda reply: all(test(reply) for test in tests)


def _not(test: Test) -> Test:
    return lambda reply: not test(reply)


def _matches(pattern: str, flags: int = 0) -> Test:
    compiled = re.compile(pattern, flags)
    return lambda reply: compiled.search(reply) is not None


def _punctuation(reply: str) -> int:
    return sum(character in string.punctuation for character in reply)


LEVELS: dict[str, Sequence[Test]] = {  # of a source, or of one example of the format file
    "cnn_dailymail": (
        _sentences(3),
        _each_sentence(lambda words: words < 15),
        _all(
            _in_sentence(1, _word("Potter")),
            _in_sentence(2, _word("actor")),
            _in_sentence(3, _word("films")),
        ),
        _not(_in_sentence(2, _word("lavish"))),
        _in_sentence(3, _matches(r"\b(has|have)\s+\w+")),
    ),
    "xsum": (
        _sentences(1),
        _words(lambda words: words < 20),
        _word("Newton Stewart", present=False),
        _matches(r"\b(am|is|are)\s+\w+ing\b"),
        _word("operation"),
    ),
    "samsum": (
        _sentences(1),
        _words(lambda words: words < 15),
        _word("stuff"),
        _not(_matches("procrast", re.IGNORECASE)),
        lambda reply: _punctuation(reply) == 1,
    ),
    "gigaword": (
        _words(lambda words: words == 8),
        lambda reply: _punctuation(reply) == 0,
        str.islower,
        _word("bus", present=False),
        _word("in"),
    ),
    "arxiv": (
        _sentences(1),
        _words(lambda words: words <= 20),
        lambda reply: reply.startswith("We"),
        _word("activations"),
        _word("transformer", present=False),
    ),
    "format 30": (
        lambda reply: "**" in reply,
        lambda reply: _bold_numbers(reply) == 5,
        lambda reply: all(
            len(part.split(".")) < 3
            for part in _format_30_sentences(reply)
            if any(f"{number}." in part for number in range(1, 6))
        ),
        lambda reply: all(10 <= len(part.split()) <= 15 for part in _format_30_sentences(reply)),
        lambda reply: (
            not any(
                word.endswith("-ly")
                for part in _format_30_sentences(reply)
                for word in part.split()
            )
        ),
    ),
}


def _bold_numbers(reply: str) -> int:
    """The number of matches of `\\*\\*[\\d].+?:`, in linear time."""
    lines = (line.rpartition(":") for line in reply.split("\n"))
    return sum(len(re.findall(r"\*\*\d.+?:", head + colon)) for head, colon, _ in lines)


def _format_30_sentences(reply: str) -> list[str]:
    return re.split(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s", reply)


def _format_22(reply: str, level: int) -> bool:
    """Short numbered paragraphs; at the last level a closing sentence makes one more."""
    paragraphs = reply.split("\n\n")
    tests = (
        len(paragraphs) == (4 if level == 5 else 3),
        all(len(sentences(paragraph)) < 3 for paragraph in paragraphs[:3]),
        _each_sentence(lambda words: words > 20)(reply),
        all(re.match(r"\d+\.", text.lstrip()) for text in paragraphs if text.lstrip()),
        reply.endswith("Those are suggestions"),
    )
    return all(tests[:level])


def _last(pattern: str) -> Callable[[str, str], bool]:
    """The last match in the reply is the target."""
    return lambda reply, target: (re.findall(pattern, reply) or [None])[-1] == target


TARGETS: dict[str, Callable[[str, str], bool]] = {  # of a source: reply and target, at any level
    "E2E": str.__eq__,
    "text_editing": str.__eq__,
    "WIKIEVENTS": lambda reply, target: set(reply.split("\n")) <= set(target.split("\n")),
    "CONLL2003": lambda reply, target: reply in ast.literal_eval(target),
    "BBH_logical": _last(r"\([A-Z]\)"),
    "BBH_time": _last(r"\d{2}/\d{2}/\d{4}"),
    "gsm_8k": _last(r"\$\d+"),
    "self_made_space": lambda reply, target: target in reply,
}


def check(category: str, row: LevelRow, reply: str) -> bool | None:
    """Whether a reply meets all constraints of its level; None if FollowBench asks a model."""
    source, level = row.source, row.level
    if category == "example":
        return _follows_template(row.target, reply)
    if category == "format" and row.example_id == 22:
        return _format_22(reply, level)
    if category == "format" and row.example_id == 30:
        source = "format 30"
    if source in LEVELS:
        return all(test(reply) for test in LEVELS[source][:level])
    return TARGETS[source](reply, row.target) if source in TARGETS else None


def _follows_template(template: str, reply: str) -> bool:
    """Whether the reply has the form of the examples, whatever its answer on that line."""
    form = template.replace("{instruction}\n", "").replace("{{", "{").replace("}}", "}")
    pattern = ".*".join(map(re.escape, form.split("{answer}")))
    return re.fullmatch(pattern, reply) is not None
