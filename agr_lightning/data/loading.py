"""Samples and their decoded images -> batches: in which order, and how they are put together."""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from agr_lightning.data.cache import ImageCache
from agr_lightning.data.transforms import Augmentation
from agr_lightning.labels import MISSING, Task, age_band


class Batch(NamedTuple):
    """What the network trains and is measured on.

    Attributes:
        images: RGB, uint8 ``(batch, 3, size, size)``, channels last in memory.
        age: years, float32 ``(batch,)``; this and the codes are ``labels.MISSING`` where they are unknown.
        gender: index into ``labels.GENDERS``, int64 ``(batch,)``.
        race: index into ``labels.RACES``, int64 ``(batch,)``.
        index: of each sample in its dataset, int64 ``(batch,)``.
    """

    images: Tensor
    age: Tensor
    gender: Tensor
    race: Tensor
    index: Tensor  # type: ignore[assignment]  # in place of tuple.index


class Draw(NamedTuple):
    """A sample, by its index in the dataset, at a position in the order of an epoch over all ranks."""

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # in place of tuple.index


class TrainSampler(DistributedSampler[Draw]):
    """A new order every epoch, or weighted draws with replacement; the same for any number of workers.

    Lightning leaves a DistributedSampler alone, so that balancing works with several devices as well.
    Ranks, which must have the same ``seed``, get equally many draws: up to ``ranks - 1`` of an epoch come twice.

    Args:
        progress: returns the current epoch and how many of its draws this rank has already trained on,
            asked when an epoch begins: a run that was killed continues where it stopped.
        weights: relative chance of each sample; None for a shuffle in which each comes once.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        progress: Callable[[], tuple[int, int]],
        weights: ArrayLike | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__(range(size), ranks, rank, seed=seed)  # type: ignore[arg-type]
        self._size, self._progress = size, progress
        self._chances = None if weights is None else np.asarray(weights) / np.sum(weights)

    def __iter__(self) -> Iterator[Draw]:
        epoch, done = self._progress()
        random = np.random.default_rng([self.seed, epoch])
        if self._chances is None:
            order = random.permutation(self._size)
        else:
            order = random.choice(self._size, self._size, p=self._chances)
        for position in range(self.rank + done * self.num_replicas, self.total_size, self.num_replicas):
            yield Draw(epoch, position, int(order[position % self._size]))


class EvalSampler(DistributedSampler[int]):
    """Each sample of a dataset once, over all ranks together: no padding, so that figures are exact."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


def balancing_weights(samples: pd.DataFrame, task: Task) -> NDArray[np.float64]:
    """A weight for each sample, under which each class of a task, or age band, is drawn equally often.

    Those without the label are drawn as often as in the data.
    """
    classes = samples["age"].map(age_band) if task == "age" else samples[task]
    values, row, counts = np.unique(classes, return_inverse=True, return_counts=True)
    labelled = counts[values != MISSING]
    share = labelled.sum() / max(len(labelled), 1)
    return np.asarray(np.where(values != MISSING, share / counts, 1.0)[row], np.float64)


class FaceDataset(Dataset[Batch]):
    """Labelled images, fetched a whole batch at a time.

    ``samples["row"]`` are rows of ``images``. An ``augmentation`` changes each image that is
    drawn, by ``seed`` and the draw's epoch and position.
    """

    def __init__(
        self, samples: pd.DataFrame, images: ImageCache, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self._images, self._augmentation, self._seed = images, augmentation, seed
        # Numbers alone: names would be copied to every loader worker.
        self._rows, self._gender, self._race = (samples[name].to_numpy(np.int64) for name in ("row", "gender", "race"))
        self._age = samples["age"].to_numpy(np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, draws: Sequence[Draw | int]) -> Batch:
        """The batch of these draws, or of these indices; what a DataLoader asks for."""
        known = [draw if isinstance(draw, Draw) else Draw(0, draw, draw) for draw in draws]
        index = np.array([draw.index for draw in known])
        images = self._images.read(self._rows[index])
        if self._augmentation is not None:
            for image, draw in zip(images, known, strict=True):
                image[:] = self._augmentation(image, (self._seed, draw.epoch, draw.position))
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(self._age[index]),
            torch.from_numpy(self._gender[index]),
            torch.from_numpy(self._race[index]),
            torch.from_numpy(index),
        )


class LazyDataLoader(DataLoader[Batch]):
    """A DataLoader whose iterator does nothing until the first batch is asked for.

    Lightning makes the iterator of a run's first epoch before it reads from the checkpoint which epoch that is:
    loader workers would begin with the batches of the wrong one.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        yield from super().__iter__()


def ignore_signals(worker: int) -> None:
    """Keeps loader workers alive where a signal reaches them too, so that the main process can end its step first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
