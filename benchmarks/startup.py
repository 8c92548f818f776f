"""What a command takes before it does anything: `--help`, `fit --help`, and a second `fit` until its first step.

python benchmarks/startup.py [--root UTKFace] [--images 24000] [--repeats 5]
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import in_turns, machine, repeated, seconds

COMMAND = (sys.executable, "-m", "agr_lightning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of UTKFace images; without it, drawn cards")
    parser.add_argument("--images", type=int, default=24_000, help="in the folder of the second fit")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        root = repeated(chosen.root, chosen.images, Path(folder) / "faces")
        fit = [*COMMAND, "fit", f"--data.root={root}", f"--trainer.default_root_dir={folder}", "--data.num_workers=0"]
        one_step = [*fit, "--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--test_after_fit=false"]
        alternatives: dict[str, Callable[[], float]] = {
            "the interpreter": lambda: seconds(sys.executable, "-c", "pass"),
            "--help": lambda: seconds(*COMMAND, "--help"),
            "import lightning": lambda: seconds(sys.executable, "-c", "import lightning"),
            "fit --help": lambda: seconds(*COMMAND, "fit", "--help"),
            f"second fit, one step, {chosen.images:,} images": lambda: seconds(*one_step),
        }
        seconds(*one_step)  # reads the images
        found = in_turns(alternatives, chosen.repeats)
    above = {"--help": "the interpreter", "fit --help": "import lightning"}
    above[list(found)[-1]] = "import lightning"
    print(f"\nStart-up, whole processes (n = {chosen.repeats}, {machine()})\n")
    print("| | seconds | beyond | seconds beyond it | spread |\n|---|---|---|---|---|")
    for name, values in found.items():
        base = above.get(name, "")
        more = sorted(value - b for value, b in zip(values, found[base], strict=True)) if base else []
        cells = f"{base} | {more[len(more) // 2]:.2f} | {more[0]:.2f} to {more[-1]:.2f}" if more else " | |"
        print(f"| {name} | {sorted(values)[len(values) // 2]:.2f} | {cells} |")


if __name__ == "__main__":
    main()
