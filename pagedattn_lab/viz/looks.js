// How requests look on a board: colours, stripes, letters. Letter by letter as in looks.py. The player's scripts make one
// file, one after the other, and only the last one gives names away.

const COLOURS = [
  ["#0072B2", "#fff"], ["#E69F00", "#000"], ["#009E73", "#000"], ["#CC79A7", "#000"], ["#56B4E9", "#000"],
  ["#D55E00", "#000"], ["#F0E442", "#000"],
  ["#00415F", "#fff"], ["#774D00", "#fff"], ["#00543D", "#fff"], ["#7D2458", "#fff"], ["#3F4757", "#fff"],
  ["#8C2200", "#fff"], ["#5A5600", "#fff"],
  ["#B4D9F0", "#000"], ["#F9DEA4", "#000"], ["#AFE0CF", "#000"], ["#F2CFE2", "#000"], ["#D3CBF2", "#000"],
  ["#F8C5A8", "#000"], ["#F6F3B8", "#000"],
];
const INK = 'class="pa-ink" fill="#222"';
const SLANT = 3;
const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;" };

const escape = (text) => text.replace(/[&<>"']/g, (letter) => ENTITIES[letter]);
const div = (a, b) => Math.floor(a / b);
const letters = (text) => [...text]; // code points, as Python counts them
const shorten = (text, most) =>
  letters(text).length <= most ? text : letters(text).slice(0, most - 1).join("") + "…";
const plural = (number, thing) => (number === 1 ? `1 ${thing}` : `${number} ${thing}s`);
const colourOf = ({ colour }) => COLOURS[colour % COLOURS.length];

// A piece of the drawing: a key that it keeps from frame to frame, where it stands, and what it is.
const piece = (key, attributes, at, body) => ({ key, open: `<g ${attributes}transform="translate(`, at, body });
const markup = ({ open, at, body }) => (open === undefined ? body : `${open}${at})">${body}</g>`);
const line = (key, body) => ({ key, body });

const heading = (key, text, x, y) =>
  line(key, `<text x="${x}" y="${y}" font-size="13" font-weight="bold" ${INK}>${text}</text>`);
const textAt = (body, x, y, anchor, kind, fill, size, more = "") =>
  `<text x="${x}" y="${y}" text-anchor="${anchor}" font-size="${size}" class="${kind}" fill="${fill}"${more} ` +
  `pointer-events="none">${body}</text>`;

/** A box in the colours of all whose tokens lie in it, a stripe each. */
function paint(looks, x, y, width, height, title = "") {
  let drawn = `<rect x="${x}" y="${y}" width="${width}" height="${height}" class="pa-filled" ` +
    `fill="${colourOf(looks[0])[0]}" stroke="#555">${title}</rect>`;
  const stripes = looks.slice(0, div(width, 3)), number = stripes.length;
  const slant = Math.min(SLANT, div(width, 3 * number));
  stripes.forEach((look, index) => {
    const left = x + div(width * index, number), right = x + div(width * (index + 1), number);
    const [fill, ink] = colourOf(look);
    if (index)
      drawn += `<path d="M${left + slant},${y + 1}H${x + width - 1}V${y + height - 1}H${left - slant}z" ` +
        `class="pa-stripe" fill="${fill}" pointer-events="none"/>`;
    const lines = Math.min(div(look.colour, COLOURS.length), div(height, 2) - 1);
    for (let at = 1; at <= lines; at++)
      drawn += `<path d="M${left},${y + 2 * at}H${right}" stroke="${ink}" pointer-events="none"/>`;
  });
  return drawn;
}

/** Letters on what paint has painted. */
const label = (text, looks, x, y, size) =>
  looks.length === 1
    ? textAt(escape(text), x, y, "middle", "pa-mark", colourOf(looks[0])[1], size)
    : textAt(escape(text), x, y, "middle", "pa-mark", "#000", size,
      ' stroke="#fff" stroke-width="3" paint-order="stroke" font-weight="bold"');

/** The outline of a group: drawn for what an event has changed, and by the stylesheet for what is pointed at. */
function halo(width, height, changed) {
  const stroke = changed ? "#222" : "none";
  const kind = changed ? "pa-halo pa-changed" : "pa-halo";
  return `<rect class="${kind}" x="-4" y="-4" width="${width + 8}" height="${height + 8}" rx="4" fill="none" ` +
    `stroke="${stroke}" stroke-width="2" pointer-events="all"/>`;
}

