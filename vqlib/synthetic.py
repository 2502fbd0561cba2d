"""Synthetic lesions: dermoscopy-like pictures drawn by code.

The data set that everything runs on until you bring real images. Call it synthetic wherever you
show it: nothing medical can be learnt from it.

Two dyes colour skin, *melanin* (brown) and *blood* (red); light fades exponentially in them (the
Beer-Lambert law). A class is a recipe of about ten lines that pours dyes onto a `Scene` and lays
*blue* (deep pigment) and *white* (scar, scale) over them. Change a number, look what it does.

Imitated: palette and textbook structures of seven classes, skin tones, lighting, hair, rulers, and
several photographs of one lesion, so that a split by image leaks here as it does on real data. Not
imitated: frequencies of structures and subtypes, anatomy, behaviour of lesions, JPEG artefacts.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

CLASSES: tuple[str, ...] = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")

PROPORTIONS = (0.15, 0.35, 0.12, 0.09, 0.15, 0.07, 0.07)  # HAM10000: 67 % NV, 1 % DF
VIEWS = (0.74, 0.18, 0.07, 0.01)  # lesions with 1, 2, 3, 4 photographs: 1.35 each, as in HAM10000
# Skin tones: pink twice, lilac, pale, tan, flushed, greyish.
SKIN_TONES = ("dfb6bc", "e6b2b4", "ccb2c4", "e8cac6", "e4c3b0", "e8a29c", "c0b0b4")
# Light lost in red, green and blue per unit of dye; colours of the overlays and of the darkest.
MELANIN, BLOOD = (0.50, 1.00, 1.22), (0.17, 1.00, 0.72)
BLUE, WHITE, DARKEST = (0.42, 0.46, 0.62), (0.94, 0.88, 0.90), (0.13, 0.08, 0.10)
TILE = 512  # texels along one side of a texture; a power of two, so `&` wraps around


class Catalogue(NamedTuple):
    """One row per image, int64 (N,): positions in CLASSES, lesion numbers, views 0, 1, 2, ..."""

    labels: np.ndarray
    lesions: np.ndarray
    views: np.ndarray


def catalogue(lesions: int = 400, seed: int = 0) -> Catalogue:
    """List the images of a synthetic data set: about 1.35 x `lesions` rows, in lesion order.

    Class sizes follow PROPORTIONS, rounded. Raises ValueError if `lesions` < 1 or `seed` < 0.
    """
    if lesions < 1 or seed < 0:
        raise ValueError(f"need lesions >= 1 and seed >= 0, got {lesions=} and {seed=}")
    rng = random_stream(0, seed)
    borders = lesions * np.cumsum(PROPORTIONS[:-1])
    classes = rng.permutation(np.searchsorted(borders, np.arange(lesions) + 0.5))
    counts = rng.choice(len(VIEWS), size=lesions, p=VIEWS) + 1
    numbers = np.repeat(np.arange(lesions), counts)
    views = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Catalogue(*(a.astype(np.int64) for a in (classes[numbers], numbers, views)))


def render(labels, lesions, views, size: int = 256, seed: int = 0) -> np.ndarray:
    """Draw n images: uint8 (n, size, size, 3), RGB.

    Labels, lesions and views are n ints each, as in a `Catalogue`. Image i depends on its own three
    numbers, the seed and the size (32 to 512 pixels) alone: label and lesion fix what is on the
    skin, the view how it is photographed. Raises ValueError on differing lengths or bad numbers.
    """
    rows = [np.atleast_1d(a) for a in (labels, lesions, views)]
    if any(a.shape != (len(rows[0]),) or a.dtype.kind not in "iu" for a in rows):
        raise ValueError("labels, lesions and views must be lists of whole numbers, of one length")
    if not all(0 <= label < len(CLASSES) for label in rows[0]):
        raise ValueError(f"labels must be 0 to {len(CLASSES) - 1}, the places in {CLASSES}")
    if seed < 0 or any((a < 0).any() for a in rows):
        raise ValueError("lesions, views and seed must be 0 or more")
    if not 32 <= size <= TILE:
        raise ValueError(f"size must be 32 to {TILE} pixels, got {size}")
    coarser = 2 ** max(0, (256 // size).bit_length() - 1)  # a power of two, which divides TILE
    draw = partial(draw_one, size=size, seed=seed, maps=textures(seed, coarser))
    out = np.empty((len(rows[0]), size, size, 3), np.uint8)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # NumPy works without the GIL
        for i, image in enumerate(pool.map(draw, *(a.tolist() for a in rows))):
            out[i] = image
    return out


def random_stream(*key: int) -> np.random.Generator:
    """A random stream that is a function of `key` alone (counter-based, Philox)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@lru_cache(maxsize=4)
