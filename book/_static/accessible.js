// What the theme and Sphinx leave for assistive technology to stumble over.
for (const list of document.querySelectorAll(".citation-list")) {
  // Roles that ARIA 1.2 and DPUB-ARIA 1.1 retired: without them the bibliography reads as plain text.
  list.removeAttribute("role");
  list.querySelectorAll("[role=doc-biblioentry]").forEach((entry) => entry.removeAttribute("role"));
}
const sidebar = document.querySelector(".bd-sidebar-primary");
sidebar?.setAttribute("role", "region"); // the title in it stands in no landmark otherwise
sidebar?.setAttribute("aria-label", "Book");
// What opens a branch of the contents is an arrow without a name.
for (const summary of document.querySelectorAll(".bd-docs-nav summary")) {
  const page = summary.closest("li").querySelector("a").textContent.trim();
  summary.setAttribute("aria-label", `Pages of ${page}`);
}
// A folded cell's own words are a better name for what unfolds it than one that all have.
for (const summary of document.querySelectorAll("details.above-input > summary")) summary.removeAttribute("aria-label");
