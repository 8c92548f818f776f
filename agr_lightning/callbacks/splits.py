"""Who was in train, val and test, kept in the run folder."""

import lightning

from agr_lightning.callbacks.run_folder import run_folder
from agr_lightning.data.datamodule import UTKFaceDataModule
from agr_lightning.data.splits import write_split
from agr_lightning.runs import SPLITS_FOLDER


class SplitWriter(lightning.Callback):
    """Writes ``splits/train.txt``, ``val.txt`` and ``test.txt`` when training starts."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = run_folder(trainer)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, UTKFaceDataModule)
        if folder is not None:
            write_split(data.split, folder / SPLITS_FOLDER)
