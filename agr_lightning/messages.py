"""What the project tells its users: errors with a cure, and the log on the console."""

import contextlib
import difflib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

PROGRAM = "python -m agr_lightning"

# What names stdout, as a file for output.
STDOUT = "-"


class UserError(Exception):
    """A mistake that the user can cure; its text names the value and the cure in one or two lines."""


def needs(library: str, extra: str) -> str:
    """Returns the words for a library that is missing, and how to get the extra that brings it."""
    return f"needs {library}: uv sync --all-extras, or pip install 'agr-lightning[{extra}]'"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the known word nearest to ``word``, or an empty string.

    Example:
        >>> did_you_mean("resnet81", ["agr_cnn", "resnet18"])
        " (did you mean 'resnet18'?)"
    """
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


def one_line(text: object, limit: int = 300) -> str:
    """A message in one line, without control characters, cut where it is too long to be read."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def stdout_for(output: str | None) -> contextlib.AbstractContextManager[object]:
    """Keeps messages out of stdout, by sending them to stderr, where it is what an option names for output."""
    return contextlib.redirect_stdout(sys.stderr) if output == STDOUT else contextlib.nullcontext()


class OneLineErrors:
    """For parsers of jsonargparse: its errors in one line, with the option that was meant for an unknown one."""

    get_defaults: Callable[..., Any]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line to stderr and exits with code 2."""
        unknown = re.match("unrecognized arguments: (--[^ =+]+)", message)
        if unknown:
            known = ["--config", *(f"--{name}" for name in self.get_defaults(skip_validation=True).keys())]  # noqa: SIM118
            message = f"no option is called '{unknown[1]}'{did_you_mean(unknown[1], known)}; --help lists them all."
        print(f"error: {one_line(message, 600)}", file=sys.stderr)
        raise SystemExit(2)


# How what Lightning logs on every run begins, and what it warns of where nothing is wrong or to be done.
_ROUTINE = ("GPU available", "TPU available", "💡 Tip", "Loading `train_dataloader`", "Restor", "Loaded model")
_HARMLESS = (
    ".*(LeafSpec|does not have many workers|recommended to use `Trainer.devices=1|callbacks used to create the "
    "checkpoint|Grad strides do not match|ended before the epoch ended|exists and is not empty|smaller than the "
    "logging interval|not supported by the model summary|Detected call of `lr_scheduler.step|args parameter is|params "
    "to be frozen already exist)"
)


class _Console(logging.Handler):
    """Prints what the project logs on the first process, without tearing progress bars apart."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        # Of Lightning, which takes a while to import; where nobody has, there is one process.
        rank_zero = sys.modules.get("lightning_utilities.core.rank_zero")
        if rank_zero is None or getattr(rank_zero.rank_zero_only, "rank", 0) == 0:
            prefix = "warning: " if record.levelno >= logging.WARNING else ""
            tqdm.write(prefix + record.getMessage(), file=sys.stdout)


@contextlib.contextmanager
def console_logging() -> Iterator[None]:
    """Shows what the project logs while the block runs, and hides what Lightning repeats on every run."""
    ours, console = logging.getLogger("agr_lightning"), _Console()
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    lightning.addFilter(lambda record: not record.getMessage().startswith(_ROUTINE))
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    ours.addHandler(console)
    ours.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _HARMLESS)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="jsonargparse|lightning")
            warnings.filterwarnings("ignore", module="PIL")  # of metadata, which no answer needs
            yield
    finally:
        ours.removeHandler(console)
