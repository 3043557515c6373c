"""Parts that all roles use: reply formats, and functions that assemble chats and quote data."""

import re
from collections.abc import Sequence

from seif_jax.errors import UserError

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Turn = tuple[str, str]  # user text, assistant text

# The system prompt of each format; an empty one leaves the system turn out.
SYSTEM = {
    "think_answer": (
        "Reason first, then answer. Put your reasoning inside <think> and </think>, then the "
        "final answer inside <answer> and </answer>. Use each of these four tags exactly once, "
        "in this order, and write nothing outside them:\n"
        "<think>your reasoning</think>\n<answer>your answer</answer>"
    ),
    "plain": "",
}
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
THINK_ANSWER = re.compile(r"\s*<think>.*</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
THOUGHTS = re.compile(r"\A(?:\s*<think>.*?</think>)*\s*", re.DOTALL)
# Chat templates may open a thought at the start of the reply (DeepSeek-R1), or write an empty
# thought so that the model does not think (Qwen3 with enable_thinking=False).
OPENING = re.compile(r"<think>\s*(?:</think>\s*(?:<answer>\s*)?)?\Z")


def choose(table: dict[str, str], key: str, name: str) -> str:
    """The entry of a table of texts. Raises UserError for an unknown key."""
    if key not in table:
        raise UserError(f"{name} must be one of: {', '.join(sorted(table))} (got {key!r})")
    return table[key]


def system(format: str) -> str:
    """The system prompt of "think_answer" or "plain" ("": none). UserError for another format."""
    return choose(SYSTEM, format, "format")


def opening(prompt: str) -> str:
    """The tags with which a rendered prompt begins the reply, and the white space around them."""
    match = OPENING.search(prompt)
    return match[0] if match else ""


def whole_reply(opened: str, written: str) -> str:
    """The complete reply: the tags that the prompt has `opened`, then what the model has `written`.

    If the prompt has closed a thought and the model still writes its own, only the model's counts.
    """
    has_own_thought = "</think>" in opened and written.lstrip().startswith("<think>")
    return written if has_own_thought else opened + written


def after_thought(opened: str, prefill: str) -> str:
    """The prefill of a reply without a thought: a thought that the prompt has opened is closed."""
    is_open = "<think>" in opened and "</think>" not in opened + prefill
    return f"\n</think>\n\n{prefill}" if is_open else prefill


def opens_twice(opened: str, prefill: str) -> bool:
    """Whether a prefill opens the thought that the prompt has opened already."""
    return after_thought(opened, "") != "" and prefill.lstrip().startswith("<think>")


def strip_thoughts(text: str) -> str:
    """The text without the thoughts at its start, <think>…</think>, stripped of white space.

    The text includes a thought that the prompt has opened (`whole_reply`), so tags that are not at
    its start are ordinary text. The result is "" if the text begins with a thought that is never
    closed.
    """
    text = THOUGHTS.sub("", text, count=1).strip()
    return "" if text.startswith("<think>") else text


def read(reply: str, format: str) -> str | None:
    """The answer in a complete reply (including the prefill), or None if it is not in the format.

    "think_answer" has each tag once, in order, and only white space outside. In "plain", everything
    after the thoughts is the answer, so it is never None. White space around the answer is removed;
    the answer may be empty.
    """
    system(format)
    if format == "plain":
        return strip_thoughts(reply)
    if any(reply.count(tag) != 1 for tag in TAGS):
        return None
    match = THINK_ANSWER.fullmatch(reply)
    return match and match[1].strip()


def write(thought: str, answer: str, format: str) -> str:
    """A few-shot reply in the format, the inverse of `read`. "plain" has no thought."""
    system(format)
    if format == "plain":
        return answer
    return f"<think>{thought}</think>\n<answer>{answer}</answer>"


def quote(text: str) -> str:
    """The text with "> " before every line, so that data in a prompt cannot end their quoted block.

    All line breaks of Unicode become newlines. An empty text becomes one empty quoted line.
    """
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])


def dialogue(system_text: str, turns: Sequence[Turn], shots: int, user: str) -> list[Message]:
    """The system turn (if any), the first `shots` few-shot turns, and the user turn.

    Raises UserError if there are fewer turns than `shots`.
    """
    if not 0 <= shots <= len(turns):
        raise UserError(f"shots must be from 0 to {len(turns)} (got {shots})")
    messages = [{"role": "system", "content": system_text}] if system_text else []
    for question, answer in turns[:shots]:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return [*messages, {"role": "user", "content": user}]
