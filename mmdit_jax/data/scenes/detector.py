"""Find the shapes of an image: background, components, colour by the nearest prototype, shape by comparison.

Works on any RGB image, however it was made. An object is ``clean`` when it is what the renderer could have painted:
one flat colour of the palette, inside the outline of one of the five shapes. Only clean objects count for passing a
prompt; the others earn partial credit. Thresholds were set on rendered scenes, with and without noise and blur,
and on images that are no scenes at all.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Final

import numpy as np
from scipy import ndimage

from mmdit_jax.data.scenes.geometry import AREA, SHAPES, Array, coverage, rotate
from mmdit_jax.data.scenes.layout import MAX_TURN, SMALLEST, Box
from mmdit_jax.data.scenes.vocabulary import COLOURS
from mmdit_jax.errors import UserError

COLOUR_NAMES: Final = tuple(COLOURS)
_PALETTE: Final = np.array(list(COLOURS.values()), np.float32)

FOREGROUND: Final = 0.20  # RGB distance from the background ...
FOREGROUND_NOISE: Final = 4.0  # ... or this many standard deviations of the noise
MIN_AREA: Final = 0.012  # share of the image
MAX_FOREGROUND: Final = 0.5  # beyond it, this is no scene of objects on a background
BACKGROUND_RMS: Final = 0.05  # what is not an object must be flat to this
SMALLEST_SHARE: Final = 0.8  # of the area of the smallest such shape that is ever painted
MIN_FIT: Final = 0.84  # overlap (soft intersection over union) with the best shape
CIRCLE_FIT: Final = 0.86  # any soft blob is something of a circle; Gaussian ones reach 0.83 of it, or of a square
COLOUR_DISTANCE: Final = 0.38  # from the nearest colour of the palette
FLATNESS: Final = 0.09  # rms deviation from one colour inside an object
EXPLAINED: Final = 0.5  # share of the foreground that clean objects must make up
SAME_COLOUR: Final = 0.72  # share of pixels; below it, objects of several colours touch
SOFTNESS: Final = (0.0, 0.8)  # blur of an object's outline, in pixels: a sampled image is rarely as sharp as a render
_CHUNK: Final = 256  # images looked at together
_SLOPE: Final = 0.15  # the most a background may change from one side to the other
_ANGLES: Final = np.radians(np.linspace(-MAX_TURN, MAX_TURN, 5)).astype(np.float32)[:, None, None]
_TURNS: Final = {shape: _ANGLES[:1] if shape == "circle" else _ANGLES for shape in SHAPES}
_FIRST: Final = np.cumsum([0] + [len(_TURNS[shape]) for shape in SHAPES])[:-1]  # where each shape's templates start


@dataclasses.dataclass(frozen=True)
class Detection:
    """One object. The box is in fractions of the frame's side."""

    colour: str | None
    """Nearest colour of the palette; None where none is near."""
    box: Box
    area: float
    """Share of the frame."""
    fits: tuple[float, ...]
    """Overlap with each of ``SHAPES``, in [0, 1]."""
    clean: bool

    @property
    def shape(self) -> str:
        return SHAPES[int(np.argmax(self.fits))]


def detect(images: Array) -> list[list[Detection]]:
    """The objects of each image.

    Args:
        images: [N, H, W, 3], uint8 or float in [0, 1], H = W.

    Raises:
        UserError: another shape or type.
    """
    images = _checked(images)
    return [objects for start in range(0, len(images), _CHUNK) for objects in _detect(images[start : start + _CHUNK])]


def _detect(images: Array) -> list[list[Detection]]:
    rgb = images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)
    rgb = np.nan_to_num(rgb).clip(0, 1)
    size = rgb.shape[1]
    rgb, noise, blur = _denoise(rgb)
    background = _background(rgb, noise)
    distance = np.sqrt(((rgb - background) ** 2).sum(-1))
    # Half of what the neighbours show, so that a blurred gap between two objects still parts them.
    around = ndimage.maximum_filter(distance, size=(1, 3, 3))
    foreground = distance > np.maximum(np.maximum(FOREGROUND, FOREGROUND_NOISE * noise)[:, None, None], 0.45 * around)
    scene = _is_scene(foreground, distance, noise)
    # Diagonal neighbours belong together: the squares of a checkerboard are no separate objects.
    labels, _ = ndimage.label(foreground & scene[:, None, None], _in_plane(np.ones((3, 3), bool)))
    found: list[list[Detection]] = [[] for _ in rgb]
    for number, (row, ys, xs) in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[row, ys, xs][0] == number
        if mask.sum() < MIN_AREA * size * size:
            continue
        image = row.start
        top, left = max(ys.start - 2, 0), max(xs.start - 2, 0)
        window = np.s_[image, top : ys.stop + 2, left : xs.stop + 2]
        component = _Component(
            rgb=rgb[window],
            background=background[window],
            mask=labels[window] == number,
            others=(labels[window] > 0) & (labels[window] != number),
            left=left,
            top=top,
            size=size,
            noise=float(noise[image]),
            blur=float(blur[image]),
        )
        found[image] += _objects(component)
    shown = foreground.mean((1, 2))
    return [_trust(objects, float(share)) for objects, share in zip(found, shown, strict=True)]


