"""SD3 checkpoints in and out: bit for bit, whole or not at all, and a line for everything that is wrong."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from deterministic import relative_error
from mmdit_cases import CASES, TABLE
from orbax.checkpoint import v1 as ocp
from sd3_files import DTYPES, GOLDEN, VARIANTS, contents, diffusers_tensors, save, sparse_stability

from launch.cli import main
from mmdit_jax.errors import UserError
from mmdit_jax.models import init_params, load_sd3
from mmdit_jax.models.sd3 import convert, open_checkpoint, params_from_tensors
from mmdit_jax.models.sd3.names import entries
from mmdit_jax.models.sd3.table import rows, span_of

PREFIX = "model.diffusion_model."


def arguments(name: str) -> list[np.ndarray]:
    given = CASES[name].inputs(name)
    return [given[key] for key in ("latents", "t", "context", "pooled")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_round_trips_are_bit_exact(tmp_path, name, dtype) -> None:
    tensors = diffusers_tensors(name, dtype)
    for array in (tensors[key] for key in tensors.keys() - {TABLE}):  # also NaNs, zeros of both signs, the smallest
        words = array.reshape(-1).view(f"u{array.itemsize}")
        words[:5] = np.array([-1, 0, 1, 0x7F81, 0x8000]).astype(words.dtype)
    source = save(tmp_path / "d.safetensors", tensors)
    head_size = CASES[name].head_size
    first = contents(source)
    convert(source, tmp_path / "s.safetensors", "stability", head_size=head_size)
    convert(tmp_path / "s.safetensors", tmp_path / "d2", "diffusers", shard_bytes=60_000)
    assert len(list((tmp_path / "d2").glob("*.safetensors"))) > 3
    assert contents(tmp_path / "d2") == first
    convert(tmp_path / "d2", tmp_path / "s2", "stability", shard_bytes=60_000)
    stability = contents(tmp_path / "s.safetensors")
    assert contents(tmp_path / "s2") == stability
    assert {kind for kind, _, _ in stability.values()} == {dtype}
    written = convert(tmp_path / "s2", tmp_path / "tree", "orbax")
    assert written.bytes == sum(len(data) for _, _, data in first.values())
    assert written.parameters == sum(np.prod(shape) for key, (_, shape, _) in first.items() if key != TABLE)
    convert(tmp_path / "tree", tmp_path / "s3.safetensors", "stability")
    convert(tmp_path / "tree", tmp_path / "d3", "diffusers")
    assert contents(tmp_path / "s3.safetensors") == stability
    assert contents(tmp_path / "d3") == first
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".")]


@pytest.mark.parametrize("name", VARIANTS)
def test_loaded_from_stability_it_computes_what_diffusers_does(tmp_path, name) -> None:
    source = save(tmp_path / "d.safetensors", diffusers_tensors(name))
    convert(source, tmp_path / "s.safetensors", "stability", head_size=CASES[name].head_size)
    loaded = load_sd3(tmp_path / "s.safetensors")
    assert loaded.config == CASES[name].config()
    with np.load(GOLDEN) as golden:
        assert relative_error(loaded(*arguments(name)), golden[f"{name}/out"]) < 1e-5
        rough = load_sd3(str(source), dtype="bfloat16", head_size=CASES[name].head_size)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(rough.params)} == {"bfloat16"}
        assert 1e-4 < relative_error(rough(*arguments(name)), golden[f"{name}/out"]) < 0.05


def test_the_tree_is_the_training_tree_and_orbax_restores_it(tmp_path) -> None:
    name = "SD3.5-medium"
    tensors = diffusers_tensors(name)
    save(tmp_path / "d.safetensors", tensors)
    convert(tmp_path / "d.safetensors", tmp_path / "tree", "orbax")
    config = open_checkpoint(tmp_path / "tree").config
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    restored = ocp.load(tmp_path / "tree" / "params", abstract)
    expected = params_from_tensors(config, "diffusers", tensors)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_names_without_prefix_and_other_components(tmp_path) -> None:
    """A repackaged file has no prefix; an all-in-one file holds an autoencoder and text encoders too."""
    name = "SD3.5-large"
    source = save(tmp_path / "d.safetensors", diffusers_tensors(name))
    convert(source, tmp_path / "s.safetensors", "stability")
    plain = contents(tmp_path / "s.safetensors")
    arrays = {key: np.frombuffer(data, np.float32).reshape(shape) for key, (_, shape, data) in plain.items()}
    others = {
        "first_stage_model.decoder.conv_in.bias": np.ones(4, np.float32),
        "text_encoders.clip_l.transformer.text_model.final_layer_norm.bias": np.ones(4, np.uint8),
    }
    save(tmp_path / "whole.safetensors", arrays | others)
    save(tmp_path / "bare.safetensors", {key.removeprefix(PREFIX): array for key, array in arrays.items()})
    for file in ("whole", "bare"):
        convert(tmp_path / f"{file}.safetensors", tmp_path / f"{file}.out.safetensors", "stability")
        assert contents(tmp_path / f"{file}.out.safetensors") == plain


def test_diffusers_folder_of_a_pipeline_with_config(tmp_path) -> None:
    name = "SD3-medium"
    convert(
        save(tmp_path / "d.safetensors", diffusers_tensors(name)), tmp_path / "p/transformer", "diffusers", head_size=16
    )
    said = json.loads((tmp_path / "p/transformer/config.json").read_text())
    assert said | {"_class_name": "SD3Transformer2DModel"} == json.loads(json.dumps(CASES[name].diffusers())) | {
        "_class_name": "SD3Transformer2DModel"
    }
    assert load_sd3(tmp_path / "p").config == CASES[name].config()
    said["num_layers"] = 7
    (tmp_path / "p/transformer/config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"config\.json has num_layers=7, its tensors say 3"):
        open_checkpoint(tmp_path / "p")


def broken(name: str) -> dict[str, np.ndarray]:
    """A tiny model with three unknown tensors, two missing and two misshapen."""
    tensors = diffusers_tensors(name)
    del tensors["transformer_blocks.1.attn.to_k.weight"], tensors["proj_out.bias"]
    tensors["transformer_blocks.0.ff.net.2.weight"] = tensors["transformer_blocks.0.ff.net.2.weight"][:, 1:]
    tensors["context_embedder.weight"] = tensors["context_embedder.weight"][1:]
    for key in ("transformer_blocks.0.attn3.to_k.weight", "transformer_blocks.99.ff.net.2.bias", "extra"):
        tensors[key] = np.zeros(3, np.float32)
    return tensors


@pytest.mark.parametrize("to", ["stability", "orbax"])
def test_everything_wrong_is_named(tmp_path, capsys, to) -> None:
    save(tmp_path / "d.safetensors", broken("SD3.5-medium"))
    assert main(["convert", str(tmp_path / "d.safetensors"), str(tmp_path / "out"), "--to", to]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1
    for part in (
        "3 unknown: extra, transformer_blocks.0.attn3.to_k.weight, transformer_blocks.99.ff.net.2.bias",
        "2 missing: transformer_blocks.1.attn.to_k.weight, proj_out.bias",
        "2 misshapen: context_embedder.weight [47, 48] (expected [48, 48]), "
        "transformer_blocks.0.ff.net.2.weight [48, 191] (expected [48, 192])",
    ):
        assert part in err
    assert [item.name for item in tmp_path.iterdir()] == ["d.safetensors"]


def test_many_wrong_tensors_are_counted(tmp_path) -> None:
    tensors = diffusers_tensors("SD3.5-large")
    tensors |= {f"lora.{i:03d}": np.zeros(1, np.float32) for i in range(50)}
    with pytest.raises(UserError, match=r"50 unknown: lora.000, .*lora.019 and 30 more; expected 3 blocks of width 80"):
        open_checkpoint(save(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize("name", VARIANTS)
def test_any_tensor_left_out_is_missed(tmp_path, name) -> None:
    tensors = diffusers_tensors(name)
    keys = [key for key in tensors if not key.startswith("transformer_blocks.1.") or "norm" in key][::4]
    for key in keys:
        rest = {other: array for other, array in tensors.items() if other != key}
        with pytest.raises(UserError, match=f"1 missing: {key};"):
            open_checkpoint(save(tmp_path / "x.safetensors", rest), head_size=16)


def test_unreadable_sources_are_told(tmp_path, capsys) -> None:
    good = save(tmp_path / "d.safetensors", diffusers_tensors("SD3.5-large"))
    (tmp_path / "short.safetensors").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "torch.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "empty").mkdir()
    save(tmp_path / "vae.safetensors", {"decoder.conv_in.weight": np.zeros((4, 4), np.float32)})
    convert(good, tmp_path / "shards", "diffusers", shard_bytes=100_000)
    gone = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    gone.unlink()
    mixed = diffusers_tensors("SD3.5-large")
    mixed["transformer_blocks.0.attn.to_k.weight"] = mixed["transformer_blocks.0.attn.to_k.weight"].astype(np.float16)
    save(tmp_path / "mixed.safetensors", mixed)
    save(tmp_path / "double.safetensors", diffusers_tensors("SD3.5-large") | {"proj_out.bias": np.zeros(64)})
    for source, expected in {
        "nothing.safetensors": "No such file",
        "short.safetensors": "cut short",
        "torch.ckpt": "not a safetensors file",
        "empty": "no *.safetensors in this folder",
        "vae.safetensors": "no SD3 transformer (it has 'decoder.conv_in.weight', …)",
        "shards": f"shards missing: {gone.name}",
        "mixed.safetensors": "to_k.weight, transformer_blocks.0.attn.to_v.weight are F16 and F32",
        "double.safetensors": "1 tensors are F64 (proj_out.bias, …)",
    }.items():
        assert main(["convert", str(tmp_path / source), str(tmp_path / "out"), "--to", "stability"]) == 2
        told = capsys.readouterr().err
        assert expected in told and len(told.strip().splitlines()) == 1, source
        assert not (tmp_path / "out").exists()


def test_float8_is_refused(tmp_path) -> None:
    size = sparse_stability(tmp_path / "s.safetensors", 2, 64)
    data = (tmp_path / "s.safetensors").read_bytes()
    header = json.loads(data[8 : len(data) - size])
    item = header[f"{PREFIX}final_layer.linear.weight"]
    begin, end = item["data_offsets"]
    item |= {"dtype": "F8_E4M3", "data_offsets": [begin, begin + (end - begin) // 2]}
    text = json.dumps(header).encode()
    (tmp_path / "s.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[-size:])
    with pytest.raises(UserError, match=r"F8_E4M3 \(model\.diffusion_model\.final_layer\.linear\.weight.*8-bit"):
        open_checkpoint(tmp_path / "s.safetensors")


def test_targets_are_not_overwritten_by_chance(tmp_path, capsys) -> None:
    source = save(tmp_path / "d.safetensors", diffusers_tensors("SD3.5-large"))
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years")
    (tmp_path / "notes").write_text("kept")
    convert(source, tmp_path / "out", "diffusers")
    before = contents(tmp_path / "out")

    def told(target: str, *options: str) -> str:
        assert main(["convert", str(source), str(tmp_path / target), *options]) == 2
        return capsys.readouterr().err

    assert "exists already; choose another, or --overwrite" in told("out", "--to", "orbax")
    assert "holds 'thesis.txt'" in told("mine", "--to", "diffusers", "--overwrite")
    assert "is no *.safetensors" in told("notes", "--to", "diffusers", "--overwrite")
    assert "holds the source" in told("d.safetensors", "--to", "stability", "--overwrite")
    assert "expected the name of a folder" in told("x.safetensors", "--to", "stability", "--shard-bytes", "9")
    assert "shard_bytes=9: expected no shards for orbax" in told("x", "--to", "orbax", "--shard-bytes", "9")
    assert "is a file; expected a folder" in told("notes/x", "--to", "orbax")
    assert (foreign / "thesis.txt").read_text() == "years" and (tmp_path / "notes").read_text() == "kept"
    assert contents(tmp_path / "out") == before
    arguments = ["convert", str(source), str(tmp_path / "out"), "--to", "orbax", "--overwrite", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parameters"] == CASES["SD3.5-large"].config().num_params()
    assert load_sd3(tmp_path / "out").config == CASES["SD3.5-large"].config()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["d.safetensors", "mine", "notes", "out"]


def test_head_size_of_a_model_without_norms(tmp_path, caplog) -> None:
    """Tensors don't tell it: 64 as in SD3 where that divides the width, or what is said; our files say another."""
    source = save(tmp_path / "d.safetensors", diffusers_tensors("SD3-medium"))
    assert open_checkpoint(source).config.head_size == 16  # of width 48
    assert caplog.text == ""  # as many heads as blocks
    with pytest.raises(UserError, match="head_size=7: expected a divisor of the width 48"):
        open_checkpoint(source, head_size=7)
    convert(source, tmp_path / "s.safetensors", "stability", head_size=8)
    assert open_checkpoint(tmp_path / "s.safetensors").config.num_heads == 6
    other = save(tmp_path / "e.safetensors", diffusers_tensors("dual, no norm"))
    assert open_checkpoint(other).config.num_heads == 5
    convert(other, tmp_path / "f", "diffusers", head_size=40)
    assert load_sd3(tmp_path / "f").config.num_heads == 2
    assert "taken for 16 (5 heads), name it if it is another" in caplog.text


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("side", "span"), [(192, 64), (384, 64), (384, 96), (384, 192), (24, 64), (12, 3), (96, 96)])
def test_span_of_a_table_is_found(side, span, dtype) -> None:
    """Also from numbers rounded to bfloat16."""
    config = dataclasses.replace(CASES["SD3-medium"].config(), position_table=side, position_base=span)
    table = next(rows(config)).astype(DTYPES[dtype]).astype(np.float32)
    assert span_of(table) == span


