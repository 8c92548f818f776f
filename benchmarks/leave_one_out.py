"""What each ingredient of a recipe is worth: the same training without it, measured on validation images.

Runs are kept in --output, and those that are there already are not repeated: a stopped call can be called again.

python benchmarks/leave_one_out.py --root UTKFace --output runs [--config FILE] [--epochs 12] [--seeds 1 2] [--only 1 3]
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from measure import machine

from agr_lightning.evaluation.curves import read_curves

# What is changed, and to what.
CHANGES: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "age: mean absolute error, not a distribution": ("--model.age_loss=l1", "--model.loss_weights.age=0.04"),
    "age read as median, not mean": ("--model.age_readout=median",),
    "no label smoothing": ("--model.label_smoothing=0",),
    "light augmentation, not strong": ("--data.augmentation=light",),
    "default task weights": ("--model.loss_weights={age: 0.1, gender: 1.0, race: 1.0}",),
    "mirror images in evaluation": ("--model.mirror=true",),
    "averaged weights (EMA)": ("--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.999"),
    "20 % smaller images": ("--data.image_size=76",),
}
METRICS = {"age_mae": "age MAE", "gender_acc": "gender", "race_acc": "race"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--output", required=True, help="folder for the runs")
    parser.add_argument("--config", default=str(Path(__file__).parents[1] / "configs/recipe.yaml"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", type=int, help="numbers of the changes, from 0, the recipe; default: all")
    chosen = parser.parse_args()
    numbers = sorted({0, *(chosen.only or range(len(CHANGES)))})
    found: dict[int, list[dict[str, float]]] = {number: [] for number in numbers}
    for seed in chosen.seeds:
        for number in numbers:
            found[number].append(_run(chosen, number, seed))
    print(f"\n{chosen.config}, {chosen.epochs} epochs, validation (n = {len(chosen.seeds)}, {machine()})\n")
    print("| change | " + " | ".join(f"{label} | difference" for label in METRICS.values()) + " |")
    print("|---" * (1 + 2 * len(METRICS)) + "|")
    for number in numbers:
        print(f"| {list(CHANGES)[number]} | {' | '.join(_cells(found[number], found[0], m) for m in METRICS)} |")


def _run(chosen: argparse.Namespace, number: int, seed: int) -> dict[str, float]:
    """The validation metrics after the last epoch."""
    folder = Path(chosen.output).resolve() / f"change{number}_seed{seed}_epochs{chosen.epochs}"
    run = folder / "lightning_logs" / "version_0"
    if not (run / "figures").is_dir():  # what a finished training leaves
        options = ["--config", chosen.config, "--data.root", chosen.root, "--seed_everything", str(seed)]
        options += ["--trainer.max_epochs", str(chosen.epochs), "--trainer.enable_progress_bar", "false"]
        options += ["--test_after_fit", "false", "--trainer.default_root_dir", str(folder)]
        last = run / "checkpoints" / "last.ckpt"
        options += ["--ckpt_path", str(last)] if last.is_file() else []
        command = [sys.executable, "-m", "agr_lightning", "fit", *options, *list(CHANGES.values())[number]]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    curves = read_curves(run)
    return {metric: float(curves[f"val/{metric}"].values[-1]) for metric in METRICS}


def _cells(runs: list[dict[str, float]], base: list[dict[str, float]], metric: str) -> str:
    """The mean over seeds, and the mean and the range of the differences between runs of one seed."""
    scale, unit = (1.0, "") if metric == "age_mae" else (100.0, " %")
    value = statistics.mean(run[metric] for run in runs) * scale
    gaps = [(run[metric] - other[metric]) * scale for run, other in zip(runs, base, strict=True)]
    spread = f" ({min(gaps):+.2f} to {max(gaps):+.2f})" if len(gaps) > 1 else ""
    return f"{value:.2f}{unit} | {statistics.mean(gaps):+.2f}{spread}"


if __name__ == "__main__":
    main()
