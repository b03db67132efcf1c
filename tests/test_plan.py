"""Planning without a compiler: targets, layouts, the counting, the search on machines whose answer is known, words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch import cli
from launch.planning import ask as asking
from launch.planning.estimate import estimate
from launch.planning.fit import ways_to_fit
from launch.planning.hlo import Counts, Opaque
from launch.planning.layout import Layout, layout_of, layouts, why_not
from launch.planning.measure import opaque_flops, scratch_bytes
from launch.planning.paper import planned_run
from launch.planning.request import Request
from launch.planning.search import ranked, search
from launch.planning.target import parse
from launch.planning.tell import plan_lines
from mmdit_jax.chips import GIB
from mmdit_jax.config import Run
from mmdit_jax.errors import UserError
from mmdit_jax.models import MMDiTConfig
from mmdit_jax.sharding import make_mesh
from mmdit_jax.training.state import abstract_state


def test_targets_by_their_names() -> None:
    pod = parse("v5p:8x8x4")
    assert (pod.devices, pod.is_tpu, pod.name) == (256, True, "v5p:8x8x4")
    slices = parse("2*v6e:16x16")
    assert (slices.devices, slices.slices, slices.name) == (512, 2, "2*v6e:16x16")
    assert parse("tpu7x:4x4x4").devices == 128  # two devices a chip
    gpus = parse("h100:16x8")
    assert gpus.devices == 128 and gpus.usable_bytes < gpus.chip.hbm_bytes and not gpus.is_tpu
    for text, says in (
        ("v5q:8x8x4", r"did you mean 'v5p:8x8x4'\?"),
        ("v5p", "expected CHIP:SHAPE"),
        ("h100:8", "expected NODES x GPUS"),
        ("2*h100:8x8", "slices are of TPUs"),
        ("0*v5p:8x8x4", "sizes of 1 or more"),
    ):
        with pytest.raises(UserError, match=says):
            parse(text)


def test_every_layout_divides_what_it_cuts() -> None:
    run, target = planned_run(15, batch=512), parse("v5p:4x4x4")
    found = [layout for layout in layouts(run, target) if why_not(run, layout, target) is None]
    assert len(found) > 50
    for layout in found:
        data = target.devices // layout.shards
        assert data * layout.shards == 64 and 512 % (data * layout.fsdp * layout.accumulation) == 0
        assert layout.tensor == 1  # 15 heads: no power of two
        assert layout_of(layout.of(run)) == layout
    # 960 = 2^6 x 15 and 2880 = 2^6 x 45 can't be cut by 128.
    assert "fsdp=128: can't cut" in str(why_not(run, Layout(fsdp=128), parse("v5p:4x4x8")))
    assert why_not(run, Layout(tensor=2), target) == "tensor=2 does not divide 15 heads"
    assert "no multiple of" in str(why_not(run, Layout(fsdp=64, accumulation=16), target))


def test_counted_state_is_the_state() -> None:
    """Bytes of parameters, average and moments against those of the state that training makes."""
    run = planned_run(15)
    state: Any = abstract_state(run.model, run.optimizer, run.steps, make_mesh())
    true = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state)))
    for layout in (Layout(fsdp=64), Layout(fsdp=64, accumulation=2)):
        few = replace(run, batch=256)
        base = estimate(few, layout, parse("v5p:8x8x4")).bytes
        for field, saved in (("moments", 4), ("ema_dtype", 2)):
            narrow = replace(few, optimizer=replace(few.optimizer, **{field: "bfloat16"}))
            less = base - estimate(narrow, layout, parse("v5p:8x8x4")).bytes
            assert less == pytest.approx(saved * run.model.num_params() / 64)
        away = replace(few, hardware=replace(few.hardware, offload=("optimizer", "ema")))
        assert base - estimate(away, layout, parse("v5p:8x8x4")).bytes == pytest.approx(true * 3 / 4 / 64, rel=1e-3)
    # 16 GB/s each way to the host: longer than four chips take for an image each.
    found = estimate(replace(away, batch=4), Layout(fsdp=4), parse("v5p:2x2x1"))
    assert found.seconds == pytest.approx(true * 3 / 4 / 4 / 16e9, rel=1e-3)


def machine(best: Layout, room: float) -> Any:
    """A compiler by the counting, that finds ``best`` a tenth faster than counted, and has this much room."""

    def compile(run: Run) -> dict[str, Any]:
        layout, target = layout_of(run), parse("v5p:8x8x4")
        counted = estimate(run, layout, target)
        plan: dict[str, Any] = {"peak_gib": counted.bytes / GIB, "hbm_gib": room, "fits": counted.bytes / GIB <= room}
        if plan["fits"]:
            seconds = counted.seconds / (1.1 if layout == best else 1)
            plan |= {"step_seconds": seconds, "mfu_bound": 0.5, "compute_seconds": seconds}
            plan |= {"hbm_seconds": seconds / 2, "interconnect_seconds": seconds / 3}
        return plan

    return compile


def test_the_search_trusts_the_compiler_and_says_why_the_rest_lost() -> None:
    run, target, said = planned_run(38, resolution=1024), parse("v5p:8x8x4"), []
    possible, _ = ranked(run, target)
    first = possible[0][0]
    second = next(layout for layout, _ in possible if (layout.fsdp, layout.remat) != (first.fsdp, first.remat))
    plan, tried = search(run, target, machine(second, 110.0), 3, said.append)
    assert plan is not None and tried[0].layout == second and tried[0].why == ""
    assert len([item for item in tried if item.plan]) == len(said) == 3
    assert all(item.why for item in tried[1:])
    assert any("counted" in item.why for item in tried) and any("most of it" in item.why for item in tried)
    # A machine with less room than counted: what does not fit is told, with by how much.
    roomy, tight = possible[0][1].bytes / GIB, 0.9 * possible[0][1].bytes / GIB
    plan, tried = search(run, target, machine(second, tight), 4, said.append)
    assert any(f"of {tight:.1f}" in item.why for item in tried) and roomy > tight
    none, all_tried = search(run, target, machine(second, 0.1), 2, said.append)
    assert none is None and all(item.why for item in all_tried)


def test_ways_to_fit_fit() -> None:
    run, target = planned_run(38, resolution=1024), parse("v6e:16x16")
    bad = Layout(fsdp=16).of(run)
    needs = estimate(bad, layout_of(bad), target).bytes / GIB
    assert needs > target.usable_bytes / GIB
    ways = ways_to_fit(bad, target, needs)
    assert len(ways) == 3 and len(set(ways)) == 3
    for way in ways:
        assert float(way.split("about ")[1].split(" GiB")[0]) <= target.usable_bytes / GIB
        assert any(word in way for word in ("remat", "accumulation", "fsdp", "tensor", "sequence"))


def test_flops_of_fused_attention() -> None:
    """By the shapes that the compiler writes for cuDNN and Splash: two products forward, five more or nine backward."""

    def kernel(target: str, name: str, *operands: str) -> Opaque:
        return Opaque("k", target, name, operands, (), 1.0)

    once = 2 * 4 * 24 * 410 * 512 * 64
    rows = ("bf16[4,410,24,64]", "bf16[4,512,24,64]", "bf16[4,512,24,64]")
    assert opaque_flops(kernel("__cudnn$fmhaSoftmax", "", *rows)) == ("bf16", 2 * once)
    assert opaque_flops(kernel("__cudnn$fmhaSoftmaxBackward", "", *rows)) == ("bf16", 5 * once)
    heads = ("s8[1,1,1]", "bf16[4,24,410,64]", "bf16[4,24,512,64]", "bf16[4,24,512,64]")
    parts = {"splash_mha_fwd_x": 2, "splash_mha_dq_x": 3, "splash_mha_dkv_x": 4}
    for name, products in parts.items():
        assert opaque_flops(kernel("tpu_custom_call", f"jit(f)/{name}/pallas_call", *heads)) == (
            "bf16",
            products * once,
        )
    # At run time cuDNN takes a float32 gradient of the queries and a sum a row beside what is assigned; once for all.
    kernels = tuple(kernel(f"__cudnn$fmhaSoftmax{which}", "", *rows) for which in ("", "Backward", "Backward"))
    assert scratch_bytes(Counts(1, (), (), kernels, ())) == 4 * 4 * 410 * 24 * (64 + 1)
    assert scratch_bytes(Counts(1, (), (), kernels[:1], ())) == 0
    # Of one image a device the compiler leaves the batch's axis out, of one head that too.
    one = ("s8[1,1,1]", "bf16[24,410,64]", "bf16[24,512,64]", "bf16[24,512,64]", "f32[24,1,410]")
    assert opaque_flops(kernel("tpu_custom_call", "splash_mha_dkv", *one)) == ("bf16", once)
    alone = ("s8[1]", "bf16[410,64]", "bf16[512,64]")
    assert opaque_flops(kernel("tpu_custom_call", "splash_mha_fwd", *alone)) == ("bf16", 2 * once / (4 * 24))
    with pytest.raises(ValueError, match="expected queries and keys"):
        opaque_flops(kernel("tpu_custom_call", "splash_mha_fwd", "s8[1,1,1]", "s32[4]"))
    assert opaque_flops(kernel("AssumeGatherIndicesInBound", "gather", "u32[8]")) == ("bf16", 0.0)


def test_the_run_that_is_planned_is_the_papers() -> None:
    run = planned_run(38)
    assert run.model.num_params() == 8_056_627_520 and run.batch == 4096 and run.data.resolution == 32
    assert run.model.dtype == "bfloat16" and run.model.context_dim == 4096 and run.model.pooled_dim == 2048
    assert planned_run(15, text_tokens=77).model.context_dim == 2048
    assert planned_run(15, overrides=["optimizer.moments=bfloat16"]).optimizer.moments == "bfloat16"
    for fields, says in (
        ({"resolution": 300}, "expected a multiple of 8"),
        ({"text_tokens": 10}, "expected 77"),
        ({"overrides": ["moments"]}, "expected field=value"),
        ({"resolution": 8192}, "position_table"),
    ):
        with pytest.raises(UserError, match=says):
            planned_run(15, **fields)


def test_answers_are_kept_by_config_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not change the program does not change the key; a damaged answer is asked for again."""
    run, target = planned_run(15), parse("v5p:8x8x4")
    request = Request(run, target)
    same = [replace(run, name="other"), replace(run, seed=3), replace(run, steps=7), replace(run, formulation="rf")]
    assert {Request(item, target).key for item in same} == {request.key}
    model = replace(run.model, remat="dots")
    other = [
        replace(run, formulation="eps/cos"),
        replace(run, batch=8),
        replace(run, model=model),
        replace(run, hardware=replace(run.hardware, fsdp=8)),
    ]
    keys = {Request(item, target).key for item in other} | {Request(run, parse("v5p:4x4x4")).key, request.key}
    assert len(keys) == 6 and Request(run, target, sampling=True).key not in keys

    asked: list[Request] = []

    def child(request: Request) -> dict[str, Any]:
        asked.append(request)
        return {"needs_bytes": 200.0 * GIB, "hbm_bytes": 95.0 * GIB}

    monkeypatch.setattr(asking, "_child", child)
    monkeypatch.setattr(asking, "_require_compiler", lambda platform: None)
    first, again = asking.ask(request, tmp_path), asking.ask(request, tmp_path)
    assert len(asked) == 1 and (first["memoised"], again["memoised"]) == (False, True)
    assert {**first, "memoised": True} == again and again["fits"] is False and again["peak_gib"] == 200.0
    (tmp_path / f"{request.key}.json").write_text("{")
    asking.ask(request, tmp_path)
    assert len(asked) == 2


