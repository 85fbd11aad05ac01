"""Memory before paging, and paging behind the same interface, to compare them (chapters 02, 03 and 09).

* :mod:`.accounting`: what an allocator is, and where each of its slots is;
* :mod:`.strip`: one arena of memory, and two ways to find a region in it;
* :mod:`.contiguous`: three ways to reserve a region of it for a request's whole life;
* :mod:`.paged`: blocks on demand;
* :mod:`.kv_manager`: the same reservations behind the engine's interface, to run a model on them (chapter 09).
"""
