"""Builds the tokenizer that a GGUF file describes, equal to the model's own tokenizer.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seif_jax.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(1, 6)  # values of token_type

# Values of a file's tokenizer keys without PREFIX; `backend` checks that the needed keys exist.
Metadata = Mapping[str, Any]

CL100K = (  # named after tiktoken's encoding of this pattern
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Splitting(NamedTuple):
    """How byte-level BPE splits text into words, which it then merges into tokens."""

    pattern: str | None = None  # of a word; None: GPT-2's
    digits: bool = False  # every digit is a word by itself
    nfc: bool = False  # text is normalised to Unicode's NFC first
    ignore_merges: bool = False  # a word that is in the vocabulary is one token, always
    bos: bool = False  # text begins with the start token, unless the file says otherwise


SPLITTING = {  # by the key `pre`
    "gpt-2": Splitting(),
    "smollm": Splitting(digits=True),
    "llama-bpe": Splitting(CL100K % "{1,3}", ignore_merges=True, bos=True),
    "qwen2": Splitting(CL100K % "", nfc=True),
    "deepseek-r1-qwen": Splitting(CL100K % "", nfc=True),
}
SUPPORTED = {  # by the key `model`: keys that change the ids, and the supported values of each
    "gpt2": {"pre": (*SPLITTING,), "add_space_prefix": (None, False)},
    "llama": {"remove_extra_whitespaces": (None, False)},
}
NEEDED = {"gpt2": "merges", "llama": "scores"}


def backend(path: Path, metadata: Mapping[str, object]) -> "Tokenizer":
    """Builds a `tokenizers.Tokenizer` from a file's metadata; control tokens become special.

    Raises UserError naming the key if it is missing or its value is not supported.
    """
    data: Metadata = {
        key.removeprefix(PREFIX): v for key, v in metadata.items() if key.startswith(PREFIX)
    }
    kind = data.get("model", "")
    for key, supported in {"model": (*SUPPORTED,), **SUPPORTED.get(kind, {})}.items():
        if (value := data.get(key)) not in supported:
            raise UserError(
                f"{path}: {PREFIX}{key} must be one of: {', '.join(map(str, supported))} "
                f"(got {value!r}); use the model's Hugging Face folder"
            )
    for key in ("tokens", "token_type", NEEDED[kind]):
        if key not in data:
            raise UserError(f"{path}: {PREFIX}{key} is missing")
    if kind == "llama" and (special := _beyond_llama_2(data)):
        raise UserError(
            f"{path}: token {special[0]} of a SentencePiece tokenizer is special, and the file "
            "does not say whether a space follows it; use the model's Hugging Face folder"
        )
    try:
        tokenizer = _byte_level(data) if kind == "gpt2" else _sentencepiece(data)
        _add_special(tokenizer, data)
    except Exception as error:  # `tokenizers` raises bare Exception for merges that do not fit
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: the tokenizer cannot be built ({reason})") from error
    return tokenizer


def _byte_level(data: Metadata) -> "Tokenizer":
    """BPE over bytes, each written as one visible character (GPT-2's alphabet)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    splitting = SPLITTING[data["pre"]]
    merges = [tuple(merge.split(" ")) for merge in data["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=_vocabulary(data), merges=merges, ignore_merges=splitting.ignore_merges)
    )
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splitters: list[pre_tokenizers.PreTokenizer] = []
    if splitting.digits:
        splitters.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern is not None:
        splitters.append(pre_tokenizers.Split(Regex(splitting.pattern), "isolated"))
    gpt2 = splitting.pattern is None
    splitters.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(data: Metadata) -> "Tokenizer":
    """BPE over characters, with bytes for unknown ones, as in Llama 2's tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(data)
    kinds, scores = data["token_type"], data["scores"]
    unknown = next((token for token, i in vocabulary.items() if kinds[i] == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges({t: scores[i] for t, i in vocabulary.items() if kinds[i] == NORMAL}),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    encoding: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    decoding: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if data.get("add_space_prefix", True):
        encoding.insert(0, normalizers.Prepend("▁"))
        decoding.append(decoders.Strip(" ", left=1))
    tokenizer.normalizer = normalizers.Sequence(encoding)
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def _beyond_llama_2(data: Metadata) -> list[str]:
    """Added tokens other than start, end, unknown and padding. In tokenizers like Llama 2's
    (Mistral 7B v0.2) the text after such a token begins with a space, in later ones (v0.3) not."""
    basic = {data.get(f"{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    kinds = data["token_type"]
    return [
        token
        for i, (token, kind) in enumerate(zip(data["tokens"], kinds, strict=False))
        if kind in (CONTROL, USER_DEFINED) and i not in basic
    ]


def _vocabulary(data: Metadata) -> dict[str, int]:
    """Token -> id, without the unused tokens that pad the embedding."""
    tokens = zip(data["tokens"], data["token_type"], strict=True)
    return {token: i for i, (token, kind) in enumerate(tokens) if kind != UNUSED}


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of tokens that join to a token, in the order of transformers' conversion: by
    decreasing score, then by decreasing length of the left half."""
    pairs = [
        (token[:i], token[i:])
        for token in scores
        for i in range(1, len(token))
        if token[:i] in scores and token[i:] in scores
    ]
    return sorted(pairs, key=lambda pair: (scores["".join(pair)], *map(len, pair)), reverse=True)


def _add_special(tokenizer: "Tokenizer", data: Metadata) -> None:
    """Adds the special tokens, and a start token before plain text if the model has one there."""
    from tokenizers import AddedToken, processors

    tokens, kinds = data["tokens"], data["token_type"]
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    default = data["model"] == "llama" or SPLITTING[data["pre"]].bos
    if "bos_token_id" in data and data.get("add_bos_token", default):
        bos = tokens[data["bos_token_id"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", f"{bos}:1", "$B:1"],
            special_tokens=[(bos, data["bos_token_id"])],
        )
