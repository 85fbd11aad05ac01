// "Run all" takes the reader to the end of a notebook and says nothing. Here the reader stays, and a strip says how far
// the run is, and for a chapter how long it takes: execution.json holds the seconds that each one took.

const DIRECT = new Set(["notebook:run-all-cells", "runmenu:run-all"]);
const RESTARTING = new Set(["notebook:restart-run-all", "runmenu:restart-and-run-all"]);
const SHOWN_AT_END = 10_000; // ms

const MARKUP = `
  <progress aria-label="Cells that have run"></progress>
  <span class="pa-run-text"></span>
  <span class="pa-run-end" role="status"></span>
  <button type="button" class="pa-run-go" hidden>Go to the cell</button>
  <button type="button" class="pa-run-close" aria-label="Close" title="Close">×</button>`;

let measured;
async function secondsOf(path) {
  measured ??= fetch(new URL("execution.json", import.meta.url)).then((answer) => answer.json());
  const name = path.split("/").at(-1).replace(/\.ipynb$/, "");
  return (await measured)[name]?.seconds;
}

const inWords = (seconds) =>
  seconds < 100 ? `${Math.round(seconds)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;

/** The strip along a notebook's lower edge. */
class Strip {
  constructor(panel) {
    this.panel = panel;
    this.node = Object.assign(document.createElement("div"), { className: "pa-run", hidden: true, innerHTML: MARKUP });
    this.part("close").addEventListener("click", () => (this.node.hidden = true));
    this.part("go").addEventListener("click", () => void this.goToFailure());
    panel.node.append(this.node);
  }

  part(name) {
    return this.node.querySelector(`.pa-run-${name}`);
  }

  /** Begin to count cells. How many seconds they take may be told later, as usual. */
  begin(cells) {
    clearTimeout(this.hiding);
    clearInterval(this.ticking);
    Object.assign(this, { cells, usual: undefined, begun: new Set(), done: 0, failed: null, start: Date.now(), counts: true });
    this.part("go").hidden = true;
    this.part("end").textContent = "";
    this.node.dataset.state = "running";
    this.node.hidden = false;
    this.ticking = setInterval(() => this.tell(), 1000);
    this.tell();
  }

  tell() {
    const { done, cells: { length }, usual } = this, spent = (Date.now() - this.start) / 1000;
    Object.assign(this.node.querySelector("progress"), { max: length, value: done });
    const time = !usual ? inWords(spent)
      : spent <= usual ? `${inWords(spent)} of about ${inWords(usual)}`
        : `${inWords(spent)}; it took ${inWords(usual)} where it was measured`;
    this.part("text").textContent = `${done} of ${length} cells have run · ${time}`;
  }

  /** One message of the kernel about a request. A cell that ran before this run began ends in it, and does not count. */
  hear(type, content, request) {
    const state = type === "status" ? content.execution_state : type;
    if (this.failed !== null) return;
    if (state === "busy") this.begun.add(request);
    else if (state === "error" && this.begun.has(request)) {
      this.failed = { cell: this.cells[this.done], name: content.ename };
    } else if (state === "idle" && this.begun.delete(request)) this.done = Math.min(this.done + 1, this.cells.length);
    this.tell();
  }

  end(finished) {
    if (!this.counts) return; // the reader chose not to restart
    this.counts = false;
    clearInterval(this.ticking);
    this.tell();
    const { done, cells: { length }, failed } = this, time = inWords((Date.now() - this.start) / 1000);
    const all = finished && failed === null;
    this.part("text").textContent = "";
    this.part("end").textContent = all
      ? `All ${length} cells have run, in ${time}.`
      : `The run stopped at cell ${Math.min(done + 1, length)} of ${length}${failed ? `: ${failed.name}` : ""}.`;
    this.part("go").hidden = failed === null;
    this.node.dataset.state = all ? "done" : "stopped";
    if (all) this.hiding = setTimeout(() => (this.node.hidden = true), SHOWN_AT_END);
  }

  async goToFailure() {
    const { content: notebook } = this.panel, index = notebook.widgets.indexOf(this.failed.cell);
    if (index < 0) return;
    notebook.activeCellIndex = index;
    await notebook.scrollToItem(index, "center");
  }

  dispose() {
    clearTimeout(this.hiding);
    clearInterval(this.ticking);
    this.node.remove();
  }
}

/** Follow every run of all cells of one notebook; returns what JupyterLab disposes of with it. */
export function followRuns(app, panel) {
  const { content: notebook, context, sessionContext } = panel, strip = new Strip(panel);
  const scroller = () => notebook.outerNode ?? notebook.node;
  const place = () => ({ index: notebook.activeCellIndex, top: scroller().scrollTop });
  let here = place(), before = here, running = false, awaited = null;

  /** Undo the way to the last cell that a run has just taken. */
  function stay({ index, top }) {
    notebook.activeCellIndex = index;
    requestAnimationFrame(() => (scroller().scrollTop = top));
  }

  function moved() {
    before = { index: here.index, top: scroller().scrollTop };
    here = place();
    if (awaited !== null && here.index === notebook.widgets.length - 1) {
      const back = awaited;
      awaited = null;
      setTimeout(() => stay(back));
    }
  }

  function begin() {
    strip.begin(notebook.widgets.filter(({ model }) => model.type === "code" && model.sharedModel.source.trim()));
    const tell = (usual) => (strip.usual = usual);
    void secondsOf(context.path).then(tell, () => tell(undefined)); // without the file, the strip names no seconds
  }

  async function follow(result) {
    running = true;
    const finished = await result.catch(() => false);
    running = false;
    if (!panel.isDisposed) strip.end(finished !== false);
  }

  function executed(_, { id, result }) {
    if (app.shell.currentWidget !== panel || running) return;
    if (RESTARTING.has(id)) {
      awaited = place();
      void result.finally(() => (awaited = null));
      void follow(result);
    } else if (DIRECT.has(id)) {
      if (here.index === notebook.widgets.length - 1 && before.index !== here.index) stay(before);
      begin();
      void follow(result);
    }
  }

  function heard(_, { header, parent_header: parent, content }) {
    const ours = parent.msg_type === "execute_request" && parent.session === sessionContext.session?.kernel?.clientId;
    if (!running || !ours) return;
    if (!strip.counts) begin(); // the kernel has started again, and the first cell runs
    strip.hear(header.msg_type, content, parent.msg_id);
  }

  notebook.activeCellChanged.connect(moved);
  app.commands.commandExecuted.connect(executed);
  sessionContext.iopubMessage.connect(heard);
  return {
    isDisposed: false,
    dispose() {
      this.isDisposed = true;
      notebook.activeCellChanged.disconnect(moved);
      app.commands.commandExecuted.disconnect(executed);
      sessionContext.iopubMessage.disconnect(heard);
      strip.dispose();
    },
  };
}
