"""Synthetic lesions: procedurally rendered images that resemble dermoscopy.

They are the default data set (`datasets.open_dataset`), so that everything runs without a download.
Always call them synthetic when you show them: they contain no medical information.

Skin is colored by two absorbing pigments, *melanin* (brown) and *blood* (red); the reflected light
decreases exponentially with their amount (Beer-Lambert law). Each class is a function of about ten
lines that adds pigments to a `Scene`, and overlays *blue* (deep pigment) and *white* (scar, scale).

Modeled: colors and typical structures of the seven classes, skin tones, illumination, hair,
rulers, and several images of one lesion, so that a split by image leaks as with real data. Not
modeled: frequencies of structures and subtypes, anatomy, growth of lesions, JPEG artifacts.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

VERSION = 1  # increase it when the images change: it is part of the keys of caches and runs
CLASSES: tuple[str, ...] = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")

CLASS_PROPORTIONS = (0.15, 0.35, 0.12, 0.09, 0.15, 0.07, 0.07)  # HAM10000: 67 % NV, 1 % DF
# Shares of lesions with 1, 2, 3 and 4 images: 1.35 images per lesion, as in HAM10000.
VIEW_PROPORTIONS = (0.74, 0.18, 0.07, 0.01)
# Skin tones (hex RGB): two pinks, lilac, pale, tan, reddish, grayish.
SKIN_TONES = ("dfb6bc", "e6b2b4", "ccb2c4", "e8cac6", "e4c3b0", "e8a29c", "c0b0b4")
# Absorption of red, green and blue light per unit of pigment; colors of the overlays and of skin
# with unlimited pigment.
MELANIN, BLOOD = (0.50, 1.00, 1.22), (0.17, 1.00, 0.72)
BLUE, WHITE, DARKEST = (0.42, 0.46, 0.62), (0.94, 0.88, 0.90), (0.13, 0.08, 0.10)
TEXTURE_SIZE = 512  # pixels of a side of a texture; a power of two, so that `&` wraps around


class Catalog(NamedTuple):
    """One entry per image, int64 (N,): class indices, lesion numbers, view numbers 0, 1, 2, ..."""

    labels: np.ndarray
    lesions: np.ndarray
    views: np.ndarray


def catalog(lesions: int = 400, seed: int = 0) -> Catalog:
    """List the images of a synthetic data set: about 1.35 x `lesions` images, ordered by lesion.

    The class sizes follow CLASS_PROPORTIONS, rounded.

    Raises:
        ValueError: `lesions` < 1 or `seed` < 0.
    """
    if lesions < 1 or seed < 0:
        raise ValueError(f"need lesions >= 1 and seed >= 0, got {lesions=} and {seed=}")
    rng = random_stream(0, seed)
    borders = lesions * np.cumsum(CLASS_PROPORTIONS[:-1])
    classes = rng.permutation(np.searchsorted(borders, np.arange(lesions) + 0.5))
    counts = rng.choice(len(VIEW_PROPORTIONS), size=lesions, p=VIEW_PROPORTIONS) + 1
    numbers = np.repeat(np.arange(lesions), counts)
    views = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Catalog(*(a.astype(np.int64) for a in (classes[numbers], numbers, views)))


def render(labels, lesions, views, size: int = 256, seed: int = 0) -> np.ndarray:
    """Render n images: uint8 (n, size, size, 3), RGB.

    Image i depends only on its own label, lesion and view, on the seed and on the size. Label and
    lesion determine the skin and the lesion; the view determines how it is photographed.

    Args:
        labels, lesions, views: n integers each, as in a `Catalog`.
        size: pixels of a side, 32 to 512.
        seed: as in `catalog`.

    Raises:
        ValueError: the lists have different lengths, or a number is out of range.
    """
    columns = [np.atleast_1d(a) for a in (labels, lesions, views)]
    if any(a.shape != (len(columns[0]),) or a.dtype.kind not in "iu" for a in columns):
        raise ValueError(
            "labels, lesions and views must be lists of whole numbers and have one length"
        )
    if not all(0 <= label < len(CLASSES) for label in columns[0]):
        raise ValueError(f"labels must be 0 to {len(CLASSES) - 1}, the indices into {CLASSES}")
    if seed < 0 or any((a < 0).any() for a in columns):
        raise ValueError("lesions, views and seed must be 0 or more")
    if not 32 <= size <= TEXTURE_SIZE:
        raise ValueError(f"size must be 32 to {TEXTURE_SIZE} pixels, got {size}")
    downscale = 2 ** max(0, (256 // size).bit_length() - 1)  # a power of two divides TEXTURE_SIZE
    render_image = partial(render_one, size=size, seed=seed, maps=textures(seed, downscale))
    out = np.empty((len(columns[0]), size, size, 3), np.uint8)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # NumPy releases the GIL
        for i, image in enumerate(pool.map(render_image, *(a.tolist() for a in columns))):
            out[i] = image
    return out


def random_stream(*key: int) -> np.random.Generator:
    """Random generator that depends only on `key` (counter-based Philox)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@lru_cache(maxsize=4)
