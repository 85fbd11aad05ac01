"""Scripts of the book, of JupyterLab's extension and of these tests on a bare page, for what no chapter shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from accessibility import colour_violations
from playwright.sync_api import Browser, Page, expect
from watch import Watch

from tests.helpers.chapters import REPO

SIGNAL = """() => {
  window.Signal = class {
    heard = new Set();
    connect(listener) { this.heard.add(listener); }
    disconnect(listener) { this.heard.delete(listener); }
    emit(...values) { for (const listener of this.heard) listener(...values); }
  };
}"""
FOLLOW = """async () => {
  const { followRuns } = await import("./labextension/runs.js");
  const source = { type: "code", sharedModel: { source: "1" } };
  const notebook = { node: document.body, activeCellIndex: 0, widgets: [{ model: source }, { model: source }] };
  const sessionContext = { session: { kernel: { clientId: "ours" } }, iopubMessage: new Signal() };
  notebook.activeCellChanged = new Signal();
  const panel = { node: document.body, content: notebook, context: { path: "x.ipynb" }, sessionContext };
  const app = { shell: { currentWidget: panel }, commands: { commandExecuted: new Signal() } };
  const strip = followRuns(app, panel);
  app.commands.commandExecuted.emit(null, { id: "notebook:run-all-cells", result: new Promise(() => {}) });
  const said = ["before idle", "1 busy", "1 idle", "2 busy", "2 idle", "3 busy", "3 idle"].map((message) => {
    const [msg_id, execution_state] = message.split(" ");
    sessionContext.iopubMessage.emit(null, {
      header: { msg_type: "status" }, content: { execution_state },
      parent_header: { msg_type: "execute_request", session: "ours", msg_id },
    });
    return document.querySelector(".pa-run-text").textContent.split(" cells")[0];
  });
  strip.dispose();
  const signals = [notebook.activeCellChanged, app.commands.commandExecuted, sessionContext.iopubMessage];
  return [said, signals.map((signal) => signal.heard.size)];
}"""
RECORDINGS = """async () => {
  const { showRecordings } = await import("./labextension/recordings.js");
  let factory;
  const createRenderer = () => ({
    node: document.createElement("div"), renderModel: async () => {}, removeClass() {}, show() {}, dispose() {},
  });
  const text = { mimeTypes: ["text/plain"], createRenderer };
  const getFactory = (type) => (type === "text/plain" ? text : undefined);
  showRecordings({ getFactory, addFactory: (added) => (factory = added) });
  const model = (recording, trusted) => ({
    trusted, metadata: {},
    data: { "application/vnd.pagedattn-lab.player+json": recording, "text/plain": ["Player", "(3)"] },
  });
  const shown = [];
  for (const [recording, trusted] of [[{ frames: 3 }, false], [{ frames: [null] }, false], [{}, true], [{}, true]]) {
    const output = factory.createRenderer({});
    await output.renderModel(model(recording, trusted));
    shown.push(output.node.textContent);
  }
  return shown;
}"""

DARK = "<div style='background:#111; height:4em'></div>"
PALE = "color:#bbb; background:#fff"
LINK = "<a href='#' style='color:#00e; text-decoration:none'>a link</a>"
ALIKE = {  # what passes, and what looks like it to who looks at less
    "a field": ("<p>Words</p>", f"<input aria-label='x' value='Words' style='{PALE}'>"),
    "a choice": ("<p>Words</p>", f"<select aria-label='x' style='{PALE}'><option>Words</option></select>"),
    "an area": ("<p>Words</p>", f"<textarea aria-label='x' style='{PALE}'>Words</textarea>"),
    "moved": ("<p>Words</p>", f"{DARK}<p style='transform:translateY(-3.5em)'>Words</p>"),
    "drawn in": ("<p>Words</p>", f"{DARK}<p style='margin-top:-3em'>Words</p>"),
    "lifted": (
        "<div style='position:relative'><p style='position:relative'>Words</p></div>",
        "<div style='position:relative'><p style='position:relative; z-index:1'>Words</p>"
        "<div style='position:absolute; inset:0; background:#111'></div></div>",
    ),
    "filled": ("<p>Words</p>", "<p style='-webkit-text-fill-color:#ddd'>Words</p>"),
    "outlined": ("<p>Words</p>", "<p style='-webkit-text-stroke:2px #eee'>Words</p>"),
    "enabled": (f"<button disabled style='{PALE}'>Words</button>", f"<button style='{PALE}'>Words</button>"),
    "in a sentence": (f"<p>{LINK}</p><p>Words</p>", f"<p>In this sentence stands {LINK} like its words.</p>"),
}


@pytest.fixture(scope="module")
def address(serve: Callable) -> str:
    return serve(REPO)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Open a page without scripts of its own."""
    with Watch(browser) as watch:
        page = watch.new_page()
        page.goto(f"{address}constraints.txt")
        page.evaluate(SIGNAL)
        yield page


def test_a_run_counts_its_own_cells(page: Page) -> None:
    """Catches a strip that counts a cell which ran when the run began, or more cells than there are, and one that
    listens on when its notebook is closed.
    """
    said, listeners = page.evaluate(FOLLOW)
    assert said == ["0 of 2", "0 of 2", "1 of 2", "1 of 2", "2 of 2", "2 of 2", "2 of 2"]
    assert listeners == [0, 0, 0]


def test_what_cannot_be_played_is_said_in_words(page: Page) -> None:
    """Catches an output that stays empty because a recording is malformed, or because no player could be loaded, and a
    script that is not asked for again.
    """
    asked = []
    page.route("**/player.js", lambda route: (asked.append(route.request.url), route.abort()))
    assert page.evaluate(RECORDINGS) == ["Player(3)"] * 4
    assert len(asked) == 2


@pytest.mark.parametrize("storage", ["refused", "strange"])
def test_reading_without_a_memory(browser: Browser, address: str, storage: str) -> None:
    """Catches a switch or a map that is missing where the browser keeps nothing, or keeps what another has written."""
    with Watch(browser) as watch:
        page = watch.new_page()
        if storage == "refused":
            page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })")
        page.goto(f"{address}constraints.txt")
        if storage == "strange":
            page.evaluate("localStorage.setItem('pagedattn.chapters', '{')")
        page.set_content("<div class='bd-article'><h1>Blocks</h1><div class='cell_input'></div></div>")
        for script in ("memory.js", "reading.js"):
            page.add_script_tag(path=REPO / "book" / "_static" / script)
        page.evaluate("document.dispatchEvent(new Event('DOMContentLoaded'))")
        page.get_by_role("button", name="Only the story", pressed=False).click()
        expect(page.get_by_role("button", pressed=True)).to_have_count(1)
        assert watch.problems == []


def test_texts_that_look_alike_are_judged(page: Page) -> None:
    """Catches a text that nobody judges because three others were taken for its like."""
    missed = {}
    for name, (right, wrong) in ALIKE.items():
        found = []
        for html in (3 * right, 3 * right + wrong):
            page.set_content(f"<main style='background:#fff; color:#000; font:16px sans-serif'>{html}</main>")
            found.append(bool(colour_violations(page, set(), Counter())))
        if found != [False, True]:
            missed[name] = found
    assert missed == {}
