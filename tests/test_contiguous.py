"""The allocators from before paging: every slot is counted once, and counted as what it is."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, invariant, precondition, rule

from pagedattn_lab.baselines.accounting import Account, num_kv_tokens
from pagedattn_lab.baselines.contiguous import (
    ContiguousAllocator,
    Reservation,
    max_length,
    next_power_of_two,
    oracle,
)
from pagedattn_lab.baselines.strip import Buddy, FirstFit, Region
from tests.helpers.draws import drawn
from tests.helpers.ledger import Ledger

MAX_MODEL_LEN = 20


def power_of_two_from(number: int) -> int:
    power = 1
    while power < number:
        power *= 2
    return power


# For each scheme: how to make it, how many slots it reserves, and how many a region of so many takes.
SCHEMES = {
    "max": (
        lambda num_slots: max_length(num_slots, MAX_MODEL_LEN),
        lambda prompt_len, output_len: MAX_MODEL_LEN,
        lambda reserved: reserved,
    ),
    "pow2": (
        lambda num_slots: next_power_of_two(num_slots, MAX_MODEL_LEN),
        lambda prompt_len, output_len: min(MAX_MODEL_LEN, prompt_len + power_of_two_from(output_len)),
        power_of_two_from,
    ),
    "oracle": (oracle, lambda prompt_len, output_len: prompt_len + output_len - 1, power_of_two_from),
    "oracle, first fit": (
        lambda num_slots: oracle(num_slots, strip=FirstFit),
        lambda prompt_len, output_len: prompt_len + output_len - 1,
        lambda reserved: reserved,
    ),
}


class ContiguousLedger(Ledger):
    """Random requests that come, grow and go; the model writes on every slot what it is and counts the slots."""

    @initialize(scheme=st.sampled_from(sorted(SCHEMES)), num_slots=st.integers(20, 150))
    def begin(self, scheme: str, num_slots: int) -> None:
        make, self.reserved, self.rounded = SCHEMES[scheme]
        self.allocator: ContiguousAllocator = make(num_slots)
        self.first_gaps = list(self.allocator.strip.gaps)
        self.running: list[list] = []  # reservation, prompt length, tokens in the end, tokens by now
        self.gone: list[Reservation] = []
        self.next_size = 0

    def region_size(self, prompt_len: int, output_len: int) -> int | None:
        """What the request takes, or ``None`` if this strip can never serve it."""
        reserved = self.reserved(prompt_len, output_len)
        size = self.rounded(reserved)
        longest = max(gap.size for gap in self.first_gaps)
        return None if prompt_len + output_len - 1 > reserved or size > longest else size

    @rule(prompt_len=st.integers(1, 22), output_len=st.integers(1, 22))
    def allocate(self, prompt_len: int, output_len: int) -> None:
        size = self.region_size(prompt_len, output_len)
        if size is None:
            for call in (self.allocator.size, self.allocator.allocate):
                with pytest.raises(ValueError, match=r"exceeds the 20 slots|never fits a strip"):
                    call(prompt_len, output_len)
            return
        assert self.allocator.size(prompt_len, output_len) == size
        room = any(gap.size >= size for gap in self.allocator.strip.gaps)
        reservation = self.allocator.allocate(prompt_len, output_len)
        assert (reservation is not None) == room
        if reservation is not None:
            assert reservation.region.size == size
            assert reservation.reserved == reservation.capacity == self.reserved(prompt_len, output_len)
            assert reservation.needed == prompt_len + output_len - 1
            assert not self.allocator.grow(reservation)
            self.running.append([reservation, prompt_len, reservation.needed, prompt_len])

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0), tokens=st.integers(1, 9))
    def generate(self, which: int, tokens: int) -> None:
        run = self.running[which % len(self.running)]
        run[3] = min(run[3] + tokens, run[2])

    @rule()
    def free_foreign(self) -> None:
        foreign = oracle(self.allocator.num_slots).allocate(1, 1)
        with pytest.raises(ValueError, match="another allocator made it"):
            self.allocator.free(foreign)

    @precondition(lambda self: self.running)
    @rule()
    def too_many_tokens(self) -> None:
        """More tokens than the requests will ever have leave a negative reservation."""
        most = sum(needed for _, _, needed, _ in self.running)
        assert self.allocator.account(most).reservation == 0
        with pytest.raises(AssertionError, match="has a negative entry: reservation is -1"):
            self.allocator.account(most + 1)

    @rule(next_size=st.integers(0, 160))
    def wait(self, next_size: int) -> None:
        self.next_size = next_size

    def check_empty(self) -> None:
        assert self.allocator.strip.gaps == self.first_gaps

    @invariant()
    def account_is_that_of_the_slots(self) -> None:
        slots = [None] * self.allocator.num_slots
        for reservation, _, needed, held in self.running:
            start, size = reservation.region
            for offset in range(size):
                assert slots[start + offset] is None
                slots[start + offset] = (
                    "token_states" if offset < held
                    else "reservation" if offset < needed
                    else "internal" if offset < reservation.reserved
                    else "rounding"
                )  # fmt: skip
        for start, size in self.allocator.strip.gaps:
            for slot in range(start, start + size):
                assert slots[slot] is None
                slots[slot] = "gap" if size < self.next_size else "free"
        counts = Counter(slots)
        expected = Account(
            token_states=counts["token_states"],
            reservation=counts["reservation"],
            internal=counts["internal"],
            external=counts["gap"] + counts["rounding"],
            free=counts["free"],
            rounding=counts["rounding"],
        )
        assert counts[None] == 0 and sum(expected[:5]) == self.allocator.num_slots
        assert self.allocator.account(sum(held for *_, held in self.running), self.next_size) == expected
        assert list(self.allocator.reservations.values()) == [run[0] for run in self.running]


ContiguousLedger.TestCase.settings = settings(max_examples=drawn(200), stateful_step_count=30)
TestLedger = ContiguousLedger.TestCase
TestLedger.__doc__ = "Catches a slot counted twice, as the wrong kind or not at all, a leak, and half-done refusals."


def test_max_length_cuts_the_strip_into_equal_parts() -> None:
    """Catches another number of batched requests than the paper's 7.00, and the rest of the strip counted as free."""
    allocator = max_length(15_728, max_model_len=2048)
    regions = [allocator.allocate(100, 200).region for _ in range(7)]
    assert regions == [Region(2048 * index, 2048) for index in range(7)]
    assert allocator.allocate(1, 1) is None
    assert allocator.strip.gaps == [Region(7 * 2048, 1392)]
    assert allocator.account(0, next_size=2048).external == 1392
    assert allocator.account(0, next_size=0).free == allocator.account(0, next_size=1392).free == 1392


