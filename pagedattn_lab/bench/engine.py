"""What paging is for, on a real model: one load served by the book's engine, by its rivals and by others (chapter 09).

All engines of a part serve the same requests on one thread, in bfloat16, by the clock on the wall. They take turns, so
that whatever else the machine does falls on all of them, and ratios are taken within a repetition.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pagedattn_lab.bench import peers
from pagedattn_lab.bench.serving import Load, Serve, Served, make_load
from pagedattn_lab.bench.timing import no_collection, summary, turns

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pagedattn_lab.engine.llm_engine import LLMEngine

MAX_MODEL_LEN = 2048
"""Tokens that a request may come to have, and that ``contiguous-max`` reserves for each."""

MAX_NUM_SEQS = 64
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Setup:
    """How a benchmark is made.

    Attributes:
        num_requests: all there from the beginning.
        most_output: tokens that an output is cut to.
        shared_prefix: tokens that all prompts of the part ``prefix`` begin with.
        kv_seqs: KV memory of the part ``policies``, in requests of :data:`MAX_MODEL_LEN` tokens.
        ample_seqs: that of the other parts: everybody fits.
        repetitions: how often every engine serves the load.
        vllm_python: an interpreter that has vLLM; without it, vLLM is left out.
        static_batch: sequences in a static batch.
        max_requests: sequences that run at once in transformers' continuous batching: on a CPU it computes attention
            of all of them against the keys of all of them, and more make it slower.
    """

    num_requests: int = 64
    most_output: int = 512
    shared_prefix: int = 512
    kv_seqs: int = 8
    ample_seqs: int = 32
    repetitions: int = 3
    vllm_python: str | os.PathLike[str] | None = None
    static_batch: int = 32
    max_requests: int = 16

    def load(self, shared_prefix: int = 0) -> Load:
        """Make the requests."""
        return make_load(self.num_requests, shared_prefix=shared_prefix, most_output=self.most_output)


QUICK = Setup(num_requests=6, most_output=6, shared_prefix=64, kv_seqs=2, ample_seqs=4, repetitions=2)
"""So small that only whether everything works can be seen."""


def serve(engine: LLMEngine, load: Load) -> Served:
    """Serve a load by the book's engine, to its end.

    Raises:
        RuntimeError: requests of somebody else run, or an output came out shorter or longer than asked for.
    """
    from pagedattn_lab.engine.sampling_params import SamplingParams

    manager, totals = engine.core.manager, engine.metrics.totals
    if not manager.reset_prefix_cache():
        raise RuntimeError("the engine still holds blocks: let its requests end first")
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    preemptions = totals.num_preempted_reqs
    start, cpu_start = time.perf_counter(), time.process_time()
    for number, (prompt, output_len) in enumerate(zip(load.prompts, load.output_lens, strict=True)):
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
        engine.add_request(str(number), prompt, params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter() - start
        for output in outputs:
            first.setdefault(output.request_id, now)
            last[output.request_id] = now
            num_tokens, asked = len(output.outputs[0].token_ids), load.output_lens[int(output.request_id)]
            if output.finished and num_tokens != asked:
                raise RuntimeError(f"request {output.request_id} ended with {num_tokens} tokens of {asked}")
    names = [str(number) for number in range(len(load.prompts))]
    return Served(
        time.perf_counter() - start,
        time.process_time() - cpu_start,
        [first[name] for name in names],
        [last[name] for name in names],
        totals.num_preempted_reqs - preemptions,
        manager.stats.hits / max(1, manager.stats.queries),
    )


def compare(
    engines: Mapping[str, Serve], load: Load, repetitions: int, on_run: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Have engines serve one load in turns, each time another one first.

    Args:
        engines: by name.
        load: what each of them serves.
        repetitions: how often.
        on_run: is called after each run.

    Returns:
        ``engines``: for each the medians of what :meth:`~pagedattn_lab.bench.serving.Served.figures` gives, with the
        quartiles of its throughput. ``ratios``: for each pair, under ``"one / other"``, the median of how many times
        more output tokens per second the one gave than the other in the same repetition, and its quartiles.
        ``cpu_ratios``: the same per second of CPU time, which others that use the machine disturb less.

    Raises:
        ValueError: fewer than 2 repetitions.
    """
    if repetitions < 2:
        raise ValueError(f"repetitions is {repetitions}: give at least 2 repetitions")
    warm_up = Load(tuple(prompt[:64] for prompt in load.prompts[:4]), (4,) * len(load.prompts[:4]))
    for run in engines.values():
        run(warm_up)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for repetition in range(repetitions):
        for name in turns(list(engines), repetition):
            with no_collection():
                rows[name].append(engines[name](load).figures(load))
            on_run()
    report: dict[str, Any] = {"engines": {}, "ratios": {}, "cpu_ratios": {}}
    for name, figures in rows.items():
        values = {
            key: [row[key] for row in figures] for key in figures[0] if all(row[key] is not None for row in figures)
        }
        medians = summary(values)
        report["engines"][name] = {key: medians.get(key) for key in figures[0]} | {
            "output_tokens_per_s_quartiles": medians["output_tokens_per_s_quartiles"]
        }
    for one, other in combinations(rows, 2):
        for ratios, clock in (("ratios", "seconds"), ("cpu_ratios", "cpu_seconds")):
            pairs = zip(rows[one], rows[other], strict=True)  # the same tokens, so throughputs are as times inverted
            report[ratios] |= summary({f"{one} / {other}": [theirs[clock] / mine[clock] for mine, theirs in pairs]})
    return report


