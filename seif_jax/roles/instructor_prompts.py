"""The prompts of the Instructor, by reply format and variant; examples by variant."""

from seif_jax.roles import reply_format

_RULES = """\
Rules:
1. Each constraint is one full English sentence about the response, clear without the others, and \
concrete: name the numbers, words or phrases, so that a reader of the response can tell whether it \
holds.
2. One response must be able to meet all constraints and the seed question together.
3. Do not answer, change or repeat the seed question. No constraint may follow from it or from \
another constraint."""

_HARD = f"""\
You design tests for writers. Given a seed question, write 3 constraints that a response to it \
must meet as well, so that all of it together is hard but possible.

Choose 3 of these 5 categories and write one constraint from each, never two from one category:
A. Words: keywords to include; a word to use at least N times; words to avoid; a letter to use at \
least N times; at least N words in ALL CAPS.
B. Layout: at least or fewer than N sentences; exactly N paragraphs separated by ***; exactly N \
bullet points that start with *; N sections that open with "Section 1" and so on; the first word \
of paragraph N; at least or fewer than N words.
C. Format: at least N parts highlighted like *this*; a title in double angle brackets like \
<<title>>; the whole response in double quotation marks; the whole response as JSON.
D. Language style: only one named language; only capital letters; only lowercase letters; no \
commas.
E. Special: repeat the request word for word and then answer; end with an exact phrase and \
nothing after it; two different responses separated by ******; a postscript that starts with P.S.; \
at least N placeholders in square brackets like [name].
Vary: within a category, prefer what is seldom chosen over keywords, word counts and bullet points.

Never together:
- only lowercase with ALL CAPS words, with only capitals, or with anything that needs a capital \
letter (P.S., Section 1, a phrase with capitals); only capitals with a phrase in lowercase;
- another language with English keywords, phrases or letter counts;
- JSON with any other of B, C or E; quotation marks around everything with repeating the request;
- two responses with a paragraph count, or with repeating the request;
- no commas with a phrase or request to be repeated that has a comma;
- a word to avoid with anything that contains that word.

{_RULES}
4. The answer is one JSON object and nothing else: {{"c1": "...", "c2": "...", "c3": "..."}}"""

_SOFT = f"""\
You design tests for writers. Given a seed question, write 5 constraints that a response to it \
must meet as well, so that all of it together is hard but possible.

For inspiration, 25 types of constraint; take five different ones that suit the question:
words to use or avoid; elements to include; meaning or theme; word count; sentence count; \
paragraph count; number of documents; tone and emotion; form and style; audience; style of an \
author; basic format such as a list or table; made-up format; specialist format such as code or a \
recipe; effect on the reader; sentence structure; word forms; sound, such as rhyme or \
alliteration; a role to speak in; task-specific demands; a complex situation; following an \
example; leaving something out; contrast between two sides; a rule to apply.

{_RULES}
4. The answer is one JSON object and nothing else: {{"c1": "...", "c2": "...", "c3": "...", \
"c4": "...", "c5": "..."}}"""

_GUIDES = {"hard": _HARD, "soft": _SOFT}

# The plain format, for very small models, has one line in every user turn in place of a guide.
SYSTEM = {
    "think_answer": {
        variant: f"{reply_format.SYSTEM['think_answer']}\n\n{guide}"
        for variant, guide in _GUIDES.items()
    },
    "plain": dict.fromkeys(_GUIDES, reply_format.SYSTEM["plain"]),
}
ASK = {
    "think_answer": dict.fromkeys(_GUIDES, "Seed question:\n{seed}"),
    "plain": {
        "hard": "Write 3 different constraints for the response to this question, as JSON with "
        "the keys c1, c2, c3. Do not answer it.\nQuestion: {seed}",
        "soft": "Write 5 different constraints for the response to this question, as JSON with "
        "the keys c1, c2, c3, c4, c5. Do not answer it.\nQuestion: {seed}",
    },
}

SHOTS = {
    "hard": (
        {
            "seed": "Explain why the sky is blue.",
            "thought": "A word frequency (A), bullet points (B) and lowercase (D): three "
            "categories. Lowercase bullet points can use the word 'light' twice.",
            "constraints": (
                "The response should use the word 'light' at least 2 times.",
                "The response should contain exactly 3 bullet points.",
                "The response should be in all lowercase letters.",
            ),
        },
        {
            "seed": "Write a letter to a new neighbor.",
            "thought": "A title (C), a word count (B) and an exact ending (E): three categories. "
            "A titled letter of fewer than 80 words can close with any phrase.",
            "constraints": (
                "The response should have a title in double angle brackets, such as <<Welcome>>.",
                "The response should contain fewer than 80 words.",
                "The response should end with the exact phrase 'See you soon.' and nothing else.",
            ),
        },
        {
            "seed": "List three ways to save water at home.",
            "thought": "No commas (D), placeholders (E) and words to avoid (A): three categories. "
            "None of them needs a comma or the words 'tap' and 'shower'.",
            "constraints": (
                "The response should not contain any commas.",
                "The response should contain at least 2 placeholders in square brackets, such as "
                "[name].",
                "The response should not use the words 'tap' and 'shower'.",
            ),
        },
    ),
    "soft": (
        {
            "seed": "Explain why the sky is blue.",
            "thought": "Audience, sentence count, an element, a word to avoid and a tone suit an "
            "explanation and go together.",
            "constraints": (
                "The response should be written for children of about eight years.",
                "The response should contain at least 5 sentences.",
                "The response should compare light with a ball or another toy.",
                "The response should not use the word 'scattering'.",
                "The response should sound excited and cheerful.",
            ),
        },
        {
            "seed": "Write a letter to a new neighbor.",
            "thought": "A role, a word count, sound, an element left out and the sentence "
            "structure suit a letter and go together.",
            "constraints": (
                "The response should be written in the voice of a retired sailor.",
                "The response should contain fewer than 120 words.",
                "The response should include one pair of rhyming lines.",
                "The response should not mention the weather.",
                "The response should close with a question to the neighbor.",
            ),
        },
        {
            "seed": "List three ways to save water at home.",
            "thought": "A format, a contrast, a rule, a style and a theme suit a list and go "
            "together.",
            "constraints": (
                "The response should be a table with the columns Way and Saving.",
                "The response should set each way against a wasteful habit.",
                "The response should order the ways from the cheapest to the most expensive.",
                "The response should be in the style of a newspaper advertisement.",
                "The response should mention how each way helps a river.",
            ),
        },
    ),
}
