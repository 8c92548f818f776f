"""The commands of a Trainer: fit, validate, test, and predict where an option needs one. LightningCLI with names."""

import logging
import os
import pkgutil
import shlex
import signal
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from agr_lightning import files
from agr_lightning.callbacks import ConfigWriter, PredictionWriter, ResultsWriter, training_callbacks
from agr_lightning.checkpoints import TrainedNetwork, load_trained, read_initial
from agr_lightning.data.tables import LabelOptions
from agr_lightning.datamodule import UTKFaceDataModule
from agr_lightning.inference.parts import unfinished_run
from agr_lightning.inference.photos import PhotoOptions
from agr_lightning.messages import PROGRAM, OneLineErrors, UserError, stdout_for
from agr_lightning.models.config import NetworkConfig
from agr_lightning.module import AGRModule
from agr_lightning.run_checkpoints import AtomicCheckpointIO, RunCheckpoint, run_folder

_log = logging.getLogger(__name__)

# What commands that users are to type begin with, where `uv run` started this one.
_UV = "uv run " if "UV_RUN_RECURSION_DEPTH" in os.environ else ""

_CKPT_PATH = (
    "checkpoint to load: a file, a run folder (for its best), 'best' or 'last' of the newest run in lightning_logs, an "
    "exported file, or 'agr' or 'small' for a shipped network. fit resumes it, in its own folder; test and predict "
    "take agr where none is named. Its model and data options become the defaults."
)

# Drawn cards are trained on with settings that suit them, unless the options come from elsewhere.
_OF_ONES_OWN = ("--config", "-c", "--ckpt_path", "--data.root")
_CONFIGS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")  # installed, and in a clone
_QUICKSTART = next((folder / "quickstart.yaml" for folder in _CONFIGS if folder.is_dir()), Path())

# Options of a checkpoint that are about the machine of those who trained it.
_NOT_OF_CHECKPOINTS = ("data.cache_dir", "data.predict_path", "data.num_workers", "model.weights", "model.pretrained")


class AGRArgumentParser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser, with errors in one line."""

    def parse_path(self, cfg_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Reads a file of options; one whose aliases could refer to themselves, or grow without end, is refused."""
        try:
            with Path(cfg_path).open("rb") as file:
                if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(file)):
                    self.error(f"--config {cfg_path}: YAML aliases (*name) are not supported; write the options out.")
        except yaml.YAMLError as error:
            self.error(f"--config {cfg_path}: not valid YAML: {error}")
        found: Namespace = super().parse_path(cfg_path, *args, **kwargs)
        return found


