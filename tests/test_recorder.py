"""The recorder: its frames tell the truth about pool and tables, its sentences say what happened."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagedattn_lab.block_pool import BlockPool, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.recorder import Recorder, load
from pagedattn_lab.recorder.frame import Frame, snapshot
from tests.helpers.draws import drawn


def sentences(recorder: Recorder) -> list[str]:
    return [frame.sentence for frame in recorder.frames]


def test_one_frame_per_table_operation() -> None:
    """Catches the pool's share of an operation told twice, and a frame taken before the table has its new entries."""
    pool = BlockPool(8, 4)
    ada = BlockTable(pool)
    recorder = Recorder(pool, {"Ada": ada})
    ada.append_tokens(5)
    ada.append_tokens(2)
    ada.append_tokens(0)
    ada.release()
    ada.release()
    assert [frame.kind for frame in recorder.frames] == ["start", "append", "append", "free"]
    assert [frame.changed for frame in recorder.frames] == [(), (1, 2), (2,), (2, 1)]
    assert sentences(recorder) == [
        "At the start, 7 of 7 usable blocks are free.",
        "Ada appends 5 tokens and takes blocks 1 and 2 from the head of the free queue.",
        "Ada appends 2 tokens: they fit in block 2.",
        "Ada gives back 2 blocks, last first: blocks 2 and 1 return to the head of the free queue.",
    ]


def test_direct_use_of_the_pool() -> None:
    """Catches pool events that are lost when no table asks for them, or swallowed by the next table's."""
    pool = BlockPool(8, 4)
    recorder = Recorder(pool)
    by_hand = pool.get_new_blocks(2)
    BlockTable(pool).append_tokens(3)
    pool.touch(by_hand[:1])
    pool.free_blocks(by_hand)
    pool.free_blocks(by_hand[:1])
    assert [frame.kind for frame in recorder.frames[1:]] == ["allocate", "append", "touch", "free", "free"]
    assert sentences(recorder)[1:] == [
        "The pool hands out blocks 1 and 2 from the head of the free queue; no table names them yet.",
        "request 1 appends 3 tokens and takes block 3 from the head of the free queue.",
        "Touched: block 1 has 2 owners.",
        "One owner fewer: block 2 returns to the head of the free queue; block 1 keeps 1 owner.",
        "One owner fewer: block 1 returns to the head of the free queue.",
    ]


def test_cached_blocks() -> None:
    """Catches an eviction that no sentence mentions, and a hit that looks like an allocation."""
    pool = BlockPool(3, 4)
    ada, bo = BlockTable(pool), BlockTable(pool)
    recorder = Recorder(pool, {"Ada": ada, "Bo": bo})
    ada.append_tokens(8)
    ada.blocks[0].block_hash = b"\xca\xfe\xba\xbe\x00"
    ada.release()
    pool.touch([pool.blocks[1]])
    pool.free_blocks([pool.blocks[1]])
    bo.append_tokens(7)
    assert sentences(recorder)[2:] == [
        "Ada gives back 2 blocks, last first: block 2 returns to the head of the free queue; "
        "block 1, still cached, joins the queue's tail.",
        "Touched: block 1 taken out of the free queue, contents kept.",
        "One owner fewer: block 1, still cached, joins the queue's tail.",
        "Bo appends 7 tokens and takes blocks 2 and 1 from the head of the free queue, "
        "and the pool forgets what block 1 held.",
    ]
    assert recorder.frames[3].hashes == {1: "cafebabe"} and recorder.frames[-1].hashes == {}


def test_shared_blocks() -> None:
    """Catches an owner's end taken for a part of the next owner's, and a fill that is only the last table's."""
    pool = BlockPool(6, 4)
    ada, bo = BlockTable(pool), BlockTable(pool)
    recorder = Recorder(pool, {"Ada": ada, "Bo": bo})
    ada.append_tokens(7)
    bo.blocks, bo.num_tokens = list(ada.blocks), 5
    pool.touch(bo.blocks)
    assert [(block.num_tokens, block.ref_cnt) for block in recorder.frames[-1].blocks[1:3]] == [(4, 2), (3, 2)]
    assert recorder.frames[-1].blocks[2].owners == (("Ada", 1), ("Bo", 1))
    ada.release()
    bo.release()
    assert sentences(recorder)[3:] == [
        "Ada gives back 2 blocks, last first: blocks 2 and 1 keep 1 owner.",
        "Bo gives back 2 blocks, last first: blocks 2 and 1 return to the head of the free queue.",
    ]


