"""vLLM in a process of its own, which answers in JSON lines: run by a Python that has vLLM and not this package.

It reads what :class:`pagedattn_lab.bench.peers.VLLM` writes: a line with the engine's options, then a line for each
load. It answers each with a line. Whatever vLLM prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Serve loads until standard input ends."""
    sys.path.pop(0)  # this script's folder: its modules have names that others' may have too
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM and its libraries print to standard output

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    engine, version = _start(json.loads(sys.stdin.readline()))
    answer(version=version)
    for line in sys.stdin:
        answer(**_serve(engine, **json.loads(line)))


def _start(options: dict[str, Any]) -> tuple[Any, str]:
    """Make an engine in this very process: nothing runs beside it, so that one core is enough."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    import vllm

    return vllm.LLM(**options), vllm.__version__


def _serve(llm: Any, prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
    """Serve requests that are all there from the beginning; say when each got its first and its last token."""
    from vllm import SamplingParams

    llm.reset_prefix_cache()
    before = _counters(llm)
    engine, first, last = llm.llm_engine, {}, {}
    start, cpu_start = time.perf_counter(), time.process_time()
    for number, (prompt, output_len) in enumerate(zip(prompts, output_lens, strict=True)):
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter() - start
        for output in outputs:
            first.setdefault(output.request_id, now)
            last[output.request_id] = now
            generated = len(output.outputs[0].token_ids)
            if output.finished and generated != output_lens[int(output.request_id)]:
                raise RuntimeError(f"request {output.request_id} ended after {generated} tokens")
    spent = {name: count - before[name] for name, count in _counters(llm).items()}
    names = [str(number) for number in range(len(prompts))]
    return {
        "seconds": max(last.values()),
        "cpu_seconds": time.process_time() - cpu_start,
        "first_token_s": [first[name] for name in names],
        "last_token_s": [last[name] for name in names],
        "preemptions": spent["vllm:num_preemptions"],
        "hit_rate": spent["vllm:prefix_cache_hits"] / max(1, spent["vllm:prefix_cache_queries"]),
    }


def _counters(llm: Any) -> dict[str, int]:
    names = ("vllm:num_preemptions", "vllm:prefix_cache_hits", "vllm:prefix_cache_queries")
    counts = dict.fromkeys(names, 0)
    for metric in llm.get_metrics():
        if metric.name in counts:
            counts[metric.name] += metric.value
    return counts


if __name__ == "__main__":
    main()
