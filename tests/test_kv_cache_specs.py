"""What one layer keeps: bytes of a page, blocks of a request, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.kv_cache_specs import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    RequestLimits,
    SlidingWindowSpec,
)
from pagedattn_lab.kv_shape import DTYPE_BYTES, KVShape

LIMITS = RequestLimits(max_model_len=8192, max_in_flight_tokens=8192)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_a_page_is_a_layers_share_of_a_block(dtype: str) -> None:
    """Catches a page that counts other bytes than the shape of chapter 01, scales included."""
    shape = KVShape(1, 8, 128, dtype, value_dim=64)
    for block_size in (1, 16, 784):
        assert FullAttentionSpec(block_size, 8, 128, dtype, 64).page_size_bytes == shape.bytes_per_block(block_size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_a_page_of_latents(dtype: str) -> None:
    """Catches latents that are counted for keys and values, or for each head."""
    shape = KVShape(1, 1, 576, dtype, value_dim=512, latent=True)
    assert MLAAttentionSpec(64, 576, dtype).page_size_bytes == shape.bytes_per_block(64)


def test_latents_with_scales_have_two() -> None:
    """Catches one scale for a latent: vLLM keeps a pair, as for a key and a value (MLACommonBackend.customize_spec)."""
    assert MLAAttentionSpec(64, 576, "fp8_per_token_head").page_size_bytes == 64 * (576 + 2 * 4)


@given(blocks=st.integers(1, 64), heads=st.integers(1, 16), groups=st.integers(1, 32))
def test_nvfp4_is_nine_sixteenths_of_a_byte(blocks: int, heads: int, groups: int) -> None:
    """Catches scales of nvfp4 that are left out: 4 bits a number and 8 for 16 of them, always whole bytes."""
    page = FullAttentionSpec(blocks, heads, 16 * groups, "nvfp4").page_size_bytes
    assert page == 0.5625 * 2 * blocks * heads * 16 * groups and isinstance(page, int)


@pytest.mark.parametrize(
    ("spec", "blocks"),
    [
        (FullAttentionSpec(16, 8, 128, "bfloat16"), 512),
        (MLAAttentionSpec(64, 576, "bfloat16"), 128),
        (SlidingWindowSpec(16, 8, 256, "bfloat16", sliding_window=4096), 513),  # gemma-2-9b: 512 + 513 = 1,025
        (ChunkedLocalAttentionSpec(16, 8, 128, "bfloat16", attention_chunk_size=8192), 512),
        (MambaSpec(784, state_bytes=1000), 1),
    ],
)
def test_blocks_of_a_request(spec: KVCacheSpec, blocks: int) -> None:
    """Catches a rule that is off by a block, with figures of known logs."""
    assert spec.max_blocks_per_request(LIMITS) == blocks


def test_a_chunk_and_what_is_in_flight() -> None:
    """Catches a long context charged a chunk alone, or all of its tokens."""
    chunk = ChunkedLocalAttentionSpec(16, 8, 128, "bfloat16", attention_chunk_size=8192)
    assert chunk.max_blocks_per_request(RequestLimits(131072, 2048)) == 512 + 128


def test_a_window_of_gpt_oss_with_two_steps_in_flight() -> None:
    """Catches an in-flight term that is left out: 265 blocks with 2 x 2,048 tokens, as a log of 0.30 has it."""
    window = SlidingWindowSpec(16, 8, 64, "bfloat16", sliding_window=128)
    assert window.max_blocks_per_request(RequestLimits(32768, 2 * 2048)) == 265


@pytest.mark.parametrize(
    ("mode", "speculative", "checkpoints", "blocks"),
    [("none", 0, 1, 1), ("none", 2, 0, 3), ("align", 0, 0, 2), ("align", 2, 1, 5), ("all", 0, 0, 11)],
)
def test_states_of_a_request(mode: str, speculative: int, checkpoints: int, blocks: int) -> None:
    """Catches a state of a drafter, of prefix caching or of a checkpoint that is forgotten."""
    state = MambaSpec(784, 1000, None, speculative, checkpoints)
    assert state.max_blocks_per_request(RequestLimits(8192, 8192, mode)) == blocks  # type: ignore[arg-type]


@given(
    block_size=st.integers(1, 300),
    window=st.integers(1, 5000),
    extra=st.integers(0, 3),
    length=st.integers(1, 20000),
    in_flight=st.integers(1, 9000),
)
def test_a_window_never_needs_more_than_its_tokens_lie_in(
    block_size: int, window: int, extra: int, length: int, in_flight: int
) -> None:
    """Catches a bound that is too small for some place where the window can begin, or larger than the worst place.

    The tokens kept are one run, as long as the window and what is in flight allow. Wherever in a block it begins, it
    must fit; and begun at a block's last token, it needs the bound or one less.
    """
    spec = SlidingWindowSpec(block_size, 1, 1, "int8", sliding_window=window, extra_retained_tokens=extra)
    kept = min(window - 1 + extra + in_flight, length)
    bound = spec.max_blocks_per_request(RequestLimits(length, in_flight))
    worst = cdiv(block_size - 1 + kept, block_size)
    assert worst <= bound <= worst + 1


@given(length=st.integers(1, 10**6), more=st.integers(0, 10**5), in_flight=st.integers(1, 10**5))
def test_longer_requests_never_need_fewer_blocks(length: int, more: int, in_flight: int) -> None:
    """Catches a rule on which the search for the longest request that fits could not rely."""
    for spec in (
        FullAttentionSpec(16, 8, 128, "bfloat16"),
        SlidingWindowSpec(16, 8, 128, "bfloat16", sliding_window=4096),
        ChunkedLocalAttentionSpec(16, 8, 128, "bfloat16", attention_chunk_size=8192),
        MLAAttentionSpec(16, 576, "bfloat16"),
        MambaSpec(16, 5),
    ):
        short, long = (RequestLimits(tokens, in_flight, "align") for tokens in (length, length + more))
        assert spec.max_blocks_per_request(short) <= spec.max_blocks_per_request(long)


def test_padding_counts() -> None:
    """Catches padding that is not charged, or that hides what a page holds."""
    state = MambaSpec(784, state_bytes=1000, page_size_padded=1024)
    assert state.page_size_bytes == 1024 and state.unpadded_page_size_bytes == 1000


def test_names_of_torch_are_understood() -> None:
    """Catches a spec that differs from its twin because somebody passed a torch.dtype."""
    assert FullAttentionSpec(16, 8, 128, "torch.bfloat16") == FullAttentionSpec(16, 8, 128, "bfloat16")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FullAttentionSpec(0, 8, 128, "bfloat16"), "block_size is 0"),
        (lambda: FullAttentionSpec(16, 0, 128, "bfloat16"), "num_kv_heads is 0"),
        (lambda: FullAttentionSpec(16, 8, 128, "bf16"), "dtype 'bf16' is not one"),
        (lambda: FullAttentionSpec(16, 8, 128, "nvfp4", 64), "keys of 128 and values of 64"),
        (lambda: FullAttentionSpec(16, 8, 40, "nvfp4"), "multiple of 16"),
        (lambda: FullAttentionSpec(16, 8, 128, "bfloat16", page_size_padded=65535), "does not hold"),
        (lambda: SlidingWindowSpec(16, 8, 128, "bfloat16", sliding_window=0), "sliding_window is 0"),
        (
            lambda: SlidingWindowSpec(16, 8, 128, "bfloat16", sliding_window=8, extra_retained_tokens=-1),
            "at least 0",
        ),
        (lambda: ChunkedLocalAttentionSpec(16, 8, 128, "bfloat16", attention_chunk_size=0), "attention_chunk_size"),
        (lambda: MLAAttentionSpec(64, 576, "nvfp4"), "dtype 'nvfp4' is not one"),
        (lambda: MambaSpec(16, 0), "state_bytes is 0"),
        (lambda: MambaSpec(16, 10, page_size_padded=9), "does not hold"),
        (lambda: MambaSpec(16, 10, None, -1), "num_speculative_blocks is -1"),
        (lambda: RequestLimits(0, 1), "max_model_len is 0"),
        (lambda: RequestLimits(1, 0), "max_in_flight_tokens is 0"),
        (lambda: RequestLimits(1, 1, "some"), "mamba_cache_mode is 'some'"),  # type: ignore[arg-type]
    ],
)
def test_what_is_impossible_is_refused(make, says: str) -> None:
    """Catches a layer that no server has, accepted."""
    with pytest.raises(ValueError, match=says):
        make()
