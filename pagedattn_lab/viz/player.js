// The player: frames of a trace, or pictures, to step through. One source for JupyterLab (an anywidget), for the built
// book (a classic script made from this file) and, string for string, for the still picture that board.py draws.

// ---- The board: the same drawing as in board.py ----------------------------------------------------------------------

const COLOURS = [
  ["#0072B2", "#fff"], ["#E69F00", "#000"], ["#009E73", "#000"], ["#CC79A7", "#000"], ["#56B4E9", "#000"],
  ["#D55E00", "#000"], ["#F0E442", "#000"],
];
const LEGEND = [
  "thick outline: changed just now",
  "ticked edge and ×2: shared by 2 tables",
  "dashed: free",
  "#: cached contents",
];
const PAD = 8, GAP = 12, LINE = 22;
const INK = 'class="pa-ink" fill="#222"';
const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;" };

const escape = (text) => text.replace(/[&<>"']/g, (letter) => ENTITIES[letter]);
const div = (a, b) => Math.floor(a / b);
const letters = (text) => [...text]; // code points, as Python counts them
const shorten = (text, most) =>
  letters(text).length <= most ? text : letters(text).slice(0, most - 1).join("") + "…";
// A piece of the drawing: a key that it keeps from frame to frame, where it stands, and what it is.
const piece = (key, attributes, at, body) => ({ key, open: `<g ${attributes}transform="translate(`, at, body });
const markup = ({ open, at, body }) => (open === undefined ? body : `${open}${at})">${body}</g>`);
const line = (body) => ({ key: body, body });
const heading = (text, x, y) =>
  line(`<text x="${x}" y="${y}" font-size="13" font-weight="bold" ${INK}>${text}</text>`);

function blocksOf(frame, blockSize) {
  const blocks = frame.ref_cnt.map((count, id) => ({
    id, count, owners: [], filled: 0, hash: frame.hashes[id] ?? null, free: false, changed: false,
  }));
  for (const table of frame.tables)
    table.block_ids.forEach((id, logical) => {
      blocks[id].owners.push([table, logical]);
      blocks[id].filled = Math.max(blocks[id].filled, Math.min(blockSize, table.num_tokens - logical * blockSize));
    });
  for (const id of frame.free) blocks[id].free = true;
  for (const id of frame.changed) blocks[id].changed = true;
  return blocks;
}

function tileOf(numBlocks, blockSize, withWords) {
  if (numBlocks > 96 || blockSize > 32)
    return { width: numBlocks > 96 ? 32 : 64, height: 24, columns: 0, cell: 0, dense: numBlocks > 96 };
  const cell = withWords ? 52 : 18;
  const columns = Math.min(blockSize, withWords ? 4 : 8);
  const height = 16 + Math.ceil(blockSize / columns) * 18 + 6;
  return { width: Math.max(columns * cell, 44), height, columns, cell, dense: false };
}

function halo(width, height, changed) {
  const stroke = changed ? "#222" : "none";
  const kind = changed ? "pa-halo pa-changed" : "pa-halo";
  return `<rect class="${kind}" x="-4" y="-4" width="${width + 8}" height="${height + 8}" rx="4" fill="none" ` +
    `stroke="${stroke}" stroke-width="2" pointer-events="all"/>`;
}

function blockTitle(block, blockSize) {
  if (block.id === 0) return "block 0, the null block: never handed out";
  const held = block.owners.map(([table, logical]) => `${table.name}'s logical block ${logical}`).join(", ");
  const parts = [`block ${block.id}: ${held || "no table names it"}`, `reference count ${block.count}`];
  if (block.owners.length) parts.push(`${block.filled} of ${blockSize} slots filled`);
  if (block.free) parts.push("free");
  if (block.hash !== null) parts.push(`hash ${block.hash}`);
  return parts.join("; ");
}

function slotLook(block) {
  if (block.id === 0) return 'class="pa-null" fill="#d6d6d6" stroke="#777"';
  if (block.count === 0) {
    const [kind, fill] = block.hash !== null ? ["pa-cached", "#e4e4e4"] : ["pa-free", "#fff"];
    return `class="${kind}" fill="${fill}" stroke="#777" stroke-dasharray="3 3"`;
  }
  return 'class="pa-empty" fill="#fff" stroke="#555"';
}

function bar(block, blockSize, tile, fill) {
  const top = 14, height = tile.height - 16;
  let drawn = `<rect x="0" y="${top}" width="${tile.width}" height="${height}" ${slotLook(block)}/>`;
  if (block.filled) {
    const part = Math.max(1, div(tile.width * block.filled, blockSize));
    drawn += `<rect x="0" y="${top}" width="${part}" height="${height}" fill="${fill}"/>`;
  }
  return drawn;
}

function cells(block, blockSize, tile, words, fill, ink) {
  let drawn = "";
  for (let offset = 0; offset < blockSize; offset++) {
    const x = (offset % tile.columns) * tile.cell, y = 16 + div(offset, tile.columns) * 18;
    let look = slotLook(block), text = "", title = `slot ${block.id * blockSize + offset}: empty`;
    if (block.owners.length && offset < block.filled) {
      const [owner, logical] = block.owners[0];
      const position = logical * blockSize + offset;
      const word = words[owner.name]?.[position] ?? "";
      look = `fill="${fill}" stroke="#555"`;
      text = word ? shorten(word, 6) : letters(owner.name)[0] ?? "";
      title = `slot ${block.id * blockSize + offset}: ${owner.name}, token ${position}` + (word ? ` “${word}”` : "");
    }
    drawn += `<rect x="${x}" y="${y}" width="${tile.cell}" height="18" ${look}>` +
      `<title>${escape(title)}</title></rect>`;
    if (text)
      drawn += `<text x="${x + div(tile.cell, 2)}" y="${y + 13}" text-anchor="middle" font-size="11" fill="${ink}" ` +
        `pointer-events="none">${escape(text)}</text>`;
  }
  return drawn;
}

function blockGroup(block, blockSize, tile, words, x, y) {
  const owner = block.owners.length ? block.owners[0][0] : null;
  const [fill, ink] = owner ? COLOURS[owner.colour % COLOURS.length] : ["#fff", "#222"];
  const shared = block.count > 1 || (block.id > 0 && block.count !== block.owners.length);
  let caption = block.id === 0 && !tile.dense ? "0 null" : `${block.id}`;
  if (block.hash !== null) caption += tile.width >= 72 ? ` #${letters(block.hash).slice(0, 4).join("")}` : "#";
  let drawn = `<title>${escape(blockTitle(block, blockSize))}</title>` + halo(tile.width, tile.height, block.changed);
  drawn += tile.dense
    ? `<text x="${div(tile.width, 2)}" y="11" text-anchor="middle" font-size="11" ${INK}>${escape(caption)}</text>`
    : `<text x="0" y="11" ${INK}>${escape(caption)}</text>`;
  if (shared && !tile.dense) {
    const warn = block.count === block.owners.length ? "" : " !";
    drawn += `<text x="${tile.width}" y="11" text-anchor="end" font-weight="bold" ${INK}>×${block.count}${warn}</text>`;
  }
  drawn += tile.columns ? cells(block, blockSize, tile, words, fill, ink) : bar(block, blockSize, tile, fill);
  if (shared) {
    let ticks = "";
    for (let left = 0; left < tile.width - 3; left += 6) ticks += `M${left},${tile.height}l4,-4`;
    drawn += `<path class="pa-line" d="${ticks}" stroke="#222" stroke-width="2" fill="none"/>`;
  }
  return piece(`block ${block.id}`, `data-block="${block.id}" class="pa-block" `, `${x},${y}`, drawn);
}

function runs(ids, dense) {
  const found = [];
  let start = 0;
  for (let end = 1; end <= ids.length; end++) {
    if (end < ids.length && ids[end] === ids[end - 1] + 1) continue;
    if (dense && end - start >= 4) found.push([`${ids[start]}–${ids[end - 1]}`, end - start]);
    else for (const id of ids.slice(start, end)) found.push([`${id}`, 1]);
    start = end;
  }
  return found;
}

function tableGroups(frame, blockSize, dense, left, top, width) {
  const groups = [heading("Page tables: logical → physical block", left, top)];
  const columns = dense ? Math.max(1, div(width, 300)) : 1;
  const columnWidth = div(width, columns);
  const [chip, height] = dense ? [36, 18] : [50, 20];
  const perRow = Math.max(1, div(columnWidth - GAP, chip + 8));
  const ends = Array(columns).fill(top + 12);
  frame.tables.forEach((table, index) => {
    const x = left + (index % columns) * columnWidth, y = ends[index % columns];
    const [fill, ink] = COLOURS[table.colour % COLOURS.length];
    const tokens = table.num_tokens === 1 ? "1 token" : `${table.num_tokens} tokens`;
    const initial = letters(table.name)[0] ?? "";
    groups.push(piece(`table ${table.name}`, "", `${x},${y}`,
      `<rect width="16" height="16" fill="${fill}" stroke="#555"/>` +
      `<text x="8" y="12" text-anchor="middle" font-size="11" fill="${ink}">${escape(initial)}</text>` +
      `<text x="22" y="12" ${INK}><tspan font-weight="bold">${escape(shorten(table.name, 24))}</tspan>` +
      `: ${tokens}</text>`));
    table.block_ids.forEach((id, logical) => {
      const at = `${x + (logical % perRow) * (chip + 8)},${y + 22 + div(logical, perRow) * (height + 4)}`;
      const filled = Math.min(blockSize, table.num_tokens - logical * blockSize);
      const title = `${table.name}, logical block ${logical} → block ${id}: ${filled} of ${blockSize} slots`;
      const name = `data-request="${escape(table.name)}" data-logical="${logical}" data-block-of="${id}" `;
      groups.push(piece(name, `${name}class="pa-entry" `, at,
        `<title>${escape(title)}</title>` + halo(chip, height, false) +
        `<rect width="${chip}" height="${height}" class="pa-empty" fill="#fff" stroke="#555"/>` +
        `<rect width="5" height="${height}" fill="${fill}"/>` +
        `<text x="${div(chip, 2) + 2}" y="${height - 6}" text-anchor="middle" ${INK}>` +
        `${dense ? id : `${logical}→${id}`}</text>`));
    });
    ends[index % columns] = y + LINE + Math.ceil(table.block_ids.length / perRow) * (height + 4) + 8;
  });
  return [groups, Math.max(...ends)];
}

function freeGroups(frame, dense, top, width) {
  const blocks = frame.free.length === 1 ? "1 block" : `${frame.free.length} blocks`;
  const groups = [heading(`Free queue: ${blocks}, next one first`, PAD, top)];
  let x = PAD, y = top + 12;
  for (const [text, number] of runs(frame.free, dense)) {
    const label = number === 1 && frame.hashes[text] !== undefined ? `${text}#` : text;
    const chip = Math.max(32, letters(label).length * 7 + 12);
    if (x > PAD && x + chip > PAD + width) [x, y] = [PAD, y + 26];
    const title = number === 1 ? `block ${text}, free` : `blocks ${text}, free`;
    groups.push(piece(`free ${text}`, `data-free="${text}" class="pa-entry" `, `${x},${y}`,
      `<title>${title}</title>` + halo(chip, 20, false) +
      `<rect width="${chip}" height="20" class="pa-free" fill="#fff" stroke="#777" stroke-dasharray="3 3"/>` +
      `<text x="${div(chip, 2)}" y="14" text-anchor="middle" ${INK}>${label}</text>`));
    x += chip + 6;
  }
  if (!frame.free.length)
    groups.push(line(`<text x="${PAD}" y="${y + 14}" ${INK}>empty: the next request for a block is refused</text>`));
  return [groups, y + 24];
}

/** Lay one frame of a recording out for a width: the pieces of the drawing in their order, and its height. */
function board(recording, index, width) {
  const frame = recording.frames[index], size = recording.block_size, words = recording.words ?? {};
  const count = frame.ref_cnt.length;
  const tile = tileOf(count, size, Object.keys(words).length > 0);
  const beside = width >= 700 && !tile.dense && frame.tables.length > 0;
  const tablesWidth = beside ? Math.max(240, div(width * 38, 100)) : width - 2 * PAD;
  const blocksWidth = width - 2 * PAD - (beside ? tablesWidth + 2 * GAP : 0);
  const gap = tile.dense ? 8 : GAP;
  const columns = Math.max(1, div(blocksWidth + gap, tile.width + gap));
  const groups = [heading("Physical blocks", PAD, 18)];
  for (const block of blocksOf(frame, size)) {
    const x = PAD + (block.id % columns) * (tile.width + gap), y = 30 + div(block.id, columns) * (tile.height + gap);
    groups.push(blockGroup(block, size, tile, words, x, y));
  }
  let bottom = 30 + Math.ceil(count / columns) * (tile.height + gap);
  if (frame.tables.length) {
    const [left, top] = beside ? [width - PAD - tablesWidth, 18] : [PAD, bottom + 14];
    const [drawn, end] = tableGroups(frame, size, tile.dense, left, top, tablesWidth);
    groups.push(...drawn);
    bottom = Math.max(bottom, end);
  }
  const [drawn, end] = freeGroups(frame, tile.dense, bottom + 14, width - 2 * PAD);
  groups.push(...drawn);
  bottom = end;
  const lines = [LEGEND[0]];
  for (const item of LEGEND.slice(1))
    if ((lines.at(-1).length + 3 + item.length) * 6 > width - 2 * PAD) lines.push(item);
    else lines[lines.length - 1] += ` · ${item}`;
  for (const text of lines) {
    bottom += 16;
    groups.push(line(`<text x="${PAD}" y="${bottom}" font-size="11" class="pa-soft" fill="#5f5f5f">${text}</text>`));
  }
  const height = bottom + 10;
  groups.unshift(line(`<rect class="pa-paper" width="${width}" height="${height}" fill="#fff"/>`));
  return { groups, width, height };
}

const openTag = (width, height) =>
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
  'font-family="sans-serif" font-size="12">';

/** The whole drawing as text: what board.py's draw returns for the same frame. */
function boardText(recording, index, width) {
  const { groups, height } = board(recording, index, width);
  return openTag(width, height) + groups.map(markup).join("") + "</svg>";
}

// ---- The same state as text ------------------------------------------------------------------------------------------

function tableOf(caption, columns, rows) {
  const head = columns.map((name) => `<th scope="col">${name}</th>`).join("");
  const body = rows.map((row) => `<tr>${row.map((value) => `<td>${escape(`${value}`)}</td>`).join("")}</tr>`).join("");
  return `<table><caption>${caption}</caption><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table>`;
}

function asText(recording, index) {
  const frame = recording.frames[index];
  const blocks = blocksOf(frame, recording.block_size).map((block) => [
    block.id,
    block.id === 0 ? "null block" : block.owners.map(([table, logical]) => `${table.name} ${logical}`).join(", ") || "–",
    block.count, `${block.filled} of ${recording.block_size}`, block.hash ?? "–",
  ]);
  const tables = frame.tables.map((table) => [table.name, table.num_tokens, table.block_ids.join(", ") || "–"]);
  return (
    tableOf("Page tables", ["request", "tokens", "physical blocks, in logical order"], tables) +
    tableOf("Free queue", ["next to be handed out first"], [[frame.free.join(", ") || "empty"]]) +
    tableOf("Physical blocks", ["block", "logical block of", "reference count", "slots filled", "hash"], blocks)
  );
}

// ---- The player ------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
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
    <label class="pa-speed-label">speed <select class="pa-speed">
      <option value="0.5">0.5×</option><option value="1" selected>1×</option><option value="2">2×</option>
      <option value="4">4×</option><option value="8">8×</option></select></label>
    <button type="button" class="pa-text-toggle" aria-expanded="false">Show as text</button>
  </div>
  <p class="pa-sentence" aria-live="polite"></p>
  <div class="pa-stage" role="group" aria-label="Drawing. Arrow keys move between blocks once one has the focus."></div>
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
  let timer = null, drawn = null, pinned = null;

  const recording = () => model.get("recording");
  const last = () => recording().frames.length - 1;
  const step = () => Math.max(0, Math.min(model.get("step"), last()));
  const widthNow = () => Math.max(300, Math.min(1400, div(root.clientWidth - 2, 20) * 20));

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
      timer = setInterval(() => (step() < last() ? go(step() + 1) : play(false)), 1000 / Number(part("speed").value));
    }
    const label = on ? "Pause" : "Play";
    part("play").innerHTML = icon(on ? "pause" : "play");
    part("play").setAttribute("aria-label", label);
    part("play").title = label;
    root.dataset.playing = on;
  }

  /** Keep every element whose piece is as it was, move those that stand elsewhere, make the others: most frames change
   * few of a thousand blocks. */
  function drawStage() {
    const frame = recording().frames[step()];
    if (frame.svg !== undefined) {
      stage.innerHTML = frame.svg;
      drawn = null;
      return;
    }
    const { groups, width, height } = board(recording(), step(), widthNow());
    if (drawn === null) {
      stage.innerHTML = openTag(width, height) + "</svg>";
      drawn = { pieces: new Map() };
    }
    const svg = stage.firstElementChild, before = drawn.pieces;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    const made = groups.filter(({ key, open, body }) => before.get(key)?.body !== body || before.get(key).open !== open);
    const maker = document.createElementNS(SVG, "svg");
    maker.innerHTML = made.map(markup).join("");
    const elements = [...maker.children];
    made.forEach((group, index) => (group.element = prepared(elements[index])));
    let cursor = svg.firstElementChild;
    for (const group of groups) {
      const old = before.get(group.key);
      before.delete(group.key);
      if (group.element === undefined) {
        group.element = old.element;
        if (old.at !== group.at) group.element.setAttribute("transform", `translate(${group.at})`);
      } else if (old !== undefined) {
        if (cursor === old.element) cursor = group.element;
        const focused = document.activeElement === old.element || root.getRootNode().activeElement === old.element;
        old.element.replaceWith(group.element);
        if (focused) group.element.focus();
      }
      if (group.element === cursor) cursor = cursor.nextElementSibling;
      else svg.insertBefore(group.element, cursor);
    }
    for (const { element } of before.values()) element.remove();
    drawn = { width, pieces: new Map(groups.map((group) => [group.key, group])) };
    if (!stage.querySelector('[tabindex="0"]')) stage.querySelector(".pa-block").setAttribute("tabindex", "0");
    light(pinned);
  }

  /** Blocks and table entries can be focused: one of them by Tab, the rest by the arrow keys. */
  function prepared(group) {
    if (group.classList.contains("pa-block") || group.dataset.blockOf !== undefined) {
      group.setAttribute("tabindex", "-1");
      group.setAttribute("role", "img");
      group.setAttribute("aria-label", group.querySelector("title").textContent);
    }
    return group;
  }

  const blockIdOf = (group) => group?.dataset.block ?? group?.dataset.blockOf ?? group?.dataset.free ?? null;

  /** Point at a physical block wherever it appears: in memory, in the tables that name it, in the free queue. */
  function light(id) {
    for (const group of stage.querySelectorAll(".pa-lit")) group.classList.remove("pa-lit");
    part("detail").textContent = "";
    if (id === null) return;
    const groups = stage.querySelectorAll(`[data-block="${id}"], [data-block-of="${id}"], [data-free="${id}"]`);
    for (const group of groups) group.classList.add("pa-lit");
    const block = stage.querySelector(`[data-block="${id}"] > title`);
    if (block) part("detail").textContent = block.textContent;
  }

  function update() {
    const frame = recording().frames[step()];
    root.setAttribute("aria-label", model.get("label"));
    root.dataset.step = step();
    root.dataset.last = last();
    scrub.max = last();
    scrub.value = step();
    const axis = recording().axis; // pictures along the values of one control
    scrub.setAttribute("aria-label", axis?.name ?? "Frame");
    scrub.setAttribute("aria-valuetext", axis?.values[step()] ?? `frame ${step() + 1} of ${last() + 1}`);
    part("count").textContent = axis ? `${axis.name}: ${axis.values[step()]}` : `${step() + 1} / ${last() + 1}`;
    part("controls").hidden = last() === 0 && frame.svg !== undefined;
    for (const name of ["first", "previous", "play", "next", "last", "scrub", "speed"])
      part(name).disabled = last() === 0;
    part("text-toggle").hidden = frame.svg !== undefined;
    if (part("sentence").textContent !== frame.sentence) part("sentence").textContent = frame.sentence;
    const error = model.get("error") ?? "";
    part("error").hidden = !error;
    part("error").textContent = error;
    if (!text.hidden && frame.svg === undefined) text.innerHTML = asText(recording(), step());
    drawStage();
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
    text.hidden = !text.hidden;
    part("text-toggle").setAttribute("aria-expanded", String(!text.hidden));
    part("text-toggle").textContent = text.hidden ? "Show as text" : "Hide text";
    update();
  });

  const keys = {
    ArrowRight: "next", ArrowLeft: "previous", ArrowUp: "previous", ArrowDown: "next", Home: "first", End: "last",
    " ": "play",
  };
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Tab") event.stopPropagation(); // JupyterLab takes single keys for commands
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const group = event.target.closest?.("[data-block], [data-block-of]");
    const name = keys[event.key];
    if (name === undefined || event.target.matches("input, select, .pa-text")) return;
    if (event.key === " " && event.target.matches("button")) return;
    event.preventDefault();
    if (group && event.key !== " ") {
      const kind = group.dataset.block === undefined ? "[data-block-of]" : "[data-block]";
      const all = [...stage.querySelectorAll(kind)], at = all.indexOf(group);
      const to = { first: 0, previous: at - 1, next: at + 1, last: all.length - 1 }[name];
      all[Math.max(0, Math.min(to, all.length - 1))].focus();
      return;
    }
    if (name !== "play") play(false);
    actions[name]();
  });
  const point = (event) => light(blockIdOf(event.target.closest("[data-block], [data-block-of], [data-free]")));
  stage.addEventListener("pointerover", point);
  stage.addEventListener("pointerleave", () => light(pinned));
  stage.addEventListener("focusin", (event) => {
    const group = event.target.closest("[data-block], [data-block-of]");
    for (const other of stage.querySelectorAll('[tabindex="0"]')) other.setAttribute("tabindex", "-1");
    group?.setAttribute("tabindex", "0");
    pinned = blockIdOf(group);
    light(pinned);
  });
  stage.addEventListener("focusout", () => {
    pinned = null;
    light(null);
  });

  const follow = () => update();
  const watched = ["change:recording", "change:step", "change:label", "change:error"];
  for (const name of watched) model.on(name, follow);
  const resized = new ResizeObserver(() => {
    helpControls(root);
    if (drawn && drawn.width !== widthNow()) drawStage();
  });
  resized.observe(root);
  play(false);
  update();
  return () => {
    play(false);
    resized.disconnect();
    for (const name of watched) model.off(name, follow);
  };
}

/** What a lesson's controls lack. ipywidgets gives sliders no accessible name: take the description beside each.
 * JupyterLab takes arrow keys for commands before a list hears them: keep the keys of a lesson inside. */
function helpControls(root) {
  const lesson = root.closest(".pa-lesson");
  if (lesson === null) return;
  lesson.onkeydown = (event) => event.key !== "Tab" && event.stopPropagation();
  for (const handle of lesson.querySelectorAll(".noUi-handle")) {
    const label = handle.closest(".widget-inline-hbox, .widget-hbox, .jupyter-widgets")?.querySelector(".widget-label");
    if (label) handle.setAttribute("aria-label", label.textContent);
  }
}

export default { render };
export { boardText };
