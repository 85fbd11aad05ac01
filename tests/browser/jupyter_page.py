"""Chapters in JupyterLab: a server of the tests' own, a notebook in the browser, and its kernel from the other side."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nbformat
from jupyter_client import BlockingKernelClient
from jupyter_server.serverapp import list_running_servers
from playwright.sync_api import Browser, ElementHandle, Locator, Page
from watch import PATIENCE, Watch, until

from tools import bootstrap

RUN_SECONDS = 600  # a whole chapter, on a machine that is busy with others
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # every cell is in the page, seen or not
}
IS_READY = """path => {
  const panel = window.jupyterapp?.shell.currentWidget;
  return panel?.context?.path === path && panel.context.isReady && panel.sessionContext?.isReady
    && panel.sessionContext.session?.kernel?.status === 'idle';
}"""
OPEN = "path => { jupyterapp.commands.execute('docmanager:open', {path}); }"
# Nobody is asked whether to save, and the notebook's own styles go with it.
CLOSE = """async styles => {
  const panel = jupyterapp.shell.currentWidget;
  await panel.sessionContext.shutdown();
  panel.dispose();
  styles.forEach(style => style.remove());
}"""
CELLS = (
    "() => [...jupyterapp.shell.currentWidget.content.model.cells].map(cell => [cell.type, cell.sharedModel.source])"
)
CODE_CELLS = """() => [...jupyterapp.shell.currentWidget.content.model.cells]
  .filter(cell => cell.type === 'code')
  .map(cell => {
    const outputs = Array.from({length: cell.outputs.length}, (_, index) => cell.outputs.get(index));
    return {
      empty: !cell.sharedModel.source.trim(),
      executed: cell.executionCount !== null && cell.executionState === 'idle',
      errors: outputs.filter(output => output.type === 'error').map(output => output.toJSON())
        .map(error => `${error.ename}: ${error.evalue}`),
    };
  })"""
# A cell that ran before looks done until its turn comes again.
FORGET_RUNS = """() => [...jupyterapp.shell.currentWidget.content.model.cells]
  .filter(cell => cell.type === 'code').forEach(cell => { cell.executionCount = null; })"""
# By the id of a widget, the number of the code cell that shows it. JupyterLab copies all that an output holds to tell.
SHOWN_BY = """() => Object.fromEntries([...jupyterapp.shell.currentWidget.content.model.cells]
  .filter(cell => cell.type === 'code')
  .flatMap((cell, number) => Array.from({length: cell.outputs.length}, (_, index) => cell.outputs.get(index).data)
    .map(data => data?.['application/vnd.jupyter.widget-view+json']?.model_id).filter(Boolean)
    .map(model_id => [model_id, number])))"""


class KernelError(AssertionError):
    """Python raised in the kernel."""


class Kernel:
    """A second client of a notebook's kernel, which reads the library's state and hears every error."""

    def __init__(self, connection_file: Path) -> None:
        self._client = BlockingKernelClient(connection_file=str(connection_file))
        self._client.load_connection_file()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=PATIENCE)
        self.errors: list[str] = []

    def run(self, code: str) -> None:
        """Execute code as a cell would.

        Raises:
            KernelError: it raised.
        """
        self._request(code, {})

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression that JSON can carry.

        Raises:
            KernelError: it raised.
        """
        reply = self._request("", {"it": f"__import__('json').dumps({expression})"})["user_expressions"]["it"]
        if reply["status"] != "ok":
            raise KernelError(f"{expression}: {reply['ename']}: {reply['evalue']}")
        return json.loads(ast.literal_eval(reply["data"]["text/plain"]))

    def _request(self, code: str, expressions: dict[str, str]) -> dict[str, Any]:
        """Send one request and read on until the kernel is done with it: messages before that are then all heard."""
        request = self._client.execute(code, user_expressions=expressions, store_history=False, allow_stdin=False)
        while True:
            message = self._client.get_iopub_msg(timeout=RUN_SECONDS)
            ours, content = message["parent_header"].get("msg_id") == request, message["content"]
            if message["msg_type"] == "error":
                text = f"{content['ename']}: {content['evalue']}"
                if ours:
                    raise KernelError(text)
                self.errors.append(text)
            elif ours and message["msg_type"] == "status" and content["execution_state"] == "idle":
                break
        while True:
            reply = self._client.get_shell_msg(timeout=PATIENCE)
            if reply["parent_header"].get("msg_id") == request:
                break
        aborted = reply["content"]["status"] == "aborted"  # a cell failed while this request stood behind it
        return self._request(code, expressions) if aborted else reply["content"]

    def close(self) -> None:
        """Leave; the kernel goes on."""
        self._client.stop_channels()


