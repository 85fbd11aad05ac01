// What is wider than its box scrolls sideways. The box says so: by an edge that fades while there is more behind it, and to who
// has no pointer by a name and a place among what Tab reaches.

const LEAST_SHARE = 0.9; // of the width at which a picture's smallest letters have 10 pixels (Picture, in Python)

/** Follow how far a box is scrolled. ``label`` is its name where it has none of its own; returns a function that stops. */
function showScrolling(box, label) {
  function update() {
    const picture = box.querySelector(":scope > svg");
    const nearlyFits = box.clientWidth < box.scrollWidth && box.clientWidth >= LEAST_SHARE * box.scrollWidth;
    if (picture && nearlyFits) picture.style.maxWidth = "100%";
    const hidden = box.scrollWidth - box.clientWidth, scrolls = hidden > 1;
    const more = [box.scrollLeft > 1 && "left", box.scrollLeft < hidden - 1 && "right"].filter(Boolean).join(" ");
    if ((box.dataset.more ?? "") !== more) box.dataset.more = more;
    if (scrolls === box.hasAttribute("tabindex")) return;
    box.toggleAttribute("tabindex", scrolls);
    if (scrolls) box.tabIndex = 0;
    if (!label) return;
    for (const [name, value] of Object.entries({ role: "region", "aria-label": `${label} (scrolls sideways)` }))
      if (scrolls) box.setAttribute(name, value);
      else box.removeAttribute(name);
  }
  const resized = new ResizeObserver(update);
  resized.observe(box);
  box.addEventListener("scroll", update, { passive: true });
  return Object.assign(() => resized.disconnect(), { update });
}

