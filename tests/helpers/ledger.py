"""What the tests of contiguous and of paged memory share: requests that leave, and calls that are refused."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule


class Ledger(RuleBasedStateMachine):
    """Memory of either kind, and the requests in it; what it should say of its slots is for the kinds to know.

    A kind sets ``allocator``, ``running`` (a list for each request that begins with what it holds) and ``gone`` (what
    was given back) when it begins, and says in ``check_empty`` what must hold once everybody has left.
    """

    allocator: Any
    running: list[list]
    gone: list

    def check_empty(self) -> None:
        raise NotImplementedError

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def free(self, which: int) -> None:
        holding = self.running.pop(which % len(self.running))[0]
        self.allocator.free(holding)
        self.gone.append(holding)

    @precondition(lambda self: self.gone)
    @rule(which=st.integers(0))
    def free_twice(self, which: int) -> None:
        """Even if a region like it is in use again by now."""
        with pytest.raises(ValueError, match="given back before"):
            self.allocator.free(self.gone[which % len(self.gone)])

    @rule(lengths=st.sampled_from([(0, 1), (1, 0), (-3, 5), (True, 4), (2, 2.0)]))
    def allocate_nonsense(self, lengths: tuple) -> None:
        for call in (self.allocator.allocate, self.allocator.size):
            with pytest.raises(ValueError, match=r"(prompt|output)_len is .*: give a whole number of at least 1"):
                call(*lengths)

    @precondition(lambda self: self.running)
    @rule()
    def free_all(self) -> None:
        for holding, *_ in self.running[1::2] + self.running[::2]:
            self.allocator.free(holding)
        self.running = []
        self.check_empty()
