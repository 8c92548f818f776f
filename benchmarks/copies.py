"""Time and memory of the search for copies, on parts of UTKFace's images, mirrored, with noise.

python benchmarks/copies.py --root UTKFace [--sizes 20000 200000 500000]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from measure import machine
from numpy.typing import NDArray

from agr_lightning.data.cache import ImageCache
from agr_lightning.data.duplicates import THUMBNAIL, find_groups
from agr_lightning.data.index import build_index

# Side of the images of which a part as large as a thumbnail is taken, pixels.
_SIDE = 2 * THUMBNAIL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000, 500_000])
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.size is not None:
        _search(chosen.root, chosen.size)
        return
    print(f"\nSearch for copies ({machine()})\n\n| images | groups | seconds | more memory, MB | thumbnails, MB |")
    print("|---|---|---|---|---|")
    for size in chosen.sizes:
        command = [sys.executable, __file__, "--root", chosen.root, "--size", str(size)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1], flush=True)


def _search(root: str, size: int) -> None:
    thumbnails = _thumbnails(root, size)
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is held now
    before, start = _most_memory(), time.perf_counter()
    groups = find_groups(thumbnails, np.arange(size).astype(str))
    seconds = time.perf_counter() - start
    more = _most_memory() - before
    print(f"| {size:,} | {len(np.unique(groups)):,} | {seconds:.0f} | {more:,.0f} | {thumbnails.nbytes / 1e6:,.0f} |")


def _most_memory() -> float:
    """In MB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def _thumbnails(root: str, size: int) -> NDArray[np.uint8]:
    """Another part for each batch, so that most show something of their own, as the images of a large data set do."""
    index, random = build_index(root), np.random.default_rng(0)
    images, found = ImageCache(index, _SIDE), np.empty((size, THUMBNAIL, THUMBNAIL), np.uint8)
    images.fill(np.arange(len(index.samples)))
    for start in range(0, size, 4096):
        rows = random.integers(0, len(index.samples), min(4096, size - start))
        faces = images.read(rows).mean(3)
        faces = np.where(random.random((len(rows), 1, 1)) < 0.5, faces, faces[:, :, ::-1])
        top, left = random.integers(0, _SIDE - THUMBNAIL + 1, 2)
        part = faces[:, top : top + THUMBNAIL, left : left + THUMBNAIL]
        found[start : start + len(rows)] = (part + random.normal(0, 4, part.shape)).clip(0, 255)
    return found


if __name__ == "__main__":
    main()
