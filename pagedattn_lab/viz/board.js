// The board: physical blocks, page tables, free queue. Letter by letter the drawing of board.py; no names of its own are
// exported, since player.js follows it in one file.

const COLOURS = [
  ["#0072B2", "#fff"], ["#E69F00", "#000"], ["#009E73", "#000"], ["#CC79A7", "#000"], ["#56B4E9", "#000"],
  ["#D55E00", "#000"], ["#F0E442", "#000"],
];
const LEGEND = [
  "thick outline: what the sentence is about",
  "ticked edge and ×2: reference count 2",
  "!: not as many table entries as counted",
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
const line = (key, body) => ({ key, body });
const heading = (key, text, x, y) =>
  line(key, `<text x="${x}" y="${y}" font-size="13" font-weight="bold" ${INK}>${text}</text>`);
const textAt = (body, x, y, anchor, kind, fill, size) =>
  `<text x="${x}" y="${y}" text-anchor="${anchor}" font-size="${size}" class="${kind}" fill="${fill}" ` +
  `pointer-events="none">${body}</text>`;
const plural = (number, thing) => (number === 1 ? `1 ${thing}` : `${number} ${thing}s`);
const tokensIn = (table, logical, size) => Math.max(0, Math.min(size, table.num_tokens - logical * size));

function blocksOf(frame, blockSize) {
  const blocks = frame.ref_cnt.map((count, id) => ({
    id, count, owners: [], filled: 0, hash: frame.hashes[id] ?? null, free: false, changed: false,
  }));
  for (const table of frame.tables)
    table.block_ids.forEach((id, logical) => {
      blocks[id].owners.push([table, logical]);
      blocks[id].filled = Math.max(blocks[id].filled, tokensIn(table, logical, blockSize));
    });
  for (const id of frame.free) blocks[id].free = true;
  for (const id of frame.changed) blocks[id].changed = true;
  return blocks;
}

function tileOf(numBlocks, blockSize, withWords) {
  if (numBlocks > 96 || blockSize > 32)
    return { width: numBlocks > 96 ? 34 : 64, height: 30, columns: 0, cell: 0, dense: numBlocks > 96 };
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

function bar(block, blockSize, tile, badge) {
  let ink = "#222", kind = "pa-ink", look = slotLook(block), label = badge, level = "";
  if (block.filled) {
    const owner = block.owners[0][0], [fill, letter] = COLOURS[owner.colour % COLOURS.length];
    [ink, kind, look, label] = [letter, "pa-mark", `class="pa-filled" fill="${fill}" stroke="#555"`, owner.mark + badge];
    const part = Math.max(1, div(tile.width * block.filled, blockSize));
    level = `<rect class="pa-level" x="0" y="25" width="${part}" height="2" fill="#222"/>`;
  }
  return `<rect x="0" y="12" width="${tile.width}" height="12" ${look}/>${level}` +
    (label ? textAt(escape(label), div(tile.width, 2), 22, "middle", kind, ink, 10) : "");
}

function cells(block, blockSize, tile, words) {
  let drawn = "";
  for (let offset = 0; offset < blockSize; offset++) {
    const x = (offset % tile.columns) * tile.cell, y = 16 + div(offset, tile.columns) * 18;
    const slot = block.id * blockSize + offset;
    let look = slotLook(block), text = "", ink = "#222", title = `slot ${slot}: empty`;
    const reaches = ([table, logical]) => logical * blockSize + offset < table.num_tokens;
    const [owner, logical] = block.owners.find(reaches) ?? [];
    if (owner) {
      const position = logical * blockSize + offset, word = words[owner.name]?.[position] ?? "";
      const [fill, letter] = COLOURS[owner.colour % COLOURS.length];
      look = `class="pa-filled" fill="${fill}" stroke="#555"`;
      ink = letter;
      text = word ? shorten(word, 6) : owner.mark;
      title = `slot ${slot}: ${owner.name}, token ${position}` + (word ? ` “${word}”` : "");
    }
    drawn += `<rect x="${x}" y="${y}" width="${tile.cell}" height="18" ${look}>` +
      `<title>${escape(title)}</title></rect>`;
    if (text) drawn += textAt(escape(text), x + div(tile.cell, 2), y + 13, "middle", "pa-mark", ink, 11);
  }
  return drawn;
}

function blockGroup(block, blockSize, tile, words, x, y) {
  const miscounted = block.id > 0 && block.count !== block.owners.length;
  const badge = block.count > 1 || miscounted ? `×${block.count}${miscounted ? "!" : ""}` : "";
  let caption = block.id === 0 && !tile.dense ? "0 null" : `${block.id}`;
  if (block.hash !== null) caption += tile.width >= 72 ? ` #${letters(block.hash).slice(0, 4).join("")}` : "#";
  let drawn = `<title>${escape(blockTitle(block, blockSize))}</title>` + halo(tile.width, tile.height, block.changed);
  drawn += tile.dense
    ? textAt(escape(caption), div(tile.width, 2), 10, "middle", "pa-ink", "#222", 10)
    : textAt(escape(caption), 0, 11, "start", "pa-ink", "#222", 12);
  if (badge && !tile.dense)
    drawn += textAt(`<tspan font-weight="bold">${badge}</tspan>`, tile.width, 11, "end", "pa-ink", "#222", 12);
  drawn += tile.columns ? cells(block, blockSize, tile, words) : bar(block, blockSize, tile, tile.dense ? badge : "");
  if (badge) {
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
  const groups = [heading("tables", "Page tables: logical → physical block", left, top)];
  const columns = dense ? Math.max(1, div(width, 300)) : 1;
  const columnWidth = div(width, columns);
  const [chip, height] = dense ? [36, 18] : [50, 20];
  const perRow = Math.max(1, div(columnWidth - GAP, chip + 8));
  const ends = Array(columns).fill(top + 12);
  frame.tables.forEach((table, index) => {
    const x = left + (index % columns) * columnWidth, y = ends[index % columns];
    const [fill, ink] = COLOURS[table.colour % COLOURS.length];
    const name = `<tspan font-weight="bold">${escape(shorten(table.name, 24))}</tspan>`;
    groups.push(piece(`table ${table.name}`, "", `${x},${y}`,
      `<rect width="22" height="16" fill="${fill}" stroke="#555"/>` +
      textAt(escape(table.mark), 11, 12, "middle", "pa-mark", ink, 11) +
      textAt(`${name}: ${plural(table.num_tokens, "token")}`, 28, 12, "start", "pa-ink", "#222", 12)));
    table.block_ids.forEach((id, logical) => {
      const at = `${x + (logical % perRow) * (chip + 8)},${y + 22 + div(logical, perRow) * (height + 4)}`;
      const filled = tokensIn(table, logical, blockSize);
      const title = `${table.name}, logical block ${logical} → block ${id}: ${filled} of ${blockSize} slots`;
      const entry = `data-request="${escape(table.name)}" data-logical="${logical}" data-block-of="${id}" `;
      groups.push(piece(`entry ${logical} of ${table.name}`, `${entry}class="pa-entry" `, at,
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
  const groups = [heading("free", `Free queue: ${plural(frame.free.length, "block")}, next one first`, PAD, top)];
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
    groups.push(line("none free", `<text x="${PAD}" y="${y + 14}" ${INK}>empty: the next request for a block is refused</text>`));
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
  const gap = tile.dense ? 6 : GAP;
  const columns = Math.max(1, div(blocksWidth + gap, tile.width + gap));
  const groups = [heading("blocks", "Physical blocks", PAD, 18)];
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
    const body = `<text x="${PAD}" y="${bottom}" font-size="11" class="pa-soft" fill="#5f5f5f">${text}</text>`;
    groups.push(line(`legend ${text}`, body));
  }
  const height = bottom + 10;
  groups.unshift(line("paper", `<rect class="pa-paper" width="${width}" height="${height}" fill="#fff"/>`));
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
