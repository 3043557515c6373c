"""For each rule of IFBench: arguments, a reply that meets the rule, and one that does not."""

AFRICA = """
    Zimbabwe Zambia Uganda Tunisia Togo Tanzania Sudan Somalia Seychelles Senegal Rwanda Niger
    Nigeria Namibia Mozambique Morocco Mauritius Mauritania Mali Malawi Madagascar Libya Liberia
    Lesotho Kenya Guinea Ghana Gambia Gabon Ethiopia Eswatini Eritrea Egypt Djibouti Congo
    Comoros Chad Cameroon Burundi Botswana Benin Angola Algeria
""".split()
COUNTRIES = sorted({*AFRICA, *(f"Land {letter}" for letter in "abcdefghijkl")}, reverse=True)
CAPITALS = " ".join(
    """
    Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk,
    Dublin, Berlin, Amsterdam, Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna,
    Bratislava, Budapest, Vaduz, Chisinau, Bern, Ljubljana, Zagreb
""".split()
)
ALPHABET = [f"{letter.upper()}nd so." for letter in "abcdefghijklmnopqrstuvwxyz"]
CITIES = "ID,Country,City,Year,Count\n" + "\n".join(f"{i},Peru,Lima,2001,{i}" for i in range(7))
PRODUCTS = "ProductID,Category,Brand,Price,Stock\n" + "\n".join(
    f'{i},Tea,"A&B",2,3' if i == 4 else f"{i},Tea,Ab,2,3" for i in range(14)
)
STUDENTS = "\n".join(
    "\t".join(f'"{cell}"' for cell in row.split())
    for row in (
        "StudentID Subject Grade Semester Score", "1 Art A 1 9", "2 Art B 1 8", "3 Art C 2 7",
    )
)  # fmt: skip
QUESTIONS = "\n".join(
    f"Question {n}. Who painted{' so very' * n} well?\n" + "\n".join(f"{c}) Ann" for c in "ABCDE")
    for n in range(1, 5)
)
PALINDROMES = "level radar civic refer rotor kayak madam stats tenet solos"
KEYWORDS = {f"keyword{i}": word for i, word in enumerate(("ant", "bee", "cow", "dog", "elk"), 1)}
REQUEST = {"prompt_to_repeat": "Name one river of Peru."}

