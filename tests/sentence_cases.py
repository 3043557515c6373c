"""Constraint sentences with the rule that each means, and others that no IFEval rule says."""

LENGTH = "length_constraints:"
FORMAT = "detectable_format:"
CASE = "change_case:"


def words(relation: str, number: int) -> tuple[str, dict]:
    return LENGTH + "number_words", {"num_words": number, "relation": relation}


def sentences(relation: str, number: int) -> tuple[str, dict]:
    return LENGTH + "number_sentences", {"num_sentences": number, "relation": relation}


def paragraphs(number: int) -> tuple[str, dict]:
    return LENGTH + "number_paragraphs", {"num_paragraphs": number}


def first_word(total: int, nth: int, word: str) -> tuple[str, dict]:
    kwargs = {"num_paragraphs": total, "nth_paragraph": nth, "first_word": word}
    return LENGTH + "nth_paragraph_first_word", kwargs


def bullets(number: int) -> tuple[str, dict]:
    return FORMAT + "number_bullet_lists", {"num_bullets": number}


def highlights(number: int) -> tuple[str, dict]:
    return FORMAT + "number_highlighted_sections", {"num_highlights": number}


def sections(mark: str, number: int) -> tuple[str, dict]:
    return FORMAT + "multiple_sections", {"section_spliter": mark, "num_sections": number}


def placeholders(number: int) -> tuple[str, dict]:
    return "detectable_content:number_placeholders", {"num_placeholders": number}


def postscript(marker: str) -> tuple[str, dict]:
    return "detectable_content:postscript", {"postscript_marker": marker}


def include(*keywords: str) -> tuple[str, dict]:
    return "keywords:existence", {"keywords": list(keywords)}


def forbid(*banned: str) -> tuple[str, dict]:
    return "keywords:forbidden_words", {"forbidden_words": list(banned)}


def frequency(keyword: str, relation: str, number: int) -> tuple[str, dict]:
    kwargs = {"keyword": keyword, "frequency": number, "relation": relation}
    return "keywords:frequency", kwargs


def letter(which: str, relation: str, number: int) -> tuple[str, dict]:
    kwargs = {"letter": which, "let_frequency": number, "let_relation": relation}
    return "keywords:letter_frequency", kwargs


def capital_words(relation: str, number: int) -> tuple[str, dict]:
    kwargs = {"capital_frequency": number, "capital_relation": relation}
    return CASE + "capital_word_frequency", kwargs


def language(code: str) -> tuple[str, dict]:
    return "language:response_language", {"language": code}


def ending(phrase: str) -> tuple[str, dict]:
    return "startend:end_checker", {"end_phrase": phrase}


LOWERCASE = (CASE + "english_lowercase", {})
CAPITALS = (CASE + "english_capital", {})
NO_COMMA = ("punctuation:no_comma", {})
TITLE = (FORMAT + "title", {})
JSON = (FORMAT + "json_format", {})
OPTIONS = (FORMAT + "constrained_response", {})
QUOTATION = ("startend:quotation", {})
TWO = ("combination:two_responses", {})
REPEAT = ("combination:repeat_prompt", {})

