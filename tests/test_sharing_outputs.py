"""Outputs that share blocks, drawn or searched: who continues whom, what is copied, what is read, and nothing leaks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch

from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.engine.beam_search import beam_search
from pagedattn_lab.engine.sampling import Decoded, sample
from pagedattn_lab.request import Request, RequestStatus
from pagedattn_lab.studies.block_savings import Sharing, replay
from tests.helpers.engine import (
    PROMPT,
    StopHereError,
    caches,
    engine_of,
    failing,
    forget_copies,
    indices,
    poison,
    sharers,
    shuffle,
)


@sharers
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_on_step_tells_who_continues_whom(
    share: Callable[..., Decoded], block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches parents numbered as after the step, or by output, a call before blocks were found or after the step,
    copies carried out too late, and sharing measured on other tables.
    """
    engine = engine_of(block_size)
    runner = engine.runner
    genealogy: list[list[int]] = []
    sharing = Sharing()
    before: list[torch.Tensor] = []
    steps: list[Sequence[BlockTable]] = []

    def keys_of(table: BlockTable, num_tokens: int) -> torch.Tensor:
        return torch.cat(runner.cache.gather(1, table.slot_mapping(0, num_tokens)))

    def on_step(tables: Sequence[BlockTable], parents: Sequence[int], num_copied: int) -> None:
        sharing.observe(tables, num_copied)
        assert [table.num_tokens for table in tables] == [len(PROMPT) + len(genealogy) + 1] * len(parents)
        genealogy.append(list(parents))
        steps.append(tables)

    def copy_then_compare(pairs: Sequence[tuple[int, int]]) -> None:
        """What every table names, once blocks are copied and before the step writes, is what its parent held."""
        nonlocal before
        copy_blocks(pairs)
        if not steps:
            return
        tables, parents, known = steps[-1], genealogy[-1], len(PROMPT) + len(genealogy) - 1
        keys = [keys_of(table, known) for table in tables]
        for key, parent in zip(keys, parents, strict=True):
            past = (before or [keys_of(tables[0], len(PROMPT))])[parent]
            length = len(past) // 2
            assert torch.equal(key[:length], past[:length])
            assert torch.equal(key[known : known + length], past[length:])
        before = keys
        for cache in runner.cache.key_caches:  # the step is still to come, and writes here
            cache.flatten(0, 1)[[table.slot_mapping()[-1] for table in tables]] = torch.nan

    copy_blocks = runner.cache.copy_blocks
    monkeypatch.setattr(runner.cache, "copy_blocks", copy_then_compare)
    share(engine, PROMPT, 4, 8, on_step=on_step)
    assert len(genealogy) == 7 and genealogy[0] == [0] * 4, "the last token of each needs no step"
    assert sharing == replay(len(PROMPT), genealogy, block_size)


def test_on_step_tells_who_stopped() -> None:
    """Catches outputs that are counted on after they ended, so that a later one continues another's table."""
    seen: list[list[int]] = []
    decoded = sample(
        engine_of(), Request("Ada", PROMPT), 6, 10, temperature=2.0, stop_token_ids={3, 4},
        on_step=lambda tables, parents, copied: seen.append(list(parents)),
    )  # fmt: skip
    running = [[index for index in range(6) if len(decoded.sequences[index]) > step] for step in range(1, 10)]
    expected = [[0] * len(running[0])]
    expected += [[old.index(index) for index in new] for old, new in itertools.pairwise(running)]
    assert seen == [parents for parents in expected if parents]
    assert len({*map(len, seen)}) > 2


