"""The sentences that the recogniser knows: regular expressions over their `canonical_wording`.

There is one list per kind. The groups `rel`, `n`, `unit`, … match the arguments of the rule. `@` is
the reply ("the response", "your answer"), and ‹0› is a quoted string. The parts of the expressions
come first, then the table.
"""

from seif_jax.rewards.canonical_wording import QUOTE
from seif_jax.rewards.rule_arguments import LANGUAGES

_REL = r"(?P<rel>at least|at most|less than|more than)"
_DIGITS = r"\d{1,9}"  # nobody means a larger number
_N = rf"(?P<n>{_DIGITS})"
_EXACTLY = r"(?:exactly )?"
_UNIT = r"(?P<unit>word|sentence)"
_SUCH_AS = r",? (?:such as|like|e\.g\.,?|i\.e\.,?|for example,?) "
_BY = r",? (?:(?:which|that|and) (?:are|must be) )?separated (?:by|with|using) "
_STARS = r"(?:the )?(?:markdown )?(?:divider|separator)?:? ?\*\*\*"
_BLANK = rf"(?:2 (?:new ?lines|line ?breaks)|(?:a )?blank lines?|{QUOTE})"
_BEGINS = r"(?:must )?(?:start|begin)(?:s|ing|ning)? with (?:the )?(?:word )?"

_MARKDOWN = r"(?:using|with|in) (?:markdown(?: emphasis| formatting| syntax| format)?|asterisks)"
_SAMPLE = rf"(?:\*+[\w ]+\*+|{QUOTE})"
_MARKDOWN_LIKE = rf"{_MARKDOWN}(?:{_SUCH_AS}{_SAMPLE}(?: or {_SAMPLE})?)?"
_BULLETS_LIKE = r",? (?:using|in|as|with) markdown(?: bullets?| bullet points| format| syntax)?"
_HIGHLIGHTS = r"(?:highlighted )?(?:sections?|parts?|spans?|phrases?)(?: in @| of @)?"
_EACH_SECTION = (
    r"(?:mark the beginning of each section"
    r"|each (?:section |one )?(?:beginning|starting|marked|labell?ed)) with"
)
_BRACKETS = r",? (?:(?:represented|enclosed|wrapped|marked) )?(?:by|in|with|using) square brackets"
_BRACKETED = rf"{_SUCH_AS}(?:\[[^\]]+\](?:,? and |,? or |, )?)+"
_ANGLES = r"(?:double (?:angle|angular) brackets|<< ?(?:and )?>>)"
_ANGLED = rf"(?:{_SUCH_AS}(?:<<[^<>]+>>|{QUOTE}))?"
_TITLE_IN = r"(?:wrapped |enclosed |written |placed )?(?:in|with|within|using)"
_MARKS = r"double (?:quotation marks|quotes)"
_POSTSCRIPT = (
    r"a postscript (?:at the end )?(?:that )?(?:starts?|begins?|starting|beginning|marked)"
)
_6_STARS = r"(?:6 asterisks?(?: symbols)?:? ?)?\(?\*{6}\)?"
_THEY = r"(?:which|that|they|(?:the )?responses(?: and only responses)?)"
_NO_MORE_WORDS = (
    r"[.,;]? (?:and |with )?(?:without any (?:additional|other|further) words?"
    r"|(?:nothing else|no (?:other|additional|further) words?)"
    r"(?: must follow(?: it| this phrase)?)?)"
)

_BE = r"(?:be |have |be written |answer |reply |respond )?"
_REPLY_IS = rf"(?:@ must |response language:? (?:must )?)?{_BE}"
_ENGLISH = (
    r"(?:in )?english(?: language)?(?:,? and|,)? ?(?:must |all words must )?(?:be |have |use )?"
)
_LOWER = r"(?:(?:written )?in (?:all |only )?|all |only |entirely )lowercase(?: letters| text)?"
_NO_CAPITALS = (
    r"(?:no (?:capital|uppercase) letters(?: are)?(?: allowed)?"
    r"|without (?:any )?capital(?:ization| letters))"
)
_CAPITALS = r"(?:capital|uppercase) letters"
_UPPER = rf"(?:in )?(?:all caps|all capitals|(?:all |only )?{_CAPITALS}|(?:all )?uppercase)"
_NO_LOWER = r"no lowercase letters(?: are)?(?: allowed)?"
_IN_CAPITALS = (
    r"(?:in|with|written in) (?:all (?:caps|capitals|uppercase|capital letters)|uppercase)"
)
_LANGUAGE = rf"(?P<language>{'|'.join(LANGUAGES.values()).lower()})"
_NO_OTHER = r"[,;.]? (?:and )?no other languages? (?:is |are )?allowed"

