"""`predict` on a folder of face crops, from file to predictions.csv, against forward passes on ready arrays.

python benchmarks/predict.py [--root UTKFace] [--images 2000] [--num_workers 0] [--repeats 7]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import USE_STOPWATCH, Stopwatch, in_turns, per_second, quietly, show, silence, wait_for_device

from agr_lightning.data.cards import draw_cards
from agr_lightning.data.index import build_index
from agr_lightning.module import AGRModule

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of UTKFace images; without it, drawn cards")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args()
    silence()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        photos = Path("photos")
        photos.mkdir()
        samples = build_index(chosen.root or str(draw_cards(chosen.images, 0))).samples
        for sample in list(samples)[: chosen.images]:
            (photos / sample.name).symlink_to(sample.path)
        quietly("fit", "--data.synthetic=120", "--trainer.max_steps=5", "--test_after_fit=false")

        def command() -> list[float]:
            quietly(
                *("predict", "--ckpt_path=last", "--data.predict_path=photos", f"--data.batch_size={BATCH}"),
                *(f"--data.num_workers={chosen.num_workers}", USE_STOPWATCH),
            )
            return Stopwatch.times

        def rate(loop: Callable[[], list[float]]) -> Callable[[], float]:
            return lambda: per_second(loop(), BATCH, 3)

        sides = {"forward passes on ready arrays": rate(lambda: bare(chosen.images)), "predict": rate(command)}
        found = in_turns(sides, chosen.repeats)
    show(f"Predicting agr_cnn at 128 px, {chosen.num_workers} workers", found, "images a second", next(iter(sides)))


def bare(images: int) -> list[float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = AGRModule().network.to(device).eval()
    batch = torch.randint(0, 256, (BATCH, 128, 128, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    times = []
    with torch.inference_mode():
        for _ in range(images // BATCH):
            network.predict(batch)
            times.append(time.perf_counter())
    wait_for_device()
    times[-1] = time.perf_counter()
    return times


if __name__ == "__main__":
    main()
