"""The folders that the options name: read once, split, and their images cached."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agr_lightning.data.cache import cached_images
from agr_lightning.data.cards import draw_cards
from agr_lightning.data.index import Index, build_index, shared_photos
from agr_lightning.data.samples import Samples
from agr_lightning.data.splits import Side, Split, SplitOptions, make_split
from agr_lightning.files import name_digests
from agr_lightning.labels import AGE_MAX, AGE_MIN
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)


class Sources:
    """Labelled images by side, from a root or drawn, and a test root if there is one.

    Args:
        root: folder or archive; None for none.
        synthetic: how many cards to draw instead; 0 for none.
        test_root: folder or archive that is the test set; None for none.
        options: how to split.
        image_size: side of the cached images, pixels.
        cache_dir: where derived files go; None for the user's cache folder.
    """

    def __init__(
        self,
        root: str | None,
        synthetic: int,
        test_root: str | None,
        options: SplitOptions,
        image_size: int,
        cache_dir: str | None,
    ) -> None:
        self._root, self._synthetic, self._test_root = root, synthetic, test_root
        self._options, self._image_size, self._cache_dir = options, image_size, cache_dir
        self._indexes: dict[str, Index] = {}
        self._images: dict[Path, NDArray[np.uint8]] = {}
        self._split: Split | None = None
        # Digests of the names of photos that the weights have seen: they can measure nothing.
        self.seen = np.empty(0, np.int64)

    def __getstate__(self) -> dict[str, object]:
        # Where processes are spawned, each opens the cache itself: pickling would copy all of it.
        return self.__dict__ | {"_images": {}}

    @property
    def split(self) -> Split:
        """The members of all sides."""
        assert self._split is not None, "read() comes first"
        return self._split

    def read(self, stage: str) -> Split:
        """Reads and splits what the stage needs, once.

        Raises:
            UserError: when there are no images, or no split can be made of them.
        """
        if self._split is None:
            self._split = self._make_split(stage)
            if len(self.seen):
                side: Side = "val" if stage == "validate" else "test"
                self._split[side] = self._unseen(side)
        return self._split

    def fill_cache(self) -> None:
        """Decodes all images, unless that was done before."""
        for index in self._indexes.values():
            self._cached(index)

    def members(self, side: Side) -> tuple[Samples, NDArray[np.uint8]]:
        """A side's samples, and the array of which their ``row`` are the rows."""
        samples = self.split[side]
        return samples, self._cached(next(i for i in self._indexes.values() if i.samples.folder == samples.folder))

    def no_images(self, empty: Side) -> str:
        """What to tell of a side without images."""
        if len(self.seen) and empty != "train":
            return f"these weights have seen all images for {empty}: test them on others, with --data.test_root FOLDER."
        options, counts = self._options, ", ".join(f"{len(part):,} {side}" for side, part in self.split.items())
        if options.split != "random":
            cure = f"see {empty}.txt in --data.split {options.split}"
        elif empty != "train" and getattr(options, f"{empty}_fraction") == 0:
            cure = f"--data.{empty}_fraction is 0"
        else:
            cure = "use more images, or other --data.val_fraction and --data.test_fraction"
        if (options.age_min, options.age_max) != (AGE_MIN, AGE_MAX):
            cure += f"; --data.age_min {options.age_min} and --data.age_max {options.age_max} leave others out"
        return f"the split leaves no images for {empty} ({counts}): {cure}."

    def _read_indexes(self, stage: str) -> list[Index]:
        """The main root, and a root of its own for the test; the latter alone where nothing else is needed."""
        if self._test_root is not None and stage == "test":
            return [self._index(self._test_root, "--data.test_root")]
        if self._synthetic:
            folder = draw_cards(self._synthetic, self._options.seed, self._cache_dir)
            indexes = [self._index(str(folder), "--data.synthetic")]
        elif self._root is not None:
            indexes = [self._index(self._root, "--data.root")]
        else:
            raise UserError(
                "no images: give --data.root FOLDER of UTKFace images, or --data.synthetic 1500 for drawn test cards."
            )
        if self._test_root is not None:
            indexes.append(self._index(self._test_root, "--data.test_root"))
        return indexes

    def _index(self, root: str, option: str) -> Index:
        if root not in self._indexes:
            self._indexes[root] = build_index(root, self._cache_dir, option)
            _log.info(self._indexes[root].summary())
        return self._indexes[root]

    def _make_split(self, stage: str) -> Split:
        main, *others = self._read_indexes(stage)
        if self._test_root is None:
            return make_split(main.samples, self._options)
        if not others:
            none = main.samples.take([])
            return {"train": none, "val": none, "test": self._of_age(main)}
        # All photos of the test root are the test, so none of them may be learnt from.
        shared = shared_photos(main, others[0])
        if shared.any():
            _log.info(f"{main.root}: {shared.sum():,} images left out, because {others[0].root} shows the same photos")
        options = replace(self._options, test_fraction=0.0)
        return make_split(main.samples.take(~shared), options, ("train", "val")) | {"test": self._of_age(others[0])}

    def _unseen(self, side: Side) -> Samples:
        """A side without the photos that are called like one of ``seen``, or are copies of one that is."""
        members = self.split[side]
        everyone = next(i.samples for i in self._indexes.values() if i.samples.folder == members.folder)
        groups = everyone.group[np.isin(name_digests(everyone.names), self.seen)]
        unseen = members.take(~np.isin(members.group, groups))
        left_out = len(members) - len(unseen)
        if left_out:
            _log.info(f"{left_out:,} of {len(members):,} {side} images left out, because these weights have seen them")
        return unseen

    def _of_age(self, index: Index) -> Samples:
        """All of a test root, within the ages that are used."""
        options, age = self._options, index.samples.age
        return index.samples.take((options.age_min <= age) & (age <= options.age_max))

    def _cached(self, index: Index) -> NDArray[np.uint8]:
        folder = index.samples.folder
        if folder not in self._images:
            self._images[folder] = cached_images(index.samples, self._image_size, self._cache_dir)
        return self._images[folder]