def test_use_by_hand_is_not_taken_for_a_tables() -> None:
    """Catches a real event that disappears into the next table's because it names some of its blocks."""
    pool = BlockPool(6, 4)
    ada = BlockTable(pool)
    recorder = Recorder(pool, {"Ada": ada})
    ada.append_tokens(6)
    pool.touch(ada.blocks[:1])
    pool.free_blocks(ada.blocks[:1])
    pool.touch(ada.blocks[::-1])
    pool.free_blocks(ada.blocks[::-1])
    ada.release()
    assert [frame.kind for frame in recorder.frames[1:]] == ["append", "touch", "free", "touch", "free", "free"]
    assert recorder.frames[-2].ref_cnt[1:3] == (1, 1) and recorder.frames[-1].ref_cnt[1:3] == (0, 0)


def test_blocks_handed_out_in_advance() -> None:
    """Catches tokens told to be in the last block of a table instead of the one that they went to."""
    pool = BlockPool(6, 4)
    ada = BlockTable(pool)
    recorder = Recorder(pool, {"Ada": ada})
    ada.blocks = pool.get_new_blocks(3)
    ada.append_tokens(2)
    assert recorder.frames[-1].sentence == "Ada appends 2 tokens: they fit in block 1."
    assert recorder.frames[-1].changed == (1,)
    assert [block.num_tokens for block in recorder.frames[-1].blocks[1:4]] == [2, 0, 0]
    assert [recorder.frames[-1].tokens_in(recorder.frames[-1].tables[0], logical) for logical in range(3)] == [2, 0, 0]


def test_forks_and_copies() -> None:
    """Catches the pool's touch, allocation and free told beside the table's event, and a copy that nobody hears of."""
    pool = BlockPool(8, 4)
    ada = BlockTable(pool)
    recorder = Recorder(pool, {"Ada": ada})
    ada.append_tokens(6)
    bo = ada.fork("Bo")
    cy = bo.fork()
    bo.append_tokens(1)
    cy.append_tokens(7)
    ada.append_tokens(1)
    assert [frame.kind for frame in recorder.frames[2:]] == [
        "fork", "fork", "copy-on-write", "append", "copy-on-write", "append", "append"
    ]  # fmt: skip
    assert sentences(recorder)[2:] == [
        "Bo is forked off and copies nothing: blocks 1 and 2 have 2 owners.",
        "request 1 is forked off and copies nothing: blocks 1 and 2 have 3 owners.",
        "Bo must not write to block 2, which others read too: it copies it to block 3 and lets go; "
        "block 2 keeps 2 owners.",
        "Bo appends 1 token: it fits in block 3.",
        "request 1 must not write to block 2, which others read too: it copies it to block 4 and lets go; "
        "block 2 keeps 1 owner.",
        "request 1 appends 7 tokens and takes blocks 5 and 6 from the head of the free queue.",
        "Ada appends 1 token: it fits in block 2.",
    ]
    assert [frame.changed for frame in recorder.frames[2:]] == [(1, 2), (1, 2), (2, 3), (3,), (2, 4), (4, 5, 6), (2,)]
    copied = recorder.frames[4]
    assert {table.name: table.block_ids for table in copied.tables} == {
        "Ada": (1, 2),
        "Bo": (1, 3),
        "request 1": (1, 2),
    }
    assert copied.ref_cnt == (0, 3, 2, 1, 0, 0, 0, 0)


def test_a_copy_that_evicts() -> None:
    """Catches an eviction on the way to a private copy that is told apart from it, or not at all."""
    pool = BlockPool(5, 4)
    ada = BlockTable(pool)
    recorder = Recorder(pool, {"Ada": ada})
    ada.append_tokens(6)
    old = BlockTable(pool, "old")
    old.append_tokens(8)
    for block in old.blocks:
        block.block_hash = "cached"
    old.release()
    ada.fork("Bo").append_tokens(5)
    kinds = [frame.kind for frame in recorder.frames[1:]]
    assert kinds == ["append", "append", "free", "fork", "copy-on-write", "append"]
    assert sentences(recorder)[5:] == [
        "Bo must not write to block 2, which others read too: it copies it to block 4, whose old contents the pool "
        "forgets, and lets go; block 2 keeps 1 owner.",
        "Bo appends 5 tokens and takes block 3 from the head of the free queue, "
        "and the pool forgets what block 3 held.",
    ]
    assert recorder.frames[-1].hashes == {} and recorder.frames[-2].hashes == {3: "cached"}


