"""What helps a reader through the built book: only the story, the map, the glossary's cards, a search that finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from accessibility import violations
from playwright.sync_api import Browser, Page, expect
from watch import Watch

from tests.helpers.chapters import CHAPTERS

BOXES = """() => [...document.querySelectorAll('.map a')].map(link => [link.getAttribute('href'), link.textContent])"""


@pytest.fixture
def watch(browser: Browser) -> Iterator[Watch]:
    """Open a window of a test's own, which remembers nothing."""
    with Watch(browser, viewport={"width": 1440, "height": 900}) as watch:
        yield watch
        assert watch.problems == []


def test_only_the_story(watch: Watch, chromium: str, site: Path) -> None:
    """Catches a switch without keys or state, code that it leaves, output that it takes, and one soon forgotten."""
    page = watch.new_page()
    page.goto((site / "chapters" / "03_blocks.html").as_uri())
    switch = page.get_by_role("button", name="Only the story", pressed=False)
    code = page.locator(".cell_input").filter(visible=True)
    folded = page.locator("details.above-input > summary").filter(visible=True)  # of code; an answer's is of the story
    outputs, answers = (page.locator(kept).filter(visible=True) for kept in (".cell_output", ".cell_output summary"))
    before = outputs.count(), answers.count()
    assert code.count() > 20 and folded.count() > 2 and before[0] > 20 and before[1] > 2
    switch.focus()
    page.keyboard.press("Enter")
    expect(code).to_have_count(0)
    expect(folded).to_have_count(0)
    assert (outputs.count(), answers.count()) == before
    page.goto((site / "chapters" / "00_start_here.html").as_uri())
    expect(code).to_have_count(0)
    page.get_by_role("button", name="Only the story", pressed=True).click()
    assert code.count() > 5


def test_folded_code_unfolds(watch: Watch, chromium: str, site: Path) -> None:
    """Catches code that set up and drew in the open, and a fold that no key opens or that has a name of its own."""
    page = watch.new_page()
    page.goto((site / "chapters" / "03_blocks.html").as_uri())
    imports = page.get_by_text("from collections import Counter, deque")
    expect(imports).to_be_hidden()
    page.locator("summary", has_text="Show the code that imports").focus()
    page.keyboard.press("Enter")
    expect(imports).to_be_visible()
    expect(page.locator(".bd-article summary[aria-label]")).to_have_count(0)


def test_the_map_leads_and_remembers(watch: Watch, chromium: str, site: Path) -> None:
    """Catches boxes that lead nowhere, chapters without their minutes, and progress that is lost or made up."""
    page, folder = watch.new_page(), site / "book"
    page.goto((folder / "map.html").as_uri())
    boxes = dict(page.evaluate(BOXES))
    assert {(folder / address).resolve() for address in boxes} == {
        site / "chapters" / f"{path.stem}.html"
        for path in CHAPTERS
        if path.stem[0].isdigit()  # appendices: a table
    }
    assert all(text.strip().endswith(" minutes") for text in boxes.values()), boxes
    page.locator(".map a", has_text="05").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/05_fork_and_copy_on_write.html")
    page.goto((folder / "map.html").as_uri())
    expect(page.locator(".map a", has_text="· begun")).to_have_count(1)
    expect(page.locator(".map a", has_text="05")).to_contain_text("minutes · begun")
    page.goto((site / "chapters" / "05_fork_and_copy_on_write.html").as_uri())
    page.locator(".prev-next-footer").scroll_into_view_if_needed()
    page.wait_for_function("() => localStorage.getItem('pagedattn.chapters').includes('read')")
    page.goto((folder / "map.html").as_uri())
    expect(page.locator(".map a", has_text="05")).to_contain_text("minutes · read ✓")


def test_a_glossary_link_shows_its_definition(watch: Watch, chromium: str, site: Path) -> None:
    """Catches a card that only a mouse opens, that no key puts away, or that vanishes under the pointer."""
    page = watch.new_page()
    page.goto((site / "book" / "index.html").as_uri())
    link, card = page.locator("a[href$='glossary.html#block']"), page.get_by_role("tooltip")
    expect(card).to_have_count(0)
    link.hover()
    expect(card).to_contain_text("The unit in which memory for the KV cache is handed out")
    card.hover()
    page.wait_for_timeout(500)  # longer than the card waits for the pointer
    expect(card).to_be_visible()
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)
    page.mouse.move(2, 2)
    link.focus()
    expect(card).to_be_visible()
    assert link.get_attribute("aria-describedby") == card.get_attribute("id")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
        assert violations(page, "#glossary-card") == []
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)
    expect(link).to_be_focused()
    page.set_viewport_size({"width": 390, "height": 844})
    page.keyboard.press("Shift+Tab")
    link.focus()
    box = card.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_letters_lead_to_their_terms(watch: Watch, chromium: str, site: Path) -> None:
    """Catches a letter that leads to no term, or to one that begins with another."""
    page = watch.new_page()
    page.goto((site / "book" / "glossary.html").as_uri())
    letters = page.get_by_role("navigation", name="Letters").get_by_role("link")
    found = {letter.inner_text(): letter.get_attribute("href") for letter in letters.all()}
    assert list(found) == sorted(found) and {"A", "B", "P"} <= set(found)
    for letter, target in found.items():
        assert page.locator(f"{target} > h2").inner_text().upper().startswith(letter)


def test_headings_show_their_rank(watch: Watch, chromium: str, site: Path) -> None:
    """Catches a section whose heading looks lighter or smaller than those below it."""
    page = watch.new_page()
    page.goto((site / "chapters" / "03_blocks.html").as_uri())
    style = "heading => [getComputedStyle(heading).fontWeight, getComputedStyle(heading).fontSize].map(parseFloat)"
    (weight, size), (lower_weight, lower_size) = (
        page.locator(f".bd-article {tag}").first.evaluate(style) for tag in ("h2", "h3")
    )
    assert weight > lower_weight and size > lower_size


def results(page: Page, address: str, query: str) -> list[tuple[str, str]]:
    """Search, and return where the results lead, and their texts with the excerpts, best first."""
    page.goto(f"{address}search.html?q={quote_plus(query)}")
    page.wait_for_function("() => document.querySelector('.search-summary')?.innerText.includes('finished')")
    found = page.locator("#search-results ul.search > li")
    expect(found.first.locator("p.context")).to_be_visible()
    return [(hit.locator("a").first.get_attribute("href"), hit.inner_text()) for hit in found.all()[:3]]


def test_search_finds_what_readers_type(watch: Watch, site: Path, serve: Callable[[Path], str]) -> None:
    """Catches other names of terms and titles with hyphens that the search does not know, and buttons in excerpts."""
    page, address = watch.new_page(), serve(site)
    (first, excerpt), (second, _), *_ = results(page, address, "LRU")
    assert first == "book/glossary.html#least-recently-used" and "The order of eviction" in excerpt
    assert second == "chapters/06_prefix_caching.html"
    for query in ("copy on write", "copy-on-write"):
        (first, _), *_ = results(page, address, query)
        assert first == "chapters/05_fork_and_copy_on_write.html"
    (_, excerpt), *_ = results(page, address, "prefix caching")
    assert excerpt.split("\n")[-1].startswith("06 · Prefix caching The question: How do strangers")
