"""The sentences in which `constraint_writer` states each rule, as templates.

Templates contain the rule's arguments and a few helpers. `{bound}` is a relation with its number
("at most 30"; "at least 30" if the rule has no relation).
`{all}` and `{any}` are quoted words joined by "and" or "or".
"""

_OPTIONS = "'My answer is yes.', 'My answer is no.', 'My answer is maybe.'"

PHRASINGS: dict[str, tuple[str, ...]] = {
    "change_case:capital_word_frequency": (
        "Words in ALL CAPS should appear {bound} times.",
        "In your response, words with all capital letters should appear {bound} times.",
        "Your answer must contain {bound} words in ALL CAPS.",
    ),
    "change_case:english_capital": (
        "Your entire response should be in English, and in all capital letters.",
        "Write your whole answer in all capital letters.",
        "The response must be in ALL CAPS.",
    ),
    "change_case:english_lowercase": (
        "The response should be in English, and in all lowercase letters; no capital letters "
        "allowed.",
        "Your answer must be in all lowercase letters.",
        "Use only lowercase letters.",
    ),
    "combination:repeat_prompt": (
        "First repeat the request word for word, then give your answer.",
        "First, repeat the question word for word without any changes, and then answer it.",
    ),
    "combination:two_responses": (
        "Give two different responses separated by six asterisks: ******.",
        "Provide exactly two different answers, separated by ******.",
    ),
    "detectable_content:number_placeholders": (
        "Include {bound} placeholders in square brackets, such as [name].",
        "The response must contain {bound} placeholders represented by square brackets.",
    ),
    "detectable_content:postscript": (
        "At the end of your response, add a postscript starting with {postscript_marker}",
        'Include a postscript that begins with "{postscript_marker}"',
    ),
    "detectable_format:constrained_response": (
        f"Answer with one of the following options: {_OPTIONS}",
        f"Choose one of these answers: {_OPTIONS}",
    ),
    "detectable_format:json_format": (
        "The entire output must be valid JSON.",
        "Format your whole response as JSON.",
        "Your answer should be in JSON format.",
    ),
    "detectable_format:multiple_sections": (
        "The response must have {bound} sections, each beginning with '{section_spliter} X'.",
        "Write {bound} sections and mark the beginning of each section with '{section_spliter} X'.",
    ),
    "detectable_format:number_bullet_lists": (
        "Your answer must contain exactly {num_bullets} bullet points.",
        "The response should contain exactly {num_bullets} bullet points using markdown bullets.",
        "Use exactly {num_bullets} markdown bullet points.",
    ),
    "detectable_format:number_highlighted_sections": (
        "Highlight {bound} sections in your answer with markdown, i.e. *highlighted section*.",
        "Highlight {bound} phrases using markdown emphasis.",
        "The response must contain {bound} highlighted spans using markdown emphasis.",
    ),
    "detectable_format:title": (
        "Your answer must contain a title, wrapped in double angular brackets, such as "
        "<<a day at sea>>.",
        "Include a title in double angle brackets, such as <<my title>>.",
    ),
    "keywords:existence": (
        "Include the {all}.",
        "The response should include the {all}.",
        "Your answer must mention the {all} at least once.",
    ),
    "keywords:forbidden_words": (
        "Do not use the {any}.",
        "The response must not contain the {any}.",
        "Avoid using the {any} in your response.",
    ),
    "keywords:frequency": (
        "In your response, the word '{keyword}' should appear {bound} times.",
        "Use the word '{keyword}' {bound} times.",
        "The response should include {bound} mentions of the word '{keyword}'.",
    ),
    "keywords:letter_frequency": (
        "In your response, the letter {letter} should appear {bound} times.",
        "Use the letter '{letter}' {bound} times.",
    ),
    "language:response_language": (
        "Your entire response should be in {name}, no other language is allowed.",
        "Write your answer in {name}.",
        "Respond only in {name}.",
    ),
    "length_constraints:nth_paragraph_first_word": (
        "There should be exactly {num_paragraphs} paragraphs separated by two new lines, and "
        "the {ordinal} paragraph must start with the word '{first_word}'.",
        "Write exactly {num_paragraphs} paragraphs separated by blank lines, with the "
        "{ordinal} paragraph beginning with the word '{first_word}'.",
    ),
    "length_constraints:number_paragraphs": (
        "There should be {num_paragraphs} paragraphs. Paragraphs are separated with the "
        "markdown divider: ***",
        "Your answer must contain exactly {num_paragraphs} paragraphs separated by '***'.",
        "Write exactly {num_paragraphs} paragraphs, separated by ***.",
    ),
    "length_constraints:number_sentences": (
        "Your response should contain {bound} sentences.",
        "Answer in {bound} sentences.",
        "Write {bound} sentences.",
    ),
    "length_constraints:number_words": (
        "Answer with {bound} words.",
        "Your response should contain {bound} words.",
        "Word count: {bound} words.",
        "The response must be {bound} words long.",
    ),
    "punctuation:no_comma": (
        "Do not use any commas.",
        "In your entire response, refrain from the use of any commas.",
        "Write your answer without using any commas.",
    ),
    "startend:end_checker": (
        'Finish your response with this exact phrase "{end_phrase}" '
        "No other words should follow this phrase.",
        "The response should end with the exact phrase '{end_phrase}'",
    ),
    "startend:quotation": (
        "Wrap your entire response with double quotation marks.",
        "Your whole answer must be enclosed in double quotation marks.",
    ),
}
