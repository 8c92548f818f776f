import pytest
from hypothesis import given
from hypothesis import strategies as st

from agr_lightning.labels import AGE_BANDS, MISSING, LabelError, age_band, parse_name


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
    ],
)
def test_reads_names(name: str, label: tuple[int, int, int]) -> None:
    assert parse_name(name) == label


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("117_1_3_20170117.jpg", "age 117"),
        ("26_2_3_20170117.jpg", "gender '2'"),
        ("53__0_20170116184028385.jpg", "gender ''"),
        ("26_1_5_20170117.jpg", "race '5'"),
        ("26_1_x_20170117.jpg", "race 'x'"),
        ("-3_1_3_20170117.jpg", "name is not"),
        ("٣_1_3_20170117.jpg", "name is not"),
        ("IMG_2041.jpg", "name is not"),
        (".DS_Store", "name is not"),
        ("0000026_1_3_2017.jpg", "name is not"),
        ("", "name is not"),
    ],
)
def test_says_why_a_name_is_refused(name: str, reason: str) -> None:
    with pytest.raises(LabelError, match=reason):
        parse_name(name)


@given(st.text(max_size=60))
def test_any_text_is_a_label_or_a_reason(name: str) -> None:
    try:
        age, gender, race = parse_name(name)
    except LabelError as error:
        assert str(error)
    else:
        assert 0 <= age <= 116 and gender in (0, 1) and -1 <= race <= 4


@given(st.integers(0, 116), st.integers(0, 1), st.integers(0, 4), st.text("0123456789 .jpg", max_size=20))
def test_labels_survive_any_date(age: int, gender: int, race: int, date: str) -> None:
    assert parse_name(f"{age}_{gender}_{race}_{date}") == (age, gender, race)


def test_age_bands_cover_all_ages() -> None:
    named = [AGE_BANDS[age_band(age)] for age in (0, 2, 3, 9, 10, 69, 70, 116)]
    assert named == ["0-2", "0-2", "3-9", "3-9", "10-19", "60-69", "70+", "70+"]