@pytest.mark.parametrize(
    ("prompt_len", "output_len", "reserved"),
    [(10, 25, 42), (10, 32, 42), (10, 33, 74), (1, 1, 2), (500, 12, 512), (1, 511, 512), (300, 200, 512)],
)
def test_pow2_reserves_the_prompt_and_a_rounded_output(prompt_len: int, output_len: int, reserved: int) -> None:
    """Catches rounding of the prompt as well, doubling of powers of two, and more than the model's maximum."""
    allocator = next_power_of_two(1024, max_model_len=512)
    assert allocator.allocate(prompt_len, output_len).reserved == reserved
    with pytest.raises(ValueError, match=r"513 \+ 1 tokens exceeds the 512 slots .*: raise max_model_len or shorten"):
        allocator.size(513, 1)


def test_the_strip_of_each_scheme() -> None:
    """Catches a buddy system under Orca (Max), and first fit where the paper assumes buddies."""
    schemes = (max_length(64, 16), next_power_of_two(64, 16), oracle(64), oracle(64, strip=FirstFit))
    assert [type(scheme.strip) for scheme in schemes] == [FirstFit, Buddy, Buddy, FirstFit]
    assert [scheme.num_slots for scheme in schemes] == [64] * 4


@pytest.mark.parametrize("scheme", [max_length, next_power_of_two])
@pytest.mark.parametrize("max_model_len", [0, -1, True, 2.5])
def test_impossible_lengths_are_refused(scheme, max_model_len: object) -> None:
    """Catches a scheme that can serve nobody."""
    with pytest.raises(ValueError, match=f"max_model_len is {max_model_len!r}: give a whole number"):
        scheme(64, max_model_len)


def test_the_last_token_is_never_cached() -> None:
    """Catches one slot too many: the last token generated is not fed back."""
    assert num_kv_tokens(7, 1) == 7
    assert num_kv_tokens(1, 7) == 7


@pytest.mark.parametrize(
    ("account", "said"),
    [
        (Account(5, 2, 1, 0, 9), "does not add up to 16 slots"),
        (Account(5, 2, 1, 0, 7), "does not add up to 16 slots"),
        (Account(-1, 2, 1, 0, 14), "has a negative entry: token_states is -1"),
        (Account(5, 3, -1, 1, 8), "has a negative entry: internal is -1"),
        (Account(5, 2, 1, 1, 7, rounding=2), "has more rounding than external slots"),
        (Account(5, 2, 1, 0, 8, rounding=-1), "has a negative entry: rounding is -1"),
    ],
)
def test_a_wrong_account_is_refused(account: Account, said: str) -> None:
    """Catches a check that lets a slot be lost, counted twice, or owed, or counts rounding outside external, and one
    that says "does not add up" of entries that do.
    """
    with pytest.raises(AssertionError, match=said):
        account.check(16)
