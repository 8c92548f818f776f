"""`predict` on face crops against onnxruntime on ready arrays; its first answer; its memory over many photos.

python benchmarks/predict.py [--root UTKFace] [--images 2000] [--many 10000] [--repeats 7]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import in_turns, machine, quietly, repeated, seconds, show, silence
from PIL import Image

from agr_lightning.checkpoints import SHIPPED
from agr_lightning.images import read_rgb, resize
from agr_lightning.inference.predictor import load_onnx

BATCH = 64
COMMAND = (sys.executable, "-m", "agr_lightning", "predict", "--data.predict_path")

# Prints the most memory that a process has had, in MB. resource.getrusage counts the process that started it as well.
PEAK = """
import sys
from agr_lightning.cli import main
assert main(sys.argv[1:]) == 0
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of UTKFace images; without it, drawn cards")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--many", type=int, default=10_000, help="photos for the comparison of memory")
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args()
    silence()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        repeated(chosen.root, chosen.images, Path("photos"))
        quietly("export", "--output", "faces.onnx")
        _show_rates(chosen.images, chosen.repeats)
        _show_first_answers(chosen.repeats)
        _show_memory(chosen)


def _show_rates(count: int, repeats: int) -> None:
    engine, size, *_ = load_onnx(Path("faces.onnx"))
    some = np.stack([resize(read_rgb(path), size) for path in sorted(Path("photos").iterdir())[:BATCH]])
    engine(some)

    def bare() -> float:
        start = time.perf_counter()
        for _ in range(count // BATCH):
            engine(some)
        return count // BATCH * BATCH / (time.perf_counter() - start)

    def command() -> float:
        start = time.perf_counter()
        quietly("predict", "--ckpt_path=faces.onnx", "--data.predict_path=photos", "--faces=none")
        return count / (time.perf_counter() - start)

    found = in_turns({"onnxruntime on ready arrays": bare, "predict, from files to predictions.csv": command}, repeats)
    show(f"Predicting {count:,} crops", found, "images a second", "onnxruntime on ready arrays")


def _show_first_answers(repeats: int) -> None:
    photo = "photo.jpg"  # of 1.2 megapixels, with a face in it
    face = resize(read_rgb(sorted(Path("photos").iterdir())[0]), 300)
    Image.fromarray(np.pad(face, ((330, 330), (490, 490), (0, 0)), "edge")).save(photo)
    alternatives: dict[str, Callable[[], float]] = {
        "import torch": lambda: seconds(sys.executable, "-c", "import torch"),
        "predict": lambda: seconds(*COMMAND, photo),
        "predict --faces none": lambda: seconds(*COMMAND, photo, "--faces=none"),
        "... with weights of torch": lambda: seconds(*COMMAND, photo, "--faces=none", f"--ckpt_path={SHIPPED['agr']}"),
    }
    found = in_turns(alternatives, repeats)
    base = next(iter(found))
    print(f"\nFirst answer of a cold process, one photo (n = {repeats}, {machine()})\n")
    print(f"| | seconds | ratio to {base} | spread |\n|---|---|---|---|")
    for name, values in found.items():
        ratios = sorted(value / other for value, other in zip(values, found[base], strict=True))
        middle = statistics.median(ratios)
        print(f"| {name} | {statistics.median(values):.2f} | {middle:.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |")


def _show_memory(chosen: argparse.Namespace) -> None:
    print("\nMost memory of `predict`\n\n| photos | MB |\n|---|---|")
    for count in (chosen.many // 10, chosen.many):
        photos = repeated(chosen.root, count, Path(f"many{count}"))
        options = ("predict", "--data.predict_path", str(photos), "--faces=centerface")
        done = subprocess.run([sys.executable, "-c", PEAK, *options], check=True, capture_output=True, text=True)
        print(f"| {count:,} | {float(done.stdout.splitlines()[-1]):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
