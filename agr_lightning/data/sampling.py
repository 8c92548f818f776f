"""In which order samples are drawn: a function of seed and epoch, dealt to the ranks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DistributedSampler


class Draw(NamedTuple):
    """One draw of a sample.

    Attributes:
        epoch: counted from 0.
        position: place in the epoch's order over all ranks; with seed and epoch it fixes the augmentation.
        place: of the sample in its dataset.
    """

    epoch: int
    position: int
    place: int


class TrainSampler(DistributedSampler[Draw]):
    """A new order every epoch, or weighted draws with replacement; the same for any number of workers.

    Lightning leaves a DistributedSampler alone, so that balancing works with several devices as well.
    Ranks get equally many draws: up to ``ranks - 1`` draws of an epoch come twice.

    Args:
        size: samples in the dataset.
        seed: another seed gives other orders; must agree between ranks.
        progress: returns the current epoch and how many of its draws this rank has already trained on,
            asked when an epoch begins: a run that was killed goes on where it stopped.
        weights: relative chance of each sample; None for a shuffle in which each comes once.
        rank: this process among ``ranks``.
        ranks: number of processes.
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
        super().__init__(range(size), ranks, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self._size = size
        self._progress = progress
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


class EvalSampler(DistributedSampler[Draw]):
    """Every sample once, over all ranks together: no padding, so that figures are exact.

    Args:
        size: samples in the dataset.
        rank: this process among ``ranks``.
        ranks: number of processes.
    """

    def __init__(self, size: int, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(range(size), ranks, rank, shuffle=False)  # type: ignore[arg-type]
        self._own = range(rank, size, ranks)

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(0, index, index) for index in self._own)

    def __len__(self) -> int:
        return len(self._own)


def balancing_weights(classes: ArrayLike) -> NDArray[np.float64]:
    """Weights under which each class is drawn equally often.

    Args:
        classes: class index of each sample; a negative one (no label) is drawn as often as in the data.

    Returns:
        A weight per sample.
    """
    values, place, counts = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    labelled = counts[values >= 0]
    share = labelled.sum() / max(len(labelled), 1)
    weights: NDArray[np.float64] = np.where(values >= 0, share / counts, 1.0)[place]
    return weights
