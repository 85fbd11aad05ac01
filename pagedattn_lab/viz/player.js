// The player: frames of a recording, or pictures, to step through. One source for JupyterLab (an anywidget) and for the built
// book (a classic script). It follows the board's scripts in one file.

const SVG = "http://www.w3.org/2000/svg";
const LEAST_WIDTH = /^<[^>]*? style="max-width:max\(100%,(\d+)px\)/; // as Picture writes it
const PICTURE_SIZE = /^<[^>]*? width="([\d.]+)(?:pt|px)?"[^>]*? height="([\d.]+)(pt|px)?"/;
const KINDS = ["[data-block]", "[data-block-of]"]; // what can have the focus: physical blocks, entries of page tables
const ICONS = {
  first: "M4 3h2v10h-2zM13 3v10l-6-5z", previous: "M11 3v10l-6-5z", play: "M4 2v12l9-6z",
  pause: "M3 2h4v12h-4zM9 2h4v12h-4z", next: "M5 3v10l6-5z", last: "M3 3v10l6-5zM10 3h2v10h-2z",
};
const icon = (name) =>
  `<svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true"><path fill="currentColor" d="${ICONS[name]}"/></svg>`;
const button = (name, label) =>
  `<button type="button" class="pa-${name}" aria-label="${label}" title="${label}">${icon(name)}</button>`;

const MARKUP = `
  <div class="pa-error" role="alert" hidden></div>
  <div class="pa-controls">
    ${button("first", "First frame")}${button("previous", "Previous frame")}${button("play", "Play")}
    ${button("next", "Next frame")}${button("last", "Last frame")}
    <input type="range" class="pa-scrub" min="0" value="0" step="1" aria-label="Frame">
    <span class="pa-count"></span>
    <label class="pa-speed-label"><span>speed</span> <select class="pa-speed">
      <option value="0.5">0.5×</option><option value="1" selected>1×</option><option value="2">2×</option>
      <option value="4">4×</option><option value="8">8×</option></select></label>
    <button type="button" class="pa-text-toggle" aria-expanded="false">Show as text</button>
  </div>
  <p class="pa-sentence" aria-live="polite"></p>
  <div class="pa-stage" role="group" aria-label="Drawing: arrow keys move between blocks, and between table entries"></div>
  <p class="pa-detail"></p>
  <div class="pa-text" role="region" aria-label="The same state as text" tabindex="0" hidden></div>`;

