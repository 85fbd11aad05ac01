"""Engines of others, made to serve the same load on the same thread: transformers' two ways, and vLLM (chapter 09)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pagedattn_lab.bench.serving import Load, Served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

PAGE_SIZE = 32
"""Tokens per block of the others: vLLM on a CPU takes multiples of 32."""


def static_batches(model: PreTrainedModel, load: Load, batch_size: int) -> Served:
    """Serve a load by transformers' ``generate``, batch after batch in the order of arrival.

    Prompts are padded on the left to the longest of their batch, and every batch runs until its longest output is done:
    ``generate`` can end all sequences by one length only. A request has its last token when it has as many as it asked
    for, whatever is computed for it after that.
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            ticks.append(time.perf_counter() - start)
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    first: list[float] = []
    last: list[float] = []
    start, cpu_start = time.perf_counter(), time.process_time()
    for begin in range(0, len(load.prompts), batch_size):
        prompts, output_lens = load.prompts[begin : begin + batch_size], load.output_lens[begin : begin + batch_size]
        longest = max(map(len, prompts))
        input_ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        ticks: list[float] = []
        model.generate(
            input_ids,
            attention_mask=mask,
            max_new_tokens=max(output_lens),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([Clock()]),
        )
        first += [ticks[0]] * len(prompts)
        last += [ticks[output_len - 1] for output_len in output_lens]
    return Served(time.perf_counter() - start, time.process_time() - cpu_start, first, last)


def continuous_batching(model: PreTrainedModel, load: Load, kv_tokens: int, max_requests: int) -> Served:
    """Serve a load by transformers' continuous batching, which works in a thread of its own.

    Args:
        model: while this runs, its attention is another.
        load: what to serve.
        kv_tokens: tokens that its cache holds.
        max_requests: how many run at most.

    Raises:
        RuntimeError: the thread ended early.
    """
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    config = ContinuousBatchingConfig(
        page_size=PAGE_SIZE,
        num_blocks=kv_tokens // PAGE_SIZE,
        max_batch_tokens=1024,
        max_requests_per_batch=max_requests,
        allow_block_sharing=False,
    )
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1)
    manager = model.init_continuous_batching(generation, config)
    manager.start()
    try:
        start, cpu_start = time.perf_counter(), time.process_time()
        names = [
            manager.add_request(list(prompt), max_new_tokens=output_len, record_timestamps=True, eos_token_id=-1)
            for prompt, output_len in zip(load.prompts, load.output_lens, strict=True)
        ]
        ticks: dict[str, list[float]] = {}
        while len(ticks) < len(names):
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("transformers' continuous batching stopped before all requests were done")
            elif result.error is not None:
                raise RuntimeError(f"transformers' continuous batching failed: {result.error}")
            elif result.is_finished():
                ticks[result.request_id] = [tick - start for tick in result.timestamps]
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    finally:
        manager.stop(block=True)
    if [len(ticks[name]) for name in names] != list(load.output_lens):
        raise RuntimeError("transformers' continuous batching did not generate what was asked for")
    return Served(seconds, cpu_seconds, [ticks[name][0] for name in names], [ticks[name][-1] for name in names])


@contextmanager
def vllm(python: str | os.PathLike[str], **options: Any) -> Iterator[VLLM]:
    """Run vLLM for a while, in a process of its own that needs one core.

    Args:
        python: an interpreter that has vLLM.
        options: of ``vllm.LLM``.

    Raises:
        RuntimeError: it does not start; the message has the end of what it printed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    environment |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": str(core), "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [os.fspath(python), "-u", os.fspath(Path(__file__).with_name("vllm_worker.py"))]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": printed}
        with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
            try:
                yield VLLM(process, printed, options)
            finally:
                process.terminate()


class VLLM:
    """vLLM in another process, which waits without using a core while it has nothing to serve.

    Attributes:
        version: its release.
    """

    def __init__(self, process: subprocess.Popen[str], printed: IO[str], options: Mapping[str, Any]) -> None:
        self._process, self._printed = process, printed
        self.version = self._ask(options)["version"]

    def serve(self, load: Load) -> Served:
        """Serve a load."""
        return Served(**self._ask({"prompts": load.prompts, "output_lens": load.output_lens}))

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        with suppress(BrokenPipeError):  # it has ended; then there is no answer either
            print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._printed.seek(0)
            end = "\n".join(self._printed.read().splitlines()[-5:])
            raise RuntimeError(f"vLLM ended with {self._process.returncode} and no answer; it printed last:\n{end}")
        return json.loads(line)