def textures(seed: int, coarser: int = 1) -> dict[str, np.ndarray]:
    """Endlessly repeating patterns: float32 maps, TILE / coarser texels a side.

    clouds (noise of all scales), bands (furrows) and grain have mean 0, variance 1. Of a jittered
    honeycomb: distances to the cell's `centre` and `wall` (in cells), its `chance` in [0, 1).
    """
    rng = random_stream(1, seed)
    freq = np.hypot(*np.meshgrid(*[np.fft.fftfreq(TILE, 1 / TILE)] * 2)) + 1e-6

    def noise(spectrum: np.ndarray) -> np.ndarray:
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((TILE, TILE))) * spectrum).real
        return (field - field.mean()) / field.std()

    maps = {"clouds": noise(np.where(freq > 1.5, freq**-1.6, 0))}
    maps["bands"] = noise(np.exp(-(((freq - 17) / 6) ** 2)))
    maps["grain"] = noise(np.exp(-((freq / 150) ** 2)))
    points, luck = rng.uniform(0.1, 0.9, (cells := 16, cells, 2)), rng.random((cells, cells))
    bend = [0.16 * noise(np.exp(-((freq / 10) ** 2))) for _ in range(2)]  # no straight walls
    pos = np.stack(np.meshgrid(*[np.arange(TILE) * cells / TILE] * 2), -1) + np.stack(bend, -1)
    near, second, chance = np.full((TILE, TILE), 9.0), np.full((TILE, TILE), 9.0), 0.0
    for step in np.ndindex(3, 3):  # the nearest centres lie in the 3 x 3 cells around
        cell = np.floor(pos).astype(int) + np.array(step) - 1
        inside = (cell[..., 1] % cells, cell[..., 0] % cells)
        dist = np.linalg.norm(cell + points[inside] - pos, axis=-1)
        chance = np.where(dist < near, luck[inside], chance)
        near, second = np.minimum(near, dist), np.minimum(second, np.maximum(near, dist))
    maps |= {"centre": near, "wall": second - near, "chance": chance}
    blocks = (TILE // coarser, coarser, TILE // coarser, coarser)
    return {n: f.reshape(blocks).mean((1, 3)).astype(np.float32) for n, f in maps.items()}


def smooth(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a smooth step between (falling if low > high)."""
    t = np.clip((x - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


class Scene:
    """A patch of skin to pour dyes on; all maps are float32 (size, size).

    The lesion's centre is u = v = 0; `placement` (2, 3) maps (u, v) to the picture, which spans
    -1 to 1 both ways. `rng` belongs to the lesion, so every view draws the same numbers.
    """

    def __init__(self, rng: np.random.Generator, maps: dict, size: int, placement: np.ndarray):
        self.rng, self.maps, self.size, self.placement = rng, maps, size, placement
        self.between = rng.uniform
        back = np.linalg.inv(placement[:, :2]).astype(np.float32)
        axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
        shift = placement[:, 2].astype(np.float32)
        x, y = axis[None, :] - shift[0], axis[:, None] - shift[1]
        self.u, self.v = back[0, 0] * x + back[0, 1] * y, back[1, 0] * x + back[1, 1] * y
        self.melanin, self.blood, self.blue, self.white = np.zeros((4, size, size), np.float32)

    def texture(self, *names: str, scale: float) -> list[np.ndarray]:
        """Look patterns up at a random place; `scale` tiles fit into half the picture's width."""
        side = len(self.maps["clouds"])
        shift = np.float32(side * (8 + self.rng.random(2)))  # positive: truncating rounds down
        column = (self.u * np.float32(scale * side) + shift[0]).astype(np.int32)
        row = (self.v * np.float32(scale * side) + shift[1]).astype(np.int32)
        index = (row & (side - 1)) * np.int32(side) + (column & (side - 1))
        return [self.maps[name].take(index, mode="wrap") for name in names]

    def clouds(self, scale: float) -> np.ndarray:
        return self.texture("clouds", scale=scale)[0]

    def outline(self, radius: float, irregular: float, ragged: float) -> np.ndarray:
        """Depth in a circle bent by harmonics and frayed by noise: 0 on the border, < 0 outside."""
        rho = np.sqrt(self.u**2 + self.v**2) + np.float32(1e-6)
        z = (self.u + np.complex64(1j) * self.v) / rho
        bumps = irregular * (self.rng.normal(size=5) + 1j * self.rng.normal(size=5))
        wave = np.complex64(0)
        for k in (6, 5, 4, 3, 2):  # Horner's rule for the sum of bumps[k] z^k
            wave = (wave + np.complex64(bumps[k - 2] / k**1.5)) * z
        reach = np.maximum(1 + (wave * z).real, 0.5)
        return np.float32(radius) - rho / reach + np.float32(ragged) * self.clouds(0.6)

    def network(self, scale: float) -> np.ndarray:
        """Pigment network: 1 on the lines of a net, 0 in its holes."""
        wall, centre = self.texture("wall", "centre", scale=scale)
        return smooth(wall, 0.38, 0.0) * (0.4 + 0.6 * smooth(centre, 0.25, 0.8))

    def spots(self, scale: float, share: float, radius: float = 0.3, fray=0.05) -> np.ndarray:
        """Soft spots in a random `share` of the cells: 1 in a spot, 0 around it."""
        centre, chance = self.texture("centre", "chance", scale=scale)
        centre += fray * self.clouds(2.5 * scale)
        return smooth(centre, radius, 0.4 * radius) * (chance < share)


def draw_lines(paths: list[tuple[np.ndarray, float]], placement: np.ndarray, size: int):
    """Soft-edged lines, float32 (size, size) in [0, 1], from (points (n, 2), width) pairs."""
    pen = ImageDraw.Draw(fine := Image.new("L", (3 * size, 3 * size)))
    for points, width in paths:
        xy = (points @ placement[:, :2].T + placement[:, 2] + 1) * (1.5 * size)
        pen.line(xy.ravel().tolist(), fill=255, width=max(1, round(width * 3 * size)))
    return np.asarray(fine.reduce(3), np.float32) / np.float32(255)


def winding_lines(rng, count: int, reach: float, step: float, wobble: float, width, forks: int = 0):
    """Hairs, and vessels that fork into ever finer ones, as paths for `draw_lines`."""
    starts = rng.normal(0, reach, (count, 2))
    paths, todo = [], [(p, rng.uniform(0, 6.3), rng.uniform(*width), forks) for p in starts]
    while todo:
        start, heading, thick, forks = todo.pop()
        turns = heading + np.cumsum(rng.normal(0, wobble, 12))
        steps = step * np.stack([np.cos(turns), np.sin(turns)], 1)
        paths.append((path := np.cumsum(np.vstack([start, steps]), 0), thick))
        for side in (-1, 1) if forks else ():
            turn = turns[-1] + side * rng.uniform(0.2, 0.9)
            todo.append((path[-1], turn, 0.7 * thick, forks - 1))
    return paths


def melanoma(s: Scene) -> None:
    """Asymmetric, many colours, broken network, dots, blue-white veil, regression."""
    d = s.outline(s.between(0.3, 0.68), 0.3, 0.045)
    body = smooth(d, -0.05, s.between(0.05, 0.14))
    patches, other, third = s.clouds(0.35), s.clouds(0.4), s.clouds(0.3)
    net = s.network(s.between(0.8, 1.1)) * smooth(other, -0.6, 0.8)
    blotches = 2.2 * smooth(patches + 0.35 * other, 0.3, 1.8)
    s.melanin += body * (0.5 + 1.2 * smooth(patches, -1.2, 1.5) + 0.7 * net + blotches)
    s.melanin += s.between(0.5, 1.3) * s.spots(s.between(1.3, 2.0), 0.35) * smooth(d, -0.05, 0.03)
    s.blood += body * (0.15 + 0.5 * smooth(other, 0.0, 1.4))
    s.blue += max(0, s.between(-0.4, 0.8)) * smooth(third, -0.4, 1.2) * smooth(d, 0.02, 0.2)
    s.melanin *= 1 - (regression := body * max(0, s.between(-1, 0.8)) * smooth(-third, 0.3, 1.4))
    s.white += 0.35 * regression


def nevus(s: Scene) -> None:
    """Round, symmetric, one brown: reticular, globular or homogeneous."""
    d = s.outline(radius := s.between(0.25, 0.6), 0.13, 0.03)
    body = smooth(d, -0.06, s.between(0.08, 0.22))
    brown = body * np.float32(s.between(0.35, 1.1))
    s.melanin += brown * (0.7 + 0.4 * smooth(d, 0, radius) + 0.14 * s.clouds(0.8))
    s.blood += body * s.between(0.05, 0.45)
    if (pattern := s.rng.random()) < 0.5:  # reticular
        s.melanin += 0.7 * brown * (s.network(s.between(0.8, 1.2)) - 0.2)
    elif pattern < 0.7:  # globular
        s.melanin += 0.6 * brown * s.spots(s.between(1.0, 1.5), 0.75, 0.5)
    s.melanin += max(0, s.between(-1, 1)) * smooth(d, 0.45 * radius, radius)  # a dark hub


def basal_cell_carcinoma(s: Scene) -> None:
    """Pearly pink, blue-grey ovoid nests, arborising vessels, sometimes a bleeding ulcer."""
    d = s.outline(s.between(0.4, 0.65), 0.25, 0.1)
    body = smooth(d, -0.15, 0.2)
    s.blood += body * (s.between(0.1, 0.4) + 0.12 * s.clouds(0.7))
    s.white += body * s.between(0.1, 0.4) * smooth(s.clouds(0.5), -0.5, 1.5)
    nests = s.spots(s.between(0.2, 0.36), s.between(0.2, 0.6), s.between(0.4, 0.6), 0.14)
    nests *= smooth(d + 0.1 * s.clouds(0.5), 0.0, 0.2)
    s.melanin += nests * s.between(0.4, 1.2) * (0.8 + 0.3 * s.clouds(1.0))
    s.blue += nests * s.between(0.1, 0.55)
    trees = winding_lines(s.rng, s.rng.integers(1, 5), 0.3, 0.022, 0.22, (0.005, 0.01), forks=3)
    s.blood += 0.7 * draw_lines(trees, s.placement, s.size) * smooth(d, -0.15, 0.1)
    s.blood += 1.4 * (s.rng.random() < 0.3) * smooth(s.outline(0.13, 0.4, 0.06), -0.04, 0.06)


def actinic_keratosis(s: Scene) -> None:
    """Strawberry: a red net around pale follicles under rough, scaly skin; patchy brown."""
    d = s.outline(s.between(0.45, 0.75), 0.25, 0.14)
    body, rough = smooth(d, -0.18, 0.2), s.clouds(1.6)
    red = body * np.float32(s.between(0.25, 0.65))
    s.blood += red * (0.6 + 0.25 * s.clouds(0.7) + 0.6 * s.network(s.between(0.55, 0.8)))
    s.blood -= red * 0.4 * (follicles := s.spots(s.between(0.55, 0.8), 0.7, 0.5, 0.12))
    s.white += body * 0.12 * follicles
    brown = smooth(s.clouds(0.5) + 0.4 * rough, -0.2, 1.6)
    s.melanin += body * s.between(0, 0.9) * brown * (0.7 + 0.5 * s.network(1.0))
    s.white += body * s.between(0.2, 0.8) * smooth(s.clouds(0.6) + 0.7 * rough, 0.9, 3.0)


def keratosis(s: Scene) -> None:
    """Benign keratosis: stuck on with a sharp edge, furrowed, pale cysts and dark plugs."""
    d = s.outline(s.between(0.33, 0.68), 0.24, 0.035)
    body = smooth(d, -0.015, s.between(0.02, 0.05))
    brown = body * np.float32(s.between(0.3, 1.1))
    (furrows,) = s.texture("bands", scale=s.between(0.5, 1.0))
    s.melanin += brown * (0.75 + 0.28 * s.clouds(0.5) + s.between(0.05, 0.3) * furrows)
    s.blood += body * s.between(0, 0.3)
    s.blue += body * s.between(0, 0.3)
    cysts = s.spots(s.between(0.6, 0.9), s.between(0.03, 0.2), 0.36)
    s.white += body * 0.45 * cysts
    s.melanin -= brown * 0.5 * cysts
    s.melanin += body * 1.2 * s.spots(s.between(0.6, 1.0), s.between(0.03, 0.2), 0.4, 0.1)  # plugs


def dermatofibroma(s: Scene) -> None:
    """A white scar in the middle of a delicate brown network that fades into the skin."""
    d = s.outline(radius := s.between(0.45, 0.75), 0.13, 0.07)
    ring = smooth(d, -0.12, 0.25)
    scar = smooth(s.outline(radius * s.between(0.25, 0.42), 0.25, 0.06), -0.12, 0.14)
    net = 0.7 + 0.7 * s.network(s.between(0.9, 1.2))
    s.melanin += ring * (1 - 0.85 * scar) * s.between(0.25, 0.7) * net
    s.blood += ring * s.between(0.1, 0.5) * (0.8 + 0.25 * s.clouds(0.7))
    s.white += scar * s.between(0.35, 0.75) * (0.85 + 0.25 * s.clouds(1.0))


def vascular(s: Scene) -> None:
    """Red to purple lacunae, packed like berries, with paler walls between them; clots."""
    d = s.outline(s.between(0.2, 0.5), 0.15, 0.025)
    body = smooth(d, -0.05, 0.06)
    wall, centre, chance = s.texture("wall", "centre", "chance", scale=s.between(0.25, 0.5))
    berries = smooth(wall + 0.06 * s.clouds(1.5), -0.3, 0.5) * smooth(centre, 1.2, 0.0)
    s.blood += body * (s.between(0.5, 0.9) + s.between(0.3, 1.3) * berries * (0.7 + 0.5 * chance))
    s.blue += body * s.between(0, 0.5) * (0.6 + 0.4 * berries)
    s.melanin += body * max(0, s.between(-4, 2)) * smooth(s.clouds(0.3), 0.4, 1.6)


RECIPES = (melanoma, nevus, basal_cell_carcinoma, actinic_keratosis, keratosis, dermatofibroma)
RECIPES += (vascular,)  # in the order of CLASSES


def draw_one(label: int, lesion: int, view: int, size: int, seed: int, maps: dict) -> np.ndarray:
    """Draw one image: uint8 (size, size, 3). Arguments as in `render`."""
    rng = random_stream(2, seed, label, lesion)
    of_view = random_stream(3, seed, label, lesion, view)
    angle, zoom = rng.uniform(0, 6.28) + of_view.normal(0, 0.15), of_view.uniform(0.9, 1.12)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    shift = rng.normal(0, 0.07, 2) + of_view.normal(0, 0.03, 2)
    s = Scene(rng, maps, size, np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]]))
    tone = np.frombuffer(bytes.fromhex(rng.choice(SKIN_TONES)), np.uint8) / 255
    tone = tone * s.between(0.9, 1.13) + rng.normal(0, 0.018, 3)
    hairy, sun, (relief,) = rng.random() < 0.35, s.between(0, 1) ** 2, s.texture("wall", scale=1.6)
    s.blood += 0.06 + (0.025 + 0.04 * sun) * s.clouds(1.3) * (1.5 - relief)
    s.melanin += 0.05 * smooth(relief, 0.3, 0) + 0.25 * sun * smooth(s.clouds(0.9), -0.5, 3)
    RECIPES[label](s)
    return photograph(develop(s, tone.tolist()), of_view, hairy, maps)