/** Show a model's recording in el and follow both; returns a function that stops. */
function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "pa-player";
  root.setAttribute("role", "group");
  root.tabIndex = 0;
  root.innerHTML = MARKUP;
  el.appendChild(root);
  const part = (name) => root.querySelector(`.pa-${name}`);
  const stage = part("stage"), scrub = part("scrub"), text = part("text");
  const scrolling = showScrolling(stage);
  let timer = null, drawn = null, hovered = null, pinned = null, motion = null, reserved = null;

  const recording = () => model.get("recording");
  const last = () => recording().frames.length - 1;
  const step = () => Math.max(0, Math.min(model.get("step"), last()));
  const widthNow = () => Math.max(300, Math.min(1400, div(root.clientWidth, 10) * 10));

  function go(to) {
    const next = Math.max(0, Math.min(to, last()));
    if (next !== model.get("step")) {
      model.set("step", next);
      model.save_changes();
    }
  }

  function play(on) {
    clearInterval(timer);
    timer = null;
    if (on) {
      if (step() === last()) go(0);
      timer = setInterval(() => {
        go(step() + 1);
        if (step() === last()) play(false);
      }, 1000 / Number(part("speed").value));
    }
    const label = on ? "Pause" : "Play";
    part("play").innerHTML = icon(on ? "pause" : "play");
    part("play").setAttribute("aria-label", label);
    part("play").title = label;
    root.dataset.playing = on;
  }

  /** Draw the frame. Elements whose piece is as it was stay, those that stand elsewhere move, the others are made anew:
   * most frames change few of a thousand blocks. Who has the focus keeps it, or the player gets it. */
  function drawStage() {
    const inside = stage.contains(document.activeElement);
    const frame = recording().frames[step()];
    reserve();
    if (frame.svg !== undefined) {
      stage.innerHTML = frame.svg;
      drawn = null;
    } else {
      drawBoard();
      for (const kind of KINDS)
        if (!stage.querySelector(`${kind}[tabindex="0"]`)) stage.querySelector(kind)?.setAttribute("tabindex", "0");
      light();
    }
    scrolling.update();
    if (inside && !stage.contains(document.activeElement)) root.focus();
  }

  function drawBoard() {
    const { groups, width, height } = board(recording(), step(), widthNow());
    if (drawn === null) {
      stage.innerHTML = openTag(width, height) + "</svg>";
      motion = motionIn(stage.firstElementChild);
    }
    motion.settle();
    const svg = stage.firstElementChild, before = drawn?.pieces ?? new Map();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    const keys = new Set(); // a free queue that somebody broke names a block twice
    for (const group of groups) {
      while (keys.has(group.key)) group.key += " again";
      keys.add(group.key);
    }
    const made = groups.filter(({ key, open, body }) => before.get(key)?.body !== body || before.get(key).open !== open);
    const maker = document.createElementNS(SVG, "svg");
    maker.innerHTML = made.map(markup).join("");
    const elements = [...maker.children];
    made.forEach((group, index) => (group.element = prepared(elements[index])));
    const pieces = new Map(groups.map((group) => [group.key, group]));
    for (const [key, { element }] of before) if (!pieces.has(key)) element.remove();
    let cursor = svg.firstElementChild;
    for (const group of groups) {
      const old = before.get(group.key);
      if (group.element === undefined) {
        group.element = old.element;
        if (old.at !== group.at) group.element.setAttribute("transform", `translate(${group.at})`);
      } else if (old !== undefined) {
        const focused = document.activeElement === old.element;
        if (cursor === old.element) cursor = group.element;
        if (old.element.getAttribute("tabindex") === "0") group.element.setAttribute("tabindex", "0");
        old.element.replaceWith(group.element);
        if (focused) group.element.focus();
      }
      if (group.element === cursor) cursor = cursor.nextElementSibling;
      else svg.insertBefore(group.element, cursor);
    }
    const isNext = drawn?.recording === recording() && drawn.width === width && drawn.step !== step();
    if (isNext) {
      const { kind, changed } = recording().frames[step()];
      motion.show(before, pieces, kind === "copy-on-write" && step() === drawn.step + 1 ? changed : null);
    }
    drawn = { width, pieces, recording: recording(), step: step() };
  }

  /** Keep the height that the tallest frame needs: what stands below the player must not jump while a reader steps. */
  function reserve() {
    const width = root.clientWidth;
    if (width === 0 || (reserved?.recording === recording() && reserved.width === width)) return;
    reserved = { recording: recording(), width };
    const { frames } = recording(), probe = document.createElement("div");
    probe.className = "pa-probe";
    probe.innerHTML = [...new Set(frames.map(({ sentence }) => sentence))]
      .map((sentence) => `<p class="pa-sentence">${escape(sentence)}</p>`).join("");
    root.append(probe);
    const tallest = Math.max(...[...probe.children].map((line) => line.getBoundingClientRect().height));
    probe.remove();
    part("sentence").style.minHeight = `${Math.ceil(tallest)}px`;
    const heights = frames.map(({ svg }) => {
      const [, wide, high, unit] = svg?.match(PICTURE_SIZE) ?? [null, 1, 0];
      const pixels = unit === "pt" ? 4 / 3 : 1, least = svg?.match(LEAST_WIDTH)?.[1] ?? 0;
      return high * pixels * Math.min(1, Math.max(least, stage.clientWidth) / (wide * pixels));
    });
    stage.style.minHeight = `${Math.ceil(Math.max(...heights))}px`;
  }

  /** Blocks and table entries can be focused: one of each kind by Tab, its neighbours by the arrow keys. */
  function prepared(group) {
    if (group.matches(KINDS.join())) {
      group.setAttribute("tabindex", "-1");
      group.setAttribute("role", "img");
      group.setAttribute("aria-label", group.querySelector("title").textContent);
    }
    return group;
  }

  /** The blocks that a group stands for, as [first, last]: one, or a run of free ones. */
  function blocksAt(group) {
    if (!group) return null;
    const ids = (group.dataset.block ?? group.dataset.blockOf ?? group.dataset.free).split("–").map(Number);
    return [ids[0], ids.at(-1)];
  }

  /** Point at what the pointer or the focus is on, wherever it appears: in memory, in the tables, in the free queue. */
  function light() {
    const range = hovered ?? pinned;
    let detail = "";
    const where = range === null ? ".pa-lit" : "[data-block], [data-block-of], [data-free]";
    for (const group of stage.querySelectorAll(where)) {
      const [low, high] = blocksAt(group);
      const lit = range !== null && low <= range[1] && range[0] <= high;
      group.classList.toggle("pa-lit", lit);
      if (lit && detail === "" && low === range[0] && high === range[1]) detail = group.querySelector("title").textContent;
    }
    part("detail").textContent = detail;
  }

  /** Change a text only if it is another: a screen reader reads it out each time. */
  function say(name, words) {
    if (part(name).textContent !== words) part(name).textContent = words;
  }

  function update() {
    const frame = recording().frames[step()];
    root.setAttribute("aria-label", model.get("label"));
    root.dataset.step = step();
    root.dataset.last = last();
    scrub.max = last();
    scrub.value = step();
    scrub.setAttribute("aria-valuetext", `frame ${step() + 1} of ${last() + 1}`);
    part("count").textContent = `${step() + 1} / ${last() + 1}`;
    part("controls").hidden = last() === 0 && frame.svg !== undefined;
    root.toggleAttribute("data-still", last() === 0);
    for (const name of ["first", "previous", "play", "next", "last", "scrub", "speed"])
      part(name).disabled = last() === 0;
    part("text-toggle").hidden = frame.svg !== undefined;
    say("sentence", frame.sentence);
    say("error", model.get("error") ?? "");
    part("error").hidden = !model.get("error");
    text.hidden = frame.svg !== undefined || part("text-toggle").getAttribute("aria-expanded") === "false";
    if (!text.hidden) text.innerHTML = asText(recording(), step());
    drawStage();
    if (document.activeElement?.closest?.("[hidden]")?.closest(".pa-player") === root) root.focus();
  }

  const actions = {
    first: () => go(0), previous: () => go(step() - 1), next: () => go(step() + 1), last: () => go(last()),
    play: () => play(timer === null),
  };
  for (const [name, action] of Object.entries(actions))
    part(name).addEventListener("click", () => {
      if (name !== "play") play(false);
      action();
    });
  scrub.addEventListener("input", () => {
    play(false);
    go(Number(scrub.value));
  });
  part("speed").addEventListener("change", () => timer !== null && play(true));
  part("text-toggle").addEventListener("click", () => {
    const open = text.hidden;
    part("text-toggle").setAttribute("aria-expanded", String(open));
    part("text-toggle").textContent = open ? "Hide text" : "Show as text";
    update();
  });

  const keys = {
    ArrowRight: "next", ArrowLeft: "previous", ArrowUp: "previous", ArrowDown: "next", Home: "first", End: "last",
    " ": "play",
  };
  root.addEventListener("keydown", (event) => {
    if (!isOurs(event)) return;
    event.stopPropagation(); // JupyterLab takes single keys for commands
    const name = keys[event.key];
    if (name === undefined || event.target.matches("input, select, .pa-text, .pa-stage")) return;
    if (event.key === " " && event.target.matches("button")) return;
    event.preventDefault();
    const kind = KINDS.find((selector) => event.target.matches(selector));
    if (kind && name !== "play") {
      const all = [...stage.querySelectorAll(kind)], at = all.indexOf(event.target);
      const to = { first: 0, previous: at - 1, next: at + 1, last: all.length - 1 }[name];
      all[Math.max(0, Math.min(to, all.length - 1))].focus();
      return;
    }
    if (name !== "play") play(false);
    actions[name]();
  });
  stage.addEventListener("pointerover", (event) => {
    hovered = blocksAt(event.target.closest("[data-block], [data-block-of], [data-free]"));
    light();
  });
  stage.addEventListener("pointerleave", () => {
    hovered = null;
    light();
  });
  stage.addEventListener("focusin", (event) => {
    const kind = KINDS.find((selector) => event.target.matches(selector));
    if (kind === undefined) return;
    for (const other of stage.querySelectorAll(`${kind}[tabindex="0"]`)) other.setAttribute("tabindex", "-1");
    event.target.setAttribute("tabindex", "0");
    pinned = blocksAt(event.target);
    light();
  });
  stage.addEventListener("focusout", () => {
    pinned = null;
    light();
  });

  const watched = ["change:recording", "change:step", "change:label", "change:error"];
  for (const name of watched) model.on(name, update);
  const resized = new ResizeObserver(() => {
    helpControls(root);
    reserve();
    if (drawn && drawn.width !== widthNow()) drawStage();
  });
  resized.observe(root);
  play(false);
  update();
  return () => {
    play(false);
    resized.disconnect();
    scrolling();
    for (const name of watched) model.off(name, update);
  };
}

