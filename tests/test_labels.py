from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agr_lightning.data.tables import LabelOptions, read_labels
from agr_lightning.labels import (
    AGE_BANDS,
    MISSING,
    ClassTask,
    age_band,
    class_codes,
    parse_age,
    spelled,
)
from agr_lightning.messages import UserError


def _labels(name: str) -> tuple[float, int, int] | str:
    """Age, gender and race in the name of a file, or why there are none."""
    table, rejects, _ = read_labels([name], Path(), LabelOptions())
    return rejects[name] if table.empty else tuple(table.loc[0, ["age", "gender", "race"]])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("26_1_3_20170117154657862.jpg", (26, 1, 3)),
        ("26_1_3_20170117154657862.jpg.chip.jpg", (26, 1, 3)),
        ("116_0_0_20170117154657862.jpg", (116, 0, 0)),
        ("0_0_4_20170117154657862.jpg", (0, 0, 4)),
        # The faults of the published names: whole labels, and something wrong behind them ...
        ("24_0_1_20170116220224657 .jpg.chip.jpg", (24, 0, 1)),
        ("28_1_2_201701161846515488.jpg.chip.jpg", (28, 1, 2)),
        ("55_0_0_20170116232725357jpg.chip.jpg", (55, 0, 0)),
        ("44_1_4_20170116235150272.pg.chip.jpg", (44, 1, 4)),
        # ... and the race left out.
        ("39_1_20170116174525125.jpg.chip.jpg", (39, 1, MISSING)),
        ("61_1__20170109142408075.jpg", (61, 1, MISSING)),
        ("30_1_2.jpg", (30, 1, 2)),
        # Renamed.
        ("25_1_2 (1).jpg", (25, 1, 2)),
        ("25_1_2 - Copy.jpg", (25, 1, 2)),
        ("25_1_2.png", (25, 1, 2)),
        # What is unknown, or no code, costs only itself.
        ("39_3_2_20170117.jpg", (39, MISSING, 2)),
        ("53__0_20170116184028385.jpg", (53, MISSING, 0)),
        ("25_x_1_20170117.jpg", (25, MISSING, 1)),
        ("25_x_x_20170117.jpg", (25, MISSING, MISSING)),
        ("26_1_5_20170117.jpg", (26, 1, MISSING)),
        ("26_1_x_20170117.jpg", (26, 1, MISSING)),
        ("117_1_3_20170117.jpg", (MISSING, 1, 3)),
        ("-3_1_3_20170117.jpg", (MISSING, 1, 3)),
        ("x_1_2_20170117.jpg", (MISSING, 1, 2)),
        ("_1_2_20170117.jpg", (MISSING, 1, 2)),
        ("-1_1_2_20170117.jpg", (MISSING, 1, 2)),
        ("unknown_1_2_20170117.jpg", (MISSING, 1, 2)),
    ],
)
def test_reads_names(name: str, label: tuple[int, int, int]) -> None:
    assert _labels(name) == label
    assert _labels(f"1_1_1_folder/{name}") == label


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x_x_x_20170117.jpg", "no label"),
        ("117_7_9_20170117.jpg", "no label"),
        # Perhaps a date.
        ("12_3_2019.jpg", "name is not"),
        ("2017_1_2_x.jpg", "name is not"),
        ("12_31_2019.jpg", "name is not"),
        ("IMG_1_2.jpg", "name is not"),
        ("DSC_0001_1.jpg", "name is not"),
        ("20_photo_of_me.jpg", "name is not"),
        ("٣_1_3_20170117.jpg", "name is not"),
        ("IMG_2041.jpg", "name is not"),
        (".DS_Store", "name is not"),
        ("0000026_1_3_2017.jpg", "name is not"),
        ("", "name is not"),
    ],
)
def test_says_why_a_name_is_refused(name: str, reason: str) -> None:
    for path in (name, f"1_1_1_folder/{name}"):
        assert str(_labels(path)).startswith(reason)


@given(st.text(max_size=60))
def test_any_text_is_a_label_or_a_reason(name: str) -> None:
    found = _labels(name)
    if isinstance(found, str):
        assert found
    else:
        age, gender, race = found
        assert -1 <= age <= 116 and -1 <= gender <= 1 and -1 <= race <= 4 and max(age, gender, race) >= 0


