"""Execute chapters and store them in one normal form, so that executing again changes nothing.

python tools/notebooks.py [CHAPTER ...]     execute (all by default) and normalise in place
python tools/notebooks.py --check           say what is unexecuted, failed or not in normal form
python tools/notebooks.py --refresh-timings also replace the stored outputs of timing cells, and the times in the book
"""

import argparse
import asyncio
import copy
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"
EXECUTION = ROOT / "book" / "execution.json"
TIMED_WITH = ("numpy", "torch", "transformers", "triton")
TIMING_TAG = "nbval-ignore-output"
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
VOLATILE_METADATA = ("ExecuteTime", "collapsed", "execution", "scrolled", "trusted")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 300
AT_ONCE = 2


class ChapterError(Exception):
    """A chapter that cannot be stored: which one, which cell, and why."""


def read(path: Path) -> NotebookNode:
    """Read a notebook without converting it."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells that a kernel executes; empty ones are not."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def has_error(cell: NotebookNode) -> bool:
    """Tell whether a code cell's outputs hold an exception."""
    return any(output.output_type == "error" for output in cell.outputs)


def merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring chunks of one stream: where a kernel splits them is chance."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def normalise_outputs(cell: NotebookNode, count: int) -> None:
    """Give one executed cell the execution count ``count`` and outputs without random ids."""
    cell.execution_count = count
    cell.outputs = merge_streams(cell.outputs)
    for index, output in enumerate(cell.outputs):
        if output.output_type == "execute_result":
            output.execution_count = count
        view = output.get("data", {}).get(WIDGET_VIEW)
        if view:
            view["model_id"] = uuid.uuid5(uuid.NAMESPACE_OID, f"{cell.id}/{index}").hex


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Bring a notebook into the form in which chapters are stored, in place; unexecuted cells stay unexecuted."""
    notebook.metadata["kernelspec"] = dict(KERNELSPEC)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for key in VOLATILE_METADATA:
            cell.metadata.pop(key, None)
    for count, cell in enumerate(code_cells(notebook), start=1):
        if cell.execution_count is not None:
            normalise_outputs(cell, count)
    return notebook


def to_text(notebook: NotebookNode) -> str:
    """Return the file's text: keys sorted, indented by 1, one newline at the end."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def problems(path: Path) -> list[str]:
    """Say what keeps a stored chapter from being finished; an empty list is good."""
    text = path.read_text(encoding="utf-8")
    notebook = read(path)
    found = [f"cell {cell.id} has not been executed" for cell in code_cells(notebook) if cell.execution_count is None]
    found += [f"cell {cell.id} holds an error" for cell in code_cells(notebook) if has_error(cell)]
    if to_text(normalise(notebook)) != text:
        found.append("not in normal form: run make notebooks")
    return found


def committed_sources(path: Path) -> dict[str, str]:
    """Return the sources of a chapter's cells by id as git last stored them; empty without git or before a commit."""
    git = shutil.which("git")
    if git is None:
        return {}
    show = subprocess.run([git, "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True, check=False)
    if show.returncode:
        return {}
    notebook = nbformat.reads(show.stdout.decode(), as_version=nbformat.NO_CONVERT)
    return {cell.id: cell.source for cell in notebook.cells}


def keep_timings(executed: NotebookNode, stored: NotebookNode, committed: dict[str, str]) -> None:
    """Put the stored outputs of timing cells back if they belong to the cell's source.

    Outputs in the file may be older than an edit of their cell. They count as the source's own
    if that source has not changed since the last commit.
    """
    before = {cell.id: cell for cell in code_cells(stored)}
    for cell in code_cells(executed):
        old = before[cell.id]
        unchanged = committed.get(cell.id) == cell.source
        if TIMING_TAG in cell.metadata.get("tags", []) and unchanged and old.outputs and not has_error(old):
            cell.outputs = old.outputs


async def execute(path: Path, refresh_timings: bool) -> float:
    """Execute one chapter from its own folder and store it; a failure leaves the file as it was. Return the seconds."""
    notebook = read(path)
    stored = copy.deepcopy(notebook)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        kernel_name=KERNELSPEC["name"],
        timeout=CELL_SECONDS,
        record_timing=False,
        store_widget_state=False,
        force_raise_errors=True,
        extra_arguments=["--log-level=ERROR"],  # else each kernel warns about plain TCP on this machine
        resources={"metadata": {"path": str(path.parent)}},
    )
    begin = time.perf_counter()
    try:
        await client.async_execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        cells = code_cells(notebook)
        begun = [cell for cell in cells if cell.execution_count is not None] or cells
        reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
        where = f"cell {notebook.cells.index(begun[-1]) + 1} (id {begun[-1].id})"
        raise ChapterError(f"{path.name}, {where}: {reason.strip().splitlines()[0]}") from error
    seconds = time.perf_counter() - begin
    if not refresh_timings:
        keep_timings(notebook, stored, committed_sources(path))
    draft = path.with_suffix(".tmp")
    draft.write_text(to_text(normalise(notebook)), encoding="utf-8")
    draft.replace(path)
    print(f"{path.name}: executed", flush=True)
    return seconds


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those packages that are there; Triton is not everywhere."""
    versions = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def record_times(path: Path, seconds: dict[str, float], chapters: list[str]) -> None:
    """Write how long chapters took, and with what, into the book's file; keep the records of other ``chapters``."""
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    here = {"cores": os.cpu_count(), "python": platform.python_version(), "packages": installed(TIMED_WITH)}
    records |= {name: {"seconds": round(spent, 1), **here} for name, spent in seconds.items()}
    kept = {name: records[name] for name in sorted(records) if name in chapters}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


async def execute_all(paths: list[Path], refresh_timings: bool) -> tuple[dict[str, float], list[str]]:
    """Execute chapters, a few at a time, to the end; return their seconds, and a line for each that went wrong."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(path: Path) -> float:
        async with gate:
            return await execute(path, refresh_timings)

    results = await asyncio.gather(*map(one, paths), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, ChapterError):
            raise result
    seconds = {path.stem: spent for path, spent in zip(paths, results, strict=True) if isinstance(spent, float)}
    return seconds, [str(result) for result in results if isinstance(result, ChapterError)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0 if every chapter is as it should be."""
    parser = argparse.ArgumentParser(description="Execute chapters and store them in normal form.")
    parser.add_argument("chapters", nargs="*", type=Path, help="notebook files; every chapter if none is named")
    parser.add_argument("--check", action="store_true", help="execute nothing, report what is not finished")
    parser.add_argument("--refresh-timings", action="store_true", help="renew timing cells and the book's times")
    options = parser.parse_args(arguments)
    paths = [path.resolve() for path in options.chapters] or sorted(CHAPTERS.glob("*.ipynb"))
    if options.check:
        failures = [f"{path.name}: {problem}" for path in paths for problem in problems(path)]
    else:
        os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # as in `make test`, so that results agree
        seconds, failures = asyncio.run(execute_all(paths, options.refresh_timings))
        if options.refresh_timings:
            record_times(EXECUTION, seconds, [path.stem for path in CHAPTERS.glob("*.ipynb")])
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