MEANT: list[tuple[str, tuple[str, dict]]] = [
    # words
    ("Your reply must have at least 40 words.", words("at least", 40)),
    ("Keep the answer under 50 words.", words("less than", 50)),
    ("under 50 words", words("less than", 50)),
    ("Word Count: at least 20 words", words("at least", 20)),
    ("Word count: less than 35", words("less than", 35)),
    ("Word Count: Limit the response to 15 words.", words("less than", 16)),
    ("Use no more than thirty words.", words("less than", 31)),
    ("The response should not exceed 80 words.", words("less than", 81)),
    ("Ensure that your answer does not exceed 60 words.", words("less than", 61)),
    ("The whole response has to contain fewer than 1,200 words.", words("less than", 1200)),
    ("Answer with a minimum of twenty-five words.", words("at least", 25)),
    ("Your answer must be more than 30 words long.", words("at least", 31)),
    ("Write over 100 words.", words("at least", 101)),
    ("The response must be 45 words or fewer.", words("less than", 46)),
    ("Please write 10 or more words.", words("at least", 10)),
    ("Do not write more than 12 words.", words("less than", 13)),
    ("The answer shouldn't contain less than 12 words.", words("at least", 12)),
    ("Limit the word count to 70.", words("less than", 71)),
    ("limit to 50 words", words("less than", 51)),
    ("The word count must be at most 90 words.", words("less than", 91)),
    ("Your answer must have a word count of less than 200.", words("less than", 200)),
    ("The number of words should be under 65.", words("less than", 65)),
    ("Respond in less than one hundred words.", words("less than", 100)),
    ("Answer in exactly one word.", words("less than", 2)),
    ("The reply is to be limited to 5 words.", words("less than", 6)),
    # sentences
    ("Your response should contain at least 4 sentences.", sentences("at least", 4)),
    ("Use at most two sentences.", sentences("less than", 3)),
    ("Write fewer than six sentences in your response.", sentences("less than", 6)),
    ("Sentence Count: no more than 3 sentences.", sentences("less than", 4)),
    ("Limit the number of sentences to three.", sentences("less than", 4)),
    ("In two sentences or less.", sentences("less than", 3)),
    ("The response must be a single sentence.", sentences("less than", 2)),
    ("Use only one sentence in your answer.", sentences("less than", 2)),
    ("The response should include no fewer than 5 sentences in total.", sentences("at least", 5)),
    # paragraphs
    ("There must be exactly 2 paragraphs separated by '***'.", paragraphs(2)),
    ("Your answer must contain exactly four paragraphs separated by ***.", paragraphs(4)),
    ("Write 3 paragraphs separated by the markdown divider: ***", paragraphs(3)),
    ("There should be 5 paragraphs. Paragraphs are separated with the markdown divider: ***",
     paragraphs(5)),
    ("Paragraph Count: There should be exactly three paragraphs, separated by `***`.",
     paragraphs(3)),
    ("The response should be divided into 2 paragraphs separated by \\*\\*\\*.", paragraphs(2)),
    ("There should be 3 paragraphs separated by two new lines, and the second paragraph must start "
     "with the word 'Later'.", first_word(3, 2, "Later")),
    ("Write exactly two paragraphs separated by a blank line, with the first paragraph beginning "
     'with "Rain".', first_word(2, 1, "Rain")),
    # layout
    ("The response should contain exactly 3 bullet points.", bullets(3)),
    ("Use exactly five bullet points in markdown format.", bullets(5)),
    ("Your answer must contain exactly 2 bullet points using markdown bullets.", bullets(2)),
    ("Your answer must contain exactly 4 bullet points. Use the markdown bullet points such as: "
     "* Point one. * Point two", bullets(4)),
    ("Highlight at least 2 sections in the answer using markdown emphasis.", highlights(2)),
    ("Highlight at least three phrases with markdown, i.e. *like this*.", highlights(3)),
    ("The response must have a minimum of 2 highlighted spans using markdown.", highlights(2)),
    ("Highlight at least 1 section of your reply with asterisks.", highlights(1)),
    ("The answer must have at least 2 sections, each starting with 'Section X'.",
     sections("Section", 2)),
    ("Write at least three sections and mark the beginning of each section with 'Chapter 1'.",
     sections("Chapter", 3)),
    ("Include at least 2 placeholders in square brackets, such as [city] and [date].",
     placeholders(2)),
    ("The response must contain at least one placeholder, such as [name].", placeholders(1)),
    ("There must be at least 3 placeholders represented by square brackets.", placeholders(3)),
    ("Add a postscript that begins with P.S.", postscript("P.S.")),
    ("At the end of your response, please explicitly add a postscript starting with P.P.S.",
     postscript("P.P.S")),
    ("Include a postscript starting with 'P.S.' at the end.", postscript("P.S.")),
    ("The answer must contain a title wrapped in double angular brackets, such as <<my day>>.",
     TITLE),
    ("Use double angle brackets to wrap the title.", TITLE),
    ("Wrap the title in <<>>.", TITLE),
    ("Your entire output must be valid JSON.", JSON),
    ("Provide your answer in JSON format.", JSON),
    ("The response should be formatted as JSON.", JSON),
    ("Wrap your entire reply in double quotation marks.", QUOTATION),
    ("The whole response must be enclosed within double quotes.", QUOTATION),
    ("Use double quotation marks around the entire answer.", QUOTATION),
    ("Give two different responses separated by 6 asterisk symbols: ******.", TWO),
    ("Write exactly two different answers, which are separated by '******'.", TWO),
    ("First repeat the request word for word without change, then give your answer.", REPEAT),
    ("First, repeat the question word for word, and then answer it.", REPEAT),
    ("Answer with one of the following options: 'My answer is yes.', 'My answer is no.', "
     "'My answer is maybe.'", OPTIONS),
    # endings
    ('End your response with the exact phrase "See you soon".', ending("See you soon")),
    ("The response should end with the phrase 'That is my advice.'", ending("That is my advice.")),
    ("Finish your answer with this exact phrase 'It's done!' and no other words should follow.",
     ending("It's done!")),
    ("Your reply must conclude with the sentence 'Will you join us?' without any additional words.",
     ending("Will you join us?")),
    # case and language
    ("in all lowercase", LOWERCASE),
    ("The response should be in English, and in all lowercase letters; no capital letters allowed.",
     LOWERCASE),
    ("Your answer must be written in lowercase letters.", LOWERCASE),
    ("Use only lowercase letters.", LOWERCASE),
    ("Response Language: English, all lowercase.", LOWERCASE),
    ("The reply must be in English with no capital letters.", LOWERCASE),
    ("Ensure your answer is in all lower-case.", LOWERCASE),
    ("Use lowercase English only.", LOWERCASE),
    ("Your entire response should be in English, and in all capital letters.", CAPITALS),
    ("The answer must be in ALL-CAPS.", CAPITALS),
    ("Write your reply in uppercase, with no lowercase letters.", CAPITALS),
    ("The response should use English ALL CAPS.", CAPITALS),
    ("Response Language: French", language("fr")),
    ("Your ENTIRE response should be in Swahili language, no other language is allowed.",
     language("sw")),
    ("Reply only in Portuguese.", language("pt")),
    ("Write your answer in Korean.", language("ko")),
    ("The response must be in English.", language("en")),
    ("Words in ALL CAPS should appear at least twice.", capital_words("at least", 2)),
    ("Use fewer than 4 words in all capital letters.", capital_words("less than", 4)),
    ("The response should include at least one word in ALL-CAPS.", capital_words("at least", 1)),
    ("ALL-CAPS Word Frequency: at most 3 words in ALL CAPS should appear in the response.",
     capital_words("less than", 4)),
    # punctuation
    ("Do not use any commas", NO_COMMA),
    ("No commas.", NO_COMMA),
    ("No Commas — In your entire response, refrain from the use of any commas.", NO_COMMA),
    ("Don't include a single comma in your reply.", NO_COMMA),
    ("Your answer must be written without commas.", NO_COMMA),
    ("Avoid using commas throughout the response.", NO_COMMA),
    ("No commas should be used anywhere in the text.", NO_COMMA),
    ("The response should have no commas in it.", NO_COMMA),
    # words to use
    ("Include the word 'harbor'.", include("harbor")),
    ('The response must mention the term "soil acidity".', include("soil acidity")),
    ("Include the words 'maple', 'birch', and 'willow' in your response.",
     include("maple", "birch", "willow")),
    ("The answer should use the words “north” and “south” at least once each.",
     include("north", "south")),
    ("Include the word 'lantern' at least once.", include("lantern")),
    ("Include the keyword 'AI'.", include("AI")),
    ("The response should include at least 2 required keywords: 'yeast' and 'flour'.",
     include("yeast", "flour")),
    ("Required keywords: include the keywords 'copper' and 'bronze'.", include("copper", "bronze")),
    ("Include keywords ['orbit', 'comet'] in the response.", include("orbit", "comet")),
    ("must include the phrase 'out of the blue'", include("out of the blue")),
    ("Mandatory use of the term 'photosynthesis'.", include("photosynthesis")),
    ("Include the words 'don't' and 'won't' in the answer.", include("don't", "won't")),
    ('Use the words "apple," "pear," and "plum" in your answer.', include("apple", "pear", "plum")),
    ("Include the word 'market' at least twice.", frequency("market", "at least", 2)),
    ("The word 'glacier' should appear at least three times in your response.",
     frequency("glacier", "at least", 3)),
    ("In your response, the word 'tide' must occur less than 4 times.",
     frequency("tide", "less than", 4)),
    ("Do not use the word 'really' more than once.", frequency("really", "less than", 2)),
    ("Include the word 'ate' at least twice.", frequency("ate", "at least", 2)),
    ("Use the phrase 'in short' at most 2 times.", frequency("in short", "less than", 3)),
    ("The response should contain at least 5 mentions of the word 'violin'.",
     frequency("violin", "at least", 5)),
    ("The word 'maybe' must not appear more than 3 times.", frequency("maybe", "less than", 4)),
    ("Mention the word 'garden' more than 2 times.", frequency("garden", "at least", 3)),
    ("Do not use the word 'amazing'.", forbid("amazing")),
    ("Avoid the words 'good', 'bad' or 'nice'.", forbid("good", "bad", "nice")),
    ("The response must not contain the words 'cat' and 'dog'.", forbid("cat", "dog")),
    ("Your answer should not include any instances of the word 'just'.", forbid("just")),
    ("Do not include any of the following words: 'stop', 'wait'.", forbid("stop", "wait")),
    ("The word 'problem' must not be used.", forbid("problem")),
    ("Refrain from using the term 'C++' under any circumstances.", forbid("C++")),
    ("The letter 'e' should appear at least 15 times.", letter("e", "at least", 15)),
    ("In your response, the letter q should appear less than 3 times.",
     letter("q", "less than", 3)),
    ("Do not use the letter 'Z' more than twice.", letter("z", "less than", 3)),
    ("The response should include at least 4 instances of the letter 'm'.",
     letter("m", "at least", 4)),
    ("Avoid using the letter 'k'.", letter("k", "less than", 1)),
]  # fmt: skip

