"""The front page's player and the sandbox: what readers do there leads where the library in Python leads.

Both pages are opened from the disk, and asked what they hold; buttons are worked by mouse and by keyboard.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import players
import pytest
from accessibility import judged, only
from playwright.sync_api import Browser, Locator, Page, expect
from watch import Watch, freeze, until

from pagedattn_lab.block_pool import BlockPool, NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.recorder import Recorder
from pagedattn_lab.recorder.frame import short_hashes
from pagedattn_lab.request import Request
from tests.helpers.chapters import CHAPTERS
from tools import notebooks

NAMES = ["Ada", "Bo", "Cy", "Dan", "Eve", "Fay", "Gus", "Hal", "Ivy", "Jon", "Kim", "Leo"]
PROMPT = "you are a helpful assistant who answers"
BO = ["where", "does", "my", "cache", "live", "now"]
TOKENS = {"a": 1, "b+/:": 2, "ü": 3}  # by word
KINDS = ["append"] * 4 + ["look"] * 3 + ["fork"] * 2 + ["free"] * 4
FAULTS = ("give_back", "count_low", "count_high", "queue_twice")
WORDS = """stage => [...stage.querySelectorAll('rect > title')]
  .map(title => title.textContent).filter(text => text.includes('“'))"""
THEMES = "scheme => document.documentElement.dataset.theme === scheme"
HEIGHT = "element => element.offsetHeight"
FITS = "() => document.documentElement.scrollWidth <= window.innerWidth"
REPLAY = """text => JSON.parse(text).map(operations => {
  const sandbox = sandboxState.replayed(sandboxState.from_address(sandboxState.to_address(operations)));
  return [sandbox.recording(), [...sandbox.done]];
})"""
WIDTHS = """select => {
  const clone = select.cloneNode(true), given = select.offsetWidth;
  clone.style.maxWidth = 'none';
  clone.style.position = 'absolute';
  select.parentElement.append(clone);
  const needed = clone.offsetWidth;
  clone.remove();
  return [needed, given];
}"""
AUDIT = "text => JSON.parse(text).map(frame => sandboxState.audit(frame).map(({ block }) => block))"


@pytest.fixture(scope="module")
def watch(browser: Browser) -> Iterator[Watch]:
    """Open one window for all tests of this file."""
    with Watch(browser, viewport={"width": 1280, "height": 900}, color_scheme="light") as watch:
        watch.context.route("**/tex-svg.js", lambda route: route.fulfill(body=""))  # large, and of no use here
        yield watch


@pytest.fixture(scope="module")
def page(watch: Watch) -> Page:
    """Open one tab for all tests of this file."""
    return watch.new_page()


@pytest.fixture
def front(watch: Watch, page: Page, site: Path) -> Iterator[Page]:
    """Open the front page from the disk."""
    address = (site / "book" / "index.html").as_uri()
    page.set_viewport_size({"width": 1280, "height": 900})
    if page.url != address:
        page.goto(address)
    yield page
    assert watch.problems == []


@pytest.fixture
def sandbox(watch: Watch, page: Page, site: Path) -> Iterator[Page]:
    """Open the sandbox from the disk, or empty it: to open it costs more than most tests."""
    address = (site / "book" / "sandbox.html").as_uri()
    page.set_viewport_size({"width": 1280, "height": 900})
    if page.url.split("#")[0] != address:
        page.goto(address)
    page.evaluate("() => { location.hash = '6x4'; }")
    for name, value in (("usable", "6"), ("size", "4")):
        expect(part(page, name)).to_have_value(value)
    expect(part(page, "log").locator("li")).to_have_count(0)
    page.locator("#sandbox [data-part=words]").fill(PROMPT)
    yield page
    assert watch.problems == []


def look_in_both_themes(page: Page, part: str) -> None:
    """Ask axe about a part of a page as it is; the test of all pages has looked at it as it opens."""
    for scheme, options in (("dark", only("color-contrast")), ("light", {})):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(THEMES, arg=scheme)
        report = judged(page, part, options, "violations", "passes")
        assert report["passes"] and report["violations"] == [], scheme


# ---------------------------------------------------------------- the front page


def prompted(words: list[str], block_size: int) -> dict[str, Any]:
    """Record in Python what the front page does with a prompt."""
    pool = BlockPool(24 // block_size + 1, block_size)
    recorder, ada, bo = Recorder(pool), BlockTable(pool, "Ada"), BlockTable(pool, "Bo")
    if not words:
        recorder.note("Ada has written nothing, and holds no block.")
    try:
        for index in range(len(words)):
            ada.append_tokens(1)
            if index < len(BO):
                bo.append_tokens(1)
    except NoFreeBlocksError as error:
        recorder.note(f"Refused: {error}.")
    return recorder.to_dict() | {"label": "Ada's words fill blocks"}


def check_front(page: Page, words: list[str], block_size: int, step: int | None = None) -> dict[str, Any]:
    """Compare the front page's board, its words too, with Python's for the same prompt and block size."""
    player, recording = page.locator(".pa-player"), prompted(words, block_size)
    state = players.at_step(recording, len(recording["frames"]) - 1 if step is None else step)
    assert players.shown(player) == players.expected(state)
    tables = {table["name"]: table for table in state["frame"]["tables"]}
    texts = {"Ada": words, "Bo": BO}
    titles = []
    for name, table in tables.items():
        for position in range(table["num_tokens"]):
            slot = table["block_ids"][position // block_size] * block_size + position % block_size
            titles.append(f"slot {slot}: {name}, token {position} “{texts[name][position]}”")
    assert sorted(player.locator(".pa-stage").evaluate(WORDS)) == sorted(titles)
    return recording


def test_a_prompt_fills_blocks(front: Page) -> None:
    """Catches typing, a block size or a generated word that leads to another board than Python's, or moves the page."""
    words = ["nothing", "is", "reserved", "and", "no", "hole", "is", "too", "small", "to", "use"]
    prompt, box = front.get_by_role("textbox", name="Ada's prompt"), front.locator(".play-player")
    slider = front.get_by_role("slider", name="Block size")
    generate = front.get_by_role("button", name="Generate a word")
    sentence, summary = front.locator(".pa-sentence"), front.locator(".play-summary")
    check_front(front, words, 4)
    height = box.evaluate(HEIGHT)

    prompt.press("End")
    front.keyboard.type("  again <b>")
    words += ["again", "<b>"]
    check_front(front, words, 4)
    assert sentence.get_attribute("aria-live") == "off", "each word typed is read out"
    expect(summary).to_have_text("Ada's 13 words fill 4 blocks; 3 of their 16 slots are empty.")
    slider.focus()
    for key, block_size in (("Home", 1), ("End", 8), ("ArrowLeft", 6), ("ArrowLeft", 4), ("ArrowLeft", 3)):
        front.keyboard.press(key)
        expect(slider).to_have_attribute("aria-valuetext", "1 word" if block_size == 1 else f"{block_size} words")
        check_front(front, words, block_size)
        assert box.evaluate(HEIGHT) == height
    front.locator(".pa-first").click()
    assert sentence.get_attribute("aria-live") == "polite"
    slider.press("ArrowRight")  # the place is kept
    check_front(front, words, 4, step=0)
    generate.focus()
    for word in ("because", "any", "free", "block"):
        front.keyboard.press("Enter")
        words.append(word)
        made = check_front(front, words, 4)
        assert box.evaluate(HEIGHT) == height
    assert made["frames"][-1]["sentence"] == "Refused: cannot allocate 1 blocks: 0 of 6 are free."
    prompt.fill(" ")
    check_front(front, [], 4)
    expect(summary).to_have_text("Ada holds no block.")


