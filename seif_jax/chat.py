"""Chat models: an engine with a tokenizer, from dialogues to replies or probabilities."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int, Key

from seif_jax.compilation import Signature
from seif_jax.errors import UserError
from seif_jax.roles.reply_format import Message, whole_reply
from seif_jax.sampling import Address, Engine, Sample, row_keys
from seif_jax.sampling.methods import Method
from seif_jax.tokenizer import Tokenizer


@dataclass(frozen=True)
class Decoding:
    """How replies are sampled. Lengths are in tokens.

        Decoding(max_prompt_tokens=100, max_tokens=40, batch_size=8, temperature=0.7, top_p=0.9)

    Sampling raises UserError for a temperature, top_k or top_p out of range.
    """

    max_prompt_tokens: int  # a longer prompt gets no reply
    max_tokens: int  # per reply
    batch_size: int  # samples decoded at a time
    prefill: str = ""  # the reply starts with this text
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    rng_stream: int = 0  # roles that share a key draw from different streams
    memory: float = 0.8  # share of the free memory for keys and values: `Engine.sample`

    @property
    def method(self) -> Method:
        return Method(self.temperature, self.top_k, self.top_p)

    def stream(self, key: Key[jax.Array, ""]) -> Key[jax.Array, ""]:
        """The key for this role's random numbers."""
        return jax.random.fold_in(key, self.rng_stream) if self.rng_stream else key

    def check(self, positions: int) -> None:
        """Raises UserError if the lengths exceed a model's positions or a value is out of range."""
        if self.max_prompt_tokens + self.max_tokens > positions:
            raise UserError(
                f"max_prompt_tokens={self.max_prompt_tokens} and max_tokens={self.max_tokens} "
                f"exceed the model's {positions} positions"
            )
        _ = self.method


@dataclass(frozen=True)
class Reply:
    """A sampled reply."""

    text: str  # includes `Tokenizer.opening` and the prefill, but no control tokens
    prompt_ids: list[int]  # including the prefill
    ids: Int[np.ndarray, "C"]  # int32: the sampled tokens, including the stop token
    logp: Float[np.ndarray, "C"]  # float32: their log-probabilities at the sampling temperature
    finished: bool  # whether it ends with a stop token; False: cut off at max_tokens


OnReply = Callable[[int, Reply | None], None]  # (index, reply); None: the prompt is too long


def ignore(index: int, reply: Reply | None) -> None:
    """The default of `on_reply`."""


@runtime_checkable
class Replier(Protocol):
    """What samples replies: a `ChatModel`, or a stand-in for one, which describes the members."""

    @property
    def processes_per_copy(self) -> int: ...

    def reply(
        self,
        dialogues: Sequence[list[Message]],
        decoding: Decoding,
        key: Key[jax.Array, ""],
        group: int,
        on_reply: OnReply,
        dialogue_ids: Iterable[Address] | None,
        /,
    ) -> list[Reply | None]: ...
    def reply_signatures(
        self, num_dialogues: int, decoding: Decoding, group: int, /
    ) -> Iterator[Signature]: ...


