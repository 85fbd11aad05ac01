"""One kernel, three ways: interpreted here, compiled for GPUs that are not here, and both in one process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import interpreter

from pagedattn_lab.attention import paged_attention, triton_decode
from pagedattn_lab.attention.launch import kept_launches, launch
from tests.helpers import kernels
from tests.helpers.draws import COMPILER, KERNELS
from tests.helpers.oracle import ragged_batch, same_bits
from tests.helpers.triton_state import attributes

pytestmark = pytest.mark.when_changed("pagedattn_lab/__init__.py", "pagedattn_lab/doctor.py", *KERNELS)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@triton.jit
def _scaled_softmax(x, factor):
    return tl.softmax(x * factor)


@triton.jit
def _kernel(x_ptr, factor, N: tl.constexpr):
    offsets = tl.arange(0, N)
    x = tl.load(x_ptr + offsets)
    tl.store(x_ptr + offsets, _scaled_softmax(x, factor) + tl.sum(x, axis=0))


def test_helpers_and_library_functions_are_interpreted() -> None:
    """Catches a launch that handles a bare kernel but not one that calls ``tl.sum`` or a function of its own."""
    before = set(globals())
    x = torch.tensor([0.5, -1.0, 2.0, 0.25])
    expected = torch.softmax(x * 3, dim=0) + x.sum()
    launch(_kernel, (1,), x, 3.0, N=4)
    torch.testing.assert_close(x, expected)
    assert set(globals()) == before, "the interpreter wrote into the kernel's module"


_LOWEST = tl.constexpr(float("-inf"))


@triton.jit
def _largest(x_ptr, N: tl.constexpr):
    best, x = _LOWEST, tl.load(x_ptr + tl.arange(0, N))
    best = tl.maximum(best, tl.max(x, axis=0))
    tl.store(x_ptr, best)


def test_a_constant_of_the_module_is_its_value() -> None:
    """Catches a ``tl.constexpr`` beside a kernel, which a compiled one may use, handed on as the object that it is."""
    x = torch.tensor([0.5, -1.0, 2.0, 0.25])
    launch(_largest, (1,), x, N=4)
    assert x[0] == 2.0


@pytest.fixture(scope="module")
def triton_s_own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What Triton's own interpreter computes, in a process that asks for it from the start."""
    file = tmp_path_factory.mktemp("own") / "outputs.pt"
    command = [sys.executable, "-m", "tests.helpers.kernels", str(file)]
    subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
    return torch.load(file)


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_launch_agrees_with_tritons_own_interpreter(name: str, triton_s_own: dict[str, torch.Tensor]) -> None:
    """Catches what Triton interprets and a launch does not, or otherwise, such as a helper's globals from elsewhere."""
    output = torch.empty(16)
    launch(kernels.KERNELS[name], (1,), kernels.numbers(), output, N=16)
    assert same_bits(output, triton_s_own[name])


@triton.jit
def _fails(x_ptr):
    tl.static_assert(False, "on purpose")


def test_everything_is_put_back() -> None:
    """Catches a Triton left exchanged after a launch, after one that fails, and after launches of several threads."""
    before = attributes()
    launch(_kernel, (1,), torch.ones(4), 1.0, N=4)
    assert attributes() == before
    with pytest.raises(interpreter.InterpreterError, match="on purpose"):
        launch(_fails, (1,), torch.ones(1))
    assert attributes() == before

    def program_numbers(count: int) -> bool:
        for _ in range(20):
            x = torch.zeros(count)
            launch(_number, (count,), x)
            if not torch.equal(x, torch.arange(1.0, count + 1)):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(program_numbers, [3, 5, 8, 13]))
    assert attributes() == before


@triton.jit
def _number(x_ptr):
    program = tl.program_id(0)
    tl.store(x_ptr + program, tl.sum(tl.full((4,), 0.25, tl.float32) * (program + 1), axis=0))


@triton.jit
def _dot(a_ptr, b_ptr, acc_ptr, out_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), acc=tl.load(acc_ptr + at), input_precision=PRECISION)
    tl.store(out_ptr + at, product)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "ieee"])
