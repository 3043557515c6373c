"""The Filter: says whether an instruction contradicts itself, [[1]] consistent or [[0]] not."""

from seif_jax.roles import filter_prompts
from seif_jax.roles.prompts import Prompts, Schema
from seif_jax.roles.reply_format import Message, dialogue, quote
from seif_jax.roles.verdict_parser import MODES, VERDICTS, analysis_fault, check_mode, write_verdict
from seif_jax.roles.verdict_parser import verdict as verdict

SCHEMA = Schema(
    kinds=MODES,
    data=("instruction",),
    mentions=lambda mode: VERDICTS,
    shot={"instruction": "text", "analysis": "text", "consistent": "true or false"},
    fault=lambda variant, shot: analysis_fault(shot["analysis"]),
)
PACKAGED = SCHEMA.read(vars(filter_prompts))


def messages(
    instruction: str, *, shots: int, mode: str, prompts: Prompts | None = None
) -> list[Message]:
    """The chat that asks whether `instruction` (seed and constraints) is free of contradiction.

    mode "generate": analysis, then the verdict; "verdict": the verdict alone, which is read from
    the next token after the prefill "[[". The first `shots` examples come before it; in the
    packaged prompts the two outcomes alternate. Raises UserError for another mode, and if there are
    fewer than `shots` examples.
    """
    check_mode(mode)
    prompts = prompts or PACKAGED
    turns = [
        (
            prompts.user(mode, instruction=quote(shot["instruction"])),
            write_verdict(shot["analysis"], shot["consistent"], mode),
        )
        for shot in prompts.shots[""]
    ]
    user = prompts.user(mode, instruction=quote(instruction))
    return dialogue(prompts.system[mode], turns, shots, user)
