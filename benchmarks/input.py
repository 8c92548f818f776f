"""Images a second and core from the input pipeline, against the usual way and against copying ready arrays.

python benchmarks/input.py [--root UTKFace] [--images 2000] [--size 128] [--seconds 1.5] [--repeats 7]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measure import in_turns, repeated, show
from PIL import Image
from torchvision.transforms import v2

from agr_lightning.data.cache import ImageCache
from agr_lightning.data.index import build_index
from agr_lightning.data.loading import Draw, FaceDataset
from agr_lightning.data.transforms import Augmentation

BATCH = 64
PRESETS = ("strong", "light", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of UTKFace images; without it, drawn cards")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        index = build_index(str(repeated(chosen.root, chosen.images, Path(cache) / "images")), cache)
        files = [index.folder / file for file in index.samples["file"]]
        images, rows = ImageCache(index, chosen.size), np.arange(len(index.samples))
        images.fill(rows)
        ready = images.read(rows)
        usual = v2.Compose(
            [
                v2.Resize((chosen.size, chosen.size)),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.RandomAffine(10, (0.05, 0.05), (0.9, 1.1))], 0.7),
                v2.RandomApply([v2.ColorJitter(0.2, 0.2)], 0.5),
                v2.PILToTensor(),
            ]
        )

        def the_usual_way(indices: list[int]) -> object:
            return torch.stack([usual(Image.open(files[i]).convert("RGB")) for i in indices])

        pipelines: dict[str, Callable[[list[int]], object]] = {"PIL and torchvision, file by file": the_usual_way}
        for preset in PRESETS:
            pipelines[f"this project, {preset}"] = _pipeline(
                FaceDataset(index.samples, images, None if preset == "none" else Augmentation(preset, chosen.size))
            )
        pipelines["copies of ready arrays"] = lambda indices: ready[indices]
        rates = {name: _rate(pipeline, len(files), chosen.seconds) for name, pipeline in pipelines.items()}
        found = in_turns(rates, chosen.repeats)
    show(f"Input at {chosen.size} px, one core", found, "images a second", next(iter(pipelines)))


def _pipeline(dataset: FaceDataset) -> Callable[[list[int]], object]:
    positions = iter(range(10**9))
    return lambda indices: dataset.__getitems__([Draw(0, next(positions), index) for index in indices])


def _rate(pipeline: Callable[[list[int]], object], size: int, seconds: float) -> Callable[[], float]:
    batches = _batches(size)

    def measure() -> float:
        pipeline(next(batches))
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            pipeline(next(batches))
            done += BATCH
        return done / (time.perf_counter() - start)

    return measure


def _batches(size: int) -> Iterator[list[int]]:
    random = np.random.default_rng(0)
    while True:
        yield random.integers(0, size, BATCH).tolist()


if __name__ == "__main__":
    main()
