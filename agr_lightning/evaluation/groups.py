"""Figures by group: gender, race, age band, and two of these together."""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agr_lightning.evaluation.bootstrap import Column, Resampled, percentiles, wilson
from agr_lightning.evaluation.table import Table
from agr_lightning.files import Json
from agr_lightning.labels import AGE_BANDS, GENDERS, RACES, age_band

# Smaller groups are neither called the worst nor compared, and those of two attributes are not listed.
SMALLEST_GROUP = 30

# What is said of each group, and whether it is a share, whose interval is Wilson's.
GROUP_METRICS = {"age_mae": False, "age_bias": False, "age_coverage": True, "gender_acc": True, "race_acc": True}

# Of which the worst group is named, and whether more is worse.
RANKED = {"age_mae": True, "gender_acc": False, "race_acc": False}


class Group(NamedTuple):
    """Samples that share an attribute.

    Attributes:
        attribute: gender, race, age_band, "gender x race" or "race x age_band".
        value: its value; of two attributes "value x value".
        rows: of the samples, int64 ``(n,)``.
    """

    attribute: str
    value: str
    rows: NDArray[np.int64]

    @property
    def name(self) -> tuple[str, str]:
        """Attribute and value."""
        return self.attribute, self.value


def find_groups(table: Table) -> list[Group]:
    """Every group that has samples and, of two attributes, enough of them."""
    bands = np.array([age_band(age) for age in table.age], dtype=np.int64)
    single = {"gender": (table.gender, GENDERS), "race": (table.race, RACES), "age_band": (bands, AGE_BANDS)}
    groups = [group for name, (codes, values) in single.items() for group in _split(name, codes, values)]
    for first, second in (("gender", "race"), ("race", "age_band")):
        (a, a_values), (b, b_values) = single[first], single[second]
        codes = np.where((a >= 0) & (b >= 0), a * len(b_values) + b, -1)
        values = tuple(f"{x} x {y}" for x in a_values for y in b_values)
        both = _split(f"{first} x {second}", codes, values)
        groups += [group for group in both if len(group.rows) >= SMALLEST_GROUP]
    return groups


def _split(attribute: str, codes: NDArray[np.int64], values: tuple[str, ...]) -> Iterator[Group]:
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(values) + 1))
    for value, start, end in zip(values, edges, edges[1:], strict=False):
        if end > start:
            yield Group(attribute, value, order[start:end])


def group_columns(table: Table, groups: list[Group]) -> dict[Hashable, Column]:
    """The columns of which groups' figures are means, by attribute, value and metric."""
    per_sample = table.per_sample()
    columns: dict[Hashable, Column] = {}
    for group in groups:
        for metric in GROUP_METRICS:
            values = per_sample[metric]
            known = group.rows[~np.isnan(values[group.rows])]
            columns[(*group.name, metric)] = Column(known, values[known])
    return columns


def describe_groups(
    groups: list[Group], columns: dict[Hashable, Column], resampled: Resampled
) -> list[dict[str, Json]]:
    """One entry of results.json for each group."""
    entries = []
    for group in groups:
        entry: dict[str, Json] = {"attribute": group.attribute, "value": group.value, "n": len(group.rows)}
        intervals: dict[str, Json] = {}
        for metric, share in GROUP_METRICS.items():
            column = columns[(*group.name, metric)]
            bounds = None
            if share and column.mean is not None:
                bounds = wilson(column.mean, len(column.rows))
            elif len(column.rows) > 1:
                bounds = percentiles(resampled.means((*group.name, metric)))
            entry[metric] = column.mean
            intervals[metric] = list(bounds) if bounds else None
        entries.append(entry | {"intervals": intervals})
    return entries


def worst_groups(entries: list[dict[str, Json]]) -> dict[str, Json]:
    """By metric the group that fares worst, among those that are large enough; None where there is none."""
    worst: dict[str, Json] = {}
    for metric, more_is_worse in RANKED.items():
        ranked = _ranked(entries, metric, more_is_worse)
        chosen = ranked[-1] if ranked else None
        worst[metric] = (
            {name: chosen[name] for name in ("attribute", "value", "n", metric)}
            | {"interval": chosen["intervals"][metric]}  # type: ignore[index, call-overload]
            if chosen
            else None
        )
    return worst


def gaps(entries: list[dict[str, Json]], resampled: Resampled) -> list[Json]:
    """For each metric and attribute the distance between the best and the worst group, with its 95 % interval.

    The two groups are those of the whole test set, so that the interval is of one difference, not of a maximum.
    """
    found: list[Json] = []
    for metric, more_is_worse in RANKED.items():
        for attribute in dict.fromkeys(str(entry["attribute"]) for entry in entries):
            ranked = _ranked([e for e in entries if e["attribute"] == attribute], metric, more_is_worse)
            if len(ranked) < 2:
                continue
            best, worst = ranked[0], ranked[-1]
            means = [resampled.means((attribute, str(end["value"]), metric)) for end in (worst, best)]
            bounds = percentiles((means[0] - means[1]) * (1 if more_is_worse else -1))
            distance = abs(float(worst[metric]) - float(best[metric]))  # type: ignore[arg-type]
            found.append(
                {
                    "metric": metric,
                    "attribute": attribute,
                    "best": best["value"],
                    "worst": worst["value"],
                    "gap": distance,
                    "interval": list(bounds) if bounds else None,
                }
            )
    return found


def _ranked(entries: list[dict[str, Json]], metric: str, more_is_worse: bool) -> list[dict[str, Json]]:
    """The groups that are large enough, the best first."""
    large = [e for e in entries if isinstance(e["n"], int) and e["n"] >= SMALLEST_GROUP and e[metric] is not None]
    return sorted(large, key=lambda e: float(e[metric]), reverse=not more_is_worse)  # type: ignore[arg-type]
