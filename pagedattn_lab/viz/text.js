// A frame as tables of text, for who cannot or will not read the drawing.

function tableOf(caption, columns, rows) {
  const head = columns.map((name) => `<th scope="col">${name}</th>`).join("");
  const filled = rows.length ? rows : [columns.map((_, index) => (index ? "" : "none"))];
  const cell = (value) => `<td>${escape(`${value}`)}</td>`;
  const body = filled.map((row) => `<tr>${row.map(cell).join("")}</tr>`).join("");
  return `<table><caption>${caption}</caption><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table>`;
}

const still = ({ ghost }) => (ghost ? `still ${ghost.name} ${ghost.logical}` : "–"); // free, and its contents are there

function asText(recording, index) {
  const frame = recording.frames[index];
  const blocks = blocksOf(frame, recording.block_size).map((block) => [
    block.id,
    block.id === 0 ? "null block" : block.owners.map(([table, logical]) => `${table.name} ${logical}`).join(", ") || still(block),
    block.count, `${block.filled} of ${recording.block_size}`, block.hash ?? "–",
  ]);
  const tables = frame.tables.map((table) => [table.name, table.num_tokens, table.block_ids.join(", ") || "–"]);
  return (
    tableOf("Page tables", ["request", "tokens", "physical blocks, in logical order"], tables) +
    tableOf("Free queue", ["next to be handed out first"], [[frame.free.join(", ") || "empty"]]) +
    tableOf("Physical blocks", ["block", "logical block of", "reference count", "slots filled", "hash"], blocks)
  );
}