class AGRCommandLine(LightningCLI):
    """LightningCLI for one command, with checkpoints that users can name by role."""

    def __init__(self, command: str, options: Sequence[str], model_class: type[AGRModule], description: str) -> None:
        self.command = command
        cards = any(word.startswith("--data.synthetic") for word in options)
        if command == "fit" and cards and not any(word.startswith(_OF_ONES_OWN) for word in options):
            options = ["--config", str(_QUICKSTART), *options]
        super().__init__(
            model_class,
            UTKFaceDataModule,
            args=list(options),
            run=False,
            parser_class=AGRArgumentParser,
            parser_kwargs={"prog": f"{PROGRAM} {command}", "description": description, "allow_abbrev": False},
            save_config_callback=None,
            seed_everything_default=42,
            # Keeps hyperparameters as the constructors get them: plain values.
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,
            trainer_defaults={"max_epochs": 20, "log_every_n_steps": 10, "use_distributed_sampler": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.image_size", "model.image_size")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=_CKPT_PATH)
        if self.command == "fit":
            parser.add_argument("--test_after_fit", type=bool, default=True, help="test the best checkpoint at the end")
        if self.command == "predict":
            parser.add_class_arguments(PredictionWriter)
            for name in parser.add_class_arguments(PhotoOptions):
                parser.link_arguments(name, f"data.photos.{name}")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses twice: what a checkpoint was trained with, or the form of its initial weights, is the defaults."""
        self.config = parser.parse_args([arg for arg in args if not arg.startswith("--print_config")])
        self.root = Path(self.config.trainer.default_root_dir or ".")
        self.trained: TrainedNetwork | None = None
        if self.config.ckpt_path is None and self.command == "validate":
            raise UserError("`validate` needs weights: give --ckpt_path FILE, a run folder, 'best' or 'last'.")
        if self.config.ckpt_path is not None or self.command in ("test", "predict"):
            self.trained = load_trained(self.config.ckpt_path, self.root)
            if self.trained.exported and self.command == "fit":
                raise UserError(f"--ckpt_path {self.trained.name} is no run to resume: use --model.weights for it.")
            parser.set_defaults(self._options_of(self.trained, parser))
        else:
            parser.set_defaults(self._form())
        self.config = parser.parse_args(args)
        for name, base in (("optimizer", Optimizer), ("lr_scheduler", LRScheduler)):
            chosen = self.config.model[name]  # jsonargparse takes any function too, as os.system
            found = pkgutil.resolve_name(chosen.class_path) if isinstance(chosen, Namespace) else chosen
            if found is not None and not (isinstance(found, type) and issubclass(found, base)):
                raise UserError(f"--model.{name} {found}: expected a subclass of torch's {base.__name__}.")
        if self.trained is not None:
            self.config.ckpt_path = self.trained.name
            if self.command == "fit":  # the checkpoint's weights replace the initial ones, which may be gone
                self.config.model.weights, self.config.model.pretrained = None, False

    def _options_of(self, trained: TrainedNetwork, parser: LightningArgumentParser) -> dict[str, Any]:
        """What a checkpoint was trained with, as defaults of the options; its own split first of all."""
        stored = {name: value for name, value in trained.options().items() if name not in _NOT_OF_CHECKPOINTS}
        weights = stored.pop("model.loss_weights", None)
        if isinstance(weights, dict):
            stored |= {f"model.loss_weights.{task}": weight for task, weight in weights.items()}
        if self.config.data.root is not None:
            stored.pop("data.synthetic", None)
        if self.config.data.test_root or self.config.data.root not in (None, stored.get("data.root")):
            for each in fields(LabelOptions):  # a table is of one folder
                stored.pop(f"data.{each.name}", None)
        if self.config.data.synthetic:
            stored.pop("data.root", None)
        lists = trained.path.resolve().parents[1] / files.SPLITS_FOLDER
        same_images = self.config.data.synthetic in (0, stored.get("data.synthetic", 0))
        if (lists / "test.txt").is_file() and same_images and not trained.exported:
            stored["data.split"] = os.path.relpath(lists)
        known = parser.get_defaults(skip_validation=True)
        return {name: value for name, value in stored.items() if name in known}

    def _form(self) -> dict[str, Any]:
        """The network that is asked for, or that of the initial weights, as defaults of the options."""
        options = {**self.config.model.as_dict(), "image_size": None}  # which is an option of the data
        trained = read_initial(options["weights"])[1]
        start = NetworkConfig() if trained is None else trained.config
        config = start.replaced(options).to_dict()
        size = config.pop("image_size")
        return {"data.image_size": size, **{f"model.{name}": value for name, value in config.items()}}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what a run folder needs: its logger, its callbacks, and checkpoints that are whole."""
        options = self.config_init.trainer
        if options.strategy == "ddp_spawn":  # whose processes torch may abort when they end
            raise UserError("--trainer.strategy ddp_spawn: use ddp, which starts each process as a command of its own.")
        if options.check_val_every_n_epoch == 0:
            raise UserError("--trainer.check_val_every_n_epoch 0: expected 1 or more.")
        callbacks = [*(options.callbacks or [])]
        if not (options.fast_dev_run or options.barebones):
            if options.logger in (None, True):
                kwargs["logger"] = self._logger()
            ours = self._callbacks(bool(kwargs.get("logger", options.logger)))
            keeps = options.enable_checkpointing is not False
            callbacks += [each for each in ours if keeps or not isinstance(each, ModelCheckpoint)]
        if options.barebones:  # which refuses what is on by default here
            kwargs["log_every_n_steps"] = None
        plugins = options.plugins if isinstance(options.plugins, list) else [options.plugins] if options.plugins else []
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        return super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)

    def _logger(self) -> TensorBoardLogger:
        """TensorBoard in the next run folder, or in that of the run that is resumed."""
        version = None
        if self.command == "fit" and self.trained is not None:
            run = self.trained.path.resolve().parents[1]
            version = files.number_of(run) if run.parent == (self.root / files.RUNS_FOLDER).resolve() else None
        if self.command == "predict" and self.config.resume and self.config.output is None:
            version = files.number_of(unfinished_run(self.root / files.RUNS_FOLDER) or Path())
        if version is None and getattr(rank_zero_only, "rank", 0) == 0:
            version = files.reserve_run(self.root)
        return TensorBoardLogger(self.root.resolve(), files.RUNS_FOLDER, version, default_hp_metric=False)

    def _callbacks(self, logged: bool) -> list[Callback]:
        saved = self.config.clone()
        saved.ckpt_path = None if self.command == "fit" else saved.ckpt_path  # a resumed run is repeated from its start
        config = ConfigWriter(self.parser.dump(saved, skip_none=False))
        if self.command == "predict":
            asked = (self.config[name] for name in ("format", "annotate", "output", "resume"))
            return [PredictionWriter(*asked), config]  # which is not written where the first refuses to resume
        if self.command == "validate":
            return [config]
        if self.command == "test":
            return [config, ResultsWriter()]
        return [config, *training_callbacks(logged)]


def run(command: str, options: Sequence[str], description: str = "", model_class: type[AGRModule] = AGRModule) -> None:
    """Runs fit, validate, test or predict.

    Args:
        command: which of them.
        options: what follows it on the command line.
        description: of the command, for --help.
        model_class: ``AGRModule``, or a subclass of it, whose arguments are options too.
    """
    cli = AGRCommandLine(command, options, model_class, description)
    with stdout_for(cli.config.get("output")):
        _run(cli, command)


def _run(cli: AGRCommandLine, command: str) -> None:
    trainer, trained, best = cli.trainer, cli.trained, ""
    if trained is not None:
        _log.info(f"Checkpoint   {_typed(trained.name)}")
        cli.model.take(trained)  # says what differs, if it does
    ckpt_path = None if trained is None or trained.exported else str(trained.path)
    verbose = {} if command in ("fit", "predict") else {"verbose": command == "validate"}
    try:
        getattr(trainer, command)(cli.model, cli.datamodule, ckpt_path=ckpt_path, **verbose)
        best = _test_best(cli) if command == "fit" else ""
    except SystemExit as stopped:
        _log_how_to_resume(trainer)
        if stopped.code == 1:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
        raise SystemExit(stopped.code or 128 + signal.SIGTERM) from None  # which Lightning gives no code
    _log_places(trainer, best)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # left to the interpreter's end, its threads may abort the process


def _test_best(cli: AGRCommandLine) -> str:
    """Tests the best checkpoint of a training, where there is one, and returns its path."""
    kept = _checkpoint(cli.trainer, files.BEST)
    path = "" if kept is None else kept.best_model_path
    if cli.config.test_after_fit and kept is not None:
        if not path:
            _log.info(f"No {files.BEST}.ckpt, since nothing was validated: so nothing is tested either.")
        elif cli.datamodule.samples("test").empty:
            _log.info("No images are left for a test.")
        else:
            cli.trainer.test(cli.model, cli.datamodule, ckpt_path=path, verbose=False)
    return path


def _log_places(trainer: Trainer, checkpoint: str) -> None:
    """Where the run's files are, and what to do next."""
    folder = run_folder(trainer)
    if folder is None:
        return
    _log.info(f"Run folder   {_typed(folder)}")
    if isinstance(trainer.logger, TensorBoardLogger):
        _log.info(f"Curves       {_UV}tensorboard --logdir {_typed(folder.parent)}")
    if (folder / files.RESULTS_FILE).is_file():
        _log.info(f"Report       {_UV}{PROGRAM} report {_typed(folder)}")
    if checkpoint:
        _log.info(f"Checkpoint   {_typed(checkpoint)}")
        _log.info(f"Next         {_UV}{PROGRAM} predict --ckpt_path {_typed(checkpoint)} --data.predict_path FOLDER")


def _log_how_to_resume(trainer: Trainer) -> None:
    # By the checkpoint and not by run_folder, which asks the other processes: they may be gone.
    kept = _checkpoint(trainer, files.LAST)
    if kept is not None and Path(kept.best_model_path).is_file():
        config = _typed(Path(kept.best_model_path).parents[1] / files.CONFIG_FILE)
        _log.info(f"Resume       {_UV}{PROGRAM} fit --config {config} --ckpt_path {_typed(kept.best_model_path)}")


def _checkpoint(trainer: Trainer, name: str) -> RunCheckpoint | None:
    return next((e for e in trainer.checkpoint_callbacks if isinstance(e, RunCheckpoint) and e.filename == name), None)


def _typed(path: str | Path) -> str:
    """A path as it is typed in a shell, from here."""
    return shlex.quote(os.path.relpath(path))
