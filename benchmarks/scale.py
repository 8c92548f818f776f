"""Time and memory of `audit` on large folders: parts of UTKFace's images, some mirrored, with noise.

python benchmarks/scale.py --root UTKFace [--sizes 20000 200000 500000]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import machine
from PIL import Image

from agr_lightning.data.cache import ImageCache
from agr_lightning.data.index import build_index

# Side of the images, and of the larger ones of which they are parts, pixels.
_SIDE, _WHOLE = 64, 80

# A command, and then what Linux says of its process.
_CHILD = "from agr_lightning.cli import main; main(); print(open('/proc/self/status').read())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000, 500_000])
    chosen = parser.parse_args()
    print(f"\naudit of images of {_SIDE} px ({machine()})\n\n| images | run | seconds | peak memory, MB |")
    print("|---|---|---|---|")
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as folder:
            _draw_parts(chosen.root, size, Path(folder))
            for run in ("first", "second"):
                seconds, memory = _audit(Path(folder))
                print(f"| {size:,} | {run} | {seconds:.0f} | {memory:,.0f} |", flush=True)


def _audit(folder: Path) -> tuple[float, float]:
    """Seconds, and the most memory in MB, of a process of its own."""
    command = [sys.executable, "-c", _CHILD, "audit", str(folder / "faces"), f"--cache_dir={folder}/cache"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, int(done.stdout.split("VmHWM:")[1].split()[0]) / 1000


def _draw_parts(root: str, size: int, folder: Path) -> None:
    """Writes so many parts of images, each at a place and with noise of its own."""
    index, random = build_index(root), np.random.default_rng(0)
    images = ImageCache(index, _WHOLE)
    images.fill(np.arange(len(index.samples)))
    (folder / "faces").mkdir()
    for number, row in enumerate(random.integers(0, len(index.samples), size)):
        top, left = random.integers(0, _WHOLE - _SIDE + 1, 2)
        part = images.read(np.array([row]))[0, top : top + _SIDE, left : left + _SIDE]
        part = (part[:, :: random.choice([-1, 1])] + random.normal(0, 4, part.shape)).clip(0, 255)
        sample = index.samples.iloc[row]
        name = f"{sample.age:.0f}_{sample.gender}_{max(sample.race, 0)}_{number:09}.jpg"
        Image.fromarray(part.astype(np.uint8)).save(folder / "faces" / name, quality=90)


if __name__ == "__main__":
    main()
