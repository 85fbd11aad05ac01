"""Run any transformers decoder on the paged cache, without rewriting the model (chapters 00, 04 and 07).

A model looks its attention function up by name at every call. :class:`ModelRunner` puts the name of ours there for the
length of one forward pass: it writes the step's keys and values through the slot mapping, then attends through the
page table. The model's own ``generate`` stays as it was.

What a step may be is checked once, in :meth:`ModelRunner.execute`. The layers trust it: looking at values would stall a
GPU, and cost a CPU the same check in every layer.

Source: transformers' ``AttentionInterface``; the forward context follows vLLM's ``vllm/forward_context.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

from pagedattn_lab.attention.backends import Call, check_name, choose
from pagedattn_lab.attention.metadata import AttentionMetadata, attention_metadata
from pagedattn_lab.attention.variant import PLAIN, Variant
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, take_copies
from pagedattn_lab.forward_context import ATTENTION_NAME, ForwardContext, set_forward_context
from pagedattn_lab.input_batch import InputBatch
from pagedattn_lab.kv_cache import PagedKVCache
from pagedattn_lab.kv_cache_groups import KVCacheGroup
from pagedattn_lab.kv_layers import LayerPlace, layer_places
from pagedattn_lab.kv_shape import KV_CACHE_DTYPES, KVShape
from pagedattn_lab.models.implementation import attention_of
from pagedattn_lab.models.latents import latent_layers, latents_kept
from pagedattn_lab.models.support import (
    UnsupportedModelError,
    fused_obstacle,
    refuse_unsupported,
    rotary_limit,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORWARDS = ("modules", "fused", "auto")
"""How a model may be computed: see :class:`ModelRunner`."""


def kv_shape_of(model: PreTrainedModel, kv_cache_dtype: str = "auto") -> KVShape:
    """Give the shape in which a model's keys and values are cached, or refuse the model.

    Args:
        model, kv_cache_dtype: as for :class:`ModelRunner`.

    Raises:
        UnsupportedModelError: as for :class:`ModelRunner`.
        ValueError: an unknown ``kv_cache_dtype``.
    """
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ValueError(f"kv_cache_dtype {kv_cache_dtype!r} is unknown: use one of {', '.join(KV_CACHE_DTYPES)}")
    refuse_unsupported(model)
    try:
        return KVShape.from_config(model.config, KV_CACHE_DTYPES[kv_cache_dtype] or model.dtype)
    except ValueError as error:
        raise UnsupportedModelError(f"{type(model).__name__}: {error}") from error


class ModelRunner:
    """A decoder together with the paged cache that it reads and writes.

    It executes steps; which tokens and which blocks a step has is its caller's business.

    Args:
        model: a transformers decoder with its weights.
        num_blocks: blocks per layer, the null block included.
        block_size: tokens per block.
        attention: backend for decode steps, as in :func:`pagedattn_lab.attention.paged_attention`. Steps that hold a
            prompt run on one that suits prompts.
        kv_cache_dtype: what the cache is kept in, one of :data:`pagedattn_lab.kv_shape.KV_CACHE_DTYPES`; under
            ``"auto"`` the model's dtype. The model computes in its own whatever the cache holds.
        forward: ``"modules"`` runs the model's own code, whatever the model. ``"fused"`` runs
            :class:`pagedattn_lab.models.fused_decoder.FusedDecoder`, a loop for models of Llama's kind on a CPU. It
            keeps a copy of all weights, since the model's own stay. ``"auto"`` is fused where that can be.
        num_host_blocks: blocks per layer in host memory, for requests that are swapped out.
        groups: of layers that read page tables of their own, by
            :func:`~pagedattn_lab.kv_cache_groups.kv_cache_groups` of
            :func:`~pagedattn_lab.kv_layers.layer_specs`. A block then holds a page of each layer of one group, and the
            cache ``num_blocks`` times ``bytes_per_block(groups)`` bytes. By default all layers read one table.

    Attributes:
        cache: the tensors. A pool of as many blocks hands them out: two pools would hand out the same ones.
        forward: ``"modules"`` or ``"fused"``: what computes the steps.
        groups: as above, ``None`` where all layers read one table.
        windows: of each layer, by its number, how many tokens it read at most in the last step; ``None`` for all.
        input_batch: lays steps out, faster than :func:`pagedattn_lab.attention.metadata.attention_metadata`.

    Sliding windows, soft-capping, attention sinks and values of another width than keys are the model's own: it passes
    them to its attention function. Of a model with latents, the cache holds the latents.

    Raises:
        UnsupportedModelError: an encoder-decoder, chunked windows, layers that do not cache alike, a model without
            ``position_ids``, or attention that is not causal or does not go through transformers' interface; or under
            ``"fused"`` a model, cache or backend that the loop does not have.
        ValueError: an unknown backend, forward or dtype of the cache, an impossible number or size of blocks, or groups
            that are not those of the model's layers.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from pagedattn_lab.attention.metadata import attention_metadata
        >>> from pagedattn_lab.block_pool import BlockPool
        >>> from pagedattn_lab.block_table import BlockTable
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> runner = ModelRunner(LlamaForCausalLM(config), num_blocks=8, block_size=4)
        >>> table = BlockTable(BlockPool(num_blocks=8, block_size=4))
        >>> _ = table.append_tokens(3)
        >>> runner.execute([7, 8, 9], attention_metadata([table], query_lens=[3])).shape
        torch.Size([1, 50])
    """

    def __init__(
        self,
        model: PreTrainedModel,
        num_blocks: int,
        block_size: int = 16,
        attention: str = "auto",
        kv_cache_dtype: str = "auto",
        forward: str = "modules",
        num_host_blocks: int = 0,
        groups: Sequence[KVCacheGroup] | None = None,
    ) -> None:
        check_name(attention)
        if forward not in FORWARDS:
            raise ValueError(f"forward {forward!r} is unknown: use one of {', '.join(FORWARDS)}")
        shape = kv_shape_of(model, kv_cache_dtype)
        self.model, self.attention = model, attention
        self._latent_layers = latent_layers(model) if shape.latent else []
        self.groups = None if groups is None else tuple(groups)
        if groups is None:
            self._places = [LayerPlace(0, layer, None) for layer in range(shape.num_layers)]
        else:
            self._places = layer_places(groups, shape, block_size)
        self.cache = PagedKVCache(
            shape, num_blocks, block_size, model.device, num_host_blocks=num_host_blocks,
            tensor_of_layer=[place.tensor for place in self._places],
        )  # fmt: skip
        self.windows: dict[int, int | None] = {}
        self.input_batch = InputBatch(model.device)
        key_cache, value_cache = self.cache.key_caches[0], self.cache.value_caches[0]
        sizes = (key_cache.dtype, key_cache.shape[3], value_cache.shape[3])
        scales = Variant(k_scale=self.cache.k_scales[0], v_scale=self.cache.v_scales[0])
        choose(attention, Call(model.device.type, model.dtype, *sizes, variant=scales))  # refuses before a step begins
        self._rotary_limit = rotary_limit(model)
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        obstacle = None if forward == "modules" else self._fused_obstacle()
        if forward == "fused" and obstacle is not None:
            raise UnsupportedModelError(f'{type(model).__name__} cannot be fused: {obstacle}; use forward="auto"')
        self.forward = "modules" if forward == "modules" or obstacle is not None else "fused"
        if self.forward == "fused":
            from pagedattn_lab.models.fused_decoder import FusedDecoder  # late: numba is optional

            self._fused = FusedDecoder(model, self.cache, [place.group for place in self._places])
            self.windows = dict(enumerate(self._fused.windows))
            self._check_windows()

    def _fused_obstacle(self) -> str | None:
        if self.attention not in ("auto", "cpu"):
            return f'it attends by the cpu backend, not by "{self.attention}"'
        return fused_obstacle(self.model, self.cache)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Have numba compile what it will, by attending once where the CPU kernel will; the result is thrown away."""
        if self.forward == "fused":
            self._fused.warm_up()
        key_cache, value_cache = self.cache.key_caches[0], self.cache.value_caches[0]
        # As many query heads as there are KV heads: the code is the same for any number.
        query = key_cache.new_zeros(1, *key_cache.shape[2:], dtype=self.model.dtype)
        backend = choose(self.attention, Call.of(query, key_cache, value_cache, prompts=False))
        if backend.name == "cpu":
            one = torch.ones(1, dtype=torch.int32)
            backend.run(query, key_cache, value_cache, one[None], one, torch.arange(2), 1.0, PLAIN)

    @torch.inference_mode()
    def execute(
        self,
        token_ids: Sequence[int],
        metadata: AttentionMetadata | Sequence[AttentionMetadata],
        logits_of: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Compute one step of a ragged batch: copy blocks, then run the model, which writes and attends in every layer.

        Args:
            token_ids: the step's tokens, sequence after sequence.
            metadata: where they stand and where their keys and values go; see
                :func:`pagedattn_lab.attention.metadata.attention_metadata`. Of a runner with groups, one for each; see
                :meth:`pagedattn_lab.input_batch.InputBatch.prepare_groups`.
            logits_of: indices of the sequences whose logits are wanted, in the order in which they are; by default all.
                A chunk in the middle of a prompt needs none, and the product with the vocabulary is a large one.

        Returns:
            ``[len(logits_of), vocab_size]`` logits that follow each of these sequences' last token.

        Raises:
            ValueError: not as many tokens as slots, page tables of more or fewer groups than the runner has or on a
                pool whose blocks are not those of the cache, or logits of a sequence that is not there.
            UnsupportedModelError: a layer bypassed the paged cache, reads more tokens than its group keeps or asks for
                something that the cache cannot express, or a sequence is longer than the model's rotary embedding stays
                the same for.
        """
        groups = (metadata,) if isinstance(metadata, AttentionMetadata) else tuple(metadata)
        num_groups = 1 if self.groups is None else len(self.groups)
        if len(groups) != num_groups:
            raise ValueError(f"page tables of {len(groups)} groups for {num_groups}: give one for each")
        metadata = groups[0]  # what groups have in common is looked up here
        if len(token_ids) != len(metadata.slot_mapping):
            raise ValueError(f"{len(token_ids)} tokens but {len(metadata.slot_mapping)} slots: give one slot per token")
        pool = metadata.tables[0].pool
        if pool.block_size != self.cache.block_size or pool.num_blocks > self.cache.num_blocks:
            raise ValueError(
                f"page tables on a pool of {pool.num_blocks} blocks of {pool.block_size} tokens do not fit a "
                f"cache of {self.cache.num_blocks} blocks of {self.cache.block_size}: make the pool as large as the "
                "cache"
            )
        if self._rotary_limit is not None and metadata.max_seq_len > self._rotary_limit:
            raise UnsupportedModelError(
                f"a sequence has {metadata.max_seq_len} tokens, and beyond {self._rotary_limit} the rotary angles of "
                f"{type(self.model).__name__} depend on the longest sequence of a batch: keep to shorter ones"
            )
        num_seqs = len(metadata.seq_lens)
        if logits_of is not None and not all(0 <= sequence < num_seqs for sequence in logits_of):
            raise ValueError(f"logits_of is {list(logits_of)}: the step has sequences 0 to {num_seqs - 1}")
        self.cache.copy_blocks(take_copies(chain.from_iterable(group.tables for group in groups)))
        last_tokens = metadata.query_start_loc[1:].long() - 1  # [num_seqs]
        if logits_of is not None:
            last_tokens = last_tokens[torch.tensor([*logits_of], dtype=torch.int64, device=last_tokens.device)]
        if self.forward == "fused":
            return self._fused.logits(token_ids, groups, last_tokens)
        return self._through_modules(token_ids, groups, last_tokens)

    def _through_modules(
        self, token_ids: Sequence[int], groups: Sequence[AttentionMetadata], last_tokens: torch.Tensor
    ) -> torch.Tensor:
        """Run the model's own code; give the logits of ``last_tokens``."""
        metadata = groups[0]
        # Without a GPU a Triton kernel is interpreted, and a prompt would take minutes: only decode goes to it by name.
        by_name = metadata.is_decode or self.attention in ("reference", "cpu")
        backend = self.attention if by_name else "auto"
        context = ForwardContext([groups[place.group] for place in self._places], self.cache, backend)
        keep = {"logits_to_keep": last_tokens} if self._takes_logits_to_keep else {}
        ours = attention_of(self.model, ATTENTION_NAME)
        with ours, latents_kept(self._latent_layers), set_forward_context(context):
            logits = self.model(
                input_ids=torch.tensor([list(token_ids)], device=self.model.device),  # [1, num_tokens]
                position_ids=metadata.positions[None, :],
                use_cache=False,
                **keep,
            ).logits[0]  # [len(last_tokens), vocab_size], or [num_tokens, vocab_size] of a model that cannot keep fewer
        missing = set(range(self.cache.shape.num_layers)) - context.windows.keys()
        if missing:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} computed attention outside transformers' interface in layers "
                f"{sorted(missing)}: their keys and values are not in the paged cache"
            )
        self.windows = context.windows
        self._check_windows()
        return logits if self._takes_logits_to_keep else logits[last_tokens]

    def _check_windows(self) -> None:
        """Refuse layers that read more than their group keeps: what they read beyond it may be another's."""
        for layer, window in self.windows.items():
            kept = self._places[layer].window
            if kept is not None and (window is None or window > kept):
                read = "every token" if window is None else f"a window of {window} tokens"
                raise UnsupportedModelError(
                    f"layer {layer} of {type(self.model).__name__} reads {read}, and its group keeps {kept}: form the "
                    "groups of what the model reads, or keep all layers in one table, as an engine does under "
                    "hybrid_kv_cache_manager=False"
                )


def windows_read(model: PreTrainedModel) -> dict[int, int | None]:
    """Find out how many tokens each layer reads at most, by computing one token on a cache of one block.

    A configuration may name a window that the model's class does not read. Only the class knows.

    Args:
        model: as for :class:`ModelRunner`.

    Returns:
        For each layer, by its number, its window; ``None`` if it reads every token.

    Raises:
        UnsupportedModelError: as :class:`ModelRunner` and :meth:`ModelRunner.execute` do.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
        >>> sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...              num_attention_heads=4, num_key_value_heads=2, sliding_window=5)
        >>> windows_read(LlamaForCausalLM(LlamaConfig(**sizes)))
        {0: None, 1: None}
        >>> windows_read(MistralForCausalLM(MistralConfig(**sizes)))
        {0: 5, 1: 5}
    """
    runner = ModelRunner(model, num_blocks=2, attention="reference")
    table = BlockTable(BlockPool(runner.cache.num_blocks, runner.cache.block_size))
    table.append_tokens(1)
    runner.execute([0], attention_metadata([table]))
    return runner.windows
