"""Seconds of training until MAE <= 6.8 years, gender >= 91 % and race >= 82 % on held-out test images.

Runs a whole recipe once for each seed, and reports the time of its training, and what the weights with the lowest
validation loss reach on the test images.

python benchmarks/time_to_accuracy.py --root UTKFace [--config configs/speed/cpu.yaml] [--seeds 1 2 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import machine

TARGET = {"age_mae": 6.8, "gender_acc": 0.91, "race_acc": 0.82}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--config", default=str(Path(__file__).parents[1] / "configs/speed/cpu.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    chosen = parser.parse_args()
    print(f"\n{chosen.config} ({machine()})\n")
    print(
        "| seed | training, s | whole command, s | age MAE | gender | race | reached |\n|---|---|---|---|---|---|---|"
    )
    rows = []
    for seed in chosen.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_run(chosen, seed, Path(folder)))
        print(_row(str(seed), rows[-1]), flush=True)
    if len(rows) > 1:
        print(_row("mean", {name: statistics.mean(row[name] for row in rows) for name in rows[0]}))
        print(_row("s. d.", {name: statistics.stdev(row[name] for row in rows) for name in rows[0]}, verdict=False))


def _run(chosen: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    options = ["--config", chosen.config, "--data.root", chosen.root, "--seed_everything", str(seed)]
    options += ["--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "agr_lightning", "fit", *options], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "lightning_logs/version_0/results.json").read_text())
    metrics = {name: results["metrics"][name] for name in TARGET}
    return {"training": results["training_seconds"], "whole": seconds} | metrics


def _row(name: str, row: dict[str, float], verdict: bool = True) -> str:
    reached = row["age_mae"] <= TARGET["age_mae"] and all(row[n] >= TARGET[n] for n in ("gender_acc", "race_acc"))
    figures = f"{row['training']:.0f} | {row['whole']:.0f} | {row['age_mae']:.2f} | "
    figures += f"{row['gender_acc']:.1%} | {row['race_acc']:.1%}"
    return f"| {name} | {figures} | {('yes' if reached else 'no') if verdict else ''} |"


if __name__ == "__main__":
    main()
