"""`test` against a bare loop of forward passes with the same network, batches and precision.

Also what the report at the end takes: gathering, intervals, groups, results.json and figures; its share of the time of
the whole command, as it is typed, and of the forward passes alone.

python benchmarks/test_overhead.py [--root UTKFace] [--images 2000] [--precision bf16-mixed] [--repeats 7]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import USE_STOPWATCH, Stopwatch, in_turns, per_second, quietly, repeated, show, silence, wait_for_device

from agr_lightning.datamodule import UTKFaceDataModule
from agr_lightning.module import AGRModule

_COMMAND = """
import sys, time
start = time.perf_counter()
from agr_lightning.cli import main
main(sys.argv[1:])
end = time.perf_counter()
from measure import Stopwatch
print(end - start, Stopwatch.times[-1] - Stopwatch.times[0], end - Stopwatch.times[-1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of UTKFace images; without it, drawn cards")
    parser.add_argument("--images", type=int, default=2000, help="size of the test set")
    parser.add_argument("--backbone", default="agr_cnn")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed", "16-mixed"])
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args()
    silence()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        options = [f"--data.root={chosen.root}"] if chosen.root else [f"--data.synthetic={chosen.images}"]
        options += [f"--model.backbone={chosen.backbone}", "--data.image_size=128", "--trainer.max_steps=5"]
        # Of few images, since a test leaves those out that were trained on.
        options += ["--data.max_samples=10", "--data.val_fraction=0.2"]
        quietly("fit", *options, "--trainer.limit_val_batches=2", "--test_after_fit=false")
        images = str(repeated(chosen.root, chosen.images, Path("images").resolve()))

        def rate(loop: Callable[[argparse.Namespace, str], list[float]]) -> Callable[[], float]:
            return lambda: per_second(loop(chosen, images), chosen.batch_size, 3)

        found = in_turns({"bare forward passes": rate(bare), "test": rate(through_test)}, chosen.repeats)
        whole, forward, after = zip(*(command(chosen, images) for _ in range(chosen.repeats)), strict=True)
    title = f"Testing {chosen.backbone} at 128 px, {chosen.precision}, batches of {chosen.batch_size}"
    show(title, found, "images a second", "bare forward passes")
    print(
        f"\nAfter the last batch of {chosen.images:,} images, for intervals, groups, files and figures: "
        f"{statistics.median(after):.2f} s. This is {_share(after, whole)} of the time of the whole command, and "
        f"{_share(after, forward)} of that of the forward passes."
    )


def _share(part: Sequence[float], whole: Sequence[float]) -> str:
    shares = sorted(a / b for a, b in zip(part, whole, strict=True))
    return f"{statistics.median(shares):.1%} ({shares[0]:.1%} to {shares[-1]:.1%})"


def bare(chosen: argparse.Namespace, images: str) -> list[float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = UTKFaceDataModule(test_root=images, batch_size=chosen.batch_size, num_workers=chosen.num_workers)
    data.setup("test")
    network = AGRModule(backbone=chosen.backbone).network.to(device).eval()
    dtype = torch.float16 if chosen.precision == "16-mixed" else torch.bfloat16
    times = []
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=chosen.precision != "32-true"):
        for batch in data.test_dataloader():
            network.predict(batch.images.to(device, non_blocking=True))
            times.append(time.perf_counter())
    wait_for_device()
    times[-1] = time.perf_counter()
    return times


def through_test(chosen: argparse.Namespace, images: str) -> list[float]:
    quietly(*_test(chosen, images), USE_STOPWATCH)
    return Stopwatch.times


def command(chosen: argparse.Namespace, images: str) -> list[float]:
    """Seconds of the command in a process of its own: all of it, its forward passes, and what comes after them."""
    arguments = [sys.executable, "-c", _COMMAND, *_test(chosen, images), USE_STOPWATCH]
    paths = {"PYTHONPATH": str(Path(__file__).parent)}
    output = subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ | paths).stdout
    return [float(seconds) for seconds in output.splitlines()[-1].split()]


def _test(chosen: argparse.Namespace, images: str) -> list[str]:
    return [
        *("test", "--ckpt_path=last", f"--data.test_root={images}", f"--data.batch_size={chosen.batch_size}"),
        *(f"--data.num_workers={chosen.num_workers}", f"--trainer.precision={chosen.precision}"),
    ]


if __name__ == "__main__":
    main()
