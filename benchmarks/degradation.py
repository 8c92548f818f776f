"""What bad photos cost: UTKFace's crops blurred, compressed, small, dark, noisy and grey.

python benchmarks/degradation.py --root UTKFace [--ckpt_path FILE] [--images 1000]
"""

import argparse
import io
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from score import score, unseen

from agr_lightning.images import decode_photo, resize
from agr_lightning.inference.predictor import Predictor

Image = NDArray[np.uint8]


def blurred(image: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)


def compressed(image: Image, quality: int) -> Image:
    PillowImage.fromarray(image).save(content := io.BytesIO(), "JPEG", quality=quality)
    return decode_photo(content.getvalue())[0]


def shrunk(image: Image, side: int) -> Image:
    return resize(resize(image, side), 200)


def darkened(image: Image, share: float) -> Image:
    return np.asarray(np.round(image * share), np.uint8)


def noisy(image: Image, sigma: float) -> Image:
    noise = np.random.default_rng(int(image.sum())).normal(0, sigma, image.shape)
    return np.asarray((image + noise).round().clip(0, 255), np.uint8)


def grey(image: Image) -> Image:
    return np.asarray(PillowImage.fromarray(image).convert("L").convert("RGB"))


# In pixels of crops of 200x200, where it matters.
ROWS: dict[str, Callable[[Image], Image]] = {
    "intact": np.asarray,
    **{f"blurred, sigma {sigma} px": partial(blurred, sigma=sigma) for sigma in (1, 2, 3, 4, 6, 8)},
    **{f"JPEG, quality {quality}": partial(compressed, quality=quality) for quality in (50, 30, 20, 10)},
    **{f"shrunk to {side} px": partial(shrunk, side=side) for side in (200, 100, 64, 48, 32, 24)},
    **{f"{percent} % of the brightness": partial(darkened, share=percent / 100) for percent in (70, 50, 35, 20)},
    **{f"noise, sigma {sigma} of 255": partial(noisy, sigma=sigma) for sigma in (5, 10, 20, 40)},
    "grey": grey,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--ckpt_path", help="default: the shipped weights agr")
    parser.add_argument("--images", type=int, default=1000)
    chosen = parser.parse_args()
    samples, images = unseen(chosen.root, [chosen.ckpt_path], chosen.images)
    images = [resize(image, 200) for image in images]
    predictor = Predictor.load(chosen.ckpt_path)

    print(f"\n{len(images):,} images that {predictor.source} has not seen\n")
    print("| crop | age MAE (years) | gender | race |\n|---|---|---|---|")
    for name, degraded in ROWS.items():
        print(f"| {name} | {score(predictor, samples, [degraded(image) for image in images]).cells()} |", flush=True)


if __name__ == "__main__":
    main()