def test_help_has_an_example(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--help"])
    assert caught.value.code == 0
    assert "example: mmdit convert sd3.5_large.safetensors" in " ".join(capsys.readouterr().out.split())


def test_of_variants_in_a_folder_one_is_read(tmp_path) -> None:
    """As in diffusers' repositories, beside one another; of Stability's, which are wholes, one must be named."""
    name = "SD3.5-large"
    tensors = diffusers_tensors(name)
    save(tmp_path / "both/diffusion_pytorch_model.fp16.safetensors", diffusers_tensors(name, "F16"))
    half = open_checkpoint(tmp_path / "both")
    assert {half.source.dtype(entry) for entry in entries(half.config)} == {"F16"}
    convert(save(tmp_path / "d.safetensors", tensors), tmp_path / "whole", "diffusers", shard_bytes=100_000)
    for file in (tmp_path / "whole").iterdir():
        file.rename(tmp_path / "both" / file.name)
    found = open_checkpoint(tmp_path / "both")
    assert {found.source.dtype(entry) for entry in entries(found.config)} == {"F32"}
    convert(tmp_path / "d.safetensors", tmp_path / "repository/sd3.safetensors", "stability")
    convert(tmp_path / "d.safetensors", tmp_path / "repository/sd3_incl_clips.safetensors", "stability")
    with pytest.raises(UserError, match=r"is both in sd3.safetensors and sd3_incl_clips.safetensors; name one file$"):
        open_checkpoint(tmp_path / "repository")
    shards = tmp_path / "both"
    for file in (*shards.glob("*.fp16.safetensors"), *shards.glob("*.json")):
        file.unlink()
    assert open_checkpoint(shards).config == found.config  # shards alone, whose index was not fetched
