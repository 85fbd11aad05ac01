"""Where a decode step goes through transformers' modules, and through the fused loop (chapter 09)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import TorchDispatchMode

from pagedattn_lab.bench.timing import no_collection

if TYPE_CHECKING:
    from pagedattn_lab.engine.llm_engine import LLMEngine

PRODUCTS = ("linear", "mm", "addmm", "_linear_pointwise")
"""Operations of torch that are the product of a linear layer."""


class _Watch(TorchDispatchMode):
    """Counts what torch is asked to do, and times the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.num_products, self.num_others, self.seconds = 0, 0, 0.0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin = time.perf_counter()
        result = operation(*args, **(kwargs or {}))
        if operation.overloadpacket.__name__ in PRODUCTS:
            self.num_products += 1
            self.seconds += time.perf_counter() - begin
        else:
            self.num_others += 1
        return result


def where_a_step_goes(engine: LLMEngine, num_seqs: int = 8, seq_len: int = 60, repetitions: int = 5) -> dict[str, Any]:
    """Measure decode steps of an engine, from the scheduler to the chosen tokens.

    Args:
        engine: without requests.
        num_seqs, seq_len: how many sequences decode, and how many tokens each has before it does.
        repetitions: how many steps are timed.

    Returns:
        ``num_products`` and ``num_others``: how many matrix products of linear layers, and how many other operations
        torch is asked for in a step; ``step_ms``: the fastest of the steps; ``products_ms``: of the products, in the
        step in which they were fastest.

    Raises:
        ValueError: fewer than 1 repetition, an engine that has requests, or more tokens of prompts than its budget for
            a step.
    """
    from pagedattn_lab.engine.sampling_params import SamplingParams

    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}: give at least 1")
    if engine.has_unfinished_requests():
        raise ValueError("the engine has requests already: let them end first")
    budget = engine.core.scheduler.max_num_batched_tokens
    if budget is not None and num_seqs * seq_len > budget:
        raise ValueError(f"{num_seqs} prompts of {seq_len} tokens are more than a step's {budget}: give fewer")
    params = SamplingParams(temperature=0.0, max_tokens=2 * repetitions + 2, ignore_eos=True)
    names = [f"where {number}" for number in range(num_seqs)]
    for number, name in enumerate(names):
        engine.add_request(name, [1000 + number] * seq_len, params)
    steps, watches = [], []
    try:
        engine.step()  # the prompts
        with no_collection():
            for _ in range(repetitions):
                begin = time.perf_counter()
                engine.step()
                steps.append(time.perf_counter() - begin)
                with _Watch() as watch:  # by turns, for counting makes a step slower
                    engine.step()
                watches.append(watch)
    finally:
        engine.abort(names)
    return {
        "num_products": watches[0].num_products,
        "num_others": watches[0].num_others,
        "step_ms": 1000 * min(steps),
        "products_ms": 1000 * min(watch.seconds for watch in watches),
    }
