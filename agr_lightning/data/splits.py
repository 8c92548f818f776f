"""Which sample goes to train, val and test."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from agr_lightning.data.index import Sample
from agr_lightning.errors import UserError
from agr_lightning.files import atomic_text
from agr_lightning.labels import AGE_MAX, AGE_MIN, GENDERS, age_band

_log = logging.getLogger(__name__)

Side = Literal["train", "val", "test"]
SIDES: tuple[Side, ...] = ("train", "val", "test")

Split = dict[Side, list[Sample]]

T = TypeVar("T")


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


def make_split(samples: Sequence[Sample], options: SplitOptions, sides: tuple[Side, ...] = SIDES) -> Split:
    """Splits the samples as the options say, and keeps the part of them that the options allow.

    Args:
        samples: in any order: the result depends on their names, labels and groups alone.
        options: how.
        sides: which of a folder's lists to read.
    """
    ordered = sorted(samples, key=lambda sample: sample.name)
    if options.split == "random":
        split = random_split(ordered, options.val_fraction, options.test_fraction, options.seed)
    else:
        split = read_split(Path(options.split).expanduser(), ordered, sides)
    aged: Split = {
        side: [sample for sample in members if options.age_min <= sample.age <= options.age_max]
        for side, members in split.items()
    }
    return _limit(aged, options)


def random_split(samples: Sequence[Sample], val_fraction: float, test_fraction: float, seed: int) -> Split:
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
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)
    # A test root may have taken the member that the group is named after.
    leaders = [members[0] for members in groups.values()]
    ordered = sorted(leaders, key=lambda sample: (_stratum(sample), _lot(seed, sample.name)))
    test = _evenly(ordered, round(test_fraction * len(ordered)))
    chosen = {sample.group for sample in test}
    rest = [sample for sample in ordered if sample.group not in chosen]
    val = {sample.group for sample in _evenly(rest, round(val_fraction * len(ordered)))}
    split: Split = {side: [] for side in SIDES}
    for sample in samples:
        side: Side = "test" if sample.group in chosen else "val" if sample.group in val else "train"
        split[side].append(sample)
    return split


def read_split(folder: Path, samples: Sequence[Sample], sides: tuple[Side, ...] = SIDES) -> Split:
    """Takes the members of each side from ``train.txt``, ``val.txt`` and ``test.txt``, one name a line.

    Raises:
        UserError: when there are no lists, when one cannot be read, when a name is on two sides, or when none of
            the names of a file is among the samples.
    """
    by_name = {sample.name: sample for sample in samples}
    split: Split = {side: [] for side in SIDES}
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
        split[side] = [by_name[name] for name in names if name in by_name]
        absent = [name for name in names if name not in by_name]
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
        atomic_text(folder / f"{side}.txt", "".join(f"{sample.name}\n" for sample in split[side]))


def _warn_of_leaks(folder: Path, split: Split) -> None:
    trained = {sample.group for sample in split["train"]}
    for side in SIDES[1:]:
        leaks = sum(sample.group in trained for sample in split[side])
        if leaks:
            _log.warning(
                f"{folder}: {leaks:,} of the {len(split[side]):,} {side} images show a photo that is in train too."
            )


def _limit(split: Split, options: SplitOptions) -> Split:
    """Keeps at most so many images, on all sides together, each side and stratum its share."""
    kept: list[tuple[Side, Sample]] = [(side, sample) for side in SIDES for sample in split[side]]

    def shuffled(members: list[tuple[Side, Sample]]) -> list[tuple[Side, Sample]]:
        return sorted(members, key=lambda m: (SIDES.index(m[0]), _stratum(m[1]), _lot(options.seed, m[1].name)))

    if options.max_per_gender is not None:
        by_gender = [[m for m in kept if m[1].gender == gender] for gender in range(len(GENDERS))]
        kept = [m for members in by_gender for m in _evenly(shuffled(members), options.max_per_gender)]
    if options.max_samples is not None:
        kept = _evenly(shuffled(kept), options.max_samples)
    names = {(side, sample.name) for side, sample in kept}
    return {side: [sample for sample in split[side] if (side, sample.name) in names] for side in SIDES}


def _stratum(sample: Sample) -> tuple[int, int, int]:
    return (age_band(sample.age), sample.gender, sample.race)


def _lot(seed: int, name: str) -> bytes:
    """A number drawn by name, so that no machine, library or listing order can change it."""
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def _evenly(items: Sequence[T], count: int) -> list[T]:
    """``count`` of the items, evenly spread: each run of neighbours gives its share, to within one."""
    n = len(items)
    return [item for i, item in enumerate(items) if (i + 1) * count // n > i * count // n] if count < n else list(items)
