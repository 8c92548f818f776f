"""What the benchmarks of accuracy share: images that no network has seen, and the errors on them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agr_lightning.checkpoints import load_trained
from agr_lightning.data.duplicates import are_known, of_samples
from agr_lightning.data.index import build_index
from agr_lightning.images import read_rgb
from agr_lightning.inference.predictor import Predictor
from agr_lightning.labels import GENDERS, MISSING, RACES, TASKS


@dataclass(frozen=True)
class Score:
    age: float
    gender: float
    race: float

    def cells(self) -> str:
        return f"{self.age:.2f} | {self.gender:.1f} % | {self.race:.1f} %"


def unseen(
    root: str, checkpoints: Sequence[str | None], count: int | None = None
) -> tuple[pd.DataFrame, list[NDArray[np.uint8]]]:
    """Labelled samples whose photos none of the networks has seen, shuffled; ``count`` at most; and their images."""
    index = build_index(root)
    samples = index.samples[(index.samples[[*TASKS]] != MISSING).all(axis=1)]
    for trained in map(load_trained, checkpoints):
        assert trained.seen is not None, trained.name
        seen = are_known(of_samples(samples), np.concatenate([*trained.seen.values()]))
        samples = samples[~samples["group"].isin(samples["group"][seen])]
    samples = samples.iloc[np.random.default_rng(0).permutation(len(samples))[:count]]
    return samples, [read_rgb(index.folder / file) for file in samples["file"]]


def score(predictor: Predictor, samples: pd.DataFrame, images: Sequence[NDArray[np.uint8]]) -> Score:
    pairs = list(zip(predictor(images), samples.itertuples(), strict=True))
    return Score(
        statistics.mean(abs((answer.age or 0) - sample.age) for answer, sample in pairs),
        100 * statistics.mean(answer.gender == GENDERS[sample.gender] for answer, sample in pairs),
        100 * statistics.mean(answer.race == RACES[sample.race] for answer, sample in pairs),
    )
