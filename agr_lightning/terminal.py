"""What a user sees while a command runs: the project's own sentences, without Lightning's small talk."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

# Lightning's own, without the wait for Lightning.
from lightning_utilities.core.rank_zero import rank_zero_only
from tqdm import tqdm

_LOG = logging.getLogger("agr_lightning")

# Said by Lightning and torch on every run of some kind, where nothing is wrong or to be done.
_SMALL_TALK = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*args parameter is intended to run from within Python.*",
    r".*does not have many workers.*",
    r".*it is recommended to use `Trainer\(devices=1.*",
    r".*callbacks used to create the checkpoint need to be provided.*",
    r".*Grad strides do not match bucket view strides.*",
    r".*resuming from a checkpoint that ended before the epoch ended.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Precision .* is not supported by the model summary.*",
    r".*Detected call of `lr_scheduler.step\(\)` before.*",
)


class _Terminal(logging.Handler):
    """Prints what the project says on the first process, without tearing progress bars apart."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(rank_zero_only, "rank", 0) == 0:
            prefix = "warning: " if record.levelno >= logging.WARNING else ""
            tqdm.write(prefix + record.getMessage(), file=sys.stdout)


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """Lets the project speak, and silences the rest, while the block runs."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    level, terminal = _LOG.level, _Terminal()
    _LOG.addHandler(terminal)
    _LOG.setLevel(logging.INFO)
    with warnings.catch_warnings():
        for message in _SMALL_TALK:
            warnings.filterwarnings("ignore", message)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"jsonargparse.*|lightning.*")
        try:
            yield
        except BaseException:
            for bar in list(tqdm._instances):
                bar.close()  # so that what went wrong begins a line of its own
            raise
        finally:
            _LOG.removeHandler(terminal)
            _LOG.setLevel(level)
