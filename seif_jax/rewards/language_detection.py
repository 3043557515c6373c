"""Whether a text is in a language: judged by its script, then by langdetect if it is long."""

import re
import unicodedata

MIN_LETTERS = 50  # langdetect is unreliable with fewer
SURE = 0.9  # probability

_SCRIPTS = {
    "ar": "ARABIC", "bg": "CYRILLIC", "bn": "BENGALI", "fa": "ARABIC", "gu": "GUJARATI",
    "he": "HEBREW", "hi": "DEVANAGARI", "ja": "CJK HIRAGANA KATAKANA", "kn": "KANNADA",
    "ko": "HANGUL", "ml": "MALAYALAM", "mr": "DEVANAGARI", "ne": "DEVANAGARI", "pa": "GURMUKHI",
    "ru": "CYRILLIC", "ta": "TAMIL", "te": "TELUGU", "th": "THAI", "uk": "CYRILLIC", "ur": "ARABIC",
}  # fmt: skip
# Languages that share their script with no other language here.
_ALONE = {"bn", "gu", "he", "kn", "ko", "ml", "pa", "ta", "te", "th"}
_KANA = re.compile("[\u3041-\u30ff]")
# Frequent English words that are words of no other language with Latin letters.
_ENGLISH = frozenset(
    """about and because could every from good have hello how know please should thank thanks that
    the their them there these they this those what when where which who with would yes you
    your""".split()
)
_WORDS_PER_ENGLISH = 8  # in English, at most this many words per word of _ENGLISH


def speaks(text: str, code: str) -> bool | None:
    """Whether the entire text is in the language; None if it is too short or too mixed to tell.

    code: one of `rule_arguments.LANGUAGES`.
    """
    for line in text.splitlines():
        if _letters(line) >= 2 * MIN_LETTERS and _speaks(line, code) is False:
            return False
    return _speaks(text, code)


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _speaks(text: str, code: str) -> bool | None:
    letters = [c for c in text if c.isalpha()]
    scripts = tuple(_SCRIPTS.get(code, "LATIN").split())
    share = sum(unicodedata.name(c, "").startswith(scripts) for c in letters) / max(len(letters), 1)
    if share < 0.5:
        return False
    if share < SURE:
        return None
    if code in _ALONE or (code == "ja" and _KANA.search(text)):
        return True
    if len(letters) >= MIN_LETTERS:
        return _detect(text, code)
    return True if code == "en" and _has_english_words(text) else None


def _has_english_words(text: str) -> bool:
    tokens = re.findall(r"\w+", text.lower())
    return sum(token in _ENGLISH for token in tokens) * _WORDS_PER_ENGLISH >= len(tokens)


def _detect(text: str, code: str) -> bool | None:
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it samples: without a seed verdicts differ between runs
    try:  # in lower case, because langdetect ignores words in capital letters
        probs = {guess.lang: guess.prob for guess in langdetect.detect_langs(text.lower())}
    except langdetect.LangDetectException:  # no letter that it knows
        return None
    prob = probs.pop(code, 0.0)
    if prob >= SURE:
        return True
    return False if max(probs.values(), default=0.0) >= SURE else None
