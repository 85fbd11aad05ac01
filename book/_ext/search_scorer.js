// How Sphinx's search orders what it found. What is not said otherwise is as Sphinx has it.
var Scorer = {
  // A chapter comes first if its title has the words as the reader typed them, hyphens or not: that is what it is about.
  score: ([docname, title, , , score]) => {
    const plain = (text) => text.toLowerCase().replace(/[^\p{Letter}\p{Number}]+/gu, " ").trim();
    const query = plain(new URLSearchParams(window.location.search).get("q") ?? "");
    const isTitle = docname.startsWith("chapters/") && !title.includes(" > ");
    return isTitle && query && ` ${plain(title)} `.includes(` ${query} `) ? score + 200 : score;
  },
  // A name in the library that merely holds the letters ("lru": ModelRunner) comes after text that holds the word.
  objNameMatch: 11,
  objPartialMatch: 1,
  objPrio: {},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
