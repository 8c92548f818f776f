"""Fine-tuning: what a few images of one's own kind are worth, on real faces unlike UTKFace's: grey, blurred and dark.

They are made of images that the shipped network has not seen. In each draw the networks learn from some of them, and
are tested on all others, changed the same way; the fine-tuned one on the others as they were too, for what it forgets.
Intervals are over images, of the mean of the draws.

python benchmarks/finetune.py --root UTKFace [--images 300] [--draws 3] [--only 3] [--output runs]
    [-- options of `fit` for all trainings, like --trainer.max_epochs=1]
"""

import argparse
import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from degradation import Image, blurred, darkened, grey
from measure import machine, quietly
from PIL import Image as PillowImage
from score import unseen

from agr_lightning.evaluation.results import percentiles, resample
from agr_lightning.images import resize
from agr_lightning.inference.predictor import Predictor
from agr_lightning.labels import GENDERS, RACES

CONFIGS = Path(__file__).parents[1] / "configs"

# In pixels of crops of 200x200. The last is what a cheap camera sees at night.
Change = Callable[[Image], Image]
CHANGES: dict[str, Change] = {
    "grey": grey,
    "blurred, sigma 3 px": partial(blurred, sigma=3),
    "35 % of the brightness": partial(darkened, share=0.35),
    "all three": lambda image: darkened(blurred(grey(image), 3), 0.35),
}
SHIPPED, TUNED, SCRATCH, UNCHANGED = "shipped", "fine-tuned", "from scratch", ", unchanged images"
TRAININGS = {
    TUNED: ("--config", str(CONFIGS / "finetune.yaml")),
    # The recipe, with what was best for so few of other images among 60 to 200 epochs at 0.001 and 0.003.
    SCRATCH: (
        *("--config", str(CONFIGS / "recipe.yaml"), "--trainer.precision=32-true", "--trainer.max_epochs=150"),
        *("--model.learning_rate=1e-3", "--data.augmentation=light", "--data.batch_size=32", "--data.val_fraction=0.2"),
    ),
}
METRICS = ["age MAE (years)", "gender", "race", "80 % age interval holds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of UTKFace images")
    parser.add_argument("--images", type=int, default=300, help="to train and validate on")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--only", nargs="+", type=int, default=[0, 1, 2, 3], help="numbers of the changes, from 0")
    parser.add_argument("--output", help="folder for the runs, where those that are finished are not repeated")
    parser.add_argument("options", nargs="*", help="options of fit for all trainings, after --")
    chosen = parser.parse_args()
    samples, images = unseen(chosen.root, ["agr"])
    samples = samples.assign(image=[resize(image, 200) for image in images]).drop_duplicates("group")
    names, errors = [[*CHANGES][number] for number in chosen.only], []
    with tempfile.TemporaryDirectory() as temporary:
        for name, draw in itertools.product(names, range(chosen.draws)):
            folder = Path(chosen.output or temporary).resolve() / name.replace(" ", "_") / str(draw)
            shuffled = samples.sample(frac=1, random_state=draw)
            learned, tested = shuffled.iloc[: chosen.images], shuffled.iloc[chosen.images :]
            predictors = {SHIPPED: Predictor.load()}
            for network, trained_with in TRAININGS.items():
                options = (*trained_with, *chosen.options)
                predictors[network] = _train(learned, CHANGES[name], options, draw, folder / network)
            found = {each: _errors(predictor, tested, CHANGES[name]) for each, predictor in predictors.items()}
            found |= {each + UNCHANGED: _errors(predictors[each], tested, np.asarray) for each in (SHIPPED, TUNED)}
            errors += [rows.assign(name=name, draw=draw, network=network) for network, rows in found.items()]
    print(f"\n{chosen.images} images, {len(tested):,} to test, {chosen.draws} draws, {machine()}\n")
    _print(pd.concat(errors))


def _train(learned: pd.DataFrame, change: Change, options: Sequence[str], seed: int, folder: Path) -> Predictor:
    """The network that learned from the images."""
    run = folder / "lightning_logs" / "version_0"
    if not (run / "figures").is_dir():  # what a finished training leaves
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "images").mkdir(parents=True)
        for file, image in zip(learned["file"], learned["image"], strict=True):
            PillowImage.fromarray(change(image)).save(folder / "images" / f"{Path(file).name.split('.')[0]}.png")
        places = ("--data.root", str(folder / "images"), "--trainer.default_root_dir", str(folder))
        quietly("fit", *options, *places, "--data.test_fraction=0", "--seed_everything", str(seed))
    return Predictor.load(run)


def _errors(predictor: Predictor, tested: pd.DataFrame, change: Change) -> pd.DataFrame:
    """A row an image, with the columns ``METRICS``; the index is the sample's."""
    answers = predictor([change(image) for image in tested["image"]])
    rows = [
        (
            abs((answer.age or 0) - sample.age),
            answer.gender == GENDERS[sample.gender],
            answer.race == RACES[sample.race],
            answer.age_low is not None
            and answer.age_high is not None
            and answer.age_low <= sample.age <= answer.age_high,
        )
        for answer, sample in zip(answers, tested.itertuples(), strict=True)
    ]
    return pd.DataFrame(rows, tested.index, METRICS, float)


def _print(errors: pd.DataFrame) -> None:
    """Two tables: what each network reaches, and the differences on the same images."""
    head = " | ".join(METRICS)
    print(f"| images | network | {head} |\n{'|---' * (2 + len(METRICS))}|")
    for (name, network), rows in errors.groupby(["name", "network"], sort=False):
        print(f"| {name} | {network} | {_cells(rows[METRICS], '')} |")
    print(f"\n| images | difference | {head} | of age, by draw |\n{'|---' * (3 + len(METRICS))}|")
    for name, rows in errors.groupby("name", sort=False):
        for one, other in ((TUNED, SHIPPED), (TUNED, SCRATCH), (TUNED + UNCHANGED, SHIPPED + UNCHANGED)):
            first, second = (rows[rows["network"] == network] for network in (one, other))
            gaps = first[METRICS] - second[METRICS]
            draws = gaps[METRICS[0]].groupby(first["draw"].to_numpy()).mean()
            print(f"| {name} | {one} less {other} | {_cells(gaps, '+')} | {draws.min():+.2f} to {draws.max():+.2f} |")


def _cells(errors: pd.DataFrame, sign: str) -> str:
    """The mean of each column, with its 95 % interval over images."""
    weights = resample(errors.index)
    cells = []
    for found in errors.to_numpy().T @ weights / weights.sum(0):
        digits, scale, unit = (1, 100, " %") if cells else (2, 1, "")
        low, high = percentiles(scale * found[1:]) or (math.nan, math.nan)
        cells.append(f"{scale * found[0]:{sign}.{digits}f}{unit} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