def test_a_plan_in_words() -> None:
    plan = {
        **{"topology": "v5p:8x8x4", "depth": 38, "batch": 4096, "latent": 32, "remat": "full", "accumulation": 2},
        "mesh": {"fsdp": 64, "sequence": 1, "tensor": 2},
        **{"fits": False, "peak_gib": 120.0, "hbm_gib": 95.74, "ways_to_fit": ["remat full: about 80.0 GiB"]},
    }
    text = "\n".join(plan_lines(plan, [], sampling=False))
    assert "fsdp=64 tensor=2, remat full, accumulation 2" in text
    assert "DOES NOT FIT" in text and "over by 24.26 GiB" in text and "would fit: remat full" in text


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["--topology", "v5p:8x8x4"], "expected --depth N or a STUDY"),
        (["--topology", "v5q:8x8x4", "--depth", "38"], "did you mean 'v5p:8x8x4'?"),
        (["--topology", "v5p:8x8x4", "--depth", "38", "--price", "0"], "price=0.0: expected more than 0"),
        (["--topology", "v5p:8x8x4", "--depth", "15", "--tensor", "2"], "tensor=2"),
        (["--topology", "v5p:8x8x4", "--depth", "15", "--fsdp", "256"], "fsdp=256"),
        (["--topology", "v5p:8x8x4", "--depth", "15", "--batch", "100"], "batch=100"),
    ):
        assert cli.main(["plan", *words]) == 2
        told = capsys.readouterr().err
        assert says in told and told.count("\n") == 1, told


def test_depths_of_the_paper_have_a_layout_everywhere() -> None:
    """By counting: every size at 256 and 1024 pixels fits each kind of pod at batch 4096."""
    for topology in ("v5p:8x8x4", "v6e:16x16", "tpu7x:4x4x8", "h100:32x8"):
        for depth in (15, 18, 21, 24, 30, 38):
            for resolution in (256, 1024):
                run = planned_run(depth, resolution=resolution)
                assert run.model == MMDiTConfig.from_depth(depth, qk_norm=True, dtype="bfloat16")
                possible, _ = ranked(run, parse(topology))
                assert possible and np.isfinite(possible[0][1].seconds), (topology, depth, resolution)
    assert json.loads(json.dumps(vars(possible[0][0])))["fsdp"] >= 1
