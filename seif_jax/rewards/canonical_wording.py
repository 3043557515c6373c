"""A canonical form of English constraints, so that few patterns cover many wordings.

"Your answer shouldn't contain more than fifty words." becomes "@ must have at most 50 words". The
rewrites are a table, applied in order. Each rewrite keeps the meaning of every sentence. A wording
that no rewrite covers is unchanged, so that no pattern of `recogniser_patterns`
matches it.
"""

import re
from typing import NamedTuple

from seif_jax.rewards.text_units import straighten

_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBERS = {word: value for value, word in enumerate(_UNITS)}
_NUMBERS |= {word: 10 * value for value, word in enumerate(_TENS, start=2)}
_NUMBERS |= {
    f"{ten}{joint}{unit}": _NUMBERS[ten] + _NUMBERS[unit]
    for ten in _TENS
    for unit in _UNITS[1:10]
    for joint in "- "
}
_NUMBERS |= {f"{one} hundred": 100 for one in ("a", "one")}
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()

# A single quote inside a word is an apostrophe.
_QUOTED = re.compile(r"\"([^\"]+)\"|`([^`]+)`|(?<!\w)'((?:[^']|(?<=\w)'(?=\w))+)'(?!\w)")
QUOTE = r"‹\d+›"

# Labels that name a kind of constraint and no part of the reply: "Sentence length: at most 20
# words" and "Title: in all caps" are not about the entire reply and keep their label.
_LABELS = r"""(?:word|sentence|paragraph|bullet(?: point)?) count(?: constraint| limit)?|word limit
(?:response |word )?length(?: constraint| limit)?|(?:letter|keyword|word) frequency
lexical(?: content)? constraint|(?:element|format|rule|language)(?: constraint)|fundamental format
(?:response|output) (?:format|language)|punctuation|exact ending
(?:required )?(?:key)?words?(?=.*‹)""".replace("\n", "|")
# Labels that are demands themselves, with the kind of sentence that repeats the demand.
DEMANDS = {
    "no comma": "no_comma",
    "no commas": "no_comma",
    "english all lowercase": "lowercase",
    "english all caps": "capitals",
    "all-caps word frequency": "capital_words",
}
_LABEL = re.compile(rf"({_LABELS}|{'|'.join(DEMANDS)})\s*(?::|-(?=\s))\s*")

