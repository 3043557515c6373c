"""Dialogues to tokens and back, with an engine that only records its calls."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CHATML, tiny_config, tiny_tokenizer

from seif_jax import models
from seif_jax.chat import ChatModel, Decoding
from seif_jax.errors import UserError
from seif_jax.roles import follower, instructor, verdict_parser
from seif_jax.sampling import Engine, Sample, row_keys
from seif_jax.tokenizer import Tokenizer

END = 2  # <|im_end|>


CONFIG = models.describe({**tiny_config(8), "max_position_embeddings": 300}).config


class RecordingEngine(Engine):
    """Records its calls. Sample n of a call is the letter n times, then the end token; the third is
    cut off before it."""

    def __init__(self, letter: int):
        super().__init__(CONFIG, {"embed": jnp.zeros((8, 32))}, jnp.float32)
        self.letter = letter
        self.calls: list[tuple[Any, ...]] = []

    def sample(self, prompts, keys, *, group, stop_ids, on_sample, **options) -> list[Sample]:
        self.calls.append((prompts, jax.random.key_data(keys).tolist(), stop_ids))
        samples = [self.sampled(i) for i in range(len(prompts) * group)]
        for i in reversed(range(len(samples))):
            on_sample(i, samples[i])
        return samples

    def sampled(self, i: int) -> Sample:
        tokens = np.array([self.letter] * i + [self.letter if i == 2 else END], np.int32)
        return Sample(tokens, np.full(i + 1, -0.5, np.float32), i != 2)

    def next_logp(self, prompts, options, max_prompt_tokens) -> np.ndarray:
        self.calls.append((prompts, options))
        return np.log(np.array([[0.125, 0.5], [0.25, 0.0625]], np.float32)[: len(prompts)])


class ScriptedEngine(RecordingEngine):
    """Replies with one text and the end token; without the latter if the text ends in "…"."""

    def __init__(self, text: str, tokenizer: Tokenizer):
        super().__init__(0)
        self.finished = not text.endswith("…")
        self.ids = tokenizer.encode(text.removesuffix("…")) + [END] * self.finished

    def sampled(self, i: int) -> Sample:
        logp = np.zeros(len(self.ids), np.float32)
        return Sample(np.array(self.ids, np.int32), logp, self.finished)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tiny")
    return Tokenizer.load(tiny_tokenizer(folder / "tokenizer"))


def recording(tokenizer: Tokenizer) -> tuple[ChatModel, RecordingEngine]:
    engine = RecordingEngine(tokenizer.encode("a")[0])
    return ChatModel(engine, tokenizer), engine


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


LONG = turn("x" * 60)  # one token a letter
DIALOGUES = [turn("Hi"), LONG, turn("Why?")]
DECODING = Decoding(max_prompt_tokens=40, max_tokens=8, batch_size=4, prefill="B")


def test_replies_stand_with_their_dialogues(tokenizer: Tokenizer) -> None:
    model, engine = recording(tokenizer)
    replies = model.reply(DIALOGUES, DECODING, jax.random.key(3), group=2)
    assert [r and (r.text, r.ids.tolist(), r.finished) for r in replies] == [
        ("B", [END], True),
        ("Ba", [engine.letter, END], True),
        None,
        None,
        ("Baaa", [engine.letter] * 3, False),
        ("Baaa", [engine.letter] * 3 + [END], True),
    ]
    first, last = replies[0], replies[5]
    assert first is not None and last is not None
    assert first.prompt_ids == tokenizer.encode_chat(DIALOGUES[0], "B")
    assert last.prompt_ids == tokenizer.encode_chat(DIALOGUES[2], "B")
    assert last.logp.tolist() == [-0.5] * 4
    ((prompts, keys, stop_ids),) = engine.calls
    assert prompts == [first.prompt_ids, last.prompt_ids] and stop_ids == (END,)
    # The keys depend on the dialogue's index among all, whatever was dropped before it.
    expected = row_keys(jax.random.key(3), [0, 1, 4, 5])
    assert keys == jax.random.key_data(expected).tolist()
    # So do those of a share of the dialogues; ids may be several integers.
    model.reply([DIALOGUES[2]], DECODING, jax.random.key(3), 2, dialogue_ids=[2])
    model.reply(
        [DIALOGUES[2]], DECODING, jax.random.fold_in(jax.random.key(3), 9), 2, dialogue_ids=[2]
    )
    model.reply([DIALOGUES[2]], DECODING, jax.random.key(3), 2, dialogue_ids=[(9, 2)])
    shared, folded, named = (keys for _, keys, _ in engine.calls[1:])
    assert shared == jax.random.key_data(expected[2:]).tolist() and folded == named


def test_the_limit_counts_the_prefill(tokenizer: Tokenizer) -> None:
    model, _ = recording(tokenizer)
    length = len(tokenizer.encode_chat(turn("Hi"), "B"))
    for limit, fits in ((length, True), (length - 1, False)):
        (reply,) = model.reply([turn("Hi")], Decoding(limit, 8, 4, "B"), jax.random.key(0))
        assert (reply is not None) is fits


def test_nothing_that_fits_asks_nothing(tokenizer: Tokenizer) -> None:
    model, engine = recording(tokenizer)
    assert model.reply([LONG], DECODING, jax.random.key(0), group=3) == [None] * 3
    assert model.next_token_probs([LONG], "[[", ("0", "1"), max_prompt_tokens=40) == [None]
    assert model.reply([], DECODING, jax.random.key(0)) == [] and engine.calls == []


def test_limits_beyond_the_model_are_named(tokenizer: Tokenizer) -> None:
    model, _ = recording(tokenizer)
    with pytest.raises(UserError, match="max_prompt_tokens=290 and max_tokens=11 exceed .* 300"):
        model.reply([turn("Hi")], Decoding(290, 11, 4), jax.random.key(0))
    model.reply([turn("Hi")], Decoding(290, 10, 4), jax.random.key(0))


def test_next_token_probs(tokenizer: Tokenizer) -> None:
    model, engine = recording(tokenizer)
    probs = model.next_token_probs(DIALOGUES, "[[", ("0", "1"), max_prompt_tokens=40)
    assert probs == [pytest.approx([0.125, 0.5]), None, pytest.approx([0.25, 0.0625])]
    ((prompts, options),) = engine.calls
    assert prompts == [tokenizer.encode_chat(DIALOGUES[i], "[[") for i in (0, 2)]
    assert options == (tokenizer.encode("0")[0], tokenizer.encode("1")[0])


def test_an_option_of_several_tokens_is_refused(tokenizer: Tokenizer) -> None:
    model, _ = recording(tokenizer)
    for prefill, option in (("[[", "10"), ("The word", "ing the")):
        with pytest.raises(UserError, match=f"'{option}' is not one token after the prefill"):
            model.next_token_probs(DIALOGUES, prefill, (option,), max_prompt_tokens=40)
    with pytest.raises(UserError, match="'he' is not one token"):  # it melts into what is before
        model.next_token_probs(DIALOGUES, " t", ("he",), max_prompt_tokens=40)


def test_coins_are_fair_and_functions_of_key_stream_and_id(tokenizer: Tokenizer) -> None:
    model, engine = recording(tokenizer)
    key, one, two = (
        jax.random.key(3),
        Decoding(9, 9, 9, rng_stream=1),
        Decoding(9, 9, 9, rng_stream=2),
    )
    coins = model.coin_flips(range(4000), one, key)
    assert coins == model.coin_flips(range(4000), one, key) and coins[5:7] == model.coin_flips(
        [5, 6], one, key
    )
    assert abs(sum(coins) / 4000 - 0.5) < 0.03  # four standard errors
    others = (
        model.coin_flips(range(4000), two, key),
        model.coin_flips(range(4000), one, jax.random.key(4)),
        coins[1:],
    )
    for other in others:
        agreement = np.mean([a == b for a, b in zip(coins, other, strict=False)])
        assert abs(agreement - 0.5) < 0.03
    assert engine.calls == []


OPENED, CLOSED = "<think>\n", "<think>\n\n</think>\n\n"  # DeepSeek-R1's; Qwen3's without thinking


@pytest.mark.parametrize(
    ("opens", "prefill", "written", "answer", "plain"),
    [
        # (what the template opens, the config's prefill, what the model writes, its answer as
        # think_answer and as plain)
        ("", "", "<think>a</think>\n<answer>b</answer>", "b", "<answer>b</answer>"),
        ("", "", "a</think>\n<answer>b</answer>", None, None),
        (OPENED, "", "a</think>\n<answer>b</answer>", "b", "<answer>b</answer>"),
        (OPENED, "", "</think><answer>b c</answer>\n", "b c", "<answer>b c</answer>"),
        (OPENED, "Well, ", "a</think>\n<answer>b</answer>", "b", "<answer>b</answer>"),
        (OPENED, "</think>\n<answer>", "b</answer>", "b", "<answer>b</answer>"),
        (OPENED, "", "<think>a</think>\n<answer>b</answer>", None, "<answer>b</answer>"),
        (OPENED, "", "a</think>b", None, "b"),
        (OPENED, "", "a</think>b</think>\nc", None, "b</think>\nc"),
        (OPENED, "", "I never close it", None, ""),
        (OPENED, "", "I am cut off…", None, ""),
        (CLOSED, "", "<answer>b</answer>", "b", "<answer>b</answer>"),
        (CLOSED, "", "<think>a</think>\n<answer>b</answer>", "b", "<answer>b</answer>"),
        (CLOSED, "", "\n<think>a</think><answer>b</answer>", "b", "<answer>b</answer>"),
        (CLOSED, "<think>", "a</think><answer>b</answer>", "b", "<answer>b</answer>"),
        (CLOSED, "", "a <answer>b</answer>", None, "a <answer>b</answer>"),
        (CLOSED, "", "<think>a</think><think>a</think><answer>b</answer>", None, None),
        (CLOSED, "", "b", None, "b"),
    ],
)
def test_what_the_prompt_opens_counts_as_written(
    tmp_path: Path, opens: str, prefill: str, written: str, answer: str | None, plain: str | None
) -> None:
    template = CHATML.replace("assistant\\n", "assistant\\n" + opens.replace("\n", "\\n"))
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path, template))
    engine = ScriptedEngine(written, tokenizer)
    decoding = Decoding(max_prompt_tokens=200, max_tokens=8, batch_size=4, prefill=prefill)
    (reply,) = ChatModel(engine, tokenizer).reply([turn("Hi")], decoding, jax.random.key(0))
    assert reply is not None
    assert tokenizer.decode(reply.prompt_ids).endswith(opens + prefill)
    assert follower.read(reply.text, "think_answer") == answer
    if plain is not None:
        assert follower.read(reply.text, "plain") == plain


def test_other_roles_read_past_an_opened_thought(tmp_path: Path) -> None:
    """The Instructor's constraints and the verdicts of Filter and Judger."""
    template = CHATML.replace("assistant\\n", "assistant\\n<think>\\n")
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path, template))
    decoding = Decoding(max_prompt_tokens=200, max_tokens=8, batch_size=4)

    def reply_text(written: str) -> str:
        engine = ScriptedEngine(written, tokenizer)
        (reply,) = ChatModel(engine, tokenizer).reply([turn("Hi")], decoding, jax.random.key(0))
        assert reply is not None
        return reply.text

    three = '{"c1": "Use one word.", "c2": "Use no commas.", "c3": "Be kind."}'
    text = reply_text(f'Maybe {{"c1": "x"}}?</think>\n<answer>{three}</answer>')
    parsed = instructor.parse(text, "hard", "Why?", format="think_answer")
    assert parsed.constraints == ["Use one word.", "Use no commas.", "Be kind."]
    assert verdict_parser.verdict(reply_text("Surely [[0]]?</think>Two of two. [[1]]")) is True
    assert verdict_parser.verdict(reply_text("Surely [[1]], I think.")) is None


@pytest.mark.parametrize(
    ("opens", "prefill", "expected"),
    [
        ("", "Verdict: [[", "Verdict: [["),
        (OPENED, "[[", "<think>\n\n</think>\n\n[["),
        (OPENED, "done</think>[[", "<think>\ndone</think>[["),
        (CLOSED, "[[", f"{CLOSED}[["),
    ],
)
def test_a_verdict_is_not_read_inside_a_thought(
    tmp_path: Path, opens: str, prefill: str, expected: str
) -> None:
    template = CHATML.replace("assistant\\n", "assistant\\n" + opens.replace("\n", "\\n"))
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path, template))
    model, engine = recording(tokenizer)
    model.next_token_probs([turn("Hi")], prefill, ("0", "1"), max_prompt_tokens=99)
    ((prompts, _),) = engine.calls
    assert tokenizer.decode(prompts[0]).endswith(f"assistant\n{expected}")
