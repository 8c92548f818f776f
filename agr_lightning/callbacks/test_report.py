"""What `test` leaves in the run folder: results.json and figures, also in TensorBoard."""

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger

from agr_lightning.callbacks.figures import save_figures
from agr_lightning.callbacks.run_folder import run_folder
from agr_lightning.data.datamodule import UTKFaceDataModule
from agr_lightning.evaluation.results import METRICS, RunFacts, make_results
from agr_lightning.evaluation.table import Table
from agr_lightning.evaluation.wording import WORDING, with_interval
from agr_lightning.files import Json, atomic_json
from agr_lightning.module import AGRModule
from agr_lightning.runs import RESULTS_FILE

_log = logging.getLogger(__name__)


class TestReport(lightning.Callback):
    """Writes ``results.json`` and ``figures/`` after every test."""

    __test__ = False  # not a test case, whatever pytest takes the name for

    def __init__(self) -> None:
        super().__init__()
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
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, UTKFaceDataModule)
        # Gathered on all ranks, written by one.
        table = pl_module.predictions()
        folder = run_folder(trainer)
        if folder is None:
            return
        results = make_results(table, data.split["test"], self._facts(trainer, pl_module, folder))
        atomic_json(folder / RESULTS_FILE, results)
        self._draw(trainer, data, table, results, folder)
        _log_hyperparameters(trainer, pl_module, results)
        _log.info(summary(results))

    def _facts(self, trainer: lightning.Trainer, module: AGRModule, folder: Path) -> RunFacts:
        fit = module.network.calibration
        threshold = float(fit.adult_threshold)
        return RunFacts(
            checkpoint=_named_from(folder, trainer.ckpt_path or module.loaded_from),
            epoch=module.checkpoint_epoch,
            model=module.network_options,
            parameters=sum(parameter.numel() for parameter in module.network.parameters()),
            temperatures={"gender": float(fit.gender_temperature), "race": float(fit.race_temperature)},
            adult_threshold=None if math.isnan(threshold) else threshold,
            training_seconds=self._training_seconds,
        )

    def _draw(
        self, trainer: lightning.Trainer, data: UTKFaceDataModule, table: Table, results: dict[str, Json], path: Path
    ) -> None:
        from agr_lightning.evaluation.face_grids import draw_faces, sample_rows, worst_rows
        from agr_lightning.evaluation.figures import draw_figures

        faces, mistakes = (
            data.faces("test", table.place[rows(table)].tolist()).permute(0, 2, 3, 1).numpy()
            for rows in (sample_rows, worst_rows)
        )
        figures = draw_faces(table, faces, mistakes) | draw_figures(table, results)
        save_figures(trainer, path, figures, "test")


def _named_from(folder: Path, checkpoint: str | Path | None) -> str:
    """A file's path from the run folder, so that runs can be moved together; what lies nowhere keeps its name."""
    if checkpoint is None:
        return ""
    return os.path.relpath(checkpoint, folder) if Path(checkpoint).is_file() else str(checkpoint)


def summary(results: dict[str, Json]) -> str:
    """One line for the terminal: every metric with its interval."""
    metrics = results["metrics"]
    assert isinstance(metrics, dict) and isinstance(metrics["intervals"], dict)
    parts = [
        f"{WORDING[name].short} {with_interval(name, value, metrics['intervals'][name])}"  # type: ignore[arg-type]
        for name in METRICS
        if (value := metrics[name]) is not None
    ]
    return f"Test on {results['n']:,} images, 95 % intervals: " + ", ".join(parts)


def _log_hyperparameters(trainer: lightning.Trainer, module: AGRModule, results: dict[str, Json]) -> None:
    """Hyperparameters with the final figures: TensorBoard's HParams tab."""
    metrics = results["metrics"]
    assert isinstance(metrics, dict)
    final = {f"test/{name}": value for name in METRICS if isinstance(value := metrics[name], float)}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            hyperparameters = {**module.hparams, **trainer.datamodule.hparams}  # type: ignore[attr-defined]
            logger.log_hyperparams(hyperparameters, final, trainer.global_step)