@sharers
def test_a_forgotten_copy_shows(share: Callable[..., Decoded], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches equality tests that would pass without a single copy, and copies made one by one."""
    engine = engine_of()
    copy_blocks, calls = engine.runner.cache.copy_blocks, []
    monkeypatch.setattr(
        engine.runner.cache, "copy_blocks", lambda pairs: (calls.append(len(pairs)), copy_blocks(pairs))
    )
    told: list[int] = []
    expected = share(engine, PROMPT[:6], 5, 8, on_step=lambda tables, parents, copied: told.append(copied))
    assert calls == [0, *told] and len(calls) <= 8 and max(calls) == 4
    engine = engine_of()
    forget_copies(engine.runner, monkeypatch)
    assert share(engine, PROMPT[:6], 5, 8).sequences != expected.sequences


@sharers
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_nothing_outside_its_own_tokens_is_read(
    share: Callable[..., Decoded], block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a beam that reads a block which its family has given back, or the empty end of one."""
    expected = share(engine_of(block_size), PROMPT, 5, 9)
    engine = engine_of(block_size)
    filled = poison(engine.runner, monkeypatch)
    shuffle(engine.manager.block_pool)
    assert share(engine, PROMPT, 5, 9) == expected
    assert len(filled) == 9 and min(filled) > 0


@sharers
@caches
@pytest.mark.parametrize("known", [1, 4, 6, 7, 8])
def test_a_beginning_that_somebody_holds(
    share: Callable[..., Decoded], index: Callable, known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a beginning that is computed although its full blocks are cached, or read from blocks that are not full;
    and another's blocks written to.
    """
    expected = share(engine_of(), PROMPT, 4, 6)
    engine = engine_of(**index(4))
    manager, cache = engine.manager, engine.runner.cache
    theirs = Request("theirs", PROMPT[:known])
    manager.allocate_slots(theirs, known)
    table = manager.tables["theirs"]
    engine.runner.execute(PROMPT[:known], attention_metadata([table], [known]))
    theirs.num_computed_tokens = known
    keys = [tensor.clone() for tensor in cache.gather(1, table.slot_mapping())]
    poison(engine.runner, monkeypatch, keep=lambda: {block.block_id for block in table.blocks})
    held = manager.block_pool.num_used_blocks
    decoded = share(engine, PROMPT, 4, 6)
    assert decoded.sequences == expected.sequences and decoded.scores == pytest.approx(expected.scores, rel=1e-5)
    assert all(map(torch.equal, keys, cache.gather(1, table.slot_mapping())))
    assert manager.block_pool.num_used_blocks == held
    assert manager.stats.hits == min(known, len(PROMPT) - 1) // 4 * 4


@sharers
@indices
def test_no_pool_is_too_small_to_leak(share: Callable[..., Decoded], index: Callable) -> None:
    """Catches a block kept by a table, a fork or a copy when blocks run out, at whatever moment that is."""
    failed = succeeded = 0
    expected = share(engine_of(3), PROMPT, 4, 7)
    for num_blocks in range(2, 24):
        engine = engine_of(3, num_blocks, **index(3))
        pool = engine.manager.block_pool
        try:
            assert share(engine, PROMPT, 4, 7) == expected
            succeeded += 1
        except NoFreeBlocksError:
            failed += 1
        except ValueError as error:  # not even the prompt fits
            assert num_blocks < 4 and "needs 3 blocks of 3 tokens" in str(error)
            failed += 1
        assert pool.num_used_blocks == 0 and engine.manager.tables == {}
        assert {block.ref_cnt for block in pool.blocks} == {0}
    assert failed > 6 and succeeded > 2


@sharers
@indices
@pytest.mark.parametrize("at", range(4))
def test_nothing_leaks_whatever_is_raised(
    share: Callable[..., Decoded], index: Callable, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches tables that are given back only if all goes well, and a cache that answers for a step that never came."""
    expected = share(engine_of(3), PROMPT, 4, 7)
    engine = engine_of(3, **index(3))
    manager = engine.manager
    theirs = Request("theirs", [1, 2, 1, 2, 1])
    manager.allocate_slots(theirs, 5)
    steps = itertools.count(1)

    def on_step(*_: object) -> None:
        if next(steps) == at:
            raise StopHereError

    if at:
        with pytest.raises(StopHereError):
            share(engine, PROMPT, 4, 7, on_step=on_step)
        assert manager.block_pool.num_used_blocks == 2 and manager.tables.keys() == {"theirs"}
    with monkeypatch.context() as context:
        failing(engine.runner, at, context)
        with pytest.raises(StopHereError):
            share(engine, PROMPT, 4, 7)
    assert manager.block_pool.num_used_blocks == 2 and manager.tables.keys() == {"theirs"}
    assert [block.ref_cnt for block in manager.tables["theirs"].blocks] == [1, 1]
    poison(
        engine.runner, monkeypatch, lambda: {block.block_id for block in manager.block_pool.blocks if block.block_hash}
    )
    assert share(engine, PROMPT, 4, 7).sequences == expected.sequences


def test_a_fork_finds_a_name_that_nobody_has() -> None:
    """Catches a fork named as somebody else is, which would end the run with advice that its caller cannot follow."""
    engine = engine_of(3)
    for number in range(1, 4):
        engine.manager.allocate_slots(Request(f"Ada ({number})", [1, 2]), 2)
    decoded = sample(engine, Request("Ada", PROMPT), 4, 5)
    assert decoded == sample(engine_of(3), Request("Ada", PROMPT), 4, 5)
    assert engine.manager.tables.keys() == {"Ada (1)", "Ada (2)", "Ada (3)"}


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (sample, {"n": 0}, "n is 0"),
        (sample, {"n": 2, "temperature": -0.5}, "temperature -0.5"),
        (sample, {"n": 2, "temperature": float("nan")}, "temperature nan"),
        (sample, {"n": 2, "temperature": float("inf")}, "temperature inf"),
        (sample, {"n": 2.0}, "n is 2.0"),
        (sample, {"n": 2, "seed": 1.5}, "seed is 1.5"),
        (sample, {"n": 2, "max_tokens": 2.5}, "max_tokens is 2.5"),
        (beam_search, {"num_beams": 2.5}, "num_beams is 2.5"),
        (sample, {"n": 2, "seed": -1}, "seed is -1"),
        (sample, {"n": 2, "seed": 2**32}, "seed is 4294967296"),
        (sample, {"n": 2, "max_tokens": 0}, "max_tokens is 0"),
        (beam_search, {"num_beams": 0}, "num_beams is 0"),
        (beam_search, {"num_beams": 2, "early_stopping": "sometimes"}, "'sometimes'"),
        (beam_search, {"num_beams": 2, "early_stopping": 1}, "early_stopping is 1"),
        (beam_search, {"num_beams": 2, "max_tokens": -1}, "max_tokens is -1"),
        (beam_search, {"num_beams": 2, "length_penalty": 1000}, "length_penalty is 1000: .* lengths up to 3"),
        (beam_search, {"num_beams": 2, "length_penalty": -1000.0}, "length_penalty is -1000.0"),
        (beam_search, {"num_beams": 2, "length_penalty": math.nan}, "length_penalty is nan"),
        (beam_search, {"num_beams": 2, "length_penalty": math.inf, "max_tokens": 1}, "length_penalty is inf"),
    ],
)
def test_nonsense_is_refused_before_anything_changes(call: Callable, arguments: dict, message: str) -> None:
    """Catches a search that begins before it looks at what was asked, and an error that does not name it."""
    engine, request = engine_of(), Request("Ada", PROMPT)
    with pytest.raises(ValueError, match=message):
        call(**({"engine": engine, "request": request, "max_tokens": 3} | arguments))
    assert request.token_ids == PROMPT and engine.manager.block_pool.num_used_blocks == 0
    engine.manager.allocate_slots(Request("Ada", [1, 2]), 2)
    with pytest.raises(ValueError, match="share a name"):
        call(engine, request, 2, 3)
    assert engine.manager.block_pool.num_used_blocks == 1 and request.status is RequestStatus.WAITING
