"""What fits on a GPU, as vLLM counts it."""
