import hashlib
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agr_lightning.data.index import Index, build_index
from agr_lightning.data.loading import EvalSampler, TrainSampler, balancing_weights
from agr_lightning.data.splits import SPLITS, Split, SplitOptions, make_split, read_split, write_split
from agr_lightning.labels import MISSING, age_band
from agr_lightning.messages import UserError


def _population(n: int, seed: int = 0, group_share: float = 0.1) -> pd.DataFrame:
    """Samples with labels as uneven as UTKFace's, some of them copies of others."""
    rng = random.Random(seed)
    samples: list[dict[str, object]] = []
    for i in range(n):
        age = min(116, int(rng.expovariate(1 / 30)))
        race = rng.choices(range(-1, 5), (0.01, 0.43, 0.19, 0.14, 0.17, 0.06))[0]
        name = f"{age}_{i:06}.jpg"
        group = rng.choice(samples)["group"] if samples and rng.random() < group_share else i
        gender = rng.randrange(2)
        sample = {"name": name, "age": age, "gender": gender, "race": race, "group": group, "split": "", "row": i}
        samples.append(sample)
    return pd.DataFrame(samples)


def _listed(split: Split) -> dict[str, list[str]]:
    return {name: list(members["name"]) for name, members in split.items()}


def _together(split: Split) -> pd.DataFrame:
    return pd.concat([members.assign(split=name) for name, members in split.items()])


POPULATION = _population(4000)

TEST_SPLIT_OF_60 = ["11_000053.jpg", "29_000057.jpg", "2_000013.jpg", "38_000009.jpg", "59_000058.jpg", "77_000019.jpg"]

# As they were before labels could be missing, which changes no split of those that have all.
SPLITS_OF_CARDS = [
    ({}, "3cfd26dee420d68f"),
    ({"seed": 3}, "de5b469cbcbe7919"),
    ({"max_samples": 77}, "d33560e75fdd2690"),
    ({"max_per_gender": 31, "max_samples": 50}, "4966a525e8b3e430"),
    ({"age_min": 21, "age_max": 60}, "6674557c5c6f69dc"),
]


def test_every_sample_is_in_one_split_and_copies_stay_together() -> None:
    everyone = _together(make_split(POPULATION, SplitOptions()))
    assert sorted(everyone["name"]) == sorted(POPULATION["name"])
    assert (everyone.groupby("group")["split"].nunique() == 1).all()


def test_splits_have_their_size_and_the_same_shares() -> None:
    split = make_split(POPULATION, SplitOptions(val_fraction=0.1, test_fraction=0.2))
    assert abs(len(split["val"]) - 400) < 30 and abs(len(split["test"]) - 800) < 50
    for attribute in ("gender", "race", "band"):
        shares = pd.DataFrame(
            {
                name: members.assign(band=members["age"].map(age_band))[attribute].value_counts(normalize=True)
                for name, members in split.items()
            }
        ).fillna(0)
        assert (shares["train"] - shares["test"]).abs().max() < 0.02, attribute
        assert (shares["train"] - shares["val"]).abs().max() < 0.025, attribute


def test_the_split_does_not_depend_on_the_listing_order() -> None:
    shuffled = POPULATION.sample(frac=1, random_state=1)
    assert _listed(make_split(POPULATION, SplitOptions())) == _listed(make_split(shuffled, SplitOptions()))


def test_the_split_is_the_same_on_every_machine() -> None:
    split = make_split(_population(60), SplitOptions(val_fraction=0.1, test_fraction=0.1))
    # Written down once: whoever changes this changes what everybody's figures were measured on.
    assert list(split["test"]["name"]) == TEST_SPLIT_OF_60


@pytest.mark.parametrize(("options", "digest"), SPLITS_OF_CARDS)
def test_the_split_of_cards_is_what_it_was(index: Index, options: dict[str, int], digest: str) -> None:
    for samples in (index.samples, index.samples.assign(age=index.samples["age"].astype(float))):
        listed = _listed(make_split(samples, SplitOptions(**options)))  # type: ignore[arg-type]
        assert hashlib.sha256(repr(listed).encode()).hexdigest()[:16] == digest


