"""The cache tensors: what is written is read back, elsewhere nothing changes, and bad slots are named."""

from __future__ import annotations

import mmap

import pytest
import torch

from pagedattn_lab.huge_pages import HUGE_PAGE
from pagedattn_lab.kv_cache import PagedKVCache
from pagedattn_lab.kv_shape import KVShape
from tests.helpers.smaps import lines_of


def cache_of(dtype: str = "float32", num_layers: int = 2) -> PagedKVCache:
    return PagedKVCache(KVShape(num_layers, 3, 5, dtype), num_blocks=6, block_size=4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_write_then_gather(dtype: str) -> None:
    """Catches keys swapped with values, layers mixed up, a wrong slot, or a skipped token written."""
    cache = cache_of(dtype)
    key, value = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    cache.write(1, key, value, torch.tensor([9, -1, 4, 23]))
    kept = [0, 2, 3]
    for tensor, original in zip(cache.gather(1, [9, 4, 23]), (key, value), strict=True):
        assert torch.equal(tensor, original[kept].to(tensor.dtype))
    assert torch.equal(cache.key_caches[1][2, 1], key[0].to(cache.key_caches[1].dtype))
    for layer, expected in ((0, 0), (1, 3)):
        for caches in (cache.key_caches, cache.value_caches):
            assert caches[layer].flatten(0, 1).flatten(1).any(dim=1).sum() == expected


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages to ask for")
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_large_caches_ask_for_huge_pages(dtype: str) -> None:
    """Catches memory that is not zero, is shared with a child, or comes in small pages where large ones are to be had:
    the kernel's account of it says ``hg`` where a process asked for them, and ``sh`` where memory is shared.
    """
    cache = PagedKVCache(KVShape(1, 4, 64, dtype), num_blocks=2 * HUGE_PAGE // (4 * 64 * 16) + 1, block_size=16)
    tensor = cache.key_caches[0]
    assert tensor.shape == (cache.num_blocks, 16, 4, 64) and not tensor.view(torch.uint8).any()
    flags = lines_of(tensor.data_ptr())["VmFlags"].split()
    assert "hg" in flags and "sh" not in flags


def test_more_than_there_is_is_refused_in_torchs_words() -> None:
    """Catches an error of the system, which does not say how much was asked for."""
    for num_blocks in (10**12, 10**15):
        with pytest.raises(RuntimeError, match=r"allocate|overflowed"):
            PagedKVCache(KVShape(30, 3, 64, "float32"), num_blocks, block_size=16)


def test_copy_blocks_reads_before_it_writes() -> None:
    """Catches a chain of copies that passes on what an earlier copy wrote, and a layer left out."""
    cache = cache_of()
    for tensors in (cache.key_caches, cache.value_caches):
        for layer, tensor in enumerate(tensors):
            tensor.copy_((torch.arange(6.0) + 10 * layer)[:, None, None, None].expand_as(tensor))
    cache.copy_blocks([(1, 2), (2, 3), (5, 1)])
    for tensors in (cache.key_caches, cache.value_caches):
        for layer, tensor in enumerate(tensors):
            assert (tensor[:, 0, 0, 0] - 10 * layer).tolist() == [0, 5, 1, 2, 4, 5]
    cache.copy_blocks([])


@pytest.mark.parametrize("slot", [-2, 0, 3, 24])
def test_slots_outside_are_refused(slot: int) -> None:
    """Catches a write into the null block, or one that wraps round from the end of the cache."""
    cache = cache_of()
    tokens = torch.ones(2, 3, 5)
    with pytest.raises(ValueError, match=f"slot {slot} cannot be used"):
        cache.write(0, tokens, tokens, [8, slot])
    with pytest.raises(ValueError, match=f"slot {slot} cannot be used"):
        cache.gather(0, [8, slot])
    assert not cache.key_caches[0].any()
    with pytest.raises(ValueError, match="slot -1 cannot be used"):
        cache.gather(0, [-1])


def test_shapes_are_checked_before_writing() -> None:
    """Catches broadcasting one token over many slots, and a key written beside a refused value."""
    cache = cache_of()
    with pytest.raises(ValueError, match=r"key has shape \(1, 3, 5\)"):
        cache.write(0, torch.ones(1, 3, 5), torch.ones(1, 3, 5), [4, 5])
    with pytest.raises(ValueError, match="value has shape"):
        cache.write(0, torch.ones(2, 3, 5), torch.ones(2, 3, 4), [4, 5])
    with pytest.raises(ValueError, match="one slot per token"):
        cache.write(0, torch.ones(1, 3, 5), torch.ones(1, 3, 5), torch.tensor([[4]]))
    assert not cache.key_caches[0].any()


@pytest.mark.parametrize("pairs", [[(0, 1)], [(1, 0)], [(1, 6)], [(-1, 2)], [(1, 3), (2, 3)]])
def test_bad_copies_are_refused(pairs: list[tuple[int, int]]) -> None:
    """Catches a copy out of or into the null block, outside the cache, or twice into one block."""
    with pytest.raises(ValueError, match=r"cannot be copied|named twice"):
        cache_of().copy_blocks(pairs)


def test_bytes_and_dtypes() -> None:
    """Catches a cache larger than its shape says, and a dtype it would only pretend to hold."""
    cache = cache_of("bfloat16", num_layers=3)
    assert cache.num_bytes == 6 * cache.shape.bytes_per_block(4) == 6 * 4 * 2 * 3 * 3 * 5 * 2
    with pytest.raises(ValueError, match="float8_e5m2 is not supported"):
        cache_of("float8_e5m2")
    with pytest.raises(ValueError, match="cannot be built"):
        PagedKVCache(KVShape(1, 1, 1, "float32"), num_blocks=1, block_size=4)


@pytest.mark.parametrize("slots", [torch.tensor([4.5, 9.0]), [4.5, 9.0], torch.tensor([True, False])])
def test_slots_that_are_no_whole_numbers_are_refused(slots: object) -> None:
    """Catches a slot of 4.5 that is cut to 4, where another token lies."""
    cache = cache_of()
    with pytest.raises(ValueError, match="whole numbers are needed"):
        cache.write(0, torch.ones(2, 3, 5), torch.ones(2, 3, 5), slots)
    with pytest.raises(ValueError, match="whole numbers are needed"):
        cache.gather(0, slots)
    assert not cache.key_caches[0].any()
    cache.write(0, torch.ones(0, 3, 5), torch.ones(0, 3, 5), [])


def test_what_is_written_is_in_the_cache() -> None:
    """Catches a write to a copy of a cache whose blocks do not lie one behind the other: it would change nothing."""
    cache = cache_of()
    storage = torch.zeros(6, 2, 4, 3, 5)
    cache.key_caches[0], cache.value_caches[0] = storage[:, 0], storage[:, 1]  # keys and values of a block side by side
    try:
        cache.write(0, torch.ones(1, 3, 5), torch.full((1, 3, 5), 2.0), [9])
    except RuntimeError as error:
        assert "view" in str(error)
    else:
        assert storage[2, 0, 1].eq(1).all() and storage[2, 1, 1].eq(2).all()


def test_values_of_another_width() -> None:
    """Catches values cut to the width of keys, or priced with it."""
    cache = PagedKVCache(KVShape(2, 3, 5, "float32", value_dim=4), num_blocks=6, block_size=4)
    key, value = torch.randn(2, 3, 5), torch.randn(2, 3, 4)
    cache.write(1, key, value, [9, 4])
    assert [torch.equal(*pair) for pair in zip(cache.gather(1, [9, 4]), (key, value), strict=True)] == [True, True]
    assert cache.num_bytes == 6 * cache.shape.bytes_per_block(4) == 6 * 4 * 2 * 3 * (5 + 4) * 4
    with pytest.raises(ValueError, match=r"value has shape \(2, 3, 5\): \(2, 3, 4\) is needed"):
        cache.write(0, key, key, [9, 4])
    with pytest.raises(ValueError, match="value is None, and give one for each key"):
        cache.write(0, key, None, [9, 4])
    assert not cache.key_caches[0].any()


def test_latents_are_stored_once() -> None:
    """Catches memory taken for values that latents hold already, and a value that does not begin its latent."""
    cache = PagedKVCache(KVShape(2, 1, 5, "float32", value_dim=3, latent=True), num_blocks=6, block_size=4)
    latent = torch.randn(2, 1, 5)
    cache.write(1, latent, None, [9, -1])
    cache.copy_blocks([(2, 5)])
    for slot in (9, 21):
        key, value = cache.gather(1, [slot])
        assert torch.equal(key, latent[:1]) and torch.equal(value, latent[:1, :, :3])
    assert cache.num_bytes == 6 * cache.shape.bytes_per_block(4) == 6 * 4 * 2 * 5 * 4
    assert cache.value_caches[1].data_ptr() == cache.key_caches[1].data_ptr()
    with pytest.raises(ValueError, match="value is a tensor, and latents hold their values"):
        cache.write(0, latent, latent[..., :3], [9, 4])
    assert not cache.key_caches[0].any()


@pytest.mark.parametrize("dtype", ["fp8_per_token_head", "int8_per_token_head"])
def test_latents_in_8_bits_have_one_scale(dtype: str) -> None:
    """Catches a value read with another scale than the latent that it is a part of, and a scale priced twice."""
    cache = PagedKVCache(KVShape(2, 1, 5, dtype, value_dim=3, latent=True), num_blocks=6, block_size=4)
    latent = torch.randn(2, 1, 5)
    cache.write(1, latent, None, [9, 4])
    cache.copy_blocks([(2, 5)])
    key, value = cache.gather(1, [21])
    assert torch.equal(value, key[..., :3])
    assert (key - latent[:1]).abs().max() <= latent.abs().max() / 16
    assert cache.num_bytes == 6 * cache.shape.bytes_per_block(4) == 6 * 4 * 2 * (5 + 4)
