"""The command line: a name for each command, and the one place that makes an error a line."""

import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, get_origin

from agr_lightning import __version__
from agr_lightning.messages import PROGRAM, OneLineErrors, UserError, console_logging, did_you_mean, one_line

# To add a command, write a function with typed arguments and a docstring, and name it here: its signature becomes its
# options. Nothing is imported before the command is known. Those without a function are a Trainer's.
COMMANDS = {
    "fit": ("train a network, then test its best checkpoint", None),
    "validate": ("measure a checkpoint on the validation images", None),
    "test": ("measure a checkpoint on the test images: results.json and figures", None),
    "predict": ("find the faces in photos and videos, and predict for each: a table", "inference.predict:predict"),
    "crop": ("face crops of photos, like UTKFace's, to train on", "inference.crop:crop"),
    "audit": ("list what is wrong with a data folder", "audit:audit"),
    "compare": ("one table of tested runs: figures, groups, size and speed", "evaluation.compare:compare"),
    "report": ("a page and a model card of a tested run", "evaluation.report:report"),
    "export": ("a checkpoint's network in one file: ONNX or safetensors", "inference.export:export"),
    "app": ("a web page on this machine: drop photos, see faces and predictions", "app:app"),
}

_HELP = f"""usage: {PROGRAM} COMMAND [options]

Age in years, gender and race from face images: train, measure and use one network.

commands:
{chr(10).join(f"  {name:10}{text}" for name, (text, _) in COMMANDS.items())}

  {PROGRAM} COMMAND --help    all options of a command
  {PROGRAM} COMMAND --debug   where an error comes from
  {PROGRAM} --version

start here, without any data:
  {PROGRAM} fit --config configs/quickstart.yaml
"""


def main(args: Sequence[str] | None = None, **classes: type) -> int:
    """Runs one command, and returns 0, 1 for an error while running, or 2 for options that cannot be understood.

    Args:
        args: the command and its options; None for those of this process.
        **classes: ``model_class``, a subclass of ``AGRModule`` for the commands of a Trainer.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    if not words or words[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"agr_lightning {__version__}")
        return 0
    command, *options = words
    if command not in COMMANDS:
        nearest = did_you_mean(command, (*COMMANDS, "--help", "--version"))
        return _fail(f"no command is called '{command}'{nearest}; commands: {', '.join(COMMANDS)}.", 2)
    try:
        with console_logging():
            _run(command, _as_text(options), classes)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # Whoever read the output has gone; nothing is left to tell them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        return _fail(_describe(error))
    return 0


def _run(command: str, options: list[str], classes: dict[str, type]) -> None:
    description, function = COMMANDS[command]
    if function is None or (command == "predict" and _needs_trainer(options)):
        from agr_lightning.training_cli import run

        options = _with_values(options, {"--resume"})
        run(command, options, f"{description[0].upper()}{description[1:]}.", **classes)
        return
    module, _, name = function.partition(":")
    found = _call(command, getattr(importlib.import_module(f"agr_lightning.{module}"), name), options)
    if found is not None:
        print(*(found if isinstance(found, list) else [str(found).rstrip()]), sep="\n")


def _call(command: str, function: Callable[..., Any], options: list[str]) -> Any:
    """Calls a function with what the command line says; its signature and docstring are the options and their help."""
    from jsonargparse import ArgumentParser, auto_cli

    parameters = signature(function).parameters
    options = _with_values(options, {f"--{name}" for name, each in parameters.items() if each.default is False})
    first = next(iter(parameters.values()))
    if get_origin(first.annotation) is list and first.default is first.empty:
        # Several words for a list: `compare RUN RUN`.
        count = next((i for i, word in enumerate(options) if word.startswith("-")), len(options))
        options = [json.dumps(options[:count]), *options[count:]] if count else options
    parser = type("Parser", (OneLineErrors, ArgumentParser), {})
    return auto_cli(function, args=options, prog=f"{PROGRAM} {command}", parser_class=parser, allow_abbrev=False)


def _with_values(options: list[str], flags: set[str]) -> list[str]:
    """Adds the value that parsers ask for to options that need none."""
    pairs = zip(options, [*options[1:], ""], strict=False)
    return [f"{word}=true" if word in flags and after not in ("true", "false") else word for word, after in pairs]


def _needs_trainer(options: list[str]) -> bool:
    """Whether there is an option of `predict` that only a Trainer knows; else it needs no Lightning."""
    names = {word.split("=")[0] for word in options} - {"--data.predict_path", "--data.batch_size"}
    groups = ("--config", "-c", "--print_config", "--seed_everything", "--trainer", "--model", "--data")
    return any(name.partition(".")[0] in groups for name in names)


def _as_text(options: list[str]) -> list[str]:
    """Marks files whose names YAML would read as nothing, such as ``null`` or ``#1``, as files."""
    marked = []
    for word in options:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_file = (value.startswith("#") or value.lower() == "null") and Path(value).exists()
        marked.append(f"{name}{equals}./{value}" if is_file else word)
    return marked


def _describe(error: Exception) -> str:
    """An error in one line."""
    text = str(error)
    if isinstance(error, UserError):
        # A loader worker's error arrives with the worker's traceback in front of it.
        return text.rpartition("UserError: ")[2].strip()
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}."
    if type(error).__name__ == "OutOfMemoryError":
        return "the device is out of memory: use a smaller --data.batch_size or --data.image_size."
    return f"{one_line(text) or 'no message'} ({type(error).__name__}; --debug shows where)"


def _fail(message: str, code: int = 1) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
