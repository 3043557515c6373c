"""The prompts of the Follower, by reply format."""

from seif_jax.roles import reply_format

SYSTEM = reply_format.SYSTEM
ASK = dict.fromkeys(SYSTEM, "{instruction}")

SHOTS = (
    {
        "instruction": "What are two uses of baking soda?\n"
        "The response should contain exactly 2 bullet points.\n"
        "The response should not contain any commas.",
        "thought": "Two bullet points, one use in each, and no commas anywhere.",
        "answer": "* Baking soda makes cakes and cookies rise.\n"
        "* It removes bad smells from a fridge or a carpet.",
    },
    {
        "instruction": "Thank a friend for a birthday gift.\n"
        "The response should be in all lowercase letters.\n"
        "The response should end with the exact phrase 'talk soon.'",
        "thought": "A short thank-you note, no capital letters, and 'talk soon.' as the last "
        "words.",
        "answer": "thank you so much for the blue scarf! it is warm and i wear it every day. talk "
        "soon.",
    },
)
