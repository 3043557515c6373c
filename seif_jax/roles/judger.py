"""The Judger: says whether one reply satisfies one constraint, [[1]] yes or [[0]] no."""

from seif_jax.roles import judger_prompts
from seif_jax.roles.prompts import Prompts, Schema
from seif_jax.roles.reply_format import Message, dialogue, quote
from seif_jax.roles.verdict_parser import MODES, VERDICTS, analysis_fault, check_mode, write_verdict
from seif_jax.roles.verdict_parser import verdict as verdict

SCHEMA = Schema(
    kinds=MODES,
    data=("instruction", "reply", "constraint"),
    mentions=lambda mode: VERDICTS,
    shot={
        "instruction": "text",
        "reply": "text",
        "constraint": "text",
        "analysis": "text",
        "satisfied": "true or false",
    },
    fault=lambda variant, shot: analysis_fault(shot["analysis"]),
)
PACKAGED = SCHEMA.read(vars(judger_prompts))


def messages(
    prompt: str,
    reply: str,
    constraint: str,
    *,
    shots: int,
    mode: str,
    prompts: Prompts | None = None,
) -> list[Message]:
    """The chat that asks whether `reply` to `prompt` satisfies `constraint`.

    mode "generate": analysis, then the verdict; "verdict": the verdict alone, which is read from
    the next token after the prefill "[[". The first `shots` examples come before it; in the
    packaged prompts the two outcomes alternate, and chats about one reply differ only after
    "Constraint:". Raises UserError for another mode, and for fewer than `shots` examples.
    """
    check_mode(mode)
    texts = prompts or PACKAGED

    def user(instruction: str, reply: str, constraint: str) -> str:
        data = {"instruction": instruction, "reply": reply, "constraint": constraint}
        return texts.user(mode, **{name: quote(text) for name, text in data.items()})

    turns = [
        (
            user(shot["instruction"], shot["reply"], shot["constraint"]),
            write_verdict(shot["analysis"], shot["satisfied"], mode),
        )
        for shot in texts.shots[""]
    ]
    return dialogue(texts.system[mode], turns, shots, user(prompt, reply, constraint))
