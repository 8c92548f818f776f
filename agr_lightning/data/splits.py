"""Which sample goes to train, val and test."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agr_lightning.data.samples import Samples
from agr_lightning.files import atomic_text, user_path
from agr_lightning.labels import AGE_MAX, AGE_MIN, GENDERS, RACES, age_band
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

Side = Literal["train", "val", "test"]
SIDES: tuple[Side, ...] = ("train", "val", "test")

Split = dict[Side, Samples]


@dataclass(frozen=True)
class SplitOptions:
    """What decides the split; the fields are the ``--data`` options of the same names."""

    split: str = "random"
    seed: int = 0
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    max_samples: int | None = None
    max_per_gender: int | None = None
    age_min: int = AGE_MIN
    age_max: int = AGE_MAX

    def check(self) -> None:
        """Raises UserError for values that can give no split, whatever the samples."""
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--data.{name} {getattr(self, name)} must be at least 0 and below 1.")
        if self.val_fraction + self.test_fraction >= 1:
            raise UserError(
                f"--data.val_fraction {self.val_fraction} and --data.test_fraction {self.test_fraction} "
                "leave nothing to train on; together they must stay below 1."
            )
        if not AGE_MIN <= self.age_min <= self.age_max <= AGE_MAX:
            raise UserError(
                f"--data.age_min {self.age_min} and --data.age_max {self.age_max} must lie in order between "
                f"{AGE_MIN} and {AGE_MAX}."
            )
        for name in ("max_samples", "max_per_gender"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--data.{name} {value} must be 1 or more.")


def make_split(samples: Samples, options: SplitOptions, sides: tuple[Side, ...] = SIDES) -> Split:
    """Splits the samples as the options say, and keeps the part of them that the options allow.

    Args:
        samples: in any order: the result depends on their names, labels and groups alone.
        options: how.
        sides: which of a folder's lists to read.
    """
    ordered = samples.take(sorted(range(len(samples)), key=samples.names.__getitem__))
    if options.split == "random":
        split = random_split(ordered, options.val_fraction, options.test_fraction, options.seed)
    else:
        split = read_split(user_path(options.split), ordered, sides)
    aged: Split = {
        side: members.take((options.age_min <= members.age) & (members.age <= options.age_max))
        for side, members in split.items()
    }
    return _limit(aged, options)


def random_split(samples: Samples, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Splits so that each side has the same shares of age band, gender and race.

    Samples of one photo stay together: a group is dealt as one, by the labels of its first member.

    Args:
        samples: the samples, in name order.
        val_fraction: share of the groups that goes to val.
        test_fraction: share of the groups that goes to test.
        seed: another seed deals another split.

    Returns:
        Samples by side, in name order.
    """
    _, first, group = np.unique(samples.group, return_index=True, return_inverse=True)
    leaders = samples.take(first)
    order = np.lexsort((_lots(seed, leaders), _strata(leaders)))
    test = order[_evenly(len(order), round(test_fraction * len(order)))]
    rest = order[~np.isin(order, test)]
    val = rest[_evenly(len(rest), round(val_fraction * len(order)))]
    side = np.zeros(len(leaders), np.int8)
    side[val], side[test] = SIDES.index("val"), SIDES.index("test")
    return {name: samples.take(side[group] == code) for code, name in enumerate(SIDES)}