def develop(s: Scene, tone: list[float]) -> np.ndarray:
    """Beer-Lambert: the skin's tone dimmed by its dyes, then overlays. float32 (3, size, size)."""
    melanin, blood, blue, white = (np.maximum(m, 0) for m in (s.melanin, s.blood, s.blue, s.white))
    image = np.empty((3, s.size, s.size), np.float32)
    for c, plane in enumerate(image):
        plane[:] = np.exp(-MELANIN[c] * melanin - BLOOD[c] * blood)
        plane[:] = DARKEST[c] + (tone[c] - DARKEST[c]) * plane
        plane += np.minimum(blue, 1) * (BLUE[c] * (0.4 + plane) - plane)
        plane += np.minimum(white, 1) * (WHITE[c] - plane)
    return image


def photograph(image: np.ndarray, rng: np.random.Generator, hairy: bool, maps: dict) -> np.ndarray:
    """Hair, ruler, lamp, lens and sensor: all in which the views of a lesion differ."""
    size, upright = image.shape[-1], np.eye(2, 3)
    if hairy:
        hairs = winding_lines(rng, rng.integers(2, 14), 0.7, 0.09, 0.12, (0.0015, 0.0045))
        image *= 1 - np.float32(rng.uniform(0.35, 0.75)) * draw_lines(hairs, upright, size)
    if rng.random() < 0.06:
        ticks = [(np.array([[t, 0.93], [t, 1]]), 0.004) for t in np.arange(-0.9, 1, 0.1)]
        image *= 1 - np.float32(0.7) * draw_lines(ticks, upright, size)
    x = np.linspace(-1, 1, size, dtype=np.float32)[None, :]
    right, down, slope, tilt = (rng.normal(0, 1, 4) * (0.08, 0.08, 0.03, 0.03)).tolist()
    r2 = (x - right) ** 2 + (x.T - down) ** 2
    lamp = rng.uniform(1.0, 1.06) + slope * x + tilt * x.T - rng.uniform(0, 0.12) * r2
    if rng.random() < 0.05:  # the round rim of the dermatoscope
        lamp *= smooth(r2, rng.uniform(1.4, 1.7), 1.3)
    row, column = rng.integers(0, len(maps["grain"]) - size + 1, 2)
    grain = np.float32(0.014) * maps["grain"][row : row + size, column : column + size]
    for plane, gain in zip(image, rng.normal(1, 0.012, 3).tolist(), strict=True):  # white balance
        plane[:] = plane * (gain * lamp) + grain
    for part in (image, image.transpose(0, 2, 1)):  # lenses blur: weights 1/4, 1/2, 1/4 both ways
        part[:, 1:-1] = part[:, 1:-1] * 0.5 + (part[:, :-2] + part[:, 2:]) * 0.25
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
