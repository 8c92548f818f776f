"""What `fit` keeps of a run: its best weights, and its last state to go on from."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from agr_lightning.checkpoints import BEST, LAST


class BestCheckpoint(ModelCheckpoint):
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


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` after every epoch.

    Not ``save_last`` of the other, which saves nothing after epochs that are not the best so far.
    """

    def __init__(self) -> None:
        super().__init__(filename=LAST, enable_version_counter=False, save_on_train_epoch_end=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes nothing: the next epoch's replaces the file, wherever it lies."""