NOT_SAYABLE: list[str] = [
    # relations that the rules do not have
    "The response must be exactly 50 words.",
    "Write about 50 words.",
    "Use between 20 and 40 words.",
    "Use 60 words.",
    "Your answer must contain at least 20 words but no more than 30 words.",
    "The response should contain exactly 3 sentences.",
    "Write two sentences.",
    "The response should contain one or two sentences.",
    "Write 5-10 words, at least 5-10 words.",
    "At least 3 paragraphs separated by '***'.",
    "The response should contain exactly 3 paragraphs.",
    "Write exactly 2 paragraphs separated by '---'.",
    "Write exactly 2 paragraphs separated by a blank line.",
    "The second paragraph must start with the word 'However'.",
    "Write exactly 2 paragraphs separated by blank lines, and the third paragraph must start with "
    "the word 'Then'.",
    "The response should contain at least 3 bullet points.",
    "Use a maximum of 4 bullet points.",
    "Your answer must contain exactly 3 bullet points starting with '-'.",
    "Use exactly 3 numbered points.",
    "Highlight exactly 2 sections in the answer using markdown emphasis.",
    "Highlight at least 2 sections using bold.",
    "Highlight at least 2 sections in the answer.",
    "Highlight the word 'engine' using markdown emphasis.",
    "The response should have exactly 3 sections, each starting with 'Section X'.",
    "Write at least 3 sections.",
    "Include exactly 2 placeholders in square brackets.",
    "Include at least 2 placeholders for names.",
    "Include the word 'river' exactly twice.",
    "The words 'sun' and 'moon' must appear exactly once each.",
    "Use the words 'forest' and 'meadow' at least twice each.",
    "Include exactly 4 words in ALL CAPS.",
    "The response should include exactly three instances of the letter 'a'.",
    # about a part of the reply, or about something else
    "Each sentence must contain at least 10 words.",
    "Each paragraph should have at most 3 sentences.",
    "Use at least 20 words per paragraph.",
    "Use at least 20 words in the first paragraph.",
    "Sentence length: at most 20 words.",
    "Title: in all caps.",
    "The title must be in all lowercase.",
    "The title must be '<<A Walk>>'.",
    "Do not use the word 'ship' in the title.",
    "Include the word 'ship' in the second sentence.",
    "Use double quotation marks around the final answer.",
    "Limit the summary to 50 words.",
    "The story must be at least 100 words.",
    "Use no commas in the list.",
    "The first word must be in all capital letters.",
    "Start your response with the word 'Indeed'.",
    "Summarize the 3 bullet points.",
    "Explain why a limit of 50 words is useful.",
    "ALL-CAPS Word Frequency: The word 'TIGER' should appear at least twice.",
    "No Commas: The response must contain at least 30 words.",
    # negations
    "The response should not be in all lowercase.",
    "Do not answer in JSON.",
    "The response must not be in French.",
    "Do not wrap the response in double quotation marks.",
    "The response must not contain at least 20 words.",
    "Do not end with the exact phrase 'The end.'",
    "Highlighted spans are not allowed.",
    # two demands, conditions, alternatives
    "The response must be in English and contain at least 15 words.",
    "Use all lowercase letters and no commas.",
    "Write exactly 2 paragraphs separated by '***', with the second starting with 'Then'.",
    "Include the word 'salt' or 'pepper'.",
    "Include the word 'salt' but not 'pepper'.",
    "Use the word 'huge' instead of 'big'.",
    "Avoid the word 'big' and instead use 'huge'.",
    "Use the words 'salt' and 'pepper' without using any commas.",
    "Begin with 'Dear reader' and end with the exact phrase 'Yours truly'.",
    "Use all lowercase letters except for names.",
    "Answer in French or Spanish.",
    "If you use bullet points, use exactly 3.",
    "The entire output must be valid JSON wrapped in markdown code fences.",
    "Answer in JSON format with the keys 'name' and 'age'.",
    # wider than the words it names
    "Do not use any forbidden words such as 'lazy' or 'stupid'.",
    "Avoid words like 'good'.",
    "Do not use the word 'run' in any form.",
    "Do not use the word 'run' or any of its synonyms.",
    "Include technical terms such as 'voltage' and 'current'.",
    "The word 'RIVER' must appear in ALL CAPS.",
    "Highlight the words in ALL CAPS.",
    # nothing that can be checked exactly, or that IFEval has a rule for
    "The response must be in Chinese.",
    "The response should be in Latin.",
    "Include some Spanish.",
    "Use uppercase letters.",
    "Wrap the response in quotation marks.",
    "Include a title.",
    "Add a postscript.",
    "Give two different responses.",
    "Give three different responses separated by ******.",
    "End with the phrase 'good night'.",
    "End with the word 'peace'.",
    "Answer with one of the following options: 'yes', 'no'.",
    "Answer with at least 0 words.",
    "Use less than 1 word.",
    # no rule at all
    "Use a formal tone.",
    "Write as a pirate would.",
    "Include a metaphor.",
    "The response should include three examples.",
    "使用正式的语气回答",
    "",
    "   ",
    "...",
    "Your email is me@example.org.",
]  # fmt: skip