class _Builder:
    """Makes the engines of a part; they live as long as the stack, so that one part's KV memory goes before the next.

    Attributes:
        setup, model: what they are made of.
        bytes_per_token: of keys and values.
        vllm_version: of the vLLM that was used.
    """

    def __init__(
        self, setup: Setup, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stack: ExitStack
    ) -> None:
        from pagedattn_lab.kv_shape import KVShape

        self.setup, self.model = setup, model
        self.bytes_per_token = KVShape.from_config(model.config, model.dtype).bytes_per_block(1)
        self._tokenizer, self._stack = tokenizer, stack
        self.vllm_version: str | None = None

    def ours(self, seqs: int, **options: Any) -> Serve:
        """The book's engine, with KV memory for so many requests of the longest length."""
        from pagedattn_lab.engine.llm_engine import LLMEngine

        options = {"enable_prefix_caching": False, "forward": "auto"} | options
        engine = LLMEngine(
            self.model,
            self._tokenizer,
            num_blocks=seqs * MAX_MODEL_LEN // BLOCK_SIZE + 1,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=MAX_NUM_SEQS,
            **options,
        )
        return partial(serve, engine)

    def vllm(self, enable_prefix_caching: bool = False) -> Serve:
        """vLLM with as much KV memory as the book's engine has when there is plenty."""
        from pagedattn_lab import models

        worker = self._stack.enter_context(
            peers.vllm(
                self.setup.vllm_python,
                model=os.fspath(models.ensure_default()),
                dtype="bfloat16",
                max_model_len=MAX_MODEL_LEN,
                max_num_seqs=MAX_NUM_SEQS,
                enforce_eager=True,
                block_size=peers.PAGE_SIZE,
                kv_cache_memory_bytes=self.setup.ample_seqs * MAX_MODEL_LEN * self.bytes_per_token,
                enable_prefix_caching=enable_prefix_caching,
                disable_log_stats=False,
            )
        )
        self.vllm_version = worker.version
        return worker.serve


def _systems(build: _Builder) -> dict[str, Serve]:
    engines = {forward: build.ours(build.setup.ample_seqs, forward=forward) for forward in ("fused", "modules")}
    return engines | ({"vllm": build.vllm()} if build.setup.vllm_python else {})


def _policies(build: _Builder) -> dict[str, Serve]:
    policies = ("paged", "contiguous-oracle", "contiguous-pow2", "contiguous-max")
    return {policy: build.ours(build.setup.kv_seqs, kv_policy=policy) for policy in policies}


def _transformers(build: _Builder) -> dict[str, Serve]:
    setup, model = build.setup, build.model
    continuous = {"kv_tokens": setup.ample_seqs * MAX_MODEL_LEN, "max_requests": setup.max_requests}
    return {
        "fused": build.ours(setup.ample_seqs, forward="fused"),
        "modules": build.ours(setup.ample_seqs, forward="modules"),
        "static batches": partial(peers.static_batches, model, batch_size=setup.static_batch),
        "continuous batching": partial(peers.continuous_batching, model, **continuous),
    }


def _prefix(build: _Builder) -> dict[str, Serve]:
    seqs = build.setup.ample_seqs
    engines = {"cached": build.ours(seqs, enable_prefix_caching=True), "not cached": build.ours(seqs)}
    if build.setup.vllm_python:
        engines |= {"vllm cached": build.vllm(enable_prefix_caching=True), "vllm not cached": build.vllm()}
    return engines


PARTS: dict[str, Callable[..., dict[str, Serve]]] = {
    "systems": _systems,
    "policies": _policies,
    "transformers": _transformers,
    "prefix": _prefix,
}
"""What makes the engines of each part."""

TITLES = {
    "systems": "KV memory for everybody",
    "policies": "The same KV memory, given out in four ways",
    "transformers": "Beside transformers' own two ways to serve a batch",
    "prefix": "A prefix shared by all prompts",
}


