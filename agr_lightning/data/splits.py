"""Which sample goes to train, val and test."""

import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agr_lightning.files import atomic_text, decode_text, match_paths, user_path
from agr_lightning.images import EXTENSIONS
from agr_lightning.labels import AGE_MAX, AGE_MIN, MISSING, Task, age_band
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")

# The samples of each split, numbered from 0.
Split = dict[SplitName, pd.DataFrame]

# How the name of an image ends.
_ENDING = rf"\.(?:{'|'.join(sorted(ending[1:] for ending in EXTENSIONS))})"


@dataclass(frozen=True)
class SplitOptions:
    """What decides the split: the ``--data`` options of these names."""

    split: str = "random"
    seed: int = 0
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    max_samples: int | None = None
    max_per_gender: int | None = None
    age_min: int = AGE_MIN
    age_max: int = AGE_MAX


def make_split(samples: pd.DataFrame, options: SplitOptions, splits: Sequence[SplitName] = SPLITS) -> Split:
    """Splits the samples as the options say, and keeps the part of them that the options allow.

    The result depends on their names, labels and groups alone. Of a folder, the lists of ``splits`` are read.
    """
    samples = samples.sort_values("name", ignore_index=True)
    if options.split != "random":
        split = read_split(user_path(options.split), samples, splits)
    elif (samples["split"] != "").any():
        split = _split_of_labels(samples, options)
    else:
        split = random_split(samples, options.val_fraction, options.test_fraction, options.seed)
    return _limit(split, options)


def within_ages(samples: pd.DataFrame, options: SplitOptions) -> pd.DataFrame:
    """The samples of the ages that the options allow; those of unknown age where they allow all."""
    if options.age_min > AGE_MIN or options.age_max < AGE_MAX:
        samples = _labelled(samples, "age", "--data.age_min and --data.age_max")
        samples = samples[samples["age"].between(options.age_min, options.age_max)]
    return samples.reset_index(drop=True)


