"""Resident memory of `fit` on data sets of growing size, made of the same images by repetition.

python benchmarks/memory.py [--sizes 2000 20000 200000] [--image_size 32] [--num_workers 0]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from measure import machine, repeated


class Resident(Callback):
    """Prints what this process holds in memory when training ends."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print("RESIDENT", *(fields[name].split()[0] for name in ("VmRSS", "RssAnon", "VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 20_000, 200_000])
    parser.add_argument("--image_size", type=int, default=32, help="200,000 images take 614 MB of disk at 32 px")
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    chosen = parser.parse_args()
    print(f"\nMemory of fit, {chosen.steps} steps of 64 images at {chosen.image_size} px ({machine()})\n")
    print("| images | run | resident, MB | of it not shared with files | peak, MB |\n|---|---|---|---|---|")
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as folder:
            root = repeated(None, size, Path(folder) / "faces")
            for run in ("first", "second"):
                print(f"| {size:,} | {run} | " + " | ".join(_measure(chosen, root, folder)) + " |", flush=True)


def _measure(chosen: argparse.Namespace, root: Path, folder: str) -> list[str]:
    options = [f"--data.root={root}", f"--data.cache_dir={folder}", f"--data.image_size={chosen.image_size}"]
    options += [f"--data.num_workers={chosen.num_workers}", f"--trainer.max_steps={chosen.steps}"]
    options += [f"--trainer.default_root_dir={folder}", "--trainer.limit_val_batches=0", "--test_after_fit=false"]
    options += ["--trainer.callbacks=[{class_path: memory.Resident}]", "--trainer.enable_progress_bar=false"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "agr_lightning", "fit", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESIDENT"))
    return [f"{int(kilobytes) / 1000:,.0f}" for kilobytes in line.split()[1:]]


if __name__ == "__main__":
    main()