def _trust(objects: list[Detection], foreground: float) -> list[Detection]:
    """Call nothing clean where clean objects are the smaller part of what stands out: a drawing, not a scene."""
    if sum(o.area for o in objects if o.clean) >= EXPLAINED * foreground:
        return objects
    return [dataclasses.replace(o, clean=False) for o in objects]


@dataclasses.dataclass(frozen=True)
class _Component:
    """A window of an image with one connected component in it; ``left`` and ``top`` are its place in the image."""

    rgb: Array
    background: Array
    mask: Array
    others: Array
    """Pixels of other components."""
    left: int
    top: int
    size: int
    noise: float
    blur: float
    """Standard deviation of the noise that is left, and of the Gaussian that took the rest, in pixels."""


def _checked(images: Array) -> Array:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise UserError(f"images.shape={images.shape}: expected [N, size, size, 3]")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images.dtype={images.dtype}: expected uint8, or float in [0, 1]")
    return images


def _in_plane(structure: Array) -> Array:
    """A neighbourhood that never reaches from one image of the stack into the next."""
    return np.stack([np.zeros_like(structure), structure, np.zeros_like(structure)])


def _denoise(rgb: Array) -> tuple[Array, Array, Array]:
    """Smooth each image as much as its noise asks for. Returns the images, the noise left [N] and the blur [N]."""
    # Diagonal second differences vanish on flat areas and along straight edges; the median ignores the rest.
    second = rgb[:, 1:, 1:] - rgb[:, 1:, :-1] - rgb[:, :-1, 1:] + rgb[:, :-1, :-1]
    noise = np.median(np.abs(second).reshape(len(rgb), -1), axis=1) / (2 * 0.6745)
    width = np.select([noise < 0.015, noise < 0.06, noise < 0.13], [0.0, 0.6, 0.85], 1.1)
    smooth = rgb.copy()
    for sigma in (0.6, 0.85, 1.1):
        rows = width == sigma
        if rows.any():
            smooth[rows] = ndimage.gaussian_filter(rgb[rows], (0, sigma, sigma, 0), mode="nearest")
    left = np.where(width > 0, noise / (2 * np.sqrt(np.pi) * np.maximum(width, 0.3)), noise)
    return smooth, left, width


def _background(rgb: Array, noise: Array) -> Array:
    """The linear ramp through the border pixels of each image, without those that an object covers."""
    size = rgb.shape[1]
    place = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = np.broadcast_to(place[None, :], (size, size)), np.broadcast_to(place[:, None], (size, size))
    basis = np.stack([np.ones_like(x), x, y], axis=-1)
    border = np.ones((size, size), bool)
    border[2:-2, 2:-2] = False
    pixels, points = rgb[:, border], basis[border]
    away = np.abs(pixels - np.median(pixels, axis=1, keepdims=True)).max(-1)
    weight = (away < 0.15 + 3 * noise[:, None]).astype(np.float32)
    weight[weight.sum(1) < 12] = 1
    normal = np.einsum("np,pi,pj->nij", weight, points, points) + 1e-4 * np.eye(3)
    ramp = np.linalg.solve(normal, np.einsum("np,pi,npc->nic", weight, points, pixels))
    ramp[:, 1:] = ramp[:, 1:].clip(-_SLOPE, _SLOPE)
    return np.einsum("yxi,nic->nyxc", basis, ramp).astype(np.float32)


def _is_scene(foreground: Array, distance: Array, noise: Array) -> Array:
    """Whether each image is a few objects on a flat background, bool [N]."""
    rest = ~ndimage.binary_dilation(foreground, _in_plane(ndimage.generate_binary_structure(2, 1)), iterations=2)
    count = rest.sum((1, 2))
    rms = np.sqrt((distance**2 * rest).sum((1, 2)) / np.maximum(count, 1) / 3)
    return (foreground.mean((1, 2)) <= MAX_FOREGROUND) & ((count <= 20) | (rms <= BACKGROUND_RMS + noise))


