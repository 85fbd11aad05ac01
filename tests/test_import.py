"""What an import costs, and which way imports point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pagedattn_lab

PACKAGE = Path(pagedattn_lab.__file__).parent
HEAVY = {"torch", "numpy", "triton", "transformers", "matplotlib", "ipywidgets", "anywidget"}
PURE = (
    "kv_shape", "block_pool", "block_table", "baselines.strip", "baselines.contiguous", "baselines.paged", "workloads",
    "hardware", "studies.simulate", "studies.memory_shares", "prefix_cache", "radix_tree", "kv_manager",
    "studies.block_savings", "workloads.conversations", "studies.hit_rates", "bench.allocator", "bench.prefix",
    "recorder.frame", "recorder",
)  # fmt: skip


@pytest.mark.parametrize("module", ["pagedattn_lab", *(f"pagedattn_lab.{name}" for name in PURE)])
def test_import_is_light(module: str) -> None:
    """Catches torch or another heavy package behind a module that must also run in a browser's Python."""
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_import_time() -> None:
    """Catches work done at import: the interpreter's own account stays under 0.3 s on any machine we know."""
    command = [sys.executable, "-X", "importtime", "-c", "import pagedattn_lab"]
    times = []
    for _ in range(3):
        lines = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()
        times.append(int(next(line for line in lines if line.endswith("| pagedattn_lab")).split("|")[1]))
    assert min(times) < 300_000


ORDER = [
    "kv_shape", "block_pool", "block_table", "prefix_cache", "radix_tree", "kv_manager", "kv_cache", "hardware",
    "attention.metadata", "attention.launch", "attention.reference", "attention.triton_decode", "attention",
    "models.quiet", "models.default", "models.prompts", "models.detokenize", "models.support", "models.implementation",
    "models", "models.__main__", "model_runner",
    "baselines", "baselines.strip", "baselines.contiguous", "baselines.paged", "workloads", "workloads.conversations",
    "studies", "studies.simulate", "studies.memory_shares", "studies.block_savings", "studies.hit_rates",
    "engine", "engine.beam_search",
    "bench", "bench.timing", "bench.allocator", "bench.prefix",
    "recorder.frame", "recorder", "viz", "viz.sentence", "viz.figures", "viz.shares", "viz.board", "viz.strips",
    "viz.memory", "viz.player", "viz.lesson", "viz.book", "exercises", "doctor", "cli.arguments", "cli.output",
    "cli.doctor", "cli.generate", "cli.waste", "cli.hits", "cli.bench", "cli", "__main__",
]  # fmt: skip


def test_imports_point_one_way() -> None:
    """Catches a lower module that reaches for a higher one, even late."""
    for index, name in enumerate(ORDER):
        path = PACKAGE.joinpath(*name.split("."))
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pagedattn_lab"):
                inner = node.module.removeprefix("pagedattn_lab").lstrip(".")
                names = [f"{inner}.{alias.name}".lstrip(".") for alias in node.names]
                modules = [target for target in names if target in ORDER]
                for target in modules or ([inner] if inner else []):
                    assert ORDER.index(target) < index, f"{name} imports {target}, which stands above it"


def test_every_module_is_in_the_order() -> None:
    """Catches a new module that the test above does not know."""
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }
    assert {name for name in found if not name.startswith("exercises.")} - {"__init__"} == set(ORDER)
