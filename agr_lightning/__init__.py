"""Age in years, gender and race from face images: train, measure and use one network."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from agr_lightning.datamodule import UTKFaceDataModule
    from agr_lightning.inference.predictor import Predictor
    from agr_lightning.module import AGRModule

__all__ = ["AGRModule", "Predictor", "UTKFaceDataModule"]

_HOMES = {"AGRModule": "module", "UTKFaceDataModule": "datamodule", "Predictor": "inference.predictor"}


def __getattr__(name: str) -> object:
    """Imports a class when it is asked for: torch and Lightning take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
