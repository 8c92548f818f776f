"""What a run writes into its folder beside checkpoints: splits, results, figures, curves and predictions."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger

from agr_lightning.checkpoints import SHIPPED
from agr_lightning.data.splits import write_split
from agr_lightning.datamodule import PhotoBatch
from agr_lightning.evaluation.results import make_results, summary
from agr_lightning.files import (
    FIGURES_FOLDER,
    PREDICTIONS_FILES,
    RESULTS_FILE,
    SPLITS_FOLDER,
    atomic_json,
    atomic_write,
)
from agr_lightning.inference.predict import Format, TableWriter, annotator, join_parts, say_result
from agr_lightning.inference.predictor import answers
from agr_lightning.models.network import Predictions
from agr_lightning.module import AGRModule
from agr_lightning.run_folder import BestCheckpoint, LastCheckpoint, run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)


def training_callbacks(logger: bool = True) -> list[lightning.Callback]:
    """What `fit` gives to its Trainer, for a Trainer of one's own.

    Args:
        logger: whether the Trainer has one, without which nothing but checkpoints is kept.
    """
    kept: list[lightning.Callback] = [BestCheckpoint(), LastCheckpoint()]
    return [*kept, LearningRateMonitor("step"), SplitWriter(), ResultsWriter(), CurveWriter()] if logger else kept


class SplitWriter(lightning.Callback):
    """Writes ``splits/train.txt``, ``val.txt`` and ``test.txt`` when training starts."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            data = trainer.datamodule  # type: ignore[attr-defined]
            write_split({split: data.samples(split) for split in ("train", "val", "test")}, folder / SPLITS_FOLDER)


class CurveWriter(lightning.Callback):
    """Draws what a run has logged to TensorBoard when its training ends, earlier parts of a resumed run too."""

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = run_folder(trainer)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if folder is None or not trainer.is_global_zero or not loggers:
            return
        from agr_lightning.evaluation.figures import CURVES_FIGURE, draw_curves, read_curves

        loggers[0].experiment.flush()
        figure = draw_curves(read_curves(Path(loggers[0].log_dir)))
        if figure is not None:
            _save_figures(trainer, folder, {CURVES_FIGURE: figure}, "fit")


class ResultsWriter(lightning.Callback):
    """Writes ``results.json`` and ``figures/`` after every test, shows both in TensorBoard, and logs a summary."""

    def __init__(self) -> None:
        # Not Lightning's Timer, beside which --trainer.max_time would do nothing.
        self._seconds_before = 0.0
        self._started: float | None = None
        self._training_seconds: float | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._training_seconds = self._seconds()

    def _seconds(self) -> float:
        return self._seconds_before + (0 if self._started is None else time.monotonic() - self._started)

    def state_dict(self) -> dict[str, Any]:
        return {"training_seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["training_seconds"]

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, AGRModule)
        table = pl_module.table.compute()  # gathered from all processes, written by one
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        from agr_lightning.evaluation.figures import draw_figures

        data = trainer.datamodule  # type: ignore[attr-defined]
        results = make_results(table, data.samples("test"), self._facts(trainer, pl_module, folder))
        atomic_json(folder / RESULTS_FILE, results)
        _save_figures(trainer, folder, draw_figures(table, results, lambda rows: data.faces("test", rows)), "test")
        final = {f"test/{name}": value for name, value in results["metrics"].items() if isinstance(value, float)}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):  # its HParams tab
                logger.log_hyperparams({**pl_module.hparams, **data.hparams}, final, trainer.global_step)
        _log.info(summary(results))

    def _facts(self, trainer: lightning.Trainer, module: AGRModule, folder: Path) -> dict[str, Any]:
        network = module.network
        fitted = network.calibration
        checkpoint = str(trainer.ckpt_path or module.loaded_from)
        if checkpoint and checkpoint not in SHIPPED:
            checkpoint = os.path.relpath(checkpoint, folder)  # so that runs can be moved together
        return {
            "checkpoint": checkpoint,
            "epoch": module.checkpoint_epoch,
            "network": network.config.to_dict(),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "temperatures": {"gender": float(fitted.gender_temperature), "race": float(fitted.race_temperature)},
            "adult_threshold": None if fitted.adult_threshold.isnan() else float(fitted.adult_threshold),
            "training_seconds": self._training_seconds,
        }


def _save_figures(trainer: lightning.Trainer, folder: Path, figures: "Mapping[str, Figure]", stage: str) -> None:
    """Writes figures as PNG files, and shows them in TensorBoard."""
    (folder / FIGURES_FOLDER).mkdir(exist_ok=True)
    for name, figure in figures.items():
        with atomic_write(folder / FIGURES_FOLDER / f"{name}.png") as file:
            figure.savefig(file, format="png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(f"{stage}/{name}", figure, trainer.global_step)


class PredictionWriter(lightning.Callback):
    """Writes ``predictions.csv``, or ``.jsonl``: at least one row for every input, in input order, as they are made.

    Args:
        format: csv, or jsonl with one JSON object a line.
        annotate: folder for copies with boxes and labels; null for no copies.
    """

    def __init__(self, format: Format = "csv", annotate: str | None = None) -> None:
        self.format, self.annotate = format, annotate
        self._table: TableWriter | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        # Not on_predict_start, before which the first photos are read.
        folder = run_folder(trainer) if stage == "predict" else None
        if folder is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        data.keep_pictures = self.annotate is not None
        copies = None if self.annotate is None else annotator(self.annotate, data.photos_to_predict)
        self._parts = [folder / f"predictions.part{rank}" for rank in range(trainer.world_size)]
        self._part = self._parts[trainer.global_rank].open("wb")
        self._table = TableWriter(self._part, "part", copies)

    def on_predict_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        if self._table is not None and isinstance(batch, PhotoBatch) and isinstance(outputs, Predictions):
            self._table.write(batch.photos, answers(outputs.arrays()))

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._table is None:
            return
        self._part.close()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            path = self._parts[0].with_name(PREDICTIONS_FILES[self.format])
            counts = join_parts(self._parts, path, self.format)
            say_result(len(trainer.datamodule.photos_to_predict), counts, path)  # type: ignore[attr-defined]

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if self._table is not None:
            self._part.close()
            self._parts[trainer.global_rank].unlink(missing_ok=True)
