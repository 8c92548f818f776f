"""LightningCLI for fit, validate, test and predict."""

import contextlib
import logging
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities import rank_zero_only
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from agr_lightning.callbacks.checkpointing import BestCheckpoint
from agr_lightning.callbacks.predictions import prepare_photos
from agr_lightning.callbacks.run_folder import run_folder
from agr_lightning.checkpoint_io import AtomicCheckpointIO
from agr_lightning.checkpoint_options import check_fit_together, options_of
from agr_lightning.checkpoints import (
    BEST,
    LAST,
    Checkpoint,
    find_checkpoint,
    read_checkpoint,
    read_teacher,
    seen_by_start,
)
from agr_lightning.files import named_files
from agr_lightning.inference.photo_reader import ReadingOptions
from agr_lightning.inference.predict import OutputOptions
from agr_lightning.labels import MISSING
from agr_lightning.messages import UserError
from agr_lightning.models.teaching import DEFAULT_TEACHING, Teachers
from agr_lightning.optimization import NO_END
from agr_lightning.parser import DESCRIPTIONS, OPTION_HELP
from agr_lightning.runs import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    RESULTS_FILE,
    RUNS_FOLDER,
    reserve_run,
    run_number,
)

_log = logging.getLogger(__name__)

# The network computes its input and its heads in 32 bits.
_UNSUPPORTED = ("16-true", "bf16-true", "64-true", "64", "transformer-engine", "transformer-engine-float16")