def random_split(samples: pd.DataFrame, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Splits samples in name order so that each split has the same shares of age band, gender and race.

    Samples of one photo stay together: a group is dealt as one, by the labels of its first member. The fractions are
    of the groups. Another seed deals another split.
    """
    leaders = samples.drop_duplicates("group")
    groups = leaders["group"].to_numpy()[_shuffled_strata(leaders, seed)]
    in_test = _evenly(np.arange(len(groups)), len(groups), round(test_fraction * len(groups)))
    rest = groups[~in_test]
    in_val = _evenly(np.arange(len(rest)), len(rest), round(val_fraction * len(groups)))
    members = {"train": rest[~in_val], "val": rest[in_val], "test": groups[in_test]}
    return {name: samples[samples["group"].isin(members[name])].reset_index(drop=True) for name in SPLITS}


def _split_of_labels(samples: pd.DataFrame, options: SplitOptions) -> Split:
    """The split that the table of labels says; where it has no val, that is dealt from train."""
    split: Split = {name: samples[samples["split"] == name].reset_index(drop=True) for name in SPLITS}
    if split["val"].empty:
        split |= random_split(split["train"], options.val_fraction, 0.0, options.seed) | {"test": split["test"]}
    if left_out := (samples["split"] == "").sum():
        _log.info(f"{left_out:,} images left out, for which the table of labels has no split")
    _warn_of_leaks(split, "the table of labels")
    return split


def _warn_of_leaks(split: Split, source: str) -> None:
    for name in SPLITS[1:]:
        if leaks := split[name]["group"].isin(split["train"]["group"]).sum():
            shown = f"{leaks:,} of {len(split[name]):,} {name} images show a photo or a person that is in train"
            _log.warning(f"{source}: {shown}.")


def read_split(folder: Path, samples: pd.DataFrame, splits: Sequence[SplitName] = SPLITS) -> Split:
    """Takes the members of each split from ``train.txt``, ``val.txt`` and ``test.txt``, one name a line.

    A line is the name of a sample; or else one with other folders in front or labels behind; or else one with another
    ending, as without ``.chip.jpg``. One that can mean several samples is left out, which is said.

    Raises UserError when there are no lists, a name is in two, or none of the names of one is among the samples.
    """
    paths = {name: folder / f"{name}.txt" for name in splits}
    lists = {name: _read_list(path, samples["name"].tolist()) for name, path in paths.items() if path.is_file()}
    if not lists:
        raise UserError(f"--data.split {folder} must be 'random' or a folder with train.txt, val.txt and test.txt.")
    for one, other in combinations(lists, 2):
        for sample in sorted(set(lists[one]).intersection(lists[other])):
            raise UserError(f"{sample} is in both {one}.txt and {other}.txt of {folder}; keep it in one.")
    split: Split = dict.fromkeys(SPLITS, samples[:0])
    for name, listed in lists.items():
        split[name] = samples[samples["name"].isin(listed)].reset_index(drop=True)
        if absent := sorted(set(listed).difference(split[name]["name"])):
            problem, example = f"of its {len(listed):,} names", f"among the images, {absent[0]} for one"
            if split[name].empty:
                raise UserError(f"{paths[name]}: none {problem} is {example}.")
            _log.warning(f"{paths[name]}: {len(absent):,} {problem} are not {example}.")
    _warn_of_leaks(split, str(folder))
    return split


def _read_list(path: Path, names: list[str]) -> list[str]:
    """The names of samples that the lines of a list mean, each once; lines that mean none stay as they are."""
    lines = re.split("[\r\n]+", decode_text(path.read_bytes(), "cp1252", "replace"))
    found, known = {line: line for line in lines if line.strip()}, set(names)
    for plain in (_without_labels, _without_ending):
        if not (left := [line for line, name in found.items() if name not in known]):
            break
        means = match_paths([plain(line) for line in left], [plain(name) for name in names])
        found |= {line: names[each[0]] for line, each in zip(left, means, strict=True) if len(each) == 1}
        for line, each in zip(left, means, strict=True):
            if len(each) > 1:
                _log.warning(f"{path}: {line} can mean {names[each[0]]} and {names[each[1]]}, and is left out.")
                del found[line]
    return list(dict.fromkeys(found.values()))


def _without_labels(line: str) -> str:
    """The path of an image, without blanks and labels around it."""
    path = line.strip(' \t"').replace("\\", "/")
    return match[1] if (match := re.match(rf"(.+?{_ENDING})[\s,;\"]", path, re.IGNORECASE)) else path


def _without_ending(line: str) -> str:
    return re.sub(rf"(?:\.chip|{_ENDING})+$", "", _without_labels(line), flags=re.IGNORECASE)


def write_split(split: Split, folder: Path) -> None:
    """Writes ``train.txt``, ``val.txt`` and ``test.txt``, one name a line, which ``read_split`` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        atomic_text(folder / f"{name}.txt", "".join(f"{sample}\n" for sample in split[name]["name"]))


def _limit(split: Split, options: SplitOptions) -> Split:
    """Keeps at most so many images, in all splits together, each split and stratum its share."""
    everyone = within_ages(pd.concat([split[name].assign(split=name) for name in SPLITS]), options)
    kept = everyone.iloc[_shuffled_strata(everyone, options.seed, everyone["split"].map(SPLITS.index))]
    if options.max_per_gender is not None:
        kept = _labelled(kept, "gender", "--data.max_per_gender")
        gender = kept.groupby("gender")["gender"]
        kept = kept[_evenly(gender.cumcount(), gender.transform("size"), options.max_per_gender)]
    if options.max_samples is not None:
        kept = kept[_evenly(np.arange(len(kept)), len(kept), options.max_samples)]
    kept = kept.sort_index()
    return {name: kept[kept["split"] == name].drop(columns="split").reset_index(drop=True) for name in SPLITS}


def _labelled(samples: pd.DataFrame, task: Task, options: str) -> pd.DataFrame:
    """The samples with a label, which these options are about; says how many have none."""
    unknown = samples[task] == MISSING
    if unknown.any():
        _log.info(f"{unknown.sum():,} images without a label for {task} left out because of {options}")
    return samples[~unknown]


def _shuffled_strata(samples: pd.DataFrame, seed: int, *first: Iterable[int]) -> NDArray[np.int64]:
    """An order in which those of one age band, gender and race are neighbours, and shuffled; unknown ones too.

    By a number drawn for each name, so that no machine, library or listing order can change it.
    """
    texts = (f"{seed}:{name}".encode() for name in samples["name"])
    lots = np.array([int.from_bytes(hashlib.sha256(text).digest()[:8]) for text in texts], np.uint64)
    return np.lexsort((lots, samples["race"], samples["gender"], samples["age"].map(age_band), *first))


def _evenly(position: Any, n: Any, count: int) -> Any:
    """Which of ``n`` to take to have ``count``: each run of neighbours gives its share, to within one."""
    return (position + 1) * count // n > position * count // n
