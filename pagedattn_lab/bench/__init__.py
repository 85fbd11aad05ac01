"""What memory management and attention cost on this machine (chapters 03, 06 and 08).

For blocks, slots and a prefix cache, time is the process's CPU time with garbage collection off. On a machine that does
other things too, wall-clock time would count their turns; and a full collection walks every object there is, so that a
pool of a million blocks would be charged for Python's habits. A server has the same problem, and answers it with
``gc.freeze`` once its pool stands.
"""
