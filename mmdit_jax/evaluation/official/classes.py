"""The words of GenEval: its tasks, the 80 object names of its detector, its colours and relations."""

from __future__ import annotations

from typing import Final

TASKS: Final = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""Its tags, in the order of its prompts and of the SD3 paper's Table 5."""
TABLE_5: Final = ("single", "two", "counting", "colours", "position", "attribution")
"""The same as that table calls them."""
OBJECTS: Final = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's classes in COCO's order; GenEval says "computer mouse", "tv remote" and "computer keyboard"."""
COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS: Final = ("left of", "right of", "above", "below")

SPELLINGS: Final = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}
"""Other names of the same objects among detectors' labels (COCO's own, Pascal VOC's), by which RT-DETR's go."""


def object_named(label: str) -> str | None:
    """The object that a detector's label means; none where it is no object of GenEval's."""
    plain = " ".join(label.lower().replace("_", " ").replace("-", " ").split())
    plain = SPELLINGS.get(plain, plain)
    return plain if plain in OBJECTS else None
