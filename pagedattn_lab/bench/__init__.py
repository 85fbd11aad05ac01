"""What memory management costs on this machine: :mod:`pagedattn_lab.bench.allocator` (chapter 03) and
:mod:`pagedattn_lab.bench.prefix` (chapter 06).

Time is the process's CPU time with garbage collection off. On a machine that does other things too, wall-clock time
would count their turns; and a full collection walks every object there is, so that a pool of a million blocks would be
charged for Python's habits. A server has the same problem, and answers it with ``gc.freeze`` once its pool stands.
"""