def test_generating_stops_at_the_first_refusal(front: Page) -> None:
    """Catches words generated without a slot, a press that silently begins again, and a refusal that names no word."""
    prompt, said = front.get_by_role("textbox", name="Ada's prompt"), front.locator(".play-generated")
    generate, again = (front.get_by_role("button", name=name) for name in ("Generate a word", "Start again"))
    front.get_by_role("slider", name="Block size").fill("3")
    words = ["nothing", "is", "reserved", "and", "no", "hole", "is", "too", "small", "to", "use"]
    prompt.fill(" ".join(words))
    generated = ["because", "any", "free", "block", "will", "do"]
    for count in range(1, 6):
        generate.click()
        expect(said).to_have_text(" ".join(generated[:count]))
        expect(again).to_be_hidden()
    generate.focus()
    for _ in range(3):  # what is disabled does nothing, and keeps the focus
        front.keyboard.press("Enter")
        expect(said).to_have_text("Memory is full: “do” has no slot. Try a smaller block or a shorter prompt.")
        expect(generate).to_be_focused()
        expect(generate).to_have_attribute("aria-disabled", "true")
        check_front(front, [*words, *generated], 4)
    expect(front.locator(".play-summary")).to_have_text(
        "Ada's 16 words fill 4 blocks; all slots are full. “do” has no slot."
    )
    again.click()
    check_front(front, words, 4)
    expect(generate).to_be_focused()
    expect(generate).to_have_attribute("aria-disabled", "false")
    expect(again).to_be_hidden()
    prompt.fill(" ".join(f"w{index}" for index in range(20)))
    expect(said).to_have_text("Memory is full: “w16” has no slot. Try a smaller block or a shorter prompt.")
    expect(again).to_be_hidden()
    prompt.fill("short")
    generate.focus()
    for _ in range(12):
        front.keyboard.press("Enter")
    expect(said).to_have_text("because any free block will do for the next few words (here the text ends)")


