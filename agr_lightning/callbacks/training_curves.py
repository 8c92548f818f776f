"""What `fit` leaves beside the checkpoints: the figure of its curves."""

import lightning
from lightning.pytorch.loggers import TensorBoardLogger

from agr_lightning.callbacks.figures import save_figures
from agr_lightning.callbacks.run_folder import run_folder


class TrainingCurves(lightning.Callback):
    """Draws what a run has logged when its training ends, also that of earlier parts of a resumed run."""

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = run_folder(trainer)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if folder is None or not loggers:
            return
        from agr_lightning.evaluation.curves import CURVES_FIGURE, draw_curves, read_curves

        loggers[0].experiment.flush()
        figure = draw_curves(read_curves(folder))
        if figure is not None:
            save_figures(trainer, folder, {CURVES_FIGURE: figure}, "fit")