_NOUN = r"(?:word|keyword|phrase|term|expression)"
_AGAIN = rf"(?:the {_NOUN} )?{QUOTE}"
_AND = rf"{QUOTE}(?:(?:,|,? and|,? as well as) {_AGAIN})*"
_OR = rf"{QUOTE}(?:(?:,|,? and|,? or|,? nor) {_AGAIN})*"
_WORD = rf"(?:the )?(?:exact |specific |required |following )*{_NOUN}s?:? "
_BANNED = rf"(?:the )?(?:forbidden |following |exact |specific )*{_NOUN}s?:? {_OR}"
_LETTER = rf"the (?:specified )?letter (?:{QUOTE}|(?P<letter>[a-z]))"
_TIMES = rf"{_REL} {_N} times"
_COUNTED = rf"{_REL} {_N} (?:instances?|occurrences?|mentions?|uses?) of "
_APPEARS = r"must (?P<not>not )?(?:appear|occur|be used|be mentioned|be included)"
_WITHOUT = r"(?:not have|avoid(?: using| the use of)?|refrain from (?:using|the use of))"

SENTENCES: dict[str, list[str]] = {
    "length": [
        rf"(?:@ must )?{_BE}(?:in |with |using )?{_REL} {_N} {_UNIT}s?",
        rf"(?:@ must have (?:a |an )?(?:total )?|the )?{_UNIT} count(?: of)?(?: @)?"
        rf"(?::| must be| of| is)? ?{_REL} {_N}(?: (?P=unit)s?)?",
        rf"(?:@ must have a|the) number of {_UNIT}s(?: must be)? {_REL} {_N}",
    ],
    "one": [
        rf"(?:@ must )?{_BE}(?:in )?(?:exactly|only) 1 {_UNIT}",
        rf"(?:@ must )?(?:be |be written |answer |reply |respond )?(?:in )?1 {_UNIT}",
    ],
    "paragraphs": [
        rf"(?:@ must (?:have|be (?:divided|split) into) )?{_EXACTLY}{_N} paragraphs?{_BY}{_STARS}",
        rf"@ must have {_EXACTLY}{_N} paragraphs?\. paragraphs (?:are|must be) separated "
        rf"(?:by|with) {_STARS}",
    ],
    "first_word": [
        rf"@ must have {_EXACTLY}{_N} paragraphs{_BY}{_BLANK}(?:,|\.|,? and|,? with) "
        rf"paragraph (?P<nth>{_DIGITS}) {_BEGINS}{QUOTE}",
    ],
    "bullets": [
        r"(?:@ must (?:have|be in|be (?:presented|formatted|given) as) )?"
        rf"exactly {_N} (?:markdown )?bullet points?(?:{_BULLETS_LIKE})?",
        rf"@ must have exactly {_N} bullet points?\. use (?:the )?markdown bullet points"
        r"(?: such as:?(?: \* (?:this is )?point \d+\.?)+)?",
    ],
    "highlights": [
        rf"@ must highlight at least {_N} {_HIGHLIGHTS} {_MARKDOWN_LIKE}",
        rf"@ must have at least {_N} highlighted {_HIGHLIGHTS} {_MARKDOWN_LIKE}",
    ],
    "sections": [rf"@ must have at least {_N} sections[.,]? (?:and )?{_EACH_SECTION} {QUOTE}"],
    "placeholders": [
        rf"@ must have at least {_N} placeholders?{_BRACKETS}(?:{_BRACKETED})?",
        rf"@ must have at least {_N} placeholders?{_BRACKETED}",
    ],
    "title": [
        rf"@ must have a title,? {_TITLE_IN} {_ANGLES}{_ANGLED}",
        rf"@ must have {_ANGLES} (?:to wrap|around) (?:the|its|a) title{_ANGLED}",
        rf"@ must (?:wrap|enclose) (?:the|its|a) title {_TITLE_IN} {_ANGLES}{_ANGLED}",
    ],
    "quotation": [
        rf"@ must (?:wrap|enclose|surround|put|place) @ (?:with|in|within|inside) {_MARKS}",
        rf"@ must be (?:wrapped|enclosed|surrounded) (?:with|in|within|by) {_MARKS}",
        rf"@ must have {_MARKS} (?:around|to wrap) @",
    ],
    "json": [
        r"(?:@ must )?(?:be |be (?:given |provided |wrapped |formatted |written )|format @ |answer "
        r"|respond |reply )?(?:in |as )?(?:a )?(?:valid )?json(?: format)?",
    ],
    "two_responses": [
        r"@ must (?:give|have) (?:exactly )?2 different (?:responses|answers)(?:,|\.|,? and)? "
        rf"(?:{_THEY} (?:are|must be) )?separated? (?:them )?(?:by|with) {_6_STARS}",
    ],
    "repeat": [
        r"(?:@ must )?first,? repeat the (?:request|question|prompt),? word for word"
        r"(?: without (?:any )?changes?)?,? (?:and )?then (?:(?:give|have|provide|write) @"
        r"|answer(?: it)?)",
    ],
    "postscript": [
        rf"(?:at the end(?: of @)?,? )?(?:@ must )?(?:explicitly )?(?:have|add|end with|include) "
        rf"{_POSTSCRIPT} with (?:{QUOTE}|(?P<mark>p\.(?:p\.)?s))(?: at the end(?: of @)?)?",
    ],
    "ending": [
        r"@ must (?:end|finish|conclude) (?:@ )?with (?:the |this )?(?P<exact>exact )?"
        rf"(?:phrase|sentence|words?|statement)?:? ?{QUOTE}(?:{_NO_MORE_WORDS})?",
    ],
    "options": [
        r"@ must (?:have|be|choose|answer with) 1 of (?:the following|these) "
        rf"(?:options|answers|phrases|sentences):? {_OR}",
    ],
    "lowercase": [
        rf"{_REPLY_IS}(?:{_ENGLISH})?{_LOWER}(?:[;,.]? (?:and |with )?{_NO_CAPITALS})?",
        rf"{_REPLY_IS}{_ENGLISH}(?:with )?{_NO_CAPITALS}",
        rf"{_REPLY_IS}(?:in )?(?:all |only )?lowercase english(?: letters| only)?",
    ],
    "capitals": [
        rf"(?:@ must be (?:written )?|in |{_REPLY_IS}{_ENGLISH}){_UPPER}"
        rf"(?:[;,.]? (?:and |with )?{_NO_LOWER})?",
    ],
    "language": [
        r"(?:@ must )?(?:be |be written |answer |reply |respond )?(?:entirely |only |fully )?in "
        rf"{_LANGUAGE}(?: language)?(?: only)?(?:{_NO_OTHER})?",
        rf"(?:response )?language(?::| must be| is)? ?(?:in )?{_LANGUAGE}(?: only)?"
        rf"(?:{_NO_OTHER})?",
    ],
    "no_comma": [
        r"(?:@ must (?:have|be written(?: with)?) )?(?:no|without(?: using)?)(?: any)? commas?"
        r"(?: must be used| are allowed| allowed)?",
        rf"@ must (?:{_WITHOUT}|be free of)(?: any| all| a single)? commas?",
    ],
    "capital_words": [
        rf"(?:@ must have )?(?:all caps word frequency:? )?(?:with |of )?{_REL} {_N} words? "
        rf"{_IN_CAPITALS}(?: must appear)?",
        rf"@ must have (?:an )?all caps word frequency(?: of)? {_REL} {_N}(?: times)?",
        rf"words {_IN_CAPITALS} must (?:appear|be used) {_TIMES}",
        rf"(?:@ must have )?{_REL} {_N} all caps words?",
    ],
    "keywords": [
        rf"@ must (?:have|mention) (?:all (?:of )?)?{_WORD}{_AND}(?: at least 1 times(?: each)?)?",
        rf"@ must have (?:at least )?{_N} (?:required )?{_NOUN}s?: {_AND}",
    ],
    "frequency": [
        rf"@ must (?P<not>not )?(?:have|mention) {_WORD}{QUOTE} {_TIMES}",
        rf"{_WORD}{QUOTE} {_APPEARS} {_TIMES}",
        rf"@ must have {_COUNTED}{_WORD}{QUOTE}",
    ],
    "letter": [
        rf"@ must (?P<not>not )?have {_LETTER} {_TIMES}",
        rf"{_LETTER} {_APPEARS} {_TIMES}",
        rf"@ must have {_COUNTED}{_LETTER}",
        rf"@ must {_WITHOUT} {_LETTER}",
    ],
    "forbidden": [
        rf"@ must {_WITHOUT} (?:any )?(?:(?:instances? )?of )?{_BANNED}"
        r"(?: under any circumstances)?",
        rf"{_WORD}{_OR} must not (?:appear|occur|be used|be included|be mentioned)",
    ],
}
