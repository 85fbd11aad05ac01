// Physical blocks, slot by slot: whose tokens they hold, or held before. Letter by letter as in tiles.py.

const GAP = 12;
const LEAST_SIZE = 9;
const GHOST = 'fill-opacity="0.25" pointer-events="none"';
const tokensIn = (table, logical, size) => Math.max(0, Math.min(size, table.num_tokens - logical * size));

function blocksOf(frame, blockSize) {
  const blocks = frame.ref_cnt.map((count, id) => ({
    id, count, owners: [], filled: 0, hash: frame.hashes[id] ?? null, free: false, changed: false, ghost: null,
  }));
  for (const table of frame.tables)
    table.block_ids.forEach((id, logical) => {
      if (id === 0) return; // the null block: it holds nothing
      blocks[id].owners.push([table, logical]);
      blocks[id].filled = Math.max(blocks[id].filled, tokensIn(table, logical, blockSize));
    });
  for (const id of frame.free) blocks[id].free = true;
  for (const id of frame.changed) blocks[id].changed = true;
  for (const [id, held] of Object.entries(frame.contents ?? {})) if (blocks[id]?.owners.length === 0) blocks[id].ghost = held;
  return blocks;
}

const spaceless = (word) => word.replace(/^ +/, "");
const wordLength = (word) => letters(spaceless(word)).length;
const lettersIn = (cell, size) => div(cell - 4, size - 4);

/** A token's text for its cell, and the size of its letters: smaller ones where it would lose its end, else cut. */
function fitting(word, tile) {
  const size = wordLength(word) <= lettersIn(tile.cell, tile.size) ? tile.size : LEAST_SIZE;
  return [shorten(spaceless(word), lettersIn(tile.cell, size)), size];
}

/** Cells if they can be read, for words wide enough for the longest where there is room. Where two blocks would not fit side
 * by side and words would lose their ends, cells of a small block stand two by two, and in a larger one letters are
 * smaller. */
function tileOf(numBlocks, blockSize, longest, room) {
  if (numBlocks > 96 || blockSize > 32)
    return { width: numBlocks > 96 ? 34 : 64, height: 30, columns: 0, cell: 0, size: 11, dense: numBlocks > 96 };
  let [columns, cell, size] = [Math.min(blockSize, 8), 18, 11];
  if (longest) {
    [columns, cell] = [Math.min(blockSize, 4), 52];
    if (2 * columns * cell + GAP > room && lettersIn(div(div(room - GAP, 2), columns), size) < Math.min(longest, 6))
      [columns, size] = blockSize <= 4 ? [Math.min(columns, 2), 11] : [columns, 10];
    const sideBySide = Math.max(2, Math.min(numBlocks, div(room + GAP, columns * cell + GAP)));
    const most = div(div(room + GAP, sideBySide) - GAP, columns);
    cell = Math.max(34, Math.min(Math.max(cell, longest * 7 + 4), most));
  }
  const height = 16 + Math.ceil(blockSize / columns) * 18 + 6;
  return { width: Math.max(columns * cell, 44), height, columns, cell, size, dense: false };
}

