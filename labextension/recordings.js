// JupyterLab shows a stored widget as "model not found", and in a notebook that it does not trust yet, a figure as words.
// Here the recording that lies beside the widget is played until a kernel has the widget, with its lesson's controls, and a
// figure is always shown.
//
// A notebook that is not trusted must not run scripts. Its pictures are therefore <img> elements, in which no script of an
// SVG runs, and its frames are copied field by field, those too that answer a control: what a board writes as a number
// is one.

const PLAYER = "application/vnd.pagedattn-lab.player+json";
const WIDGET = "application/vnd.jupyter.widget-view+json";
const SVG = "image/svg+xml";
const MARKDOWN = "text/markdown";
const WIDGET_RANK = -10; // as jupyterlab_widgets registers it; the lowest rank wins
const SVG_RANK = 80;
const MARKDOWN_RANK = 60;
const PATIENCE = 300; // ms: a widget that a kernel has is there by then
const MOST_PATIENCE = 2000;

/** The player's scripts, as anywidget loads them, and those that answer a lesson's controls without a kernel: one module. */
const SCRIPTS = ["looks.js", "tiles.js", "tables.js", "board.js", "motion.js", "text.js", "scrolling.js", "player.js"];
const WITHOUT_KERNEL = ["model.js", "recorder.js", "calculator.js", "lesson.js"];

const here = (name) => new URL(name, import.meta.url);
const addSheet = (name) =>
  document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: here(name) }));

async function loadPlayer() {
  addSheet("player.css");
  const texts = [...SCRIPTS, ...WITHOUT_KERNEL].map(async (name) => (await fetch(here(name))).text());
  const source = new Blob([...(await Promise.all(texts)), "export { playStored };"], { type: "text/javascript" });
  return import(URL.createObjectURL(source));
}
let player;
const playerOnce = () =>
  (player ??= loadPlayer().catch((error) => {
    player = undefined; // the next recording tries again
    throw error;
  }));

/** How pictures look in the dark: a sheet for the page, and a style for the SVG of an <img>, in which the page's own does not
 * hold. An image takes for dark or light what JupyterLab makes the body's color-scheme with each theme. */
let styleInDark = "";
async function loadDark() {
  addSheet("pictures.css");
  const response = await fetch(here("pictures.css")), sheet = await response.text();
  if (!response.ok) return;
  const rules = sheet.slice(sheet.indexOf("{") + 1, sheet.lastIndexOf("}"));
  styleInDark = `<style><![CDATA[@media (prefers-color-scheme: dark) { :root { ${rules} } }]]></style>`;
}
let dark;
const darkOnce = () => (dark ??= loadDark());
const OURS = /^<svg role="img" aria-label=[^>]*>/; // as Picture writes it
const withDark = (svg) => svg.replace(OURS, (tag) => `${tag}${styleInDark}`);

const CONTROLS = "This is the stored recording. Its controls appear when the cells have run.";

const aside = (words) => Object.assign(document.createElement("p"), { className: "pa-recorded", textContent: words });
const escaped = (text) => String(text).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
const numbers = (list) => list.map(Number);

