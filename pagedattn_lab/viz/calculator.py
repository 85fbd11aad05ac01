"""The calculator of chapter 10: choose a model, a GPU and a load, and see what fits.

A lesson whose pages without a kernel have no stored pictures, but the numbers that its pictures are made of: see
``calculator.js``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets

from pagedattn_lab.budget import Budget, BudgetError, Options
from pagedattn_lab.budget.compute import compute, model_max_len
from pagedattn_lab.budget.lengths import decode_in_flight, held_blocks, kept_by
from pagedattn_lab.budget.memory import capability_without_fp8
from pagedattn_lab.viz import Picture
from pagedattn_lab.viz.concurrency import CURVE_HEIGHT, LENGTHS, Point, draw_concurrency
from pagedattn_lab.viz.fit import Facts, layout_of, most_blocks, tell, times, work_out
from pagedattn_lab.viz.grid import offer, pack, positions
from pagedattn_lab.viz.lesson import Lesson
from pagedattn_lab.viz.vram import BAR_HEIGHT, describe_memory, draw_memory, memory_of, picture

CONTROLS = {
    "model": "model",
    "gpu": "GPU",
    "max_model_len": "max_model_len",
    "kv_cache_dtype": "kv_cache_dtype",
    "block_size": "block_size",
    "tokens": "tokens of a request",
    "users": "requests",
}
"""What each control is called, by the name of the value that it sets."""


MODELS: Mapping[str, Mapping[str, Any]] = {
    "Llama-3.1-8B": {"model": "meta-llama/Llama-3.1-8B"},
    "Llama-3.1-8B, weights fp8": {"model": "meta-llama/Llama-3.1-8B", "quantization": "fp8"},
    "Llama-3.1-8B, weights 4 bit": {"model": "meta-llama/Llama-3.1-8B", "quantization": "awq"},
    "Qwen3-0.6B": {"model": "Qwen/Qwen3-0.6B"},
    "Qwen3-4B": {"model": "Qwen/Qwen3-4B"},
    "gemma-3-12b": {"model": "google/gemma-3-12b-it"},
    "gpt-oss-20b": {"model": "openai/gpt-oss-20b"},
    "DeepSeek-V2-Lite": {"model": "deepseek-ai/DeepSeek-V2-Lite"},
    "Qwen3.5-27B, weights fp8": {"model": "Qwen/Qwen3.5-27B", "quantization": "fp8"},
    "SmolLM2-135M": {"model": "HuggingFaceTB/SmolLM2-135M"},
}
"""Models of each kind of cache, by what they are called: the :class:`~pagedattn_lab.budget.options.Options` of each."""

CARDS = ("RTX 4060", "RTX 3060", "T4", "RTX 4060 Ti 16GB", "RTX 4090", "RTX 5090", "L40S", "H100-80GB", "H200")
"""GPUs from 8 to 141 GiB."""

CONTEXTS = tuple(2**power for power in range(9, 18))
BLOCK_SIZES = (16, 32, 64, 128)
TOKENS = (100, 200, 500, 1000, 2010, 5000, 10_010, 20_010, 50_010, 100_010)
"""No multiples of a block's size: the last block of a real request is seldom full."""
USERS = (1, 2, 5, 10, 20, 30, 50, 100, 200)


def gather(
    models: Mapping[str, Mapping[str, Any]] = MODELS,
    gpus: Sequence[str] = CARDS,
    kv_cache_dtypes: Sequence[str] = ("auto", "fp8"),
    gpu_memory_utilization: float | None = None,
) -> Facts:
    """Gather what a calculator needs to know of models and GPUs.

    Args:
        models: by what they are called, what :class:`~pagedattn_lab.budget.options.Options` takes of them.
        gpus: names of :data:`pagedattn_lab.hardware.GPUS`, or sizes.
        kv_cache_dtypes: in which keys and values may be stored.
        gpu_memory_utilization: the share of a GPU that the server may use; vLLM's own unless said.

    Raises:
        BudgetError: a model, GPU or setting is unknown.
        UnknownLayoutError: vLLM lays a model's layers out in a way that is not known here.
    """
    if not (models and gpus and kv_cache_dtypes):
        raise BudgetError("a calculator needs at least one model, one GPU and one dtype to choose from")

    def budget(name: str, gpu: str = gpus[0], **more: Any) -> Budget:
        # A context that any model takes: what is read off these budgets is the same for every one.
        common = {"max_model_len": CONTEXTS[0], "gpu_memory_utilization": gpu_memory_utilization}
        return compute(Options(gpu=gpu, **common | dict(models[name]) | more))

    def layouts(name: str, of_gpus: list[list[Any]]) -> dict[str, Any]:
        """Those of the first of the GPUs that lay the model out alike, and which each GPU has."""
        firsts = [at for at, each in enumerate(of_gpus) if of_gpus.index(each) == at]
        return {
            "layouts": [
                [
                    [_layout(budget(name, gpus[at], kv_cache_dtype=dtype, block_size=size)) for size in BLOCK_SIZES]
                    for dtype in kv_cache_dtypes
                ]
                for at in firsts
            ],
            "layout_of": [firsts.index(of_gpus.index(each)) for each in of_gpus],
        }

    served = {name: [budget(name, gpu=gpu) for gpu in gpus] for name in models}
    cards = next(iter(served.values()))
    return {
        "utilization": f"{cards[0].gpu_memory_utilization:g}",
        "models": [
            {
                "name": name,
                "max_model_len": model_max_len(budgets[0].config, budgets[0].version),
                "memory": [_memory(each) for each in budgets],
                **layouts(name, [_layout(each) for each in budgets]),
            }
            for name, budgets in served.items()
        ],
        "gpus": [_gpu(gpu, card) for gpu, card in zip(gpus, cards, strict=True)],
        "contexts": CONTEXTS, "dtypes": kv_cache_dtypes, "block_sizes": BLOCK_SIZES, "tokens": TOKENS, "users": USERS,
    }  # fmt: skip


