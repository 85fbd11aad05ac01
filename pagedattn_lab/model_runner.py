"""Run any transformers decoder on the paged cache, without rewriting the model (chapters 00, 04 and 07).

A model looks its attention function up by name at every call. :class:`ModelRunner` puts the name of ours there for the
length of one forward pass: it writes the step's keys and values through the slot mapping, then attends through the
page table. The model's own ``generate`` stays as it was.

Source: transformers' ``AttentionInterface``; the forward context follows vLLM's ``vllm/forward_context.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from pagedattn_lab.attention import BACKENDS, paged_attention
from pagedattn_lab.attention.metadata import AttentionMetadata, attention_metadata
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.kv_cache import PagedKVCache
from pagedattn_lab.kv_shape import KVShape
from pagedattn_lab.models.support import UnsupportedModelError, refuse_unsupported, rotary_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "pagedattn_lab"


@dataclass
class _ForwardContext:
    """What the attention function must know about the step under way."""

    metadata: AttentionMetadata
    cache: PagedKVCache
    backend: str
    layers_done: set[int] = field(default_factory=set)


_forward_context: ContextVar[_ForwardContext] = ContextVar("forward_context")


class ModelRunner:
    """A decoder together with the paged cache that it reads and writes.

    It executes steps; which tokens and which blocks a step has is its caller's business.

    Args:
        model: a transformers decoder with its weights.
        num_blocks: blocks per layer, the null block included.
        block_size: tokens per block.
        attention: backend for decode steps, as in :func:`pagedattn_lab.attention.paged_attention`. Steps that hold a
            prompt run on the reference, whose dense products suit many queries at once.

    Raises:
        UnsupportedModelError: an encoder-decoder, latent attention, chunked windows, a model without ``position_ids``,
            or attention that is not causal or does not go through transformers' interface.
        ValueError: an unknown backend, or an impossible number or size of blocks.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> runner = ModelRunner(LlamaForCausalLM(config), num_blocks=8, block_size=4)
        >>> pool = runner.new_pool()
        >>> outputs = generate_greedily(runner, pool, [[7, 8, 9], [5]], max_tokens=4)
        >>> [len(tokens) for tokens in outputs], pool.num_used_blocks
        ([4, 4], 0)
    """

    def __init__(self, model: PreTrainedModel, num_blocks: int, block_size: int = 16, attention: str = "auto") -> None:
        if attention not in BACKENDS:
            raise ValueError(f"attention {attention!r} is unknown: use one of {', '.join(BACKENDS)}")
        refuse_unsupported(model)
        try:
            shape = KVShape.from_config(model.config, model.dtype)
        except ValueError as error:
            raise UnsupportedModelError(f"{type(model).__name__}: {error}") from error
        self.model, self.attention = model, attention
        self.cache = PagedKVCache(shape, num_blocks, block_size, model.device)
        self._rotary_limit = rotary_limit(model)
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    def new_pool(self) -> BlockPool:
        """Make the pool that hands this cache's blocks out; make one only, or two tables will share a block."""
        return BlockPool(self.cache.num_blocks, self.cache.block_size)

    def check_pool(self, pool: BlockPool) -> None:
        """Make sure that a pool hands out blocks that this cache has.

        Raises:
            ValueError: it does not.
        """
        if pool.block_size != self.cache.block_size or pool.num_blocks > self.cache.num_blocks:
            raise ValueError(
                f"a pool of {pool.num_blocks} blocks of {pool.block_size} tokens does not fit a cache of "
                f"{self.cache.num_blocks} blocks of {self.cache.block_size}: take the pool from runner.new_pool()"
            )

    @torch.inference_mode()
    def execute(self, token_ids: Sequence[int], metadata: AttentionMetadata) -> torch.Tensor:
        """Compute one step of a ragged batch.

        Args:
            token_ids: the step's tokens, sequence after sequence.
            metadata: where they stand and where their keys and values go; see
                :func:`pagedattn_lab.attention.metadata.attention_metadata`.

        Returns:
            ``[num_seqs, vocab_size]`` logits that follow each sequence's last token.

        Raises:
            ValueError: not as many tokens as slots.
            UnsupportedModelError: a layer bypassed the paged cache or asks for something that it cannot express, or a
                sequence is longer than the model's rotary embedding stays the same for.
        """
        if len(token_ids) != len(metadata.slot_mapping):
            raise ValueError(f"{len(token_ids)} tokens but {len(metadata.slot_mapping)} slots: give one slot per token")
        if self._rotary_limit is not None and metadata.max_seq_len > self._rotary_limit:
            raise UnsupportedModelError(
                f"a sequence has {metadata.max_seq_len} tokens, and beyond {self._rotary_limit} the rotary angles of "
                f"{type(self.model).__name__} depend on the longest sequence of a batch: keep to shorter ones"
            )
        backend = self.attention if metadata.is_decode else "reference"
        context = _ForwardContext(metadata, self.cache, backend)
        last_tokens = metadata.query_start_loc[1:].long() - 1
        keep = {"logits_to_keep": last_tokens} if self._takes_logits_to_keep else {}
        with _attention_of(self.model, ATTENTION_NAME), _set_forward_context(context):
            logits = self.model(
                input_ids=torch.tensor([list(token_ids)], device=self.model.device),
                position_ids=metadata.positions[None, :],
                use_cache=False,
                **keep,
            ).logits[0]
        missing = set(range(self.cache.shape.num_layers)) - context.layers_done
        if missing:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} computed attention outside transformers' interface in layers "
                f"{sorted(missing)}: their keys and values are not in the paged cache"
            )
        return logits if self._takes_logits_to_keep else logits[last_tokens]