def test_hits() -> None:
    """Catches a hit told as a touch, tokens counted wrongly, and free blocks not told from those in use."""
    pool = BlockPool(8, 4)
    ada = BlockTable(pool, "Ada")
    recorder = Recorder(pool)
    ada.append_tokens(12)
    blocks = list(ada.blocks)
    for block in blocks:
        block.block_hash = "cached"
    short = BlockTable(pool, "Bo")
    short.adopt(blocks[:1])
    ada.release()
    BlockTable(pool, "Cy").adopt(blocks[:2])
    BlockTable(pool, "Dora").adopt(blocks)
    BlockTable(pool, "nothing").adopt([])
    assert [frame.kind for frame in recorder.frames[1:]] == ["append", "hit", "free", "hit", "hit"]
    assert [sentences(recorder)[i] for i in (2, 4, 5)] == [
        "Bo finds 4 tokens in the cache: block 1 has 2 owners.",
        "Cy finds 8 tokens in the cache: block 2 leaves the free queue; block 1 has 2 owners.",
        "Dora finds 12 tokens in the cache: block 3 leaves the free queue; block 1 has 3 owners; block 2 has 2 owners.",
    ]
    assert recorder.frames[-1].changed == (1, 2, 3)


def test_a_name_can_be_used_again() -> None:
    """Catches an observer that raises on two tables of one name: the event has happened, and blocks would be lost."""
    pool = BlockPool(20, 4)
    recorder = Recorder(pool)
    first, second, third = (BlockTable(pool, "Ada") for _ in range(3))
    for table in (first, second):
        table.append_tokens(1)
    first.fork("Ada").release()
    assert [table.name for table in recorder.frames[-1].tables] == ["Ada", "Ada 2", "Ada 3"]
    first.release()
    third.append_tokens(1)
    assert [table.name for table in recorder.frames[-1].tables] == ["Ada 2", "Ada"]
    assert {table.name: table.block_ids for table in recorder.frames[-1].tables} == {"Ada 2": (2,), "Ada": (1,)}
    first.append_tokens(1)
    assert [table.name for table in recorder.frames[-1].tables] == ["Ada 2", "Ada", "Ada 4"]
    BlockTable(pool, " ").append_tokens(1)
    BlockTable(pool, 7).append_tokens(1)
    assert [table.name for table in recorder.frames[-1].tables][3:] == ["request 1", "request 2"]


def test_a_fork_of_nothing_is_no_event() -> None:
    """Catches a sentence about no block at all."""
    pool = BlockPool(4, 4)
    recorder = Recorder(pool)
    child = BlockTable(pool).fork()
    assert len(recorder.frames) == 1 and child.blocks == []


def test_long_lists_are_cut() -> None:
    """Catches a sentence that a screen reader takes minutes to read."""
    pool = BlockPool(200, 1)
    first, second = BlockTable(pool), BlockTable(pool)
    recorder = Recorder(pool, {"first": first, "second": second})
    first.append_tokens(150)
    pool.touch(first.blocks)
    second.blocks, second.num_tokens = list(first.blocks), 150
    first.release()
    assert max(map(len, sentences(recorder))) < 120
    assert recorder.frames[2].sentence == "Touched: blocks 1, 2, 3 … 150 (150 of them) have 2 owners."


def test_a_recording_can_be_limited_to_a_block_of_code() -> None:
    """Catches a pool that stays observed because something raised in between."""
    pool = BlockPool(4, 4)
    with pytest.raises(NoFreeBlocksError), Recorder(pool) as recorder:
        BlockTable(pool).append_tokens(99)
    BlockTable(pool).append_tokens(1)
    assert pool.observers == [] and len(recorder.frames) == 1
    other = Recorder(pool)
    recorder.stop()
    assert pool.observers == [other], "only a recorder itself may take itself off"