class AGRCommandLine(LightningCLI):
    """LightningCLI with one command at a time, and with checkpoints that users can name by role."""

    command: str

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        # Building the options of a command takes a while: only those that were asked for.
        return {cls.command: LightningCLI.subcommands()[cls.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.image_size", "model.input_size")
        parser.link_arguments("data.grayscale", "model.grayscale")
        if self.command == "predict":
            for options in (ReadingOptions, OutputOptions):
                parser.add_class_arguments(options)
        if self.command == "fit":
            parser.add_argument(
                "--test_after_fit",
                type=bool,
                default=True,
                help="test the best checkpoint when training ends, and write results.json and figures",
            )

    def setup_parser(self, *args: Any) -> None:
        """Builds the options, and rewrites what Lightning says of commands and checkpoints."""
        super().setup_parser(*args)
        parser = self._parser(self.command)
        parser.usage = f"python -m agr_lightning {self.command} [--config FILE] [options]"
        parser.description = DESCRIPTIONS[self.command]
        if self.command == "test":
            parser.set_defaults({"verbose": False})  # the report says it in a line
        for action in parser._actions:
            action.help = OPTION_HELP.get(action.dest, action.help)

    def _parse_ckpt_path(self) -> None:
        """Takes nothing from checkpoints here: LightningCLI would let them override the command line."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses twice where a checkpoint is named: what it was trained with becomes the defaults."""
        super().parse_arguments(parser, [arg for arg in args if not arg.startswith("--print_config")])
        options = self.config[self.command]
        if not 0 <= options.seed_everything < 2**32:
            raise UserError(f"--seed_everything {options.seed_everything} must be 0 to {2**32 - 1}.")
        self.root = Path(options.trainer.default_root_dir or ".")
        self.checkpoint: Checkpoint | None = None
        if options.ckpt_path is not None or self.command in ("test", "predict"):
            self.checkpoint = read_checkpoint(find_checkpoint(options.ckpt_path, self.root))
            subparser = self._parser(self.command)
            subparser.set_defaults(options_of(self.checkpoint, options, subparser))
        super().parse_arguments(parser, args)
        if self.checkpoint is not None:
            if self.checkpoint.exported and self.command == "fit":
                raise UserError(
                    f"--ckpt_path {self.checkpoint.path} holds weights, but no run to go on with: start a new one from "
                    "them with --model.weights."
                )
            # As it is saved: networks that come along keep the names of their roles.
            self.config[self.command].ckpt_path = self.checkpoint.named
            check_fit_together(self.checkpoint, self.config[self.command])
        elif self.command != "fit":
            raise UserError(
                f"`{self.command}` needs weights: give --ckpt_path FILE, a run folder, '{BEST}' or '{LAST}'."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        held = self.checkpoint
        if held is not None and held.seen is not None:
            self.model.take(held.state, held.epoch, held.called if held.in_the_box else held.path)
            self.datamodule.leave_out(held.seen)
        elif self.command == "fit":
            self._prepare_sources()
        if self.command == "predict":
            cards = held is not None and held.of_cards
            prepare_photos(self.config.predict, cards, self.datamodule, self.trainer_defaults["callbacks"])
        # Before there are other processes, which would be left waiting if this fails.
        self.datamodule.setup(self.command)
        if self.command == "fit" and self.config.fit.test_after_fit:
            self.datamodule.setup("test")
        options = self.config[self.command].trainer
        if self.command == "fit":
            if options.max_epochs == options.max_steps == -1 and self.model.optimization.lr_scheduler is None:
                raise UserError(NO_END)
            self._check_options_of_learning()
        if str(options.precision) in _UNSUPPORTED:
            raise UserError(f"--trainer.precision {options.precision}: expected 32-true, bf16-mixed or 16-mixed.")
        reserved = None
        if options.fast_dev_run or options.logger is False:
            # Nothing is kept: no run folder.
            self.save_config_callback = None
            options.enable_checkpointing = kwargs["enable_checkpointing"] = False
        elif options.logger in (None, True):
            version = self._continued_run()
            if version is None and getattr(rank_zero_only, "rank", 0) == 0:
                version = reserve_run(self.root)
                reserved = self.root / RUNS_FOLDER / f"version_{version}"
            kwargs["logger"] = TensorBoardLogger(self.root.resolve(), RUNS_FOLDER, version, default_hp_metric=False)
        if options.enable_checkpointing is False:
            self._drop_checkpoints()
        kwargs["plugins"] = [*(options.plugins or []), AtomicCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            if reserved is not None:
                reserved.rmdir()
                with contextlib.suppress(OSError):  # other runs are in it
                    reserved.parent.rmdir()
            raise UserError(f"the Trainer does not accept these options: {first_line(error)}") from None

    def _prepare_sources(self) -> None:
        """Reads the networks that this one learns from; nothing is tested on what they have seen."""
        options = self.model.hparams
        seen = [seen_by_start(file) for file in named_files(options.weights)]
        teachers = [read_teacher(named) for named in options.teachers]
        if teachers:
            networks = [teacher.network() for teacher, _ in teachers]
            for named, network in zip(options.teachers, networks, strict=True):
                if not set(network.tasks) & set(self.model.tasks):
                    raise UserError(
                        f"--model.teachers {named} knows {' and '.join(network.tasks)} alone, and has nothing to teach "
                        f"for --model.tasks [{', '.join(self.model.tasks)}]."
                    )
            self.model.teachers = Teachers(networks, options.teaching)
        elif options.teaching != DEFAULT_TEACHING:
            raise UserError(f"--model.teaching {options.teaching} is about --model.teachers, and none are named.")
        seen += [names for _, names in teachers]
        if seen:
            self.datamodule.leave_out(np.concatenate(seen))

    def _check_options_of_learning(self) -> None:
        """Tries what would otherwise fail when the run folder is there already."""
        config, model = self.config.fit, self.model
        if config.model.race_class_weights == "balanced" and config.data.balance == "race":
            raise UserError(
                "--model.race_class_weights balanced and --data.balance race both make up for rare races: choose one."
            )
        if "race" in model.tasks and model.teachers is None and (self.datamodule.split["train"].race == MISSING).all():
            raise UserError(
                "no training image has a race label, so that nothing is learnt of race: "
                "leave it out with --model.tasks '[age, gender]'."
            )
        model.optimization.try_out()
        if self.checkpoint is not None:
            model.start.skip()
        elif getattr(rank_zero_only, "rank", 0) == 0:  # the other processes find downloads in the cache
            model.start.load(model.network)

    def _continued_run(self) -> int | None:
        """The run that a resumed fit goes on with, in its own folder: its best checkpoint stays known."""
        return run_number(self.checkpoint.path, self.root) if self.checkpoint and self.command == "fit" else None

    def _drop_checkpoints(self) -> None:
        callbacks = self.trainer_defaults["callbacks"]
        self.trainer_defaults["callbacks"] = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]

    def _run_subcommand(self, subcommand: str) -> None:
        if self.checkpoint is not None:
            held = self.checkpoint
            _log.info(f"Checkpoint   {held.called if held.in_the_box else _short(held.path)}")
        try:
            super()._run_subcommand(subcommand)
        except SystemExit:  # Lightning's answer to Ctrl-C
            if not self.trainer.interrupted:
                raise
            # Not trainer.log_dir, which asks the other processes: they may be gone.
            folder = Path(getattr(self.trainer.logger, "log_dir", None) or ".")
            last = folder / CHECKPOINTS_FOLDER / f"{LAST}.ckpt"
            if subcommand == "fit" and last.is_file():
                config = _typed(folder / CONFIG_FILE)
                _log.info(
                    f"Go on with   {_prefix()}python -m agr_lightning fit --config {config} --ckpt_path {_typed(last)}"
                )
            raise KeyboardInterrupt from None

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """What the Trainer's method gets: no path of weights that are loaded already."""
        loaded = self.checkpoint is not None and self.checkpoint.exported
        return super()._prepare_subcommand_kwargs(subcommand) | ({"ckpt_path": None} if loaded else {})

    def after_fit(self) -> None:
        kept = [each for each in self.trainer.checkpoint_callbacks if isinstance(each, BestCheckpoint)]
        path = kept[0].best_model_path if kept else ""
        if self.config[self.command].test_after_fit:
            if path:
                self.trainer.test(self.model, self.datamodule, ckpt_path=path, verbose=False)
            elif kept:
                _log.info(f"No {BEST}.ckpt, since nothing was validated: so nothing is tested either.")
        self._say_where(path)

    def after_test(self) -> None:
        self._say_where(None)

    def after_validate(self) -> None:
        self._say_where(None)

    def _say_where(self, checkpoint: str | None) -> None:
        folder = run_folder(self.trainer)
        if folder is None:
            return
        _log.info(f"Run folder   {_short(folder)}")
        prefix = _prefix()
        _log.info(f"Curves       {prefix}tensorboard --logdir {_typed(folder.parent)}")
        if (folder / RESULTS_FILE).is_file():
            _log.info(f"Report       {prefix}python -m agr_lightning report {_typed(folder)}")
        if checkpoint:
            _log.info(f"Checkpoint   {_short(checkpoint)}")
            _log.info(
                f"Next         {prefix}python -m agr_lightning predict --ckpt_path {_typed(checkpoint)} "
                "--data.predict_path FOLDER"
            )


def _prefix() -> str:
    """What a command begins with: what `uv run` started is not on the path without it."""
    return "uv run " if "UV_RUN_RECURSION_DEPTH" in os.environ else ""


def _typed(path: str | Path) -> str:
    """The path as it has to be typed in a shell."""
    return shlex.quote(_short(path))


def _short(path: str | Path) -> str:
    """The path as seen from here."""
    whole = Path(path).resolve()
    here = Path.cwd().resolve()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def first_line(error: Exception) -> str:
    """What an error says, up to its first line's end, in single blanks."""
    return " ".join(str(error).split("\n")[0].split())
