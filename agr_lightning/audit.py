"""What is wrong with a data folder: for a terminal, and whole in JSON."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from agr_lightning.data.index import Index, build_index, derived_files
from agr_lightning.data.tables import LabelOptions
from agr_lightning.files import atomic_json, cache_folder, remove, user_path
from agr_lightning.inference.crop import not_crops
from agr_lightning.labels import AGE_BANDS, CLASSES, MISSING, TASKS, age_band

# How many single files or groups the terminal shows; the JSON has them all.
_SHOWN = 5

_UNKNOWN = "unknown"  # of a label


def audit(
    root: str, output: str | None = None, cache_dir: str | None = None, clear_cache: bool = False, **labels: Any
) -> str:
    """Audits a data folder, and returns a report for the terminal.

    Args:
        root: folder of UTKFace images, or their archive.
        output: file to write everything that was found to, as JSON; None for none.
        cache_dir: where derived files go; None for the user's cache folder.
        clear_cache: remove what commands have derived from this folder, instead of auditing it.
        **labels: where labels come from, as in ``LabelOptions``.
    """
    if clear_cache:
        cached = _cached(root, cache_dir)
        for path in derived_files(root, cache_dir):
            remove(path)
        return f"removed {cached}"
    index = build_index(root, cache_dir, "DIR", LabelOptions(**labels))
    samples = index.samples
    codes = samples.assign(age_band=samples["age"].map(age_band))
    table = pd.DataFrame(
        {
            # MISSING is the last.
            name: pd.Categorical.from_codes(codes[name] % (len(names) + 1), [*names, _UNKNOWN])
            for name, names in ({"age_band": AGE_BANDS} | CLASSES).items()
        }
    )
    groups = []
    for _, group in samples[samples.duplicated("photo", keep=False)].groupby("photo", sort=False):
        # A missing label differs from none.
        differing = [name for name in TASKS if group[name].replace(MISSING, np.nan).nunique() > 1]
        groups.append({"files": list(group["name"]), "disagree_on": differing})
    if output is not None:
        atomic_json(user_path(output), _as_json(index, table, groups))
    report = _as_text(index, table, groups, output)
    return f"{report}\n\nDerived files: {_cached(root, cache_dir)} (--clear_cache removes them)."


def _cached(root: str, cache_dir: str | None) -> str:
    """How much of a disk is taken by what was derived from a folder."""
    files = [file for path in derived_files(root, cache_dir) for file in (path, *path.rglob("*"))]
    return f"{sum(512 * file.stat().st_blocks for file in files) / 1e6:,.0f} MB in {cache_folder(cache_dir)}"


def _as_text(index: Index, labels: pd.DataFrame, groups: list[Any], output: str | None) -> str:
    disagreeing = [group for group in groups if group["disagree_on"]]
    lines = [index.summary(), "", *_table(labels), "", f"rejected files           {len(index.rejects):6,}"]
    lines[1:1] = filter(None, [not_crops(index)])
    lines += [f"{count:8,}  {reason}" for reason, count in Counter(index.rejects.values()).most_common()]
    lines += [f"          {file}: {reason}" for file, reason in list(index.rejects.items())[:_SHOWN]]
    lines += [f"photos there repeatedly  {len(groups):6,}  ({sum(len(group['files']) for group in groups):,} files)"]
    lines += [f"  whose labels disagree  {len(disagreeing):6,}"]
    lines += [f"          {' and '.join(g['disagree_on'])}: {', '.join(g['files'])}" for g in disagreeing[:_SHOWN]]
    if output is not None:
        lines += ["", f"All of it: {output}"]
    elif index.rejects or groups:
        lines += ["", "--output FILE.json writes every file and group."]
    return "\n".join(lines)


def _table(labels: pd.DataFrame) -> list[str]:
    """Counts by age band, gender and race, with the totals."""
    bands = labels["age_band"]
    counts = [pd.crosstab(bands, labels[name], dropna=False) for name in CLASSES]
    table = pd.concat([*counts, bands.value_counts().rename("all")], axis=1)
    table = table.loc[(table["all"] > 0) | (table.index != _UNKNOWN), (table.columns != _UNKNOWN) | (table.sum() > 0)]
    table.loc["all"] = table.sum().to_numpy()
    lines = [f"{'age':8}" + "".join(f"{name:>9}" for name in table) + "   share"]
    for band, counts in table.iterrows():
        cells = "".join(f"{count:9,}" for count in counts)
        lines.append(f"{band:8}{cells}{counts['all'] / len(labels):8.1%}")
    return lines


def _as_json(index: Index, labels: pd.DataFrame, groups: list[Any]) -> dict[str, Any]:
    cells = labels.value_counts().sort_index()
    return {
        "root": index.root,
        "images": len(labels),
        "counts": {name: column.value_counts(sort=False).to_dict() for name, column in labels.items()},
        "cells": [
            {name: None if value == _UNKNOWN else value for name, value in zip(labels, cell, strict=True)}
            | {"n": int(n)}
            for cell, n in cells[cells > 0].items()
        ],
        "rejected": [{"file": file, "reason": reason} for file, reason in index.rejects.items()],
        "duplicate_groups": groups,
    }