def test_a_refused_request_leaves_no_frame() -> None:
    """Catches an event reported before it was certain to happen."""
    pool = BlockPool(3, 4)
    table = BlockTable(pool)
    recorder = Recorder(pool, {"Ada": table})
    with pytest.raises(NoFreeBlocksError):
        table.append_tokens(9)
    assert len(recorder.frames) == 1
    recorder.note("Refused.", blocks=[2])
    assert recorder.frames[-1].changed == (2,) and recorder.frames[-1].free == (1, 2)


def test_names_and_colours() -> None:
    """Catches two requests drawn alike, a finished one that stays, and two tables under one name."""
    pool = BlockPool(20, 4)
    tables = [BlockTable(pool) for _ in range(4)]
    recorder = Recorder(pool, {"request 2": tables[0]})
    for table in tables:
        table.append_tokens(1)
    assert [table.name for table in recorder.frames[-1].tables] == ["request 2", "request 1", "request 3", "request 4"]
    tables[1].release()
    assert [table.num_tokens for table in recorder.frames[-1].tables] == [1, 0, 1, 1], "shown as it ends"
    tables[0].append_tokens(1)
    assert [table.colour for table in recorder.frames[-1].tables] == [0, 2, 3]
    late = recorder.add("late", BlockTable(pool))
    late.append_tokens(1)
    assert recorder.frames[-1].tables[-1].colour == 4, "the colour of the one that left is not taken again"
    with pytest.raises(ValueError, match="another table is called 'late'"):
        recorder.add("late", BlockTable(pool))
    with pytest.raises(ValueError, match="another pool"):
        recorder.add("stranger", BlockTable(BlockPool(4, 4)))
    with pytest.raises(ValueError, match="is called 'late' already"):
        recorder.add("later", late)
    with pytest.raises(ValueError, match="'' is no name"):
        recorder.add("", BlockTable(pool))
    with pytest.raises(ValueError, match="no block 20"):
        recorder.note("Look there.", [20])
    marks = [table.mark for table in recorder.frames[-1].tables]
    assert marks == ["2", "3", "4", "l"]


def test_a_look_belongs_to_one_name() -> None:
    """Catches a late request that gets the letter or the colour of one that has left, or of one that came back."""
    pool = BlockPool(20, 4)
    recorder = Recorder(pool)
    for name in ("Ada", "Ann", "Bo 2", "Cy 2", "Ada", "Anders", "é 2"):
        table = BlockTable(pool, name)
        table.append_tokens(1)
        table.release()
    looks = {(table.name, table.colour, table.mark) for frame in recorder.frames for table in frame.tables}
    assert sorted(looks, key=lambda look: look[1]) == [
        ("Ada", 0, "A"), ("Ann", 1, "A2"), ("Bo 2", 2, "2"), ("Cy 2", 3, "C2"), ("Anders", 4, "A3"), ("é 2", 5, "é2")
    ]  # fmt: skip


def test_what_free_blocks_still_hold() -> None:
    """Catches contents that are lost with the table that wrote them, kept for a block that was handed out again, or
    told of a block that holds nothing."""
    pool = BlockPool(6, 4)
    ada, bo = BlockTable(pool, "Ada"), BlockTable(pool, "Bo")
    recorder = Recorder(pool)

    def contents() -> dict[int, tuple]:
        return {block_id: astuple(held) for block_id, held in recorder.frames[-1].contents.items()}

    ada.append_tokens(10)
    for block in ada.blocks[:2]:
        block.block_hash = "cached"
    bo.adopt(ada.blocks[:1])
    ada.release()
    assert contents() == {2: ("Ada", 0, "A", 1, 4)}, "block 1 is in use, and block 3 has no hash"
    bo.append_tokens(1)
    bo.release()
    assert contents() == {2: ("Ada", 0, "A", 1, 4), 1: ("Bo", 1, "B", 0, 4)}, "the table that named it last"
    pool.touch([pool.blocks[2]])
    assert list(contents()) == [1]
    pool.free_blocks([pool.blocks[2]])
    assert contents()[2] == ("Ada", 0, "A", 1, 4), "nobody wrote into it"
    by_hand = pool.get_new_blocks(5)
    assert contents() == {}
    for block in by_hand:
        block.block_hash = "by hand"
    pool.free_blocks(by_hand)
    assert contents() == {}, "what Ada and Bo wrote is no longer there"