def _gpu(name: str, budget: Budget) -> dict[str, Any]:
    memory = memory_of(budget)
    in_flight = budget.limits.max_in_flight_tokens
    return {
        "name": name, "total": memory.total, "limit": memory.limit, "in_flight": in_flight,
        "decode_in_flight": decode_in_flight(budget), "capability_without_fp8": capability_without_fp8(budget.gpu),
    }  # fmt: skip


def _memory(budget: Budget) -> list[int]:
    """Weights; other memory at least, likely and at most; room for the cache at least and at most."""
    memory = memory_of(budget)
    return [memory.weights, *memory.other, budget.available.low, budget.available.high]


def _layout(budget: Budget) -> list[Any]:
    """Tokens and bytes of a block, and the groups of layers."""
    return [budget.block_size, budget.bytes_per_block, [kept_by(each.spec, budget.limits) for each in budget.groups]]


def draw(facts: Facts, at: Sequence[int]) -> Picture:
    """Draw the bar of memory and the curve of requests at once, for one position of the controls."""
    answer = work_out(facts, at)
    _, _, groups = layout_of(facts, at)
    gpu, context, blocks = facts["gpus"][at[1]], answer.context, answer.num_blocks[0]

    def most_of(length: int) -> int:
        return sum(most_blocks(group, length, gpu["in_flight"]) for group in groups)

    def held_of(length: int) -> int:
        return sum(held_blocks(group, length, gpu["decode_in_flight"])[0] for group in groups)

    most = [(blocks, most_of(length)) for length in LENGTHS]
    held = [(answer.usable, held_of(length)) for length in LENGTHS]
    per_request, fitting = answer.blocks_per_request, answer.usable // answer.held
    worst = Point(context, (blocks, per_request), f"{times(blocks, per_request)}x at {context:,}")
    typical = Point(answer.tokens, (answer.usable, answer.held), f"{fitting:,} fit at {answer.tokens:,}")
    wanted = Point(answer.tokens, (answer.users, 1), f"{answer.users:,} wanted")
    curve = "".join(draw_concurrency(most, held, worst, typical, wanted))
    body = f'{"".join(draw_memory(answer.memory))}<g transform="translate(0,{BAR_HEIGHT + 8})">{curve}</g>'
    sentence = tell(answer)
    listed = [f"{length:,}: {times(*ratio)}" for length, ratio in zip(LENGTHS[::2], most[::2], strict=True)]
    alt = f"{describe_memory(answer.memory)} {sentence} Requests at once by the tokens of each: {', '.join(listed)}."
    return picture(body, BAR_HEIGHT + 8 + CURVE_HEIGHT, alt, sentence)


class Calculator(Lesson):
    """Controls for a model, a GPU and a load; below them the memory, and how many requests fit at once.

    Args:
        facts: numbers of models and GPUs, from :func:`gather`.
        values: where controls stand at first, by their names in :data:`CONTROLS`; the others at their first option.

    Raises:
        KeyError: no control of that name.
        traitlets.TraitError: a value that is none of a control's options.
    """

    def __init__(self, facts: Facts, **values: Any) -> None:
        self._facts = facts
        options: dict[str, list[tuple[str, Any]]] = {
            "model": [(model["name"], model["name"]) for model in facts["models"]],
            "gpu": [(gpu["name"], gpu["name"]) for gpu in facts["gpus"]],
            "max_model_len": _numbers(facts["contexts"]),
            "kv_cache_dtype": [(dtype, dtype) for dtype in facts["dtypes"]],
            "block_size": _numbers(facts["block_sizes"]),
            "tokens": _numbers(facts["tokens"]),
            "users": _numbers(facts["users"]),
        }
        for name in values:
            if name not in options:
                raise KeyError(f"the calculator has no control {name!r}: it has {', '.join(options)}")
        self._values = {name: [value for _, value in pairs] for name, pairs in options.items()}
        sliders = {"max_model_len", "tokens", "users"}
        controls = {
            name: (widgets.SelectionSlider if name in sliders else widgets.Dropdown)(
                options=pairs, value=values.get(name, pairs[0][1]), description=CONTROLS[name]
            )
            for name, pairs in options.items()
        }
        super().__init__(self._show, "What fits into a GPU's memory", **controls)

    def _show(self, **values: Any) -> Picture:
        return draw(self._facts, [self._values[name].index(value) for name, value in values.items()])

    def _check_choices(self) -> None:
        """A page without a kernel draws any combination itself."""

    def _make_grid(self) -> dict[str, Any]:
        text = json.dumps(self._facts, sort_keys=True)
        return {
            "controls": [offer(control, positions(control)) for control in self._controls.values()],
            "recordings": pack({"calculator": self._facts}),
            "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        }


def _numbers(values: Sequence[int]) -> list[tuple[str, int]]:
    return [(f"{value:,}", value) for value in values]
