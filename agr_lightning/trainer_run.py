"""Runs a command of LightningCLI, and turns what goes wrong into sentences."""

from collections.abc import Sequence

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from agr_lightning.callbacks.announcement import Announcement
from agr_lightning.callbacks.checkpointing import BestCheckpoint, LastCheckpoint
from agr_lightning.callbacks.predictions import PredictionWriter
from agr_lightning.callbacks.run_config import RunConfig
from agr_lightning.callbacks.splits import SplitWriter
from agr_lightning.callbacks.test_report import TestReport
from agr_lightning.callbacks.training_curves import TrainingCurves
from agr_lightning.data.datamodule import UTKFaceDataModule
from agr_lightning.messages import UserError
from agr_lightning.module import AGRModule
from agr_lightning.parser import AGRArgumentParser
from agr_lightning.terminal import speaking
from agr_lightning.trainer_cli import AGRCommandLine, first_line

DEFAULT_EPOCHS = 20


def run(command: str, options: Sequence[str]) -> None:
    """Runs one of LightningCLI's commands.

    Args:
        command: fit, validate, test or predict.
        options: what follows it on the command line.

    Raises:
        UserError: for what the user can cure.
        SystemExit: after --help and --print_config, and with code 2 for options that cannot be understood.
    """
    with speaking():
        cli = type("AGRCommandLine", (AGRCommandLine,), {"command": command})
        try:
            cli(
                AGRModule,
                UTKFaceDataModule,
                args=[command, *options],
                parser_class=AGRArgumentParser,
                parser_kwargs={"prog": "python -m agr_lightning"},
                save_config_callback=RunConfig,
                seed_everything_default=42,
                # Keeps hyperparameters as the constructors get them: plain values.
                load_from_checkpoint_support=False,
                auto_configure_optimizers=False,
                trainer_defaults={
                    "max_epochs": DEFAULT_EPOCHS,
                    "log_every_n_steps": 10,
                    "callbacks": callbacks_of(command),
                    # The data module deals samples to devices itself, without counting any twice.
                    "use_distributed_sampler": False,
                },
            )
            if torch.distributed.is_initialized():
                # Left to the interpreter's end, its threads may abort the process.
                torch.distributed.destroy_process_group()
        except MisconfigurationException as error:
            raise UserError(first_line(error)) from None
        except torch.OutOfMemoryError:
            raise UserError(
                "the device is out of memory: use a smaller --data.batch_size or --data.image_size."
            ) from None
        except RuntimeError as error:
            if "loading state_dict" in str(error):
                raise UserError(
                    "the checkpoint does not fit the network that the options describe, or is of another version "
                    f"of this project: {' '.join(str(error).split()[5:])[:200]}"
                ) from None
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise UserError(
                f"--model.compile true: torch cannot compile the network here ({first_line(error)}); leave it out."
            ) from None


def callbacks_of(command: str) -> list[Callback]:
    """What a command brings to its Trainer."""
    if command == "predict":
        return [PredictionWriter()]
    if command == "validate":
        return []
    if command == "test":
        return [TestReport()]
    return [Announcement(), BestCheckpoint(), LastCheckpoint(), SplitWriter(), TestReport(), TrainingCurves()]
