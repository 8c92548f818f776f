"""How a run can be repeated, kept in the run folder."""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from agr_lightning.runs import CONFIG_FILE


class RunConfig(SaveConfigCallback):
    """Saves config.yaml, from which the command can be repeated."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        super().__init__(parser, config.clone(), config_filename=CONFIG_FILE, overwrite=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before: a run that is refused what it would go on with keeps its own.
        self.config.ckpt_path = None  # a resumed run is repeated from its start
        super().setup(trainer, pl_module, "fit")
