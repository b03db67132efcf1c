"""FLOPs, bytes and collectives of compiled programs against closed forms, and of hand-trimmed TPU and GPU programs."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import on_fake_devices

from launch.planning import hlo
from launch.planning.collectives import replica_groups
from launch.planning.hlo_text import parse

GOLDENS = Path(__file__).parent / "goldens"
PRODUCT = 2 * 48 * 32 * 32  # of [48, 32] and [32, 32], the factors of most cases


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    return on_fake_devices(8, "plan_cases", "t.every_case()")


@pytest.mark.parametrize(
    ("case", "flops"),
    [
        ("scan", 7 * PRODUCT),
        ("nested", 3 * (5 + 1) * PRODUCT),
        ("unknown", PRODUCT),
        ("branches", 2 * PRODUCT),
        ("add", 0),
        ("psum", 2 * 48 * 32 * 80),  # of 8 * 32 contracted values each device has 32
        ("gather", 2 * (48 * 64) * 32 * (4 * 80)),  # of 8 * 48 * 64 rows each device has an eighth
    ],
)
def test_flops_of_loops_branches_and_shards(cases: dict[str, Any], case: str, flops: int) -> None:
    assert cases[case]["flops"] == flops
    assert bool(cases[case]["loops"]) == (case == "unknown")


def test_collectives_that_the_partitioner_puts_in(cases: dict[str, Any]) -> None:
    everyone, rows = [list(range(8))], [[0, 1, 2, 3], [4, 5, 6, 7]]
    size = 4 * 48 * 80
    assert cases["psum"]["collectives"] == [["all-reduce", size, size, everyone, 1, 2 * size * 7 / 8]]
    whole = 4 * 32 * 320
    assert cases["gather"]["collectives"] == [["all-gather", whole / 4, whole, rows, 1, whole * 3 / 4]]
    assert cases["gather"]["devices"] == 8


def test_explicit_collectives(cases: dict[str, Any]) -> None:
    size = 4 * 64 * 16
    rows, columns = [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 4], [1, 5], [2, 6], [3, 7]]
    ring = [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4]]
    assert cases["explicit"]["collectives"] == [
        ["all-gather", size, 4 * size, rows, 1, 3 * size],
        ["all-reduce", size, size, columns, 3, size],
        ["all-to-all", size, size, rows, 1, size * 3 / 4],
        ["collective-permute", size, size, ring, 1, size],
        ["reduce-scatter", size, size / 4, rows, 1, size * 3 / 4],
    ]
    assert cases["explicit"]["wire"]["all-reduce"] == 3 * size


def test_bytes_of_an_elementwise_program(cases: dict[str, Any]) -> None:
    assert cases["add"]["hbm"] == 3 * 4 * 1000 * 8


def test_a_row_written_in_place_moves_a_row(cases: dict[str, Any]) -> None:
    """Fifty rows read and written; the table of a thousand rows stays where it is. Counters are some bytes more."""
    rows = 2 * 50 * 4 * 512
    assert rows <= cases["store"]["hbm"] < 1.02 * rows


def tpu() -> hlo.Counts:
    return hlo.count((GOLDENS / "plan_tpu.hlo").read_text())


def cuda() -> hlo.Counts:
    return hlo.count((GOLDENS / "plan_cuda.hlo").read_text())


def work(counts: hlo.Counts, name: str) -> hlo.Work:
    return next(work for work in counts.work if work.name == name)


def test_tpu_products_are_convolutions() -> None:
    counts = tpu()
    # Batches are dilated spatial dimensions, of which only the diagonal is not of zeros.
    assert counts.flops_by_type == {"bf16": 2 * 4 * 24 * 4352 * 4352 * 64}
    scores = 4 * 4 * 24 * 4352 * 4352
    assert work(counts, "scores").hbm_bytes == scores + 2 * 2 * 4 * 24 * 4352 * 64
    assert work(counts, "scores").op_name.endswith("vmap(BTNH,BSNH->BNTS)/dot_general")


def test_tpu_loop_whose_limit_comes_through_its_tuple() -> None:
    """From 2 by 3 below 72, all three handed in: 24 runs. Each writes a bf16 update in place, read from the chip."""
    update = work(tpu(), "update")
    assert tpu().uncounted_loops == ()
    assert update.count == 24
    assert update.hbm_bytes == pytest.approx(2 * 4 * 256 * 1536, rel=1e-5)


def test_a_permute_without_pairs_sends_nothing() -> None:
    text = """HloModule m, is_scheduled=true, num_partitions=8

ENTRY %main (a: bf16[32,64]) -> bf16[32,64] {
  %a = bf16[32,64]{1,0} parameter(0)
  ROOT %p = bf16[32,64]{1,0} collective-permute(%a), channel_id=1, source_target_pairs=PAIRS
}
"""
    none, some = (hlo.count(text.replace("PAIRS", pairs)) for pairs in ("{}", "{{0,1}}"))
    assert none.collectives[0].groups == () and none.wire_bytes == {"collective-permute": 0.0}
    assert some.collectives[0].groups == ((0, 1),) and some.wire_bytes == {"collective-permute": 2 * 32 * 64}


def test_an_update_in_place_of_a_parameter_in_other_tiles() -> None:
    """As a TPU7x writes stacks of blocks: what reads the stack shares its memory, so only the update moves."""
    tiles, others = "{2,1,0:T(16,128)(2,1)}", "{2,1,0:T(8,128)(2,1)}"
    stack, update = "bf16[14,256,1024]", "bf16[1,256,1024]"
    text = f"""HloModule m, is_scheduled=true, num_partitions=1

