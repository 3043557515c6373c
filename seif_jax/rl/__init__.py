"""GRPO: from prompts to new weights."""
