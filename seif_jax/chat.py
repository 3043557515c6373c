"""A model one can talk to: dialogues in, replies or probabilities out. Weights plus tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from seif_jax.errors import UserError
from seif_jax.roles.format import after_thought, whole_reply
from seif_jax.sampling import Engine, Sample, row_keys
from seif_jax.sampling.methods import Method
from seif_jax.tokenizer import Tokenizer

Message = dict[str, str]


@dataclass(frozen=True)
class Decoding:
    """How replies are made. Lengths in tokens; batch_size in samples at a time."""

    max_prompt_tokens: int
    max_tokens: int
    batch_size: int
    prefill: str = ""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    rng_stream: int = 0  # roles that share a key draw from different streams

    @property
    def method(self) -> Method:
        return Method(self.temperature, self.top_k, self.top_p)

    def stream(self, key: jax.Array) -> jax.Array:
        """The key of this decoding's stream of random numbers."""
        return jax.random.fold_in(key, self.rng_stream) if self.rng_stream else key

    def check(self, positions: int) -> None:
        """UserError for what a model of so many positions cannot do."""
        if self.max_prompt_tokens + self.max_tokens > positions:
            raise UserError(
                f"max_prompt_tokens={self.max_prompt_tokens} and max_tokens={self.max_tokens} "
                f"exceed the model's {positions} positions"
            )
        _ = self.method


@dataclass(frozen=True)
class Reply:
    text: str  # thought that the prompt opens, prefill, what was sampled; without control tokens
    prompt_ids: list[int]  # the prefill included
    ids: np.ndarray  # sampled, int32 [C], the stop token included
    logp: np.ndarray  # of each, float32 [C], at the sampling temperature
    finished: bool  # by a stop token; False: cut at max_tokens


Ended = Callable[[int, Reply | None], None]


def ignore(row: int, reply: Reply | None) -> None:
    """What is done with a reply as it ends, where nothing is."""


class ChatModel:
    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        self.engine, self.tokenizer = engine, tokenizer

    def encode(self, dialogues: Sequence[list[Message]], prefill: str) -> list[list[int]]:
        return [self.tokenizer.encode_chat(dialogue, prefill) for dialogue in dialogues]

    def reply(
        self,
        dialogues: Sequence[list[Message]],
        decoding: Decoding,
        key: jax.Array,
        group: int = 1,
        ended: Ended = ignore,
        numbers: Sequence[Any] | None = None,
    ) -> list[Reply | None]:
        """`group` replies to each dialogue, in their order; None for one that is too long.

        numbers: of each dialogue, a number or several; none: its place. Reply i of a dialogue
        depends on the dialogue, `key` and number·group + i alone (of several, the last number).
        `ended` is told of every reply by its place, in the order in which they end, while others
        are sampled.
        """
        prompts = self.encode(dialogues, decoding.prefill)
        opened = [self.tokenizer.opening(dialogue) for dialogue in dialogues]
        return self.complete(prompts, decoding, key, group, ended, numbers, opened)

    def complete(
        self,
        prompts: Sequence[list[int]],
        decoding: Decoding,
        key: jax.Array,
        group: int = 1,
        ended: Ended = ignore,
        numbers: Sequence[Any] | None = None,
        opened: Sequence[str] | None = None,
    ) -> list[Reply | None]:
        """As `reply`, for prompts that are encoded already, the prefill included. opened: what each
        of them has written of its reply; none: nothing."""
        decoding.check(self.engine.config.max_positions)
        fit = [i for i, ids in enumerate(prompts) if len(ids) <= decoding.max_prompt_tokens]
        replies: list[Reply | None] = [None] * (len(prompts) * group)
        rows = [i * group + g for i in fit for g in range(group)]
        for row in sorted({*range(len(replies))} - {*rows}):
            ended(row, None)
        if not fit:
            return replies

        of_dialogues = np.array(range(len(prompts)) if numbers is None else numbers, np.uint32)
        addresses = np.repeat(of_dialogues.reshape(len(prompts), -1)[fit], group, axis=0)
        addresses[:, -1] = addresses[:, -1] * group + np.tile(np.arange(group), len(fit))

        def take(n: int, sample: Sample) -> None:
            row = rows[n]
            written = decoding.prefill + self.tokenizer.decode(sample.tokens)
            prompt = prompts[row // group]
            text = whole_reply(opened[row // group], written) if opened else written
            reply = Reply(text, prompt, sample.tokens, sample.logp, sample.stopped)
            replies[row] = reply
            ended(row, reply)

        self.engine.sample(
            [prompts[i] for i in fit],
            row_keys(
                decoding.stream(key),
                addresses,
            ),
            group=group,
            max_tokens=decoding.max_tokens,
            method=decoding.method,
            stop_ids=self.tokenizer.stop_ids,
            batch_size=decoding.batch_size,
            ended=take,
        )
        return replies

    def next_token_probs(
        self,
        dialogues: Sequence[list[Message]],
        prefill: str,
        options: tuple[str, ...],
        *,
        max_prompt_tokens: int,
        batch_size: int,
    ) -> list[list[float] | None]:
        """Probability of each option as what follows the prefill; None for a dialogue too long.

        An option must be one token there (UserError): then a forward pass says it all. A thought
        that the prompt opens is closed before the prefill.
        """
        ids = tuple(one_token(self.tokenizer, prefill, option) for option in options)
        prompts = [
            self.tokenizer.encode_chat(d, after_thought(self.tokenizer.opening(d), prefill))
            for d in dialogues
        ]
        fit = [i for i, tokens in enumerate(prompts) if len(tokens) <= max_prompt_tokens]
        result: list[list[float] | None] = [None] * len(prompts)
        if fit:
            logp = self.engine.next_logp([prompts[i] for i in fit], ids, batch_size)
            for i, row in zip(fit, np.exp(logp.astype(np.float64)), strict=True):
                result[i] = row.tolist()
        return result

    def coin_flips(self, numbers: Sequence[Any], decoding: Decoding, key: jax.Array) -> list[bool]:
        """Fair coin flips; each depends only on `key`, the decoding's rng_stream and its ids."""
        keys = row_keys(decoding.stream(key), numbers)
        return jax.vmap(jax.random.bernoulli)(keys).tolist()


def one_token(tokenizer: Tokenizer, prefill: str, option: str) -> int:
    """The one token that the option is after the prefill; UserError: it is more than one."""
    before, after = tokenizer.encode(prefill), tokenizer.encode(prefill + option)
    if after[:-1] != before:
        raise UserError(f"{option!r} is not one token after the prefill {prefill!r}")
    return after[-1]