def test_typing_shows_what_it_did(front: Page) -> None:
    """Catches typing that leaves an old frame, or Bo's, on the board, and a summary that counts one thing as many."""
    prompt = front.get_by_role("textbox", name="Ada's prompt")
    front.get_by_role("slider", name="Block size").fill("3")
    for word in ("one", "one two"):
        prompt.fill(word)
        front.locator(".pa-first").click()
        prompt.press("End")
        front.keyboard.type(" more")
        words = [*word.split(), "more"]
        check_front(front, words, 4, step=len(prompted(words, 4)["frames"]) - 2)  # the last frame is Bo's
        expect(front.locator(".pa-sentence")).to_contain_text("Ada")
    prompt.fill("one")
    expect(front.locator(".play-summary")).to_have_text("Ada's 1 word fills 1 block; 3 of its 4 slots are empty.")


def test_the_front_page_fits_a_phone(front: Page) -> None:
    """Catches a page that scrolls sideways on a phone, and one whose text jumps while a reader writes there."""
    front.set_viewport_size({"width": 390, "height": 844})
    box, slider = front.locator(".play-player"), front.get_by_role("slider", name="Block size")
    board = front.locator("#try-it .pa-stage > svg")
    until(lambda: int(board.get_attribute("width")) < 390, lambda: "the board stays as wide as it was")
    for key in ("Home", "ArrowRight", "End"):
        slider.press(key)
        assert front.evaluate(FITS)
        heights = set()
        for words in ("", "word " * 30):
            front.get_by_role("textbox", name="Ada's prompt").fill(words)
            heights.add(box.evaluate(HEIGHT))
        assert len(heights) == 1


def test_without_scripts_there_is_a_picture(browser: Browser, site: Path) -> None:
    """Catches a front page, or a sandbox, that says nothing where no script runs."""
    with Watch(browser, java_script_enabled=False) as watch:
        page = watch.new_page()
        page.goto((site / "book" / "index.html").as_uri())
        assert page.locator("#try-it img").get_attribute("alt").startswith("7 usable blocks of 8 tokens.")
        expect(page.locator("#try-it img")).to_be_visible()
        page.goto((site / "book" / "sandbox.html").as_uri())
        expect(page.locator("#sandbox")).to_contain_text("needs JavaScript")


# ---------------------------------------------------------------- the sandbox's state


