"""What a model's cache gets of a GPU, to the block, as vLLM computes and logs it (chapter 10)."""
