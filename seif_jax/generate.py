"""`seif generate`: completes prompts and prints the completions."""

import argparse
import sys
from collections.abc import Sequence

import jax

from seif_jax import accelerator_detection, data, data_files, files
from seif_jax.chat import ChatModel, Decoding, Reply
from seif_jax.errors import UserError
from seif_jax.json_io import dumps
from seif_jax.model_bundle import ModelBundle, load_params
from seif_jax.sampling import Engine
from seif_jax.stage_settings import dtype

BATCH_SIZE = 64  # sequences decoded together


def run(options: argparse.Namespace, prompts: Sequence[str]) -> None:
    """Prints --n completions of each prompt. Raises UserError before weights are loaded if a prompt
    does not fit. options: checked by `options.generate.check`."""
    sampling = options.temperature, options.top_k, options.top_p
    base = ModelBundle.load(options.model)
    tokenizer, positions = base.tokenizer, base.model.config.max_positions
    if options.raw:
        ids = [tokenizer.encode(prompt) for prompt in prompts]
    else:
        dialogues = [[{"role": "user", "content": prompt}] for prompt in prompts]
        tokenizer.check_chat(dialogues[0])
        ids = [prompt.ids for prompt in tokenizer.encode_chats(dialogues)]
    check_lengths(prompts, ids, positions, options.max_tokens)
    kind = dtype(options.dtype or accelerator_detection.native_dtype())
    params = load_params(options.model, base.model, kind, options.scan)
    chat_model = ChatModel(Engine(base.model.config, params, kind), tokenizer)
    room = positions - options.max_tokens
    decoding = Decoding(room, options.max_tokens, BATCH_SIZE, "", *sampling)
    n: int = options.n
    replies = chat_model.complete(ids, decoding, jax.random.key(options.seed), n)
    for i, reply in enumerate(replies):
        assert reply is not None, "lengths were checked above"
        if options.json:
            print(dumps(as_json(prompts[i // n], reply)))
        elif len(replies) == 1:
            print(reply.text)
        else:
            print(heading(i, prompts, n))
            print(reply.text, end="\n\n")


def as_json(prompt: str, reply: Reply) -> dict[str, object]:
    """One line of --json."""
    return {
        "prompt": prompt,
        "text": reply.text,
        "token_ids": reply.ids.tolist(),
        "logprobs": reply.logp.tolist(),
        "finish_reason": "stop" if reply.finished else "length",
    }


def check_lengths(
    prompts: Sequence[str], ids: Sequence[Sequence[int]], positions: int, max_tokens: int
) -> None:
    """Raises UserError unless every prompt has tokens (`ids`), and fits the model's `positions`
    together with a reply of `max_tokens`."""
    room = positions - max_tokens
    if room < 1:
        raise UserError(
            f"--max_tokens must be less than the model's {positions} positions (got {max_tokens})"
        )
    for prompt, tokens in zip(prompts, ids, strict=True):
        if not tokens:
            raise UserError("a prompt is empty, and --raw leaves nothing to continue")
        if len(tokens) > room:
            raise UserError(
                f"the prompt {prompt[:40]!r} has {len(tokens)} tokens; at most {room} fit the "
                f"model's {positions} positions with --max_tokens={max_tokens}"
            )


def read_prompts(options: argparse.Namespace) -> list[str]:
    """The prompts of --prompt and --prompts; if there are none, the lines of standard input."""
    prompts: list[str] = list(options.prompt or ())
    if options.prompts:
        try:
            seeds = data.load_seeds(options.prompts, options.column, warn=warn)
        except data_files.MissingColumn as error:
            raise UserError(f"{error}; set --column to one of them") from None
        prompts += [seed.question for seed in seeds]
    elif not prompts:
        text = files.decode(sys.stdin.buffer.read(), "standard input")
        prompts += [line for line in data_files.lines(text) if line.strip()]
    if not prompts:
        raise UserError("no prompts: give --prompt=TEXT, --prompts=FILE or lines on standard input")
    return prompts


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def heading(i: int, prompts: Sequence[str], n: int) -> str:
    """The heading of completion i, if each prompt has n."""
    number, completion = divmod(i, n)
    of_prompt = f", completion {completion + 1}/{n}" if n > 1 else ""
    prompt = " ".join(prompts[number].split())
    prompt = prompt if len(prompt) <= 80 else f"{prompt[:79]}…"
    return f"[{number + 1}/{len(prompts)}{of_prompt}] {prompt}"
