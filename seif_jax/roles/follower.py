"""The Follower answers a constrained instruction. The frozen Follower gets the same prompts."""

from seif_jax.roles import follower_prompts, reply_format
from seif_jax.roles.prompts import Prompts, Schema, Shot
from seif_jax.roles.reply_format import Message, dialogue, system, write
from seif_jax.roles.reply_format import read as read


def _mentions(kind: str) -> tuple[str, ...]:
    return reply_format.TAGS if kind == "think_answer" else ()


def _fault(variant: str, shot: Shot) -> str:
    reply = write(shot["thought"], shot["answer"], "think_answer")
    return "" if read(reply, "think_answer") else "the answer is empty, or a text holds a tag"


SCHEMA = Schema(
    kinds=tuple(reply_format.SYSTEM),
    data=("instruction",),
    mentions=_mentions,
    shot={"instruction": "text", "thought": "text", "answer": "text"},
    fault=_fault,
)
PACKAGED = SCHEMA.read(vars(follower_prompts))


def messages(
    instruction: str, *, format: str, shots: int, prompts: Prompts | None = None
) -> list[Message]:
    """The chat that asks for an answer to `instruction`, in "think_answer" or "plain" format.

    The first `shots` examples come before it. Raises UserError for another format, and if there are
    fewer than `shots` examples.
    """
    system(format)
    prompts = prompts or PACKAGED
    turns = [
        (
            prompts.user(format, instruction=shot["instruction"]),
            write(shot["thought"], shot["answer"], format),
        )
        for shot in prompts.shots[""]
    ]
    user = prompts.user(format, instruction=instruction)
    return dialogue(prompts.system[format], turns, shots, user)
