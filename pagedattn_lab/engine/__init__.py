"""From prompts to tokens: one loop, and what may be chosen in it (chapters 05, 06 and 09).

* :mod:`~pagedattn_lab.engine.scheduler`: who computes in the next step, and how many tokens.
* :mod:`~pagedattn_lab.engine.core`: the loop. Find blocks, compute a step, let a client choose, go on.
* :mod:`~pagedattn_lab.engine.sampling_params`, :mod:`~pagedattn_lab.engine.outputs`: what a request wants, and gets.
* :mod:`~pagedattn_lab.engine.sampler`: from a batch's logits to its tokens.
* :mod:`~pagedattn_lab.engine.stop`: where an output ends, and how much of its text is certain.
* :mod:`~pagedattn_lab.engine.sampling`: clients that take the likeliest token, or draw by chance.
* :mod:`~pagedattn_lab.engine.beam_search`: the client that keeps the most likely sequences.
* :mod:`~pagedattn_lab.engine.metrics`: what steps and requests have cost.
* :mod:`~pagedattn_lab.engine.async_llm`: one engine for many clients at once.
* :mod:`~pagedattn_lab.engine.server`: the same over HTTP, for clients of OpenAI's API.
"""