def test_dot_of_bfloat16(precision: str) -> None:
    """Catches a product of bit patterns: small integers in bfloat16 have products and sums exact in float32."""
    generator = torch.Generator().manual_seed(5)
    a, b, acc = torch.randint(-128, 129, (3, 16, 16), generator=generator)
    out = torch.empty(16, 16)
    launch(_dot, (1,), a.bfloat16(), b.bfloat16(), acc.float(), out, N=16, PRECISION=precision)
    assert torch.equal(out.long(), a @ b + acc)


@triton.jit
def _bfloat16_arithmetic(
    x_ptr, y_ptr, sums_ptr, products_ptr, less_ptr, cast_ptr, wide_ptr, float_ptr, N: tl.constexpr
):
    i = tl.arange(0, N)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(sums_ptr + i, x + y)
    tl.store(products_ptr + i, tl.where(x < y, -x, x) * y)
    tl.store(less_ptr + i, x < y)
    tl.store(cast_ptr + i, tl.load(float_ptr + i).to(tl.bfloat16))
    tl.store(wide_ptr + i, x.to(tl.float32))


def test_arithmetic_of_bfloat16() -> None:
    """Catches sums, comparisons and casts of bit patterns, and a cast that cuts off where a GPU rounds to nearest."""
    generator = torch.Generator().manual_seed(6)
    x, y = torch.randn(2, 64, generator=generator).bfloat16()
    x[:5] = torch.tensor([math.inf, -math.inf, -0.0, 1e-39, 3e38])  # infinities, a zero, a subnormal, an overflow
    numbers = torch.randn(64, generator=generator)
    numbers[:4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, math.inf, 1e-39])  # two ties, one to either side
    sums, products, cast = torch.empty(3, 64, dtype=torch.bfloat16)
    less, wide = torch.empty(64, dtype=torch.int32), torch.empty(64)
    launch(_bfloat16_arithmetic, (1,), x, y, sums, products, less, cast, wide, numbers, N=64)
    assert same_bits(sums, x + y)
    assert same_bits(products, torch.where(x < y, -x, x) * y)
    assert torch.equal(less.bool(), x < y)
    assert same_bits(cast, numbers.bfloat16())
    assert same_bits(wide, x.float())


@triton.jit
def _cast(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_casts_of_float8(dtype: torch.dtype) -> None:
    """Catches NaN read as 480; and ties rounded away from zero, a carry lost, subnormals cut off or what is
    past 448 wrapped round, where a GPU rounds to even and saturates.
    """
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    wide = torch.empty(256, dtype=dtype)
    launch(_cast, (1,), codes, wide, N=256)
    torch.testing.assert_close(wide, codes.to(dtype), rtol=0, atol=0, equal_nan=True)
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16).to(dtype)
    narrow = torch.empty(2**16, dtype=torch.float8_e4m3fn)
    launch(_cast, (16,), numbers, narrow, N=2**12)
    is_nan = numbers.isnan()
    assert same_bits(narrow[~is_nan], numbers.clamp(-448, 448).to(torch.float8_e4m3fn)[~is_nan])
    assert narrow[is_nan].isnan().all()


@triton.jit
def _fill(x_ptr, VALUE: tl.constexpr):
    tl.store(x_ptr, VALUE)


def test_options_for_the_compiler() -> None:
    """Catches num_warps refused where nothing is compiled, and a name misspelt that the interpreter would drop."""
    x = torch.zeros(1)
    launch(_fill, (1,), x, VALUE=3, num_warps=8, num_stages=2)
    assert x.item() == 3
    with pytest.raises(
        TypeError, match=r"_fill has no argument num_warp: it has x_ptr, VALUE, and a .* num_warps, num_"
    ):
        launch(_fill, (1,), x, VALUE=4, num_warp=8)
    assert x.item() == 3


