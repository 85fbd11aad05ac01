"""The player of a fleet: its pictures and its words say what a fleet's own account says, step by step."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import islice, pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedattn_lab.studies.fleet import ExponentialServer, Failure, Server, chat_requests, simulate
from pagedattn_lab.studies.fleet.events import Arrived, Evicted, Failed, Finished, FleetEvent, Recovered, Started
from pagedattn_lab.studies.fleet.requests import FleetRequest
from pagedattn_lab.viz import fleet as view
from pagedattn_lab.viz.fleet import fleet_pictures, fleet_player
from pagedattn_lab.viz.fleet_replay import SHARED, FleetStep, fleet_steps
from pagedattn_lab.viz.player import Player
from tests.helpers.draws import drawn
from tests.helpers.fleets import BLOCK_SIZE, SYSTEM, SmallFleet

SVG = "{http://www.w3.org/2000/svg}"
NAMES = {0: "Ada", 1: "Bo", 2: "Cleo", 3: "Dot"}
MARKS = {"A": "Ada", "B": "Bo", "C": "Cleo", "D": "Dot", "+": "shared"}

fleets = st.builds(
    lambda seed, replicas, blocks: SmallFleet(replicas, blocks, seed=seed).run(24),
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(5, 12),
)


def steps_of(fleet: SmallFleet) -> list[tuple[FleetStep, int]]:
    """Return the steps of a fleet's events, each with how many events have happened by then."""
    steps, counted = fleet_steps(fleet.events, fleet.num_replicas, BLOCK_SIZE), 0
    found = []
    for step in steps:
        counted += len(step.events)
        found.append((step, counted))
    return found


