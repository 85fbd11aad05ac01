// Excerpts of what the search found, without the words of the theme's buttons and the players' recordings.
(() => {
  const FURNITURE = ".headerlink, script, style, svg, summary, .bd-header-article, .prev-next-footer, .copybtn, .letters";
  const summary = Search.makeSearchSummary;
  // Sphinx's own removes less, and finds nothing at an anchor that stands before its text, as those of the index do.
  Search.htmlToText = (html, anchor) => {
    const main = new DOMParser().parseFromString(html, "text/html").querySelector("[role=main]");
    main.querySelectorAll(FURNITURE).forEach((element) => element.remove());
    let place = anchor ? main.querySelector(anchor) : main;
    while (place && !place.textContent.trim()) place = place.parentElement;
    return (place ?? main).textContent.replace(/\s+/g, " ");
  };
  // Sphinx's own returns null for a page without text, which cannot be appended.
  Search.makeSearchSummary = (...found) => summary(...found) ?? document.createDocumentFragment();
})();