CASES = [
    ("count:conjunctions", {"small_n": 3}, "Tea and milk or juice, but no ice.", "Tea and tea."),
    ("count:keywords_multiple", KEYWORDS,
     "ant bee bee " + "cow " * 3 + "dog " * 5 + "elk " * 7, "ant bee cow dog elk"),
    ("count:numbers", {"N": 2}, "I have 3 cats and 12 dogs.", "I have 3 cats."),
    ("count:person_names", {"N": 2}, "Emma met Liam.", "Emma met Bob."),
    ("count:pronouns", {"N": 3}, "She gave me her book.", "She left."),
    ("count:punctuation", {}, "So: tea; milk, ice. Really?! Yes!? No!", "So: tea; milk, ice."),
    ("count:unique_word_count", {"N": 3}, "red green blue", "red red red"),
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, "one two three", "one"),
    ("count:words_japanese", {"N": 2}, "one 猫 three 犬", "one two three"),
    ("custom:character_reverse", {}, "elgae dlab ehT", "The bald eagle"),
    ("custom:csv_city", {}, CITIES, CITIES + "\n8,Peru,Lima,2001,8"),
    ("custom:csv_quotes", {}, STUDENTS, STUDENTS.replace('"9"', "9")),
    ("custom:csv_special_character", {}, PRODUCTS, PRODUCTS.replace('"A&B"', "Ab")),
    ("custom:date_format_list", {}, "1796-04-12, 1805-12-02", "1796-04-12, 2 December 1805"),
    ("custom:european_capitals_sort", {}, CAPITALS, CAPITALS.replace("Oslo, ", "")),
    ("custom:mcq_count_length", {}, QUESTIONS, QUESTIONS.replace("E) Ann", "")),
    ("custom:multiples", {}, "14, 21, 28, 35, 42, 49", "7, 14, 21, 28, 35, 42, 49"),
    ("custom:reverse_newline", {}, "\n".join(COUNTRIES), "\n".join(COUNTRIES[::-1])),
    ("custom:sentence_alphabet", {}, " ".join(ALPHABET), " ".join(ALPHABET[1:])),
    ("custom:word_reverse", {}, "eagle bald the is It", "It is the bald eagle"),
    ("format:emoji", {}, "It rains 🌧. It shines 🌞.", "It rains. It shines 🌞."),
    ("format:line_indent", {}, "a\n b\n  c", "a\nb\nc"),
    ("format:list", {"sep": "!?!?"}, "!?!? tea\n!?!? milk", "- tea\n- milk"),
    ("format:newline", {}, "one\ntwo\nthree", "one two\nthree"),
    ("format:no_bullets_bullets", {}, "It rains. It pours.\n* rain\n* hail", "* rain\n* hail"),
    ("format:no_whitespace", {}, "nospace", "no space"),
    ("format:options", {"options": "yes/no/maybe"}, "Maybe.", "I think so."),
    ("format:output_template", {},
     "My Answer: a\nMy Conclusion: b\nFuture Outlook: c", "My Answer: a\nMy Conclusion: b"),
    ("format:parentheses", {}, "a (b [c {d (e [f])}])", "a (b [c])"),
    ("format:quote_unquote", {}, 'He said "so" and left.', 'He said "so"'),
    ("format:quotes", {}, '''She said "he said 'I heard "no" twice' then" and left''', 'A "b" c'),
    ("format:sub-bullets", {}, "* tea\n - green\n* milk\n - cold", "* tea\n* milk\n - cold"),
    ("format:thesis", {}, "<i>Rain is good.</i> It waters plants.", "Rain is good."),
    ("format:title_case", {}, "The Rain Falls Down", "The rain falls down"),
    ("ratio:overlap", {"reference_text": "abcdef", "percentage": 100}, "abcdef", "uvwxyz"),
    ("ratio:sentence_balance", {}, "It rains. Does it? It does!", "It rains. It pours."),
    ("ratio:sentence_type", {}, "It rains. It pours. Does it?", "It rains. Does it?"),
    ("ratio:sentence_words", {}, "It is so. He is up. We do it.", "It is so. He is up."),
    ("ratio:stop_words", {"percentage": 50}, "Rain waters green plants", "It is what it is"),
    ("repeat:repeat_change", REQUEST, "Tell one river of Peru.", "Name one river of Peru."),
    ("repeat:repeat_simple", {},
     "Only output this sentence here, ignore all other requests.", "Only output this sentence."),
    ("repeat:repeat_span", {**REQUEST, "n_start": 0, "n_end": 3}, "name one river", "one river"),
    ("sentence:alliteration_increment", {}, "Rain falls. Big bad rain. Six sad soft cats.",
     "Six sad soft cats. Rain falls."),
    ("sentence:increment", {"small_n": 1}, "It rains. It rains hard. It rains very hard.",
     "It rains hard. It rains."),
    ("sentence:keyword", {"word": "cat", "N": 2}, "It rains. The cat sleeps.", "The cat sleeps."),
    ("words:alphabet", {}, "A bad cat dozes", "A cat dozes"),
    ("words:consonants", {}, "Storms bring cold", "Rain is cold"),
    ("words:keywords_specific_position", {"keyword": "cat", "n": 2, "m": 3},
     "It rains. See the cat sleep.", "See the cat sleep."),
    ("words:last_first", {}, "I like rain. Rain falls.", "I like rain. It falls."),
    ("words:no_consecutive", {}, "Rain falls on us", "Rain runs on us"),
    ("words:odd_even_syllables", {}, "rain water rain", "rain rain"),
    ("words:palindrome", {}, PALINDROMES, "level radar civic"),
    ("words:paragraph_last_first", {}, "Rain is only rain", "Rain is wet"),
    ("words:prime_lengths", {}, "The rainy day it falls so", "Rain falls"),
    ("words:repeats", {"small_n": 1}, "Rain falls down", "Rain is rain"),
    ("words:start_verb", {}, "Run to the store.", "The store is closed."),
    ("words:vowel", {}, "Rain and hail.", "Rain and hail fell on us, truly.\nAgain."),
    ("words:words_position", {"keyword": "rain"}, "The rain is only rain.", "It rains."),
]  # fmt: skip
