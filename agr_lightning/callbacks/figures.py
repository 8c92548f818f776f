"""Figures: each drawn and encoded once, for the run folder and for TensorBoard."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from agr_lightning.files import atomic_write
from agr_lightning.runs import FIGURES_FOLDER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pictures = Mapping[str, "Figure | Image.Image"]


def save_figures(trainer: lightning.Trainer, folder: Path, figures: Pictures, stage: str) -> None:
    """Writes figures as PNG files and shows them in TensorBoard.

    Args:
        trainer: whose loggers show them.
        folder: the run folder.
        figures: plots and pictures, by name.
        stage: what they are called after in TensorBoard.
    """
    from agr_lightning.evaluation.figures import render

    (folder / FIGURES_FOLDER).mkdir(exist_ok=True)
    # One is compressed, which needs no Python, while the next is drawn.
    with ThreadPoolExecutor(1) as pool:
        kept = [
            pool.submit(
                _keep,
                trainer,
                folder / FIGURES_FOLDER / f"{name}.png",
                f"{stage}/{name}",
                figure if isinstance(figure, Image.Image) else render(figure),
            )
            for name, figure in figures.items()
        ]
    for each in kept:
        each.result()


def _keep(trainer: lightning.Trainer, path: Path, tag: str, picture: Image.Image) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from agr_lightning.evaluation.figures import compact, encode

    encoded = encode(picture)
    with atomic_write(path) as file:
        file.write(encoded)
    # TensorBoard checks what it writes byte by byte, in Python: a grid of faces as PNG takes it longer than drawing.
    encoded, _ = compact(encoded)
    shown = Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=encoded)
    summary = Summary(value=[Summary.Value(tag=tag, image=shown)])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # What add_image calls when it has encoded the picture, here for the second time.
            logger.experiment._get_file_writer().add_summary(summary, trainer.global_step)
