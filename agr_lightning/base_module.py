"""What a module keeps in its checkpoints beside weights: what it is, what it has seen, and how it is resumed."""

from pathlib import Path
from typing import Any, Self

import lightning
import numpy as np
import torch
from numpy.typing import NDArray

from agr_lightning.checkpoints import KEY, TrainedNetwork, describe
from agr_lightning.messages import UserError
from agr_lightning.models.losses import JointLoss
from agr_lightning.models.network import AGRNetwork
from agr_lightning.optimization import describe_schedule


class CheckpointedModule(lightning.LightningModule):
    """A module around an ``AGRNetwork`` whose checkpoints are those of a ``TrainedNetwork``.

    Attributes:
        network: of the subclass.
        loss: likewise.
        training_images: fingerprints of the images that its weights had learned from before this training began, int64
            ``(n,)``; None where nobody knows.
        validation_images: likewise, of those that chose and calibrated them.
        loaded_from: what the weights were loaded from; empty for those of a training.
        checkpoint_epoch: of which the loaded weights are.
        resumed_schedule: that of the run that is resumed, see ``optimization.check_resumed``.
    """

    network: AGRNetwork
    loss: JointLoss

    def __init__(self) -> None:
        super().__init__()
        self.training_images: NDArray[np.int64] | None = np.empty(0, np.int64)
        self.validation_images: NDArray[np.int64] | None = np.empty(0, np.int64)
        self.loaded_from = ""
        self.checkpoint_epoch: int | None = None
        self.resumed_schedule: dict[str, str | int] = {}

    def take(self, trained: TrainedNetwork) -> None:
        """Takes over a trained network of the same form, and what is known of its training.

        Raises:
            UserError: when it is a network of another form.
        """
        try:
            self.network.load_state_dict(trained.state)
        except RuntimeError:
            held, asked = trained.config.to_dict(), self.network.config.to_dict()
            names = ", ".join(f"{name} {held[name]}, not {asked[name]}" for name in held if held[name] != asked[name])
            raise UserError(f"{trained.name} is another network than the options describe: {names}.") from None
        self.training_images, self.validation_images = trained.training_images, trained.validation_images
        self.loaded_from, self.checkpoint_epoch = trained.name, trained.epoch

    def learn_from(self, trained: TrainedNetwork) -> None:
        """Remembers what another network has seen from which this one learns."""
        for name in ("training_images", "validation_images"):
            own, theirs = getattr(self, name), getattr(trained, name)
            setattr(self, name, None if own is None or theirs is None else np.union1d(own, theirs))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Reads a module and its weights; what they were initialised from is not needed any more."""
        options = {"pretrained": False, "weights": None} | kwargs
        module = super().load_from_checkpoint(checkpoint_path, *args, **options)
        module.loaded_from = str(checkpoint_path)
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        facts = describe(self.network.config, dict(getattr(data, "hparams", {})), checkpoint["epoch"])
        seen = [None if images is None else torch.from_numpy(images) for images in self._seen_so_far()]
        images = dict(zip(("training_images", "validation_images"), seen, strict=True))
        checkpoint[KEY] = facts | images | {"schedule": describe_schedule(self.trainer)}

    def on_fit_end(self) -> None:
        self.training_images, self.validation_images = self._seen_so_far()

    def _seen_so_far(self) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """Training and validation images, those of the training that goes on among them."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.training_images is None or not hasattr(data, "fingerprints"):
            return None, None
        validation = np.empty(0, np.int64) if self.validation_images is None else self.validation_images
        splits = (self.training_images, "train"), (validation, "val")
        return tuple(np.union1d(images, data.fingerprints(split)) for images, split in splits)  # type: ignore[return-value]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        facts, state = checkpoint.get(KEY), checkpoint["state_dict"]
        if not isinstance(facts, dict):
            raise UserError("the checkpoint was not written by this version of the project.")
        trainer = self._trainer  # there is none under load_from_checkpoint
        fitting = trainer is not None and trainer.state.fn == "fit"
        file = "" if trainer is None or fitting else Path(str(trainer.ckpt_path)).name
        if self.loaded_from and "hpc_ckpt_" in file:
            # Lightning takes what SLURM's requeueing left behind for the weights that a command names.
            checkpoint["state_dict"] = self.state_dict()
            return
        training, validation = (facts.get(f"{name}_images") for name in ("training", "validation"))
        self.training_images = None if training is None else training.numpy()
        self.validation_images = None if validation is None else validation.numpy()
        self.checkpoint_epoch = int(checkpoint["epoch"])
        if fitting:
            self.resumed_schedule = facts.get("schedule", {})
            state["loss.race_weights"] = self.loss.race_weights.clone()  # what the options say now
        else:  # a callback that averages weights would put those of the last step in
            checkpoint.pop("callbacks", None)