def test_two_observers_see_the_same() -> None:
    """Catches a recorder that keeps events from another, and one that goes on after stop()."""
    pool = BlockPool(8, 4)
    ada = BlockTable(pool, "Ada")
    first, second = Recorder(pool), Recorder(pool)
    ada.append_tokens(6)
    bo = ada.fork("Bo")
    bo.append_tokens(1)
    pool.free_blocks(pool.get_new_blocks(2))
    ada.release()
    assert first.frames == second.frames and len(first.frames) == 8
    first.stop()
    first.stop()
    bo.release()
    assert len(first.frames) == 8 and len(second.frames) == 9 and second.frames[-1].kind == "free"


def test_an_observer_may_stop_at_an_event() -> None:
    """Catches one that is left out because another took itself off the list while it was told."""
    pool = BlockPool(8, 4)

    class Once(Recorder):
        def end(self, *event: object) -> None:
            super().end(*event)
            self.stop()

    once, always = Once(pool), Recorder(pool)
    for _ in range(2):
        BlockTable(pool, "Ada").append_tokens(1)
    assert [len(once.frames), len(always.frames)] == [2, 3]


def test_a_refusal_opens_no_bracket() -> None:
    """Catches a table that began before it was certain to end: what is done by hand next would be swallowed."""
    pool = BlockPool(6, 4)
    ada, bo = BlockTable(pool, "Ada"), BlockTable(pool, "Bo")
    recorder = Recorder(pool)
    ada.append_tokens(6)
    [stranger] = BlockPool(6, 4).get_new_blocks(1)
    refusals = [
        (NoFreeBlocksError, lambda: ada.append_tokens(99)),
        (ValueError, lambda: ada.append_tokens(-1)),
        (ValueError, lambda: ada.adopt(ada.blocks)),
        (ValueError, lambda: bo.adopt([pool.null_block])),
        (ValueError, lambda: bo.adopt([ada.blocks[0], stranger])),
    ]
    lost = BlockTable(pool, "lost")
    lost.append_tokens(3)
    pool.free_blocks(lost.blocks)  # by hand, so that the table cannot give it back once more
    refusals.append((ValueError, lost.release))
    broken = BlockTable(pool, "broken")
    broken.blocks, broken.num_tokens = [stranger], 4
    refusals += [(ValueError, broken.release), (ValueError, broken.fork)]
    for error, refuse in refusals:
        before = len(recorder.frames)
        with pytest.raises(error):
            refuse()
        assert len(recorder.frames) == before
        pool.touch(ada.blocks[:1])
        pool.free_blocks(ada.blocks[:1])
        assert [frame.kind for frame in recorder.frames[before:]] == ["touch", "free"]


def test_a_bracket_that_was_broken_off() -> None:
    """Catches a recorder that takes all later events for a part of one that never ended."""
    pool = BlockPool(4, 4)
    ada = BlockTable(pool, "Ada")
    recorder = Recorder(pool)
    ada.append_tokens(4)
    ada.blocks[0].block_hash = "cached"
    ada.release()
    BlockTable(pool, "Bo").append_tokens(8)  # blocks 2 and 3: block 1 is next

    class Interrupted(Recorder):
        def pool_event(self, *event: object) -> None:
            raise KeyboardInterrupt  # once the recorder has heard of the eviction

    interrupted = Interrupted(pool)
    with pytest.raises(KeyboardInterrupt):
        ada.append_tokens(1)
    interrupted.stop()
    pool.free_blocks(pool.blocks[3:])  # taken for a part of what was broken off
    BlockTable(pool, "Dora").append_tokens(1)
    pool.touch(pool.blocks[3:])
    assert [frame.kind for frame in recorder.frames[4:]] == ["append", "touch"]
    assert recorder.frames[-2].sentence == "Dora appends 1 token and takes block 3 from the head of the free queue."


def test_saved_and_loaded(tmp_path: Path) -> None:
    """Catches state that JSON loses, and a foreign file that is taken for a recording."""
    pool = BlockPool(6, 2)
    ada = BlockTable(pool)
    recorder = Recorder(pool, {"Ada": ada})
    ada.append_tokens(3)
    ada.blocks[0].block_hash = "a long hash"
    ada.release()
    path = tmp_path / "recording.json"
    recorder.save(path)
    data = load(path)
    assert [Frame.from_dict(frame, data["block_size"]) for frame in data["frames"]] == recorder.frames
    for text, message in ((b"[1]", "not 'pagedattn_lab.recording/1'"), (b"{", "is not JSON"), (b"\xff", "is not JSON")):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=message):
            load(path)


