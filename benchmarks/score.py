"""What the benchmarks of answers share: images that no network has seen, and how wrong it is about them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agr_lightning.checkpoints import find_checkpoint, read_checkpoint, seen_images
from agr_lightning.data.index import build_index
from agr_lightning.data.samples import Sample
from agr_lightning.files import name_digests
from agr_lightning.inference.predictor import Predictor
from agr_lightning.labels import GENDERS, RACES


@dataclass(frozen=True)
class Score:
    age: float
    gender: float
    race: float

    def cells(self) -> str:
        return f"{self.age:.2f} | {self.gender:.1f} % | {self.race:.1f} %"


def unseen(root: str, named: Sequence[str | None], count: int | None = None) -> list[Sample]:
    """Labelled images that none of the networks has seen, in an order of its own; so many at most."""
    seen = np.concatenate([seen_images(read_checkpoint(find_checkpoint(name, Path()))) for name in named])
    samples = [sample for sample in build_index(root).samples if sample.race >= 0]
    places = np.flatnonzero(~np.isin(name_digests([sample.name for sample in samples]), seen))
    return [samples[place] for place in np.random.default_rng(0).permutation(places)[:count]]


def score(predictor: Predictor, members: Sequence[Sample], images: Sequence[NDArray[np.uint8]]) -> Score:
    pairs = list(zip(predictor(images), members, strict=True))
    return Score(
        statistics.mean(abs((answer.age or 0) - member.age) for answer, member in pairs),
        100 * statistics.mean(answer.gender == GENDERS[member.gender] for answer, member in pairs),
        100 * statistics.mean(answer.race == RACES[member.race] for answer, member in pairs),
    )
