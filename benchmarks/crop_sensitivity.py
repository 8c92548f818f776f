"""How much it matters where a face is cropped: the same test images with shifted and scaled boxes, and as finders crop.

Shifts and scales are of the side of UTKFace's own crop; what lies beyond it repeats its edge, so that larger boxes and
shifts lose more here than in a photo. Finders get the crop turned by up to 20 degrees in a larger picture.

python benchmarks/crop_sensitivity.py --root UTKFace [--ckpt_path FILE] [--images 1000] [--finder_images 300]
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from agr_lightning.checkpoints import find_checkpoint, read_checkpoint, seen_images
from agr_lightning.data.images import read_rgb
from agr_lightning.data.index import build_index
from agr_lightning.data.samples import Sample
from agr_lightning.files import name_digests
from agr_lightning.inference.faces import Face, build_finder, find_faces, square
from agr_lightning.inference.predictor import Predictor
from agr_lightning.labels import GENDERS, RACES

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


@dataclass(frozen=True)
class Score:
    age: float
    gender: float
    race: float

    def cells(self) -> str:
        return f"{self.age:.2f} | {self.gender:.1f} % | {self.race:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--ckpt_path", help="default: the network that comes with this project")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--finder_images", type=int, default=300)
    chosen = parser.parse_args()
    checkpoint = read_checkpoint(find_checkpoint(chosen.ckpt_path, Path()))
    seen = seen_images(checkpoint)
    samples = [sample for sample in build_index(chosen.root).samples if sample.race >= 0]
    unseen = ~np.isin(name_digests([sample.name for sample in samples]), seen)
    places = np.random.default_rng(0).permutation(np.flatnonzero(unseen))[: chosen.images]
    members = [samples[place] for place in places]
    images = [read_rgb(sample.path) for sample in members]
    predictor = Predictor.load(chosen.ckpt_path)

    print(f"\n{len(images):,} images that {checkpoint.called} has not seen\n")
    print("| box | age MAE (years) | gender | race |\n|---|---|---|---|")
    for name, changes in BOXES.items():
        scores = [_score(predictor, members, [_box(image, *change) for image in images]) for change in changes]
        mean = Score(*(statistics.mean(getattr(score, task) for score in scores) for task in ("age", "gender", "race")))
        print(f"| {name} | {mean.cells()} |", flush=True)

    some = members[: chosen.finder_images]
    pictures = [_in_a_picture(image, number) for number, image in enumerate(images[: len(some)])]
    print(f"\n{len(some)} of them, turned by up to 20 degrees in pictures of 640x480\n")
    print("| finder, side of its crop | found | age MAE (years) | gender | race |\n|---|---|---|---|---|")
    crops = [face.crop(picture, 200) for picture, face in pictures]
    print(f"| none: as they were put in | {len(some)} | {_score(predictor, some, crops).cells()} |")
    for name in ("mtcnn", "haar"):
        finder = build_finder(name)  # type: ignore[arg-type]
        assert finder is not None
        found = [find_faces(finder, picture, 40, 1) for picture, _ in pictures]
        hits = [place for place, faces in enumerate(found) if faces]
        for margin in MARGINS:
            crops = [_scaled(found[place][0], margin).crop(pictures[place][0], 200) for place in hits]
            cells = _score(predictor, [some[place] for place in hits], crops).cells() if hits else "| |"
            print(f"| {name}, x {margin:.2f} | {len(hits)} | {cells} |", flush=True)


def _score(predictor: Predictor, members: Sequence[Sample], images: list[Image]) -> Score:
    answers = predictor(images)
    pairs = list(zip(answers, members, strict=True))
    share: Callable[[list[bool]], float] = lambda hits: 100 * statistics.mean(hits)  # noqa: E731
    return Score(
        statistics.mean(abs((answer.age or 0) - member.age) for answer, member in pairs),
        share([answer.gender == GENDERS[member.gender] for answer, member in pairs]),
        share([answer.race == RACES[member.race] for answer, member in pairs]),
    )


def _box(image: Image, right: float, down: float, scale: float) -> Image:
    side = len(image)
    return square((0.5 + right) * side, (0.5 + down) * side, scale * side).crop(image, 200)


def _scaled(face: Face, margin: float) -> Face:
    middle = (face.corners[1] + face.corners[2]) / 2
    return Face(middle + margin * (face.corners - middle))


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
