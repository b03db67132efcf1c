"""The scorer by a detector, on tiny random models: boxes, masks and colours by other ways, and the whole command."""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, DetrForObjectDetection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from launch.cli import main
from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.classes import COLOURS, OBJECTS
from mmdit_jax.evaluation.official.colours import crop, load_clip
from mmdit_jax.evaluation.official.detector import instances, load_detector
from mmdit_jax.evaluation.official.prompts import generate
from mmdit_jax.evaluation.official.rules import Found
from mmdit_jax.evaluation.official.tree import image_path, write_image
from parity.detectors import COCO, write_all, write_detr

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (80, 96, 3), np.uint8), RNG.integers(0, 256, (64, 120, 3), np.uint8)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    return write_all(tmp_path_factory.mktemp("judges"))


def test_instances_are_transformers() -> None:
    """At 384 px, where transformers' own way rounds no masks."""
    generator = torch.Generator().manual_seed(0)
    classes = 4 * torch.randn(100, 81, generator=generator)
    coarse = 4 * torch.randn(1, 100, 6, 6, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (96, 96), mode="bicubic")[0]
    size = (384, 384)
    boxes, scores, labels, found = instances(classes, masks, size, size, size, 0.2)
    outputs = types.SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    (theirs,) = Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        outputs, threshold=0.2, target_sizes=[size], return_binary_maps=True
    )
    assert len(scores) == len(theirs["segments_info"]) > 3
    order = np.argsort([-item["score"] for item in theirs["segments_info"]])
    for i, k in zip(np.argsort(-scores.numpy()), order, strict=True):
        info, mask = theirs["segments_info"][k], theirs["segmentation"][k].bool()
        assert (int(labels[i]), float(scores[i])) == (info["label_id"], pytest.approx(info["score"], abs=1e-5))
        assert torch.equal(found[i], mask)
        rows, columns = torch.where(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert boxes[i].tolist() == [int(side) for side in box]


def test_a_mask_is_where_its_logits_are_whatever_the_sizes() -> None:
    """A rectangle among padding, upsampled: its box and score by hand."""
    classes = torch.full((1, 81), -20.0)
    classes[0, 7] = 20
    masks = torch.full((1, 32, 32), -8.0)
    masks[0, 4:12, 8:16] = 8
    masks[0, 24:, :] = 8  # in the padding: the image is the upper 24 of 32 rows
    boxes, scores, labels, found = instances(classes, masks, (128, 128), (96, 128), (48, 64), 0.5)
    assert boxes.tolist() == [[16, 8, 32, 24]] and labels.tolist() == [7] and found.shape == (1, 48, 64)
    assert 0.95 < float(scores[0]) < 1  # sigmoid(8), less at the edges
    nothing = instances(classes, masks - 100, (128, 128), (96, 128), (48, 64), 0.5)
    assert [len(part) for part in nothing] == [0, 0, 0, 0]


def test_batches_and_sizes_change_nothing(folders: dict[str, Path]) -> None:
    for name in ("mask2former", "detr"):
        detector = load_detector(folders[name], "cpu")
        alone = [detector([image], [0.02])[0] for image in IMAGES]
        batch = detector([IMAGES[0], IMAGES[1], IMAGES[0]], [0.02, 0.02, 0.05])
        for one, again, image in zip(alone, batch, IMAGES, strict=False):
            assert len(one.names) > 3 and set(one.names) <= set(OBJECTS) and one.names == again.names
            assert one.scores.min() > 0.02 and one.boxes.min() >= 0
            assert (one.boxes <= [image.shape[1], image.shape[0]] * 2).all()
            np.testing.assert_allclose(again.boxes, one.boxes, atol=1e-3)
            if one.masks is not None:
                assert one.masks.shape == (len(one.names), *image.shape[:2])
        assert len(batch[2].names) == int((alone[0].scores > 0.05).sum())


def test_boxes_of_a_detr(folders: dict[str, Path]) -> None:
    """By the numbers that the network gives out."""
    model = DetrForObjectDetection.from_pretrained(folders["detr"]).eval()
    inputs = DetrImageProcessorPil.from_pretrained(folders["detr"])(Image.fromarray(IMAGES[0]), return_tensors="pt")
    with torch.no_grad():
        raw = model(**inputs)
    scores, labels = raw.logits[0].softmax(-1)[:, :-1].max(-1)
    x, y, width, height = (raw.pred_boxes[0] * torch.tensor([96, 80, 96, 80])).unbind(1)
    boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    (found,) = load_detector(folders["detr"], "cpu")([IMAGES[0]], [0.0])
    np.testing.assert_allclose(found.scores, scores.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes.clamp(min=0).numpy(), atol=1e-3)
    assert found.names == tuple(OBJECTS[i] for i in labels.tolist())


def test_colours_by_the_models_own_functions(folders: dict[str, Path]) -> None:
    """Crops by Pillow as the public scorer makes them; texts one by one."""
    mask = RNG.random((80, 96)) < 0.5
    box, odd = np.float32([10.5, 3.4, 60.5, 71.6]), np.float32([5, 7, 40, 8])
    found = [Found(box, np.float32(0.9), mask), Found(box, np.float32(0.9), None), Found(odd, np.float32(0.9), None)]
    whole = Image.fromarray(IMAGES[0])
    grey = Image.composite(whole, Image.new("RGB", whole.size, "#999"), Image.fromarray(mask))
    expected = [grey.crop(box.tolist()), whole.crop(box.tolist()), whole.crop(odd.tolist())]
    for one, image in zip(found, expected, strict=True):
        np.testing.assert_array_equal(crop(IMAGES[0], one), np.asarray(image))
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["clip"])
    processor = CLIPImageProcessorPil.from_pretrained(folders["clip"])
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        texts = []
        for colour in COLOURS:
            phrases = [
                f"a photo of a {colour} dog",
                f"a photo of a {colour}-colored dog",
                f"a photo of a {colour} object",
            ]
            each = [
                model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0] for text in phrases
            ]
            texts.append(unit(unit(torch.stack(each), dim=-1).mean(0), dim=0))
        pixels = [
            processor(image, return_tensors="pt", input_data_format="channels_last").pixel_values[0]
            for image in expected
        ]
        images = model.get_image_features(pixel_values=torch.stack(pixels)).pooler_output
        nearest = (unit(images, dim=-1) @ torch.stack(texts).T).argmax(1)
    clip = load_clip(folders["clip"], "cpu")
    assert clip(IMAGES[0], "dog", found) == [COLOURS[i] for i in nearest.tolist()]