@dataclass
class Notebook:
    """A notebook open in JupyterLab, and its kernel."""

    name: str
    watch: Watch
    page: Page
    kernel: Kernel
    run_errors: list[str] = field(default_factory=list)
    styles: list[ElementHandle] = field(default_factory=list)
    _shown_by: dict[str, int] = field(default_factory=dict)

    def add_style(self, content: str) -> ElementHandle:
        """Add rules to the page's own until the notebook is closed, or they are removed."""
        self.styles.append(self.page.add_style_tag(content=content))
        return self.styles[-1]

    def code_cells(self) -> list[dict[str, Any]]:
        """Return JupyterLab's model of every code cell."""
        return self.page.evaluate(CODE_CELLS)

    def cells(self) -> list[tuple[str, str]]:
        """Return type and source of every cell: what a stray key changes."""
        return [tuple(cell) for cell in self.page.evaluate(CELLS)]

    def run_all(self) -> None:
        """Choose "Run All Cells" and wait until every cell is done, or one has failed."""
        self.page.evaluate(FORGET_RUNS)
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

        def done() -> bool:
            self.page.wait_for_timeout(200)  # lets the browser's own messages in
            cells = self.code_cells()
            failed = any(cell["executed"] and cell["errors"] for cell in cells)
            return failed or all(cell["executed"] or cell["empty"] for cell in cells)

        def pending() -> str:
            return f"{self.name}: cells {[i for i, cell in enumerate(self.code_cells()) if not cell['executed']]} hang"

        until(done, pending, RUN_SECONDS)
        self.kernel.evaluate("0")  # an error of the last cell is heard now
        self.run_errors = [error for cell in self.code_cells() for error in cell["errors"]]

    def shown_by(self) -> dict[str, int]:
        """Return by the id of each widget that is shown the number of its code cell."""
        self._shown_by = self.page.evaluate(SHOWN_BY)
        return self._shown_by

    def output(self, model_id: str) -> Locator:
        """Return the output area of the cell that shows a widget.

        Raises:
            AssertionError: no cell shows it.
        """
        known = self._shown_by if model_id in self._shown_by else self.shown_by()
        assert model_id in known, f"{self.name}: no cell shows widget {model_id}"
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(known[model_id]).locator(".jp-Cell-outputArea")


class Lab:
    """A JupyterLab of the tests' own: own folder, settings, port and token, so that a user's do not matter.

    Args:
        folder: for everything that it keeps.
        settings: defaults other than JupyterLab's and the book's.
        environment: variables for the server and its kernels, beside those of the tests.
        startup: what every kernel runs first.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any] = SETTINGS,
        environment: Mapping[str, str] = MappingProxyType({}),
        startup: str = "",
    ) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self._runtime = folder / "runtime"
        overrides = folder / "config" / "labconfig" / "default_setting_overrides.json"
        overrides.parent.mkdir(parents=True)
        overrides.write_text(json.dumps(settings))
        first = folder / "ipython" / "profile_default" / "startup" / "first.py"
        first.parent.mkdir(parents=True)
        first.write_text(startup)
        own = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--ServerApp.root_dir={self.root}",
        ]
        command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
        command += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
        bootstrap.copy_files(folder / "prefix")  # the extension as this checkout holds it
        share = folder / "prefix" / "share" / "jupyter"
        own["JUPYTER_PATH"] = str(share.relative_to(folder))
        command += [f"--LabApp.app_settings_dir={share / 'lab' / 'settings'}"]
        self._log = folder / "server.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ
                | {name: str(folder / path) for name, path in own.items()}
                | {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_TOKEN": "of-the-tests"}
                | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            until(self._is_up, lambda: f"JupyterLab does not start:\n{self._log.read_text()[-3000:]}")
        except BaseException:
            self.stop()
            raise
        (self._server,) = list_running_servers(str(self._runtime))

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"JupyterLab ended at once:\n{self._log.read_text()[-3000:]}")
        return self._runtime.is_dir() and any(list_running_servers(str(self._runtime)))

    def add_folder(self, source: Path) -> None:
        """Copy a folder of chapters, outputs removed: what a test sees, this run has made."""
        target = self.root / source.name
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for path in target.glob("*.ipynb"):
            self.write(path, nbformat.read(path, as_version=4))

    def write(self, path: Path, notebook: nbformat.NotebookNode) -> None:
        """Store a notebook without its outputs."""
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, self.root / path)

    def open(self, browser: Browser, path: str) -> Notebook:
        """Open a notebook, given relative to the root, in a window of its own, and wait for its kernel."""
        return self.open_in(self.window(browser), path)

    def window(self, browser: Browser) -> Watch:
        """Open an empty window."""
        return Watch(browser, viewport={"width": 1280, "height": 1000})

    def open_in(self, watch: Watch, path: str) -> Notebook:
        """Open a notebook in a window, in the JupyterLab that is there already if one is; it begins without problems.

        No other notebook may be open in it. Loading JupyterLab anew would take seconds of all cores.
        """
        watch.problems.clear()
        if watch.context.pages:
            (page,) = watch.context.pages
            page.evaluate(OPEN, path)
        else:
            page = watch.new_page()
            page.goto(f"{self._server['url']}lab/tree/{path}?reset&token={self._server['token']}")
        page.wait_for_function(IS_READY, arg=path)
        kernel_id = page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.id")
        return Notebook(Path(path).stem, watch, page, Kernel(self._runtime / f"kernel-{kernel_id}.json"))

    def close_in_window(self, notebook: Notebook) -> None:
        """Close a notebook and stop its kernel; its window stays, and JupyterLab in it."""
        notebook.kernel.close()
        notebook.page.evaluate(CLOSE, notebook.styles)

    def close(self, notebook: Notebook) -> None:
        """Close a notebook, stop its kernel, and close its window."""
        self.close_in_window(notebook)
        notebook.watch.context.close()

    def stop(self) -> None:
        """Stop the server, which stops its kernels; kernels also end when a server has to be killed."""
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:  # it waits for a kernel whose start was cut short by a failed test
            self._process.kill()
            self._process.wait()
