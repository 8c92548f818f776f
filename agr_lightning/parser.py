"""The option parser of LightningCLI's commands, with help worded for users."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from agr_lightning.option_errors import Explaining

# What --help says of each command, and of options that Lightning words for programmers.
DESCRIPTIONS = {
    "fit": "Trains a network, keeps the best weights by val/loss and the last ones, and tests the best. Options of a "
    "YAML file given with --config are overridden by later files, and all files by options given here.",
    "validate": "Measures a checkpoint on the validation images of its own run, or of those that the options name.",
    "test": "Measures a checkpoint on the test images of its own run, or of those that the options name: results.json "
    "with 95 % intervals and groups, and figures. The figures do not depend on the number of devices.",
    "predict": "Finds the faces in photos and videos, and predicts for each: predictions.csv, with at least one row "
    "for every input. Where no option needs a Trainer, it does without Lightning, which is quicker.",
}

OPTION_HELP = {
    "ckpt_path": "checkpoint to load: a file, a run folder (for its best), 'best' or 'last' of the newest run in "
    "lightning_logs, an exported file, or 'small' for the small network that comes with this project. fit goes on "
    "training from it, in its own folder; test and predict take the other network that comes along where none is "
    "named. Its model and data options become the defaults.",
    "weights_only": "kept for Lightning: a checkpoint that holds more than weights and plain values is refused anyway.",
    "verbose": "print Lightning's own table of figures as well.",
    "return_predictions": "kept for Lightning; predictions go to predictions.csv.",
    "seed_everything": "seed of training: weights, order, augmentation and dropout (the split has --data.seed).",
}


class AGRArgumentParser(Explaining, LightningArgumentParser):
    """Says what is wrong with an option or a file of options, and what would have worked."""

    def parse_path(self, cfg_path: str | PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Reads a file of options; one that is no YAML is named, with the place."""
        try:
            yaml.safe_load(Path(fspath(cfg_path)).read_text("utf-8"))
        except UnicodeDecodeError:
            self.error(f"--config {cfg_path}: not valid YAML: no text in UTF-8.")
        except yaml.YAMLError as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            where = "" if mark is None else f", in line {mark.line + 1}, column {mark.column + 1}"
            self.error(f"--config {cfg_path}: not valid YAML: {problem or 'unknown characters'}{where}.")
        found: Namespace = super().parse_path(cfg_path, *args, **kwargs)
        return found