function blockTitle(block, blockSize) {
  if (block.id === 0) return "block 0, the null block: never handed out";
  const held = block.owners.map(([table, logical]) => `${table.name}'s logical block ${logical}`).join(", ");
  const parts = [`block ${block.id}: ${held || "no table names it"}`, `reference count ${block.count}`];
  if (block.owners.length) parts.push(`${block.filled} of ${blockSize} slots filled`);
  if (block.ghost) parts.push(`still holds ${block.ghost.name}'s logical block ${block.ghost.logical}`);
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

const ghostOf = (held, x, y, width, height) => `<g class="pa-ghost" ${GHOST}>${paint([held], x, y, width, height)}</g>`;

/** All whose tokens lie in a slot of a block, each once. */
function holdersOf(block, blockSize, offset) {
  const found = new Map();
  for (const [table, logical] of block.owners) {
    const position = logical * blockSize + offset;
    if (position < table.num_tokens && !found.has(table.name)) found.set(table.name, { ...table, position });
  }
  return [...found.values()];
}

function bar(block, blockSize, tile, badge) {
  const middle = div(tile.width, 2), holders = holdersOf(block, blockSize, 0);
  if (holders.length) {
    const part = Math.max(1, div(tile.width * block.filled, blockSize));
    const text = shorten(holders.map(({ mark }) => mark).join("+") + badge, div(tile.width, 6));
    return paint(holders, 0, 12, tile.width, 12) +
      `<rect class="pa-level" x="0" y="25" width="${part}" height="2" fill="#222"/>` + label(text, holders, middle, 22, 10);
  }
  const text = badge || (block.ghost?.mark ?? "");
  return `<rect x="0" y="12" width="${tile.width}" height="12" ${slotLook(block)}/>` +
    (block.ghost ? ghostOf(block.ghost, 0, 12, tile.width, 12) : "") +
    (text ? textAt(escape(text), middle, 22, "middle", "pa-ink", "#222", 10) : "");
}

/** The marks of several owners, as many as fit into a line beside other text; none where not even two letters do. */
function marksOf(marks, beside, width) {
  const most = div(width - 2 - 8 * letters(beside).length, 8);
  const together = marks.join(marks.every((mark) => letters(mark).length === 1) ? "" : "+");
  return marks.length > 1 && most > 1 ? shorten(together, most) : "";
}

function cells(block, blockSize, tile, words) {
  let drawn = "";
  for (let offset = 0; offset < blockSize; offset++) {
    const x = (offset % tile.columns) * tile.cell, y = 16 + div(offset, tile.columns) * 18;
    const slot = block.id * blockSize + offset, { ghost } = block;
    const isGhost = ghost !== null && offset < ghost.num_tokens;
    const holders = isGhost ? [{ ...ghost, position: ghost.logical * blockSize + offset }] : holdersOf(block, blockSize, offset);
    const box = `<rect x="${x}" y="${y}" width="${tile.cell}" height="18" ${slotLook(block)}>`;
    if (!holders.length) {
      drawn += `${box}<title>slot ${slot}: empty</title></rect>`;
      continue;
    }
    const word = holders.map(({ name, position }) => words[name]?.[position] ?? "").find(Boolean) ?? "";
    const tokens = holders.map(({ name, position }) => `${name}, token ${position}`);
    if (word) tokens[0] += ` “${word}”`;
    const title = `<title>${escape(`slot ${slot}: ${tokens.join("; ")}`)}${isGhost ? ", still there" : ""}</title>`;
    const middle = x + div(tile.cell, 2);
    const [text, size] = word ? fitting(word, tile) : [holders.length === 1 ? holders[0].mark : "", tile.size];
    drawn += isGhost
      ? `${box}${title}</rect>` + ghostOf(ghost, x, y, tile.cell, 18) +
        textAt(escape(text), middle, y + 13, "middle", "pa-ink", "#222", size, ' font-style="italic"')
      : paint(holders, x, y, tile.cell, 18, title) + (text ? label(text, holders, middle, y + 13, size) : "");
  }
  return drawn;
}

function blockGroup(block, blockSize, tile, words, x, y) {
  const miscounted = block.id > 0 && block.count !== block.owners.length;
  const badge = block.count > 1 || miscounted ? `×${block.count}${miscounted ? "!" : ""}` : "";
  let caption = block.id === 0 && !tile.dense ? "0 null" : `${block.id}`;
  const marks = tile.columns ? [...new Set(block.owners.map(([table]) => table.mark))] : [];
  let sharedBy = "";
  if (block.hash !== null) {
    const full = `${caption} #${letters(block.hash).slice(0, 4).join("")}`;
    sharedBy = marksOf(marks, full + badge, tile.width);
    caption = tile.width >= 72 && (sharedBy || marks.length < 2) ? full : `${caption}#`;
  }
  sharedBy ||= marksOf(marks, caption + badge, tile.width);
  let drawn = `<title>${escape(blockTitle(block, blockSize))}</title>` + halo(tile.width, tile.height, block.changed);
  drawn += tile.dense
    ? textAt(escape(caption), div(tile.width, 2), 10, "middle", "pa-ink", "#222", 10)
    : textAt(escape(caption), 0, 11, "start", "pa-ink", "#222", 12);
  if (badge && !tile.dense)
    drawn += textAt(`${sharedBy ? `${escape(sharedBy)} ` : ""}<tspan font-weight="bold">${badge}</tspan>`, tile.width, 11, "end", "pa-ink", "#222", 12);
  drawn += tile.columns ? cells(block, blockSize, tile, words) : bar(block, blockSize, tile, tile.dense ? badge : "");
  if (badge) {
    let ticks = "";
    for (let left = 0; left < tile.width - 3; left += 6) ticks += `M${left},${tile.height}l4,-4`;
    drawn += `<path class="pa-line" d="${ticks}" stroke="#222" stroke-width="2" fill="none"/>`;
  }
  return piece(`block ${block.id}`, `data-block="${block.id}" class="pa-block" `, `${x},${y}`, drawn);
}

