"""The kernel that writes a cache: to the bit what torch writes, nothing beside it, and compiled for GPUs elsewhere."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import mangle_type

from pagedattn_lab import kv_cache
from pagedattn_lab.attention import triton_cache
from pagedattn_lab.attention.launch import launch
from pagedattn_lab.attention.quantize import LARGEST, quantize, token_head_scales
from pagedattn_lab.attention.triton_cache import reshape_and_cache
from pagedattn_lab.kv_cache import CACHE_DTYPES, PagedKVCache
from pagedattn_lab.kv_shape import KVShape
from tests.helpers.mutants import load
from tests.helpers.oracle import same_bits, spread

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MODES = [(dtype, None) for dtype in FLOATS] + [(dtype, each) for dtype in LARGEST for each in (False, True)]
"""A cache's dtype; and whether its scales are one for all, or for each token and head, or none."""

# Blocks 1 to 7 of 4 tokens, in no order. A mutant that goes past the last token finds slots, not other memory.
SLOTS = torch.tensor([9, 31, -1, 4, 22, 5, -1, 13, 30, 8, 17, *[6] * 53])[:11]


def around(tensor: torch.Tensor) -> torch.Tensor:
    """Give the same tensor in the middle of a larger one."""
    return torch.cat([tensor] * 5)[2 * len(tensor) : 3 * len(tensor)]