class Recorded(RuleBasedStateMachine):
    """Any sequence of operations: every frame equals what an independent look at pool and tables finds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12, 3)
        self.tables = {name: BlockTable(self.pool) for name in ("Ada", "Bo", "Cy")}
        self.recorder = Recorder(self.pool, self.tables)
        self.seen = 1
        self.held: dict[int, tuple] = {}

    names = st.sampled_from(("Ada", "Bo", "Cy"))

    @rule(name=names, count=st.integers(1, 8))
    def append(self, name: str, count: int) -> None:
        before = len(self.recorder.frames)
        kinds = ["copy-on-write", "append"] if self.tables[name].must_copy else ["append"]
        try:
            self.tables[name].append_tokens(count)
        except NoFreeBlocksError:
            assert len(self.recorder.frames) == before
        else:
            assert [frame.kind for frame in self.recorder.frames[before:]] == kinds
            assert self.recorder.frames[-1].sentence.startswith(f"{name} appends {count} token")

    @rule(name=names, hashed=st.booleans())
    def release(self, name: str, hashed: bool) -> None:
        for block in self.tables[name].blocks[: self.tables[name].num_tokens // 3]:
            block.block_hash = hash(name) if hashed else None
        self.tables[name].release()

    @precondition(lambda self: self.tables["Bo"].blocks and not self.tables["Cy"].blocks)
    @rule()
    def fork(self) -> None:
        """Cy becomes a fork of Bo's; whoever of them writes first copies."""
        take_copies(self.tables.values())
        before = len(self.recorder.frames)
        self.tables["Cy"] = self.tables["Bo"].fork("Cy")
        assert [frame.kind for frame in self.recorder.frames[before:]] == ["fork"]

    @precondition(lambda self: self.tables["Ada"].blocks and not self.tables["Cy"].blocks)
    @rule()
    def share(self) -> None:
        """Let Cy name Ada's full blocks, as prefix sharing does."""
        blocks = self.tables["Ada"].blocks[: self.tables["Ada"].num_tokens // 3]
        self.tables["Cy"].blocks, self.tables["Cy"].num_tokens = list(blocks), 3 * len(blocks)
        self.recorder.add("Cy", self.tables["Cy"])  # it was taken out of the picture if it had ended
        self.pool.touch(blocks)

    @invariant()
    def frame_is_true(self) -> None:
        """The last frame tells the state as it is: counts, owners, fill, hashes, queue; the JSON round trip too."""
        frame = snapshot(self.pool, self.tables)
        if len(self.recorder.frames) > self.seen:
            self.seen = len(self.recorder.frames)
            last = self.recorder.frames[-1]
            named = {table.name: table for table in last.tables}
            assert last.ref_cnt == frame.ref_cnt and last.free == frame.free
            for name, table in self.tables.items():
                if table.blocks:
                    assert named[name].block_ids == tuple(table.block_ids)
                    assert named[name].num_tokens == table.num_tokens
            assert Frame.from_dict(json.loads(json.dumps(last.to_dict())), 3) == last
            for block in last.blocks:
                if block.owners:
                    self.held[block.block_id] = (*block.owners[0], block.num_tokens)
            held = {
                block.block_id: self.held[block.block_id]
                for block in last.blocks
                if block.block_hash and not block.ref_cnt
            }
            assert {key: (value.name, value.logical, value.num_tokens) for key, value in last.contents.items()} == held
        for block, state in zip(self.pool.blocks, frame.blocks, strict=True):
            owners = [
                (name, logical)
                for name, table in self.tables.items()
                for logical, block_id in enumerate(table.block_ids)
                if block_id == block.block_id
            ]
            assert sorted(state.owners) == sorted(owners) and state.ref_cnt == block.ref_cnt == len(owners)
            slots = {slot for table in self.tables.values() for slot in table.slot_mapping()}
            assert state.num_tokens == sum(slot // 3 == block.block_id for slot in slots)
            assert (block.block_id in frame.free) == (block.ref_cnt == 0 and block.block_id != 0)


TestRecorded = Recorded.TestCase
TestRecorded.settings = settings(max_examples=drawn(60), stateful_step_count=25)
