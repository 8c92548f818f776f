"""What `test` leaves in the run folder: results.json and figures, also in TensorBoard."""

import logging
import math
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from agr_lightning.callbacks.run_folder import run_folder
from agr_lightning.data.datamodule import UTKFaceDataModule
from agr_lightning.evaluation.results import METRICS, RESULTS_FILE, RunFacts, make_results
from agr_lightning.evaluation.table import Table
from agr_lightning.files import Json, atomic_json, atomic_write
from agr_lightning.module import AGRModule

_log = logging.getLogger(__name__)

FIGURES_FOLDER = "figures"


class TestReport(lightning.Callback):
    """Writes ``results.json`` and ``figures/`` after every test."""

    __test__ = False  # not a test case, whatever pytest takes the name for

    def __init__(self) -> None:
        super().__init__()
        self._training_seconds: float | None = None

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Now: a checkpoint that is loaded for the test brings its own time, which the Timer adds.
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        self._training_seconds = timers[0].time_elapsed("train") if timers else None

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, AGRModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, UTKFaceDataModule)
        # Gathered on all ranks, written by one.
        table = pl_module.predictions()
        folder = run_folder(trainer)
        if folder is None:
            return
        results = make_results(table, data.split["test"], self._facts(trainer, pl_module))
        atomic_json(folder / RESULTS_FILE, results)
        self._draw(trainer, data, table, results, folder)
        _log_hyperparameters(trainer, pl_module, results)
        _log.info(summary(results))

    def _facts(self, trainer: lightning.Trainer, module: AGRModule) -> RunFacts:
        checkpoint = trainer.ckpt_path
        fit = module.network.calibration
        threshold = float(fit.adult_threshold)
        return RunFacts(
            checkpoint=str(checkpoint) if checkpoint is not None else "",
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
        from agr_lightning.evaluation.figures import draw_figures, render, sample_rows, worst_rows

        faces, mistakes = (
            data.faces("test", table.place[rows(table)].tolist()).permute(0, 2, 3, 1).numpy()
            for rows in (sample_rows, worst_rows)
        )
        figures = draw_figures(table, results, faces, mistakes)
        folder = path / FIGURES_FOLDER
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            pixels = render(figure)
            with atomic_write(folder / f"{name}.png") as file:
                Image.fromarray(pixels).save(file, "PNG")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"test/{name}", pixels, trainer.global_step, dataformats="HWC")


def summary(results: dict[str, Json]) -> str:
    """One line for the terminal: every metric with its interval."""
    metrics = results["metrics"]
    assert isinstance(metrics, dict) and isinstance(metrics["intervals"], dict)
    parts = []
    for name, label, scale, unit in (
        ("age_mae", "age MAE", 1, " years"),
        ("age_cs5", "within 5 years", 100, " %"),
        ("gender_acc", "gender", 100, " %"),
        ("race_acc", "race", 100, " %"),
    ):
        value, bounds = metrics[name], metrics["intervals"][name]
        if isinstance(value, float) and isinstance(bounds, list):
            low, high = (float(bound) * scale for bound in bounds if isinstance(bound, float))
            digits = 2 if scale == 1 else 1
            parts.append(f"{label} {value * scale:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})")
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
