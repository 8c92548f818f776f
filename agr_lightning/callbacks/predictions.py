"""What `predict` leaves in the run folder: predictions.csv."""

import csv
import io
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from agr_lightning.callbacks.run_folder import run_folder
from agr_lightning.data.datamodule import UTKFaceDataModule
from agr_lightning.data.dataset import PhotoBatch
from agr_lightning.files import atomic_text
from agr_lightning.labels import GENDERS, RACES
from agr_lightning.models.network import Predictions
from agr_lightning.module import AGRModule
from agr_lightning.run_files import PREDICTIONS_FILE

_log = logging.getLogger(__name__)

COLUMNS = (
    *("path", "face", "status", "x", "y", "width", "height"),
    *("age", "age_low", "age_high", "gender", "gender_probability", "race", "race_probability"),
    *(f"prob_{name}" for name in GENDERS + RACES),
)

Row = dict[str, str | int | float]


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv``: at least one row for every input, in input order."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._rows: dict[int, Row] = {}

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._rows = {}

    def write_on_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: PhotoBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert isinstance(pl_module, AGRModule) and isinstance(prediction, Predictions)
        paths = trainer.datamodule.photos  # type: ignore[attr-defined]
        for row, place in enumerate(batch.place.tolist()):
            width, height = int(batch.width[row]), int(batch.height[row])
            self._rows[place] = _row(paths[place], width, height, prediction, row)

    def on_predict_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, UTKFaceDataModule)
        rows = self._rows
        if trainer.world_size > 1:
            parts: list[dict[int, Row] | None] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, rows)
            rows = {place: row for part in parts if part for place, row in part.items()}
        folder = run_folder(trainer)
        if folder is None:
            return
        path = folder / PREDICTIONS_FILE
        atomic_text(path, _csv([rows[place] for place in sorted(rows)]))
        counts = Counter(row["status"] for row in rows.values())
        _log.info(f"{len(rows):,} photos: " + ", ".join(f"{n:,} {status}" for status, n in counts.items()))
        _log.info(f"Predictions  {path}")


def _row(path: Path, width: int, height: int, prediction: Predictions, place: int) -> Row:
    if not width:
        return {"path": str(path), "status": "unreadable"}
    row: Row = {"path": str(path), "face": 0, "status": "ok", "x": 0, "y": 0, "width": width, "height": height}
    if prediction.age is not None:
        age = float(prediction.age[place])
        row["age"] = round(age, 2)
        for name, values in (("age_low", prediction.age_low), ("age_high", prediction.age_high)):
            if values is not None and not math.isnan(end := float(values[place])):
                row[name] = round(end, 2)
    for task, classes, values in (("gender", GENDERS, prediction.gender), ("race", RACES, prediction.race)):
        if values is not None:
            probabilities = [float(p) for p in values[place]]
            best = max(range(len(classes)), key=probabilities.__getitem__)
            row |= {task: classes[best], f"{task}_probability": round(probabilities[best], 4)}
            row |= {f"prob_{name}": round(p, 4) for name, p in zip(classes, probabilities, strict=True)}
    return row


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
