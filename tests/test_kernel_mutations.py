"""The kernel's tests can fail: each way of breaking the kernel must turn the comparison red."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pagedattn_lab.attention import triton_decode
from tests.helpers.draws import KERNELS
from tests.helpers.mutants import load
from tests.helpers.oracle import Batch, assert_matches, dense_attention, ragged_batch, spread

pytestmark = pytest.mark.when_changed(*KERNELS)

SOURCE = Path(triton_decode.__file__).read_text()

MUTATIONS = {
    "mask off by one": ("in_sequence = positions < context_len", "in_sequence = positions <= context_len"),
    "mask one short": ("in_sequence = positions < context_len", "in_sequence = positions < context_len - 1"),
    "scores not masked": ("tl.where(in_sequence, scores,", "tl.where(in_sequence | True, scores,"),
    "accumulator not rescaled": ("acc = acc * rescale +", "acc = acc +"),
    "sum not rescaled": ("running_sum = running_sum * rescale +", "running_sum = running_sum +"),
    "maximum not kept": ("running_max = new_max", "running_max = new_max * 0 + running_max"),
    "slot stride of the values for the keys": ("slot * key_stride_slot", "slot * value_stride_slot"),
    "block stride of the keys for the values": ("block * value_stride_block", "block * key_stride_block"),
    "head stride of the values for the keys": ("kv_head * key_stride_head", "kv_head * value_stride_head"),
    "wrong table row": ("sequence * table_stride", "token * table_stride"),
    "block index not looked up": (
        "block = tl.load(table_row + positions // BLOCK_SIZE, mask=in_sequence, other=0).to(tl.int64)",
        "block = (positions // BLOCK_SIZE).to(tl.int64)",
    ),
    "KV head not shared by neighbours": ("head // QUERIES_PER_KV", "head % QUERIES_PER_KV"),
}


NARROW = {  # what is cut to 32 bits, and the tensor and dimension whose stride must be wide for it to matter
    "token": ("tl.program_id(0).to(tl.int64)", "tl.program_id(0)", "query", 0),
    "head": ("tl.program_id(1).to(tl.int64)", "tl.program_id(1)", "query", 1),
    "KV head": ("head // QUERIES_PER_KV", "(head // QUERIES_PER_KV).to(tl.int32)", "key_cache", 2),
    "slot": ("(positions % BLOCK_SIZE).to(tl.int64)", "positions % BLOCK_SIZE", "value_cache", 1),
    "block": ("in_sequence, other=0).to(tl.int64)", "in_sequence, other=0)", "key_cache", 0),
}


def batch() -> Batch:
    """A batch on which every part of the kernel matters, and a mutant reads no memory that is not there."""
    return ragged_batch([147, 8, 70], [1, 2, 1], block_size=8, head_dim=80, heads=6, kv_heads=2, garbage=None, seed=11)


def run(module: ModuleType, subject: Batch) -> None:
    positional, keywords = subject.arguments()
    output = module.triton_attention(*positional, **keywords, scale=1 / math.sqrt(80))
    assert_matches(output, dense_attention(subject))


def test_unmutated_copy_passes(tmp_path: Path) -> None:
    """Catches a harness that fails whatever the kernel does."""
    run(load(SOURCE, tmp_path), batch())


@pytest.mark.filterwarnings("ignore:.*(NaN|invalid value):RuntimeWarning")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutant_is_caught(mutation: str, tmp_path: Path) -> None:
    """Catches a comparison too weak to notice the named mistake."""
    original, mutated = MUTATIONS[mutation]
    assert SOURCE.count(original) == 1, f"the kernel no longer holds {original!r} once: bring the mutation up to date"
    module = load(SOURCE.replace(original, mutated), tmp_path)
    with pytest.raises(AssertionError, match="times the rounding bound"):
        run(module, batch())


@pytest.mark.filterwarnings("ignore:.*overflow:RuntimeWarning")
@pytest.mark.parametrize("index", NARROW)
def test_narrow_offset_is_caught(index: str, tmp_path: Path) -> None:
    """Catches wide strides that are not wide enough to tell 64 bits from 32."""
    original, mutated, name, dim = NARROW[index]
    assert SOURCE.count(original) == 1, f"the kernel no longer holds {original!r} once: bring the mutation up to date"
    subject = ragged_batch([9, 3], [2, 1], block_size=4, head_dim=80, kv_heads=3, dtype=torch.float16, seed=12)
    setattr(subject, name, spread(getattr(subject, name), dim, tmp_path))
    run(load(SOURCE, tmp_path), subject)
    with pytest.raises(AssertionError, match="times the rounding bound"):
        run(load(SOURCE.replace(original, mutated), tmp_path), subject)