class Twin:
    """The sandbox in Python: the library's manager, told the same operations."""

    def __init__(self, usable: int, block_size: int) -> None:
        self.manager = KVCacheManager(usable + 1, block_size)
        self.pool = self.manager.block_pool
        self.recorder = Recorder(self.pool)
        self.requests: dict[str, Request] = {}
        self.used = 0  # names

    def do(self, kind: str, *what: Any) -> None:
        if kind == "append":
            self.append(*what)
        elif kind == "look":
            self.look(*what)
        elif kind == "fork":
            self.requests[what[1]] = self.manager.fork(self.requests[what[0]], what[1])
            self.used += 1
        else:
            self.manager.free(self.requests.pop(what[0]))
        take_copies(self.manager.tables.values())
        hashes = short_hashes(self.pool)  # the cache takes blocks in after their event was told
        self.recorder.frames[-1] = replace(self.recorder.frames[-1], hashes=hashes)

    def append(self, name: str, words: list[str]) -> None:
        request = self.requests.get(name)
        before = request.num_tokens if request else 0
        tokens = [TOKENS[word] for word in words]
        if request is None:
            request = Request(name, tokens)
        else:
            for token in tokens:
                request.append_token(token)
        needed = BlockTable(self.pool) if before == 0 else self.manager.tables[name]
        self.allocate(request, len(words), [], needed.num_blocks_needed(len(words)))
        if name in self.requests and request.num_computed_tokens != request.num_tokens:
            del request.token_ids[before:]

    def look(self, name: str, words: list[str]) -> None:
        if name in self.requests:
            self.recorder.note(f"Refused: request '{name}' holds blocks already: hits are for requests without any.")
            return
        request = Request(name, [TOKENS[word] for word in words])
        hits, num_hit = self.manager.get_computed_blocks(request)
        if not hits:
            self.recorder.note(f"The cache holds no block that begins as {name} does.")
        rest = len(words) - num_hit
        needed = BlockTable(self.pool).num_blocks_needed(rest) + sum(block.ref_cnt == 0 for block in hits)
        self.allocate(request, rest, hits, needed)

    def allocate(self, request: Request, num_tokens: int, hits: list[Any], needed: int) -> None:
        if self.manager.allocate_slots(request, num_tokens, hits) is not None:
            request.num_computed_tokens = request.num_tokens
            self.used += request.request_id not in NAMES[: self.used]
            self.requests[request.request_id] = request
            return
        with pytest.raises(NoFreeBlocksError) as refused:
            self.pool.check_free(needed)
        self.recorder.note(f"Refused: {refused.value}.")


def history(rng: random.Random) -> tuple[list[Any], list[dict[str, Any]]]:
    """Draw operations on a small memory; return them, and what Python's recorder made of them."""
    size = [rng.randint(3, 10), rng.choice([1, 2, 2, 3, 4])]
    twin, operations = Twin(*size), [size]
    for _ in range(rng.randint(1, 30)):
        new = NAMES[twin.used] if twin.used < len(NAMES) else None
        kind, running = rng.choice(KINDS), list(twin.requests)
        words = rng.choices(list(TOKENS), weights=[18, 1, 1], k=rng.randint(1, 6))
        old = rng.choice(running or [None])
        name = rng.choice([old] * 5 + [new]) if kind == "append" else rng.choice([new] * 9 + [old])
        name = old if kind in ("fork", "free") else name
        if name is None or (kind == "fork" and new is None):
            continue
        operation = [kind, name, *{"append": [words], "look": [words], "fork": [new], "free": []}[kind]]
        operations.append(operation)
        twin.do(*operation)
    return operations, [frame.to_dict() for frame in twin.recorder.frames]


def same_hashes(ours: list[dict[str, str]], theirs: list[dict[str, str]]) -> bool:
    """Say whether two histories mark the same blocks, and as equal those that the other marks as equal."""
    pairs = {(a[block], b[block]) for a, b in zip(ours, theirs, strict=True) for block in a if block in b}
    one_to_one = len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    return one_to_one and [set(a) for a in ours] == [set(b) for b in theirs]


def test_operations_lead_where_python_leads(sandbox: Page) -> None:
    """Catches blocks, counts, hits, refusals or sentences that are not the library's, and false alarms."""
    rng = random.Random(12)
    drawn = [history(rng) for _ in range(120)]
    made = sandbox.evaluate(REPLAY, json.dumps([operations for operations, _ in drawn]))
    kinds: set[str] = set()
    for (operations, expected), (recording, _) in zip(drawn, made, strict=True):
        frames = recording["frames"]
        hashes = (
            [frame.pop("hashes") for frame in frames],
            [{str(block): text for block, text in frame.pop("hashes").items()} for frame in expected],
        )
        assert frames == expected, operations
        assert same_hashes(*hashes), operations
        kinds |= {frame["kind"] for frame in frames} | {frame["sentence"].split(":")[0] for frame in frames}
    assert {"append", "copy-on-write", "fork", "hit", "free", "Refused"} <= kinds
    frames = [frame for recording, _ in made for frame in recording["frames"]]
    assert not any(sandbox.evaluate(AUDIT, json.dumps(frames))), "a frame between two operations is accused"


