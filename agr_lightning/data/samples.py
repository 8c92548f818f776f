"""Samples in columns: what is known of each image, without an object for each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Sample(NamedTuple):
    """One usable image.

    Attributes:
        name: file name; with its folders below the root only where the file name alone is taken twice.
        path: where the file lies.
        age: years.
        gender: index into ``labels.GENDERS``.
        race: index into ``labels.RACES``, or ``labels.MISSING``.
        group: a number that those of the index share that show the same photo.
    """

    name: str
    path: str
    age: int
    gender: int
    race: int
    group: int


@dataclass(frozen=True, eq=False)
class Samples(Sequence[Sample]):
    """Usable images, in columns: a hundred thousand take 20 MB, and none of it is copied by loader workers.

    Attributes:
        folder: that all files lie below.
        names: of the samples; see ``Sample``.
        files: path of each below the folder, ``(n,)``.
        stamps: size and time of change of each file, to notice that it is another one now, int64 ``(n, 2)``.
        age: years, uint8 ``(n,)``.
        gender: index into ``labels.GENDERS``, int8 ``(n,)``.
        race: index into ``labels.RACES`` or ``labels.MISSING``, int8 ``(n,)``.
        group: see ``Sample``, int64 ``(n,)``.
        row: of each in its index, and so in the array of cached images, int64 ``(n,)``.
    """

    folder: Path
    names: list[str]
    files: list[str]
    stamps: NDArray[np.int64]
    age: NDArray[np.uint8]
    gender: NDArray[np.int8]
    race: NDArray[np.int8]
    group: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, i: int) -> Sample: ...
    @overload
    def __getitem__(self, i: slice) -> "Samples": ...
    def __getitem__(self, i: int | slice) -> "Sample | Samples":
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        labels = int(self.age[i]), int(self.gender[i]), int(self.race[i])
        return Sample(self.names[i], self.path(i), *labels, int(self.group[i]))

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def path(self, i: int) -> str:
        """Where the i-th file lies."""
        return f"{self.folder}/{self.files[i]}"

    def take(self, chosen: ArrayLike) -> "Samples":
        """Those at these places, or those that a mask marks."""
        places = np.asarray(chosen)
        places = np.flatnonzero(places) if places.dtype == bool else places.astype(np.int64)
        return Samples(
            self.folder,
            [self.names[i] for i in places],
            [self.files[i] for i in places],
            self.stamps[places],
            self.age[places],
            self.gender[places],
            self.race[places],
            self.group[places],
            self.row[places],
        )
