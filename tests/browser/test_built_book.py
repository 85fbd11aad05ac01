"""The built book in a real browser: every page, every player, the search, both themes, wide and narrow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import highlighting
import players
import pytest
from accessibility import PAGES, colour_violations, structure_violations, violations
from playwright.sync_api import Browser, Locator, Page, expect
from watch import Watch, until

from tests.helpers.chapters import CHAPTERS

UNLINKED = {"search.html", "py-modindex.html"}  # reached by the search field; made by Sphinx beside the index
WIDTHS = {"phone": 390, "laptop": 1440, "projector": 1920}
TYPESET = "() => window.MathJax?.startup?.promise?.then(() => true)"
THEMED = "scheme => document.documentElement.dataset.theme === scheme"
LINKS = """() => [...document.querySelectorAll('a[href]')]
  .map(link => new URL(link.getAttribute('href'), document.baseURI).href)"""  # drawings have links too
IDS = "() => [...document.querySelectorAll('[id]')].map(element => element.id)"
HIDDEN = """() => [...document.querySelectorAll('body *')]
  .flatMap((element, index) => element.checkVisibility({visibilityProperty: true}) ? [] : [index])"""
TOO_WIDE = """() => {
  const wide = document.documentElement.scrollWidth, room = window.innerWidth;
  return wide <= room ? [] : [`${wide} pixels on a screen of ${room}`, ...[...document.querySelectorAll('main *')]
    .filter(element => element.getBoundingClientRect().right > room).slice(0, 5)
    .map(element => `${element.tagName} ${element.className.baseVal ?? element.className}`)];
}"""
# Blocks of code or output that must be scrolled sideways, and cells whose code wraps; folded ones are opened for that.
CRAMPED = """() => {
  const folds = [...document.querySelectorAll('details:not([open])')];
  folds.forEach(fold => { fold.open = true; });
  const blocks = [...document.querySelectorAll('div.highlight pre')];
  const overflow = () => blocks.map(block => block.scrollWidth > block.clientWidth + 1);  // one layout for all blocks
  const scrolls = overflow();
  blocks.forEach(block => { block.style.whiteSpace = 'pre'; });
  const wraps = overflow();
  blocks.forEach(block => { block.style.whiteSpace = ''; });
  const found = blocks.flatMap((block, index) => {
    const kind = scrolls[index] ? 'scrolls' : wraps[index] && block.closest('.cell_input') ? 'wraps' : '';
    const columns = block.closest('.in-columns') ? ', in columns' : '';
    return kind ? [`${kind}${columns}: ${block.textContent.trim().slice(0, 60)}`] : [];
  });
  folds.forEach(fold => { fold.open = false; });
  return found;
}"""


@dataclass
class Seen:
    """What the browser saw of one page."""

    status: int
    links: list[str]
    ids: set[str]
    problems: list[str]
    too_wide: dict[str, list[str]] = field(default_factory=dict)
    cramped: dict[str, list[str]] = field(default_factory=dict)
    highlighting: set[str] = field(default_factory=set)
    hidden: dict[str, list[int]] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def site(chromium: str, site: Path) -> Path:
    """Return the built book, where there is a browser to open it in."""
    return site


@pytest.fixture(scope="module")
def address(site: Path, serve: Callable[[Path], str]) -> str:
    """Return the address at which the book is served."""
    return serve(site)


@pytest.fixture
def watch(browser: Browser) -> Iterator[Watch]:
    """Open a window of a test's own."""
    with Watch(browser, viewport={"width": 1280, "height": 900}) as watch:
        yield watch