def textures(seed: int, downscale: int = 1) -> dict[str, np.ndarray]:
    """Periodic textures: float32 maps with TEXTURE_SIZE / downscale pixels a side.

    clouds (noise at all scales), furrows (bands) and sensor_noise have mean 0, and variance 1
    before the downscaling. Three maps describe a jittered grid of cells (cellular noise): the
    distances to the nearest `cell_center` and to the `cell_wall`, in cells, and a random
    `cell_value` in [0, 1).
    """
    rng = random_stream(1, seed)
    n = TEXTURE_SIZE
    freq = np.hypot(*np.meshgrid(*[np.fft.fftfreq(n, 1 / n)] * 2)) + 1e-6

    def noise(spectrum: np.ndarray) -> np.ndarray:
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((n, n))) * spectrum).real
        return (field - field.mean()) / field.std()

    maps = {"clouds": noise(np.where(freq > 1.5, freq**-1.6, 0))}
    maps["furrows"] = noise(np.exp(-(((freq - 17) / 6) ** 2)))
    maps["sensor_noise"] = noise(np.exp(-((freq / 150) ** 2)))
    points, cell_values = rng.uniform(0.1, 0.9, (cells := 16, cells, 2)), rng.random((cells, cells))
    # A distortion, so that the walls of the cells are not straight.
    distortion = [0.16 * noise(np.exp(-((freq / 10) ** 2))) for _ in range(2)]
    pos = np.stack(np.meshgrid(*[np.arange(n) * cells / n] * 2), -1) + np.stack(distortion, -1)
    nearest, second_nearest, value = np.full((n, n), 9.0), np.full((n, n), 9.0), 0.0
    for step in np.ndindex(3, 3):  # the nearest center is in one of the 3 x 3 surrounding cells
        cell = np.floor(pos).astype(int) + np.array(step) - 1
        inside = (cell[..., 1] % cells, cell[..., 0] % cells)
        dist = np.linalg.norm(cell + points[inside] - pos, axis=-1)
        value = np.where(dist < nearest, cell_values[inside], value)
        second_nearest = np.minimum(second_nearest, np.maximum(nearest, dist))
        nearest = np.minimum(nearest, dist)
    maps |= {"cell_center": nearest, "cell_wall": second_nearest - nearest, "cell_value": value}
    blocks = (n // downscale, downscale, n // downscale, downscale)
    return {k: m.reshape(blocks).mean((1, 3)).astype(np.float32) for k, m in maps.items()}


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smoothstep: 0 below `low`, 1 above `high`, cubic between; decreasing if low > high."""
    t = np.clip((x - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


class Scene:
    """A patch of skin with maps of its pigments and overlays, each float32 (size, size).

    The center of the lesion is u = v = 0. `lesion_to_image` (2, 3) is the affine map from (u, v) to
    image coordinates, which range from -1 to 1. `rng` is seeded by the lesion, so that every view
    uses the same random numbers.
    """

    def __init__(
        self, rng: np.random.Generator, maps: dict, size: int, lesion_to_image: np.ndarray
    ):
        self.rng, self.maps, self.size, self.lesion_to_image = rng, maps, size, lesion_to_image
        self.uniform = rng.uniform
        inverse = np.linalg.inv(lesion_to_image[:, :2]).astype(np.float32)
        axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
        shift = lesion_to_image[:, 2].astype(np.float32)
        x, y = axis[None, :] - shift[0], axis[:, None] - shift[1]
        self.u = inverse[0, 0] * x + inverse[0, 1] * y
        self.v = inverse[1, 0] * x + inverse[1, 1] * y
        self.melanin, self.blood, self.blue, self.white = np.zeros((4, size, size), np.float32)

    def texture(self, *names: str, scale: float) -> list[np.ndarray]:
        """Textures at a random offset; `scale` periods fit into half the width of the image."""
        side = len(self.maps["clouds"])
        shift = np.float32(side * (8 + self.rng.random(2)))  # > 0, so that truncation rounds down
        column = (self.u * np.float32(scale * side) + shift[0]).astype(np.int32)
        row = (self.v * np.float32(scale * side) + shift[1]).astype(np.int32)
        index = (row & (side - 1)) * np.int32(side) + (column & (side - 1))
        return [self.maps[name].take(index, mode="wrap") for name in names]

    def clouds(self, scale: float) -> np.ndarray:
        return self.texture("clouds", scale=scale)[0]

    def outline(self, radius: float, irregular: float, ragged: float) -> np.ndarray:
        """Depth in a circle that harmonics and noise deform: 0 on the border, negative outside."""
        rho = np.sqrt(self.u**2 + self.v**2) + np.float32(1e-6)
        z = (self.u + np.complex64(1j) * self.v) / rho
        coefficients = irregular * (self.rng.normal(size=5) + 1j * self.rng.normal(size=5))
        wave = np.complex64(0)
        for k in (6, 5, 4, 3, 2):  # Horner's rule for the sum of coefficients[k] z^k
            wave = (wave + np.complex64(coefficients[k - 2] / k**1.5)) * z
        relative_radius = np.maximum(1 + (wave * z).real, 0.5)
        return np.float32(radius) - rho / relative_radius + np.float32(ragged) * self.clouds(0.6)

    def network(self, scale: float) -> np.ndarray:
        """Pigment network: 1 on its lines, 0 in its holes."""
        wall, center = self.texture("cell_wall", "cell_center", scale=scale)
        return smoothstep(wall, 0.38, 0.0) * (0.4 + 0.6 * smoothstep(center, 0.25, 0.8))

    def spots(self, scale: float, share: float, radius: float = 0.3, fray=0.05) -> np.ndarray:
        """Soft spots in a random fraction `share` of the cells: 1 inside a spot, 0 outside."""
        center, value = self.texture("cell_center", "cell_value", scale=scale)
        center += fray * self.clouds(2.5 * scale)
        return smoothstep(center, radius, 0.4 * radius) * (value < share)


def rasterize_lines(paths: list[tuple[np.ndarray, float]], to_image: np.ndarray, size: int):
    """Soft-edged lines, float32 (size, size) in [0, 1], from (points (n, 2), width) pairs;
    `to_image` (2, 3) maps the points to image coordinates, as in `Scene`."""
    canvas = ImageDraw.Draw(supersampled := Image.new("L", (3 * size, 3 * size)))
    for points, width in paths:
        xy = (points @ to_image[:, :2].T + to_image[:, 2] + 1) * (1.5 * size)
        canvas.line(xy.ravel().tolist(), fill=255, width=max(1, round(width * 3 * size)))
    return np.asarray(supersampled.reduce(3), np.float32) / np.float32(255)


def branching_lines(
    rng, count: int, spread: float, step: float, wobble: float, width, forks: int = 0
):
    """Random curved lines (hairs, or vessels with `forks` levels of branches), as the paths that
    `rasterize_lines` takes."""
    starts = rng.normal(0, spread, (count, 2))
    paths, pending = [], [(p, rng.uniform(0, 6.3), rng.uniform(*width), forks) for p in starts]
    while pending:
        start, heading, line_width, forks = pending.pop()
        turns = heading + np.cumsum(rng.normal(0, wobble, 12))
        steps = step * np.stack([np.cos(turns), np.sin(turns)], 1)
        paths.append((path := np.cumsum(np.vstack([start, steps]), 0), line_width))
        for side in (-1, 1) if forks else ():
            turn = turns[-1] + side * rng.uniform(0.2, 0.9)
            pending.append((path[-1], turn, 0.7 * line_width, forks - 1))
    return paths


def melanoma(s: Scene) -> None:
    """Asymmetric, many colors, broken network, dots, blue-white veil, regression."""
    d = s.outline(s.uniform(0.3, 0.68), 0.3, 0.045)
    body = smoothstep(d, -0.05, s.uniform(0.05, 0.14))
    patches, other, third = s.clouds(0.35), s.clouds(0.4), s.clouds(0.3)
    net = s.network(s.uniform(0.8, 1.1)) * smoothstep(other, -0.6, 0.8)
    blotches = 2.2 * smoothstep(patches + 0.35 * other, 0.3, 1.8)
    s.melanin += body * (0.5 + 1.2 * smoothstep(patches, -1.2, 1.5) + 0.7 * net + blotches)
    dots = s.uniform(0.5, 1.3) * s.spots(s.uniform(1.3, 2.0), 0.35)
    s.melanin += dots * smoothstep(d, -0.05, 0.03)
    s.blood += body * (0.15 + 0.5 * smoothstep(other, 0.0, 1.4))
    s.blue += max(0, s.uniform(-0.4, 0.8)) * smoothstep(third, -0.4, 1.2) * smoothstep(d, 0.02, 0.2)
    regression = body * max(0, s.uniform(-1, 0.8)) * smoothstep(-third, 0.3, 1.4)
    s.melanin *= 1 - regression
    s.white += 0.35 * regression


def nevus(s: Scene) -> None:
    """Round, symmetric, one brown: reticular, globular or homogeneous."""
    d = s.outline(radius := s.uniform(0.25, 0.6), 0.13, 0.03)
    body = smoothstep(d, -0.06, s.uniform(0.08, 0.22))
    brown = body * np.float32(s.uniform(0.35, 1.1))
    s.melanin += brown * (0.7 + 0.4 * smoothstep(d, 0, radius) + 0.14 * s.clouds(0.8))
    s.blood += body * s.uniform(0.05, 0.45)
    if (pattern := s.rng.random()) < 0.5:  # reticular
        s.melanin += 0.7 * brown * (s.network(s.uniform(0.8, 1.2)) - 0.2)
    elif pattern < 0.7:  # globular
        s.melanin += 0.6 * brown * s.spots(s.uniform(1.0, 1.5), 0.75, 0.5)
    s.melanin += max(0, s.uniform(-1, 1)) * smoothstep(d, 0.45 * radius, radius)  # a dark center


def basal_cell_carcinoma(s: Scene) -> None:
    """Pearly pink, blue-gray ovoid nests, arborizing vessels, sometimes a bleeding ulcer."""
    d = s.outline(s.uniform(0.4, 0.65), 0.25, 0.1)
    body = smoothstep(d, -0.15, 0.2)
    s.blood += body * (s.uniform(0.1, 0.4) + 0.12 * s.clouds(0.7))
    s.white += body * s.uniform(0.1, 0.4) * smoothstep(s.clouds(0.5), -0.5, 1.5)
    nests = s.spots(s.uniform(0.2, 0.36), s.uniform(0.2, 0.6), s.uniform(0.4, 0.6), 0.14)
    nests *= smoothstep(d + 0.1 * s.clouds(0.5), 0.0, 0.2)
    s.melanin += nests * s.uniform(0.4, 1.2) * (0.8 + 0.3 * s.clouds(1.0))
    s.blue += nests * s.uniform(0.1, 0.55)
    trees = branching_lines(s.rng, s.rng.integers(1, 5), 0.3, 0.022, 0.22, (0.005, 0.01), forks=3)
    s.blood += 0.7 * rasterize_lines(trees, s.lesion_to_image, s.size) * smoothstep(d, -0.15, 0.1)
    s.blood += 1.4 * (s.rng.random() < 0.3) * smoothstep(s.outline(0.13, 0.4, 0.06), -0.04, 0.06)


def actinic_keratosis(s: Scene) -> None:
    """Strawberry: a red net around pale follicles under rough, scaly skin; patchy brown."""
    d = s.outline(s.uniform(0.45, 0.75), 0.25, 0.14)
    body, rough = smoothstep(d, -0.18, 0.2), s.clouds(1.6)
    red = body * np.float32(s.uniform(0.25, 0.65))
    s.blood += red * (0.6 + 0.25 * s.clouds(0.7) + 0.6 * s.network(s.uniform(0.55, 0.8)))
    s.blood -= red * 0.4 * (follicles := s.spots(s.uniform(0.55, 0.8), 0.7, 0.5, 0.12))
    s.white += body * 0.12 * follicles
    brown = smoothstep(s.clouds(0.5) + 0.4 * rough, -0.2, 1.6)
    s.melanin += body * s.uniform(0, 0.9) * brown * (0.7 + 0.5 * s.network(1.0))
    s.white += body * s.uniform(0.2, 0.8) * smoothstep(s.clouds(0.6) + 0.7 * rough, 0.9, 3.0)


def keratosis(s: Scene) -> None:
    """Benign keratosis: stuck on with a sharp edge, furrowed, pale cysts and dark plugs."""
    d = s.outline(s.uniform(0.33, 0.68), 0.24, 0.035)
    body = smoothstep(d, -0.015, s.uniform(0.02, 0.05))
    brown = body * np.float32(s.uniform(0.3, 1.1))
    (furrows,) = s.texture("furrows", scale=s.uniform(0.5, 1.0))
    s.melanin += brown * (0.75 + 0.28 * s.clouds(0.5) + s.uniform(0.05, 0.3) * furrows)
    s.blood += body * s.uniform(0, 0.3)
    s.blue += body * s.uniform(0, 0.3)
    cysts = s.spots(s.uniform(0.6, 0.9), s.uniform(0.03, 0.2), 0.36)
    s.white += body * 0.45 * cysts
    s.melanin -= brown * 0.5 * cysts
    s.melanin += body * 1.2 * s.spots(s.uniform(0.6, 1.0), s.uniform(0.03, 0.2), 0.4, 0.1)  # plugs


def dermatofibroma(s: Scene) -> None:
    """A white scar in the middle of a delicate brown network that fades into the skin."""
    d = s.outline(radius := s.uniform(0.45, 0.75), 0.13, 0.07)
    ring = smoothstep(d, -0.12, 0.25)
    scar = smoothstep(s.outline(radius * s.uniform(0.25, 0.42), 0.25, 0.06), -0.12, 0.14)
    net = 0.7 + 0.7 * s.network(s.uniform(0.9, 1.2))
    s.melanin += ring * (1 - 0.85 * scar) * s.uniform(0.25, 0.7) * net
    s.blood += ring * s.uniform(0.1, 0.5) * (0.8 + 0.25 * s.clouds(0.7))
    s.white += scar * s.uniform(0.35, 0.75) * (0.85 + 0.25 * s.clouds(1.0))


def vascular(s: Scene) -> None:
    """Red to purple lacunae, packed like berries, with paler walls between them; clots."""
    d = s.outline(s.uniform(0.2, 0.5), 0.15, 0.025)
    body = smoothstep(d, -0.05, 0.06)
    wall, center, value = s.texture(
        "cell_wall", "cell_center", "cell_value", scale=s.uniform(0.25, 0.5)
    )
    berries = smoothstep(wall + 0.06 * s.clouds(1.5), -0.3, 0.5) * smoothstep(center, 1.2, 0.0)
    s.blood += body * (s.uniform(0.5, 0.9) + s.uniform(0.3, 1.3) * berries * (0.7 + 0.5 * value))
    s.blue += body * s.uniform(0, 0.5) * (0.6 + 0.4 * berries)
    s.melanin += body * max(0, s.uniform(-4, 2)) * smoothstep(s.clouds(0.3), 0.4, 1.6)


CLASS_RENDERERS = dict(
    MEL=melanoma,
    NV=nevus,
    BCC=basal_cell_carcinoma,
    AKIEC=actinic_keratosis,
    BKL=keratosis,
    DF=dermatofibroma,
    VASC=vascular,
)


def render_one(label: int, lesion: int, view: int, size: int, seed: int, maps: dict) -> np.ndarray:
    """Render one image: uint8 (size, size, 3). Arguments as in `render`."""
    rng = random_stream(2, seed, label, lesion)
    view_rng = random_stream(3, seed, label, lesion, view)
    angle, zoom = rng.uniform(0, 6.28) + view_rng.normal(0, 0.15), view_rng.uniform(0.9, 1.12)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    shift = rng.normal(0, 0.07, 2) + view_rng.normal(0, 0.03, 2)
    s = Scene(rng, maps, size, np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]]))
    tone = np.frombuffer(bytes.fromhex(rng.choice(SKIN_TONES)), np.uint8) / 255
    tone = tone * s.uniform(0.9, 1.13) + rng.normal(0, 0.018, 3)
    has_hair, sun_damage = rng.random() < 0.35, s.uniform(0, 1) ** 2
    (relief,) = s.texture("cell_wall", scale=1.6)
    s.blood += 0.06 + (0.025 + 0.04 * sun_damage) * s.clouds(1.3) * (1.5 - relief)
    freckles = 0.25 * sun_damage * smoothstep(s.clouds(0.9), -0.5, 3)
    s.melanin += 0.05 * smoothstep(relief, 0.3, 0) + freckles
    CLASS_RENDERERS[CLASSES[label]](s)
    return simulate_camera(blend_layers(s, tone.tolist()), view_rng, has_hair, maps)


def blend_layers(s: Scene, tone: list[float]) -> np.ndarray:
    """Skin tone attenuated by the pigments (Beer-Lambert), overlays; float32 (3, size, size)."""
    melanin, blood, blue, white = (np.maximum(m, 0) for m in (s.melanin, s.blood, s.blue, s.white))
    image = np.empty((3, s.size, s.size), np.float32)
    for c, plane in enumerate(image):
        plane[:] = np.exp(-MELANIN[c] * melanin - BLOOD[c] * blood)
        plane[:] = DARKEST[c] + (tone[c] - DARKEST[c]) * plane
        plane += np.minimum(blue, 1) * (BLUE[c] * (0.4 + plane) - plane)
        plane += np.minimum(white, 1) * (WHITE[c] - plane)
    return image


def simulate_camera(
    image: np.ndarray, rng: np.random.Generator, has_hair: bool, maps: dict
) -> np.ndarray:
    """Hair, ruler, illumination, blur, noise: everything in which the views of a lesion differ."""
    size, identity = image.shape[-1], np.eye(2, 3)
    if has_hair:
        hairs = branching_lines(rng, rng.integers(2, 14), 0.7, 0.09, 0.12, (0.0015, 0.0045))
        image *= 1 - np.float32(rng.uniform(0.35, 0.75)) * rasterize_lines(hairs, identity, size)
    if rng.random() < 0.06:
        ticks = [(np.array([[t, 0.93], [t, 1]]), 0.004) for t in np.arange(-0.9, 1, 0.1)]
        image *= 1 - np.float32(0.7) * rasterize_lines(ticks, identity, size)
    x = np.linspace(-1, 1, size, dtype=np.float32)[None, :]
    center_x, center_y, slope_x, slope_y = rng.normal(0, (0.08, 0.08, 0.03, 0.03)).tolist()
    r2 = (x - center_x) ** 2 + (x.T - center_y) ** 2
    illumination = rng.uniform(1.0, 1.06) + slope_x * x + slope_y * x.T
    illumination = illumination - rng.uniform(0, 0.12) * r2  # brighter in the middle
    if rng.random() < 0.05:  # the dark circular edge of the field of view
        illumination *= smoothstep(r2, rng.uniform(1.4, 1.7), 1.3)
    row, column = rng.integers(0, len(maps["sensor_noise"]) - size + 1, 2)
    noise = np.float32(0.014) * maps["sensor_noise"][row : row + size, column : column + size]
    for plane, gain in zip(image, rng.normal(1, 0.012, 3).tolist(), strict=True):  # white balance
        plane[:] = plane * (gain * illumination) + noise
    # Blur with weights 1/4, 1/2, 1/4 in both directions.
    for part in (image, image.transpose(0, 2, 1)):
        part[:, 1:-1] = part[:, 1:-1] * 0.5 + (part[:, :-2] + part[:, 2:]) * 0.25
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
