"""A model in the form that lm-eval calls: its requests through our sampler and forward pass."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from seif_jax.chat import ChatModel, Decoding, Reply
from seif_jax.evaluate.progress import Progress
from seif_jax.sampling.continuations import continuation_logp

MAX_TOKENS = 256  # of a reply if the task sets no limit: the default of lm-eval's own models
SLOTS = 64  # sequences that decode together
BATCH_SIZE = 512  # log-likelihoods that are computed before they are stored

Pair = tuple[list[int], list[int]]  # token ids of a context and its continuation
T = TypeVar("T")
Request = tuple[tuple[str, str], list[int], list[int]]  # both texts, then their token ids


class HarnessModel(TemplateLM):
    """Answers the three kinds of requests that lm-eval's tasks make.

    Texts are encoded as transformers encodes them: control tokens in them are read as such, and
    the start token comes first if the tokenizer adds one and the text does not begin with it. A
    context that is too long loses its beginning.
    """

    def __init__(self, model: ChatModel, label: str, key: jax.Array, progress: Progress):
        super().__init__()
        self._model, self._label, self._key, self._progress = model, label, key, progress
        self._positions = model.engine.config.max_positions

    @property
    def eot_token_id(self) -> int:
        return self._model.tokenizer.stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        start = self._model.tokenizer.bos_id
        return self.eot_token_id if start is None else start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        tokenizer = self._model.tokenizer
        ids = tokenizer.encode_markup(string)
        prefix = [] if add_special_tokens is False else tokenizer.prefix_ids
        return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        scores: list[tuple[float, bool]] = []
        for batch in self._batches("log-likelihoods", requests):
            # A context of only white space has no tokens: they are part of the continuation.
            contexts = [context or [self.prefix_token_id] for _, context, _ in batch]
            logp = continuation_logp(self._model.engine, contexts, [ids for *_, ids in batch])
            for (texts, *_), score in zip(batch, logp, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, score)
            scores += logp
        return scores

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        totals: list[float] = []
        for batch in self._batches("rolling log-likelihoods", requests):
            windows = [self._windows(request.args[0]) for request in batch]
            contexts = [context for pairs in windows for context, _ in pairs]
            continuations = [ids for pairs in windows for _, ids in pairs]
            logp = iter(continuation_logp(self._model.engine, contexts, continuations))
            for request, pairs in zip(batch, windows, strict=True):
                total = sum(score for score, _ in islice(logp, len(pairs)))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
                totals.append(total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The replies, each cut at the first of the task's stop texts."""
        replies = [""] * len(requests)
        arguments = [normalize_gen_kwargs(request.args[1], MAX_TOKENS) for request in requests]
        self._progress.start(f"{self._label} replies", len(requests))
        groups: dict[Decoding, list[int]] = defaultdict(list)
        for i, kwargs in enumerate(arguments):
            groups[self._decoding(kwargs)].append(i)
        for decoding, indices in groups.items():

            def on_reply(n: int, reply: Reply | None, indices: Sequence[int] = indices) -> None:
                assert reply, "contexts are cut so that they fit"
                i = indices[n]
                replies[i] = postprocess_generated_text(reply.text, arguments[i]["until"], None)
                self.cache_hook.add_partial("generate_until", requests[i].args, replies[i])
                self._progress.advance()

            prompts = [
                self.tok_encode(requests[i].args[0])[-decoding.max_prompt_tokens :] for i in indices
            ]
            self._model.complete(prompts, decoding, self._key, 1, on_reply, indices)
        return replies

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        render = self._model.tokenizer.render
        if add_generation_prompt:
            return render(chat_history)
        *history, reply = chat_history  # the beginning of the reply, to be continued
        return render(history) + reply["content"]

    @property
    def tokenizer_name(self) -> str:
        return self._label

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._model.tokenizer.template if chat_template else None

    def _decoding(self, kwargs: dict[str, object]) -> Decoding:
        """How a task wants its replies sampled, from its normalized generation arguments."""
        limit = kwargs["max_gen_toks"]
        temperature = kwargs.get("temperature", 1.0) if kwargs["do_sample"] else 0.0
        return Decoding(
            self._positions - limit,
            limit,
            SLOTS,
            "",
            float(temperature),
            int(kwargs.get("top_k") or 0),
            float(kwargs.get("top_p") or 1.0),
        )

    def _windows(self, text: str) -> list[Pair]:
        """A text in parts that fit the model's positions; every token is predicted once."""
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self._positions,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def _batches(self, title: str, requests: Sequence[T]) -> Iterator[Sequence[T]]:
        """The requests in batches. Shows the progress, and stores the scores of each batch."""
        self._progress.start(f"{self._label} {title}", len(requests))
        for start in range(0, len(requests), BATCH_SIZE):
            batch = requests[start : start + BATCH_SIZE]
            yield batch
            self._progress.advance(len(batch))