@given(st.lists(st.from_regex(r"-?[0-9]{0,4}|x|\?|unknown", fullmatch=True), min_size=3, max_size=5))
def test_only_codes_are_labels(fields: list[str]) -> None:
    labels = _labels("_".join(fields) + "_2017.jpg")
    for label, field in zip(labels, fields, strict=False) if isinstance(labels, tuple) else ():
        assert label == MISSING or label == int(field)


@given(st.integers(0, 116), st.integers(0, 1), st.integers(0, 4), st.text("0123456789 .jpg", max_size=20))
def test_labels_survive_any_date(age: int, gender: int, race: int, date: str) -> None:
    assert _labels(f"{age}_{gender}_{race}_{date}") == (age, gender, race)


def test_what_is_no_label_in_a_name_is_counted() -> None:
    names = ["999_1_2_a.jpg", "25_x_2_b.jpg", "30_x_1_c.jpg", "40__1_d.jpg"]
    assert read_labels(names, Path(), LabelOptions()).notes == [
        "file names: 1 ages are unknown (999)",
        "file names: 2 genders are unknown (x)",
    ]


@pytest.mark.parametrize(
    ("text", "age"),
    [
        *(("25", 25), (" 25.5 ", 25.5), ("25.0", 25), ("0", 0), ("116", 116)),
        *(("20-29", 24.5), ("(25, 32)", 28.5), ("[25,32]", 28.5), ("20 to 29", 24.5), ("20–29", 24.5), ("60-116", 88)),
        *(
            ("more than 70", 80),
            ("More Than 70", 80),
            ("70+", 80),
            ("70 +", 80),
            (">70", 80),
            (">= 70", 80),
            ("110+", 113),
        ),
        *((text, MISSING) for text in ("", " ", "-1", "nan", "None", "NULL", "?", "unknown", "N/A")),
        *(
            (text, None)
            for text in ("999", "-5", "117", "29-20", "20-200", "x", "25 32", "1e1", "٢٥", "(25)", "2024-05-01")
        ),
    ],
)
def test_reads_ages(text: str, age: float | None) -> None:
    assert parse_age(text) == age


@given(st.text("0123456789.,-–+>()[] tomrehan", max_size=14) | st.text(max_size=14))
def test_any_text_is_an_age_or_none(text: str) -> None:
    age = parse_age(text)
    assert age is None or age == MISSING or 0 <= age <= 116


@given(st.floats(0, 116), st.floats(0, 116))
def test_a_range_holds_its_age(one: float, other: float) -> None:
    low, high = sorted((round(one, 2), round(other, 2)))
    age = parse_age(f"({low}, {high})")
    assert age is not None and low - 1e-9 <= age <= high + 1e-9


@pytest.mark.parametrize(
    ("task", "texts", "code"),
    [
        ("gender", ["0", "0.0", "m", "M", "male", "Male", "MAN", "boy"], 0),
        ("gender", ["1", "1.0", "f", "Female", "woman", "Girl"], 1),
        ("gender", ["", "nan", "-1", "?", "unknown"], MISSING),
        ("gender", ["x", "u", "2", "males"], None),
        ("race", ["2", "2.0", "asian", "ASIAN", "east asian", "East_Asian"], 2),
        ("race", ["martian", "Latino", "5"], None),
        ("race", ["mixed", ""], MISSING),
    ],
)
def test_reads_classes(task: ClassTask, texts: list[str], code: int | None) -> None:
    codes = class_codes(task, {"East Asian": "Asian", "Mixed": "unknown"} if task == "race" else None)
    assert [codes.get(spelled(text)) for text in texts] == [code] * len(texts)


def test_other_races_are_races() -> None:
    with pytest.raises(UserError, match=r"'East Asian: asean' \(did you mean 'asian'\?\): expected white"):
        class_codes("race", {"East Asian": "asean"})


@given(st.text(max_size=12), st.sampled_from(["gender", "race"]))
def test_any_text_is_a_class_or_none(text: str, task: ClassTask) -> None:
    assert class_codes(task).get(spelled(text)) in (None, MISSING, 0, 1, 2, 3, 4)


def test_age_bands_cover_all_ages() -> None:
    named = [AGE_BANDS[age_band(age)] for age in (0, 2, 3, 9, 10, 69, 70, 116)]
    assert named == ["0-2", "0-2", "3-9", "3-9", "10-19", "60-69", "70+", "70+"]
    assert age_band(29.9) == age_band(20) and age_band(MISSING) == MISSING