/** Whether a key is for what has the focus, and not for the page around it: Ctrl+K, Shift+Enter and Tab are not. */
function isOurs(event) {
  const combined = event.altKey || event.ctrlKey || event.metaKey || (event.shiftKey && event.key === "Enter");
  return !combined && !["Tab", "Shift", "Control", "Alt", "Meta"].includes(event.key);
}

/** A listener of its own name: however often a lesson gets it, it hears each key once. */
function keepOurs(event) {
  if (isOurs(event)) event.stopPropagation();
}

/** What a lesson's controls lack. ipywidgets gives sliders no accessible name: take the description beside each.
 * JupyterLab takes arrow keys for commands before a list hears them: keep the keys of a lesson inside. */
function helpControls(root) {
  const lesson = root.closest(".pa-lesson");
  if (lesson === null) return;
  lesson.addEventListener("keydown", keepOurs);
  for (const handle of lesson.querySelectorAll(".noUi-handle")) {
    const label = handle.closest(".widget-inline-hbox, .widget-hbox, .jupyter-widgets")?.querySelector(".widget-label");
    if (label) handle.setAttribute("aria-label", label.textContent);
  }
}

/** What a kernel does for a player: keep its values, and tell it when one changes, or once when several do. The recording's
 * own data stay as they are. */
function modelOf(data) {
  const values = { ...data, recording: data }, listeners = new Map();
  function change(changed) {
    Object.assign(values, changed);
    const told = Object.keys(changed).flatMap((name) => [...(listeners.get(`change:${name}`) ?? [])]);
    for (const listener of new Set(told)) listener();
  }
  return {
    get: (name) => values[name],
    set: (name, value) => change({ [name]: value }),
    change,
    save_changes() {},
    on: (name, listener) => listeners.set(name, (listeners.get(name) ?? new Set()).add(listener)),
    off: (name, listener) => listeners.get(name)?.delete(listener),
  };
}

export default { render };
export { boardText, modelOf };
