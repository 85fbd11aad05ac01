// What a page may keep in the browser, on this machine only. It comes before the scripts that use it.
(() => {
  // A browser may refuse to keep anything: then what was chosen, or guessed, lasts as long as the page.
  function kept(name) {
    try {
      return localStorage.getItem(name);
    } catch {
      return null;
    }
  }

  function keep(name, value) {
    try {
      localStorage.setItem(name, value);
    } catch {
      // See above.
    }
  }

  window.readersMemory = { kept, keep };
})();
