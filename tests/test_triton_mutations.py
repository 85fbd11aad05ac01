"""The fast kernels' tests can fail: each way of breaking one must turn a comparison red."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pagedattn_lab import attention
from pagedattn_lab.attention.variant import Variant
from tests.helpers.draws import KERNELS
from tests.helpers.oracle import Batch, assert_matches, dense_attention, quantized, ragged_batch, spread

pytestmark = pytest.mark.when_changed(*KERNELS)

FOLDER = Path(attention.__file__).parent
SOURCES = {name: (FOLDER / f"triton_{name}.py").read_text() for name in ("tile", "call", "grouped", "split", "prefill")}
SINKS, SLOPES = torch.linspace(-3, 9, 6), torch.linspace(0.02, 0.9, 6)
Modules = dict[str, ModuleType]
Copies = Callable[..., Modules]


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    """Give a function that imports copies of the kernels' modules, in one of which a piece of text is replaced.

    What they leave unwritten is NaN, and not what happened to be in memory.
    """
    monkeypatch.syspath_prepend(tmp_path)
    new_empty = torch.Tensor.new_empty

    def new_nan(self: torch.Tensor, *size: int, **options: object) -> torch.Tensor:
        empty = new_empty(self, *size, **options)
        return empty.fill_(math.nan) if empty.is_floating_point() else empty

    monkeypatch.setattr(torch.Tensor, "new_empty", new_nan)

    def load(name: str = "tile", original: str = "", mutated: str = "") -> Modules:
        count = SOURCES[name].count(original)
        assert not original or count == 1, f"triton_{name} holds {original!r} {count} times: bring it up to date"
        package = tmp_path / f"mutant{len(list(tmp_path.glob('mutant*')))}"
        package.mkdir()
        for each, source in SOURCES.items():
            changed = source.replace(original, mutated) if original and each == name else source
            changed = changed.replace("pagedattn_lab.attention.triton_", f"{package.name}.triton_")
            (package / f"triton_{each}.py").write_text(changed)
        importlib.invalidate_caches()
        return {each: importlib.import_module(f"{package.name}.triton_{each}") for each in SOURCES}

    yield load
    for name in [name for name in sys.modules if name.startswith("mutant")]:
        del sys.modules[name]


def plain(query_lens: list[int]) -> Batch:
    """A batch on which every part of a kernel matters, and a mutant reads no memory that is not there."""
    return ragged_batch(
        [65, 8, 40], query_lens, block_size=8, head_dim=72, heads=6, kv_heads=2, garbage=None, seed=11, value_dim=80
    )


def run(modules: Modules, batch: Batch, splits: int | None, scales: object = None, **options: object) -> None:
    query, key_cache, value_cache, tables, seq_lens = batch.arguments()[0]
    variant, scale = Variant(**options, **(scales or {})), 1 / math.sqrt(query.shape[2])
    if splits is None:
        output = modules["prefill"].prefill_attention(
            query, key_cache, value_cache, tables, seq_lens, batch.query_start_loc, scale, variant
        )
    else:
        output = modules["split"].decode_attention(
            query, key_cache, value_cache, tables, seq_lens, scale, variant, splits
        )
    weights_dtype = None if query.dtype == torch.float32 else query.dtype
    assert_matches(output, dense_attention(batch, **options, weights_dtype=weights_dtype))


def decode(modules: Modules) -> None:
    """Two splits of each sequence: the tile, the grouped kernel and the merge."""
    run(modules, plain([1, 1, 1]), 2)


def whole(modules: Modules) -> None:
    """One split of each sequence, with everything that a layer may do besides."""
    run(modules, plain([1, 1, 1]), 1, softcap=1.5, sliding_window=34, alibi_slopes=SLOPES, sinks=SINKS)


def windowed(modules: Modules) -> None:
    """Splits of a window, some of them empty, and sinks."""
    run(modules, plain([1, 1, 1]), 5, sliding_window=34, sinks=SINKS)


def prefill(modules: Modules) -> None:
    """Tiles that begin in the middle of a token's heads, and sequences with one query."""
    run(modules, plain([60, 1, 30]), None)


def windowed_prefill(modules: Modules) -> None:
    """The same behind a window that is shorter than a tile of keys, with slopes."""
    run(modules, plain([60, 1, 30]), None, sliding_window=5, alibi_slopes=SLOPES)


def eight_bit(modules: Modules) -> None:
    """Scales for each token and head."""
    batch = plain([1, 1, 1])
    run(modules, batch, 1, quantized(batch, torch.int8, (True, True)))


def whole_scales(modules: Modules) -> None:
    """A scale for each cache."""
    batch = plain([1, 1, 1])
    run(modules, batch, 2, quantized(batch, torch.int8, (False, False)))


