"""Feeds hostile text to every parser of replies and data rows, and measures how their time grows.

    python tools/fuzz_parsers.py --growth --count=1000000 --seconds=3600

With --growth, every parser first gets adversarial texts of two sizes: its time per character may
grow by at most a factor of 2 from the smaller to the larger one. Then every parser gets --count
random texts, on which it must not raise an exception. A text depends only on its number, so a
failure can be reproduced with --start=NUMBER --count=1. Prints one JSON object with the counts, the
failures and each parser's time per byte. Exits with 1 if something failed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import hostile

SMALL, FACTOR = 8000, 4  # characters of the small texts; large texts have FACTOR times as many
MOST_GROWTH = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="random texts")
    parser.add_argument("--start", type=int, default=0, help="the number of the first one")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stops after them")
    parser.add_argument("--growth", action="store_true", help="also measures how time grows")
    args = parser.parse_args()
    failures: list[str] = []
    growth = {name: worst_growth(name, failures) for name in hostile.PARSERS if args.growth}
    done, total_bytes, secs = fuzz(args.start, args.count, args.seconds, failures)
    report = {
        "texts": done,
        "parsers": len(hostile.PARSERS),
        "bytes": total_bytes,
        "ns_per_byte": {name: round(1e9 * t / max(total_bytes, 1)) for name, t in secs.items()},
        "growth": growth,
        "failures": failures,
    }
    print(json.dumps(report, indent=1))
    return int(bool(failures))


def fuzz(
    start: int, count: int, seconds: float, failures: list[str]
) -> tuple[int, int, dict[str, float]]:
    """Parses random texts. Returns their number, their bytes, and each parser's seconds."""
    secs = dict.fromkeys(hostile.PARSERS, 0.0)
    total_bytes, begun = 0, time.monotonic()
    for done in range(count):
        if time.monotonic() - begun > seconds:
            return done, total_bytes, secs
        text = hostile.fuzzed(start + done)
        total_bytes += len(text.encode("utf-8", "surrogatepass"))
        for name, parse in hostile.PARSERS.items():
            before = time.perf_counter()
            try:
                parse(text)
            except Exception as error:
                failures.append(f"{name}: text {start + done}: {type(error).__name__}: {error}")
            secs[name] += time.perf_counter() - before
    return count, total_bytes, secs


def worst_growth(name: str, failures: list[str]) -> float:
    """The largest factor by which a parser's time per character grows for a longer text."""
    parse, worst = hostile.PARSERS[name], 1.0
    texts = zip(hostile.shapes(SMALL), hostile.shapes(SMALL * FACTOR), strict=True)
    for small, large in texts:
        growth = hostile.growth(parse, small, large)
        worst = max(worst, growth)
        if growth > MOST_GROWTH:
            failures.append(f"{name}: time per byte grows {growth:.1f} times on {small[:12]!r}…")
    return round(worst, 2)


if __name__ == "__main__":
    sys.exit(main())
