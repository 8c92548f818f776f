"""The folder of a run, and what makes the run repeatable in it: checkpoints that are whole, and config.yaml."""

import io
import os
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning
import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from agr_lightning.files import (
    BEST,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    LAST,
    RUNS_FOLDER,
    atomic_text,
    atomic_write,
    reserve_run,
)

# Run folders of Trainers whose logger has none.
_RESERVED: WeakKeyDictionary[lightning.Trainer, str] = WeakKeyDictionary()


def run_folder(trainer: lightning.Trainer) -> Path | None:
    """Where a run's files go: the folder of its first logger; None without a logger and under fast_dev_run.

    A logger that has no folder for a run, but a database for example, leaves the run the next
    ``lightning_logs/version_N``. To be called on all processes: they ask each other for the folder's name.
    """
    if trainer.logger is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    logger = trainer.loggers[0]
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        folder = logger.log_dir
    elif logger.name and logger.version not in (None, ""):
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = os.path.join(logger.save_dir or trainer.default_root_dir, logger.name, version)  # noqa: PTH118
    else:
        if trainer not in _RESERVED and trainer.is_global_zero:
            root = Path(trainer.default_root_dir)
            _RESERVED[trainer] = str(root / RUNS_FOLDER / f"version_{reserve_run(root)}")
        folder = _RESERVED.get(trainer, "")
    path = Path(trainer.strategy.broadcast(folder))
    if trainer.is_global_zero:
        path.mkdir(parents=True, exist_ok=True)
    return path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all: a full disk leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint under its name when all of it is on the disk."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(path)) as file:
            file.write(content.getbuffer())


class _RunCheckpoint(ModelCheckpoint):
    """Checkpoints in the run folder."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if self.dirpath is None and folder is not None:
            self.dirpath = str(folder / CHECKPOINTS_FOLDER)
        super().setup(trainer, pl_module, stage)


class BestCheckpoint(_RunCheckpoint):
    """Writes ``best.ckpt`` whenever ``val/loss`` is the lowest so far."""

    def __init__(self) -> None:
        super().__init__(monitor="val/loss", filename=BEST, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        score = state_dict["best_model_score"]
        # Lightning forgets the best of a run whose folder was moved, or is called by another name.
        here = Path(self.dirpath or "") / f"{BEST}.ckpt"
        if here.is_file() and score is not None:
            paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), str(here))
            found = {"dirpath": self.dirpath, "best_k_models": {str(here): score}}
            super().load_state_dict(state_dict | paths | found)


class LastCheckpoint(_RunCheckpoint):
    """Writes ``last.ckpt`` after every epoch.

    Not ``save_last`` of the other, which saves nothing after epochs that are not the best so far.
    """

    def __init__(self) -> None:
        super().__init__(filename=LAST, enable_version_counter=False, save_on_train_epoch_end=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing: the next epoch's replaces the file, wherever it lies."""


class ConfigWriter(lightning.Callback):
    """Writes ``config.yaml``, from which ``fit --config`` repeats the run; a run that is resumed keeps its own.

    Args:
        text: all options as YAML; None for those that module, data module and Trainer know of themselves.
    """

    def __init__(self, text: str | None = None) -> None:
        self.text = text

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module)

    on_test_start = on_predict_start = on_fit_start

    def _write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        path = folder / CONFIG_FILE
        resumed = trainer.state.fn == "fit" and trainer.ckpt_path is not None
        if not (resumed and path.is_file()):
            atomic_text(path, self.text if self.text is not None else _known_options(trainer, module))


def _known_options(trainer: lightning.Trainer, module: lightning.LightningModule) -> str:
    data = getattr(trainer.datamodule, "hparams", {})  # type: ignore[attr-defined]
    options = {
        "seed_everything": int(os.environ.get("PL_GLOBAL_SEED", 42)),
        "trainer": {name: getattr(trainer, name) for name in ("max_epochs", "max_steps", "precision")},
        "model": dict(module.hparams),
        "data": dict(data),
    }
    return yaml.safe_dump(options, sort_keys=False)
