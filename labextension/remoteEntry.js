// What JupyterLab loads of an extension is a container of webpack's module federation: an object with init and get. This
// one is written by hand, so that neither a bundler nor Node is needed to make it; extension.js is the extension itself.
(() => {
  const extension = new URL("extension.js", document.currentScript.src);
  (window._JUPYTERLAB ??= {})["pagedattn-lab"] = {
    init() {},
    async get() {
      const { default: plugin } = await import(extension);
      return () => ({ __esModule: true, default: plugin });
    },
  };
})();
