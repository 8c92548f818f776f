"""What is wrong with a data folder: for a terminal, and whole in JSON."""

from collections import Counter

from agr_lightning.data.index import Index, build_index
from agr_lightning.data.samples import Sample, Samples
from agr_lightning.files import Json, atomic_json, user_path
from agr_lightning.labels import AGE_BANDS, GENDERS, MISSING, RACES, age_band
from agr_lightning.messages import UserError

# How many single files or groups the terminal shows; the JSON has them all.
_SHOWN = 5


def audit(root: str, output: str | None = None, cache_dir: str | None = None) -> str:
    """Audits a data folder.

    Args:
        root: folder of UTKFace images, or their archive.
        output: file to write everything that was found to, as JSON; None for none.
        cache_dir: where derived files go; None for the user's cache folder.

    Returns:
        A report for the terminal.

    Raises:
        UserError: when the root holds no usable image, or the output cannot be written.
    """
    if output is not None and not user_path(output).parent.is_dir():
        raise UserError(f"--output {output}: its folder does not exist.")
    index = build_index(root, cache_dir, "DIR")
    if output is not None:
        atomic_json(user_path(output), _as_json(index))
    return _as_text(index, output)


def _as_text(index: Index, output: str | None) -> str:
    groups = index.duplicate_groups()
    disagreeing = [group for group in groups if _disagreement(group)]
    lines = [index.summary(), ""]
    lines += _table(index.samples)
    lines += [
        "",
        f"rejected files           {len(index.rejects):6,}",
        *(f"{count:8,}  {reason}" for reason, count in Counter(r.reason for r in index.rejects).most_common()),
        *(f"          {reject.name}: {reject.reason}" for reject in index.rejects[:_SHOWN]),
        f"photos there repeatedly  {len(groups):6,}  ({sum(map(len, groups)):,} files)",
        f"  whose labels disagree  {len(disagreeing):6,}",
    ]
    for group in disagreeing[:_SHOWN]:
        lines.append(f"          {' and '.join(_disagreement(group))}: {', '.join(sample.name for sample in group)}")
    if output is not None:
        lines += ["", f"All of it: {output}"]
    elif index.rejects or groups:
        lines += ["", "--output FILE.json writes every file and group."]
    return "\n".join(lines)


def _table(samples: Samples) -> list[str]:
    """Counts by age band, gender and race, with the totals."""
    races = [*RACES, "unknown"] if any(sample.race == MISSING for sample in samples) else list(RACES)
    lines = [f"{'age':8}" + "".join(f"{name:>9}" for name in [*GENDERS, *races, "all"]) + "   share"]
    for band, name in [*enumerate(AGE_BANDS), (None, "all")]:
        members = [sample for sample in samples if band is None or age_band(sample.age) == band]
        gender = Counter(sample.gender for sample in members)
        race = Counter(sample.race for sample in members)
        counts = [gender[code] for code in range(len(GENDERS))]
        counts += [race[code if code < len(RACES) else MISSING] for code in range(len(races))]
        cells = "".join(f"{count:9,}" for count in [*counts, len(members)])
        lines.append(f"{name:8}{cells}{len(members) / len(samples):8.1%}")
    return lines


def _disagreement(group: list[Sample]) -> list[str]:
    """Which labels differ within a group; a missing one differs from none."""
    genders = {sample.gender for sample in group}
    races = {sample.race for sample in group} - {MISSING}
    differing = {"age": len({sample.age for sample in group}), "gender": len(genders), "race": len(races)}
    return [label for label, values in differing.items() if values > 1]


def _as_json(index: Index) -> dict[str, Json]:
    samples = index.samples
    counts: dict[str, Json] = {
        "age_band": _named(Counter(age_band(s.age) for s in samples), AGE_BANDS),
        "gender": _named(Counter(s.gender for s in samples), GENDERS),
        "race": _named(Counter(s.race for s in samples), RACES)
        | {"unknown": sum(sample.race == MISSING for sample in samples)},
    }
    cells = Counter((age_band(s.age), s.gender, s.race) for s in samples)
    combined: list[Json] = [
        {
            "age_band": AGE_BANDS[band],
            "gender": GENDERS[gender],
            "race": RACES[race] if race != MISSING else None,
            "n": n,
        }
        for (band, gender, race), n in sorted(cells.items())
    ]
    groups: list[Json] = [
        {"files": [sample.name for sample in group], "disagree_on": list(_disagreement(group))}
        for group in index.duplicate_groups()
    ]
    rejects: list[Json] = [{"file": reject.name, "reason": reject.reason} for reject in index.rejects]
    return {
        "root": index.root,
        "images": len(samples),
        "counts": counts,
        "cells": combined,
        "rejected": rejects,
        "duplicate_groups": groups,
    }


def _named(counts: Counter[int], names: tuple[str, ...]) -> dict[str, Json]:
    return {name: counts[code] for code, name in enumerate(names)}
