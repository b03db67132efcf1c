"""Sources of captioned images: what they find, in which order, and how they meet damaged items."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from encode_sets import emoji, png, write_folder, write_labels, write_tars, write_tfds
from PIL import Image

from mmdit_jax.data.sources import Item, Source, SourceOptions, Unreadable, open_source
from mmdit_jax.data.sources.captions import choose, clean, keyed_share
from mmdit_jax.data.sources.images import decode
from mmdit_jax.errors import UserError

COUNT = 25


def items(source: Source) -> dict[str, Item]:
    """Every item by key; keys are unique, and the same when asked again."""
    entries = [entry for part in range(source.parts) for entry in source.entries(part)]
    assert [entry for part in range(source.parts) for entry in source.entries(part)] == entries
    found = {entry.key: source.read(entry) for entry in entries}
    assert len(found) == len(entries)
    return found


def opened(spec: str | Path, **options: str | None) -> Source:
    return open_source(str(spec), SourceOptions(**options))  # type: ignore[arg-type]


def test_same_content_from_three_layouts(tmp_path: Path) -> None:
    images, captions = emoji(COUNT)
    write_folder(tmp_path / "folder", images, captions)
    spec = write_tars(tmp_path / "tars", images, captions, each=10)
    name = write_tfds(tmp_path / "tfds", images, captions)
    sources = [opened(tmp_path / "folder"), opened(spec), opened(tmp_path / "tars" / "*.tar")]
    sources.append(opened(name, tfds_dir=str(tmp_path / "tfds")))
    assert [source.parts for source in sources] == [1, 3, 3, 1]
    for source in sources:
        found = list(items(source).values())
        assert [item.caption for item in found] == captions
        for item, image in zip(found, images, strict=True):
            np.testing.assert_array_equal(decode(item.image), image)


def test_synthetic_captions(tmp_path: Path) -> None:
    """Beside an image as text or JSON, and in a list; the list decides which images there are."""
    image = png(emoji(1)[0][0])
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(image)
    (tmp_path / "a.txt").write_text(" one \n")
    (tmp_path / "a.synthetic.txt").write_text("uno")
    (tmp_path / "b.json").write_text('{"caption": "two", "synthetic": "due"}')
    found = items(opened(tmp_path))
    assert {key: (item.caption, item.synthetic) for key, item in found.items()} == {
        "a.png": ("one", "uno"),
        "b.png": ("two", "due"),
        "c.png": (None, None),
    }
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "three"}\n\n{"file_name": "x.png"}\n')
    source = opened(tmp_path)
    entries = source.entries(0)
    assert [entry.key for entry in entries] == ["c.png", "x.png"]
    assert source.read(entries[0]).caption == "three"
    with pytest.raises(Unreadable, match=r"cannot be read: x\.png: No such file"):
        source.read(entries[1])


def test_tar_members_by_stem(tmp_path: Path) -> None:
    """Dots in folders, suffixes in any case, members in any order, samples without an image."""
    image = png(emoji(1)[0][0])
    members = {"d.1/x.txt": b"text", "d.1/x.PNG": image, "y.json": b'{"text": "why"}', "y.webp": image, "z.txt": b"no"}
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = items(opened(tmp_path / "s.tar"))
    assert {key: item.caption for key, item in found.items()} == {"00000-s/d.1/x": "text", "00000-s/y": "why"}


def test_odd_names(tmp_path: Path) -> None:
    """Names that are no UTF-8, "./" in a list, brackets in a tar's name: keys and captions all the same."""
    image = png(emoji(1)[0][0])
    name = os.fsdecode(b"caf\xe9")
    with tarfile.open(tmp_path / "a[1].tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for suffix, data in ((".png", image), (".txt", b"coffee")):
            member = tarfile.TarInfo(name + suffix)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = items(opened(tmp_path / "a[1].tar"))
    assert {key: item.caption for key, item in found.items()} == {"00000-a[1]/caf\\xe9": "coffee"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / f"{name}.png").write_bytes(image)
    (tmp_path / "b" / "1.png").write_bytes(image)
    assert [key.encode() for key in items(opened(tmp_path / "b"))] == [b"1.png", b"caf\\xe9.png"]
    lines = [{"file_name": "./1.png", "text": "one"}, {"file_name": str(tmp_path / "b/1.png"), "text": "two"}]
    (tmp_path / "b" / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sorted(str(item.caption) for item in items(opened(tmp_path / "b")).values()) == ["one", "two"]
    for bad in ("", "a\0.png", "\ud800.png"):
        (tmp_path / "b" / "captions.jsonl").write_text(json.dumps({"file_name": bad, "text": "x"}))
        with pytest.raises(UserError, match="line 1: expected"):
            opened(tmp_path / "b")


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    """As data sets are put together from several disks; links in a circle end."""
    for name in ("a", "b", "elsewhere"):
        (tmp_path / "all" / name).mkdir(parents=True) if name != "elsewhere" else (tmp_path / name).mkdir()
    for path in ("all/a/1.png", "all/b/2.png", "elsewhere/3.png"):
        (tmp_path / path).write_bytes(png(emoji(1)[0][0]))
    (tmp_path / "all" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "up").symlink_to(tmp_path)
    (tmp_path / "all" / "a" / "b").symlink_to(tmp_path / "all" / "b")
    (tmp_path / "all" / "b" / "a").symlink_to(tmp_path / "all" / "a")
    assert list(items(opened(tmp_path / "all"))) == ["a/1.png", "a/b/2.png", "b/2.png", "b/a/1.png", "c/3.png"]


def test_captions_of_every_kind(tmp_path: Path) -> None:
    """A mark of byte order, a list or a text as JSON, a first field that is empty, a .json about something else."""
    cases: dict[str, tuple[dict[str, bytes], set[str | None]]] = {
        "bom": ({".txt": b"\xef\xbb\xbfone"}, {"one"}),
        "list": ({".json": b'["one", "two"]'}, {"one", "two"}),
        "text": ({".json": b'"one"'}, {"one"}),
        "second": ({".json": b'{"caption": null, "text": " ", "captions": ["one"]}'}, {"one"}),
        "boxes": ({".txt": b"one", ".json": b"[{}, {}]"}, {"one"}),
        "torn": ({".txt": b"one", ".json": b"{"}, {"one"}),
        "number": ({".json": b'{"caption": "", "label": 3}'}, {None}),
    }
    for name, (files, expected) in cases.items():
        (tmp_path / f"{name}.png").write_bytes(png(emoji(1)[0][0]))
        for suffix, data in files.items():
            (tmp_path / f"{name}{suffix}").write_bytes(data)
        entry = next(entry for entry in opened(tmp_path).entries(0) if entry.key == f"{name}.png")
        assert opened(tmp_path).read(entry).caption in expected, name
    assert clean(np.array([b"", b"one"], object), "k") == "one"


def test_imagenet(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    for synset in ("n01440764", "n02119789"):
        (folder / synset).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / synset / f"{synset}_1.JPEG")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn02119789 kit fox, Vulpes\n")
    captions = [item.caption for item in items(opened(f"imagenet:{folder}")).values()]
    assert captions == ["a photo of a tench", "a photo of a kit fox"]
    (tmp_path / "names.json").write_text(json.dumps({"0": ["n01440764", "tench"], "1": ["n02119789", "kit_fox"]}))
    source = opened(f"imagenet:{folder}", class_names=str(tmp_path / "names.json"))
    assert [item.caption for item in items(source).values()] == captions
    (folder / "n9").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "n9" / "1.png")
    with pytest.raises(UserError, match=r"no name for 'n9'"):
        opened(f"imagenet:{folder}")


def test_labels_of_tfds(tmp_path: Path) -> None:
    """TFDS knows ImageNet's classes by synset only, and has no labels in a test split: no caption is made of either."""
    (tmp_path / "names.txt").write_text("n01440764 tench, Tinca tinca\nn02119789 kit fox\n")
    (tmp_path / "short.txt").write_text("n01440764 tench\n")
    image = emoji(1)[0][0]
    name = write_labels(tmp_path, "synsets", ("n01440764", "n02119789"), [(image, 1), (image, 0), (image, -1)])
    source = opened(name, tfds_dir=str(tmp_path), class_names=str(tmp_path / "names.txt"))
    entries = source.entries(0)
    assert [source.read(entry).caption for entry in entries[:2]] == ["a photo of a kit fox", "a photo of a tench"]
    with pytest.raises(Unreadable, match="no label"):
        source.read(entries[2])
    with pytest.raises(UserError, match=r"its classes n01440764 and so on; give --class-names"):
        opened(name, tfds_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"no name for 'n02119789'"):
        opened(name, tfds_dir=str(tmp_path), class_names=str(tmp_path / "short.txt"))
    name = write_labels(tmp_path, "words", ("cat", "fire_truck"), [(image, 1)])
    assert [item.caption for item in items(opened(name, tfds_dir=str(tmp_path))).values()] == [
        "a photo of a fire truck"
    ]


def test_pixels_of_every_kind() -> None:
    """Transparent is on white, 16 bits are scaled, palettes and grey become colours, EXIF turns upright."""

    def file(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **more)
        return buffer.getvalue()

    clear = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    assert decode(file(clear)).tolist() == [[[255] * 3] * 3] * 2
    assert decode(file(clear.convert("LA"))).tolist() == [[[255] * 3] * 3] * 2
    deep = Image.fromarray(np.full((2, 2), 40_000, np.uint16))
    assert decode(file(deep)).tolist() == [[[156] * 3] * 2] * 2
    assert decode(file(Image.new("RGB", (2, 2), (9, 8, 7)).convert("P"))).shape == (2, 2, 3)
    assert decode(file(Image.new("L", (2, 2), 77))).tolist() == [[[77] * 3] * 2] * 2
    assert decode(file(Image.new("CMYK", (2, 2)), "JPEG")).shape == (2, 2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(file(Image.new("RGB", (5, 3)), "JPEG", exif=exif.tobytes())).shape == (5, 3, 3)
    assert decode(np.zeros((2, 3, 1), np.uint8)).shape == (2, 3, 3)
    floats = file(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    for bad in (b"", b"no image", floats, file(Image.effect_noise((64, 64), 50))[:900]):
        with pytest.raises(Unreadable, match="damaged image"):
            decode(bad)
    with pytest.raises(Unreadable, match="expected uint8"):
        decode(np.zeros((2, 2, 3), np.float32))


def test_captions_are_chosen_by_key() -> None:
    """Half and half, the same for the same key, and evenly over a list."""
    chosen = [choose(0, str(key), "original", "synthetic", 0.5)[0] for key in range(4000)]
    assert abs(chosen.count("synthetic") - 2000) < 4 * np.sqrt(1000)
    assert chosen == [choose(0, str(key), "original", "synthetic", 0.5)[0] for key in range(4000)]
    assert chosen != [choose(1, str(key), "original", "synthetic", 0.5)[0] for key in range(4000)]
    assert {choose(0, str(key), "o", "s", 0.0) for key in range(50)} == {("o", False)}
    assert {choose(0, str(key), "o", "s", 1.0) for key in range(50)} == {("s", True)}
    assert choose(0, "k", None, "s", 0.0) == ("s", True) and choose(0, "k", "o", None, 1.0) == ("o", False)
    counts = Counter(clean({"text": [b"a", b" ", b"b", b"c"], "id": [1, 2, 3, 4]}, str(key)) for key in range(3000))
    assert set(counts) == {"a", "b", "c"} and min(counts.values()) > 900
    assert clean("\ud83d broken", "k") == "? broken" and clean([], "k") is None
    with pytest.raises(Unreadable, match="UTF-8"):
        clean(b"\xff\xfe", "k")
    assert 0.45 < np.mean([keyed_share(0, "x", str(key)) for key in range(2000)]) < 0.55


def test_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    place = tmp_path / "old" / "1.0.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text('{"fileFormat": "tfrecord", "name": "old"}')
    write_tfds(tmp_path, emoji(2)[0], emoji(2)[1])
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "captions.jsonl").write_text('{"text": "no name"}\n')
    for spec, options, words in (
        ("nowhere", {}, r"no such folder"),
        ("empty", {}, r"no images"),
        ("list", {}, r"captions\.jsonl: line 1: expected"),
        ("{0..2}.tar", {}, r"no file"),
        ("*.tar.tar", {}, r"no such files"),
        ("imagenet:empty", {}, r"no images"),
        ("tfds:coco_captions/2014", {}, r"tfds build coco_captions/2014 --file_format=array_record"),
        ("tfds:old", {}, r"its files are tfrecord; build it with --file_format=array_record"),
        ("tfds:pictures", {"tfds_split": "tset"}, r"did you mean 'train'"),
        ("tfds:pictures", {"caption_field": "captions/txt"}, r"did you mean 'text'"),
        ("tfds:pictures", {"image_field": "img"}, r"did you mean 'image'"),
    ):
        where = spec if spec.startswith("tfds:") else spec.replace("imagenet:", f"imagenet:{tmp_path}/")
        where = where if ":" in where else str(tmp_path / where)
        with pytest.raises(UserError, match=words) as error:
            opened(where, tfds_dir=str(tmp_path), **options)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not a whole, uncompressed tar"):
        opened(tmp_path / "bad.tar").entries(0)