def test_the_audit_is_the_chapters(sandbox: Page) -> None:
    """Catches an audit that overlooks what chapter 03's finds, accuses a sound block, or names another one."""
    (chapter,) = [path for path in CHAPTERS if path.stem.startswith("03")]
    (source,) = [c.source for c in notebooks.code_cells(notebooks.read(chapter)) if c.source.startswith("def audit(")]
    scope = {"Counter": Counter, "free_order": lambda pool: pool.free}
    exec(source, scope)
    rng, frames, expected = random.Random(3), [], []
    for _ in range(400):
        tables = [rng.choices(range(1, 5), k=rng.choice([0, 1, 2])) for _ in range(2)]
        entries = Counter(block for ids in tables for block in ids)
        counts = [0, *(entries[block] + rng.choice([0] * 9 + [-1, 1]) for block in range(1, 5))]
        counts = [max(0, count) for count in counts]
        free = [block for block in range(1, 5) if counts[block] == 0]
        if rng.random() < 0.3:
            free = rng.choices(range(1, 5), k=rng.randint(0, 4))
        frames.append(
            {
                "ref_cnt": counts,
                "free": free,
                "tables": [{"name": name, "block_ids": ids} for name, ids in zip(("Ada", "Bo"), tables, strict=True)],
            }
        )
        blocks = [SimpleNamespace(block_id=block, ref_cnt=count) for block, count in enumerate(counts)]
        tables = [SimpleNamespace(block_ids=ids) for ids in tables]
        expected.append(scope["audit"](SimpleNamespace(blocks=blocks, free=free), tables))
    found = sandbox.evaluate(AUDIT, json.dumps(frames))
    verdicts = [f"block {blocks[0]}" if blocks else "all invariants hold" for blocks in found]
    assert [words.split(":")[0] for words in expected] == verdicts
    assert 50 < verdicts.count("all invariants hold") < 350


# ---------------------------------------------------------------- the sandbox's page


def part(page: Page, name: str) -> Locator:
    return page.locator(f"#sandbox [data-part={name}]")


def press(page: Page, *names: str) -> None:
    for name in names:
        part(page, name).click()


def sentence(page: Page) -> Locator:
    return page.locator("#sandbox .pa-sentence")


def operations_of(page: Page) -> list[str]:
    return page.evaluate("() => location.hash.slice(1)").split("/")


def shown(page: Page) -> dict[str, Any]:
    return players.shown(page.locator("#sandbox .pa-player"))


def test_every_button_and_the_address(sandbox: Page) -> None:
    """Catches a button that does nothing or something else, an undo that leaves a trace, an address that loses some."""
    request, words = part(sandbox, "request"), part(sandbox, "words")
    sandbox.reload()  # no task is done yet
    expect(request).to_have_value("Ada")
    press(sandbox, "fork")
    expect(sandbox.get_by_role("alert")).to_have_text("Ada holds no blocks yet: append some words first.")
    press(sandbox, "append")
    expect(sandbox.get_by_role("alert")).to_be_hidden()
    assert shown(sandbox)["tables"] == {"Ada": [1, 2]}
    press(sandbox, "fork", "append")
    expect(request).to_have_value("Bo")
    assert shown(sandbox)["tables"] == {"Ada": [1, 2], "Bo": [1, 3, 4, 5]}
    expect(part(sandbox, "tasks").locator(".play-done")).to_have_text(["Make a copy-on-write happen."])
    expect(part(sandbox, "praise")).to_have_text("Done: Make a copy-on-write happen.")
    before = shown(sandbox), operations_of(sandbox)
    request.select_option("Cy")
    press(sandbox, "append")
    pool = BlockPool(7, 4)
    pool.get_new_blocks(5)
    with pytest.raises(NoFreeBlocksError) as refused:
        pool.get_new_blocks(2)
    expect(sentence(sandbox)).to_have_text(f"Refused: {refused.value}.")
    expect(part(sandbox, "tasks").locator(".play-done")).to_have_count(2)
    assert operations_of(sandbox)[-1] == f"append:Cy:{PROMPT.replace(' ', '+')}"
    press(sandbox, "undo")
    assert (shown(sandbox), operations_of(sandbox)) == before
    request.select_option("Ada")
    press(sandbox, "free")
    request.select_option("Bo")
    press(sandbox, "free")
    assert shown(sandbox)["free"] == [5, 2, 6, 4, 3, 1]
    words.fill(f"{PROMPT} <img/src=x>&+:ü")
    request.select_option("Cy")
    press(sandbox, "look")
    expect(part(sandbox, "tasks").locator(".play-done")).to_have_count(3)
    expect(part(sandbox, "log").locator("li").first).to_contain_text("Cy finds 4 tokens in the cache: block 1 leaves")
    sandbox.locator("#sandbox [data-block-of='5']").click()
    expect(part(sandbox, "block")).to_have_value("5")
    there = shown(sandbox), part(sandbox, "log").inner_text()
    sandbox.reload()
    assert (shown(sandbox), part(sandbox, "log").inner_text()) == there
    assert "slot 23: Cy, token 7 “<img/src=x>&+:ü”" in sandbox.locator("#sandbox .pa-stage").evaluate(WORDS)
    assert sandbox.locator("#sandbox img").count() == 0
    press(sandbox, *["undo"] * 6)
    expect(part(sandbox, "undo")).to_be_focused()
    assert shown(sandbox)["free"] == [1, 2, 3, 4, 5, 6] and operations_of(sandbox) == ["6x4"]
    part(sandbox, "usable").select_option("3")
    part(sandbox, "size").select_option("2")
    press(sandbox, "restart")
    assert shown(sandbox)["free"] == [1, 2, 3] and operations_of(sandbox) == ["3x2"]


