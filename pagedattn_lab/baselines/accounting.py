"""What an allocator of KV memory is, and the account of its slots (chapters 02 and 03).

Memory is counted in *slots*, each of which takes one token's keys and values.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from pagedattn_lab.arithmetic import at_least_one


def num_kv_tokens(prompt_len: int, output_len: int) -> int:
    """How many tokens a request has in the cache in the end: the last one generated is never fed back.

    Raises:
        ValueError: a length below 1.

    Example:
        >>> num_kv_tokens(prompt_len=4, output_len=5)
        8
    """
    return at_least_one("prompt_len", prompt_len) + at_least_one("output_len", output_len) - 1


class Account(NamedTuple):
    """Where every slot of a memory is: the first five add up to all of it.

    Attributes:
        token_states: slots that hold a token.
        reservation: slots that hold none yet, and will before their request ends.
        internal: slots reserved for tokens that never come (internal fragmentation).
        external: slots that nobody may use: gaps too short for the request that waits, and what the allocator adds to
            a request's size by its own rules.
        free: slots that the next request can have.
        rounding: the part of ``external`` that is rounding, not gaps. Kwon et al. 2023 count it there ("external and
            others" in Fig. 2); many textbooks would call it internal.
    """

    token_states: int
    reservation: int
    internal: int
    external: int
    free: int
    rounding: int = 0

    def check(self, num_slots: int) -> Account:
        """Return the account if it is one of a memory of ``num_slots``.

        Raises:
            AssertionError: a negative entry, entries that do not add up, or more rounding than external slots.

        Example:
            >>> Account(token_states=5, reservation=2, internal=1, external=0, free=8).check(16).free
            8
        """
        if min(self) < 0:
            name = self._fields[self.index(min(self))]
            raise AssertionError(f"{self} has a negative entry: {name} is {min(self)}")
        if self.rounding > self.external:
            raise AssertionError(f"{self} has more rounding than external slots, of which it is a part")
        if sum(self[:5]) != num_slots:
            raise AssertionError(f"{self} does not add up to {num_slots} slots")
        return self


class Holding(Protocol):
    """What one running request has of an allocator's memory."""

    @property
    def capacity(self) -> int:
        """Tokens that fit without asking for more memory."""


class Allocator(Protocol):
    """What a server asks of memory.

    :class:`pagedattn_lab.baselines.contiguous.ContiguousAllocator` is one, and so is
    :class:`pagedattn_lab.baselines.paged.PagedAllocator`. An allocator does not know how many tokens its requests hold
    by now; the server does, and says so when it asks for an account.
    """

    @property
    def num_slots(self) -> int:
        """Slots in all."""

    def size(self, prompt_len: int, output_len: int) -> int:
        """How many slots a request takes when it is admitted; an error if it can never be served."""

    def allocate(self, prompt_len: int, output_len: int) -> Any:
        """Admit a request: what it holds, or ``None``, and nothing has changed."""

    def grow(self, holding: Any) -> bool:
        """Make room for one more token, or return ``False``, and nothing has changed."""

    def free(self, holding: Any) -> None:
        """Take everything back."""

    def account(self, num_tokens: int, next_size: int = 0) -> Account:
        """Say where every slot is, when ``num_tokens`` hold a token and the next request waits for ``next_size``."""
