"""How varied the Instructor's constraints are: repeats, copied examples, kinds, n-grams."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from seif_jax.instruction import SOFT

# A word; of Chinese, Japanese and Korean, which have no spaces, a character.
WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\W_]+")
NGRAM = 4  # words in a row, by which a constraint is compared with examples
COPIED = 0.8  # of a constraint's n-grams are in an example, numbers aside
FEWEST = 20  # constraints; with fewer, no collapse is reported
COLLAPSE_SHARE = 0.5  # repeats, or copies, from which it is one
COLLAPSE_KINDS = 2.0  # effective kinds, at most


def words(text: str) -> tuple[str, ...]:
    """The words in lower case, without punctuation."""
    return tuple(word.lower() for word in WORD.findall(text))


def ngrams(sequence: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]


def distinct(texts: Iterable[str], n: int, budget_words: int) -> float | None:
    """Distinct-n (Li et al. 2016, arXiv 1510.03055): different n-grams per n-gram.

    It falls as there are more words, so texts are compared at the same `budget_words`: those that
    follow are left out. None if there is no n-gram.
    """
    distinct_ngrams: set[tuple[str, ...]] = set()
    count, left = 0, budget_words
    for text in texts:
        part = ngrams(words(text)[: max(left, 0)], n)
        left -= len(words(text))
        distinct_ngrams.update(part)
        count += len(part)
    return len(distinct_ngrams) / count if count else None


def repeats(texts: Sequence[str]) -> float | None:
    """The share of texts whose words are those of an earlier one, in the same order."""
    return 1 - len({words(text) for text in texts}) / len(texts) if texts else None


def copies(texts: Sequence[str], examples: Iterable[str]) -> float | None:
    """The share of texts that copy one of the examples; None without texts or examples."""
    known = [_shape(example) for example in examples]
    if not texts or not known:
        return None
    return sum(_copies(_shape(text), known) for text in texts) / len(texts)


def _shape(text: str) -> tuple[str, ...]:
    """The words with all numbers made equal, so "at least 3 words" equals "at least 80 words"."""
    return tuple("#" if word.isdecimal() else word for word in words(text))


def _copies(text: tuple[str, ...], examples: Sequence[tuple[str, ...]]) -> bool:
    if text in examples:
        return True
    text_ngrams = ngrams(text, NGRAM)
    return bool(text_ngrams) and any(
        sum(ngram in known for ngram in text_ngrams) >= COPIED * len(text_ngrams)
        for known in ({*ngrams(example, NGRAM)} for example in examples)
    )


def effective_kinds(ids: Iterable[str]) -> float | None:
    """exp of the entropy of the constraints' kinds: how many equally frequent kinds would be as
    varied. Constraints without a rule, whose kind is unknown, are left out; None if all are."""
    counts = Counter(name for name in ids if name != SOFT)
    total = sum(counts.values())
    if not total:
        return None
    return math.exp(-sum(n / total * math.log(n / total) for n in counts.values()))


def collapse(texts: Sequence[str], ids: Sequence[str], examples: Sequence[str]) -> str:
    """The signs that the Instructor's constraints hardly vary, in words; "" if there are none.

    texts: the constraints of a round. ids: of their rules. examples: the constraints in the
    Instructor's few-shot examples.
    """
    if len(texts) < FEWEST:
        return ""
    signs = []
    repeated, copied, kinds = repeats(texts), copies(texts, examples), effective_kinds(ids)
    if repeated is not None and repeated >= COLLAPSE_SHARE:
        signs.append(f"{repeated:.0%} of the constraints repeat another")
    if copied is not None and copied >= COLLAPSE_SHARE:
        signs.append(f"{copied:.0%} copy the examples in the Instructor's prompt")
    known = sum(name != SOFT for name in ids)
    if kinds is not None and known >= FEWEST and kinds <= COLLAPSE_KINDS:
        signs.append(f"those with a rule are as varied as {kinds:.1f} kinds")
    return ", ".join(signs)
