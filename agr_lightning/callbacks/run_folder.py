"""Where a run's files go."""

from pathlib import Path

import lightning


def run_folder(trainer: lightning.Trainer) -> Path | None:
    """The run folder, made if needed, on the process that writes; None on others, and when nothing is kept.

    To be called on all processes: they ask each other for the folder's name.
    """
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = trainer.log_dir
    if folder is None or not trainer.is_global_zero:
        return None
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path
