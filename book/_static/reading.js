// What the browser remembers of a reader, on this machine only: whether code shows, and how far each chapter was read.
(() => {
  const STORY = "pagedattn.story";
  const CHAPTERS = "pagedattn.chapters";
  const root = document.documentElement;
  const { kept, keep } = window.readersMemory;

  function tellStory(only) {
    root.toggleAttribute("data-story", only); // before the page is drawn: book.css hides the code
    keep(STORY, only ? "only" : "with code");
  }

  function offerStory() {
    const title = document.querySelector(".bd-article h1");
    if (!title || !document.querySelector(".bd-article .cell_input")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "story";
    button.textContent = "Only the story";
    button.title = "Hide all code, in every chapter";
    button.setAttribute("aria-pressed", root.hasAttribute("data-story"));
    button.addEventListener("click", () => {
      const place = button.getBoundingClientRect().top;
      tellStory(!root.hasAttribute("data-story"));
      button.setAttribute("aria-pressed", root.hasAttribute("data-story"));
      window.scrollBy(0, button.getBoundingClientRect().top - place);
    });
    const badge = document.querySelector(".bd-article h1 + p:has(img)");
    if (badge) badge.prepend(button);
    else title.after(button);
  }

  function progress() {
    try {
      return JSON.parse(kept(CHAPTERS)) ?? {};
    } catch {
      return {}; // what is kept was not written here
    }
  }

  function follow(chapter) {
    const reached = (state) => keep(CHAPTERS, JSON.stringify({ ...progress(), [chapter]: state }));
    if (!progress()[chapter]) reached("begun");
    const end = document.querySelector(".prev-next-footer");
    const observer = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      reached("read");
      observer.disconnect();
    });
    if (end) observer.observe(end);
  }

  function showProgress() {
    const states = progress();
    for (const box of document.querySelectorAll("[data-chapter]")) {
      const state = states[box.dataset.chapter];
      if (!state) continue;
      box.classList.add(state);
      box.querySelector(".minutes").textContent += state === "read" ? " · read ✓" : " · begun";
    }
  }

  if (kept(STORY) === "only") tellStory(true);
  document.addEventListener("DOMContentLoaded", () => {
    offerStory();
    const chapter = location.pathname.match(/\/chapters\/(\w+)\.html$/);
    if (chapter) follow(chapter[1]);
    showProgress();
  });
})();
