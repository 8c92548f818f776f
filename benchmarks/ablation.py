"""Ablation: what each ingredient of a recipe is worth, by the same training without it, on validation images.

Runs are kept in --output, and those that are there already are not repeated: a stopped call can be repeated.

python benchmarks/ablation.py --root UTKFace --output runs [--config FILE] [--epochs 12] [--seeds 1 2] [--only 1 3]
    [-- options of `fit` for all of them, like --data.image_size=64]
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from measure import machine

from agr_lightning.evaluation.figures import read_curves

# What is changed in training, and to what.
TRAINING: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "age: mean absolute error, not a distribution": ("--model.age_loss=l1", "--model.loss_weights.age=0.04"),
    "no label smoothing": ("--model.label_smoothing=0",),
    "light augmentation, not strong": ("--data.augmentation=light",),
    "default task weights": ("--model.loss_weights={age: 0.1, gender: 1.0, race: 1.0}",),
    "default weight decay (0.05)": ("--model.weight_decay=0.05",),
    "averaged weights (EMA)": ("--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.999"),
    "distilled from the shipped weights": ("--model.teachers=[agr]",),
}

# What is changed when the weights of the recipe are evaluated.
EVALUATION: dict[str, tuple[str, ...]] = {
    "no flip in evaluation": ("--model.tta_flip=false",),
    "age read as median, not mean": ("--model.age_readout=median",),
}
CHANGES = [*TRAINING, *EVALUATION]
METRICS = {"age_mae": "age MAE", "gender_acc": "gender", "race_acc": "race"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--output", required=True, help="folder for the runs")
    parser.add_argument("--config", default=str(Path(__file__).parents[1] / "configs/recipe.yaml"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", type=int, help="numbers of the changes, from 0, the recipe; default: all")
    parser.add_argument("options", nargs="*", help="options of fit for all runs, after --")
    chosen = parser.parse_args()
    numbers = sorted({0, *(chosen.only or range(len(CHANGES)))})
    found: dict[int, list[dict[str, float]]] = {number: [] for number in numbers}
    for seed in chosen.seeds:
        for number in numbers:
            found[number].append(_run(chosen, number, seed))
    about = " ".join([chosen.config, *chosen.options])
    print(f"\n{about}, {chosen.epochs} epochs, validation (n = {len(chosen.seeds)}, {machine()})\n")
    print("| change | " + " | ".join(f"{label} | difference" for label in METRICS.values()) + " |")
    print("|---" * (1 + 2 * len(METRICS)) + "|")
    for number in numbers:
        print(f"| {CHANGES[number]} | {' | '.join(_cells(found[number], found[0], m) for m in METRICS)} |")


def _run(chosen: argparse.Namespace, number: int, seed: int) -> dict[str, float]:
    """The validation metrics after the last epoch."""
    trained = Path(chosen.output).resolve() / f"change{number if number < len(TRAINING) else 0}_seed{seed}"
    run = trained / "lightning_logs" / "version_0"
    if number >= len(TRAINING):
        return _measure(run, EVALUATION[CHANGES[number]], trained.with_name(f"change{number}_seed{seed}"))
    if not (run / "figures").is_dir():  # what a finished training leaves
        options = ["--config", chosen.config, "--data.root", chosen.root, "--seed_everything", str(seed)]
        options += ["--trainer.max_epochs", str(chosen.epochs), "--trainer.enable_progress_bar", "false"]
        options += ["--test_after_fit", "false", "--trainer.default_root_dir", str(trained)]
        last = run / "checkpoints" / "last.ckpt"
        options += ["--ckpt_path", str(last)] if last.is_file() else []
        _call("fit", *options, *chosen.options, *TRAINING[CHANGES[number]])
    return _last(run)


def _measure(run: Path, options: tuple[str, ...], folder: Path) -> dict[str, float]:
    """The same of weights that are there, measured another way."""
    measured = folder / "lightning_logs" / "version_0"
    if not measured.is_dir():
        weights = ("--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
        _call("validate", *weights, *options, "--trainer.default_root_dir", str(folder))
    return _last(measured)


def _call(*options: str) -> None:
    done = subprocess.run([sys.executable, "-m", "agr_lightning", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _last(run: Path) -> dict[str, float]:
    curves = read_curves(run)
    return {metric: float(curves[f"val/{metric}"].iloc[-1]) for metric in METRICS}


def _cells(runs: list[dict[str, float]], base: list[dict[str, float]], metric: str) -> str:
    """The mean over seeds, and the mean and the range of the differences between runs of one seed."""
    scale, unit = (1.0, "") if metric == "age_mae" else (100.0, " %")
    value = statistics.mean(run[metric] for run in runs) * scale
    gaps = [(run[metric] - other[metric]) * scale for run, other in zip(runs, base, strict=True)]
    spread = f" ({min(gaps):+.2f} to {max(gaps):+.2f})" if len(gaps) > 1 else ""
    return f"{value:.2f}{unit} | {statistics.mean(gaps):+.2f}{spread}"


if __name__ == "__main__":
    main()