def look_at(watch: Watch, page: Page, url: str, judged: dict[str, tuple[set[str], Counter[str]]]) -> Seen:
    """Open a page and look at it: wide and narrow, light and dark.

    Highlighted code is flattened before axe sees it; its colours are judged by themselves. In the dark the page is the
    same but for its colours, and what is hidden says so. ``judged`` holds for each theme what
    :func:`accessibility.colour_violations` knows of kinds of text, and then those of this page too.
    """
    watch.problems.clear()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    response = page.goto(url)
    page.evaluate(TYPESET)
    seen = Seen(response.status, page.evaluate(LINKS), set(page.evaluate(IDS)), [])
    for name, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 900})
        seen.too_wide[name] = page.evaluate(TOO_WIDE)
        if name != "projector":
            seen.cramped[name] = page.evaluate(CRAMPED)
    page.set_viewport_size({"width": 1280, "height": 900})
    seen.highlighting = highlighting.kinds_of(page)
    highlighting.flatten(page)
    for scheme, (known, asked) in judged.items():
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(THEMED, arg=scheme)
        seen.violations[scheme] = colour_violations(page, known, asked)
    for scheme in reversed(judged):  # one right after the other, now that whatever comes late is there
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(THEMED, arg=scheme)
        seen.hidden[scheme] = page.evaluate(HIDDEN)
    seen.violations["light"] += structure_violations(page)
    seen.problems = list(watch.problems)
    return seen


@pytest.fixture(scope="module")
def crawled(browser: Browser, address: str) -> dict[str, Seen]:
    """Follow every link from the root, and look at each page of the book once; keyed by path."""
    watch = Watch(browser, color_scheme="light")
    page, found = watch.new_page(), {}
    judged = {scheme: (set(), Counter()) for scheme in ("light", "dark")}
    waiting = [address + path for path in (*UNLINKED, "book/index.html")]
    while waiting:
        url = waiting.pop()
        path = url.removeprefix(address)
        if path in found:
            continue
        found[path] = look_at(watch, page, url, judged)
        linked = (urldefrag(link).url for link in found[path].links)
        waiting += [link for link in linked if link.startswith(address) and link.endswith(".html")]
    watch.context.close()
    return found