BROKEN = {  # by fault: the block, which rules break, and the first words about it
    "give_back": (2, ["counts", "double"], "block 2: 0 counted, 1 table entry (Ada's logical block 1)"),
    "count_low": (1, ["counts"], "block 1: 0 counted, 1 table entry (Ada's logical block 0)"),
    "count_high": (2, ["counts"], "block 2: 2 counted, 1 table entry (Ada's logical block 1)"),
    "queue_twice": (4, ["double"], "block 4: 2 times in the free queue"),
}


def test_a_broken_rule_is_named(sandbox: Page) -> None:
    """Catches a fault that goes unseen, an alarm about another block, one on the board only, and one that stays."""
    press(sandbox, "append")
    whole, rules = shown(sandbox), part(sandbox, "rules")
    for fault in FAULTS:
        block, broken, words = BROKEN[fault]
        part(sandbox, "block").select_option(str(block))
        part(sandbox, "fault").select_option(fault)
        press(sandbox, "break")
        expect(sentence(sandbox)).to_have_text(f"The audit finds {'; '.join([words, *rest(fault)])}.")
        assert [item.get_attribute("data-key") for item in rules.locator(".play-broken").all()] == broken
        expect(rules.locator("em").first).to_have_text(f"{words}.")
        outlined = sandbox.locator("[data-kind=audit] .pa-block:has(> .pa-changed)")
        assert [group.get_attribute("data-block") for group in outlined.all()] == [str(block)]
        if fault == "queue_twice":
            look_in_both_themes(sandbox, ".play-below")  # what is new since the page was opened
            assert shown(sandbox)["free"] == [3, 4, 5, 6, 4]
        press(sandbox, "undo")
        expect(rules.locator(".play-holds")).to_have_count(3)
        assert shown(sandbox) == whole, fault

    # What comes of it: two requests get one block, and the library refuses to free it a second time.
    press(sandbox, "break")
    part(sandbox, "words").fill("one two three four five six seven eight nine ten eleven twelve thirteen")
    part(sandbox, "request").select_option("Bo")
    press(sandbox, "append")
    part(sandbox, "request").select_option("Cy")
    part(sandbox, "words").fill("four")
    press(sandbox, "append")
    assert shown(sandbox)["tables"] == {"Ada": [1, 2], "Bo": [3, 4, 5, 6], "Cy": [4]}
    expect(rules.locator("em")).to_have_text(
        ["block 4: 1 counted, 2 table entries (Bo's logical block 1, Cy's logical block 0)."]
    )
    press(sandbox, "free")
    part(sandbox, "request").select_option("Bo")
    press(sandbox, "free")
    refused = "Refused: double free of block 4: freed 1 time(s), held by 0 owner(s)."
    expect(part(sandbox, "log").locator("li").first).to_have_text(refused)
    part(sandbox, "request").select_option("Ada")
    part(sandbox, "block").select_option("2")
    part(sandbox, "fault").select_option("count_low")
    press(sandbox, "break", "fork")
    expect(part(sandbox, "log").locator("li").first).to_have_text("Refused: block 2 is not in the free queue.")
    press(sandbox, "undo", "undo")
    for block, fault, why in (
        (1, "queue_twice", "block 1 is not in the free queue"),
        (4, "count_low", "block 4 has no reference to take away"),
    ):
        part(sandbox, "block").select_option(str(block))
        part(sandbox, "fault").select_option(fault)
        press(sandbox, "break")
        expect(part(sandbox, "log").locator("li").first).to_have_text(f"Refused: {why}.")