def test_those_without_a_label_are_strata_of_their_own() -> None:
    samples = _population(4000, group_share=0)
    random = np.random.default_rng(0)
    for task in ("age", "gender", "race"):
        samples[task] = samples[task].where(random.random(4000) > 0.3, MISSING)
    samples["age"] += np.where(samples["age"] == MISSING, 0, random.choice([0, 0.25, 0.9], 4000))
    split = make_split(samples, SplitOptions(test_fraction=0.2))
    strata = samples.assign(band=samples["age"].map(math.floor).map(lambda age: -1 if age < 0 else age_band(age)))
    strata["test"] = strata["name"].isin(split["test"]["name"])
    sizes = strata.groupby(["band", "gender", "race"])["test"].agg(["sum", "size"])
    assert len(sizes) > 120 and ((sizes["sum"] - 0.2 * sizes["size"]).abs() <= 1).all()


def test_unknown_ages_are_used_where_all_ages_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    samples = POPULATION.assign(age=POPULATION["age"].where(POPULATION.index >= 100, MISSING))
    assert len(_together(make_split(samples, SplitOptions()))) == len(samples) and not caplog.text
    for limits in ({"age_min": 1}, {"age_min": -5, "age_max": 60}, {"age_min": 20, "age_max": 60}):
        kept = _together(make_split(samples, SplitOptions(**limits)))["age"]
        allowed = samples["age"].between(max(limits["age_min"], 0), limits.get("age_max", 116))
        assert sorted(kept) == sorted(samples["age"][allowed])
        assert caplog.text.count("100 images without a label for age left out") == 1
        caplog.clear()


def test_unknown_genders_are_not_used_where_genders_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    samples = POPULATION.assign(gender=POPULATION["gender"].where(POPULATION.index >= 100, MISSING))
    everyone = _together(make_split(samples, SplitOptions(max_per_gender=300)))
    assert everyone["gender"].value_counts().to_dict() == {0: 300, 1: 300}
    assert "100 images without a label for gender left out because of --data.max_per_gender" in caplog.text


def test_another_seed_deals_another_split() -> None:
    one, two = (set(make_split(POPULATION, SplitOptions(seed=seed))["test"]["name"]) for seed in (0, 1))
    assert len(one & two) < 0.3 * len(one)


@given(
    st.integers(1, 120),
    st.integers(0, 50),
    st.floats(0, 0.49),
    st.floats(0, 0.49),
    st.none() | st.integers(1, 150),
    st.none() | st.integers(1, 80),
)
@settings(max_examples=60, deadline=None)
def test_any_options_give_a_split_within_its_limits(
    n: int, seed: int, val: float, test: float, most: int | None, per_gender: int | None
) -> None:
    samples = _population(n, seed)
    split = make_split(samples, SplitOptions("random", seed, val, test, most, per_gender))
    kept = _together(split)
    assert kept["name"].is_unique and kept["name"].isin(samples["name"]).all()
    if most is None and per_gender is None:
        assert len(kept) == n
    if most is not None:
        assert len(kept) <= most
    if per_gender is not None:
        assert (kept["gender"].value_counts() <= per_gender).all()
    assert (kept.groupby("group")["split"].nunique() == 1).all()
    assert all(list(members.index) == list(range(len(members))) for members in split.values())


def test_a_subset_keeps_the_shares_and_stays_in_its_splits() -> None:
    whole = make_split(POPULATION, SplitOptions())
    part = make_split(POPULATION, SplitOptions(max_samples=1000))
    assert sum(map(len, part.values())) == 1000
    for name in SPLITS:
        assert part[name]["name"].isin(whole[name]["name"]).all()
        assert abs(len(part[name]) / 1000 - len(whole[name]) / 4000) < 0.01
    share = [(split["train"]["race"] == 0).mean() for split in (whole, part)]
    assert abs(share[0] - share[1]) < 0.02


def test_at_most_so_many_of_each_gender() -> None:
    everyone = _together(make_split(POPULATION, SplitOptions(max_per_gender=300)))
    assert everyone["gender"].value_counts().to_dict() == {0: 300, 1: 300}


def test_a_written_split_is_read_back(tmp_path: Path) -> None:
    split = make_split(POPULATION, SplitOptions(max_samples=500))
    write_split(split, tmp_path)
    assert _listed(make_split(POPULATION, SplitOptions(split=str(tmp_path)))) == _listed(split)
    # The limits it was made with change nothing.
    assert _listed(make_split(POPULATION, SplitOptions(split=str(tmp_path), max_samples=500))) == _listed(split)