class Problem:
    """Eleven tokens of a fused projection, and caches whose strides all differ and where every slot is poisoned.

    There is room around what is read and written: a mutant strays into it, and not into other memory.
    """

    def __init__(
        self,
        cache_dtype: torch.dtype,
        each: bool | None,
        head_dim: int = 80,
        value_dim: int | None = None,
        heads: int = 3,
        source: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(head_dim + heads)
        value_dim = head_dim if value_dim is None else value_dim
        fused = torch.randn(64, heads * (head_dim + value_dim) + 48, generator=generator)[:11]
        fused = fused.mul_(10.0 ** torch.linspace(-4, 4, 11)[:, None]).to(source)  # some rows saturate a common scale
        fused[4] = 0
        self.key = fused[:, 16 : 16 + heads * head_dim].unflatten(1, (heads, head_dim))
        self.value = fused[:, 32 + heads * head_dim :][:, : heads * value_dim].unflatten(1, (heads, value_dim))

        def poisoned(*size: int) -> torch.Tensor:
            return around(torch.full(size, -128 if cache_dtype == torch.int8 else math.nan).to(cache_dtype))

        self.key_cache = poisoned(8, heads, 4, head_dim + 16).transpose(1, 2)[..., :head_dim]
        self.value_cache = poisoned(8, 2, 4, heads, value_dim)[:, 1]
        self.k_scale = self.v_scale = None
        if each is not None:
            self.k_scale = around(torch.full((8, heads, 4), math.nan)).transpose(1, 2) if each else torch.tensor([0.37])
            self.v_scale = around(torch.full((8, 2, 4, heads), math.nan))[:, 1] if each else torch.tensor([2.5])

    def tensors(self) -> dict[str, torch.Tensor]:
        names = ("key_cache", "value_cache", "k_scale", "v_scale", "key", "value")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def expected(self) -> dict[str, torch.Tensor]:
        """Write token by token into copies, with torch."""
        written = {name: tensor.clone() for name, tensor in self.tensors().items()}
        for name, scale_name, rows in (("key_cache", "k_scale", self.key), ("value_cache", "v_scale", self.value)):
            cache, scale = written[name], written.get(scale_name)
            for row, slot in zip(rows, SLOTS.tolist(), strict=True):
                if slot < 0:
                    continue
                where = slot // 4, slot % 4
                if scale is None:
                    cache[where] = row.to(cache.dtype)
                elif scale.numel() == 1:
                    cache[where] = quantize(row, scale, cache.dtype)
                else:
                    scale[where] = token_head_scales(row, cache.dtype)
                    cache[where] = quantize(row, scale[where][:, None], cache.dtype)
        return written

    def write(self, module: ModuleType = triton_cache) -> None:
        caches = self.key_cache, self.value_cache
        module.reshape_and_cache(self.key, self.value, *caches, SLOTS, self.k_scale, self.v_scale)

    def check(self, module: ModuleType = triton_cache) -> None:
        """Write with the kernel, and compare every tensor, what must not change included."""
        expected = self.expected()
        self.write(module)
        for name, tensor in self.tensors().items():
            assert same_bits(tensor, expected[name]), f"{name} holds other bits than torch writes"


@pytest.mark.parametrize(("head_dim", "heads", "value_dim"), [(64, 5, 64), (80, 3, 80), (128, 1, 32), (576, 1, 512)])
@pytest.mark.parametrize(("cache_dtype", "each"), MODES)
def test_bits_equal_those_of_torch(
    cache_dtype: torch.dtype, each: bool | None, head_dim: int, heads: int, value_dim: int
) -> None:
    """Catches a wrong slot, head or stride, keys written with the values' scale, another rounding or saturation, and
    padding or a skipped token that is written.
    """
    for source in (torch.float32, torch.bfloat16) if head_dim == 80 else (torch.float32,):
        Problem(cache_dtype, each, head_dim, value_dim, heads, source).check()


def near_ties() -> torch.Tensor:
    """Every bfloat16 that is a number, and every tie between neighbours of float8 with what is just beside it."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()
    small = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (small[1:] + small[:-1]) / 2
    beside = [torch.nextafter(ties, torch.tensor(towards)) for towards in (0.0, 1000.0)]
    numbers = torch.cat([every[every.isfinite()], ties, -ties, *beside, *[-each for each in beside]])
    return torch.cat([numbers, numbers.new_zeros(-len(numbers) % 256)])


@pytest.mark.parametrize("dtype", LARGEST)
def test_rounding_of_every_number(dtype: torch.dtype) -> None:
    """Catches ties rounded up or cut off, subnormals of float8 rounded to too many bits, numbers that wrap round, and a
    rounding that happens twice: the kernel must have rounded before it casts, since a cast may go through float16.
    """
    numbers = near_ties().reshape(-1, 1, 256)
    cache = torch.zeros(len(numbers) + 1, 1, 1, 256, dtype=dtype)
    reshape_and_cache(
        numbers, -numbers, cache, other := torch.zeros_like(cache), torch.arange(1, len(cache)), *[torch.ones(1)] * 2
    )
    assert same_bits(cache[1:, 0], quantize(numbers, torch.tensor(1.0), dtype))
    assert same_bits(other[1:, 0], quantize(-numbers, torch.tensor(1.0), dtype))


@triton.jit
def _round_kernel(x_ptr, like_ptr, ROUNDED: triton.language.constexpr):
    offsets = triton.language.program_id(0) * 2048 + triton.language.arange(0, 2048)
    x = triton.language.load(x_ptr + offsets)
    triton.language.store(x_ptr + offsets, ROUNDED(x, like_ptr.dtype.element_ty))


def test_float8_is_rounded_before_the_cast() -> None:
    """Catches a cast that is left something to round: on compute capability 8.9 it would round to float16 first."""
    numbers = near_ties().clamp(-448, 448)
    rounded = torch.cat([numbers, numbers.new_zeros(-len(numbers) % 2048)])
    like = torch.zeros(1, dtype=torch.float8_e4m3fn)
    launch(_round_kernel, (len(rounded) // 2048,), rounded, like, ROUNDED=triton_cache._rounded)
    assert torch.equal(rounded[: len(numbers)], numbers.to(torch.float8_e4m3fn).float())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NaN to int8, whose bits then do not matter
@pytest.mark.parametrize("dtype", LARGEST)
def test_nan_in_a_row_is_read_back(dtype: torch.dtype) -> None:
    """Catches a NaN that the maximum passes over and int8 turns into a number, and one that spoils other rows."""
    problem = Problem(dtype, True)
    problem.key = problem.key.clone()
    problem.key[3, 1, 70] = math.nan
    scale = problem.expected()["k_scale"]
    problem.write()
    assert problem.k_scale[1, 0, 1].isnan() and problem.k_scale[1, 0, [0, 2]].isfinite().all()
    assert same_bits(problem.k_scale, scale)


@pytest.mark.parametrize(
    ("name", "dim"),
    [(name, dim) for name in ("key", "value") for dim in range(2)]
    + [(name, dim) for name in ("key_cache", "value_cache") for dim in range(3)],
)
def test_offsets_past_32_bits(name: str, dim: int, tmp_path: Path) -> None:
    """Catches an offset computed in 32 bits: along tokens, heads, blocks or slots, wherever the stride is wide."""
    problem = Problem(torch.float16, None, head_dim=16, heads=4, source=torch.float16)
    expected = problem.expected()
    setattr(problem, name, spread(getattr(problem, name), dim, tmp_path))
    problem.write()
    for cache in ("key_cache", "value_cache"):
        assert same_bits(getattr(problem, cache), expected[cache])


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_a_cache_stores_the_same_by_kernel_and_by_torch(dtype: str) -> None:
    """Catches a GPU whose cache holds other bits than a CPU's, scales that are not the layer's, or a model refused
    there for the order of its numbers in memory.
    """
    scales = {"k_scale": 0.05, "v_scale": 0.2} if dtype in ("float8_e4m3fn", "int8") else {}
    caches = [PagedKVCache(KVShape(2, 3, 16, dtype), 6, 4, **scales) for _ in range(2)]
    assert not caches[0]._writes_by_kernel
    caches[1]._writes_by_kernel = True
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(5, 3, 16, generator=generator), torch.randn(5, 16, 3, generator=generator).transpose(1, 2)
    for cache in caches:
        cache.write(1, key, value, [9, -1, 4, 23, 10])
    for one, other in zip(caches[0]._in_blocks(), caches[1]._in_blocks(), strict=True):
        assert same_bits(one, other)
    assert caches[1].key_caches[1].view(torch.uint8).any() and not caches[1].key_caches[0].view(torch.uint8).any()


def test_which_gpu_writes_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a float8 kernel launched where Triton cannot compile it, and torch used where the kernel would do."""

    def by_kernel(dtype: torch.dtype, capability: tuple[int, int]) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return kv_cache._kernel_compiles(SimpleNamespace(device=torch.device("cuda"), dtype=dtype))

    assert [by_kernel(torch.float8_e4m3fn, version) for version in ((7, 5), (8, 0), (8, 9), (9, 0))] == [
        False, False, True, True
    ]  # fmt: skip
    assert by_kernel(torch.int8, (7, 5)) and by_kernel(torch.bfloat16, (8, 0))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert by_kernel(torch.float8_e4m3fn, (9, 4))
    monkeypatch.setattr(kv_cache, "find_spec", lambda name: None)
    assert not by_kernel(torch.int8, (9, 0))
    assert not kv_cache._kernel_compiles(torch.zeros(1))


def arguments(cache_dtype: torch.dtype = torch.int8, each: bool | None = True) -> dict[str, Any]:
    problem = Problem(cache_dtype, each)
    return {"k_scale": None, "v_scale": None} | problem.tensors() | {"slot_mapping": SLOTS}


INT8, BF16 = torch.int8, torch.bfloat16


@pytest.mark.parametrize(
    ("cache_dtype", "each", "change", "message"),
    [
        (INT8, True, {"key": torch.ones(11, 3, 64)}, r"key has shape \(11, 3, 64\) and key_cache \(8, 4, 3, 80\)"),
        (INT8, True, {"value": torch.ones(11, 2, 80)}, r"value has shape \(11, 2, 80\)"),
        (INT8, True, {"value": torch.ones(11, 3, 80).double()}, "value is torch.float64"),
        (INT8, True, {"key": torch.ones(11, 80, 3).transpose(1, 2)}, "key has stride 3 along head_dim"),
        (INT8, True, {"value_cache": torch.ones(8, 4, 3, 80)}, "only head_dim may differ"),
        (INT8, True, {"value_cache": torch.ones(9, 4, 3, 80).to(INT8)}, "only head_dim may differ"),
        (BF16, None, {"key_cache": torch.ones(8, 4, 80, 3).transpose(2, 3).to(BF16)}, "key_cache has stride"),
        (INT8, True, {"slot_mapping": SLOTS.int()}, "slot_mapping is torch.int32"),
        (INT8, True, {"slot_mapping": SLOTS[:5]}, r"of shape \(5,\) for 11 keys and 11 values"),
        (INT8, True, {"value": torch.ones(10, 3, 80)}, "for 11 keys and 10 values"),
        (INT8, True, {"slot_mapping": SLOTS + 1}, "slot 32 cannot be written: slots run from 4 to 31"),
        (INT8, True, {"slot_mapping": SLOTS - 1}, "slot -2 cannot be written"),
        (INT8, True, {"slot_mapping": SLOTS - 2}, "slot -3 cannot be written"),
        (INT8, True, {"slot_mapping": SLOTS.clamp(min=3)}, "slot 3 cannot be written"),
        (INT8, True, {"k_scale": None}, "k_scale is needed with a cache of torch.int8"),
        (BF16, None, {"v_scale": torch.ones(1)}, "v_scale has no meaning with a cache of torch.bfloat16"),
        (INT8, True, {"k_scale": torch.ones(8, 4, 2)}, r"k_scale is torch.float32 of shape \(8, 4, 2\)"),
        (INT8, False, {"v_scale": torch.ones(1).double()}, "v_scale is torch.float64"),
        (INT8, True, {"v_scale": torch.ones(1)}, "one of k_scale and v_scale has a single element"),
        (INT8, True, {"value_cache": torch.ones(8, 4, 3, 80, device="meta").to(INT8)}, "value_cache is on meta"),
        (torch.int16, None, {}, "a cache of torch.int16 is not supported"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    cache_dtype: torch.dtype, each: bool | None, change: dict[str, Any], message: str
) -> None:
    """Catches a launch on tensors that the kernel would read or write beyond their end, or take for something else."""
    if cache_dtype == torch.int16:
        change = {name: torch.zeros(8, 4, 3, 80, dtype=torch.int16) for name in ("key_cache", "value_cache")}
        cache_dtype = BF16
    good = arguments(cache_dtype, each)
    before = {name: tensor.clone() for name, tensor in good.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        reshape_and_cache(**(good | change))
    assert all(same_bits(good[name], tensor) for name, tensor in before.items())


def test_no_token_is_no_launch() -> None:
    """Catches a grid of nothing, which a GPU refuses."""
    good = arguments()
    reshape_and_cache(**(good | {"key": good["key"][:0], "value": good["value"][:0], "slot_mapping": SLOTS[:0]}))


MUTATIONS = {
    "skipped tokens written": ("is_written = slot >= 0", "is_written = slot >= -1"),
    "rows past the last": ("mask=rows < num_rows, other=-1", "mask=rows >= 0, other=-1"),
    "token and head mixed up": (
        "rows // NUM_KV_HEADS, rows % NUM_KV_HEADS", "rows % NUM_KV_HEADS, rows // NUM_KV_HEADS"
    ),
    "block and offset mixed up": ("slot // BLOCK_SIZE, slot % BLOCK_SIZE", "slot % BLOCK_SIZE, slot // BLOCK_SIZE"),
    "padding written": ("(dims < DIM)[None, :]", "(dims >= 0)[None, :]"),
    "strides of the source swapped": (
        "token * rows_stride_token + head * rows_stride_head", "head * rows_stride_token + token * rows_stride_head"
    ),
    "head not in the cache's offset": (" + head * cache_stride_head", ""),
    "slot not in the scale's offset": ("offset * scale_stride_slot + head", "head"),
    "keys' scales for values": ("value_cache_ptr, v_scale_ptr, value_ptr", "value_cache_ptr, k_scale_ptr, value_ptr"),
    "scale not the largest": ("tl.max(tl.abs(row), axis=1)", "tl.max(row, axis=1)"),
    "zeros divided by zero": (", _SMALLEST_SCALE)", ", 0.0)"),
    "NaN passed over": ('tl.where(has_nan, float("nan"), scale)', "tl.where(has_nan, scale, scale)"),
    "multiplied by the scale": ("tl.clamp(tl.div_rn(row, scale)", "tl.clamp(row * scale"),
    "not saturated": ("tl.clamp(tl.div_rn(row, scale), -LARGEST, LARGEST", "tl.clamp(tl.div_rn(row, scale), -1e9, 1e9"),
    "int8 cut off": ("magic = 1.5 * 2**23", "magic = 0.0"),
    "one bit more than float8 has": ("(1.5 * 2**20)", "(1.5 * 2**19)"),
    "a zero's sign lost": ("tl.where(rounded == 0.0, x * 0.0, rounded)", "rounded"),
    "subnormals too fine": ("tl.maximum(power, 2.0**-6)", "tl.maximum(power, 2.0**-7)"),
}  # fmt: skip


def run(module: ModuleType) -> None:
    """Problems on which every part of the kernel matters."""
    for dtype in LARGEST:
        for each in (False, True):
            Problem(dtype, each, value_dim=48).check(module)
        with_nan = Problem(dtype, True)
        with_nan.key = with_nan.key.clone()
        with_nan.key[3, 1, 70] = math.nan
        scale = with_nan.expected()["k_scale"]
        with_nan.write(module)
        assert same_bits(with_nan.k_scale, scale), "k_scale holds other bits than torch writes"


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_unmutated_copy_passes(tmp_path: Path) -> None:
    """Catches a harness that fails whatever the kernel does."""
    run(load(Path(triton_cache.__file__).read_text(), tmp_path))


@pytest.mark.filterwarnings("ignore:.*(NaN|invalid value|divide by zero):RuntimeWarning")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutant_is_caught(mutation: str, tmp_path: Path) -> None:
    """Catches a comparison too weak to notice the named mistake."""
    source = Path(triton_cache.__file__).read_text()
    original, mutated = MUTATIONS[mutation]
    assert source.count(original) == 1, f"the kernel no longer holds {original!r} once: bring the mutation up to date"
    module = load(source.replace(original, mutated), tmp_path)
    with pytest.raises(AssertionError, match="holds other bits than torch writes"):
        run(module)


# --- for GPUs that are not here ---------------------------------------------------------------------------------------

TARGETS = {
    **{f"sm_{number}": GPUTarget("cuda", number, 32) for number in (75, 80, 90, 100)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def compiled(
    monkeypatch: pytest.MonkeyPatch, target: str, cache_dtype: torch.dtype, each: bool | None, head_dim: int
) -> CompiledKernel:
    """Compile what ``reshape_and_cache`` launches for 8 heads in bfloat16, specialised as a launch would be."""
    launches = []
    monkeypatch.setattr(triton_cache, "launch", lambda *args, **constants: launches.append((args, constants)))
    key, caches = torch.zeros(32, 8, head_dim, dtype=torch.bfloat16), torch.zeros(2, 4, 16, 8, head_dim).to(cache_dtype)
    scales = [None] * 2 if each is None else torch.zeros(2, 4, 16, 8) if each else torch.ones(2, 1)
    reshape_and_cache(key, key, *caches, torch.full((32,), -1), *scales)
    [((kernel, _, *arguments), constants)] = launches
    signature, divisible = dict.fromkeys(constants, "constexpr"), {}
    for index, (name, argument) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if argument is None or (isinstance(argument, int) and argument == 1):
            signature[name], constants[name] = "constexpr", argument
            continue
        signature[name] = mangle_type(argument)
        if (argument if isinstance(argument, int) else argument.data_ptr()) % 16 == 0:
            divisible[(index,)] = [["tt.divisibility", 16]]
    signature = {name: signature[name] for name in kernel.arg_names}
    return triton.compile(ASTSource(kernel, signature, constants, divisible), target=TARGETS[target])


@pytest.mark.parametrize("head_dim", [64, 80, 128, 576])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("cache_dtype", LARGEST)
def test_stores_of_128_bits(
    monkeypatch: pytest.MonkeyPatch, cache_dtype: torch.dtype, each: bool, head_dim: int
) -> None:
    """Catches 8-bit numbers stored one by one, or by too many threads to have 16 each, on an H100."""
    ptx = compiled(monkeypatch, "sm_90", cache_dtype, each, head_dim).asm["ptx"]
    stores = re.findall(r"st\.global\S*", ptx)
    scales = ["st.global.b32"] * (2 if each else 0)
    assert sorted(stores) == sorted(["st.global.v4.b32"] * 2 + scales)
    assert set(re.findall(r"ld\.global\.v4\S*", ptx)) == {"ld.global.v4.b32"}
    if cache_dtype == torch.float8_e4m3fn:
        assert ptx.count("cvt.rn.satfinite.e4m3x2.f32") == 16


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_for(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Catches what only the interpreter takes, and a float8 that would be promised to a GPU without it."""
    for cache_dtype, each in ((torch.bfloat16, None), (torch.int8, True), (torch.float8_e4m3fn, True)):
        if cache_dtype == torch.float8_e4m3fn and target in ("sm_75", "sm_80"):
            with pytest.raises(Exception, match="fp8e4nv not supported in this architecture"):
                compiled(monkeypatch, target, cache_dtype, each, 128)
            continue
        kernel = compiled(monkeypatch, target, cache_dtype, each, 128)
        if cache_dtype == torch.int8 and target in ("sm_75", "sm_80", "sm_90"):  # sm_100 adds two at a time
            # 16 numbers of a key and 16 of a value: to each 1.5 * 2**23 is added, and taken off again.
            assert len(re.findall(r"add\S*f32\s.*0f(?:4B4|CB4)00000", kernel.asm["ptx"])) == 64
