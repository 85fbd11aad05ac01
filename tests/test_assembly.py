"""Reading assembly: pieces written by hand, with what a careless reader would take for something else."""

from __future__ import annotations

import pytest

from pagedattn_lab.assembly import AMDGCN, KINDS, SASS, lines_that_load, read_amdgcn, read_sass


def sass(*instructions: str) -> str:
    return "\n".join(f"        /*{16 * index:04x}*/   {each} ;" for index, each in enumerate(instructions))


@pytest.mark.parametrize(
    ("text", "kind", "width"),
    [
        ("@!P6 LDG.E.128 R16, desc[UR22][R48.64]", "global load", 16),
        ("LDG.E.64.CONSTANT R2, desc[UR4][R2.64]", "global load", 8),
        ("LDG.E R4, desc[UR22][R4.64]", "global load", 4),  # the 64 is the address's
        ("LDG.E.U16 R6, desc[UR22][R6.64]", "global load", 2),
        ("LDG.E.LTC128B.U16 R6, desc[UR22][R6.64]", "global load", 2),  # a hint to the L2 cache is no width
        ("LDG.E.LTC128B R6, desc[UR22][R6.64]", "global load", 4),
        ("@P0 LDGSTS.E.BYPASS.LTC128B.128 [R7+0x400], desc[UR6][R4.64], !P1", "async copy", 16),
        ("UBLKCP.S.G [UR8], [UR6], UR4", "async copy", 0),
        ("STG.E.128 desc[UR4][R2.64], R4", "global store", 16),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", "mma", 0),
        ("HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24, gsb0", "mma", 0),
        ("UTCHMMA gdesc[UR8], gdesc[UR10], tmem[UR4], tmem[UR12], idesc[UR13], !UPT", "mma", 0),
        ("FFMA R27, R6, R27, R29", "fma", 0),
        ("FFMA2 R2, R4.F32x2.HI_LO, R6.F32x2.HI_LO, R2.F32x2.HI_LO", "fma", 0),
        ("HFMA2.BF16 R2, R4, R6, R2", "fma", 0),
        ("HFMA2.MMA R13, -RZ, RZ, 0, 0", "", 0),  # a constant; neither a product nor tensor cores
        ("IMAD.WIDE.U32 R4, R12, 0x4, R4", "", 0),
        ("MUFU.EX2 R3, R3", "exp2", 0),
        ("MUFU.RCP R3, R3", "", 0),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "barrier", 0),
        ("DEPBAR.LE SB0, 0x1", "wait", 0),
        ("LDSM.16.M88.4 R4, [R8]", "shared", 0),
        ("STL.64 [R1+0x8], R2", "spill", 8),
        ("LDL.LU R18, [R1]", "spill", 4),
        ("LDC.64 R4, c[0x0][0x238]", "", 0),
    ],
)
def test_what_a_sass_instruction_is_for(text: str, kind: str, width: int) -> None:
    """Catches a suffix taken for a width, an address for a load, and a constant for a product."""
    (found,) = read_sass(sass(text)).instructions
    assert (found.text, found.kind, found.width) == (text, kind, width)


@pytest.mark.parametrize(
    ("text", "kind", "width"),
    [
        ("buffer_load_dwordx4 v[40:43], v11, s[44:47], 0 offen", "global load", 16),
        ("global_load_dwordx2 v[2:3], v4, s[2:3]", "global load", 8),
        ("global_load_dword v2, v4, s[2:3]", "global load", 4),
        ("buffer_load_ushort v2, v4, s[4:7], 0 offen", "global load", 2),
        ("global_load_short_d16_hi v2, v4, s[2:3]", "global load", 2),
        ("global_load_ubyte v2, v4, s[2:3]", "global load", 1),
        ("buffer_load_dword v3, s[16:19], 0 offen lds", "async copy", 4),
        ("global_load_lds_dwordx4 v[2:3], off", "async copy", 16),
        ("s_load_dwordx4 s[12:15], s[0:1], 0x28", "", 0),
        ("v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], v[0:3]", "mma", 0),
        ("v_fmac_f32_e32 v27, v6, v27", "fma", 0),
        ("v_pk_fma_f32 v[2:3], v[2:3], v[42:43], v[16:17] op_sel_hi:[1,0,1]", "fma", 0),
        ("v_div_fmas_f32 v11, v11, v12, v14", "", 0),
        ("v_exp_f32_e32 v31, v40", "exp2", 0),
        ("ds_read_b32 v40, v21", "shared", 0),
        ("s_waitcnt lgkmcnt(0)", "wait", 0),
        ("s_barrier", "barrier", 0),
        ("scratch_store_dwordx2 off, v[2:3], s33", "spill", 8),
    ],
)
def test_what_an_amdgcn_instruction_is_for(text: str, kind: str, width: int) -> None:
    """Catches a copy to LDS taken for a load to registers, and a scalar load for one of data."""
    (found,) = read_amdgcn(f"attend:\n\t{text}    ; a remark\n.Lfunc_end0:\n\ts_nop 0\n").instructions
    assert (found.text, found.kind, found.width) == (text, kind, width)


