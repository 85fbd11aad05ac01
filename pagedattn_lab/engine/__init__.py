"""From prompts to tokens: one loop, and what may be chosen in it (chapters 05, 06 and 09).

* :mod:`~pagedattn_lab.engine.scheduler`: who computes in the next step, and how many tokens.
* :mod:`~pagedattn_lab.engine.core`: the loop. Find blocks, compute a step, let a client choose, go on.
* :mod:`~pagedattn_lab.engine.sampling`: clients that take the likeliest token, or draw by chance.
* :mod:`~pagedattn_lab.engine.beam_search`: the client that keeps the most likely sequences.
"""
