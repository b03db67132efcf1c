"""Captioned images from wherever they are: TFDS, a folder, WebDataset tar shards, ImageNet's folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmdit_jax.data.sources.folder import FolderSource
from mmdit_jax.data.sources.imagenet import ImageNetSource
from mmdit_jax.data.sources.interface import Entry, Item, Source, Unreadable
from mmdit_jax.data.sources.tar import TarSource
from mmdit_jax.data.sources.tfds_set import TfdsSource

__all__ = ["Entry", "Item", "Source", "SourceOptions", "Unreadable", "open_source"]


@dataclass(frozen=True)
class SourceOptions:
    """What some sources need to be told."""

    tfds_dir: str = "~/tensorflow_datasets"
    tfds_split: str = "train"
    image_field: str | None = None
    caption_field: str | None = None
    synthetic_field: str | None = None
    class_names: str | None = None
    """File of class names, for imagenet: and for TFDS sets whose labels are synsets."""


def open_source(spec: str, options: SourceOptions) -> Source:
    """The source that a user names: ``tfds:NAME/CONFIG``, ``imagenet:FOLDER``, ``….tar`` (globs, ranges), or a folder.

    Raises:
        UserError: it isn't there, or isn't as expected.
    """
    names = Path(options.class_names).expanduser() if options.class_names else None
    if spec.startswith("tfds:"):
        folder = Path(options.tfds_dir).expanduser()
        fields = (options.image_field, options.caption_field, options.synthetic_field)
        return TfdsSource(spec.removeprefix("tfds:"), folder, options.tfds_split, *fields, class_names=names)
    if spec.startswith("imagenet:"):
        return ImageNetSource(Path(spec.removeprefix("imagenet:")).expanduser(), names)
    if spec.endswith(".tar"):
        return TarSource(str(Path(spec).expanduser()))
    return FolderSource(Path(spec).expanduser())
