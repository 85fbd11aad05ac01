// A link into the glossary shows its definition on a card: under the pointer, and when it has the focus. The card stays
// while the pointer is on it, and Escape puts it away (WCAG 1.4.13). glossary_terms.js holds the definitions.
(() => {
  const PATIENCE = 250; // milliseconds, in which the pointer may go from the link to the card
  const card = document.createElement("div");
  card.id = "glossary-card";
  card.setAttribute("role", "tooltip");
  card.hidden = true;
  let link = null;
  let timer = 0;

  function show(next) {
    hide();
    const [term, definition] = window.glossaryTerms[next.hash.slice(1)];
    const name = document.createElement("strong");
    name.textContent = term;
    card.replaceChildren(name, ` ${definition}`);
    card.hidden = false;
    const [first] = next.getClientRects();
    const room = document.documentElement.clientWidth - card.offsetWidth - 8;
    const below = first.bottom + card.offsetHeight + 8 < window.innerHeight || first.top < card.offsetHeight;
    card.style.left = `${window.scrollX + Math.max(8, Math.min(first.left, room))}px`;
    card.style.top = `${window.scrollY + (below ? first.bottom + 2 : first.top - card.offsetHeight - 2)}px`;
    link = next;
    link.setAttribute("aria-describedby", card.id);
  }

  function hide() {
    clearTimeout(timer);
    link?.removeAttribute("aria-describedby");
    link = null;
    card.hidden = true;
  }

  const hideSoon = () => {
    clearTimeout(timer);
    timer = setTimeout(hide, PATIENCE);
  };

  const links = [...document.querySelectorAll(".bd-article a[href*='glossary.html#']")].filter(
    (each) => window.glossaryTerms[each.hash.slice(1)],
  );
  for (const each of links) {
    each.addEventListener("mouseenter", () => show(each));
    each.addEventListener("focus", () => show(each));
    each.addEventListener("mouseleave", hideSoon);
    each.addEventListener("blur", hide);
  }
  card.addEventListener("mouseenter", () => clearTimeout(timer));
  card.addEventListener("mouseleave", hideSoon);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  if (links.length) document.querySelector("main").append(card);
})();