def generate_greedily(
    runner: ModelRunner,
    pool: BlockPool,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop_token_ids: Collection[int] = (),
    on_token: Callable[[int, int, BlockTable], None] | None = None,
) -> list[list[int]]:
    """Continue every prompt with its most likely tokens, all prompts in one batch that shrinks as they finish.

    Args:
        runner: the model.
        pool: where blocks come from; every block taken has been returned when this ends, however it ends.
        prompts: token ids, one list per prompt.
        max_tokens: how many tokens to add at most.
        stop_token_ids: a sequence ends with, and includes, the first of these.
        on_token: called with ``(index of the prompt, token id, its table)`` as each token is chosen.

    Returns:
        The new tokens of each prompt.

    Raises:
        NoFreeBlocksError: the pool is too small for all prompts together.
        ValueError: an empty prompt, ``max_tokens`` below 1, or a pool whose blocks are not those of the cache.
    """
    runner.check_pool(pool)
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}: ask for at least 1")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty: give it at least one token")
    outputs: list[list[int]] = [[] for _ in prompts]
    tables = [BlockTable(pool) for _ in prompts]
    step = {index: list(prompt) for index, prompt in enumerate(prompts)}  # tokens each running prompt computes next
    try:
        while step:
            for index, token_ids in step.items():
                tables[index].append_tokens(len(token_ids))
            metadata = attention_metadata(
                [tables[index] for index in step], [len(ids) for ids in step.values()], runner.model.device
            )
            logits = runner.execute([token for ids in step.values() for token in ids], metadata)
            for index, token in zip(list(step), logits.argmax(dim=-1).tolist(), strict=True):
                outputs[index].append(token)
                step[index] = [token]
                if on_token is not None:
                    on_token(index, token, tables[index])
                if token in stop_token_ids or len(outputs[index]) == max_tokens:
                    del step[index]
                    tables[index].release()
    finally:
        for table in tables:
            table.release()
    return outputs


def _attention_through_page_table(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Stand in for one layer's attention: shapes ``[1, heads, num_tokens, head_dim]`` in, tokens before heads out."""
    context = _forward_context.get()
    metadata, layer = context.metadata, module.layer_idx
    shape = context.cache.shape
    if s_aux is not None:
        raise UnsupportedModelError(f"layer {layer} uses attention sinks, which the paged backends do not have yet")
    if layer in context.layers_done:
        raise UnsupportedModelError(f"layer {layer} attends more than once in a step, over different keys or values")
    if not getattr(module, "is_causal", True):
        raise UnsupportedModelError(f"layer {layer} lets tokens see later ones, whose keys a cache does not have yet")
    for tensor in (key, value):
        if (tensor.shape[1], tensor.shape[3]) != (shape.num_kv_heads, shape.head_dim):
            raise UnsupportedModelError(
                f"layer {layer} has {tensor.shape[1]} KV heads of {tensor.shape[3]} elements and the cache has "
                f"{shape.num_kv_heads} of {shape.head_dim}: layers of different shapes are not supported yet"
            )
    if attention_mask is not None:  # the window that _window_in_place_of_mask put there, or a mask of the model's own
        if attention_mask.dim():
            raise UnsupportedModelError(f"layer {layer} builds an attention mask of its own")
        sliding_window = int(attention_mask)
    context.cache.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), metadata.slot_mapping)
    context.layers_done.add(layer)
    window_matters = sliding_window is not None and metadata.max_seq_len > sliding_window
    output = paged_attention(
        query[0].transpose(0, 1).to(context.cache.key_caches[layer].dtype),
        context.cache.key_caches[layer],
        context.cache.value_caches[layer],
        metadata.block_tables,
        metadata.seq_lens,
        query_start_loc=metadata.query_start_loc,
        scale=scaling,
        backend=context.backend,
        softcap=softcap,
        sliding_window=sliding_window if window_matters else None,
    )
    return output[None].to(query.dtype), None


def _window_in_place_of_mask(*_: Any, local_size: int | None = None, **__: Any) -> torch.Tensor | None:
    """Tell a layer's window in one number, where transformers would draw it as a mask."""
    return None if local_size is None else torch.tensor(local_size)


AttentionInterface.register(ATTENTION_NAME, _attention_through_page_table)
AttentionMaskInterface.register(ATTENTION_NAME, _window_in_place_of_mask)


@contextmanager
def _attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model compute attention with the function of that name for a while."""
    usual = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


@contextmanager
def _set_forward_context(context: _ForwardContext) -> Iterator[None]:
    token = _forward_context.set(context)
    try:
        yield
    finally:
        _forward_context.reset(token)
