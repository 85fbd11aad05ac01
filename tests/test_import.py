"""What an import costs, and which way imports point."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pagedattn_lab

PACKAGE = Path(pagedattn_lab.__file__).parent
TESTS = Path(__file__).resolve().parent
HEAVY = {"torch", "numpy", "triton", "transformers", "matplotlib", "ipywidgets", "anywidget", "distributed"}
PURE = (
    "arithmetic", "kv_config", "kv_shape", "block_pool", "block_table", "request", "prefix_cache", "radix_tree",
    "kv_cache_specs", "kv_cache_pages", "kv_cache_groups", "kv_layers",
    "kv_events", "swap_space", "host_tier", "kv_manager_base", "kv_manager", "kv_group_managers", "kv_groups",
    "engine.scheduler_output", "engine.scheduler", "hardware", "occupancy",
    "assembly", "huge_pages", "kernels", "compile_report",
    "baselines.accounting", "baselines.strip", "baselines.contiguous", "baselines.paged", "baselines.kv_manager",
    "workloads", "workloads.conversations", "studies.paper", "studies.report", "studies.simulate",
    "studies.memory_shares", "studies.block_savings", "studies.hit_rates", "studies.scheduling",
    "studies.block_size", "studies.fleet", "studies.fleet.sweep", "studies.fleet.cluster",
    "cli.fleet",
    "bench.allocator", "bench.slots", "bench.prefix", "bench.tier", "bench.serving", "bench.vllm_worker",
    "bench.engine", "vllm_check.workload", "vllm_check.check",
    "recorder.frame", "recorder.sentences", "recorder.operations", "recorder",
    "engine.sampling_params", "engine.outputs", "engine.metrics", "engine.protocol", "engine.answers",
    "vllm_log", "vllm_log.check",
    "budget",  # which imports all its modules
)  # fmt: skip


@pytest.mark.parametrize("module", ["pagedattn_lab", *(f"pagedattn_lab.{name}" for name in PURE)])
def test_import_is_light(module: str) -> None:
    """Catches torch or another heavy package behind a module that must also run in a browser's Python."""
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_import_time() -> None:
    """Catches work done at import, of the package or of an export: well under 0.3 s on any machine we know, by the
    interpreter's own account, with everything that is imported on the way.
    """
    times = []
    for _ in range(3):
        command = [sys.executable, "-X", "importtime", "-c", "from pagedattn_lab import BlockPool"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
        rows = [line.removeprefix("import time:").split("|") for line in lines]
        cumulative = {name.strip(): int(total) for _, total, name in rows[1:]}
        times.append(cumulative["pagedattn_lab"] + cumulative["pagedattn_lab.block_pool"])
    assert min(times) < 300_000


SPINE = [
    "arithmetic", "kv_config", "kv_shape", "block_pool", "block_table", "request", "prefix_cache", "radix_tree",
    "kv_cache_specs", "kv_cache_pages", "kv_cache_groups", "kv_layers", "budget.errors", "budget.changes",
    "budget.versions",
    "kv_events", "swap_space", "host_tier", "kv_manager_base", "kv_manager", "kv_group_managers", "kv_groups",
    "engine.scheduler_output", "engine.scheduler", "hardware", "occupancy",
    "assembly",
    "attention.tolerance", "attention.variant", "attention.checks", "attention.reference",
    "attention.shared_prefix", "attention.cascade", "attention.metadata",
    "attention.launch", "attention.quantize", "attention.triton_cache", "attention.triton_decode",
    "attention.triton_tile", "attention.triton_call", "attention.triton_grouped", "attention.triton_split",
    "attention.triton_prefill", "attention.cpu_numbers", "attention.cpu_kernel", "attention.cpu",
    "attention.backends", "attention",
    "attention.latent", "huge_pages", "kv_cache", "kernels", "compile_report",
    "models.quiet", "models.default", "models.prompts", "models.detokenize", "models.support", "models.implementation",
    "models.latents", "models.fused_kernels", "models.fused_decoder", "models", "models.__main__", "input_batch",
    "forward_context", "model_runner", "engine.sampling_params", "engine.outputs", "engine.sampler", "engine.stop",
    "engine.output_processor", "engine.capacity", "engine.core", "engine.sampling", "engine.beam_search",
    "engine.metrics", "engine.input_processor",
    "engine.progress", "engine.prometheus", "engine.llm_engine", "engine.async_llm", "engine.protocol",
    "engine.answers", "engine.serving", "engine.server", "engine",
    "budget.estimate", "budget.dtypes", "budget.state_layers", "budget.model_types", "budget.attention_layers",
    "budget.models", "budget.mlp_widths", "budget.layers", "budget.quantization", "budget.parameters",
    "budget.weights", "budget.options", "budget.serve_command", "budget.result", "budget.memory",
    "budget.attention_backends", "budget.compute", "budget.lengths", "budget.advice", "budget.plan", "budget",
]  # fmt: skip
APPARATUS = [
    "baselines", "baselines.accounting", "baselines.strip", "baselines.contiguous", "baselines.paged",
    "baselines.kv_manager", "studies", "studies.paper",
    "workloads.lengths", "workloads.arrivals", "workloads.request_logs", "workloads", "workloads.conversations",
    "studies.report", "studies.simulate", "studies.memory_shares",
    "studies.block_savings", "studies.hit_rates", "studies.scheduling",
    "studies.block_size",
    "studies.fleet.requests", "studies.fleet.cache", "studies.fleet.replicas", "studies.fleet.collector",
    "studies.fleet.events", "studies.fleet.report",
    "studies.fleet.servers", "studies.fleet.routers", "studies.fleet.prefix_routers", "studies.fleet.simulation",
    "studies.fleet", "studies.fleet.sweep", "studies.fleet.cluster",
    "bench", "bench.timing", "bench.load", "bench.allocator", "bench.slots", "bench.prefix",
    "bench.attention", "bench.attention_gpu", "bench.step", "bench.tier",
    "bench.serving", "bench.vllm_worker", "bench.peers", "bench.engine", "bench.forward",
    "vllm_check", "vllm_check.client", "vllm_check.server", "vllm_check.workload", "vllm_check.predict",
    "vllm_check.report", "vllm_check.check",
    "recorder.frame", "recorder.sentences", "recorder.operations", "recorder",
    "viz", "viz.sentence", "viz.figures", "viz.shares",
    "viz.looks", "viz.tiles", "viz.tables", "viz.board", "viz.timeline", "viz.strips", "viz.memory", "viz.player",
    "viz.windows", "viz.fleet_replay", "viz.fleet",
    "viz.grid", "viz.lesson", "viz.vram", "viz.concurrency", "viz.fit", "viz.calculator", "viz.book",
    "exercises.guesses", "exercises.limits", "exercises.values", "exercises.raised", "exercises.solution",
    "exercises.verdict", "exercises.marks",
    "exercises.boards", "exercises.cases", "exercises.printed", "exercises.record", "exercises.grading",
    "exercises.touched", "exercises.problems", "exercises.kernels", "exercises.catalogue", "exercises",
    "vllm_log.words", "vllm_log.start_up_log", "vllm_log.settings", "vllm_log.memory", "vllm_log.trouble",
    "vllm_log.meanings", "vllm_log.parse", "vllm_log", "vllm_log.check",
    "doctor", "cli.output", "cli.terminal", "cli.arguments", "cli.parser",
    "cli.doctor", "cli.generate", "cli.waste", "cli.hits", "cli.fleet", "cli.budget_log", "cli.budget", "cli.bench",
    "cli.compile", "cli.exercises", "cli.serve", "cli.vllm_log", "cli.vllm_check", "cli", "__main__",
]  # fmt: skip
ORDER = SPINE + APPARATUS
"""Every module behind those that it may import: what a server is, then what the book measures and shows it with."""


EXCEPTIONS = {("engine.llm_engine", "baselines.kv_manager")}
"""A server can be asked to manage its memory as others did before paging. It knows one name of theirs, and imports it
late.
"""


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
                    if (name, target) in EXCEPTIONS:
                        continue
                    assert ORDER.index(target) < index, f"{name} imports {target}, which stands above it"


def test_every_module_is_in_the_order() -> None:
    """Catches a new module that the test above does not know."""
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }
    assert {name for name in found if not name.startswith("exercises.ch")} - {"__init__"} == set(ORDER)


