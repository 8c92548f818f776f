"""Who was in train, val and test, kept in the run folder."""

from pathlib import Path

import lightning

from agr_lightning.data.datamodule import UTKFaceDataModule
from agr_lightning.data.splits import write_split

SPLITS_FOLDER = "splits"


class SplitWriter(lightning.Callback):
    """Writes ``splits/train.txt``, ``val.txt`` and ``test.txt`` when training starts."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = trainer.log_dir
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, UTKFaceDataModule)
        if trainer.is_global_zero and folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_split(data.split, Path(folder) / SPLITS_FOLDER)
