"""What a run writes into its folder beside checkpoints: config.yaml, splits, results, figures, curves, predictions."""

import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from agr_lightning import files
from agr_lightning.checkpoints import SHIPPED
from agr_lightning.data.splits import SPLITS, write_split
from agr_lightning.datamodule import PhotoBatch
from agr_lightning.evaluation.results import make_results, summary
from agr_lightning.inference.predict import Format, Output
from agr_lightning.inference.predictor import answers
from agr_lightning.messages import STDOUT, UserError
from agr_lightning.models.network import Predictions
from agr_lightning.module import AGRModule
from agr_lightning.run_checkpoints import LastCheckpoint, RunCheckpoint, run_folder

_log = logging.getLogger(__name__)


def training_callbacks(logger: bool = True) -> list[Callback]:
    """What `fit` gives to its Trainer, for a Trainer of one's own.

    Args:
        logger: whether the Trainer has one, without which nothing but checkpoints is kept.
    """
    # Two, since `save_last` of the first would save nothing after epochs that are not the best so far.
    best = RunCheckpoint(monitor="val/loss", filename=files.BEST, enable_version_counter=False)
    last = LastCheckpoint(filename=files.LAST, save_on_train_epoch_end=True, enable_version_counter=False)
    logged = [LearningRateMonitor("step"), TrainingWriter(), ResultsWriter()] if logger else []
    return [best, last, *logged]


class ConfigWriter(Callback):
    """Writes ``config.yaml``, from which ``fit --config`` repeats the run; a run that is resumed keeps its own.

    Args:
        text: all options as YAML; None for those that module, data module and Trainer know of themselves.
    """

    def __init__(self, text: str | None = None) -> None:
        self.text = text

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here it is known whether a run is resumed.
        folder, resumed = run_folder(trainer), trainer.state.fn == "fit" and trainer.ckpt_path is not None
        if folder is None or not trainer.is_global_zero or (resumed and (folder / files.CONFIG_FILE).is_file()):
            return
        files.atomic_text(folder / files.CONFIG_FILE, self.text or _known_options(trainer, pl_module))


def _known_options(trainer: Trainer, module: LightningModule) -> str:
    options = {
        "seed_everything": int(os.environ.get("PL_GLOBAL_SEED", 42)),
        "trainer": {name: getattr(trainer, name) for name in ("max_epochs", "max_steps", "precision")},
        "model": dict(module.hparams),
        "data": dict(getattr(trainer.datamodule, "hparams", {})),  # type: ignore[attr-defined]
    }
    return yaml.safe_dump(options, sort_keys=False)


class TrainingWriter(Callback):
    """Writes ``splits/`` when training starts, and what TensorBoard has of its curves when it ends."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            samples = trainer.datamodule.samples  # type: ignore[attr-defined]
            write_split({split: samples(split) for split in SPLITS}, folder / files.SPLITS_FOLDER)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if folder is None or not trainer.is_global_zero or not loggers:
            return
        from agr_lightning.evaluation.figures import CURVES_FIGURE, draw_curves, read_curves

        loggers[0].experiment.flush()
        figure = draw_curves(read_curves(Path(loggers[0].log_dir)))
        if figure is not None:
            _save_figures(trainer, folder, {CURVES_FIGURE: figure}, "fit")


class ResultsWriter(Callback):
    """Writes ``results.json`` and ``figures/`` after every test, shows both in TensorBoard, and logs a summary."""

    def __init__(self) -> None:
        # Not Lightning's Timer, beside which --trainer.max_time would do nothing.
        self._seconds: float | None = None  # of training, in earlier parts of a resumed run too
        self._started: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic() - (self._seconds or 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds = self.state_dict()["training_seconds"]

    def state_dict(self) -> dict[str, Any]:
        return {"training_seconds": 0.0 if self._started is None else time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = state_dict["training_seconds"]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, AGRModule)
        table = pl_module.table.compute()  # gathered from all processes, written by one
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        from agr_lightning.evaluation.figures import draw_figures

        data = trainer.datamodule  # type: ignore[attr-defined]
        results = make_results(table, data.samples("test"), self._facts(trainer, pl_module, folder))
        files.atomic_json(folder / files.RESULTS_FILE, results)
        _save_figures(trainer, folder, draw_figures(table, results, lambda rows: data.faces("test", rows)), "test")
        final = {f"test/{name}": value for name, value in results["metrics"].items() if isinstance(value, float)}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):  # its HParams tab
                logger.log_hyperparams({**pl_module.hparams, **data.hparams}, final, trainer.global_step)
        _log.info(summary(results))

    def _facts(self, trainer: Trainer, module: AGRModule, folder: Path) -> dict[str, Any]:
        network, fitted = module.network, module.network.calibration
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
            "under_18": {"slope": float(fitted.under_18_slope), "intercept": float(fitted.under_18_intercept)},
            "training_seconds": self._seconds,
        }


def _save_figures(trainer: Trainer, folder: Path, figures: dict[str, Any], stage: str) -> None:
    """Writes matplotlib's figures as PNG files, and shows these in TensorBoard: to draw takes longer than to read."""
    (folder / files.FIGURES_FOLDER).mkdir(exist_ok=True)
    for name, figure in figures.items():
        path = folder / files.FIGURES_FOLDER / f"{name}.png"
        with files.atomic_write(path) as file:
            figure.savefig(file)
        pixels = np.asarray(Image.open(path).convert("RGB"))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"{stage}/{name}", pixels, trainer.global_step, dataformats="HWC")


class PredictionWriter(Callback):
    """Writes ``predictions.csv``, or ``.jsonl``: at least one row for every input, in input order, as they are made.

    Args:
        format: csv, or jsonl with one JSON object a line.
        annotate: folder for copies with boxes and labels; null for no copies.
        output: a .csv or .jsonl file for the table, or - for stdout; null for the run folder.
        resume: go on with the same job where it was stopped: that of the output, or of the newest run folder.
    """

    def __init__(
        self, format: Format = "csv", annotate: str | None = None, output: str | None = None, resume: bool = False
    ) -> None:
        self.format, self.annotate, self.output, self.resume = format, annotate, output, resume
        self._rows: Output | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not on_predict_start, before which the first photos are read.
        if stage != "predict" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data, folder, ranks = trainer.datamodule, run_folder(trainer), trainer.world_size  # type: ignore[attr-defined]
        if folder is None and self.output is None:
            return
        if self.output == STDOUT and ranks > 1:
            raise UserError("--output - is for one process: name a file, or use --trainer.devices 1.")
        rows = Output(data.photos_to_predict, self.format, self.annotate, self.output, self.resume)
        options = {"batch_size": data.hparams["batch_size"], "precision": trainer.precision}
        options |= {"tta_flip": pl_module.hparams.get("tta_flip"), **asdict(data.photo_options)}
        network = str(trainer.ckpt_path or getattr(pl_module, "loaded_from", ""))
        rows.open(folder, network, trainer.global_rank, ranks, **options)
        data.keep_pictures, data.first_to_predict, self._rows = self.annotate is not None, rows.first, rows

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        if self._rows is not None and isinstance(batch, PhotoBatch) and isinstance(outputs, Predictions):
            self._rows.write(batch.photos, answers(outputs.arrays()))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._rows is not None:
            self._rows.stop()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, self._rows = self._rows, None
        trainer.strategy.barrier()
        if rows is not None and trainer.is_global_zero:
            rows.join()
