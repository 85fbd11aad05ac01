// The board: physical blocks, page tables, free queue. Letter by letter the drawing of board.py.

const PAD = 8;

/** What the signs mean that occur in any frame of a recording. */
function legendOf(frames) {
  let [shared, counts, miscounted, free] = [false, false, false, false];
  for (const frame of frames) {
    const owners = frame.ref_cnt.map(() => 0);
    for (const table of frame.tables) for (const id of table.block_ids) owners[id]++;
    frame.ref_cnt.forEach((count, id) => {
      if (id === 0) return;
      shared ||= owners[id] > 1;
      counts ||= count > 1;
      miscounted ||= count !== owners[id];
      free ||= count === 0;
    });
  }
  const any = (has) => frames.some(has), some = (values) => Object.keys(values ?? {}).length > 0;
  return [
    [any(({ changed }) => changed.length), "thick outline: what the sentence is about"],
    [any((frame) => inQuestion(frame).length), "arrow: from a table entry to its block"],
    [shared, "stripes: shared"],
    [counts, "ticked edge, ×n: n table entries name it"],
    [miscounted, "!: not as many table entries as counted"],
    [free, "dashed: free"],
    [any(({ hashes }) => some(hashes)), "#: cached contents"],
    [any(({ contents }) => some(contents)), "pale, slanted: free, but the contents are still there"],
  ].filter(([occurs]) => occurs).map(([, words]) => words);
}

/** How a recording stands on a board of some width, whatever the frame: it has room for each of them. */
function layoutOf({ frames: all, block_size: size, words }, width) {
  const frames = all.filter(({ svg }) => svg === undefined); // a recording may hold pictures too
  const count = frames[0].ref_cnt.length, room = width - 2 * PAD, dense = count > 96;
  const withTables = frames.some(({ tables }) => tables.length);
  const beside = width >= 700 && !dense && withTables;
  const tablesWidth = beside ? Math.max(240, div(width * 38, 100)) : room;
  const blocksWidth = room - (beside ? tablesWidth + 2 * GAP : 0);
  const texts = Object.values(words ?? {});
  const longest = texts.flat().reduce((most, word) => Math.max(most, wordLength(word)), texts.length ? 1 : 0);
  const tile = tileOf(count, size, longest, blocksWidth);
  const gap = dense ? 6 : GAP, columns = Math.max(1, div(blocksWidth + gap, tile.width + gap));
  const right = beside ? PAD + columns * (tile.width + gap) - gap + 4 : null;
  let bottom = 30 + Math.ceil(count / columns) * (tile.height + gap);
  const [left, top] = beside ? [width - PAD - tablesWidth, 18] : [PAD, bottom + 14];
  const tables = withTables ? { left, top, width: tablesWidth } : null;
  if (tables) bottom = Math.max(bottom, ...frames.map((frame) => placeTables(frame, dense, left, top, tablesWidth).end));
  const freeTop = bottom + 14;
  bottom = Math.max(...frames.map((frame) => placeFree(frame, dense, PAD, freeTop, room).end));
  const lines = [];
  for (const item of legendOf(frames))
    if (lines.length && lines.at(-1).length + 3 + item.length <= div(room, 6)) lines[lines.length - 1] += ` · ${item}`;
    else lines.push(item);
  const legend = lines.map((text, index) => line(`legend ${index}`,
    `<text x="${PAD}" y="${bottom + 16 * (index + 1)}" font-size="11" class="pa-soft" fill="#5f5f5f">${text}</text>`));
  const place = (id) => [PAD + (id % columns) * (tile.width + gap), 30 + div(id, columns) * (tile.height + gap)];
  return { tile, dense, right, room, tables, freeTop, legend, place, height: bottom + 16 * lines.length + 10 };
}

const LAYOUTS = new WeakMap(); // by recording, then by width: every step of a recording has the same one
function layout(recording, width) {
  if (!LAYOUTS.has(recording)) LAYOUTS.set(recording, new Map());
  const known = LAYOUTS.get(recording);
  if (!known.has(width)) known.set(width, layoutOf(recording, width));
  return known.get(width);
}

/** Lay one frame of a recording out for a width: the pieces of the drawing in their order, and its height. */
function board(recording, index, width) {
  const frame = recording.frames[index], size = recording.block_size, words = recording.words ?? {};
  const { tile, dense, right, room, tables, freeTop, legend, place, height } = layout(recording, width);
  const groups = [
    line("paper", `<rect class="pa-paper" width="${width}" height="${height}" fill="#fff"/>`),
    heading("blocks", "Physical blocks", PAD, 18),
    ...blocksOf(frame, size).map((block) => blockGroup(block, size, tile, words, ...place(block.id))),
  ];
  let arrows = [];
  if (tables) {
    const placed = placeTables(frame, dense, tables.left, tables.top, tables.width);
    groups.push(heading("tables", "Page tables: logical → physical block", tables.left, tables.top));
    groups.push(...tableGroups(size, dense, placed));
    const chosen = inQuestion(frame);
    arrows = placed.tables.flatMap(({ entries }) => entries)
      .filter((entry) => chosen.some(({ table, logical }) => table.name === entry.table.name && logical === entry.logical))
      .map((entry) => arrow(entry, placed, place(entry.id), tile, right));
  }
  groups.push(...freeGroups(frame, placeFree(frame, dense, PAD, freeTop, room).chips, PAD, freeTop));
  return { groups: [...groups, ...legend, ...arrows], width, height };
}

const openTag = (width, height) =>
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
  'font-family="sans-serif" font-size="12">';

/** The whole drawing as text: what board.py's draw returns for the same frame of the same recording. */
function boardText(recording, index, width) {
  const { groups, height } = board(recording, index, width);
  return openTag(width, height) + groups.map(markup).join("") + "</svg>";
}

