"""`predict` without Lightning, for its first answer soon; where an option needs a Trainer, trainer_cli.py has it."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser, Namespace

from agr_lightning.inference.photo_reader import ReadingOptions
from agr_lightning.inference.predict import OutputOptions, predict
from agr_lightning.option_errors import Explaining
from agr_lightning.terminal import speaking

# What of LightningCLI's options makes sense without it.
_SHARED = ("data.predict_path", "data.batch_size", "trainer.default_root_dir", "trainer.enable_progress_bar")


T = TypeVar("T")


class _Parser(Explaining, ArgumentParser):
    pass


def needs_trainer(options: Sequence[str]) -> bool:
    """Whether there is an option, --help too, that only LightningCLI knows."""
    known = ["ckpt_path", *_SHARED, *(field.name for kind in (ReadingOptions, OutputOptions) for field in fields(kind))]
    names = {option.partition("=")[0] for option in options if option.startswith("-") and not _is_number(option)}
    return not names <= {f"--{name}" for name in known}


def run(options: Sequence[str]) -> None:
    """Runs `predict`.

    Args:
        options: what follows it on the command line.

    Raises:
        UserError: for what the user can cure.
        SystemExit: with code 2 for options that cannot be understood.
    """
    parser = _Parser(prog="python -m agr_lightning predict", exit_on_error=True)
    parser.add_argument("--ckpt_path", type=str | None)
    parser.add_argument("--data.predict_path", type=str | None)
    parser.add_argument("--data.batch_size", type=int, default=64)
    parser.add_argument("--trainer.default_root_dir", type=str, default=".")
    parser.add_argument("--trainer.enable_progress_bar", type=bool, default=True)
    for kind in (ReadingOptions, OutputOptions):
        parser.add_class_arguments(kind)
    chosen = parser.parse_args(list(options))
    reading, output = _made(ReadingOptions, chosen), _made(OutputOptions, chosen)
    progress = chosen.trainer.enable_progress_bar and sys.stderr.isatty()
    root = Path(chosen.trainer.default_root_dir)
    with speaking():
        predict(chosen.data.predict_path, chosen.ckpt_path, reading, output, root, chosen.data.batch_size, progress)


def _made(kind: type[T], chosen: Namespace) -> T:
    return kind(**{field.name: chosen[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()