def read_split(folder: Path, samples: Samples, sides: tuple[Side, ...] = SIDES) -> Split:
    """Takes the members of each side from ``train.txt``, ``val.txt`` and ``test.txt``, one name a line.

    Raises:
        UserError: when there are no lists, when one cannot be read, when a name is on two sides, or when none of
            the names of a file is among the samples.
    """
    place = {name: i for i, name in enumerate(samples.names)}
    split: Split = {side: samples.take([]) for side in SIDES}
    side_of: dict[str, Side] = {}
    if not any((folder / f"{side}.txt").is_file() for side in sides):
        raise UserError(f"--data.split {folder} must be 'random' or a folder with train.txt, val.txt and test.txt.")
    for side in sides:
        path = folder / f"{side}.txt"
        if not path.is_file():
            continue
        try:
            lines = path.read_text("utf-8", "surrogateescape").split("\n")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}).") from None
        names = list(dict.fromkeys(line.strip("\r") for line in lines if line.strip()))
        for name in names:
            if name in side_of:
                raise UserError(f"{name} is in both {side_of[name]}.txt and {side}.txt of {folder}; keep it in one.")
            side_of[name] = side
        split[side] = samples.take([place[name] for name in names if name in place])
        absent = [name for name in names if name not in place]
        if absent and not split[side]:
            raise UserError(
                f"none of the {len(names):,} names in {path} is among the images (the first is {absent[0]}); "
                "name the folder they were split from with --data.root, or test on other images with --data.test_root."
            )
        if absent:
            _log.warning(
                f"{path}: {len(absent):,} of {len(names):,} names are not among the images, {absent[0]} first."
            )
    _warn_of_leaks(folder, split)
    return split


def write_split(split: Split, folder: Path) -> None:
    """Writes ``train.txt``, ``val.txt`` and ``test.txt``, one name a line, which ``read_split`` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    for side in SIDES:
        atomic_text(folder / f"{side}.txt", "".join(f"{name}\n" for name in split[side].names))


def _warn_of_leaks(folder: Path, split: Split) -> None:
    for side in SIDES[1:]:
        leaks = int(np.isin(split[side].group, split["train"].group).sum())
        if leaks:
            _log.warning(
                f"{folder}: {leaks:,} of the {len(split[side]):,} {side} images show a photo that is in train too."
            )


def _limit(split: Split, options: SplitOptions) -> Split:
    """Keeps at most so many images, on all sides together, each side and stratum its share."""
    if options.max_per_gender is None and options.max_samples is None:
        return split
    sides = np.repeat(np.arange(len(SIDES)), [len(split[side]) for side in SIDES])
    places = np.concatenate([np.arange(len(split[side])) for side in SIDES])
    gender = np.concatenate([split[side].gender for side in SIDES])
    lots = np.concatenate([_lots(options.seed, split[side]) for side in SIDES])
    kept = np.lexsort((lots, np.concatenate([_strata(split[side]) for side in SIDES]), sides))
    if options.max_per_gender is not None:
        by_gender = [kept[gender[kept] == code] for code in range(len(GENDERS))]
        chosen = np.concatenate([members[_evenly(len(members), options.max_per_gender)] for members in by_gender])
        kept = kept[np.isin(kept, chosen)]
    if options.max_samples is not None:
        kept = kept[_evenly(len(kept), options.max_samples)]
    return {side: split[side].take(np.sort(places[kept[sides[kept] == code]])) for code, side in enumerate(SIDES)}


def _strata(samples: Samples) -> NDArray[np.int64]:
    """A number for each combination of age band, gender and race."""
    band = np.array([age_band(age) for age in range(AGE_MAX + 1)])[samples.age]
    # From -1, a missing one, to the last.
    return (band * len(GENDERS) + samples.gender) * (len(RACES) + 1) + samples.race + 1


def _lots(seed: int, samples: Samples) -> NDArray[np.uint64]:
    """A number drawn for each name, so that no machine, library or listing order can change it."""
    texts = (f"{seed}:{name}".encode("utf-8", "surrogateescape") for name in samples.names)
    return np.array([int.from_bytes(hashlib.sha256(text).digest()[:8]) for text in texts], np.uint64)


def _evenly(n: int, count: int) -> NDArray[np.int64]:
    """``count`` places of ``n``, evenly spread: each run of neighbours gives its share, to within one."""
    place = np.arange(n)
    return place[(place + 1) * count // n > place * count // n] if count < n else place