def rest(fault: str) -> list[str]:
    return ["block 2: in the free queue, and 0 counted, 1 table entry"] if fault == "give_back" else []


def test_by_keyboard_alone(sandbox: Page) -> None:
    """Catches a part of the sandbox that needs a mouse."""
    keyboard = sandbox.keyboard
    part(sandbox, "request").focus()
    keyboard.press("Tab")
    keyboard.type("one two three four five")
    keyboard.press("Enter")
    assert operations_of(sandbox)[1:] == ["append:Ada:one+two+three+four+five"]
    for name, key in (("append", None), ("look", None), ("fork", "Enter"), ("free", "Space")):
        keyboard.press("Tab")
        expect(part(sandbox, name)).to_be_focused()
        if key:
            keyboard.press(key)
    assert operations_of(sandbox)[2:] == ["fork:Ada:Bo", "free:Bo"]
    for name, key in (("block", "2"), ("fault", "g"), ("break", "Enter"), ("undo", "Enter")):
        keyboard.press("Tab")
        expect(part(sandbox, name)).to_be_focused()
        keyboard.press(key)
    assert operations_of(sandbox)[2:] == ["fork:Ada:Bo", "free:Bo"]
    sandbox.locator("#sandbox [data-block][tabindex='0']").focus()
    for key in ("End", "ArrowLeft", "Enter"):
        keyboard.press(key)
    expect(part(sandbox, "block")).to_have_value("5")


def test_the_picture_fits_a_phone(sandbox: Page) -> None:
    """Catches a sandbox that must be scrolled on a phone, sideways or to the board, and a name that is cut there."""
    press(sandbox, "append", "break")
    sandbox.set_viewport_size({"width": 390, "height": 844})
    until(lambda: sandbox.evaluate(FITS), lambda: "the page is too wide")
    row, board = sandbox.locator("#sandbox .play-row").first.bounding_box(), part(sandbox, "player").bounding_box()
    assert 0 <= board["y"] - row["y"] - row["height"] < 30
    assert part(sandbox, "break").bounding_box()["y"] > board["y"] + board["height"]
    needed, given = part(sandbox, "fault").evaluate(WIDTHS)
    assert needed <= given
    sandbox.set_viewport_size({"width": 1280, "height": 900})
    until(
        lambda: part(sandbox, "break").bounding_box()["y"] < part(sandbox, "player").bounding_box()["y"],
        lambda: "the rows stay below the board",
    )


def step_of(page: Page) -> int:
    return shown(page)["step"]


def test_an_operation_is_played(sandbox: Page) -> None:
    """Catches an operation whose own event is never shown, such as the copy before the append."""
    press(sandbox, "append", "fork")
    sandbox.emulate_media(reduced_motion="no-preference")
    freeze(sandbox)
    try:
        part(sandbox, "words").fill("now")
        before = shown(sandbox)["last"]
        press(sandbox, "append")
        assert step_of(sandbox) == before + 1
        expect(sentence(sandbox)).to_contain_text("copies")
        sandbox.clock.run_for(10_000)
        assert step_of(sandbox) == before + 2, "it is not played to the last frame"
        expect(sentence(sandbox)).to_have_text("Bo appends 1 token: it fits in block 3.")
        press(sandbox, "undo")
        assert step_of(sandbox) == shown(sandbox)["last"] == before
        press(sandbox, "append")
        sandbox.locator("#sandbox .pa-first").click()
        sandbox.clock.run_for(10_000)
        assert step_of(sandbox) == 0, "it is played on although a reader went elsewhere"
    finally:
        sandbox.clock.resume()
        sandbox.emulate_media(reduced_motion="reduce")
    expect(part(sandbox, "told")).to_have_text("")
    press(sandbox, "undo", "append")
    assert step_of(sandbox) == before + 2
    told = part(sandbox, "told")
    expect(told).to_contain_text("copies")
    expect(told).to_contain_text("Bo appends 1 token: it fits in block 3.")
    press(sandbox, "undo")
    expect(told).to_have_text("")


