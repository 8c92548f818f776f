"""What a label is: the tasks, the classes and their codes, the age range, and the file-name grammar.

No other file knows a code or spells a class name.
"""

import re
from itertools import pairwise
from typing import Literal

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


class LabelError(ValueError):
    """A file name from which no age and gender can be read; the text is the reason."""


def age_band(age: float) -> int:
    """Index into ``AGE_BANDS`` of the band that holds ``age`` (years)."""
    return sum(age >= start for start in _BAND_STARTS[1:])


def parse_name(name: str) -> tuple[int, int, int]:
    """Reads the labels from a file name ``AGE_GENDER_RACE_DATETIME.jpg[.chip.jpg]``.

    The date and the extension carry no label, so nothing is asked of them: some published names have a
    blank, a digit too many, or no dot there. A name without the race field keeps age and gender.

    Returns age in years, 0 to 116, and the indices into ``GENDERS`` and ``RACES`` (``MISSING`` where there is no race);
    raises LabelError when age or gender cannot be read, or a value is outside its range.

    Example:
        >>> parse_name("26_1_2_20170116184024662.jpg")
        (26, 1, 2)
    """
    fields = name.split("_")
    if len(fields) < 3 or not re.fullmatch(r"[0-9]{1,3}", fields[0]):
        raise LabelError("name is not AGE_GENDER_RACE_DATETIME")
    age, gender = int(fields[0]), fields[1]
    # Three fields: the race is left out, unless the third is a lone digit before the extension.
    race = fields[2] if len(fields) > 3 else "".join(re.findall(r"^[0-9](?=\.|$)", fields[2]))
    if not AGE_MIN <= age <= AGE_MAX:
        raise LabelError(f"age {age} is not {AGE_MIN} to {AGE_MAX}")
    if not re.fullmatch(r"[01]", gender):
        raise LabelError(f"gender '{gender[:12]}' is not 0 or 1")
    if not re.fullmatch(r"[0-4]?", race):
        raise LabelError(f"race '{race[:12]}' is not 0 to 4")
    return age, int(gender), int(race) if race else MISSING