def by_session(fleet: SmallFleet, contents: frozenset[int]) -> dict[int, int]:
    """Count the blocks of a cache by the conversation that has them; the system prompt is shared."""
    asked = {event.request.session for event in fleet.events if isinstance(event, Arrived)}
    owner = dict.fromkeys(SYSTEM, SHARED if len(asked) > 1 else min(asked, default=SHARED))
    return dict(Counter(owner.get(content, content // 100) for content in contents))


class Row(NamedTuple):
    """What a picture shows of one replica."""

    waiting: list[str]
    running: list[str]
    pieces: list[tuple[str, int]]  # text and width
    found: int  # pixels of the lines under the cache
    fill: str
    is_framed: bool
    failed: bool


def rows_of(svg: str, num_replicas: int) -> list[Row]:
    """Read a picture by where things stand."""
    root = ET.fromstring(svg)
    texts = [(int(e.get("x")), int(e.get("y")), e.text) for e in root.iter(f"{SVG}text")]
    rects = [e for e in root.iter(f"{SVG}rect")]
    rows = []
    for number in range(num_replicas):
        y = view._TOP + view._ROW * number
        here = [(x, text) for x, at, text in texts if at == y + 15]
        boxes = [e for e in rects if e.get("y") == str(y) and e.get("fill") != "none"]
        pieces = []
        for box in boxes:
            left, width = int(box.get("x")), int(box.get("width"))
            if left >= view._CACHE:
                inside = [text for x, text in here if left <= x <= left + width]
                pieces.append((inside[0] if inside else "", width))
        lines = [int(e.get("width")) for e in rects if e.get("y") == str(y + view._HIGH + 2)]
        (fill,) = [text for x, text in here if x == view.WIDTH - 8]
        assert (8, str(number)) in here
        rows.append(
            Row(
                [text for x, text in here if view._WAITING <= x < view._RUNNING and text != "failed"],
                [text for x, text in here if view._RUNNING <= x < view._CACHE],
                pieces,
                sum(lines),
                fill,
                any(e.get("y") == str(y - 4) for e in rects),
                "failed" in [text for _, text in here],
            )
        )
    return rows


def words_of(alt: str) -> dict[int, str]:
    """Return what a picture's text says of each replica."""
    return {int(number): words for number, words in re.findall(r"Replica (\d+): ([^.]*)\.", alt)}


@given(fleets)
@settings(deadline=None, max_examples=drawn(60))
def test_steps_stand_where_the_fleet_stood(fleet: SmallFleet) -> None:
    """Catches a request in the wrong queue, a block that stays after an eviction or a failure, and wrong owners."""
    for step, counted in steps_of(fleet):
        states = fleet.states[counted - 1]
        assert [replica.waiting for replica in step.replicas] == [state.waiting for state in states]
        assert [replica.running for replica in step.replicas] == [state.running for state in states]
        assert [replica.is_alive for replica in step.replicas] == [state.is_alive for state in states]
        for replica, state in zip(step.replicas, states, strict=True):
            assert replica.cached == by_session(fleet, state.cached)
        looked_for = fleet.looked_for[counted - 1]
        assert step.hit_rate == (fleet.found[counted - 1] / looked_for if looked_for else None)
    assert counted == len(fleet.events), "an event is in no step"


@given(fleets)
@settings(deadline=None, max_examples=drawn(60))
def test_imbalance_is_work_over_the_mean(fleet: SmallFleet) -> None:
    """Catches work counted while nothing runs, or lost with a failure."""
    for step, counted in steps_of(fleet):
        busy, since = [0.0] * fleet.num_replicas, [None] * fleet.num_replicas
        for event in fleet.events[:counted]:
            if isinstance(event, Started):
                since[event.replica] = event.time
            elif isinstance(event, Finished | Failed) and since[event.replica] is not None:
                busy[event.replica] += event.time - since[event.replica]
                since[event.replica] = None
        now = fleet.events[counted - 1].time
        busy = [work + (now - start if start is not None else 0) for work, start in zip(busy, since, strict=True)]
        expected = max(busy) * len(busy) / sum(busy) if sum(busy) else None
        assert step.imbalance == (None if expected is None else pytest.approx(expected))


@given(fleets)
@settings(deadline=None, max_examples=drawn(40))
def test_pictures_show_the_fleet(fleet: SmallFleet) -> None:
    """Catches a chip in another's queue, a piece of the wrong length or mark, and a fill that is not their sum."""
    steps = steps_of(fleet)[: view.MOST_STEPS]
    pictures = fleet_pictures([step for step, _ in steps], fleet.num_blocks, BLOCK_SIZE, NAMES)
    a_block = view._BAR / fleet.num_blocks
    for picture, (step, counted) in zip(pictures, steps, strict=True):
        states = fleet.states[counted - 1]
        for row, state in zip(rows_of(picture.svg, fleet.num_replicas), states, strict=True):
            for shown, sessions in ((row.waiting, state.waiting), (row.running, state.running)):
                hidden = len(sessions) - 2
                expected = [NAMES[session] for session in sessions[-2:]]
                assert [MARKS[mark] for mark in shown if mark in MARKS] == expected
                assert [text for text in shown if text not in MARKS] == ([f"+{hidden}"] if hidden > 0 else [])
            assert row.fill == f"{len(state.cached)}/{fleet.num_blocks}"
            assert row.failed == (not state.is_alive)
            owned = {NAMES.get(session, "shared"): n for session, n in by_session(fleet, state.cached).items()}
            named: Counter[str] = Counter()
            for text, width in row.pieces:
                mark, _, number = text.partition(" ")
                blocks = round((width + 1) / a_block)
                if mark in MARKS:
                    named[MARKS[mark]] += blocks
                    assert not number or int(number) == blocks
                else:
                    assert mark in ("…", "")
            assert all(owned[name] == blocks for name, blocks in named.items())
            assert sum(round((width + 1) / a_block) for _, width in row.pieces) == len(state.cached)
        hits = [event.hit_blocks for event in step.events if isinstance(event, Started)]
        found = sum(row.found for row in rows_of(picture.svg, fleet.num_replicas))
        assert found == pytest.approx(sum(hits) * a_block, abs=5)


@given(fleets)
@settings(deadline=None, max_examples=drawn(40))
def test_words_say_the_same(fleet: SmallFleet) -> None:
    """Catches alt text that tells another state, and figures that are another step's."""
    steps = steps_of(fleet)[: view.MOST_STEPS]
    pictures = fleet_pictures([step for step, _ in steps], fleet.num_blocks, BLOCK_SIZE, NAMES)
    for picture, (step, counted) in zip(pictures, steps, strict=True):
        words = words_of(picture.alt)
        for number, state in enumerate(fleet.states[counted - 1]):
            owned = by_session(fleet, state.cached)
            parts = [f"runs {', '.join(NAMES[session] for session in state.running)}"] if state.running else []
            parts += [f"waiting {', '.join(NAMES[session] for session in state.waiting)}"] if state.waiting else []
            held = [f"{NAMES.get(session, 'shared')} {owned[session]}" for session in sorted(owned)]
            parts += [f"{', '.join(held)} of {fleet.num_blocks} blocks"] if held else ["empty"]
            assert words[number] == ("; ".join(parts) if state.is_alive else "failed")
        if step.hit_rate is not None:
            found, looked_for = fleet.found[counted - 1], fleet.looked_for[counted - 1]
            rate = f"it rate {found / looked_for:.0%}".replace("%", " %")  # 23 of 40 as a float are below 57.5 %
            assert f"H{rate}." in picture.alt and f"h{rate}" in picture.svg
        assert picture.alt.startswith(picture.caption)


@pytest.mark.parametrize("router", ["round-robin", "prefix-load"])
@pytest.mark.parametrize("server", [Server(), ExponentialServer(0.4)])
def test_a_simulated_fleet_plays_to_its_report(router: str, server: Server | ExponentialServer) -> None:
    """Catches events of the simulation that are read otherwise than they are meant: figures would miss its report's."""
    events: list[FleetEvent] = []
    chats = chat_requests(2, num_active=3, system_len=64, longest=400, rate=3.0)
    requests = islice((request for request in chats if request.prompt_len <= 400), 24)
    failures = [Failure(2.0, 1, down_s=1.5)]
    report = simulate(
        requests, 3, router, num_blocks=26, block_size=16, server=server, failures=failures, on_event=events.append
    )
    assert report.num_refused == report.num_lost == 0 and sum(each.evictions for each in report.replicas)
    steps = fleet_steps(events, 3, block_size=16)
    assert steps[-1].hit_rate == pytest.approx(report.hit_rate) and report.hit_rate > 0
    assert steps[-1].imbalance == pytest.approx(report.imbalance) and report.imbalance > 1
    assert not any(replica.waiting or replica.running for replica in steps[-1].replicas)
    for step in steps:
        for event in step.events:
            if isinstance(event, Started):
                assert sum(step.replicas[event.replica].cached.values()) == event.cached_blocks
                assert sum(step.replicas[event.replica].hits.values()) == event.hit_blocks
    player = fleet_player(events, "A fleet", num_replicas=3, num_blocks=26, block_size=16, step=-1)
    assert f"Hit rate {report.hit_rate:.0%}".replace("%", " %") in player.alt
    assert f"Busiest replica {report.imbalance:.1f} × the mean" in player.alt


def short_history() -> SmallFleet:
    """Two requests of Ada's on replica 0, the second of which finds what the first has left; then it fails."""
    fleet = SmallFleet(num_replicas=2, num_blocks=5)
    fleet.arrive(0, session=0)
    fleet.arrive(0, session=1)
    fleet.now = 1.0
    fleet.finish(0)
    for _ in range(2):
        fleet.arrive(0, session=0)
    fleet.now = 2.0
    fleet.finish(0)
    fleet.fail(0)
    fleet.alive[0] = True
    fleet.note(Recovered(fleet.now, 0))
    while fleet.at_work[1]:
        fleet.finish(1)
    return fleet


def test_captions() -> None:
    """Catches a caption that leaves out what a step is about, or says it of another request or replica."""
    fleet = short_history()
    player = fleet_player(
        fleet.events, "A history", num_replicas=2, num_blocks=5, block_size=BLOCK_SIZE, names={0: "Ada", 1: "Bo"}
    )
    assert [frame["sentence"] for frame in player.frames] == [
        "Ada goes to replica 0: 0 of its 3 blocks are there.",
        "Bo goes to replica 0, and waits.",
        "Ada ends. Replica 0 begins with Bo: 2 of its 3 blocks are there.",
        "Ada goes to replica 0, and waits.",
        "Ada goes to replica 0, and waits.",
        "Bo ends. Replica 0 begins with Ada: 3 of its 4 blocks are there.",
        "Replica 0 fails: its cache is lost, and 2 requests must be sent again.",
        "Ada goes to replica 1: 0 of its 4 blocks are there.",
        "Ada goes to replica 1, and waits.",
        "Replica 0 is back, with an empty cache.",
        "Ada ends. Replica 1 begins with Ada: 4 of its 5 blocks are there.",
        "Ada ends.",
    ]
    framed = [[row.is_framed for row in rows_of(frame["svg"], 2)].index(True) for frame in player.frames[:-1]]
    assert framed == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1]
    assert not any(row.is_framed for row in rows_of(player.frames[-1]["svg"], 2))


def test_a_request_that_arrives_between_is_a_step() -> None:
    """Catches an arrival that is taken for that of the request which begins next, on another replica."""
    ada, bo = (FleetRequest(0.0, 9, 1, (session, session + 10, session + 20), session) for session in (0, 1))
    events = [
        Arrived(0.0, 1, 0, ada, 1), Arrived(0.1, 0, 1, bo, 1),
        Started(0.2, 1, 0, ada, 0, 2), Started(0.3, 0, 1, bo, 0, 2),
    ]  # fmt: skip
    player = fleet_player(events, "A", num_replicas=2, num_blocks=4, block_size=4, names=NAMES)
    assert [frame["sentence"] for frame in player.frames] == [
        "Ada goes to replica 1, and waits.",
        "Bo goes to replica 0, and waits.",
        "Replica 1 begins with Ada: 0 of its 2 blocks are there.",
        "Replica 0 begins with Bo: 0 of its 2 blocks are there.",
    ]


def test_evictions_are_told_by_owner() -> None:
    """Catches an eviction of which a reader learns nothing."""
    fleet = SmallFleet(num_replicas=1, num_blocks=5)
    for session in (0, 1, 2, 3):
        fleet.arrive(0, session)
        fleet.finish(0)
    player = fleet_player(fleet.events, "A", num_replicas=1, num_blocks=5, block_size=BLOCK_SIZE, names=NAMES)
    assert player.frames[3]["sentence"] == (
        "Cleo ends. Dot goes to replica 0: 2 of its 3 blocks are there. 1 block of Ada goes."
    )


def test_a_conversation_keeps_its_look_and_shares_it_with_nobody() -> None:
    """Catches colours that jump from step to step, one mark for two, and a mark that stands for several."""
    fleet = SmallFleet(3, 12, num_sessions=6, seed=5).run(30, fails=False)
    names = {0: "Ada", 1: "Alan", 2: "+1", 4: "Cleo"}
    steps = [step for step, _ in steps_of(fleet)][:40]
    looks = view._looks(steps, names)
    marks = [mark for _, mark, _ in looks.values()]
    assert len(set(marks)) == len(marks) == 7 and "…" not in marks
    assert [name for name, *_ in looks.values()].count("A") == 0, "an unnamed conversation looks like Ada"
    colour_of: dict[str, set[str]] = {}
    for picture in fleet_pictures(steps, 12, BLOCK_SIZE, names):
        root = ET.fromstring(picture.svg)
        for group in root.iter(f"{SVG}g"):
            parts = list(group)
            for box, text in pairwise(parts):
                if box.tag == f"{SVG}rect" and text.tag == f"{SVG}text" and box.get("fill") not in (None, "none"):
                    colour_of.setdefault(text.text.split()[0], set()).add(box.get("fill"))
    assert {mark for mark in colour_of if mark != "…"} <= set(marks)
    assert all(len(colours) == 1 for colours in colour_of.values())
    named = [colours for mark, colours in colour_of.items() if mark not in ("+", "…")]
    assert len(set(map(frozenset, named))) == len(named) > 4


def test_names_are_text() -> None:
    """Catches a name that becomes markup."""
    fleet = short_history()
    name = '<b>&"x'
    player = fleet_player(
        fleet.events, "A", num_replicas=2, num_blocks=5, block_size=BLOCK_SIZE, names={0: name, 1: "&amp;"}
    )
    for frame in player.frames:
        root = ET.fromstring(frame["svg"])
        assert not list(root.iter(f"{SVG}b")) and root.get("aria-label") == frame["alt"]
    assert name in player.frames[0]["alt"]


def test_same_events_same_bytes_and_few() -> None:
    """Catches an order that differs from run to run, and a player that would swell a chapter: 80 kB for 20 steps."""
    fleet = SmallFleet(4, 12, num_sessions=4, seed=3).run(40)
    steps = [step for step, _ in steps_of(fleet)][:20]
    assert len(steps) == 20

    def stored() -> str:
        player = Player(fleet_pictures(steps, 12, BLOCK_SIZE, NAMES), "A fleet", step=0)
        return json.dumps(player.bundle(), ensure_ascii=False)

    assert stored() == stored()
    assert len(stored().encode()) <= 80_000


def test_an_image_has_no_ids() -> None:
    """Catches ids, which collide when several pictures stand on one page, and letters in a colour no theme knows."""
    fleet = SmallFleet(4, 12, seed=9).run(30)
    for picture in fleet_pictures([step for step, _ in steps_of(fleet)][:30], 12, BLOCK_SIZE):
        assert " id=" not in picture.svg and "url(" not in picture.svg
        inks = set(re.findall(r'<text [^>]*?fill="([^"]+)"', picture.svg))
        assert inks <= {"#000", "#fff", "#222"}


REQUEST = FleetRequest(arrival=0.0, prompt_len=9, output_len=1, hash_ids=(1, 2, 3), session=0)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], "no event"),
        ([Arrived(0.0, 2, 0, REQUEST, 1)], "replica 2 of 2"),
        ([Started(0.0, 0, 0, REQUEST, 0, 2)], "request 0 starts on replica 0"),
        ([Arrived(0.0, 0, 0, REQUEST, 1), Finished(0.0, 0, 0, REQUEST, 1.0)], "request 0 ends on replica 0"),
        ([Evicted(0.0, 1, (7,), 0)], "content 7 goes from replica 1"),
    ],
)
def test_events_that_cannot_be_are_refused(events: list, words: str) -> None:
    """Catches a picture of something that was not so: events of another fleet, or without their beginning."""
    with pytest.raises(ValueError, match=words):
        fleet_player(events, "A", num_replicas=2, num_blocks=4, block_size=4)


def test_what_cannot_be_drawn_is_refused() -> None:
    """Catches pictures by the hundred, rows by the hundred, and a cache fuller than full."""
    fleet = SmallFleet(2, 6, seed=1).run(200)
    options = {"num_replicas": 2, "num_blocks": 6, "block_size": BLOCK_SIZE}
    with pytest.raises(ValueError, match="steps cannot be drawn: give the events of fewer requests"):
        fleet_player(fleet.events, "A", **options)
    events = short_history().events
    with pytest.raises(ValueError, match="17 replicas cannot be drawn"):
        fleet_player(events, "A", **options | {"num_replicas": 17})
    with pytest.raises(ValueError, match="a cache holds 5 blocks, more than num_blocks=4"):
        fleet_player(events, "A", **options | {"num_blocks": 4})
