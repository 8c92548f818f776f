"""Which faces are found, where none is, and how long it takes: in scenes composed of UTKFace crops.

Four faces stand in each scene, in front of a picture without faces: whole or cut by its edges, small or large, tilted,
dark, or in a photo that lies on its side. BACKGROUNDS is a folder of such pictures, of any sizes: landscapes, textures.

python benchmarks/faces.py --root UTKFace --backgrounds FOLDER [--faces 108]
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from score import unseen

from agr_lightning.images import read_rgb, resize
from agr_lightning.inference.centerface import find_faces
from agr_lightning.inference.faces import Face, square
from agr_lightning.inference.photos import PhotoOptions
from agr_lightning.labels import AGE_BANDS, age_band

Image = NDArray[np.uint8]

DEFAULT = PhotoOptions().min_confidence
CONFIDENCES = (0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass
class Kind:
    """Faces of one kind: side and photo in pixels, the share that the edge leaves, angles in degrees."""

    name: str
    side: int
    photo: tuple[int, int] = (1200, 900)
    min_size: float | None = None
    shown: float = 1.0
    tilt: float = 0.0
    quarters: int = 0
    brightness: float = 1.0


_12, _24 = (4000, 3000), (6000, 4000)

KINDS = [
    Kind("24 px", 24, min_size=20),
    Kind("32 px", 32, min_size=26),
    Kind("32 px in 12 megapixels", 32, _12, min_size=26),
    Kind("32 px in 24 megapixels", 32, _24, min_size=26),
    Kind("48 px in 24 megapixels", 48, _24, min_size=40),
    Kind("48 px", 48),
    Kind("100 px", 100),
    Kind("120 px in 12 megapixels", 120, _12),
    Kind("400 px", 400),
    Kind("400 px in 24 megapixels", 400, _24),
    Kind("1,800 px in 24 megapixels", 1800, _24),
    Kind("100 px, 35 % of the brightness", 100, brightness=0.35),
    Kind("100 px, tilted by up to 30 degrees", 100, tilt=30),
    Kind("100 px, tilted by up to 60 degrees", 100, tilt=60),
    Kind("48 px, cut to 80 %", 48, shown=0.8),
    Kind("200 px, cut to 80 %", 200, shown=0.8),
    Kind("400 px in 12 megapixels, cut to 80 %", 400, _12, shown=0.8),
    Kind("48 px, cut to 60 %", 48, shown=0.6),
    Kind("200 px, cut to 60 %", 200, shown=0.6),
    Kind("200 px, photo turned by 90 degrees", 200, quarters=1),
    Kind("200 px, photo turned by 180 degrees", 200, quarters=2),
    Kind("200 px, photo turned by 270 degrees", 200, quarters=3),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--backgrounds", required=True, help="folder of pictures without faces")
    parser.add_argument("--faces", type=int, default=108, help="of each kind")
    parser.add_argument("--megapixels", type=float, default=24, help="of the largest photos")
    chosen = parser.parse_args()
    samples, images = unseen(chosen.root, [None], 1900)
    # The same number of each age band, one after the other.
    bands: list[list[int]] = [[] for _ in AGE_BANDS]
    for index, age in enumerate(samples["age"]):
        bands[age_band(age)].append(index)
    order = [band[turn % len(band)] for turn in range(chosen.faces // len(bands)) for band in bands]
    backgrounds = sorted(path for path in Path(chosen.backgrounds).iterdir() if path.is_file())
    print(f"\n{len(order)} faces of each kind, {len(order) // len(bands)} of each age band; share found")
    print(f"by least confidence, then by age band at {DEFAULT}; seconds a photo\n")
    heads = [*(f">= {value:g}" for value in CONFIDENCES), *AGE_BANDS, "s"]
    print(f"| faces | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for kind in KINDS:
        if kind.photo[0] * kind.photo[1] > chosen.megapixels * 1e6:
            continue
        best, seconds = _search(kind, [images[index] for index in order], backgrounds)
        shares = [np.mean(best >= value) for value in CONFIDENCES]
        shares += [np.mean(best[band :: len(bands)] >= DEFAULT) for band in range(len(bands))]
        print(f"| {kind.name} | {' | '.join(f'{share:.1%}' for share in shares)} | {seconds:.2f} |", flush=True)

    found: list[float] = []
    times = []
    for path in backgrounds:
        picture, start = read_rgb(path), time.perf_counter()
        faces = find_faces(picture, None)
        times.append(time.perf_counter() - start)
        found += [face.probability for face in faces]
    counts = [sum(probability >= value for probability in found) for value in CONFIDENCES]
    print(f"\nfalse faces in {len(backgrounds)} pictures without any, by least confidence\n")
    print(f"| {' | '.join(heads[: len(counts)])} | s |\n|{'---|' * (len(counts) + 1)}")
    print(f"| {' | '.join(map(str, counts))} | {statistics.mean(times):.2f} |")


def _search(kind: Kind, crops: list[Image], backgrounds: list[Path]) -> tuple[Image, float]:
    """How sure the detector is of each face, 0 where it is not found, and the mean seconds for a photo."""
    best, times = np.zeros(len(crops)), []
    for first in range(0, len(crops), 4):
        photo, faces = _scene(
            kind, crops[first : first + 4], read_rgb(backgrounds[first // 4 % len(backgrounds)]), first
        )
        start = time.perf_counter()
        found = find_faces(photo, kind.min_size)
        times.append(time.perf_counter() - start)
        for number, face in enumerate(faces):
            sure = [other.probability for other in found if _same(face, other)]
            best[first + number] = max(sure, default=0.0)
    return best, statistics.mean(times)


def _same(face: Face, other: Face) -> bool:
    distance = np.hypot(*(face.middle - other.middle))
    return bool(distance < 0.35 * face.side and 0.5 < other.side / face.side < 1.6)


def _scene(kind: Kind, crops: list[Image], background: Image, seed: int) -> tuple[Image, list[Face]]:
    """A photo with up to four faces, one near each corner or cut by each edge."""
    random = np.random.default_rng(seed)
    width, height = kind.photo
    scale = max(width / background.shape[1], height / background.shape[0])
    photo = cv2.resize(background, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:height, :width].copy()
    height, width = photo.shape[:2]
    faces = []
    for number, crop in enumerate(crops):
        half = kind.side / 2
        # In its quarter, away from the others.
        x, y = ((0.25 + 0.5 * (number % 2)) * width, (0.25 + 0.5 * (number // 2)) * height)
        room = np.maximum(0, np.array([width, height]) / 4 - kind.side * 0.75)
        x, y = np.array([x, y]) + random.uniform(-1, 1, 2) * room
        if kind.shown < 1:
            inside = (kind.shown - 0.5) * kind.side
            x, y = [
                (inside, height / 3),
                (width - inside, height / 2),
                (width / 3, inside),
                (width / 2, height - inside),
            ][number]
        face = resize(crop, kind.side)
        turn = cv2.getRotationMatrix2D((half - 0.5, half - 0.5), random.uniform(-1, 1) * kind.tilt, 1)
        turn[:, 2] += np.round([x - half, y - half])
        cv2.warpAffine(face, turn, (width, height), dst=photo, borderMode=cv2.BORDER_TRANSPARENT)
        faces.append(square(x, y, kind.side))
    photo = np.ascontiguousarray(np.rot90((photo * kind.brightness).astype(np.uint8), kind.quarters))
    middle, other = np.array([width, height]) / 2, np.array(photo.shape[1::-1]) / 2
    for number, face in enumerate(faces):
        # Counterclockwise in pictures whose y points down.
        corners = (face.corners - middle) @ np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), kind.quarters) + other
        faces[number] = Face(corners)
    return photo, faces


if __name__ == "__main__":
    main()
