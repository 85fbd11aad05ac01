// The book in JupyterLab: recordings and figures show before anything has run, a saved chapter says of its Python what it
// said before, and a run of all cells leaves the reader in place and says how far it is.

import { showRecordings } from "./recordings.js";
import { followRuns } from "./runs.js";

/** Which Python opened a notebook is no change of the notebook: it needs no saving, and the file keeps what it says. */
async function keepPython({ ready, model, saveState }) {
  await ready;
  const kept = new Map(["kernelspec", "language_info"].map((key) => [key, model.getMetadata(key)]));
  const isKept = (key) => kept.get(key) && kept.get(key).name === model.getMetadata(key)?.name;
  model.metadataChanged.connect((_, { key }) => {
    if (isKept(key) && !model.dirty) queueMicrotask(() => (model.dirty = false)); // JupyterLab sets it after this signal
  });
  saveState.connect((_, state) => {
    if (state !== "started") return;
    for (const [key, value] of kept) if (isKept(key)) model.setMetadata(key, value);
  });
}

const plugin = {
  id: "pagedattn-lab:book",
  autoStart: true,
  activate(app) {
    const href = new URL("extension.css", import.meta.url);
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
    app.docRegistry.addWidgetExtension("Notebook", {
      createNew(panel, context) {
        showRecordings(panel.content.rendermime);
        void keepPython(context);
        return followRuns(app, panel);
      },
    });
  },
};

export default plugin;