def test_folders_that_are_no_detectors(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"detector=.*no config\.json of a model"):
        load_detector(tmp_path / "nowhere", "cpu")
    with pytest.raises(UserError, match="model_type='clip' is no detector"):
        load_detector(folders["clip"], "cpu")
    write_detr(tmp_path / "few", {i: label for i, label in COCO.items() if label not in ("mouse", "bear")})
    with pytest.raises(UserError, match=r"lack 2 of GenEval's 80 objects \(bear, computer mouse\)"):
        load_detector(tmp_path / "few", "cpu")
    (tmp_path / "few" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="not readable by transformers"):
        load_detector(tmp_path / "few", "cpu")
    with pytest.raises(UserError, match=r"clip=.*no config\.json"):
        load_clip(tmp_path, "cpu")


def test_the_command(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tree to results in the official fields, gone on with after half of them is lost, and never by another model."""
    tree, out = tmp_path / "tree", tmp_path / "results.jsonl"
    for number, question in enumerate(generate((2, 2, 2, 2, 2, 2), seed=1)):
        for sample in range(2):
            write_image(image_path(tree, number, sample), RNG.integers(0, 256, (64, 64, 3), np.uint8))
        (tree / f"{number:05d}" / "metadata.jsonl").write_text(question.to_json() + "\n")
    # Thresholds at which random models find something.
    command = ["geneval", "score", str(tree), "--clip", str(folders["clip"]), "--threshold", "0.01", "--device", "cpu"]
    command += ["--counting-threshold", "0.03", "--batch", "5"]
    first = [*command, "--detector", str(folders["mask2former"]), "--out", str(out)]
    assert main([*first, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["n"] for row in rows] == [4] * 6 + [24]
    entries = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({entry["filename"] for entry in entries}) == 24 and any(entry["correct"] for entry in entries)
    for entry in entries:
        assert bool(entry["reason"]) == (not entry["correct"])
        for boxes in json.loads(entry["details"]).values():
            assert 0 < len(boxes) <= 16 and all(len(box) == 5 for box in boxes)
            assert [box[4] for box in boxes] == sorted((box[4] for box in boxes), reverse=True)
    overall = np.mean([np.mean([e["correct"] for e in entries if e["tag"] == row["task"]]) for row in rows[:-1]])
    assert rows[-1]["rate"] == pytest.approx(overall)

    whole = out.read_text()
    out.write_text(whole[: len(whole) // 2])  # in the midst of a line, and of a batch
    assert main(first) == 0
    assert "of 24 scored" not in capsys.readouterr().err
    assert out.read_text() == whole
    out.write_text(whole[:-9])  # as while another process writes: what is refused touches nothing
    assert main([*command, "--detector", str(folders["detr"]), "--out", str(out)]) == 2
    assert "begun with detector=" in capsys.readouterr().err
    assert out.read_text() == whole[:-9]
    parts = [str(tmp_path / f"part{number}.jsonl") for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        place = ["--detector", str(folders["mask2former"]), "--out", part, "--part", f"{number}/2"]
        assert main([*command, *place]) == 0
    capsys.readouterr()
    assert main(["geneval", "read", *(f"m={part}" for part in parts), "--json"]) == 0
    together = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["task"], row["rate"]) for row in together] == [(row["task"], row["rate"]) for row in rows]