_WHOLE = r"(?:entire |whole |full |complete )"
_IMPERATIVES = """add answer avoid begin choose conclude contain employ enclose end feature finish
format give have highlight include incorporate keep limit make mention place provide put refrain
reply respond restrict start surround use wrap write""".split()
_HAVE = r"(?:contain|include|use|feature|incorporate|employ|comprise|consist of|write|provide)"
_LESS, _MORE = r"(?:less|fewer|lower|shorter|smaller)", r"(?:more|greater|longer|higher)"

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\b(do|does|should|must|need)n't\b", r"\1 not"),
        (r"\b(?:can't|cannot|can not|may not)\b", "must not"),
        (r"\b(?:should|shall|has to|have to|needs to|need to|is to|will|is required to)\b", "must"),
        (r"\b(?:please|also|strictly) ", ""),
        (r"(?<=\d),(?=\d{3}\b)", ""),
        (r"\ba single (?=word|sentence)", "1 "),
        (r"\bonce\b", "1 times"),
        (r"\btwice\b", "2 times"),
        (r"\bthrice\b", "3 times"),
        (r"\b1 time\b", "1 times"),
        (r"\ball-caps\b", "all caps"),
        (r"\bupper-?case\b|\bupper case\b", "uppercase"),
        (r"\blower-?case\b|\blower case\b", "lowercase"),
        # the reply becomes @
        (rf"\b(?:the|your|this) {_WHOLE}?(?:response|answer|reply|output)(?: text)?\b", "@"),
        (rf"\b{_WHOLE}(?:response|reply|output)\b", "@"),
        (rf"\b(?:the|your|this) {_WHOLE}(?:text|message|content)\b", "@"),
        (r"\b(in|throughout) (?:the|your) text\b", r"\1 @"),
        (r"^(?:ensure|make sure|be sure|remember)(?: that| to)? ", ""),
        (r"^@ is ", "@ must be "),
        (r"^@ (?:does |do )?(not )?(contain|include|use|end|exceed|have)s?\b", r"@ must \1\2"),
        (r"^@ has\b", "@ must have"),
        (r"^(?:in|within|throughout|across) @,? ", ""),
        (r"\b(?:anywhere )?(?:in|within|throughout|across|for) (?:any part of )?(?:@|it)$", ""),
        (r"\b(?:in|within|throughout) (?:any part of )@", ""),
        (r" (?:long|in length|in total|overall|anywhere|at all)$", ""),
        (r"^(?:you )?must ", "@ must "),
        (r"^(?:do not|never) ", "@ must not "),
        (rf"^({'|'.join(_IMPERATIVES)}) ", r"@ must \1 "),
        (r"^there must (not )?be ", r"@ must \1have "),
        (rf"^@ must (not )?(?:be (?:composed|made up) of|{_HAVE})\b", r"@ must \1have"),
        (r"^@ must (?:have|give) @ (?=in |within |without |only |entirely )", "@ must be written "),
        (r"^@ must (?:answer|respond|reply)(?: with| using)\b", "@ must have"),
        (r"^(?:mandatory use of|requires including) ", "@ must have "),
        # numbers and relations
        (r"^@ must have no more than (?=\d)", "@ must have at most "),
        (rf"^@ must not (have|be) {_MORE} than (?=\d)", r"@ must \1 at most "),
        (rf"^@ must not (have|be) {_LESS} than (?=\d)", r"@ must \1 at least "),
        (r"\bmust not (?:exceed|go over|surpass) (?=\d)", "must be at most "),
        (r"\bmust exceed (?=\d)", "must be more than "),
        (rf"\b(?:no|not) {_MORE} than (?=\d)", "at most "),
        (rf"\b(?:no|not) {_LESS} than (?=\d)", "at least "),
        (r"\b(?:not exceeding|not to exceed|up to|limited to|within) (?=\d)", "at most "),
        (r"\b(?:a )?max(?:imum)?(?: of)? (?=\d)", "at most "),
        (r"\b(?:a )?min(?:imum)?(?: of)? (?=\d)", "at least "),
        (rf"\b(?:{_LESS} than|under|below) (?=\d)", "less than "),
        (rf"\b(?:{_MORE} than|over|above) (?=\d)", "more than "),
        (r"(?<!than )(?<!least )(?<!most )\b(\d+) (\w+) or (?:less|fewer)\b", r"at most \1 \2"),
        (r"(?<!than )(?<!least )(?<!most )\b(\d+) (\w+) or more\b", r"at least \1 \2"),
        (r"(?<!than )(?<!least )(?<!most )\b(\d+) or (?:less|fewer)\b", r"at most \1"),
        (r"(?<!than )(?<!least )(?<!most )\b(\d+) or more\b", r"at least \1"),
        (r"^@ must (?:limit|restrict|keep) (?:@ )?to (?:at most )?(?=\d)", "@ must have at most "),
        (r"^@ must (?:limit|restrict|keep) the (word|sentence) count (?:of @ )?"
         r"to (?:at most )?(\d+)(?: \1s?)?$", r"@ must have at most \2 \1s"),
        (r"^@ must (?:limit|restrict|keep) the number of (\w+) to (?:at most )?(\d+)$",
         r"@ must have at most \2 \1"),
        (r"^@ must (?:keep @|be kept) (?=less than|at most)", "@ must have "),
        (r"\[(‹\d+›(?:, ‹\d+›)*)\]", r"\1"),
        (r" +", " "),
    )
]  # fmt: skip
_NUMBER_WORD = re.compile(
    rf"\b(?:{'|'.join(sorted(_NUMBERS, key=len, reverse=True))})\b(?! hundred| thousand)"
)


class Wording(NamedTuple):
    skeleton: str  # canonical, lower case; ‹0›, ‹1›, … stand for the quoted strings
    quotes: tuple[str, ...]  # the quoted strings, as written
    label: str = ""  # the label that was removed from the front


def wordings(sentence: str) -> list[Wording]:
    """The sentence in canonical form, with and without its label ("Word Count: …")."""
    text = " ".join(straighten(sentence).split())
    if "‹" in text or "@" in text:
        return []
    quotes: list[str] = []

    def lift(match: re.Match[str]) -> str:
        content = next(group for group in match.groups() if group is not None).strip()
        if not content.strip("*"):  # a divider such as *** is not a quoted text
            return content
        word = content.rstrip(", ")  # in American usage, the comma is inside the quotes
        quotes.append(word)
        return f"‹{len(quotes) - 1}›{content[len(word) :]}"

    text = _QUOTED.sub(lift, text).replace("\\*", "*").lower()
    forms = [Wording(_canonical(text), tuple(quotes))]
    label = _LABEL.match(text)
    if label:
        forms.append(Wording(_canonical(text[label.end() :]), tuple(quotes), label[1]))
    return forms


def _canonical(text: str) -> str:
    text = text.rstrip(" .!;")
    text = _NUMBER_WORD.sub(lambda match: str(_NUMBERS[match.group()]), text)
    for n, word in enumerate(_ORDINALS, start=1):
        text = re.sub(rf"\b(?:the )?{word} paragraph\b", f"paragraph {n}", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text).strip()
    return text
