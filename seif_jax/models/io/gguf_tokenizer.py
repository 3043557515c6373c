"""The tokenizer that a GGUF file describes, built as the model's own tokenizer.json has it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seif_jax.errors import UserError

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(1, 6)  # values of token_type

CL100K = (  # after the encoding of tiktoken that had it first
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Words(NamedTuple):
    """How byte-level BPE cuts text before it merges."""

    pattern: str | None = None  # None: GPT-2's
    digits: bool = False  # every digit by itself, before all else
    nfc: bool = False  # text is composed first (Unicode's NFC)
    whole: bool = False  # a word that is a token is not taken apart, whatever the merges say
    bos: bool = False  # text begins with the start token where the file does not say


WORDS = {  # by the key `pre`
    "gpt-2": Words(),
    "smollm": Words(digits=True),
    "llama-bpe": Words(CL100K % "{1,3}", whole=True, bos=True),
    "qwen2": Words(CL100K % "", nfc=True),
    "deepseek-r1-qwen": Words(CL100K % "", nfc=True),
}
KNOWN = {  # by the key `model`: keys that change the ids, and what is understood of each
    "gpt2": {"pre": (*WORDS,), "add_space_prefix": (None, False)},
    "llama": {"remove_extra_whitespaces": (None, False)},
}
NEEDED = {"gpt2": "merges", "llama": "scores"}


def backend(path: Path, data: Mapping[str, Any]) -> Any:
    """A `tokenizers.Tokenizer` from a file's metadata, its control tokens special.

    Raises UserError naming the key: a tokenizer that is not known here, or one that is incomplete.
    """
    kind = data.get(f"{PREFIX}model", "")
    for key, known in {"model": (*KNOWN,), **KNOWN.get(kind, {})}.items():
        if (value := data.get(PREFIX + key)) not in known:
            raise UserError(
                f"{path}: {PREFIX}{key} is {value!r}; only {', '.join(map(str, known))} is known, "
                "use the model's Hugging Face folder"
            )
    for key in ("tokens", "token_type", NEEDED[kind]):
        if PREFIX + key not in data:
            raise UserError(f"{path}: {PREFIX}{key} is missing")
    ours = {key.removeprefix(PREFIX): v for key, v in data.items() if key.startswith(PREFIX)}
    if kind == "llama" and (more := _beyond_llama_2(ours)):
        raise UserError(
            f"{path}: token {more[0]} of a SentencePiece tokenizer is special, and the file does "
            "not tell whether a space follows it, use the model's Hugging Face folder"
        )
    try:
        made = _byte_level(ours) if kind == "gpt2" else _sentencepiece(ours)
        _add_special(made, ours)
    except Exception as error:  # `tokenizers` raises bare Exception for merges that do not fit
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: the tokenizer cannot be built ({reason})") from error
    return made


def _byte_level(data: Mapping[str, Any]) -> Any:
    """BPE over bytes, each of them spelled as one visible character (GPT-2's alphabet)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    words = WORDS[data["pre"]]
    merges = [tuple(merge.split(" ")) for merge in data["merges"]]
    made = Tokenizer(models.BPE(vocab=_vocabulary(data), merges=merges, ignore_merges=words.whole))
    if words.nfc:
        made.normalizer = normalizers.NFC()
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if words.digits else []
    if words.pattern is not None:
        cuts.append(pre_tokenizers.Split(Regex(words.pattern), "isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words.pattern is None))
    made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(data: Mapping[str, Any]) -> Any:
    """BPE over characters with bytes for those unknown, as tokenizer.json of Llama 2 has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(data)
    kinds, scores = data["token_type"], data["scores"]
    unknown = next((token for token, i in vocabulary.items() if kinds[i] == UNKNOWN), None)
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges({t: scores[i] for t, i in vocabulary.items() if kinds[i] == NORMAL}),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    plain: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if data.get("add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        plain.append(decoders.Strip(" ", left=1))
    made.normalizer = normalizers.Sequence(spaces)
    made.decoder = decoders.Sequence(plain)
    return made


def _beyond_llama_2(data: Mapping[str, Any]) -> list[str]:
    """Added tokens besides start, end, unknown and padding. Text after one begins with a space in
    the models whose tokenizers are as Llama 2's (Mistral 7B v0.2), in later ones not (v0.3)."""
    named = {data.get(f"{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    kinds = data["token_type"]
    return [
        token
        for i, (token, kind) in enumerate(zip(data["tokens"], kinds, strict=False))
        if kind in (CONTROL, USER_DEFINED) and i not in named
    ]


def _vocabulary(data: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, without the padding up to the embedding's rows."""
    named = zip(data["tokens"], data["token_type"], strict=True)
    return {token: i for i, (token, kind) in enumerate(named) if kind != UNUSED}


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to join two tokens to a third, in the order of transformers' conversion: that of
    the better score first, then that of the longer left half."""
    found = [
        (token[:i], token[i:])
        for token in scores
        for i in range(1, len(token))
        if token[:i] in scores and token[i:] in scores
    ]
    return sorted(found, key=lambda pair: (scores["".join(pair)], *map(len, pair)), reverse=True)


def _add_special(made: Any, data: Mapping[str, Any]) -> None:
    """The added tokens, and the start token for those who ask for it with plain text."""
    from tokenizers import AddedToken, processors

    tokens, kinds = data["tokens"], data["token_type"]
    made.add_tokens(
        [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    default = data["model"] == "llama" or WORDS[data["pre"]].bos
    if "bos_token_id" in data and data.get("add_bos_token", default):
        bos = tokens[data["bos_token_id"]]
        made.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", f"{bos}:1", "$B:1"],
            special_tokens=[(bos, data["bos_token_id"])],
        )
