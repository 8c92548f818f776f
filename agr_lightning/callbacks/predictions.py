"""What `predict` leaves in the run folder, where a Trainer does the work."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from jsonargparse import Namespace

from agr_lightning.callbacks.run_folder import run_folder
from agr_lightning.data.datamodule import UTKFaceDataModule
from agr_lightning.data.dataset import PhotoBatch
from agr_lightning.inference.annotate import Annotator
from agr_lightning.inference.answers import answers
from agr_lightning.inference.photo_batches import photo_batches
from agr_lightning.inference.photo_reader import PhotoReader, ReadingOptions
from agr_lightning.inference.predict import OutputOptions, chosen, say_result
from agr_lightning.inference.predictions import Row, rows_of, write_rows
from agr_lightning.models.network import Predictions
from agr_lightning.runs import PREDICTIONS_FILES

_log = logging.getLogger(__name__)


def prepare_photos(
    options: Namespace, cards: bool, datamodule: UTKFaceDataModule, callbacks: Sequence[lightning.Callback]
) -> None:
    """Tells the data module which faces of which photos to read, and the writer what to write of them.

    Args:
        options: of `predict`.
        cards: whether the network was trained on drawn cards.
        datamodule: of the run.
        callbacks: of the run.
    """
    output = chosen(OutputOptions, vars(options))
    reader = PhotoReader(
        chosen(ReadingOptions, vars(options)), options.data.image_size, output.folder is not None, cards
    )
    datamodule.read_photos_by(functools.partial(photo_batches, reader=reader, batch_size=options.data.batch_size))
    for callback in callbacks:
        if isinstance(callback, PredictionWriter):
            callback.output = output
    _log.info(f"Faces        {reader.way}")


class PredictionWriter(lightning.Callback):
    """Writes predictions.csv, or .jsonl: at least one row for every input, in input order.

    Attributes:
        output: what to write.
    """

    def __init__(self) -> None:
        self.output = OutputOptions()
        self._rows: dict[int, list[Row]] = {}
        self._marker: Annotator | None = None

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._rows = {}
        folder = self.output.folder
        self._marker = None if folder is None else Annotator(folder, trainer.datamodule.photos)  # type: ignore[attr-defined]

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: PhotoBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, Predictions)
        found = iter(answers(outputs.arrays()))
        for photo in batch.photos.value:
            of_photo = [next(found) for _ in photo.boxes]
            self._rows.setdefault(photo.place, []).extend(rows_of(photo, of_photo))
            if self._marker is not None:
                self._marker(photo, of_photo)

    def on_predict_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, UTKFaceDataModule)
        rows = self._rows
        if trainer.world_size > 1:
            parts: list[dict[int, list[Row]] | None] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, rows)
            rows = {place: row for part in parts if part for place, row in part.items()}
        folder = run_folder(trainer)
        if folder is None:
            return
        path = folder / PREDICTIONS_FILES[self.output.format]
        counts = write_rows(path, (row for place in sorted(rows) for row in rows[place]), self.output.format)
        say_result(len(rows), counts, path)
