"""Checkpoints in and out: Hugging Face folders, safetensors, GGUF."""