def test_kinds_have_a_meaning() -> None:
    """Catches a kind that the listing's legend cannot explain."""
    assert set(SASS) == set(AMDGCN) == set(KINDS)


NESTED = """
//## File "/a/kernel.py", line 10
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_0:
//## File "/a/kernel.py", line 11
        /*0010*/                   LDG.E R4, desc[UR4][R2.64] ;
.L_x_1:
//## File "/a/kernel.py", line 12
        /*0020*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0030*/              @!P1 BRA `(.L_x_2) ;
        /*0040*/                   FFMA R4, R4, R4, R4 ;
.L_x_2:
        /*0050*/               @P0 BRA `(.L_x_1) ;
.L_x_3:
        /*0060*/                   FADD R1, R1, R1 ;
        /*0070*/               @P0 BRA `(.L_x_3) ;
        /*0080*/              @!P0 BRA `(.L_x_0) ;
        /*0090*/                   EXIT ;
.L_x_4:
        /*00a0*/                   BRA `(.L_x_4) ;
"""


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        ({12}, ["LDG.E.64", "@!P1 BRA", "FFMA", "@P0 BRA"]),  # the innermost
        ({11, 12}, ["LDG.E.64", "@!P1 BRA", "FFMA", "@P0 BRA"]),  # though the outer one reads more
        ({11}, ["LDG.E R4", "LDG.E.64", "@!P1 BRA", "FFMA", "@P0 BRA", "FADD", "@P0 BRA", "@!P0 BRA"]),
        ({10}, None),  # in no loop
        (set(), None),
    ],
)
def test_the_inner_loop_is_the_one_that_reads_keys_and_values(lines: set[int], texts: list[str] | None) -> None:
    """Catches another loop, an outer one, a jump ahead taken for a loop, and the rest of a loop's body left out."""
    loop = read_sass(NESTED).with_kv({("kernel.py", line) for line in lines}).inner_loop()
    if texts is None:
        assert loop is None
    else:
        assert [each.text[: len(text)] for each, text in zip(loop.instructions, texts, strict=True)] == texts
        assert loop.kv_bytes == (8 if 12 in lines else 4)


TTIR = """
#loc = loc("/a/kernel.py":1:0)
#loc1 = loc(unknown)
  tt.func public @kernel(%key_ptr: !tt.ptr<bf16> loc("key_ptr"(#loc)), %query_ptr: !tt.ptr<bf16>) {
    %at = tt.splat %key_ptr : !tt.ptr<bf16> -> tensor<8x!tt.ptr<bf16>> loc(#loc1)
    %q = tt.load %query_ptr : !tt.ptr<bf16> loc(#loc2)
    %index = tt.load %query_ptr : !tt.ptr<i32> loc(#loc3)
    %done:2 = scf.for %i = %c0 to %n step %c1 iter_args(%sum = %q, %pointer = %at) -> (f32, i32) : i32 {
      %key = tt.load %pointer, %mask, %zero : tensor<8x!tt.ptr<bf16>> loc(#loc5)
      %next = tt.addptr %pointer, %index : tensor<8x!tt.ptr<bf16>>, tensor<8xi32> loc(#loc1)
      %more = tt.load %query_ptr, %key : tensor<8x!tt.ptr<bf16>> loc(#loc6)
      scf.yield %sum, %next : f32, i32 loc(#loc1)
    } loc(#loc1)
    %last = tt.load %done#1 : tensor<8x!tt.ptr<bf16>> loc(#loc7)
    %none = tt.load %done#0 : tensor<8x!tt.ptr<bf16>> loc(#loc8)
    %either = arith.select %c, %query_ptr, %at : i1, !tt.ptr<bf16> loc(#loc1)
    %one = tt.load %either : !tt.ptr<bf16> loc(#loc9)
  }
#loc2 = loc("/a/kernel.py":2:4)
#loc3 = loc("/a/kernel.py":3:4)
#loc4 = loc("/a/helper.py":4:4)
#loc5 = loc("key"(#loc10))
#loc6 = loc("/a/kernel.py":6:4)
#loc7 = loc("/a/kernel.py":7:4)
#loc8 = loc("/a/kernel.py":8:4)
#loc9 = loc("/a/kernel.py":9:4)
#loc10 = loc(callsite(#loc4 at #loc2))
"""


def test_lines_that_load_through_a_pointer() -> None:
    """Catches a pointer lost in a loop or a choice, a mask taken for a pointer, and a caller's line for a helper's."""
    assert lines_that_load(TTIR, ["key_ptr"]) == {("helper.py", 4), ("kernel.py", 7), ("kernel.py", 9)}
    # Line 8 follows an address that was loaded, which is no argument.
    assert lines_that_load(TTIR, ["query_ptr"]) == {("kernel.py", number) for number in (2, 3, 6, 9)}
    assert lines_that_load(TTIR, []) == set()
