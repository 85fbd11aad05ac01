"""The two strips against a plain row of slots: nothing overlaps, nothing is lost, and gaps join as they should."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedattn_lab.baselines.strip import Buddy, FirstFit, Region
from tests.helpers.draws import drawn

FREE = 0
NO_SIZES = (0, -1, True, False, 2.0, "4", None)


class Row(RuleBasedStateMachine):
    """Random requests and releases; the model is a list with the owner of every slot, read from end to end."""

    strip_type: type[FirstFit] | type[Buddy]

    @initialize(num_slots=st.one_of(st.integers(1, 70), st.sampled_from([1, 2, 16, 64, 128])))
    def begin(self, num_slots: int) -> None:
        self.strip = self.strip_type(num_slots)
        self.owners = [FREE] * num_slots
        self.held: dict[int, Region] = {}
        self.gone: list[Region] = []
        self.next_name = 1
        self.first_gaps = self.strip.gaps

    def expected(self, size: int) -> Region | None:
        """Where the model puts a request."""
        raise NotImplementedError

    @rule(part=st.floats(0, 1), small=st.booleans())
    def allocate(self, part: float, small: bool) -> None:
        most = self.strip.num_slots
        size = 1 + int(part * (min(most, 6) if small else most))  # now and then one more than there is
        expected = self.expected(size)
        assert self.strip.allocate(size) == expected
        if expected is None:
            return
        slots = range(expected.start, expected.start + expected.size)
        assert expected.size == self.strip.rounded(size) and all(self.owners[slot] == FREE for slot in slots)
        for slot in slots:
            self.owners[slot] = self.next_name
        self.held[self.next_name] = expected
        self.next_name += 1

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0))
    def release(self, which: int) -> None:
        name = sorted(self.held)[which % len(self.held)]
        region = self.held.pop(name)
        self.strip.release(region)
        self.owners = [FREE if owner == name else owner for owner in self.owners]
        self.gone.append(region)

    @precondition(lambda self: self.gone)
    @rule(which=st.integers(0))
    def release_twice(self, which: int) -> None:
        region = self.gone[which % len(self.gone)]
        if region not in self.held.values():
            with pytest.raises(ValueError, match=f"start={region.start}, size={region.size}.* is not in use"):
                self.strip.release(region)

    @rule(start=st.integers(-2, 80), size=st.integers(-2, 80))
    def release_foreign(self, start: int, size: int) -> None:
        if Region(start, size) not in self.held.values():
            with pytest.raises(ValueError, match="not in use"):
                self.strip.release(Region(start, size))

    @rule(size=st.sampled_from(NO_SIZES))
    def allocate_nonsense(self, size: object) -> None:
        with pytest.raises(ValueError, match=f"size is {size!r}: give a whole number of at least 1"):
            self.strip.allocate(size)

    @precondition(lambda self: self.held)
    @rule()
    def release_all(self) -> None:
        """In an order that is neither that of allocation nor its reverse."""
        for name in sorted(self.held, key=lambda name: name * 7919 % 31):
            self.strip.release(self.held[name])
        self.held, self.owners = {}, [FREE] * self.strip.num_slots
        assert self.strip.gaps == self.first_gaps

    @invariant()
    def tiles_the_strip(self) -> None:
        """Regions and gaps follow each other without overlap or hole, and both are where the model has them."""
        gaps = self.strip.gaps
        assert gaps == sorted(gaps) and min((gap.size for gap in gaps), default=1) > 0
        assert self.strip.taken == {region.start: region.size for region in self.held.values()}
        end = 0
        for start, size in sorted([*gaps, *self.held.values()]):
            assert start == end
            end = start + size
        assert end == self.strip.num_slots
        assert all(self.owners[slot] == FREE for gap in gaps for slot in range(gap.start, gap.start + gap.size))

    @invariant()
    def counts_short_gaps(self) -> None:
        for size in (0, 1, 2, 3, 7, 8, self.strip.num_slots, self.strip.num_slots + 1):
            assert self.strip.unusable(size) == sum(gap.size for gap in self.strip.gaps if gap.size < size)
        assert self.strip.unusable(self.strip.num_slots + 1) == self.owners.count(FREE)


class FirstFitRow(Row):
    strip_type = FirstFit

    def free_runs(self) -> list[Region]:
        runs, start = [], None
        for slot, owner in enumerate([*self.owners, -1]):
            if owner == FREE and start is None:
                start = slot
            elif owner != FREE and start is not None:
                runs.append(Region(start, slot - start))
                start = None
        return runs

    def expected(self, size: int) -> Region | None:
        for start in range(len(self.owners) - size + 1):
            if self.owners[start : start + size] == [FREE] * size:
                return Region(start, size)
        return None

    @invariant()
    def gaps_are_joined(self) -> None:
        assert self.strip.gaps == self.free_runs()


class BuddyRow(Row):
    strip_type = Buddy

    def chunks(self) -> list[Region]:
        """What an empty strip consists of: the longest power of two that fits, again and again."""
        chunks, start = [], 0
        while start < len(self.owners):
            size = 1
            while start + 2 * size <= len(self.owners):
                size *= 2
            chunks.append(Region(start, size))
            start += size
        return chunks

    def free_blocks(self) -> list[Region]:
        """Gaps as the model has them: halve each chunk until a piece is all free, or is a region."""
        regions, pieces, free = set(self.held.values()), self.chunks(), []
        while pieces:
            piece = pieces.pop()
            if all(owner == FREE for owner in self.owners[piece.start : piece.start + piece.size]):
                free.append(piece)
            elif piece not in regions:
                half = piece.size // 2
                assert half, f"{piece} is neither free nor a region, nor can it be halved"
                pieces += [Region(piece.start, half), Region(piece.start + half, half)]
        return sorted(free)

    def expected(self, size: int) -> Region | None:
        rounded = 1
        while rounded < size:
            rounded *= 2
        fitting = [block for block in self.free_blocks() if block.size >= rounded]
        if not fitting:
            return None
        best = min(fitting, key=lambda block: (block.size, block.start))
        return Region(best.start, rounded)

    @invariant()
    def regions_are_aligned(self) -> None:
        for start, size in [*self.strip.gaps, *self.held.values()]:
            assert size & (size - 1) == 0 and start % size == 0

    @invariant()
    def buddies_are_joined(self) -> None:
        assert self.strip.gaps == self.free_blocks()


FirstFitRow.TestCase.settings = BuddyRow.TestCase.settings = settings(max_examples=drawn(120), stateful_step_count=40)
TestFirstFit = FirstFitRow.TestCase
TestFirstFit.__doc__ = (
    "Catches overlaps, lost slots, gaps left apart, a place that is not the first, half-done refusals."
)
TestBuddy = BuddyRow.TestCase
TestBuddy.__doc__ = "Catches overlaps, lost slots, buddies left apart, strangers joined, a needless refusal or split."


@given(num_slots=st.integers(1, 5000))
def test_an_empty_strip_gives_its_longest_region(num_slots: int) -> None:
    """Catches a ``longest_possible`` that is refused, or that something longer beats, and a strip that begins short."""
    for strip, longest in ((FirstFit(num_slots), num_slots), (Buddy(num_slots), 1 << num_slots.bit_length() - 1)):
        assert sum(gap.size for gap in strip.gaps) == num_slots
        assert strip.longest_possible == longest
        assert strip.allocate(longest + 1) is None and strip.taken == {}
        assert strip.allocate(longest) == Region(0, longest)


@given(size=st.integers(1, 2**40))
def test_buddies_round_up_to_the_next_power_of_two(size: int) -> None:
    """Catches a power of two that is doubled, and a rounding that is no power of two or too short."""
    rounded = Buddy.rounded(size)
    assert size <= rounded < 2 * size and bin(rounded).count("1") == 1
    assert FirstFit.rounded(size) == size


@pytest.mark.parametrize("strip_type", [FirstFit, Buddy])
@pytest.mark.parametrize("num_slots", NO_SIZES)
def test_impossible_strips_are_refused(strip_type: type[FirstFit] | type[Buddy], num_slots: object) -> None:
    """Catches a strip without slots, or with half a slot."""
    with pytest.raises(ValueError, match=f"num_slots is {num_slots!r}: give a whole number"):
        strip_type(num_slots)


def test_neighbours_that_are_no_buddies_stay_apart() -> None:
    """Catches joining by adjacency: slots 4 to 11 are free, yet no region of 8 starts at a multiple of 8."""
    strip = Buddy(16)
    quarters = [strip.allocate(4) for _ in range(4)]
    strip.release(quarters[1])
    strip.release(quarters[2])
    assert strip.gaps == [Region(4, 4), Region(8, 4)]
    assert strip.allocate(8) is None
    strip.release(quarters[3])
    assert strip.allocate(8) == Region(8, 8)
