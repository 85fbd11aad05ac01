// Excerpts of what the search found. Sphinx's own begin with the words of the theme's buttons, look for letters instead
// of words ("lru": ModelRunner), and find nothing at an anchor that stands before its text, as those of the index do.
(() => {
  const FURNITURE = ".headerlink, script, style, svg, .above-input, .onlyprint, .bd-header-article, .letters, footer";
  const BEFORE = 120; // letters
  const LONGEST = 240;

  function textAt(html, anchor) {
    const main = new DOMParser().parseFromString(html, "text/html").querySelector("[role=main]");
    main.querySelectorAll(FURNITURE).forEach((element) => element.remove());
    let place = anchor ? main.querySelector(anchor) : main;
    while (place && !place.textContent.trim()) place = place.parentElement;
    return (place ?? main).textContent.replace(/\s+/g, " ").trim();
  }

  Search.makeSearchSummary = (html, keywords, anchor) => {
    const text = textAt(html, anchor);
    const lower = ` ${text.toLowerCase()}`.replace(/[^\p{Letter}\p{Number}]/gu, " ");
    const places = [...keywords].map((word) => lower.indexOf(` ${word}`)).filter((place) => place >= 0);
    const place = Math.max(...places);
    const start = place < LONGEST - BEFORE ? 0 : text.indexOf(" ", place - BEFORE);
    const summary = document.createElement("p");
    summary.className = "context";
    const tail = start + LONGEST < text.length ? "…" : "";
    summary.textContent = `${start ? "…" : ""}${text.slice(start, start + LONGEST).trim()}${tail}`;
    return summary;
  };
})();
