"""How many changed images are recognised as photos that are known, and how many others are taken for them.

python benchmarks/identity.py --root UTKFace
"""

import argparse
import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from agr_lightning.data.duplicates import COPY_BITS, THUMBNAIL, are_known, fingerprints, of_samples
from agr_lightning.data.index import build_index
from agr_lightning.images import decode_photo

Change = Callable[[Image.Image], Image.Image]


def _saved(image: Image.Image, format: str, **options: int) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


# What is done to a picture, and the file that it is written to.
CHANGES: dict[str, tuple[Change, str, int]] = {
    "PNG": (lambda image: image, "PNG", 0),
    "JPEG, quality 95": (lambda image: image, "JPEG", 95),
    "JPEG, quality 20": (lambda image: image, "JPEG", 20),
    "400 pixels": (lambda image: image.resize((400, 400)), "PNG", 0),
    "64 pixels": (lambda image: image.resize((64, 64)), "PNG", 0),
    "48 pixels, JPEG, quality 75": (lambda image: image.resize((48, 48)), "JPEG", 75),
    "grey": (lambda image: image.convert("L"), "JPEG", 75),
    "35 % of the brightness": (lambda image: ImageEnhance.Brightness(image).enhance(0.35), "JPEG", 75),
    "130 % of the brightness": (lambda image: ImageEnhance.Brightness(image).enhance(1.3), "JPEG", 75),
    "1 % of each edge cut off": (lambda image: ImageOps.crop(image, image.width // 100), "JPEG", 75),
    "2.5 % of each edge cut off": (lambda image: ImageOps.crop(image, image.width // 40), "JPEG", 75),
    "mirrored": (ImageOps.mirror, "JPEG", 75),
}


def _fingerprint(content: bytes) -> NDArray[np.uint8]:
    gray = Image.fromarray(decode_photo(content, draft=2 * THUMBNAIL)[0]).convert("L")
    return fingerprints(np.asarray(gray.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))[None])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--images", type=int, default=1500)
    chosen = parser.parse_args()
    index = build_index(chosen.root)
    samples, known = index.samples, of_samples(index.samples)
    some = np.random.default_rng(0).permutation(len(samples))[: chosen.images]
    print(f"\n{len(some):,} changed images\n\n| change | recognised |\n|---|---|")
    for name, (change, format, quality) in CHANGES.items():
        options = {"quality": quality} if quality else {}
        images = (Image.open(index.folder / samples["file"][row]).convert("RGB") for row in some)
        found = [_fingerprint(_saved(change(image), format, **options)) for image in images]
        differing = np.bitwise_count(np.array(found) ^ known[some]).sum(1)
        print(f"| {name} | {(differing <= COPY_BITS).mean():.1%} |", flush=True)
    groups = samples["group"].to_numpy()
    others = [are_known(known[row : row + 1], known[groups != groups[row]])[0] for row in range(len(samples))]
    print(f"\n{sum(others):,} of {len(samples):,} images are near another one that is no copy by their pixels.")


if __name__ == "__main__":
    main()
