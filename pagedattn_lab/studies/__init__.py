"""What the book measures, and how its figures compare with the paper's (chapters 02, 03, 05 and 09 to 11).

* :mod:`.paper`: every figure of Kwon et al. 2023 that we compare with, once;
* :mod:`.report`: what became of a simulated workload;
* :mod:`.simulate`: a server that serves a workload against any allocator;
* :mod:`.memory_shares`: where the memory goes with four of them;
* :mod:`.block_savings`: what tables that continue one another have in common;
* :mod:`.hit_rates`: how much of its prompts a prefix cache of a given size would find;
* :mod:`.scheduling`: what a scheduler does with a load, in a model of time;
* :mod:`.block_size`: what blocks of some size waste, and which prefixes they do not find;
* :mod:`.fleet`: many replicas behind a router.
"""
