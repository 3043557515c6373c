"""Length, repetition and copying of the replies in evaluations, as a Markdown table with a row per
suite and model.

Repetitive: some sequence of four words occurs more than five times. Copied: at least half of the
reply's sequences of four words are in the prompt.
"""

import argparse
from collections import Counter
from pathlib import Path
from statistics import mean, median

import pyarrow.parquet as pq

from seif_jax.diversity import ngrams

NGRAM = 4  # words in a row
MOST = 5  # times that a reply may contain a sequence
COPIED = 0.5  # of a reply's sequences are in the prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="--out of `seif evaluate`"
    )
    rows: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for folder in parser.parse_args().folders:
        path = folder / "responses.parquet"
        if not path.is_file():
            parser.error(f"{folder}: no evaluation, it has no {path.name}")
        columns = ["suite", "model", "prompt", "response"]
        for row in pq.read_table(path, columns=columns).to_pylist():
            key = (str(folder), row["suite"], row["model"])
            rows.setdefault(key, []).append((row["prompt"], row["response"]))
    print("| folder | suite | model | replies | median words | repetitive | copied |")
    print("|---|---|---|---|---|---|---|")
    for key, pairs in rows.items():
        words = median(len(reply.split()) for _, reply in pairs)
        repetitive = mean(is_repetitive(reply) for _, reply in pairs)
        copied = mean(is_copied(reply, prompt) for prompt, reply in pairs)
        cells = [*key, str(len(pairs)), f"{words:g}", f"{repetitive:.2f}", f"{copied:.2f}"]
        print("|", " | ".join(cells), "|")


def is_repetitive(reply: str) -> bool:
    return max(Counter(sequences(reply)).values(), default=0) > MOST


def is_copied(reply: str, prompt: str) -> bool:
    own, known = sequences(reply), set(sequences(prompt))
    return bool(own) and mean(sequence in known for sequence in own) >= COPIED


def sequences(text: str) -> list[tuple[str, ...]]:
    return ngrams(text.lower().split(), NGRAM)


if __name__ == "__main__":
    main()