def latents(modules: Modules, first: int = 0) -> None:
    """Values that are the first part of the keys; heads that take more than one tile."""
    batch = ragged_batch([40, 3], [1, 1], block_size=8, head_dim=96, heads=70, kv_heads=1, garbage=None, seed=12)
    batch.value_cache = batch.key_cache[..., first : first + 64]
    batch.dense = [(key, key[..., first : first + 64]) for key, _ in batch.dense]
    run(modules, batch, 1)


def latents_apart(modules: Modules) -> None:
    """Values that are the last part of the keys."""
    latents(modules, first=32)


SUBJECTS = (decode, whole, windowed, prefill, windowed_prefill, eight_bit, whole_scales, latents, latents_apart)
MUTATIONS = {  # what breaks: the module, its text before and after, and the batch that must notice
    "future seen": ("tile", "seen = distance <= 0", "seen = distance <= 1", prefill),
    "present not seen": ("tile", "seen = distance <= 0", "seen = distance < 0", prefill),
    "window one too wide": ("tile", "distance > -window", "distance >= -window", whole),
    "cap without its factor": ("tile", "scores = softcap * (1 -", "scores = LOG2E * (1 -", whole),
    "tanh of half": ("tile", "(2 * LOG2E / softcap)", "(LOG2E / softcap)", whole),
    "slopes of the wrong sign": ("tile", "scores += slopes", "scores -= slopes", windowed_prefill),
    "lanes not held at the end": ("tile", "tl.minimum(positions, last)", "positions", decode),
    "block not looked up": (
        "tile", "tl.load(table_row + (start if BLOCK_SIZE % TILE == 0 else there) // BLOCK_SIZE).to(tl.int64)",
        "(there // BLOCK_SIZE).to(tl.int64)", decode,
    ),
    "one look-up for a tile of several blocks": ("tile", "start if BLOCK_SIZE % TILE == 0 else", "start if True else",
                                                 decode),
    "strides of the values for the keys": ("tile", "slot, kv_head, key_strides", "slot, kv_head, value_strides",
                                           decode),
    "strides of the keys for the values": ("tile", "slot, kv_head, value_strides", "slot, kv_head, key_strides",
                                           decode),
    "rest of the head left out": ("tile", "rest.to(query.dtype)", "(rest * 0).to(query.dtype)", decode),
    "maximum not kept": ("tile", "running_max = new_max\n\n", "running_max = new_max * 0 + running_max\n\n", prefill),
    "accumulator not rescaled": ("tile", "acc * rescale[:, None], input", "acc, input", prefill),
    "sum not rescaled": ("tile", "running_sum = running_sum * rescale + tl.sum(w",
                         "running_sum = running_sum + tl.sum(w", prefill),
    "no maximum yet": ("tile", 'tl.where(new_max == float("-inf"), 0.0, new_max)', "new_max", windowed_prefill),
    "scale of the keys not applied": ("tile", "scale *= scale_of_all(k", "scale_of_all(k", whole_scales),
    "scale of the values not applied": ("tile", "acc * scale_of_all(v_scale_ptr, V_PER_TOKEN)", "acc", whole_scales),
    "keys' scales by the values' strides": ("tile", "kv_head, k_scale_strides", "kv_head + 1, k_scale_strides",
                                            eight_bit),
    "values' scales left out": ("tile", "weights *= tl.load(v", "weights += 0 * tl.load(v", eight_bit),
    "one element behind a head read": ("tile", "real = dims[None, :] < LIMIT", "real = dims[None, :] <= LIMIT", decode),
    "sink of another head": ("tile", "sinks_ptr + heads", "sinks_ptr + heads * 0", whole),
    "sink not in base 2": ("tile", "to(tl.float32) * LOG2E\n        new_max", "to(tl.float32)\n        new_max", whole),
    "sink does not rescale": ("tile", "running_sum = running_sum * rescale + tl.exp2(sink",
                              "running_sum = running_sum + tl.exp2(sink", whole),
    "KV head not shared by neighbours": ("grouped", "heads = kv_head * GROUP + member",
                                         "heads = member * 2 + kv_head", decode),
    "KV head of another tile": ("grouped", "tl.program_id(1) // TILES).to", "tl.program_id(1) % TILES).to", decode),
    "one tile of a group again": ("grouped", "tl.program_id(1) % TILES * ROWS +", "0 * ROWS +", latents),
    "wrong table row": ("grouped", "block_tables_ptr + sequence * table_stride", "block_tables_ptr", decode),
    "slopes not in base 2": ("grouped", "to(tl.float32) * LOG2E", "to(tl.float32)", whole),
    "window begins late": ("grouped", "// TILE * TILE\n    share", "// TILE * TILE + TILE\n    share", whole),
    "splits overlap": ("grouped", "tl.minimum(begin + share, seq_len)", "seq_len", windowed),
    "splits too short": ("grouped", "tl.cdiv(tl.cdiv(seq_len - first, TILE), SPLITS) * TILE",
                         "(tl.cdiv(seq_len - first, TILE) // SPLITS) * TILE", decode),
    "partial of another head": ("grouped", "(sequence * num_heads + heads) * SPLITS + split",
                                "(sequence * num_heads + heads // 2) * SPLITS + split", decode),
    "splits merged without rescaling": ("split", "acc * rescale[:, None], axis=0", "acc, axis=0", decode),
    "sums merged without rescaling": ("split", "sums * rescale, axis=0", "sums, axis=0", decode),
    "one split left out": ("split", "real = split < SPLITS", "real = split < SPLITS - 1", decode),
    "sink left out of the merge": ("split", "sinks_ptr, head + row", "None, head + row", windowed),
    "tile given to the next sequence": ("prefill", "if first <= tile:", "if first < tile:", prefill),
    "tiles too few": ("prefill", '// shape["ROWS"] + num_seqs', '// shape["ROWS"] + 1', prefill),
    "one head for all": ("prefill", "kv_head * GROUP + row % GROUP", "kv_head * GROUP + row * 0", prefill),
    "token of another row": ("prefill", "tokens = start + row // GROUP", "tokens = start + row // (GROUP + 1)",
                             prefill),
    "queries taken for the first tokens": ("prefill", "before = seq_len - query_len", "before = seq_len * 0", prefill),
    "tile's last key left out": ("prefill", "- 1) // GROUP + 1\n", "- 1) // GROUP\n", prefill),
    "tile's window of its last row": ("prefill", "before + first_row // GROUP - window + 1",
                                      "before + (first_row + ROWS) // GROUP - window + 1", windowed_prefill),
    "last row not real": ("prefill", "real = row < num_rows", "real = row < num_rows - 1", prefill),
    "values taken for the keys' first part": ("call", "value_cache.data_ptr() == key_cache.data_ptr()", "True",
                                              latents_apart),
    "cap not in base 2": ("call", "variant.softcap * log2e", "variant.softcap", whole),
    "a part of the head too few": ("call", "return whole // 2, padded(head_dim - whole // 2)",
                                   "return whole // 2, 0", decode),
}  # fmt: skip


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.__name__)
def test_unmutated_copies_pass(subject: Callable[[Modules], None], copies: Copies) -> None:
    """Catches a harness that fails whatever the kernels do."""
    subject(copies())


