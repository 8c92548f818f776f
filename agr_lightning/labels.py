"""What a label is: the tasks, the classes and their codes, the age range, and how names and tables spell them.

No other file knows a code or spells a class name.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from agr_lightning.messages import UserError, did_you_mean

Task = Literal["age", "gender", "race"]
TASKS: tuple[Task, ...] = ("age", "gender", "race")

AGE_MIN, AGE_MAX = 0, 116
GENDERS = ("male", "female")
RACES = ("white", "black", "asian", "indian", "others")

# The tasks that choose a class, with the classes in the order of their codes.
ClassTask = Literal["gender", "race"]
CLASSES: dict[ClassTask, tuple[str, ...]] = {"gender": GENDERS, "race": RACES}

# The value that stands for "no label" in every integer label tensor.
MISSING = -1

# Lower bounds, in years, of the age bands in which figures are reported: those of FairFace
# (Karkkainen and Joo, WACV 2021), so that tables can be compared.
_BAND_STARTS = (0, 3, 10, 20, 30, 40, 50, 60, 70)
AGE_BANDS = (*(f"{low}-{high - 1}" for low, high in pairwise(_BAND_STARTS)), f"{_BAND_STARTS[-1]}+")

# What stands for no label in tables.
_UNKNOWN = frozenset(("", "-", "?", "-1", "-1.0", "n/a", "na", "<na>", "nan", "none", "null", "unknown"))

# What else genders are called.
_GENDER_WORDS = {"m": 0, "man": 0, "boy": 0, "f": 1, "woman": 1, "girl": 1}

# Ages: whole or decimal; from one to another; or from one on.
_NUMBER = r"(\d{1,3}(?:\.\d*)?)"
_AGE = re.compile(_NUMBER, re.ASCII)
_RANGE = re.compile(rf"{_NUMBER}\s*(?:[-–—]|to)\s*{_NUMBER}|[(\[]\s*{_NUMBER}\s*[,-]\s*{_NUMBER}\s*[)\]]", re.ASCII)
_AND_MORE = re.compile(rf"(?:more than|over|>=?|≥)\s*{_NUMBER}|{_NUMBER}\s*\+", re.ASCII)

# Years between the start of a range without an end and its middle: those of 70 and older are 80 on average in UTKFace.
_MORE = 10

# How a file name AGE_GENDER_RACE_DATETIME begins, in any case. Nothing is asked of what follows: some published names
# have a blank, a digit too many, or no dot there. The race may be left out, or be a lone digit at the end; where none
# is there, a digit that is no gender is perhaps of a date.
_NO_CODE = r"x|\?|-1|nan|none|null|unknown|"
NAME = rf"(-?[0-9]{{1,3}}|{_NO_CODE})_([0-9]|{_NO_CODE})_(?:([0-9](?![0-9a-z])|(?:{_NO_CODE})(?=_))|(?<![2-9]_))"


def age_band(age: float) -> int:
    """Index into ``AGE_BANDS`` of the band that holds ``age`` (years); ``MISSING`` for an unknown one."""
    return sum(age >= start for start in _BAND_STARTS) - 1


def parse_age(text: str) -> float | None:
    """Reads an age in years, 0 to 116, from a cell of a table.

    A range is its middle: 24.5 of "20-29", "20 to 29", "(20, 29)" or "[20, 29]". One without an end, "more than 70",
    "over 70", ">70" or "70+", is its start and 10 years.

    Returns ``MISSING`` for a cell that says that it is not known, and None for what is no age.
    """
    text = text.strip().casefold()
    if text in _UNKNOWN:
        return MISSING
    if found := _AGE.fullmatch(text):
        ages = [float(found[1])]
    elif found := _RANGE.fullmatch(text):
        ages = [float(number) for number in found.groups() if number]
    elif found := _AND_MORE.fullmatch(text):
        low = float(found[1] or found[2])
        ages = [low, max(low, min(low + 2 * _MORE, AGE_MAX))]
    else:
        return None
    return sum(ages) / len(ages) if AGE_MIN <= ages[0] <= ages[-1] <= AGE_MAX else None


def spelled(text: str) -> str:
    """What a class is called, as ``class_codes`` knows it: case, blanks and ``_`` make no difference."""
    return re.sub(r"[\s_]+", "", text).casefold()


def class_codes(task: ClassTask, other_names: Mapping[str, str] | None = None) -> dict[str, int]:
    """The code of each way to spell a class of ``task``; ``MISSING`` for those that stand for no label.

    ``other_names`` are those of another taxonomy, with the class that each one is here, or "unknown"; raises UserError
    for a value that is neither.
    """
    codes = dict.fromkeys(_UNKNOWN, MISSING) | (_GENDER_WORDS if task == "gender" else {})
    for code, name in enumerate(CLASSES[task]):
        codes |= dict.fromkeys((name, str(code), f"{code}.0"), code)
    for other, name in (other_names or {}).items():
        if spelled(name) not in codes:
            known = ", ".join(CLASSES[task])
            raise UserError(f"--data.race_map '{other}: {name}'{did_you_mean(name, CLASSES[task])}: expected {known}.")
    # YAML takes a code for a number.
    return codes | {spelled(str(other)): codes[spelled(name)] for other, name in (other_names or {}).items()}
