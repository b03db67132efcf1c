"""A detector of COCO's objects from a local folder of transformers', in torch: what ``rules`` decide by.

The public scorer's detector is a Mask2Former (Swin-S, instances) of mmdetection, whose way from logits to boxes is
followed here; transformers' own goes through masks of 384 by 384 px. Detectors with boxes alone do, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit_jax.errors import UserError
from mmdit_jax.evaluation.official.classes import OBJECTS, object_named
from mmdit_jax.evaluation.official.rules import Detections
from mmdit_jax.evaluation.rewards.torch_files import no_bars

WITH_MASKS = ("mask2former", "maskformer")
"""Kinds of models (``model_type``) that find masks; of the others, those are taken that transformers calls object
detection."""
MOST = 100
"""Instances of an image, as in mmdetection's configuration of Mask2Former."""


class Detector:
    """A model, its preprocessing, and the objects that its labels mean."""

    def __init__(self, model: Any, processor: Any, names: dict[int, str], device: Any) -> None:
        """``names``: of the labels that are objects of GenEval's."""
        self._model, self._processor, self._names, self._device = model, processor, names, device
        self.has_masks = model.config.model_type in WITH_MASKS

    def __call__(self, images: Sequence[np.ndarray], least: Sequence[float]) -> list[Detections]:
        """What is in each image, uint8 [H, W, 3], with a score above ``least`` of that image.

        Sizes may differ: those of one size go together, so that none is padded for another's sake.
        """
        found: dict[int, Detections] = {}
        for size in dict.fromkeys(image.shape[:2] for image in images):
            rows = [i for i, image in enumerate(images) if image.shape[:2] == size]
            together = self._of_one_size([images[i] for i in rows], (size[0], size[1]), [least[i] for i in rows])
            found |= zip(rows, together, strict=True)
        return [found[i] for i in range(len(images))]

    def _of_one_size(self, images: list[np.ndarray], size: tuple[int, int], least: list[float]) -> list[Detections]:
        import torch

        # Told, since an image of 3 rows would be taken for one with the channels first.
        inputs = self._processor(images=images, return_tensors="pt", input_data_format="channels_last")
        inputs = inputs.to(self._device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
            if self.has_masks:
                upsampled, contents = tuple(inputs["pixel_values"].shape[-2:]), _contents(inputs)
                logits = zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
                found = [
                    instances(classes, masks, upsampled, contents[i], size, least[i])
                    for i, (classes, masks) in enumerate(logits)
                ]
            else:
                sizes = [size] * len(images)
                told = self._processor.post_process_object_detection(outputs, threshold=min(least), target_sizes=sizes)
                found = [(*(item[name].float().cpu() for name in ("boxes", "scores", "labels")), None) for item in told]
        return [self._named(*item, size, low) for item, low in zip(found, least, strict=True)]

    def _named(
        self, boxes: Any, scores: Any, labels: Any, masks: Any, size: tuple[int, int], least: float
    ) -> Detections:
        kept = [i for i, label in enumerate(labels.tolist()) if int(label) in self._names and scores[i] > least]
        height, width = size
        boxes = np.clip(boxes.numpy()[kept].astype(np.float32), 0, np.array([width, height] * 2, np.float32))
        names = tuple(self._names[int(labels[i])] for i in kept)
        return Detections(boxes, scores.numpy()[kept], names, None if masks is None else masks.numpy()[kept])


def instances(
    class_logits: Any,
    mask_logits: Any,
    upsampled: tuple[int, int],
    content: tuple[int, int],
    size: tuple[int, int],
    least: float,
) -> tuple[Any, Any, Any, Any]:
    """Boxes [N, 4], scores [N], labels [N] and masks bool [N, H, W] of one image, on the CPU, above ``least``.

    A query may stand for several classes. An instance's score is its class probability times the mean probability of
    its mask's pixels; its box is the mask's.

    Args:
        class_logits: [queries, classes + 1], the last of which is no object.
        mask_logits: [queries, h, w].
        upsampled: height and width of what the model was given.
        content: of these, without the padding.
        size: height and width of the image.
        least: what a score must exceed.
    """
    import torch
    from torch.nn.functional import interpolate

    probabilities = class_logits.float().softmax(-1)[:, :-1]
    scores, order = probabilities.flatten().topk(min(MOST, probabilities.numel()))
    order = order[scores > least]  # a mask makes a score smaller still
    scores = scores[: len(order)]
    queries, labels = order // probabilities.shape[1], order % probabilities.shape[1]
    if not len(order):
        empty = torch.zeros(0)
        return torch.zeros(0, 4), empty, empty, torch.zeros(0, *size, dtype=torch.bool)
    logits = mask_logits[queries].float()[:, None]
    logits = interpolate(logits, size=upsampled, mode="bilinear", align_corners=False)
    logits = logits[..., : content[0], : content[1]]
    logits = interpolate(logits, size=size, mode="bilinear", align_corners=False)[:, 0]
    masks = logits > 0
    certain = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    scores = scores * certain
    kept = (scores > least) & masks.flatten(1).any(1)
    masks, scores, labels = masks[kept].cpu(), scores[kept].cpu(), labels[kept].cpu()
    return _boxes(masks), scores, labels, masks


def _boxes(masks: Any) -> Any:
    """The boxes [N, 4] of masks [N, H, W], none of which is empty; right and bottom are one pixel on."""
    import torch

    def ends(there: Any) -> tuple[Any, Any]:
        side = there.shape[1]
        return there.int().argmax(1), side - there.flip(1).int().argmax(1)

    (left, right), (top, bottom) = ends(masks.any(1)), ends(masks.any(2))
    return torch.stack([left, top, right, bottom], 1).float()


def _contents(inputs: Any) -> list[tuple[int, int]]:
    """Height and width of each image as the model was given it, without the padding."""
    masks = inputs.get("pixel_mask")
    if masks is None:
        return [tuple(inputs["pixel_values"].shape[-2:])] * len(inputs["pixel_values"])
    return [(int(mask.any(1).sum()), int(mask.any(0).sum())) for mask in masks]


def load_detector(folder: Path, device: Any) -> Detector:
    """The detector in ``folder``: config.json, preprocessor_config.json, model.safetensors.

    Raises:
        UserError: it isn't there, is of another kind, can't be read, or its labels lack objects of GenEval's.
    """
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"detector={folder}: no config.json of a model there; expected a folder of transformers' with a detector "
            "trained on COCO, such as a Mask2Former"
        ) from error
    from transformers import AutoImageProcessor, AutoModelForObjectDetection, AutoModelForUniversalSegmentation
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

    if kind not in WITH_MASKS and kind not in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        known = ", ".join(sorted([*WITH_MASKS, *MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES]))
        raise UserError(f"detector={folder}: model_type={kind!r} is no detector; expected one of {known}")
    auto = AutoModelForUniversalSegmentation if kind in WITH_MASKS else AutoModelForObjectDetection
    model, processor = read_models(
        "detector",
        folder,
        lambda: (
            auto.from_pretrained(folder, local_files_only=True),
            AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
        ),
    )
    labels = {int(number): object_named(str(label)) for number, label in model.config.id2label.items()}
    names = {number: name for number, name in labels.items() if name is not None}
    lacking = [name for name in OBJECTS if name not in names.values()]
    if lacking:
        some = ", ".join([*lacking[:3], *(["…"] if len(lacking) > 3 else [])])
        raise UserError(
            f"detector={folder}: its labels (id2label in config.json) lack {len(lacking)} of GenEval's {len(OBJECTS)} "
            f"objects ({some}); expected a detector trained on COCO"
        )
    return Detector(model.eval().to(device), processor, names, device)


def read_models(what: str, folder: Path, read: Any) -> Any:
    """What ``read`` gives, quietly; whatever transformers raises is told in a line.

    Raises:
        UserError: the folder can't be read.
    """
    try:
        with no_bars():
            return read()
    except Exception as error:  # OSError, ValueError, ImportError of packages that some models need, safetensors' own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{what}={folder}: not readable by transformers ({reason.strip()})") from error
