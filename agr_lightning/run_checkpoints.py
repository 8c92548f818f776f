"""The folder of a run, and its checkpoints: which are kept, whole or not at all, and how a signal ends a training."""

import io
import logging
import math
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from agr_lightning import files

_log = logging.getLogger(__name__)

# Run folders of Trainers whose logger has none.
_RESERVED: WeakKeyDictionary[Trainer, str] = WeakKeyDictionary()


def run_folder(trainer: Trainer) -> Path | None:
    """Where a run's files go: the folder of its first logger; None without a logger and under fast_dev_run.

    A logger that writes to no folder of its own, but to a database for example, leaves the run the next
    ``lightning_logs/version_N``. To be called on all processes: they ask each other for the folder's name.
    """
    if trainer.logger is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    logger = trainer.loggers[0]
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        folder = logger.log_dir
    else:
        if trainer not in _RESERVED and trainer.is_global_zero:
            root = Path(trainer.default_root_dir)
            _RESERVED[trainer] = str(root / files.RUNS_FOLDER / f"version_{files.reserve_run(root)}")
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
        with files.atomic_write(Path(path)) as file:
            file.write(content.getbuffer())


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint of one name in the run folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if self.dirpath is None and folder is not None:
            self.dirpath = str(folder / files.CHECKPOINTS_FOLDER)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best so far, also of a run whose folder was moved, which Lightning forgets."""
        score, here = state_dict["best_model_score"], str(Path(self.dirpath or "", f"{self.filename}.ckpt"))
        if score is not None and Path(here).is_file():
            found = {"dirpath": self.dirpath, "best_model_path": here, "kth_best_model_path": here}
            super().load_state_dict(state_dict | found | {"best_k_models": {here: score}})


class LastCheckpoint(RunCheckpoint):
    """The checkpoint of the last epoch, or of the step in which SIGINT or SIGTERM ended the training.

    It raises SystemExit, with 128 and the signal's number, after a step from which a resumed run goes on as if it had
    never been stopped: not between those whose gradients are added up, and not where a validation is due. A second
    signal does not wait. While it trains, no other process can train in its folder.
    """

    _signal, _lock = 0, -1
    _handlers: dict[int, Any] = {}  # noqa: RUF012 (never changed)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.dirpath is not None and trainer.is_global_zero:
            Path(self.dirpath).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.dirpath, os.O_RDONLY)
            files.lock(self._lock, Path(self.dirpath))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._signal = signal.SIGTERM if trainer.received_sigterm else 0  # before training began
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise SystemExit(128 + number)
        self._signal = number
        _log.info("Stopping after this step; once more to stop at once")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        done, validated_after = batch_idx + 1, trainer.val_check_batch or math.inf
        if trainer.is_last_batch or done % trainer.accumulate_grad_batches or not done % validated_after:
            return
        if number := self._agreed(trainer):
            self.best_model_path = str(Path(self.dirpath or "", f"{self.filename}.ckpt"))
            trainer.save_checkpoint(self.best_model_path)
            raise SystemExit(128 + number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._release()
        if number := self._agreed(trainer):  # in the last epoch, of which all is kept
            raise SystemExit(128 + number)

    def _agreed(self, trainer: Trainer) -> int:
        """The signal that reached one of the processes, which then all stop after the same step; 0 for none."""
        if trainer.world_size == 1:
            return self._signal
        noted = torch.tensor(self._signal, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(noted, reduce_op="max"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
