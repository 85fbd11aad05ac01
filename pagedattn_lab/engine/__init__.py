"""From prompts to tokens (chapters 05 and 06)."""