/** An SVG as an image of its size, in which none of its scripts runs. */
function asImage(svg, words) {
  const size = ["width", "height"].map((name) => `${name}="${pixels(svg.match(`^<[^>]*? ${name}="([\\d.]+)(pt)?`))}"`);
  const source = `data:${SVG};charset=utf-8,${encodeURIComponent(withDark(svg))}`;
  return `<img ${size.join(" ")} style="max-width: 100%; height: auto" src="${source}" alt="${escaped(words)}">`;
}
const pixels = (found) => (found ? Math.round(Number(found[1]) * (found[2] ? 4 / 3 : 1)) : "auto");

function harmlessFrame(frame) {
  const sentence = String(frame.sentence);
  if (frame.svg !== undefined) return { sentence, svg: asImage(String(frame.svg), frame.alt ?? sentence) };
  return {
    sentence, kind: String(frame.kind), changed: numbers(frame.changed), free: numbers(frame.free), ref_cnt: numbers(frame.ref_cnt),
    hashes: Object.fromEntries(Object.entries(frame.hashes).map(([id, text]) => [Number(id), String(text)])),
    contents: Object.fromEntries(Object.entries(frame.contents ?? {}).map(([id, held]) => [Number(id), {
      name: String(held.name), mark: String(held.mark), colour: Number(held.colour), logical: Number(held.logical),
      num_tokens: Number(held.num_tokens),
    }])),
    tables: frame.tables.map(({ name, mark, colour, num_tokens, block_ids }) => ({
      name: String(name), mark: String(mark), colour: Number(colour), num_tokens: Number(num_tokens),
      block_ids: numbers(block_ids),
    })),
  };
}

/** A copy of a recording that holds nothing but what a player shows. */
function harmlessRecording({ block_size, words, frames }) {
  const texts = (list) => list.map(String);
  return {
    block_size: Number(block_size), frames: frames.map(harmlessFrame),
    words: words && Object.fromEntries(Object.entries(words).map(([name, list]) => [name, texts(list)])),
  };
}

/** The same of a stored output. A lesson's controls are made of texts, and what they lead to is made harmless by then. */
export function harmless({ label, step, grid, recordings, ...recording }) {
  return { label: String(label), step: Number(step), grid, recordings, ...harmlessRecording(recording) };
}

const once = (signal) =>
  new Promise((done) => signal.connect(function heard() {
    signal.disconnect(heard);
    done();
  }));

/** Whether asking for a widget can succeed. Asking in vain costs an error on the console, so look first, if we can. */
async function mayHave(output, id) {
  const manager = await output._manager?.promise;
  if (!manager?.has_model) return true;
  if (!manager.restoredStatus) await once(manager.restored); // until a kernel has said which widgets it has
  for (const end = Date.now() + MOST_PATIENCE; !manager.has_model(id); await new Promise((on) => setTimeout(on, 100)))
    if (output.isDisposed || Date.now() > end) return false;
  return !output.isDisposed;
}

/** A renderer of widgets that plays the recording wherever it would say that there is no widget. */
function playerRenderer(host, options) {
  const output = host.createRenderer({ ...options, mimeType: host.mimeTypes[0] });
  const follow = host.mimeTypes.includes(WIDGET) ? output.renderModel.bind(output) : null;
  const isLive = () => output.widgets?.length > 0;
  let stop = () => {};

  async function play(model) {
    stop();
    stop = () => {};
    try {
      await show(model);
    } catch (error) { // a recording in which something is missing, or no script to play it
      console.warn("A recording cannot be played, its words stand in its place:", error);
      if (output.isDisposed || isLive()) return;
      const words = document.createElement("pre");
      words.textContent = [model.data["text/plain"] ?? ""].flat().join("");
      output.node.replaceChildren(words);
    }
  }

  async function show({ data, metadata, trusted }) {
    await darkOnce();
    const stored = { ...data[PLAYER], ...metadata[PLAYER] };
    const recording = trusted ? stored : harmless(stored);
    const { playStored } = await playerOnce();
    if (output.isDisposed || isLive()) return;
    const mount = document.createElement("div");
    output.node.replaceChildren(mount);
    output.removeClass("jupyter-widgets");
    output.show();
    stop = playStored(recording, mount, trusted ? undefined : harmlessRecording);
    if (!recording.grid && `${data["text/plain"]}`.startsWith("Lesson(")) mount.append(aside(CONTROLS));
  }

  output.renderModel = async (model) => {
    const id = model.trusted && model.data[WIDGET]?.model_id;
    if (!follow || !id) return play(model);
    const late = setTimeout(() => void play(model), PATIENCE);
    const asked = await mayHave(output, id);
    if (asked) await follow(model);
    clearTimeout(late);
    if (isLive()) stop();
    else if (asked) await play(model); // else it plays by now, and who steps through it is not thrown back
  };
  const dispose = output.dispose.bind(output);
  output.dispose = () => {
    stop();
    dispose();
  };
  return output;
}

/** JupyterLab's renderer of SVG, an <img>, for notebooks that it does not trust too, and with its words. */
function pictureRenderer(factory, options) {
  const output = factory.createRenderer(options), render = output.renderModel.bind(output);
  output.renderModel = async (model) => {
    await darkOnce();
    const data = { ...model.data, [SVG]: withDark(String(model.data[SVG])) };
    await render(Object.create(model, { trusted: { value: true }, data: { value: data } }));
    output.node.querySelector("img")?.setAttribute("alt", model.data["text/plain"] ?? "");
  };
  return output;
}

/** JupyterLab's renderer of Markdown, in which an answer's picture is an <img> that holds its data. */
function markdownRenderer(factory, options) {
  const output = factory.createRenderer(options), render = output.renderModel.bind(output);
  output.renderModel = async (model) => {
    await Promise.all([render(model), darkOnce()]);
    for (const image of output.node.querySelectorAll(`img[src^="data:${SVG},"]`)) {
      const [head, ...data] = image.getAttribute("src").split(",");
      image.src = `${head},${encodeURIComponent(withDark(decodeURIComponent(data.join(","))))}`;
    }
  };
  return output;
}

/** Teach one notebook's renderers to show recordings, and figures in any notebook and in the colours of its theme. */
export function showRecordings(rendermime) {
  rendermime.addFactory({
    safe: true, mimeTypes: [PLAYER],
    createRenderer: (options) =>
      playerRenderer(rendermime.getFactory(WIDGET) ?? rendermime.getFactory("text/plain"), options),
  }, WIDGET_RANK - 10);
  const svg = rendermime.getFactory(SVG), markdown = rendermime.getFactory(MARKDOWN);
  if (svg)
    rendermime.addFactory({
      ...svg, safe: true, mimeTypes: [SVG], createRenderer: (options) => pictureRenderer(svg, options),
    }, SVG_RANK);
  if (markdown)
    rendermime.addFactory({
      ...markdown, createRenderer: (options) => markdownRenderer(markdown, options),
    }, MARKDOWN_RANK);
}