@pytest.mark.filterwarnings("ignore:.*(NaN|invalid value|divide by zero|overflow).*:RuntimeWarning")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutant_is_caught(mutation: str, copies: Copies) -> None:
    """Catches comparisons too weak to notice the named mistake."""
    name, original, mutated, subject = MUTATIONS[mutation]
    with pytest.raises(AssertionError, match="times the rounding bound"):
        subject(copies(name, original, mutated))


NARROW = {  # what is cut to 32 bits, where, and the tensor and dimension whose stride must be wide for it to matter
    "sequence": ("grouped", "sequence = tl.program_id(0).to(tl.int64)", "sequence = tl.program_id(0)", "query", 0),
    "head": ("grouped", "// TILES).to(tl.int64)", "// TILES).to(tl.int32)", "query", 1),
    "KV head": ("grouped", "// TILES).to(tl.int64)", "// TILES).to(tl.int32)", "key_cache", 2),
    "slot": ("tile", "(there % BLOCK_SIZE).to(tl.int64)", "there % BLOCK_SIZE", "value_cache", 1),
    "block": ("tile", "// BLOCK_SIZE).to(tl.int64)", "// BLOCK_SIZE).to(tl.int32)", "key_cache", 0),
    "token of a prompt": ("prefill", "+ sequence).to(tl.int64)", "+ sequence).to(tl.int32)", "query", 0),
    "KV head of a prompt": ("prefill", "tl.program_id(1).to(tl.int64)", "tl.program_id(1)", "value_cache", 2),
}


@pytest.mark.filterwarnings("ignore:.*overflow:RuntimeWarning")
@pytest.mark.parametrize("index", NARROW)
def test_narrow_offset_is_caught(index: str, copies: Copies, tmp_path: Path) -> None:
    """Catches wide strides that are not wide enough to tell 64 bits from 32."""
    name, original, mutated, tensor, dim = NARROW[index]
    prompts = name == "prefill"
    batch = ragged_batch(
        [9, 3, 4], [2, 1, 1] if prompts else [1, 1, 1], block_size=4, head_dim=80, kv_heads=3, dtype=torch.float16,
        seed=12,
    )  # fmt: skip
    setattr(batch, tensor, spread(getattr(batch, tensor), dim, tmp_path))
    run(copies(), batch, None if prompts else 1)
    with pytest.raises(AssertionError, match="times the rounding bound"):
        run(copies(name, original, mutated), batch, None if prompts else 1)