def measure(
    parts: Sequence[str] = tuple(PARTS), setup: Setup = Setup(), *, progress: bool | None = None
) -> dict[str, Any]:
    """Measure the default model on one thread, part after part.

    Args:
        parts: which comparisons, of :data:`PARTS`.
        setup: how they are made.
        progress: whether to show a bar on standard error after a second; by default if that is a terminal.

    Returns:
        The settings; ``model``, ``dtype``, ``threads``; ``multiplies_bfloat16``: whether the CPU has units for that;
        under ``parts``, for each: the number of its ``num_prompt_tokens`` and ``num_output_tokens``, its ``kv_tokens``
        and ``kv_bytes``, and what :func:`compare` gives; ``vllm_version``, or ``None``.

    Raises:
        ValueError: an unknown part, or fewer than 2 repetitions.
        RuntimeError: an engine failed.
    """
    import torch
    from tqdm import tqdm

    from pagedattn_lab import models
    from pagedattn_lab.attention.cascade import MULTIPLIES_BFLOAT16

    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if setup.repetitions < 2:
        raise ValueError(f"repetitions is {setup.repetitions}: give at least 2 repetitions")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, tokenizer = models.load(dtype=torch.bfloat16, device="cpu")
        report: dict[str, Any] = {"model": models.DEFAULT, "dtype": "bfloat16", "threads": 1}
        report["multiplies_bfloat16"] = MULTIPLIES_BFLOAT16  # what a prompt costs, and a cache saves, hangs on it
        report |= asdict(setup) | {"block_size": BLOCK_SIZE, "max_model_len": MAX_MODEL_LEN, "vllm_version": None}
        report["vllm_python"] = setup.vllm_python is not None  # its path is nobody's business
        report["parts"] = {}
        disable = None if progress is None else not progress
        with tqdm(unit=" runs", delay=1, leave=False, disable=disable) as bar:
            for part in parts:
                load = setup.load(setup.shared_prefix if part == "prefix" else 0)
                with ExitStack() as stack:
                    build = _Builder(setup, model, tokenizer, stack)
                    row = compare(PARTS[part](build), load, setup.repetitions, bar.update)
                    report["vllm_version"] = build.vllm_version or report["vllm_version"]
                kv_tokens = MAX_MODEL_LEN * (setup.kv_seqs if part == "policies" else setup.ample_seqs)
                sizes = {"num_prompt_tokens": load.num_prompt_tokens, "num_output_tokens": load.num_output_tokens}
                sizes |= {"kv_tokens": kv_tokens, "kv_bytes": kv_tokens * build.bytes_per_token}
                report["parts"][part] = sizes | row
    finally:
        torch.set_num_threads(before)
    return report


def describe(report: Mapping[str, Any]) -> str:
    """Write down what :func:`measure` measured."""
    lines = [
        f"{report['model']} in {report['dtype']} on one thread, {report['num_requests']} requests at once.",
        f"Products of matrices {'in units made for bfloat16' if report['multiplies_bfloat16'] else 'without AMX'}.",
        f"Medians of {report['repetitions']} runs, engines in turns (and quartiles). Times to the first",
        "token and per output token are medians over requests.",
    ]
    for part, row in report["parts"].items():
        lines += [
            "",
            f"{TITLES[part]}: {row['num_prompt_tokens']:,} tokens in, {row['num_output_tokens']:,} out,",
            f"{row['kv_tokens']:,} tokens of KV memory ({row['kv_bytes'] / 2**20:,.0f} MiB).",
            f"{'':<21}{'output':>9}{'all':>9}{'first':>9}{'per token':>11}{'preempted':>11}{'hits':>7}",
            f"{'':<21}{'tokens/s':>9}{'tokens/s':>9}{'s':>9}{'ms':>11}",
        ]
        for name, figures in row["engines"].items():
            tpot = "" if figures["tpot_s"] is None else f"{1000 * figures['tpot_s']:.0f}"
            preempted = "" if figures["preemptions"] is None else f"{figures['preemptions']:.0f}"
            hits = "" if figures["hit_rate"] is None else f"{figures['hit_rate']:.0%}"
            lines.append(
                f"{name:<21}{figures['output_tokens_per_s']:>9.0f}{figures['total_tokens_per_s']:>9.0f}"
                f"{figures['ttft_s']:>9.2f}{tpot:>11}{preempted:>11}{hits:>7}"
            )
        lines += ["", f"{'output tokens/s, one over the other':<40}{'on the wall':>20}{'of CPU time':>20}"]
        for pair in (key for key in row["ratios"] if not key.endswith("_quartiles")):
            columns = (
                "{:.3g} ({:.3g}-{:.3g})".format(ratios[pair], *ratios[f"{pair}_quartiles"])
                for ratios in (row["ratios"], row["cpu_ratios"])
            )
            lines.append(f"{pair:<40}" + "".join(f"{column:>20}" for column in columns))
    return "\n".join(lines)
