"""An engine that takes texts and gives texts: many requests at once, each with its own way to choose (chapter 09).

Source: ``LLM`` and ``LLMEngine`` in vLLM's ``vllm/entrypoints/llm.py`` and ``vllm/v1/engine/llm_engine.py``, release
0.33.0: arguments, defaults and what is returned have its names.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from pagedattn_lab import models
from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.engine.core import Choice, EngineCore
from pagedattn_lab.engine.outputs import RequestOutput
from pagedattn_lab.engine.sampler import Sampler
from pagedattn_lab.engine.sampling_params import SamplingParams
from pagedattn_lab.engine.scheduler import SchedulerOutput
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.kv_shape import KV_CACHE_DTYPES, KVShape
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.request import Request, RequestStatus

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        kv_policy: one of :data:`KV_POLICIES`. What is contiguous has no prefix cache, and preempts nobody.
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
        >>> outputs = engine.generate([[7, 8, 9], [3]], SamplingParams(temperature=0.0, max_tokens=4))
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
        kv_policy: str = "paged",
        attention: str = "auto",
        forward: str = "auto",
        kv_cache_dtype: str = "auto",
        seed: int = 0,
    ) -> None:
        if (kv_memory is None) == (num_blocks is None):
            raise ValueError(f"kv_memory is {kv_memory} and num_blocks is {num_blocks}: give one of the two")
        if kv_policy not in KV_POLICIES:
            raise ValueError(f"kv_policy {kv_policy!r} is unknown: use one of {', '.join(KV_POLICIES)}")
        at_least_one("block_size", block_size)
        if num_blocks is None:
            shape = KVShape.from_config(model.config, KV_CACHE_DTYPES.get(kv_cache_dtype) or model.dtype)
            num_blocks = kv_memory // shape.bytes_per_block(block_size)
            if num_blocks < 2:
                raise ValueError(
                    f"kv_memory of {kv_memory:,} bytes holds {num_blocks} blocks of {shape.bytes_per_block(block_size):,} "
                    "bytes: at least 2 are needed, one of them the null block"
                )
        runner = ModelRunner(model, num_blocks, block_size, attention, kv_cache_dtype, forward=forward)
