"""`predict` without Lightning, for its first answer soon; where an option needs a Trainer, trainer_cli.py has it."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from agr_lightning.inference.photo_reader import ReadingOptions
from agr_lightning.inference.predict import OutputOptions, chosen, predict
from agr_lightning.option_errors import Explaining
from agr_lightning.terminal import speaking

# What of LightningCLI's options makes sense without it: type, default, and help.
_SHARED: dict[str, tuple[Any, object, str]] = {
    "data.predict_path": (
        str | None,
        None,
        "a photo or video, a folder (searched recursively), a glob in quotes, or a .txt list.",
    ),
    "ckpt_path": (
        str | None,
        None,
        "an exported .onnx or .safetensors file, a checkpoint, a run folder, 'best' or 'last', or 'small' for "
        "the small network that comes with this project; the other one that comes along where none is named.",
    ),
    "data.batch_size": (int, 64, "faces that are computed at once."),
    "trainer.default_root_dir": (str, ".", "the folder that holds lightning_logs."),
    "trainer.enable_progress_bar": (bool, True, "whether to show one."),
}


class _Parser(Explaining, ArgumentParser):
    pass


def needs_trainer(options: Sequence[str]) -> bool:
    """Whether there is an option that only LightningCLI knows."""
    known = ["help", *_SHARED, *(field.name for kind in (ReadingOptions, OutputOptions) for field in fields(kind))]
    names = {option.partition("=")[0] for option in options if option.startswith("-") and not _is_number(option)}
    return not names <= {"-h", *(f"--{name}" for name in known)}


def run(options: Sequence[str]) -> None:
    """Runs `predict`.

    Args:
        options: what follows it on the command line.

    Raises:
        UserError: for what the user can cure.
        SystemExit: with code 2 for options that cannot be understood.
    """
    parser = _Parser(
        prog="python -m agr_lightning predict",
        description="Finds the faces in photos and videos, and predicts for each: predictions.csv in a run folder, "
        "with at least one row for every input.",
        epilog="Options of LightningCLI (--config, --model, --data, --trainer) are taken too, and --print_config lists "
        "them; with any of those that are not above, a Trainer does the work.",
    )
    parser.usage = "python -m agr_lightning predict --data.predict_path PLACE [options]"
    for name, (kind, default, text) in _SHARED.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    for options_of in (ReadingOptions, OutputOptions):
        parser.add_class_arguments(options_of)
    given = parser.parse_args(list(options))
    reading, output = chosen(ReadingOptions, vars(given)), chosen(OutputOptions, vars(given))
    progress = given.trainer.enable_progress_bar and sys.stderr.isatty()
    root = Path(given.trainer.default_root_dir)
    with speaking():
        predict(given.data.predict_path, given.ckpt_path, reading, output, root, given.data.batch_size, progress)


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()