def test_links_lead_to_every_page(site: Path, address: str, crawled: dict[str, Seen]) -> None:
    """Catches a page that no link leads to, and one that does not load."""
    built = {str(path.relative_to(site)) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert {path: seen.status for path, seen in crawled.items() if seen.status != 200} == {}
    linked = {urldefrag(urljoin(address, link)).url for path in set(crawled) - UNLINKED for link in crawled[path].links}
    found = {url.removeprefix(address) for url in linked} & built
    assert found == set(crawled) - UNLINKED == built - UNLINKED - {"index.html"}  # the root leads to the front page


def test_root_leads_to_the_front_page(watch: Watch, address: str) -> None:
    """Catches a site whose bare address shows nothing."""
    page = watch.new_page()
    page.goto(address)
    page.wait_for_url(f"{address}book/index.html")
    assert watch.problems == []


def test_pages_are_quiet(crawled: dict[str, Seen]) -> None:
    """Catches an error on a page's console, and a request to another machine."""
    assert {path: seen.problems for path, seen in crawled.items() if seen.problems} == {}


def test_links_lead_somewhere(address: str, site: Path, crawled: dict[str, Seen]) -> None:
    """Catches a link to a file or heading that is not there once scripts have run."""
    broken = []
    for path, seen in crawled.items():
        for link in seen.links:
            url, fragment = urldefrag(link)
            target = unquote(url.removeprefix(address))
            if not url.startswith(address):
                continue
            if target in crawled:
                if fragment and unquote(fragment) not in crawled[target].ids:
                    broken.append(f"{path}: {link}")
            elif not (site / target).is_file():
                broken.append(f"{path}: {link}")
    assert broken == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible(crawled: dict[str, Seen], scheme: str) -> None:
    """Catches what keeps a reader out: no name on a control, too little contrast, a page without structure."""
    found = {path: seen.violations[scheme] for path, seen in crawled.items() if seen.violations[scheme]}
    assert found == {}


def test_both_themes_show_the_same(crawled: dict[str, Seen]) -> None:
    """Catches an element that only one theme shows: in the dark, axe judges nothing but colours."""
    assert [path for path, seen in crawled.items() if seen.hidden["light"] != seen.hidden["dark"]] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_highlighted_code_can_be_read(watch: Watch, address: str, crawled: dict[str, Seen], scheme: str) -> None:
    """Catches a colour of highlighted code with too little contrast: of each kind of text that any page holds."""
    kinds = set().union(*(seen.highlighting for seen in crawled.values()))
    assert {"k", "n", "nf", "s2", "c1", "mi", "o", "p"} <= highlighting.classes_of(kinds)
    page = watch.new_page()
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{address}book/index.html")
    page.wait_for_function(THEMED, arg=scheme)
    highlighting.show(page, kinds)
    assert highlighting.contrast(page) == ([], len(kinds))


@pytest.mark.parametrize("screen", WIDTHS)
def test_pages_fit(crawled: dict[str, Seen], screen: str) -> None:
    """Catches a page that must be scrolled sideways."""
    assert {path: seen.too_wide[screen] for path, seen in crawled.items() if seen.too_wide[screen]} == {}


def test_code_fits(crawled: dict[str, Seen]) -> None:
    """Catches blocks that scroll sideways, and on a laptop cells whose lines wrap; on a phone, columns may scroll."""
    assert {path: seen.cramped["laptop"] for path, seen in crawled.items() if seen.cramped["laptop"]} == {}
    on_phone = {
        path: [one for one in seen.cramped["phone"] if one.startswith("scrolls:")] for path, seen in crawled.items()
    }
    assert {path: found for path, found in on_phone.items() if found} == {}


def mounted(page: Page, url: str) -> list[tuple[Locator, dict]]:
    """Open a page and return its players, each with the recording that it plays."""
    page.goto(url)
    mounts = page.locator(".pa-mount")
    expect(page.locator(".pa-mount > .pa-player")).to_have_count(mounts.count())
    return [(mount.locator(".pa-player"), players.recording_of(mount)) for mount in mounts.all()]


def follows(player: Locator, recording: dict) -> Callable[..., None]:
    """Return a check that waits until a player shows a step of its recording."""

    def check(step: int, text: bool = False) -> None:
        state = players.expected(players.at_step(recording, step), text)
        failure = f"{recording['label']}: at step {step} the recording has {state}, the page shows "
        until(lambda: players.shown(player) == state, lambda: failure + str(players.shown(player)))

    return check


# Players of a kind differ in what they show, and not in how they answer: these chapters have one of each, worked by
# every button and key. Elsewhere a button and a key lead to the ends.
EVERY_WAY = ("03", "07")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_players_play(watch: Watch, address: str, chapter: Path) -> None:
    """Catches a player that does not follow its buttons, scrubber, keys or lesson's controls, or shows other frames."""
    for player, recording in mounted(watch.new_page(), f"{address}chapters/{chapter.stem}.html"):
        check, last = follows(player, recording), len(recording["frames"]) - 1
        check(recording["step"])
        if last:
            assert recording["frames"][0]["sentence"] != recording["frames"][last]["sentence"]
            (players.step_through if chapter.stem[:2] in EVERY_WAY else players.step_to_the_ends)(player, check)
        players.read_as_text(player, check)
        players.answer(player)
        if "grid" in recording:
            players.move_controls(player, recording, follows)
    assert watch.problems == []


def test_some_chapters_have_players(site: Path) -> None:
    """Catches a book whose players went missing, which would leave the test above nothing to do."""
    counts = {path.stem[:2]: path.read_text().count('class="pa-mount"') for path in (site / "chapters").glob("*.html")}
    assert all(counts[number] for number in ("03", "04", "07")), counts


def test_search_finds(watch: Watch, address: str) -> None:
    """Catches a search field that leads nowhere, and an index that lacks the chapters' text."""
    page = watch.new_page()
    page.goto(f"{address}book/index.html")
    page.locator("button.search-button-field, button.search-button").locator("visible=true").first.click()
    field = page.locator("input[type=search]").locator("visible=true").first
    field.fill("reference count")
    field.press("Enter")
    page.wait_for_url("**/search.html?q=reference+count*")
    results = page.locator("#search-results a[href*='chapters/03_blocks.html']")
    results.first.wait_for()
    results.first.click()
    page.wait_for_url("**/chapters/03_blocks.html*")
    assert watch.problems == []


def test_players_play_from_a_file(watch: Watch, site: Path) -> None:
    """Catches a page that needs a server: its script blocked, or what its controls need, when opened from a disk."""
    found = mounted(watch.new_page(), (site / "chapters" / "03_blocks.html").as_uri())
    player, recording = next(pair for pair in found if "grid" in pair[1])
    check = follows(player, recording)
    check(recording["step"])
    for name, step in (("first", 0), ("last", len(recording["frames"]) - 1)):
        player.locator(f".pa-{name}").click()
        check(step)
    players.move_controls(player, recording, follows)
    assert watch.problems == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<script src="https://cdn.jsdelivr.net/npm/mathjax@4/tex-mml-chtml.js"></script>', "cdn.jsdelivr.net"),
        ('<img src="//example.org/a.png" alt="a">', "example.org"),
        ('<script>new WebSocket("wss://example.org/")</script>', "wss://example.org"),
        ("<script>fetch('https://example.org/').catch(() => 0)</script>", "https://example.org/"),
        ("<script>console.error('oh')</script>", "console: oh"),
        ("<script>throw new Error('oh')</script>", "uncaught: oh"),
        ('<img src="gone.png" alt="a">', "404"),
    ],
)
def test_problems_are_noticed(
    watch: Watch, tmp_path: Path, serve: Callable[[Path], str], body: str, problem: str
) -> None:
    """Catches a watch that reports nothing whatever a page does."""
    (tmp_path / "page.html").write_text(f"<!doctype html><html lang=en><title>a</title>{body}</html>")
    watch.new_page().goto(urljoin(serve(tmp_path), "page.html"), wait_until="networkidle")
    assert any(problem in found for found in watch.problems), watch.problems


