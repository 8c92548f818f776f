"""Figures: each drawn and encoded once, for the run folder and for TensorBoard."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from agr_lightning.files import atomic_write
from agr_lightning.run_files import FIGURES_FOLDER

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figures(trainer: lightning.Trainer, folder: Path, figures: "Mapping[str, Figure]", stage: str) -> None:
    """Writes figures as PNG files and shows them in TensorBoard.

    Args:
        trainer: whose loggers show them.
        folder: the run folder.
        figures: by name.
        stage: what they are called after in TensorBoard.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    from agr_lightning.evaluation.figures import render

    (folder / FIGURES_FOLDER).mkdir(exist_ok=True)
    for name, figure in figures.items():
        pixels = render(figure)
        picture = io.BytesIO()
        # The default level takes three times as long and saves a tenth of the size.
        Image.fromarray(pixels).save(picture, "PNG", compress_level=1)
        with atomic_write(folder / FIGURES_FOLDER / f"{name}.png") as file:
            file.write(picture.getbuffer())
        shown = Summary.Image(
            height=pixels.shape[0], width=pixels.shape[1], colorspace=3, encoded_image_string=picture.getvalue()
        )
        summary = Summary(value=[Summary.Value(tag=f"{stage}/{name}", image=shown)])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # What add_image calls when it has encoded the picture, here for the second time.
                logger.experiment._get_file_writer().add_summary(summary, trainer.global_step)