class ChatModel:
    """A model that takes dialogues: weights (`engine`) and a tokenizer.

    `seif_jax.load_model` makes one. A dialogue is a list of {"role": …, "content": …}, as for a
    Hugging Face chat template.

        model = seif_jax.load_model("smollm2")
        decoding = seif_jax.Decoding(max_prompt_tokens=100, max_tokens=40, batch_size=8)
        [reply] = model.reply([[{"role": "user", "content": "Hi!"}]], decoding, jax.random.key(0))
        print(reply.text, reply.logp.sum())
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer):
        self.engine, self.tokenizer = engine, tokenizer

    @property
    def processes_per_copy(self) -> int:
        """The number of processes that share a copy of the weights. They make the same calls."""
        return self.engine.processes_per_copy

    def reply(
        self,
        dialogues: Sequence[list[Message]],
        decoding: Decoding,
        key: Key[jax.Array, ""],
        group: int = 1,
        on_reply: OnReply = ignore,
        dialogue_ids: Iterable[Address] | None = None,
    ) -> list[Reply | None]:
        """Returns `group` replies per dialogue, in the order of the dialogues. They are None for a
        dialogue that is too long.

        on_reply: called with each reply and its index as soon as it ends, while others are being
        sampled. dialogue_ids: identify the dialogues; their indices by default. Reply g to a
        dialogue depends only on the dialogue, `key` and id·group + g (if the id is a sequence of
        integers, this replaces the last one).
        """
        prompts = self.tokenizer.encode_chats(dialogues, decoding.prefill)
        ids, openings = [prompt.ids for prompt in prompts], [prompt.opening for prompt in prompts]
        return self.complete(ids, decoding, key, group, on_reply, dialogue_ids, openings)

    def complete(
        self,
        prompts: Sequence[list[int]],
        decoding: Decoding,
        key: Key[jax.Array, ""],
        group: int = 1,
        on_reply: OnReply = ignore,
        prompt_ids: Iterable[Address] | None = None,
        openings: Sequence[str] | None = None,
    ) -> list[Reply | None]:
        """Like `reply`, for prompts that are already encoded, including the prefill.

        openings: the part of the reply that each prompt contains (see `ChatPrompt`); None if there
        is no such part.
        """
        decoding.check(self.engine.config.max_positions)
        fit = [i for i, ids in enumerate(prompts) if len(ids) <= decoding.max_prompt_tokens]
        replies: list[Reply | None] = [None] * (len(prompts) * group)
        rows = [i * group + g for i in fit for g in range(group)]
        for row in sorted({*range(len(replies))} - {*rows}):
            on_reply(row, None)
        if not fit:
            return replies

        ids = range(len(prompts)) if prompt_ids is None else list(prompt_ids)
        addresses = np.array(ids, np.uint32).reshape(len(prompts), -1)[fit]
        addresses = np.repeat(addresses, group, axis=0)
        addresses[:, -1] = addresses[:, -1] * group + np.tile(np.arange(group), len(fit))

        def store(i: int, sample: Sample) -> None:
            row = rows[i]
            text = decoding.prefill + self.tokenizer.decode(sample.tokens)
            if openings:
                text = whole_reply(openings[row // group], text)
            reply = Reply(text, prompts[row // group], sample.tokens, sample.logp, sample.stopped)
            replies[row] = reply
            on_reply(row, reply)

        self.engine.sample(
            [prompts[i] for i in fit],
            row_keys(decoding.stream(key), addresses),
            **self._sampling_options(decoding, group),
            on_sample=store,
        )
        return replies

    def reply_signatures(
        self, num_dialogues: int, decoding: Decoding, group: int = 1
    ) -> Iterator[Signature]:
        """Lists the programs that `reply` runs for up to `num_dialogues` dialogues, before these
        exist. See `Engine.sample_signatures`."""
        if num_dialogues:
            options = self._sampling_options(decoding, group)
            yield from self.engine.sample_signatures(num_dialogues, **options)

    def _sampling_options(self, decoding: Decoding, group: int) -> dict[str, Any]:
        """The arguments of `Engine.sample` on which its programs depend."""
        return {
            "group": group,
            "max_tokens": decoding.max_tokens,
            "method": decoding.method,
            "stop_ids": self.tokenizer.stop_ids,
            "batch_size": decoding.batch_size,
            "max_prompt_tokens": decoding.max_prompt_tokens,
            "memory": decoding.memory,
        }

    def next_token_probs(
        self,
        dialogues: Sequence[list[Message]],
        prefill: str,
        options: tuple[str, ...],
        *,
        max_prompt_tokens: int,
    ) -> list[list[float] | None]:
        """Returns, per dialogue, the probability of each option as the token after the prefill;
        None for a dialogue that is too long.

        A thought that the prompt opens is closed before the prefill. Raises UserError if an option
        is not a single token there.
        """
        ids = self._option_ids(prefill, options)
        encoded = self.tokenizer.encode_chats(dialogues, prefill, close_thought=True)
        prompts = [prompt.ids for prompt in encoded]
        fit = [i for i, tokens in enumerate(prompts) if len(tokens) <= max_prompt_tokens]
        probs: list[list[float] | None] = [None] * len(prompts)
        if fit:
            logp = self.engine.next_logp([prompts[i] for i in fit], ids, max_prompt_tokens)
            for i, row in zip(fit, np.exp(logp.astype(np.float64)), strict=True):
                probs[i] = row.tolist()
        return probs

    def next_token_signatures(
        self, num_dialogues: int, prefill: str, options: tuple[str, ...], *, max_prompt_tokens: int
    ) -> Iterator[Signature]:
        """Lists the programs that `next_token_probs` runs for up to `num_dialogues` dialogues."""
        if num_dialogues:
            ids = self._option_ids(prefill, options)
            yield from self.engine.next_logp_signatures(num_dialogues, ids, max_prompt_tokens)

    def _option_ids(self, prefill: str, options: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(one_token(self.tokenizer, prefill, option) for option in options)

    def coin_flips(
        self, ids: Sequence[Address], decoding: Decoding, key: Key[jax.Array, ""]
    ) -> list[bool]:
        """A fair coin flip per id. It depends only on the id, `key` and `decoding.rng_stream`."""
        keys = row_keys(decoding.stream(key), ids)
        return jax.vmap(jax.random.bernoulli)(keys).tolist()


def one_token(tokenizer: Tokenizer, prefill: str, option: str) -> int:
    """The id of the option after the prefill. Raises UserError if it is not a single token."""
    prefill_ids, ids = tokenizer.encode(prefill), tokenizer.encode(prefill + option)
    if ids[:-1] != prefill_ids:
        raise UserError(f"{option!r} is not one token after the prefill {prefill!r}")
    return ids[-1]
