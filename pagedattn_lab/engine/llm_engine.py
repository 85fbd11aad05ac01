"""An engine that takes texts and gives texts: many requests at once, each with its own way to choose (chapter 09).

Source: ``LLM`` and ``LLMEngine`` in vLLM's ``vllm/entrypoints/llm.py`` and ``vllm/v1/engine/llm_engine.py``, release
0.33.0: arguments, defaults and what is returned have its names.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

import torch

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.engine.capacity import check_length, groups_of_model, longest_in_groups
from pagedattn_lab.engine.core import Choice, EngineCore
from pagedattn_lab.engine.input_processor import InputProcessor
from pagedattn_lab.engine.metrics import Metrics
from pagedattn_lab.engine.output_processor import RunningOutput, RunningRequest
from pagedattn_lab.engine.outputs import FinishReason, RequestOutput
from pagedattn_lab.engine.sampler import SamplingState, sample_tokens
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.engine.scheduler import SchedulerOutput
from pagedattn_lab.engine.stop import StopChecker
from pagedattn_lab.kv_cache_groups import bytes_per_block
from pagedattn_lab.kv_groups import GroupedKVCacheManager
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.model_runner import ModelRunner, kv_shape_of
from pagedattn_lab.request import Request, RequestStatus, is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pagedattn_lab.engine.progress import ProgressDisplay

KV_POLICIES = ("paged", "contiguous-max", "contiguous-pow2", "contiguous-oracle")
"""How KV memory is given to requests: in blocks as they grow, or, to compare with, in one piece as before paging."""


class StepFailedError(RuntimeError):
    """A step failed; its cause is attached. The requests that were in it wait to be computed again.

    Attributes:
        request_ids: of those requests. Abort them, or go on: whatever made the step fail may do so again.
    """

    def __init__(self, request_ids: Sequence[str]) -> None:
        super().__init__(f"a step of requests {', '.join(request_ids)} failed, and they wait again")
        self.request_ids = list(request_ids)


class LLMEngine:
    """A model that answers many requests at once, on one paged KV cache.

    Args:
        model, tokenizer: from :func:`pagedattn_lab.models.load`. Without a tokenizer prompts are token ids, and outputs
            have no text.
        kv_memory: bytes for keys and values; give this or ``num_blocks``.
        num_blocks: blocks per layer, the null block included.
        block_size: tokens per block.
        max_num_batched_tokens: tokens that one step computes at most: the budget that prompts share with decodes.
        max_num_seqs: requests that run at once at most.
        max_model_len: tokens of a prompt and its output together at most; by default what the model was made for, or
            what all blocks hold if that is less.
        enable_prefix_caching: whether requests share the full blocks that they begin with.
        watermark: share of the blocks that stays free when a request is admitted while others run.
        policy: ``"fcfs"``, who came first, or ``"priority"``.
        preemption: what happens to a request that loses its blocks: ``"recompute"``, or ``"swap"`` to host memory.
        num_host_blocks: blocks of host memory to swap to.
        num_offload_blocks: blocks of host memory for what the prefix cache evicts, a second tier.
        kv_policy: one of :data:`KV_POLICIES`. What is contiguous has no prefix cache, and preempts nobody.
        hybrid_kv_cache_manager: whether layers with a window give blocks back once no token will read them: layers then
            form groups with page tables of their own. It matters to models with windows only. There is one table all
            the same where requests are swapped out or ``kv_policy`` is contiguous, which know no groups; vLLM does so
            too with what its manager of several groups lacks.
        attention, forward, kv_cache_dtype: as for :class:`pagedattn_lab.model_runner.ModelRunner`.
        seed: of requests that bring none.

    Attributes:
        core: the loop, with its scheduler and its manager.
        max_model_len: as above.

    Raises:
        ValueError: an option that does not fit, or memory for less than two blocks.
        UnsupportedModelError: a model that cannot run on the paged cache.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> engine = LLMEngine(LlamaForCausalLM(config), None, num_blocks=20, block_size=4)
        >>> params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
        >>> outputs = engine.generate([[7, 8, 9], [3]], params)
        >>> [len(output.outputs[0].token_ids) for output in outputs], outputs[0].outputs[0].finish_reason
        ([4, 4], 'length')
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        kv_memory: int | None = None,
        num_blocks: int | None = None,
        block_size: int = 16,
        max_num_batched_tokens: int = 2048,
        max_num_seqs: int = 256,
        max_model_len: int | None = None,
        enable_prefix_caching: bool = True,
        watermark: float = 0.0,
        policy: Literal["fcfs", "priority"] = "fcfs",
        preemption: Literal["recompute", "swap"] = "recompute",
        num_host_blocks: int = 0,
        num_offload_blocks: int = 0,
        kv_policy: str = "paged",
        hybrid_kv_cache_manager: bool = True,
        attention: str = "auto",
        forward: str = "auto",
        kv_cache_dtype: str = "auto",
        seed: int = 0,
    ) -> None:
        if (kv_memory is None) == (num_blocks is None):
            raise ValueError(f"kv_memory is {kv_memory} and num_blocks is {num_blocks}: give one of the two")
        if kv_policy not in KV_POLICIES:
            raise ValueError(f"kv_policy {kv_policy!r} is unknown: use one of {', '.join(KV_POLICIES)}")
        if kv_policy != "paged" and (num_host_blocks or preemption == "swap"):
            raise ValueError(f"kv_policy {kv_policy!r} preempts nobody: leave preemption and num_host_blocks away")
        if num_offload_blocks:
            at_least_one("num_offload_blocks", num_offload_blocks)
            if kv_policy != "paged":
                raise ValueError(f"kv_policy {kv_policy!r} has no prefix cache: leave num_offload_blocks away")
        at_least_one("block_size", block_size)
        shape = kv_shape_of(model, kv_cache_dtype)
        groups = None
        if hybrid_kv_cache_manager and kv_policy == "paged" and preemption == "recompute" and not num_host_blocks:
            groups = groups_of_model(model, block_size, shape.dtype)
        if groups is not None and num_offload_blocks:
            raise ValueError(
                f"num_offload_blocks is {num_offload_blocks}, and layers with a window form groups, which a tier does "
                "not know: leave it away, or give hybrid_kv_cache_manager=False"
            )
        block_bytes = shape.bytes_per_block(block_size) if groups is None else bytes_per_block(groups)
        if num_blocks is None:
            num_blocks = kv_memory // block_bytes
            if num_blocks < 2:
                raise ValueError(
                    f"kv_memory of {kv_memory:,} bytes holds {num_blocks} blocks of {block_bytes:,} bytes: at least 2 "
                    "are needed, one of them the null block"
                )
        self.model, self.tokenizer = model, tokenizer
        if groups is None:
            # A last token that is not continued needs no slot. What is contiguous reserves one for it all the same.
            longest = (num_blocks - 1) * block_size + (kv_policy == "paged")
        else:
            longest = longest_in_groups(groups, num_blocks, max_num_batched_tokens) + 1
        self.max_model_len = check_length(model, max_model_len, longest)
        runner = ModelRunner(
            model,
            num_blocks,
            block_size,
            attention,
            kv_cache_dtype,
            forward,
            num_offload_blocks + 1 if num_offload_blocks else num_host_blocks,
            groups=groups,
        )
        if kv_policy != "paged":
            # Late, and the one thing that a server takes from the book's apparatus: what it is compared with.
            from pagedattn_lab.baselines.kv_manager import ContiguousKVCacheManager

            reserve = kv_policy.removeprefix("contiguous-")
            manager = ContiguousKVCacheManager(num_blocks, block_size, reserve, max_model_len=self.max_model_len)
        elif groups is not None:
            manager = GroupedKVCacheManager(
                groups, num_blocks, enable_prefix_caching, max_num_batched_tokens=max_num_batched_tokens
            )
        else:
            manager = KVCacheManager(
                num_blocks,
                block_size,
                enable_prefix_caching,
                num_host_blocks=num_host_blocks,
                num_offload_blocks=num_offload_blocks,
            )
        self.core = EngineCore(
            runner,
            manager=manager,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            policy=policy,
            watermark=watermark,
            preemption=preemption,
        )
        self.metrics = Metrics()
        self._seed = seed
        self._inputs = InputProcessor(model, tokenizer)
        self._num_added = 0  # requests so far: they give the numbers that those without a seed draw from
        self._requests: dict[str, RunningRequest] = {}
        self._outputs: dict[str, RunningOutput] = {}
        runner.warm_up()

    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        arrival_time: float | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> None:
        """Let a request wait for its turn.

        Args:
            request_id: a name that no unfinished request has.
            prompt: a text, or token ids.
            params: how its tokens are chosen and when it ends.
            arrival_time: in seconds on :func:`time.monotonic`'s clock; now by default.
            priority: under ``policy="priority"`` the smallest runs first.
            cache_salt: the request shares blocks only with those of the same salt.

        Raises:
            ValueError: a name that is taken, a prompt that is empty or no text of this model, lengths that can never
                fit, or ``params`` that this engine cannot serve. Nothing changed.
        """
        params = SamplingParams() if params is None else params
        # Each output is a request of the scheduler's, under a name of its own.
        names = [request_id] if params.n == 1 else [f"{number}_{request_id}" for number in range(params.n)]
        for name, there in ((request_id, self._requests), *((name, self._outputs) for name in names)):
            if name in there:
                raise ValueError(f"there is an unfinished request {name!r} already: give this one another name")
        token_ids = self._inputs.token_ids(prompt)
        room = self.max_model_len - len(token_ids)
        wanted = 1 if params.max_tokens is None else params.max_tokens
        if wanted > room:
            block_size, taken = self.core.manager.block_pool.block_size, ""
            if self.core.runner.groups is None:  # one table, whose blocks anybody can count
                num_blocks = cdiv(len(token_ids) + wanted - 1, block_size)
                taken = f", which take {num_blocks} blocks of {block_size} tokens"
            raise ValueError(
                f"request {request_id!r} has a prompt of {len(token_ids)} tokens and asks for {wanted} more{taken}: "
                f"prompt and output have at most {self.max_model_len} tokens here"
            )
        arrival_time = time.monotonic() if arrival_time is None else arrival_time
        group = RunningRequest(request_id, prompt if isinstance(prompt, str) else None, token_ids, self.tokenizer)
        end_tokens = self._inputs.end_tokens(request_id, params)
        for number, name in enumerate(names):
            request = Request(
                name,
                token_ids,
                cache_salt,
                max_tokens=room if params.max_tokens is None else params.max_tokens,
                priority=priority,
                arrival_time=arrival_time,
            )
            state = SamplingState(request, params, end_tokens.held_back, self._seed, self._num_added, number)
            checker = StopChecker(self.tokenizer, params, end_tokens, request.max_tokens, token_ids)
            group.sequences.append(RunningOutput(group, request, state, checker))
        for sequence in group.sequences:
            request = sequence.request
            self.core.scheduler.add_request(request)  # refuses the first of them, if any: they are alike
            self._outputs[request.request_id] = sequence
            self.metrics.on_arrival(request, max_tokens=request.max_tokens, n=params.n, arrival_time=arrival_time)
        self._requests[request_id] = group
        self._num_added += 1

    def has_unfinished_requests(self) -> bool:
        """Whether anything waits or runs."""
        return self.core.scheduler.has_unfinished

    def step(self) -> list[RequestOutput]:
        """Schedule a step, compute it, and choose tokens.

        Returns:
            For each request that got a token, all of its output so far.

        Raises:
            StepFailedError: the model failed, or ran out of memory. The engine is as it was, but for the blocks of the
                step's requests, which wait to be computed again.
        """
        started = self.metrics.clock()
        groups: dict[str, RunningRequest] = {}  # with something new
        sampled: list[Request] = []
        scheduled: list[SchedulerOutput] = []

        def choose(requests: Sequence[Request], logits: torch.Tensor) -> list[Choice]:
            sequences = [self._outputs[request.request_id] for request in requests]
            tokens = sample_tokens(logits, [sequence.state for sequence in sequences])
            choices = []
            for place, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
                groups[sequence.group.request_id] = sequence.group
                if sequence.goes_on_with(token):
                    choices.append(Choice(place, token.token_id))
            sampled.extend(requests)
            return choices

        def on_scheduled(output: SchedulerOutput) -> None:
            scheduled.append(output)
            for request in output.requests:
                sequence = self._outputs[request.request_id]
                if sequence.num_cached_tokens is None:
                    sequence.num_cached_tokens = request.num_computed_tokens

        try:
            output = self.core.step(choose, on_scheduled)
        except Exception as error:
            if not scheduled:
                raise
            failed = (self._outputs[request.request_id].group.request_id for request in scheduled[0].requests)
            raise StepFailedError(list(dict.fromkeys(failed))) from error
        if output.requests or output.preempted:
            self.metrics.on_step(output, self.core.scheduler, sampled, started)
        for request in sampled:
            if request.status.is_finished:
                sequence = self._outputs.pop(request.request_id)
                self.metrics.on_finished(request, sequence.finish_reason)
        outputs = [group.output() for group in groups.values()]
        for group_output in outputs:
            if group_output.finished:
                del self._requests[group_output.request_id]
        return outputs

    def abort(self, request_ids: Iterable[str], reason: FinishReason = "abort") -> None:
        """Give requests up, and their blocks back; those that are not here, or not any more, do not matter."""
        status = RequestStatus.FINISHED_ERROR if reason == "error" else RequestStatus.FINISHED_ABORTED
        for group in [self._requests.pop(name) for name in dict.fromkeys(request_ids) if name in self._requests]:
            for sequence in group.sequences:
                if self._outputs.pop(sequence.request.request_id, None) is not None:
                    self.core.scheduler.finish(sequence.request, status)
                    self.metrics.on_finished(sequence.request, reason)

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        show_progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer prompts, as many at a time as fit.

        Args:
            prompts: texts, or lists of token ids; one of them will do by itself.
            sampling_params: for all of them, or one for each.
            show_progress: draw a line that says how far it is, with ``rich``.

        Returns:
            One for each prompt, in their order.

        Raises:
            ValueError: a prompt that is refused, or not one ``SamplingParams`` a prompt. None has been computed.
            StepFailedError: the model failed; all of these requests are given up.
            RuntimeError: requests that were added otherwise are unfinished: their outputs would be lost here.
        """
        if self._requests:
            raise RuntimeError(
                f"requests {', '.join(map(str, self._requests))} are unfinished, and what they say would be lost here: "
                "call step until nothing is unfinished, or abort them"
            )
        if isinstance(prompts, str) or (len(prompts) and is_whole(prompts[0])):
            prompts = [prompts]
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(prompts)
        if len(sampling_params) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts and {len(sampling_params)} sampling_params: give one, or one each"
            )
        names = []
        finished: dict[str, RequestOutput] = {}
        with _display(self.metrics, len(prompts)) if show_progress else nullcontext():
            try:
                for prompt, params in zip(prompts, sampling_params, strict=True):
                    name = f"generate-{self._num_added}"
                    self.add_request(name, prompt, params)
                    names.append(name)
                while len(finished) < len(names):
                    finished.update((one.request_id, one) for one in self.step() if one.finished)
            finally:
                self.abort(names)  # none unless something failed
        return [finished[name] for name in names]


def _display(metrics: Metrics, num_requests: int) -> ProgressDisplay:
    from pagedattn_lab.engine.progress import ProgressDisplay  # late: rich is needed for this only

    return ProgressDisplay(metrics, num_requests)