def test_options_reach_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches options dropped on the way to the compiler: a GPU is pretended, and the call to Triton looked at."""
    calls = []

    class Kernel:
        __name__, arg_names = "fill", ("x_ptr", "VALUE")

        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *args, **options: calls.append((grid, args, options))

    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    x = torch.zeros(1, device="meta")
    launch(Kernel(), (2,), x, VALUE=3, num_warps=8, num_stages=2)
    assert calls == [((2,), (x,), {"VALUE": 3, "num_warps": 8, "num_stages": 2})]


def test_a_kept_launch_does_not_run() -> None:
    """Catches a launch both kept and run, kept for another thread, or kept for ever."""
    x, others = torch.zeros(1), torch.zeros(1)
    with pytest.raises(RuntimeError, match="on purpose"), kept_launches() as launches:
        launch(_fill, (2, 1), x, VALUE=3, num_warps=8)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(launch, _fill, (1,), others, VALUE=4).result()
        raise RuntimeError("on purpose")
    assert [each.args for each in launches] == [(x,)] and others.item() == 4
    assert (launches[0].kernel, launches[0].grid) == (_fill, (2, 1))
    assert launches[0].constexprs == {"VALUE": 3, "num_warps": 8}
    assert x.item() == 0
    launch(_fill, (1,), x, VALUE=5)
    assert x.item() == 5 and len(launches) == 1


POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


def launched_source(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, head_dim: int) -> ASTSource:
    """Take what ``paged_attention`` really launches, argument types and constants, as the compiler's input."""
    launches = []
    monkeypatch.setattr(triton_decode, "launch", lambda *args, **constexprs: launches.append((args, constexprs)))
    batch = ragged_batch([20, 3], [2, 1], block_size=16, head_dim=head_dim, heads=8, kv_heads=2, dtype=dtype)
    positional, keywords = batch.arguments()
    paged_attention(*positional, **keywords, backend="triton_decode")
    [((kernel, _, *arguments), constexprs)] = launches
    signature = {
        name: POINTERS[argument.dtype] if torch.is_tensor(argument) else "fp32" if type(argument) is float else "i32"
        for name, argument in zip(kernel.arg_names, arguments, strict=False)
    } | dict.fromkeys(constexprs, "constexpr")
    assert list(signature) == kernel.arg_names
    return ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constexprs.items()})


@pytest.mark.when_changed(*COMPILER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 256])
@pytest.mark.parametrize("target", TARGETS)
def test_kernel_compiles_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, target: str, head_dim: int, dtype: torch.dtype
) -> None:
    """Catches a kernel that only the interpreter accepts, or one that the interpreter left unfit to compile."""
    launch(_kernel, (1,), torch.ones(4), 1.0, N=4)
    compiled = triton.compile(launched_source(monkeypatch, dtype, head_dim), target=TARGETS[target])
    if target == "gfx942":
        assert "gfx942" in compiled.asm["amdgcn"] and len(compiled.asm["hsaco"]) > 0
    else:
        assert f".target {target}" in compiled.asm["ptx"] and len(compiled.asm["cubin"]) > 0
        assert "ld.global" in compiled.asm["ptx"]


@pytest.mark.when_changed(*COMPILER)
@pytest.mark.parametrize("wide", [False, True])
def test_offsets_are_64_bits_when_compiled(monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    """Catches an index times a stride in 32 bits, which the interpreter need not share, and 64-bit strides refused."""
    source = launched_source(monkeypatch, torch.bfloat16, 80)
    if wide:
        source.signature |= {name: "i64" for name in source.signature if "_stride" in name}
    products = [
        line for line in triton.compile(source, target=TARGETS["sm_90"]).asm["ttir"].splitlines() if "muli" in line
    ]
    assert len(products) >= 11, "a row of the output, query and table, and three strides each of keys and values"
    assert all("i64" in line for line in products), products


@pytest.mark.parametrize("setting", ["0", "1"])
def test_environment_variable_is_not_needed_and_does_no_harm(setting: str) -> None:
    """Catches a launch that works only with, or only without, TRITON_INTERPRET."""
    code = "from pagedattn_lab.doctor import kernel_error; error, allowed = kernel_error(); print(error < allowed)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TRITON_INTERPRET": setting}, capture_output=True, text=True
    )
    assert result.stdout == "True\n", result.stderr


def test_without_triton_the_reference_still_works() -> None:
    """Catches an import of Triton at the top: on macOS and Windows the other backends must run, and the error help."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from pagedattn_lab.attention import paged_attention
cache = torch.ones(2, 4, 1, 8)
arguments = torch.ones(1, 1, 8), cache, cache, torch.tensor([[1]]).int(), torch.tensor([3]).int()
print(paged_attention(*arguments).sum().item())
try:
    paged_attention(*arguments, backend="triton")
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines[0] == "8.0", result.stderr
    assert "published for Linux only" in lines[1] and 'backend="reference"' in lines[1]