def _objects(component: _Component) -> list[Detection]:
    """The object that a component is, or the objects of several colours that touch in it."""
    nearest = ((component.rgb[:, :, None] - _PALETTE) ** 2).sum(-1).argmin(-1)
    core = _erode(component.mask)
    votes = np.bincount(nearest[core], minlength=len(_PALETTE))
    colour = int(votes.argmax())
    if votes[colour] >= SAME_COLOUR * core.sum():
        return _measure(component, core & (nearest == colour))
    parts = []
    for other in np.flatnonzero(votes >= max(6, 0.12 * core.sum())):
        labels, count = ndimage.label(ndimage.binary_opening(component.mask & (nearest == other)))
        for number in range(1, count + 1):
            seed = labels == number
            if seed.sum() >= MIN_AREA * component.size**2:
                rim = component.mask & ((nearest == other) | ~ndimage.binary_dilation(core))
                part = dataclasses.replace(component, mask=ndimage.binary_dilation(seed) & rim)
                parts += _measure(part, _erode(part.mask) & (nearest == other))
    return parts or _measure(component, core & (nearest == colour))


def _erode(mask: Array) -> Array:
    core = ndimage.binary_erosion(mask)
    return core if core.sum() >= 4 else mask


def _measure(component: _Component, inside: Array) -> list[Detection]:
    """Colour, extent and overlap with each shape. ``inside``: pixels that surely show the object's colour."""
    if not inside.any():
        return []
    rgb, size = component.rgb, component.size
    typical = np.median(rgb[inside], axis=0)
    core = _erode(component.mask)
    deepest = ndimage.binary_erosion(core)
    flat_area = rgb[deepest] if deepest.sum() >= 6 else rgb[core]
    spread = np.sqrt(((flat_area - np.median(flat_area, axis=0)) ** 2).mean())
    # The pixels farthest from the background show the colour; in a small star most others are mixed with it.
    along = ((rgb - component.background) * (typical - component.background)).sum(-1)
    colour = rgb[component.mask & (along >= np.quantile(along[component.mask], 0.85))].mean(axis=0)
    from_palette = np.sqrt(((colour - _PALETTE) ** 2).sum(-1))
    # How much of each pixel the object covers: its place between the background's colour and the object's.
    step = colour - component.background
    alpha = ((rgb - component.background) * step).sum(-1) / np.maximum((step * step).sum(-1), 1e-3)
    halo = ndimage.binary_dilation(component.mask, iterations=2) & ~component.others
    halo &= ndimage.binary_dilation(component.mask) | ~ndimage.binary_dilation(component.others)
    alpha = np.where(halo, alpha.clip(0, 1.5), 0)
    area = float(alpha.sum())
    if area < MIN_AREA * size * size:
        return []
    fits = _overlaps(alpha, area, component.blur)
    columns, rows = np.flatnonzero((alpha > 0.5).any(0)), np.flatnonzero((alpha > 0.5).any(1))
    if not len(columns):
        return []
    box = Box(
        (component.left + columns[0]) / size,
        (component.top + rows[0]) / size,
        (component.left + columns[-1] + 1) / size,
        (component.top + rows[-1] + 1) / size,
    )
    near = bool(from_palette.min() <= COLOUR_DISTANCE)
    shape = SHAPES[int(np.argmax(fits))]
    whole = min(box.left, box.top) > 0 and max(box.right, box.bottom) < 1
    whole = whole and area >= SMALLEST_SHARE * AREA[shape] * (SMALLEST * size) ** 2
    fitting = max(fits) >= (CIRCLE_FIT if shape == "circle" else MIN_FIT)
    clean = near and whole and fitting and bool(spread <= FLATNESS + component.noise)
    name = COLOUR_NAMES[int(from_palette.argmin())] if near else None
    return [Detection(name, box, area / size**2, fits, clean)]


def _overlaps(alpha: Array, area: float, blur: float) -> tuple[float, ...]:
    """Soft intersection over union of a matte with each shape of the same area and centroid, at its best angle."""
    height, width = alpha.shape
    x = np.arange(width, dtype=np.float32) + np.float32(0.5)
    y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
    x, y = x - (alpha * x).sum() / area, y - (alpha * y).sum() / area
    templates = np.concatenate([coverage(s, *rotate(x, y, _TURNS[s]), np.sqrt(area / AREA[s])) for s in SHAPES])
    overlaps = np.zeros(len(templates))
    for soft in SOFTNESS:
        sigma = round(float(np.hypot(blur, soft)), 3)
        blurred = _gaussian(height, sigma) @ templates @ _gaussian(width, sigma) if sigma else templates
        overlap = np.minimum(blurred, alpha).sum((1, 2)) / np.maximum(blurred, alpha).sum((1, 2))
        overlaps = np.maximum(overlaps, overlap)
    return tuple(np.maximum.reduceat(overlaps, _FIRST).tolist())


@functools.cache
def _gaussian(length: int, sigma: float) -> Array:
    """The matrix that blurs a signal of this length, zero beyond its ends; symmetric."""
    offset = np.subtract.outer(np.arange(length), np.arange(length))
    return (np.exp(-0.5 * (offset / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))).astype(np.float32)