def test_lists_that_cannot_be_right(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = POPULATION[:6].assign(group=range(6))
    names = list(samples["name"])
    (tmp_path / "train.txt").write_text("\n".join([*names[:3], "gone.jpg", ""]))
    (tmp_path / "test.txt").write_text(f"{names[3]}\r\n{names[4]}\r\n")
    split = read_split(tmp_path, samples)
    assert [len(split[name]) for name in SPLITS] == [3, 0, 2]
    assert "1 of its 4 names are not among the images, gone.jpg for one." in caplog.text
    (tmp_path / "val.txt").write_text(names[0])
    with pytest.raises(UserError, match=r"in both train\.txt and val\.txt"):
        read_split(tmp_path, samples)
    (tmp_path / "val.txt").write_text("lost.jpg")
    with pytest.raises(UserError, match=r"val\.txt: none of its 1 names .*lost\.jpg"):
        read_split(tmp_path, samples)


def test_a_folder_without_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be 'random' or a folder"):
        make_split(POPULATION, SplitOptions(split=str(tmp_path)))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_as_other_editors_write_them(tmp_path: Path, encoding: str) -> None:
    for row, name in enumerate(SPLITS):
        (tmp_path / f"{name}.txt").write_text(f"{POPULATION['name'][row]} \r\n\r\n", encoding)
    split = read_split(tmp_path, POPULATION)
    assert [members["row"].tolist() for members in split.values()] == [[0], [1], [2]]


NAMED = ["25_1_2_2017.jpg.chip.jpg", "my face.jpg", "a, b.png", "c.jpg copy.jpg", "Müller.jpg", "a/1.jpg", "b/1.jpg"]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        *((name, name) for name in NAMED),
        ("UTKFace/part1/25_1_2_2017.jpg.chip.jpg", NAMED[0]),
        (".\\UTKFace\\25_1_2_2017.jpg.chip.jpg", NAMED[0]),
        ("25_1_2_2017.jpg.chip.jpg 25 0 1", NAMED[0]),
        ("25_1_2_2017.jpg.chip.jpg,25", NAMED[0]),
        ('"25_1_2_2017.jpg.chip.jpg";25', NAMED[0]),
        ("25_1_2_2017.jpg", NAMED[0]),
        ("25_1_2_2017.PNG\t25", NAMED[0]),
        ("faces/25_1_2_2017.jpeg 25", NAMED[0]),
        ("25_1_2_2017", NAMED[0]),
        ("my face.jpg 25 0", NAMED[1]),
        ("x/my face.jpg", NAMED[1]),
        ("a, b.png,25", NAMED[2]),
        ("c.jpg copy.jpg", NAMED[3]),
        ("data/b/1.jpg\t20", NAMED[6]),
        ("data/b/1.png", NAMED[6]),
    ],
)
def test_a_line_names_a_sample(tmp_path: Path, line: str, name: str) -> None:
    samples = pd.DataFrame({"name": NAMED, "group": range(len(NAMED))})
    (tmp_path / "test.txt").write_text(f"{line}\n{line}\n", "cp1252" if line.startswith("M") else "utf-8")
    assert _listed(read_split(tmp_path, samples))["test"] == [name]


def test_a_line_that_can_mean_two_samples_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = pd.DataFrame({"name": ["a/1.jpg", "b/1.jpg", "2.jpg", "2.png", "3.jpg"], "group": range(5)})
    (tmp_path / "test.txt").write_text("1.jpg\n2.bmp\n3.jpg\n2.png\n")
    assert _listed(read_split(tmp_path, samples))["test"] == ["2.png", "3.jpg"]
    assert "1.jpg can mean a/1.jpg and b/1.jpg, and is left out" in caplog.text
    assert "2.bmp can mean 2.jpg and 2.png, and is left out" in caplog.text and len(caplog.records) == 2


def test_a_sample_in_two_lists_by_two_names(tmp_path: Path) -> None:
    samples = pd.DataFrame({"name": NAMED, "group": range(len(NAMED))})
    (tmp_path / "train.txt").write_text("25_1_2_2017.jpg")
    (tmp_path / "test.txt").write_text("UTKFace/25_1_2_2017.jpg.chip.jpg")
    with pytest.raises(UserError, match=r"25_1_2_2017\.jpg\.chip\.jpg is in both train\.txt and test\.txt"):
        read_split(tmp_path, samples)


def test_ages_are_taken_from_every_split() -> None:
    whole = make_split(POPULATION, SplitOptions())
    part = make_split(POPULATION, SplitOptions(age_min=21, age_max=60))
    for name in SPLITS:
        kept = whole[name][whole[name]["age"].between(21, 60)]
        assert len(kept) < len(whole[name]) and list(part[name]["row"]) == list(kept["row"])