%retiled (p: {stack}) -> {stack} {{
  %p = {stack}{tiles} parameter(0)
  ROOT %c = {stack}{others} copy(%p)
}}

%written (q: {stack}, u: {update}, i: s32[]) -> {stack} {{
  %q = {stack}{tiles} parameter(0)
  %same = {stack}{others} fusion(%q), kind=kLoop, ALIASING calls=%retiled
  %u = {update}{tiles} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %d = {stack}{tiles} dynamic-update-slice(%same, %u, %i, %z, %z)
}}

ENTRY %main (a: {stack}, b: {update}, n: s32[]) -> {stack} {{
  %a = {stack}{tiles} parameter(0)
  %b = {update}{tiles} parameter(1)
  %n = s32[] parameter(2)
  ROOT %f = {stack}{tiles} fusion(%a, %b, %n), kind=kLoop, calls=%written
}}
"""
    row, table = 2 * 256 * 1024, 14 * 2 * 256 * 1024
    shared = text.replace("ALIASING", "output_to_operand_aliasing={{}: (0, {})},")
    assert hlo.count(shared).hbm_bytes == pytest.approx(2 * row, abs=8)
    assert hlo.count(text.replace("ALIASING", "")).hbm_bytes > 2 * table - row


def test_tpu_memory_spaces() -> None:
    counts = tpu()
    rows = work(counts, "copy-start.1")  # to VMEM: HBM is only read
    assert (rows.hbm_bytes, rows.host_bytes) == (4 * 4 * 256 * 1536, 0)
    offloaded = work(counts, "copy.5")  # from the host to HBM
    assert (offloaded.hbm_bytes, offloaded.host_bytes) == (2 * 1536 * 144, 2 * 1536 * 144)
    row = 2 * 8 * 512 * 2048  # written to the host asynchronously, and read back
    for name in ("dynamic-update-slice-start", "dynamic-slice-start"):
        assert (work(counts, name).hbm_bytes, work(counts, name).host_bytes) == (row, row)
        assert work(counts, name).beside
    assert rows.beside and not offloaded.beside and not work(counts, "scores").beside
    assert counts.host_bytes == 2 * 1536 * 144 + 2 * row


def test_tpu_reduce_scatter_within_and_between_slices() -> None:
    """Written as a fused all-reduce; between the two slices the runtime sends the part that a device has."""
    inside, between = tpu().collectives
    whole = 2 * 65536 * 512
    assert (inside.kind, inside.operand_bytes, inside.result_bytes) == ("reduce-scatter", whole, whole / 16)
    assert inside.groups == tuple(tuple(range(i, 64, 4)) for i in range(4))
    assert inside.wire_bytes == whole * 15 / 16
    assert (between.kind, between.slices, between.wire_bytes) == ("all-reduce", 2, whole / 16)
    assert work(tpu(), "scattered").hbm_bytes == whole + whole / 16


def test_kernels_are_listed_until_their_flops_are_supplied() -> None:
    counts = tpu()
    (kernel,) = counts.opaque
    assert (kernel.target, kernel.count) == ("tpu_custom_call", 1)
    assert kernel.op_name.endswith("splash_mha_fwd_segmented_residuals/pallas_call")
    assert kernel.operands == ("bf16[4,24,512,64]", "bf16[4096,512]")
    # Its first operand lies on the chip. A minor dimension of 64 fills tiles of 128.
    stored = 4 * 4 * 128 * 128 + 2 * 4 * 24 * 512 * 128
    assert work(counts, kernel.name).hbm_bytes == stored + 2 * 4096 * 512
    supplied = counts.supply(lambda opaque: ("bf16", 7e9))
    assert supplied.flops == counts.flops + 7e9
    assert supplied.opaque == ()


def test_cuda_products() -> None:
    counts = cuda()
    triton, cublas = work(counts, "gemm_fusion_dot.104"), work(counts, "cublas-lt-matmul.3")
    assert (triton.count, triton.flops) == (24, {"bf16": 2 * 8192 * 1536 * 6144})
    assert triton.hbm_bytes == 2 * (8192 * 1536 + 1536 * 6144 + 8192 * 6144)
    assert cublas.flops == {"bf16": 2 * 8192 * 1536 * 1024}
    # Its workspace of 4 MiB is no result.
    assert cublas.hbm_bytes == 2 * (8192 * 1536 + 1536 * 1024 + 1024 + 8192 * 1024)
    assert [kernel.target for kernel in counts.opaque] == ["__cudnn$fmhaSoftmax"]


def test_cuda_slice_after_a_conversion_reads_the_slice() -> None:
    for name in ("loop_dynamic_slice_fusion.11", "dynamic-slice-start.2"):  # the latter asynchronous
        assert work(cuda(), name).hbm_bytes == pytest.approx((4 + 2) * 6144 * 12, abs=8)


def test_cuda_asynchronous_collectives() -> None:
    gather, scatter = cuda().collectives
    whole = 2 * (6144 * 1536 + 256 * 1536)
    assert (gather.kind, gather.executions) == ("all-gather", 24)
    assert (gather.operand_bytes, gather.result_bytes) == (whole / 128, whole)
    assert gather.groups == (tuple(range(128)),) == scatter.groups
    assert gather.wire_bytes == whole * 127 / 128
    assert (scatter.kind, scatter.operand_bytes) == ("reduce-scatter", 2 * 4096 * 1536)
    assert cuda().wire_bytes == {"all-gather": 24 * whole * 127 / 128, "reduce-scatter": 2 * 4096 * 1536 * 127 / 128}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,3},{1,2}}", ((0, 3), (1, 2))),
        ("{}", (tuple(range(8)),)),
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=2,'b'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=4] {'b','a'}", ((0, 4, 1, 5, 2, 6, 3, 7),)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=4,'b'=2], device_ids=([4,2]<=[2,4]T(1,0)) {'b'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'a'}", ((3, 1), (2, 0))),
        ("mesh['a'=8] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=8] {'a':(2)4}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
    ],
)
def test_replica_groups(text: str, groups: tuple[tuple[int, ...], ...]) -> None:
    assert replica_groups(text, 8) == groups


def test_groups_of_several_mesh_axes_are_those_of_numpy() -> None:
    ids = np.arange(24).reshape(2, 3, 4)
    expected = {tuple(ids[:, j, :].T.ravel()) for j in range(3)}
    assert set(replica_groups("mesh['x'=2,'y'=3,'z'=4] {'z','x'}", 24)) == expected


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "dilate", "kernel_dilate"),
    [
        (9, 3, 1, (1, 1), 1, 1),
        (10, 4, 3, (0, 2), 1, 2),
        (5, 3, 2, (2, 1), 3, 1),
        (4, 4, 3, (0, 0), 4, 1),
        (6, 6, 1, (5, 5), 1, 1),
    ],
)
def test_convolution_counts_what_a_loop_over_positions_counts(
    size: int, kernel: int, stride: int, pad: tuple[int, int], dilate: int, kernel_dilate: int
) -> None:
    dilated = (size - 1) * dilate + 1
    out = (dilated + sum(pad) - (kernel - 1) * kernel_dilate - 1) // stride + 1
    window = f"size={kernel} stride={stride} pad={pad[0]}_{pad[1]} lhs_dilate={dilate} rhs_dilate={kernel_dilate}"
    text = f"""HloModule m