def test_the_audit_is_of_the_frame_shown(sandbox: Page) -> None:
    """Catches an audit that speaks of another frame than the board shows."""
    press(sandbox, "append")
    part(sandbox, "block").select_option("2")
    part(sandbox, "fault").select_option("give_back")
    press(sandbox, "break")
    rules = part(sandbox, "rules")
    expect(rules.locator(".play-broken")).to_have_count(2)
    sandbox.locator("#sandbox .pa-first").click()
    expect(rules.locator(".play-holds")).to_have_count(3)
    expect(rules.locator("em")).to_have_count(0)
    sandbox.locator("#sandbox .pa-last").click()
    expect(rules.locator(".play-broken")).to_have_count(2)


def test_a_refused_look_up_says_what_to_choose(sandbox: Page) -> None:
    """Catches a refusal that leaves a reader without a next step, and a log whose newest line is out of sight."""
    press(sandbox, "append", "look")
    why = "Refused: request 'Ada' holds blocks already: hits are for requests without any."
    expect(sentence(sandbox)).to_have_text(why)
    expect(sandbox.get_by_role("alert")).to_have_text(f"{why} Choose Bo (new) in the list.")
    expect(part(sandbox, "log").locator("li").first).to_have_text(why)
    part(sandbox, "request").select_option("Bo")
    press(sandbox, "look")
    expect(sandbox.get_by_role("alert")).to_be_hidden()


MALFORMED = {
    "hello": "it begins with “hello”",
    "1x4": "it begins with “1x4”",
    "6x9": "it begins with “6x9”",
    "6x4/": "operation 1, “”, is no operation",
    "6x4/drop:Ada": "operation 1, “drop:Ada”, is no operation",
    "6x4/constructor:Ada": "is no operation",
    "6x4/append:Zed:a": "operation 1, “append:Zed:a”, is no operation",
    "6x4/append:Bo:a": "names a request, Bo, that does not hold blocks",
    "6x4/append:Ada:a/fork:Ada:Cy": "operation 2, “fork:Ada:Cy”, gives a fork another name than Bo",
    "6x4/append:Ada:a/fork:Ada:Ada": "forks a request into itself",
    "6x4/append:Ada:a+": "does not hold words",
    "6x4/append:Ada:%E0%A4%A": "does not hold words",
    "6x4/append:Ada:a%20b": "does not hold words",
    "6x4/append:Ada:a/free:Ada:Bo": "operation 2, “free:Ada:Bo”, is no operation",
    "6x4/free:Ada": "names a request, Ada, that does not hold blocks",
    "6x4/break:toString:1": "is no operation",
    "6x4/break:give_back:7": "names block 7, which does not exist",
    "6x4/append:Ada:a:b": "has too many parts",
    "6x4" + "/append:Ada:a" * 201: "more than 200 operations",
}


def test_half_a_pair_of_surrogates_is_a_letter(sandbox: Page) -> None:
    """Catches half an emoji, which no address can hold, and with which appending fails without a word."""
    part(sandbox, "words").evaluate("field => { field.value = 'a \\ud83d b'; }")
    press(sandbox, "append")
    assert shown(sandbox)["tables"] == {"Ada": [1]}
    assert sandbox.evaluate("() => location.hash").endswith("/append:Ada:a+%EF%BF%BD+b")


def test_a_malformed_address_is_refused_in_words(sandbox: Page) -> None:
    """Catches an address that carries something else than operations into the page, leaves half of them done, or takes
    what the reader has built.
    """
    press(sandbox, "append")
    built = shown(sandbox)["free"]
    assert built != [1, 2, 3, 4, 5, 6]
    for address, words in MALFORMED.items():
        sandbox.evaluate("address => { location.hash = address; }", address)
        expect(sandbox.get_by_role("alert")).to_contain_text(words)
        expect(sandbox.get_by_role("alert")).to_contain_text("So what is here stays.")
        assert shown(sandbox)["free"] == built, address
        expect(part(sandbox, "log").locator("li")).to_have_count(1)
    sandbox.evaluate("() => { location.hash = '3x2/append:Ada:a+b+c'; }")
    expect(sandbox.get_by_role("alert")).to_be_hidden()
    assert shown(sandbox)["tables"] == {"Ada": [1, 2]}
    sandbox.evaluate("() => { location.hash = 'what-you-see'; }")  # a heading
    expect(sandbox.get_by_role("alert")).to_be_hidden()
    assert shown(sandbox)["tables"] == {"Ada": [1, 2]}
