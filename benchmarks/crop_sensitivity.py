"""How much it matters where a face is cropped: with shifted and scaled boxes, and as faces are found.

Shifts and scales are shares of the side of UTKFace's own crop; what lies beyond it repeats its edge, so that larger
boxes and shifts lose more here than in a photo. Detectors get the crop turned by up to 20 degrees in a larger picture.

python benchmarks/crop_sensitivity.py --root UTKFace [--ckpt_path FILE] [--images 1000] [--detector_images 300]
"""

import argparse
import statistics

import cv2
import numpy as np
from numpy.typing import NDArray
from score import Score, score, unseen

from agr_lightning.inference.centerface import find_faces
from agr_lightning.inference.faces import Face, square
from agr_lightning.inference.predictor import Predictor

Image = NDArray[np.uint8]

# Boxes: how far their middle is moved, right and down, and their size, as shares of the crop's side.
BOXES = {
    "UTKFace's own": [(0, 0, 1)],
    "shifted by 10 %": [(0.1, 0, 1), (-0.1, 0, 1), (0, 0.1, 1), (0, -0.1, 1)],
    "shifted by 20 %": [(0.2, 0, 1), (-0.2, 0, 1), (0, 0.2, 1), (0, -0.2, 1)],
    "10 % smaller": [(0, 0, 0.9)],
    "20 % smaller": [(0, 0, 0.8)],
    "10 % larger": [(0, 0, 1.1)],
    "20 % larger": [(0, 0, 1.2)],
}
MARGINS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--ckpt_path", help="default: the shipped weights agr")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detector_images", type=int, default=300)
    chosen = parser.parse_args()
    samples, images = unseen(chosen.root, [chosen.ckpt_path], chosen.images)
    predictor = Predictor.load(chosen.ckpt_path)

    print(f"\n{len(images):,} images that {predictor.source} has not seen\n")
    print("| box | age MAE (years) | gender | race |\n|---|---|---|---|")
    for name, changes in BOXES.items():
        scores = [score(predictor, samples, [_box(image, *change) for image in images]) for change in changes]
        mean = Score(*(statistics.mean(getattr(score, task) for score in scores) for task in ("age", "gender", "race")))
        print(f"| {name} | {mean.cells()} |", flush=True)

    some = samples[: chosen.detector_images]
    pictures = [_in_a_picture(image, number) for number, image in enumerate(images[: len(some)])]
    print(f"\n{len(some)} of them, turned by up to 20 degrees in pictures of 640x480\n")
    print("| faces, side of their crops | found | age MAE (years) | gender | race |\n|---|---|---|---|---|")
    crops = [face.crop(picture, 200) for picture, face in pictures]
    print(f"| none: as they were put in | {len(some)} | {score(predictor, some, crops).cells()} |")
    found = [find_faces(picture, None, 1, 0.4) for picture, _ in pictures]
    hits = [index for index, faces in enumerate(found) if faces]
    for margin in MARGINS:
        crops = [_scaled(found[index][0], margin).crop(pictures[index][0], 200) for index in hits]
        cells = score(predictor, some.iloc[hits], crops).cells() if hits else "| |"
        print(f"| found, x {margin:.2f} | {len(hits)} | {cells} |", flush=True)


def _box(image: Image, right: float, down: float, scale: float) -> Image:
    side = len(image)
    return square((0.5 + right) * side, (0.5 + down) * side, scale * side).crop(image, 200)


def _scaled(face: Face, margin: float) -> Face:
    return Face(face.middle + margin * (face.corners - face.middle))


def _in_a_picture(image: Image, seed: int) -> tuple[Image, Face]:
    """The crop, turned, somewhere in a larger picture; and where it is."""
    random = np.random.default_rng(seed)
    side = len(image)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), random.uniform(-20, 20), random.uniform(120, 200) / side)
    turn[:, 2] += (320 - side / 2 + random.uniform(-80, 80), 240 - side / 2 + random.uniform(-50, 50))
    picture = cv2.warpAffine(image, turn, (640, 480), borderMode=cv2.BORDER_REPLICATE)
    corners = np.array([[0, 0], [side, 0], [0, side]]) @ turn[:, :2].T + turn[:, 2]
    return np.asarray(picture, np.uint8), Face(corners)


if __name__ == "__main__":
    main()