def test_lists_that_leak_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = POPULATION[:2].assign(name=["one.jpg", "copy.jpg"], group=0)
    (tmp_path / "train.txt").write_text("one.jpg")
    (tmp_path / "test.txt").write_text("copy.jpg")
    read_split(tmp_path, samples)
    assert "1 of 1 test images show a photo or a person that is in train" in caplog.text


def test_training_order_depends_on_seed_and_epoch_alone() -> None:
    epoch = 0

    def order(seed: int = 0, rank: int = 0, ranks: int = 1) -> list[int]:
        return [draw.index for draw in TrainSampler(50, seed, lambda: (epoch, 0), None, rank, ranks)]

    first = order()
    assert sorted(first) == list(range(50)) and order() == first and order(seed=1) != first
    dealt = [order(rank=rank, ranks=4) for rank in range(4)]
    assert {len(part) for part in dealt} == {13}
    assert [index for row in zip(*dealt, strict=True) for index in row][:50] == first
    epoch = 1
    assert order() != first


def test_a_killed_epoch_goes_on_where_it_stopped() -> None:
    whole = list(TrainSampler(50, 0, lambda: (3, 0), None, 1, 2))
    assert list(TrainSampler(50, 0, lambda: (3, 10), None, 1, 2)) == whole[10:]


def test_balanced_draws_are_balanced_over_all_ranks() -> None:
    classes = [0] * 900 + [1] * 90 + [2] * 10
    weights = balancing_weights(pd.DataFrame({"race": classes}), "race")
    counts: Counter[int] = Counter()
    for rank in range(2):
        counts.update(classes[draw.index] for draw in TrainSampler(1000, 0, lambda: (0, 0), weights, rank, 2))
    assert sum(counts.values()) == 1000
    assert all(abs(count - 333) < 60 for count in counts.values())


def test_balancing_draws_the_unlabelled_as_often_as_before() -> None:
    weights = balancing_weights(pd.DataFrame({"gender": [0] * 60 + [1] * 30 + [MISSING] * 10}), "gender")
    assert weights[-10:].sum() / weights.sum() == pytest.approx(0.1)
    assert weights[:60].sum() == pytest.approx(weights[60:90].sum())


def test_ages_are_balanced_by_their_bands() -> None:
    ages = [20.0, 29.5, 25.0, 22.0] * 10 + [30.0] * 20 + [1.5] * 5 + [MISSING] * 35
    weights = balancing_weights(pd.DataFrame({"age": ages}), "age")
    assert weights[65:].sum() / weights.sum() == pytest.approx(0.35)
    sums = [weights[:40].sum(), weights[40:60].sum(), weights[60:65].sum()]
    assert sums == pytest.approx([sums[0]] * 3) and len(set(weights[:40])) == 1
    assert (balancing_weights(pd.DataFrame({"age": [MISSING] * 3}), "age") == 1).all()


@given(st.integers(0, 60), st.integers(1, 5))
def test_evaluation_draws_every_sample_once_over_all_ranks(size: int, ranks: int) -> None:
    samplers = [EvalSampler(range(size), ranks, rank) for rank in range(ranks)]
    drawn = [index for sampler in samplers for index in sampler]
    assert sorted(drawn) == list(range(size)) and sum(map(len, samplers)) == size


def test_cards_are_split_without_leaks(index: Index) -> None:
    split = make_split(index.samples, SplitOptions())
    assert all(map(len, split.values()))


@pytest.mark.real_data
def test_real_copies_are_never_in_two_splits(utkface: Path) -> None:
    split = make_split(build_index(str(utkface)).samples, SplitOptions())
    assert abs(len(split["test"]) - 1897) < 40
    assert (_together(split).groupby("group")["split"].nunique() == 1).all()


def test_the_split_of_a_table_of_labels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    said = np.array([*["train"] * 60, *["test"] * 30, *[""] * 10])
    samples = _population(100, group_share=0).assign(split=said)
    split = make_split(samples, SplitOptions(val_fraction=0.2))
    names = {name: set(members["name"]) for name, members in split.items()}
    assert names["test"] == set(samples["name"][said == "test"]) and len(names["val"]) == 12
    assert names["train"] | names["val"] == set(samples["name"][said == "train"])
    assert "10 images left out, for which the table of labels has no split" in caplog.text
    said[:5] = "val"
    again = make_split(samples.assign(split=said, group=1), SplitOptions())
    assert set(again["val"]["name"]) == set(samples["name"][:5]) and len(again["train"]) == 55
    assert "5 of 5 val images show a photo or a person that is in train" in caplog.text