ENTRY %main (x: bf16[2,{size},3], k: bf16[5,{kernel},3]) -> bf16[2,{out},5] {{
  %x = bf16[2,{size},3]{{2,1,0}} parameter(0)
  %k = bf16[5,{kernel},3]{{2,1,0}} parameter(1)
  ROOT %c = bf16[2,{out},5]{{2,1,0}} convolution(%x, %k), window={{{window}}}, dim_labels=b0f_o0i->b0f
}}
"""
    pairs = sum(
        0 <= (at := o * stride + k * kernel_dilate - pad[0]) < dilated and at % dilate == 0
        for o, k in itertools.product(range(out), range(kernel))
    )
    assert hlo.count(text).flops == 2 * 2 * 3 * 5 * pairs


def test_types_and_tiles() -> None:
    text = """HloModule m

ENTRY %main (a: s4[3,5], b: (f8e4m3fn[7], (pred[2], token[]))) -> s4[3,5] {
  %b = (f8e4m3fn[7]{0:T(256)(4,1)}, (pred[2]{0}, token[])) parameter(1)
  ROOT %a = s4[3,5]{1,0:T(8,128)(8,1)E(4)S(1)} parameter(0)
}
"""
    a = parse(text).entry.root.array
    assert (a.bytes, a.stored_bytes, a.space, str(a)) == (7.5, 8 * 128 / 2, 1, "s4[3,5]")
    b = parse(text).entry.instructions["b"]
    assert [array.bytes for array in b.arrays] == [7, 2, 0]
    assert b.array.stored_bytes == 256


def test_float32_products_at_higher_precision_are_told_apart() -> None:
    text = (GOLDENS / "plan_cuda.hlo").read_text()
    text = re.sub(r"bf16\[(2,4096,1536|8192,1536|6144,1536|8192,6144)\]", r"f32[\1]", text)
    text = text.replace("rhs_contracting_dims={1}", "rhs_contracting_dims={1}, operand_precision={high,highest}")
    assert work(hlo.count(text), "gemm_fusion_dot.104").flops == {"f32:highest": 2 * 8192 * 1536 * 6144}


@pytest.mark.parametrize("text", ["", "not a module", "HloModule m\n\nENTRY %e () -> f32[] {\n  what is this\n}\n"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HLO"):
        hlo.count(text)
