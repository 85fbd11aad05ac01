"""The tensors behind the page table: one pair of block arrays per layer (chapters 04 and 08).

The layout ``[num_blocks, block_size, num_kv_heads, head_dim]`` is the one in which vLLM's FlashAttention and Triton
backends see keys and values. In release 0.33.0 both are slices of one tensor per layer, in which each key lies beside
its value (``vllm/v1/attention/backends/flash_attn.py``). Here each has a tensor of its own.

Layers of different groups share a pair, because a block belongs to one group at a time (chapter 11).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

import torch

from pagedattn_lab import huge_pages
from pagedattn_lab.attention.quantize import quantize, token_head_scales
from pagedattn_lab.attention.reference import dequantized
from pagedattn_lab.attention.variant import EIGHT_BIT
from pagedattn_lab.kv_shape import KVShape

CACHE_DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn, "fp8_per_token_head": torch.float8_e4m3fn,
    "int8": torch.int8, "int8_per_token_head": torch.int8,
}  # fmt: skip
"""The dtype of the tensors for each dtype of a :class:`pagedattn_lab.kv_shape.KVShape` that a cache can hold."""


class PagedKVCache:
    """Keys and values of every layer, in blocks that any sequence may own.

    Args:
        shape: layers, KV heads, head dimension and dtype, one of :data:`CACHE_DTYPES`. An 8-bit cache quantises what it
            stores. Under a dtype that ends in ``_per_token_head`` each token and head gets a scale of its own, from
            its largest number; under float8_e4m3fn and int8 all share the two scales given here.
        num_blocks: blocks per layer, the null block included.
        block_size: tokens per block.
        device: where the tensors live.
        k_scale, v_scale: of all keys and of all values, under float8_e4m3fn (by default 1, as in vLLM) and int8. What
            exceeds 448 scales, or 127 for int8, is cut.
        num_host_blocks: blocks per layer in host memory, for :meth:`copy_out` and :meth:`copy_in`, its null block
            included; 0 for none.
        tensor_of_layer: in which pair of tensors each layer keeps its blocks, counted from 0; by default each has its
            own. Layers that share one must own different blocks: see :func:`pagedattn_lab.kv_layers.layer_places`.

    Attributes:
        key_caches, value_caches: one tensor per layer, ``[num_blocks, block_size, num_kv_heads, head_dim]``; values may
            have a head_dim of their own. Of latents, a value cache is a view of the key cache's first elements. Layers
            that share a tensor have the same one here.
        k_scales, v_scales: what a layer's attention needs beside them: ``None``, or a float32 tensor of one element, or
            ``[num_blocks, block_size, num_kv_heads]``. The value in a latent has the scale of the latent.

    Raises:
        ValueError: a dtype this cache cannot hold, sizes below 1, a scale that is not positive, or one that is missing
            or has no meaning.

    Example:
        >>> cache = PagedKVCache(KVShape(2, 3, 8, "float32"), num_blocks=4, block_size=16)
        >>> tokens = torch.arange(2 * 3 * 8.).reshape(2, 3, 8)
        >>> cache.write(0, tokens, -tokens, slot_mapping=[17, 40])
        >>> key, value = cache.gather(0, slot_mapping=[40, 17])
        >>> torch.equal(key, tokens.flip(0)), torch.equal(value, -tokens.flip(0))
        (True, True)
        >>> cache.num_bytes == 4 * cache.shape.bytes_per_block(16)
        True
    """

    def __init__(
        self,
        shape: KVShape,
        num_blocks: int,
        block_size: int,
        device: torch.device | str = "cpu",
        *,
        k_scale: float | None = None,
        v_scale: float | None = None,
        num_host_blocks: int = 0,
        tensor_of_layer: Sequence[int] | None = None,
    ) -> None:
        if shape.dtype not in CACHE_DTYPES:
            raise ValueError(f"a paged cache of {shape.dtype} is not supported: use one of {', '.join(CACHE_DTYPES)}")
        if num_blocks < 2 or block_size < 1:
            raise ValueError(
                f"a cache of {num_blocks} blocks of {block_size} tokens cannot be built: it needs at least 2 blocks "
                "(block 0 is the null block) of at least 1 token"
            )
        if num_host_blocks < 0:
            raise ValueError(f"num_host_blocks is {num_host_blocks}: give 0 or more")
        self._per_token_head = shape.dtype.endswith("_per_token_head")
        _check_scales(shape.dtype, k_scale, v_scale)
        self.shape, self.num_blocks, self.block_size = shape, num_blocks, block_size
        self.num_host_blocks = num_host_blocks

        rows = (num_blocks, block_size, shape.num_kv_heads)
        places = list(range(shape.num_layers) if tensor_of_layer is None else tensor_of_layer)
        self._owners = [places.index(place) for place in range(max(places) + 1)]  # of each tensor, the first layer

        def blocks(dim: int) -> list[torch.Tensor]:
            """Make the tensors, and name one for each layer."""
            made = [_zeros((*rows, dim), CACHE_DTYPES[shape.dtype], torch.device(device)) for _ in self._owners]
            return [made[place] for place in places]

        self.key_caches = blocks(shape.head_dim)
        if shape.latent:
            self.value_caches = [latents[..., : shape.value_dim] for latents in self.key_caches]
        else:
            self.value_caches = blocks(shape.value_dim)

        def scales(of_all: float | None) -> list[torch.Tensor | None]:
            if self._per_token_head:
                made = [torch.zeros(rows, device=device) for _ in self._owners]
                return [made[place] for place in places]
            is_8_bit = CACHE_DTYPES[shape.dtype] in EIGHT_BIT
            common = torch.tensor([1.0 if of_all is None else of_all], device=device) if is_8_bit else None
            return [common] * shape.num_layers

        self.k_scales = scales(k_scale)
        self.v_scales = self.k_scales if shape.latent else scales(v_scale)
        self._host = [torch.zeros(num_host_blocks, *rows.shape[1:], dtype=rows.dtype) for rows in self._in_blocks()]
        self._writes_by_kernel = _kernel_compiles(self.key_caches[0])

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks together, the scales of their tokens included; host memory is not counted."""
        return sum(tensor.nbytes for tensor in self._in_blocks())

    @property
    def num_host_bytes(self) -> int:
        """Bytes of all blocks in host memory."""
        return sum(tensor.nbytes for tensor in self._host)

    def _in_blocks(self) -> list[torch.Tensor]:
        """Give every tensor whose first dimension counts blocks: what belongs to a block lies in all of these."""
        keys = self.key_caches, *([self.k_scales] if self._per_token_head else [])
        values = self.value_caches, *([self.v_scales] if self._per_token_head else [])
        of_layers = keys if self.shape.latent else keys + values
        return [tensors[layer] for tensors in of_layers for layer in self._owners]

    def write(
        self, layer: int, key: torch.Tensor, value: torch.Tensor | None, slot_mapping: torch.Tensor | Sequence[int]
    ) -> None:
        """Store tokens' keys and values at their slots.

        Args:
            layer: which layer.
            key, value: ``[num_tokens, num_kv_heads, head_dim]``; converted to the cache's dtype, quantised for 8 bits.
                A latent holds its value already: ``None`` then.
            slot_mapping: ``[num_tokens]``; −1 skips a token.

        Raises:
            ValueError: shapes that do not match, or a slot outside the cache or in the null block.
        """
        slots = self._slots(slot_mapping, skip=-1)
        if (value is None) != self.shape.latent:
            needed = "latents hold their values: give None" if self.shape.latent else "give one for each key"
            raise ValueError(f"value is {None if value is None else 'a tensor'}, and {needed}")
        for name, tensor, dim in (("key", key, self.shape.head_dim), ("value", value, self.shape.value_dim)):
            expected = (len(slots), self.shape.num_kv_heads, dim)
            if tensor is not None and tuple(tensor.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}: {expected} is needed for these slots")
        kept = slots >= 0
        if not bool(kept.all()):
            slots, key, value = slots[kept], key[kept], None if value is None else value[kept]
        self.store(layer, key, value, slots)

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor | None, slots: torch.Tensor) -> None:
        """Do what :meth:`write` does with what is right already: no check, and no wait for a device.

        Args:
            layer: which layer.
            key, value: ``[num_tokens, num_kv_heads, head_dim]``; no value beside a latent.
            slots: ``[num_tokens]`` int64 on the cache's device, all of them usable.
        """
        key_cache, value_cache = self.key_caches[layer], self.value_caches[layer]
        k_scale, v_scale = self.k_scales[layer], self.v_scales[layer]
        if self._writes_by_kernel and value is not None:
            from pagedattn_lab.attention.triton_cache import reshape_and_cache  # late: Triton exists for Linux only

            key, value = (rows if rows.stride(-1) == 1 else rows.contiguous() for rows in (key, value))
            reshape_and_cache(key, value, key_cache, value_cache, slots, k_scale, v_scale)
            return
        for cache, scale, rows in ((key_cache, k_scale, key), (value_cache, v_scale, value)):
            if rows is None:
                continue
            if scale is None:
                _by_slot(cache)[slots] = rows.to(cache.dtype)
                continue
            if self._per_token_head:
                of_rows = token_head_scales(rows, cache.dtype)
                _by_slot(scale)[slots] = of_rows
                scale = of_rows[..., None]
            _by_slot(cache)[slots] = quantize(rows, scale, cache.dtype)

    def gather(self, layer: int, slot_mapping: torch.Tensor | Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Read tokens back from their slots: the inverse of :meth:`write`.

        Returns:
            ``(key, value)``, each ``[num_tokens, num_kv_heads, head_dim]``, copies, in the cache's dtype; of an 8-bit
            cache in float32, times their scales.

        Raises:
            ValueError: a slot outside the cache or in the null block.
        """
        slots = self._slots(slot_mapping)
        key, value = _by_slot(self.key_caches[layer])[slots], _by_slot(self.value_caches[layer])[slots]
        if key.dtype not in EIGHT_BIT:
            return key, value
        blocks, offsets = slots // self.block_size, slots % self.block_size
        return (
            dequantized(key, self.k_scales[layer], blocks, offsets, torch.float32),
            dequantized(value, self.v_scales[layer], blocks, offsets, torch.float32),
        )

    def copy_blocks(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy whole blocks with their scales, in every layer; all sources are read before any destination is written.

        Args:
            pairs: ``(source, destination)`` block numbers.

        Raises:
            ValueError: a number outside the cache, the null block, or one destination named twice.
        """
        self._copy(pairs, self._in_blocks(), self._in_blocks())

    def copy_out(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy whole blocks with their scales to host memory, in every layer.

        Args:
            pairs: ``(block, host block)`` numbers, as :meth:`pagedattn_lab.kv_manager.KVCacheManager.swap_out` gives
                them.

        Raises:
            ValueError: a number outside the cache or host memory, a null block, or one destination named twice.

        Example:
            >>> cache = PagedKVCache(KVShape(1, 1, 4, "float32"), num_blocks=4, block_size=2, num_host_blocks=3)
            >>> cache.write(0, torch.ones(1, 1, 4), torch.ones(1, 1, 4), slot_mapping=[2])       # in block 1
            >>> cache.copy_out([(1, 2)])
            >>> cache.copy_in([(2, 3)])
            >>> cache.gather(0, slot_mapping=[6])[0].tolist()                                    # in block 3
            [[[1.0, 1.0, 1.0, 1.0]]]
        """
        self._copy(pairs, self._in_blocks(), self._host)

    def copy_in(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy whole blocks back from host memory: the inverse of :meth:`copy_out`.

        Args:
            pairs: ``(host block, block)`` numbers, as :meth:`pagedattn_lab.kv_manager.KVCacheManager.swap_in` gives
                them.

        Raises:
            ValueError: as for :meth:`copy_out`.
        """
        self._copy(pairs, self._host, self._in_blocks())

    @staticmethod
    def _copy(pairs: Iterable[tuple[int, int]], of: Sequence[torch.Tensor], to: Sequence[torch.Tensor]) -> None:
        """Copy blocks of some tensors to others, or within them; nothing is written before all of it is checked."""
        pairs = list(pairs)
        sources, destinations = [source for source, _ in pairs], [destination for _, destination in pairs]
        for numbers, tensors in ((sources, of), (destinations, to)):
            for block_id in numbers:
                if not 0 < block_id < len(tensors[0]):
                    raise ValueError(
                        f"block {block_id} cannot be copied: there are {max(0, len(tensors[0]) - 1)} blocks to name, "
                        "from 1 on"
                    )
        if len(set(destinations)) < len(destinations):
            raise ValueError(f"a block is named twice as a destination in {pairs}")
        if not pairs:
            return
        source = torch.tensor(sources, device=of[0].device)
        destination = torch.tensor(destinations, device=to[0].device)
        for read, written in zip(of, to, strict=True):
            written[destination] = read[source].to(written.device)

    def _slots(self, slot_mapping: torch.Tensor | Sequence[int], skip: int | None = None) -> torch.Tensor:
        """Check slots, all but those that equal ``skip``, and give them as an index tensor on the cache's device."""
        slots = torch.as_tensor(slot_mapping, device=self.key_caches[0].device)
        if slots.numel() and (slots.is_floating_point() or slots.is_complex() or slots.dtype == torch.bool):
            raise ValueError(f"slot_mapping is {slots.dtype}: whole numbers are needed")
        slots = slots.to(torch.int64)
        if slots.dim() != 1:
            raise ValueError(f"slot_mapping has shape {tuple(slots.shape)}: one slot per token is needed")
        total = self.num_blocks * self.block_size
        usable = (slots >= self.block_size) & (slots < total)
        refused = slots[~usable if skip is None else ~usable & (slots != skip)]
        if len(refused):
            raise ValueError(
                f"slot {int(refused[0])} cannot be used: slots run from {self.block_size} to {total - 1}, "
                f"and those below {self.block_size} are in the null block"
            )
        return slots


def _by_slot(cache: torch.Tensor) -> torch.Tensor:
    """One layer's blocks as a row of slots, ``[num_slots, num_kv_heads, ...]``, in the same memory.

    A view, never a copy: what is written to it is in the cache. ``flatten`` would copy a cache whose blocks do not lie
    one behind the other, and what is written to the copy would be lost; ``view`` refuses such a cache.
    """
    return cache.view(-1, *cache.shape[2:])


def _check_scales(dtype: str, k_scale: float | None, v_scale: float | None) -> None:
    """Refuse scales where there is none for a whole tensor, and integers without one: 1 would cut fractions off."""
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is None and dtype == "int8":
            raise ValueError(
                f"a cache of int8 needs {name}: give it, or let each row have its own: int8_per_token_head"
            )
        if scale is not None and dtype not in ("float8_e4m3fn", "int8"):
            raise ValueError(f"{name} = {scale} has no meaning for a cache of {dtype}: leave it out")
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"{name} is {scale}: give a positive number")


def _kernel_compiles(cache: torch.Tensor) -> bool:
    """Say whether a cache is written by the kernel: on a GPU for which Triton is there and compiles it."""
    if cache.device.type != "cuda" or find_spec("triton") is None:
        return False
    from pagedattn_lab.attention.triton_cache import compiles_for

    return compiles_for(cache.device, cache.dtype)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Take memory for blocks, all zero; on a CPU in huge pages where there are some: its kernel is 15 % faster then."""
    memory = huge_pages.take(math.prod(shape) * dtype.itemsize) if device.type == "cpu" else None
    if memory is None:
        return torch.zeros(*shape, dtype=dtype, device=device)  # torch can say how much was asked for
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(*shape)  # it keeps the memory
