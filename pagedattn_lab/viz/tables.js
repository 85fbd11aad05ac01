// Page tables, the arrows from their entries to blocks, and the free queue. Letter by letter as in tables.py.

const MOST_ARROWS = 4; // more would hide what they point at: where a sentence is about more entries, none has one
const LINE = 22, ROW_GAP = 6;

/** Give every page table a line for its name and rows for its entries. */
function placeTables(frame, dense, left, top, width) {
  const columns = dense ? Math.max(1, div(width, 300)) : 1;
  const columnWidth = div(width, columns);
  const [chip, height] = dense ? [36, 18] : [50, 20];
  const perRow = Math.max(1, div(columnWidth - GAP, chip + 8));
  const ends = Array(columns).fill(top + 12);
  const tables = frame.tables.map((table, index) => {
    const x = left + (index % columns) * columnWidth, y = ends[index % columns];
    const entries = table.block_ids.map((id, logical) => ({
      table, logical, id, x: x + (logical % perRow) * (chip + 8), y: y + 22 + div(logical, perRow) * (height + ROW_GAP),
    }));
    ends[index % columns] = y + LINE + Math.ceil(entries.length / perRow) * (height + ROW_GAP) + 8;
    return { table, x, y, entries };
  });
  return { tables, chip, height, left, end: Math.max(...ends) };
}

function tableGroups(blockSize, dense, { tables, chip, height }) {
  return tables.flatMap(({ table, x, y, entries }) => {
    const fill = colourOf(table)[0], name = `<tspan font-weight="bold">${escape(shorten(table.name, 24))}</tspan>`;
    const head = piece(`table ${table.name}`, "", `${x},${y}`,
      paint([table], 0, 0, 22, 16) + label(table.mark, [table], 11, 12, 11) +
      textAt(`${name}: ${plural(table.num_tokens, "token")}`, 28, 12, "start", "pa-ink", "#222", 12));
    return [head, ...entries.map(({ logical, id, x: left, y: top }) => {
      const filled = tokensIn(table, logical, blockSize);
      const title = `${table.name}, logical block ${logical} → block ${id}: ${filled} of ${blockSize} slots`;
      const entry = `data-request="${escape(table.name)}" data-logical="${logical}" data-block-of="${id}" `;
      return piece(`entry ${logical} of ${table.name}`, `${entry}class="pa-entry" `, `${left},${top}`,
        `<title>${escape(title)}</title>` + halo(chip, height, false) +
        `<rect width="${chip}" height="${height}" class="pa-empty" fill="#fff" stroke="#555"/>` +
        `<rect width="5" height="${height}" fill="${fill}"/>` +
        `<text x="${div(chip, 2) + 2}" y="${height - 6}" text-anchor="middle" ${INK}>` +
        `${dense ? id : `${logical}→${id}`}</text>`);
    })];
  });
}

/** The entries that arrows start from, by table and logical block: those whose block has changed, of the table that the
 * sentence begins with, or if it names none that has such an entry, of all tables. None if they are many. */
function inQuestion(frame) {
  const changed = frame.tables.flatMap((table) => table.block_ids.map((id, logical) => ({ table, logical, id })))
    .filter(({ id }) => frame.changed.includes(id));
  const subject = frame.tables.map(({ name }) => name).filter((name) => frame.sentence.startsWith(`${name} `))
    .reduce((longest, name) => (longest === null || letters(name).length > letters(longest).length ? name : longest), null);
  const own = changed.filter(({ table }) => table.name === subject);
  const chosen = own.length ? own : changed;
  return chosen.length <= MOST_ARROWS ? chosen : [];
}

/** From a table entry to its block, across neither other entries nor other blocks: out between two rows of entries where the
 * tables stand beside the blocks, which end at `right`; round by the margin where they stand below; in between two rows of
 * blocks. */
function arrow({ table, logical, x: entryX, y: entryY }, { chip, height, left: edge }, [blockX, blockY], tile, right) {
  const x = entryX + div(chip, 2);
  const toX = blockX + div(tile.width, 2), bottom = blockY + tile.height, below = bottom + (tile.dense ? 3 : 6);
  const row = entryY + height + 3, left = edge - 4, middle = div(left + right, 2);
  const way = right === null
    ? `M${x},${entryY + 3}v-6H3V${below}`
    : `M${x},${entryY + height - 4}V${row}H${left}C${middle},${row} ${middle},${below} ${right},${below}`;
  const path = `${way}H${toX}V${bottom + 2}`, head = `M${toX},${bottom - 5}l-4,8h8z`;
  const lines = '<g class="pa-arrow" fill="none" stroke-linejoin="round" pointer-events="none">' +
    `<path class="pa-arrow-edge" d="${path}" stroke="#fff" stroke-width="4" stroke-opacity="0.8"/>` +
    `<path class="pa-arrow-line" d="${path}" stroke="#b3004b" stroke-width="2"/>` +
    `<path class="pa-arrow-head" d="${head}" fill="#b3004b"/></g>`;
  return line(`arrow ${logical} of ${table.name}`, lines);
}

/** Name the entries of a queue and how many blocks each stands for; a dense board joins four or more in a row. */
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

function placeFree(frame, dense, left, top, width) {
  const chips = [];
  let x = left, y = top + 12;
  for (const [text, number] of runs(frame.free, dense)) {
    const cached = number === 1 && frame.hashes[text] !== undefined;
    const chip = Math.max(32, (text.length + cached) * 7 + 12);
    if (x > left && x + chip > left + width) [x, y] = [left, y + 26];
    chips.push({ text, number, cached, x, y, width: chip });
    x += chip + 6;
  }
  return { chips, end: y + 24 };
}

function freeGroups(frame, chips, left, top) {
  const groups = [heading("free", `Free queue: ${plural(frame.free.length, "block")}, next one first`, left, top)];
  for (const { text, number, cached, x, y, width } of chips) {
    const title = number === 1 ? `block ${text}, free` : `blocks ${text}, free`;
    const held = cached ? frame.contents?.[text] : undefined;
    const tint = held ? `<rect width="${width}" height="20" fill="${colourOf(held)[0]}" ${GHOST}/>` : "";
    groups.push(piece(`free ${text}`, `data-free="${text}" class="pa-entry" `, `${x},${y}`,
      `<title>${title}</title>${halo(width, 20, false)}` +
      `<rect width="${width}" height="20" class="pa-free" fill="#fff" stroke="#777" stroke-dasharray="3 3"/>${tint}` +
      `<text x="${div(width, 2)}" y="14" text-anchor="middle" ${INK}>${text}${cached ? "#" : ""}</text>`));
  }
  if (!frame.free.length)
    groups.push(line("none free", `<text x="${left}" y="${top + 26}" ${INK}>empty: the next request for a block is refused</text>`));
  return groups;
}

