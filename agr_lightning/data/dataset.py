"""Samples and their cached images -> batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from agr_lightning.data.cache import read_rows
from agr_lightning.data.images import without_colour
from agr_lightning.data.samples import Samples
from agr_lightning.data.sampling import Draw

if TYPE_CHECKING:
    from agr_lightning.data.transforms import Augmentation

T = TypeVar("T")


class Batch(NamedTuple):
    """What the network trains and is measured on.

    Attributes:
        images: RGB, uint8 ``(batch, 3, size, size)``, channels last in memory.
        age: years, float32 ``(batch,)``.
        gender: index into ``labels.GENDERS``, int64 ``(batch,)``.
        race: index into ``labels.RACES`` or ``labels.MISSING``, int64 ``(batch,)``.
        place: of each sample in its dataset, int64 ``(batch,)``.
    """

    images: Tensor
    age: Tensor
    gender: Tensor
    race: Tensor
    place: Tensor


class FaceDataset(Dataset[Batch]):
    """Labelled images, fetched a whole batch at a time.

    Args:
        samples: what the dataset holds.
        images: cached images, uint8 ``(rows, size, size, 3)``, of which ``samples.row`` are rows.
        augmentation: applied to each image that is drawn; None for evaluation.
        seed: with a draw's epoch and position it fixes the augmentation.
        grayscale: leave the colour of the images out, after augmentation.
    """

    def __init__(
        self,
        samples: Samples,
        images: NDArray[np.uint8],
        augmentation: "Augmentation | None" = None,
        seed: int = 0,
        grayscale: bool = False,
    ) -> None:
        self._images = images
        self._grayscale = grayscale
        # Columns alone: names would be copied to every loader worker.
        self._rows, self._age, self._gender, self._race = samples.row, samples.age, samples.gender, samples.race
        self._augmentation = augmentation
        self._seed = seed

    def __getstate__(self) -> dict[str, object]:
        # Where loader workers are spawned, they open the cache themselves: pickling would copy all of it.
        images = self._images
        return self.__dict__ | {"_images": str(images.filename) if isinstance(images, np.memmap) else images}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if isinstance(state["_images"], str):
            self._images = np.load(state["_images"], mmap_mode="r")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, draw: Draw) -> Batch:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw | int]) -> Batch:
        """The batch of these draws; what a DataLoader without collation asks for.

        A sampler that is not ours, as under --trainer.overfit_batches, gives places alone.
        """
        known = [draw if isinstance(draw, Draw) else Draw(0, draw, draw) for draw in draws]
        place = np.array([draw.place for draw in known])
        images = read_rows(self._images, self._rows[place])
        if self._augmentation is not None:
            for image, draw in zip(images, known, strict=True):
                image[:] = self._augmentation(image, (self._seed, draw.epoch, draw.position))
        if self._grayscale:
            images = without_colour(images)
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(self._age[place].astype(np.float32)),
            torch.from_numpy(self._gender[place].astype(np.int64)),
            torch.from_numpy(self._race[place].astype(np.int64)),
            torch.from_numpy(place),
        )


class Held:
    """Something that goes with a batch untouched: the Trainer looks into all that it knows."""

    def __init__(self, value: Any) -> None:
        self.value = value


class PhotoBatch(NamedTuple):
    """What predictions are made for.

    Attributes:
        images: all faces of the batch, RGB, uint8 ``(faces, 3, size, size)``.
        photos: the list of what was read, with those faces in it.
    """

    images: Tensor
    photos: Held


class PhotoStream(IterableDataset[PhotoBatch]):
    """Photos without labels, as they are read.

    Args:
        batches: of photos, or frames of videos, each with its faces: uint8 ``crops``, ``(faces, size, size, 3)``.
    """

    def __init__(self, batches: Callable[[], Iterator[Sequence[Any]]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[PhotoBatch]:
        for photos in self._batches():
            faces = np.concatenate([photo.crops for photo in photos])
            yield PhotoBatch(torch.from_numpy(faces).permute(0, 3, 1, 2), Held(photos))


class LateLoader(DataLoader[T]):
    """A loader that asks its sampler for an order when the first batch is asked for, and not before.

    Lightning makes the iterator of a run's first epoch before it has read from the checkpoint which epoch that
    is; loader workers would then prepare the batches of the wrong one.
    """

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        yield from super().__iter__()


def whole(batch: T) -> T:
    """The collation of a dataset that fetches whole batches: none."""
    return batch
