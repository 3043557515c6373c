"""The Follower: answers a constrained instruction. The evaluator answers through the same chat."""

from seif_jax.roles.format import Message, dialogue, system, write
from seif_jax.roles.format import read as read

# instruction, thought, answer
SHOTS = (
    (
        "What are two uses of baking soda?\n"
        "The response should contain exactly 2 bullet points.\n"
        "The response should not contain any commas.",
        "Two bullet points, one use in each, and no commas anywhere.",
        "* Baking soda makes cakes and cookies rise.\n"
        "* It removes bad smells from a fridge or a carpet.",
    ),
    (
        "Thank a friend for a birthday gift.\n"
        "The response should be in all lowercase letters.\n"
        "The response should end with the exact phrase 'talk soon.'",
        "A short thank-you note, no capital letters, and 'talk soon.' as the last words.",
        "thank you so much for the blue scarf! it is warm and i wear it every day. talk soon.",
    ),
)


def messages(instruction: str, *, format: str, shots: int) -> list[Message]:
    """The chat that asks for an answer to `instruction`, in "think_answer" or "plain" format.

    The first `shots` (0 to 2) example turns come before it. UserError for other values.
    """
    turns = [(asked, write(thought, answer, format)) for asked, thought, answer in SHOTS]
    return dialogue(system(format), turns, shots, instruction)
