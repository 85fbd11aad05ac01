"""Allocators from before paging: one strip of KV memory, one contiguous region of it per request (chapter 02).

A request gets its region when it is admitted and keeps it to its end, so its whole length is reserved in advance. What
differs is how much is reserved, and how a place is found for it.

Source: the baselines "Orca (Max)", "Orca (Pow2)" and "Orca (Oracle)" of Kwon et al. 2023, section 6.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.baselines.accounting import Account, num_kv_tokens
from pagedattn_lab.baselines.strip import Buddy, FirstFit, Region


def reserve_max_length(prompt_len: int, output_len: int, max_model_len: int) -> int:
    """Orca (Max): nobody knows how long the answer will be, so reserve the model's maximum."""
    return max_model_len


def reserve_power_of_two(prompt_len: int, output_len: int, max_model_len: int) -> int:
    """Orca (Pow2): reserve the prompt and the next power of two of the output."""
    return min(prompt_len + Buddy.rounded(output_len), max_model_len)


def reserve_exactly(prompt_len: int, output_len: int, max_model_len: int) -> int:
    """Orca (Oracle): reserve what the request will use, as if its length were known."""
    return num_kv_tokens(prompt_len, output_len)


@dataclass(slots=True)
class Reservation:
    """What one running request has of a strip.

    Attributes:
        region: its slots.
        reserved: how many it asked for; the rest of the region is rounding.
        needed: how many it will have used in the end.
    """

    region: Region
    reserved: int
    needed: int

    @property
    def capacity(self) -> int:
        """Tokens that fit without asking for more memory."""
        return self.reserved


class ContiguousAllocator:
    """Reserves one region per request when it is admitted, as servers did before paging.

    The allocator knows the regions; how many tokens lie in them by now, the server knows.

    Args:
        strip: the memory, and how a place in it is found.
        reserve: from lengths of prompt and output, how many slots to reserve.

    Example:
        A strip for 32 tokens, of which each request may use up to 16:

        >>> allocator = max_length(num_slots=32, max_model_len=16)
        >>> first = allocator.allocate(prompt_len=4, output_len=5)
        >>> second = allocator.allocate(prompt_len=3, output_len=2)
        >>> allocator.allocate(prompt_len=1, output_len=1) is None     # 13 slots hold a token: the strip is full
        True
        >>> allocator.account(num_tokens=7, next_size=16)
        Account(token_states=7, reservation=5, internal=20, external=0, free=0, rounding=0)
    """

    def __init__(self, strip: FirstFit | Buddy, reserve: Callable[[int, int], int]) -> None:
        self.strip = strip
        self.reservations: dict[int, Reservation] = {}  # by start of the region
        self._reserve = reserve
        self._needed = self._reserved = self._placed = 0

    @property
    def num_slots(self) -> int:
        """Slots in all."""
        return self.strip.num_slots

    def size(self, prompt_len: int, output_len: int) -> int:
        """How many slots a request would take.

        Raises:
            ValueError: a length below 1, or a request that the scheme has no room for, however empty the strip.
        """
        return self.strip.rounded(self._lengths(prompt_len, output_len)[1])

    def _lengths(self, prompt_len: int, output_len: int) -> tuple[int, int]:
        """How many slots a request will use, and how many are reserved for it; errors as for :meth:`size`."""
        needed = num_kv_tokens(prompt_len, output_len)
        reserved = self._reserve(prompt_len, output_len)
        if needed > reserved:
            raise ValueError(
                f"a request of {prompt_len} + {output_len} tokens exceeds the {reserved} slots reserved for each: "
                "raise max_model_len or shorten the request"
            )
        if self.strip.rounded(reserved) > self.strip.longest_possible:
            raise ValueError(
                f"a region of {self.strip.rounded(reserved)} slots never fits a strip of {self.num_slots}, "
                f"whose longest region has {self.strip.longest_possible}: give it more memory"
            )
        return needed, reserved

    def allocate(self, prompt_len: int, output_len: int) -> Reservation | None:
        """Reserve a region for a request's whole life, or return ``None``, and nothing has changed, if none is free.

        Raises:
            ValueError: as for :meth:`size`.
        """
        needed, reserved = self._lengths(prompt_len, output_len)
        region = self.strip.allocate(reserved)
        if region is None:
            return None
        reservation = self.reservations[region.start] = Reservation(region, reserved, needed)
        self._needed += needed
        self._reserved += reserved
        self._placed += region.size
        return reservation

    def grow(self, reservation: Reservation) -> bool:
        """Ask for room for one more token: never granted, since a region cannot grow."""
        return False

    def free(self, reservation: Reservation) -> None:
        """Give a request's region back.

        Raises:
            ValueError: it was given back before, or another allocator made it. A region like it may be in use again.
        """
        if self.reservations.get(reservation.region.start) is not reservation:
            raise ValueError(f"{reservation} is not in use: it was given back before, or another allocator made it")
        self.strip.release(reservation.region)
        del self.reservations[reservation.region.start]
        self._needed -= reservation.needed
        self._reserved -= reservation.reserved
        self._placed -= reservation.region.size

    def account(self, num_tokens: int, next_size: int = 0) -> Account:
        """Say where every slot is.

        Args:
            num_tokens: tokens that the running requests hold by now, all together.
            next_size: slots that the request at the head of the queue needs (see :meth:`size`); gaps shorter than
                that are external waste. 0: nobody waits, and every gap is free.

        Raises:
            AssertionError: the entries do not add up to the strip.
        """
        unusable, rounding = self.strip.unusable(next_size), self._placed - self._reserved
        return Account(
            token_states=num_tokens,
            reservation=self._needed - num_tokens,
            internal=self._reserved - self._needed,
            external=unusable + rounding,
            free=self.strip.unusable(self.num_slots + 1) - unusable,
            rounding=rounding,
        ).check(self.num_slots)


def max_length(num_slots: int, max_model_len: int) -> ContiguousAllocator:
    """Reserve the model's maximum for every request: nobody knows how long the answer will be. Orca (Max).

    Raises:
        ValueError: a number below 1.
    """
    at_least_one("max_model_len", max_model_len)
    return ContiguousAllocator(FirstFit(num_slots), partial(reserve_max_length, max_model_len=max_model_len))


def next_power_of_two(num_slots: int, max_model_len: int) -> ContiguousAllocator:
    """Reserve the prompt and the next power of two of the output, in a buddy system. Orca (Pow2).

    The paper grants this scheme a guess of the output that is off by a factor of 2 at most.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> next_power_of_two(1024, max_model_len=512).allocate(prompt_len=10, output_len=25).reserved
        42
    """
    at_least_one("max_model_len", max_model_len)
    return ContiguousAllocator(Buddy(num_slots), partial(reserve_power_of_two, max_model_len=max_model_len))


def oracle(num_slots: int, strip: type[FirstFit] | type[Buddy] = Buddy) -> ContiguousAllocator:
    """Reserve exactly what the request will use, as if its length were known. Orca (Oracle).

    Args:
        num_slots: length of the strip.
        strip: how a place is found; the paper assumes a buddy system.

    Raises:
        ValueError: ``num_slots`` below 1.
    """
    return ContiguousAllocator(strip(num_slots), num_kv_tokens)
