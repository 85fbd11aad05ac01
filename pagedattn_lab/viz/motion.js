// Motion between two frames of a recording: pieces slide to their new places, a copied block flies, a freed block walks to
// its place in the free queue. All of it is animation on top of a drawing that is finished: cut short, nothing is missing.

const DURATION = 250; // ms
const MOST_MOVED = 150; // more at once would stutter, and nobody could follow

const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const place = (at) => `translate(${at.split(",").map((number) => `${number}px`).join(", ")})`;

/** What moves in one drawing, an <svg>. */
function motionIn(svg) {
  let running = [], visitors = [], last = -DURATION;

  function move(element, from, to, options = {}) {
    running.push(element.animate([{ transform: place(from) }, { transform: place(to) }],
      { duration: DURATION, easing: "ease-in-out", ...options }));
  }

  /** A copy of what stood in one place goes to another one, and is gone. */
  function send(element, from, to) {
    const visitor = element.cloneNode(true);
    for (const name of [...visitor.getAttributeNames()]) if (name !== "class") visitor.removeAttribute(name);
    visitor.setAttribute("aria-hidden", "true");
    visitor.setAttribute("pointer-events", "none");
    svg.append(visitor);
    visitors.push(visitor);
    move(visitor, from, to);
    running.at(-1).onfinish = () => visitor.remove();
  }

  /** Everything is where the drawing has it. */
  function settle() {
    for (const animation of running) animation.cancel();
    for (const visitor of visitors) visitor.remove();
    [running, visitors] = [[], []];
  }

  /** Show how the pieces of one frame became those of the next; `copied` is a block and its copy, if there is one. Who steps
   * faster than things move sees them in their places. */
  function show(before, after, copied) {
    const now = performance.now(), isFast = now - last < DURATION;
    last = now;
    if (isFast || isStill()) return;
    const moved = [], appeared = [];
    for (const group of after.values()) {
      const old = before.get(group.key), freed = before.get(group.key.replace(/^free (\d+)$/, "block $1"));
      if (old?.at !== undefined && old.at !== group.at) moved.push([group.element, old.at, group.at]);
      else if (old === undefined && group.key.startsWith("free ") && freed?.at) moved.push([group.element, freed.at, group.at]);
      else if (old === undefined && /^(entry|table|arrow) /.test(group.key)) appeared.push(group.element);
    }
    if (moved.length > MOST_MOVED) return;
    for (const [element, from, to] of moved) move(element, from, to);
    for (const element of appeared) running.push(element.animate([{ opacity: 0 }, { opacity: 1 }], { duration: DURATION }));
    if (copied) {
      const [source, target] = copied.map((id) => after.get(`block ${id}`));
      send(source.element, source.at, target.at);
    }
  }

  return { settle, show };
}