def test_violations_are_noticed(watch: Watch) -> None:
    """Catches an axe that was not asked, or whose verdict is thrown away; and a page that is found too wide by none."""
    page = watch.new_page()
    page.set_content("<html lang=en><title>a</title><main><h1>a</h1><button></button><img src=''></main></html>")
    for find in (violations, structure_violations):
        assert {line.split(":")[0] for line in find(page)} == {"button-name", "image-alt"}
    assert page.evaluate(TOO_WIDE) == []
    page.set_content("<html lang=en><title>a</title><main><p style='width: 3000px'>a</p></main></html>")
    assert page.evaluate(TOO_WIDE)[-1] == "P "
    line = f"<div class=highlight><pre>{'x ' * 300}</pre></div>"
    wrapped = f"<style>.cell_input pre {{ white-space: pre-wrap }}</style><div class=cell_input>{line}</div>"
    page.set_content(f"{line}<div class=in-columns>{line}</div><details>{wrapped}</details>")
    assert [found.split(":")[0] for found in page.evaluate(CRAMPED)] == ["scrolls", "scrolls, in columns", "wraps"]
    assert page.locator("details[open]").count() == 0


def test_each_kind_of_text_is_judged(watch: Watch) -> None:
    """Catches a text whose colours nobody judges, since another on the page is like it but for what lies behind."""
    page = watch.new_page()
    paper = "<html lang=en><title>a</title><style>.on {{background: {}}}</style><main><h1>a</h1>{}</main></html>"
    texts = "<p>aa</p><p>bb</p><div class=on><p>cc</p></div><p>dd <a href=#>ee</a></p><p style='opacity: 0.2'>ff</p>"
    page.set_content(paper.format("#333", texts))
    known: set[str] = set()
    asked: Counter[str] = Counter()
    found = [line.split(":", 1)[0] for line in colour_violations(page, known, asked)]
    assert found == ["color-contrast"] * 2
    assert len(known) == 4  # the heading is one character
    assert colour_violations(page, known, asked) == []  # once is enough
    page.set_content(paper.format("#666", texts))
    (only_new,) = colour_violations(page, known, asked)
    assert "background color: #666666" in only_new
    page.set_content("<html lang=en><title>a</title><main><p>aa</p><div style='position: absolute; inset: 0'>")
    before = set(known)
    page.add_style_tag(content="p { color: #ddd } div { background: linear-gradient(red, blue) }")
    for _ in range(PAGES - 1):  # axe cannot tell: the next page is asked again
        assert (colour_violations(page, known, asked), known) == ([], before)
    assert colour_violations(page, known, asked) == [] and len(known - before) == 1  # and at some time no more
