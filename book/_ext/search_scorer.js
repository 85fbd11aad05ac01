// How Sphinx's search orders what it found; it reads this before searchtools.js. The numbers below are Sphinx's own.
var Scorer = {
  // Words as a reader types them come first where a chapter's title has them, hyphens or not: that is what it is about.
  score: ([docname, title, , , score]) => {
    const plain = (text) => text.toLowerCase().replace(/[^\p{Letter}\p{Number}]+/gu, " ").trim();
    const query = plain(new URLSearchParams(window.location.search).get("q") ?? "");
    const isTitle = docname.startsWith("chapters/") && !title.includes(" > ");
    return isTitle && query && ` ${plain(title)} `.includes(` ${query} `) ? score + 200 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