def test_the_spine_stands_by_itself() -> None:
    """Catches a part of the server that needs what the book measures or draws it with."""
    for name in SPINE:
        path = PACKAGE.joinpath(*name.split("."))
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        for _, target in (pair for pair in EXCEPTIONS if pair[0] == name):
            assert source.count(f"pagedattn_lab.{target} ") == 1
            source = source.replace(f"pagedattn_lab.{target} ", "")
        for package in sorted({name.split(".")[0] for name in APPARATUS} - {"__main__"}):
            assert f"pagedattn_lab.{package}" not in source, f"{name} names {package}"


def test_no_file_imports_a_test_file() -> None:
    """Catches a test file that leans on another: what several share stands in tests/helpers, or in a module beside the
    browser's tests.
    """
    files = sorted(TESTS.rglob("*.py"))
    assert Path(__file__).resolve() in files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{name}" for name in names]
                for name in names:
                    assert ".test_" not in f".{name}", f"{path.relative_to(TESTS)} imports {name}"


# --- the front door -------------------------------------------------------------------------------------------------


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_export_leads_somewhere() -> None:
    """Catches a name that is exported and does not exist, is another's, or is not what a type checker is told."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed.keys() == set(pagedattn_lab.__all__) and len(pagedattn_lab.__all__) > 20
    for name, module in typed.items():
        value = getattr(pagedattn_lab, name)
        assert value is getattr(importlib.import_module(module), name)
        assert value.__module__ == module and value.__name__ == name
    assert set(pagedattn_lab.__all__) <= set(dir(pagedattn_lab))
    with pytest.raises(AttributeError, match="has no attribute 'BlockPol'"):
        pagedattn_lab.BlockPol  # noqa: B018


@pytest.mark.parametrize(
    ("names", "heavy"),
    [
        ("BlockPool, BlockTable, KVCacheManager, KVShape, HashIndex, RadixTree, Recorder, Request", []),
        ("paged_attention, PagedKVCache, attention_metadata", ["torch"]),
    ],
)
def test_exports_load_no_more_than_they_need(names: str, heavy: list[str]) -> None:
    """Catches torch behind a name of the pure half, which must run in a browser's Python."""
    code = f"from pagedattn_lab import {names}\nimport sys\nprint(sorted({HEAVY - {'numpy'}!r} & set(sys.modules)))"
    assert in_a_fresh_process(code) == str(heavy)


def test_asking_what_there_is_loads_nothing() -> None:
    """Catches completion in a notebook that imports torch."""
    code = f"import pagedattn_lab, sys\ndir(pagedattn_lab)\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    assert in_a_fresh_process(code) == "[]"
