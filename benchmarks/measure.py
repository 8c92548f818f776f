"""What the benchmarks share: alternatives measured in turns in one process, and a table of their ratios."""

import contextlib
import io
import itertools
import logging
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from agr_lightning.cli import main
from agr_lightning.data.cards import draw_cards
from agr_lightning.data.index import build_index


class Stopwatch(Callback):
    """Notes when each batch of training or test ends; for ``--trainer.callbacks``."""

    times: ClassVar[list[float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Stopwatch.times = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait_for_device()
        if Stopwatch.times:
            Stopwatch.times[-1] = time.perf_counter()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Stopwatch.times = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        Stopwatch.times.append(time.perf_counter())

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        Stopwatch.times.append(time.perf_counter())


USE_STOPWATCH = "--trainer.callbacks=[{class_path: measure.Stopwatch}]"


def per_second(times: Sequence[float], items: int, warm_up: int = 5) -> float:
    """Items a second, from the times at which batches of so many items ended, without the first ones."""
    taken = times[warm_up:]
    return (len(taken) - 1) * items / (taken[-1] - taken[0])


def seconds(*arguments: str) -> float:
    """How long a process of its own takes."""
    start = time.perf_counter()
    subprocess.run(arguments, check=True, capture_output=True)
    return time.perf_counter() - start


def quietly(*arguments: str) -> None:
    """Runs a command in this process, and prints its output only when it fails."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(list(arguments))
    assert code == 0, output.getvalue()


def repeated(root: str | None, count: int, target: Path) -> Path:
    """A folder of so many images: those of the root, or cards, repeated under other names."""
    target.mkdir()
    index = build_index(root or str(draw_cards(min(count, 2000), 0)))
    for number, sample in zip(range(count), itertools.cycle(index.samples.itertuples()), strict=False):
        name = f"{sample.age:.0f}_{sample.gender}_{max(sample.race, 0)}_{number:09}.jpg"
        (target / name).symlink_to(index.folder / sample.file)
    return target


def silence() -> None:
    """Switches off Lightning's messages while something is measured."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def wait_for_device() -> None:
    """Waits until the GPU, if there is one, has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(alternatives: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measures all one after the other, ``repeats`` times: what slows the machine down slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(repeats):
        for name, measure in alternatives.items():
            found[name].append(measure())
    return found


def show(title: str, found: dict[str, list[float]], unit: str, reference: str) -> None:
    """Prints a Markdown table: medians, ratios to the reference in the same round, and that of the best rounds.

    Other users of a machine only ever slow things down, so the best rounds have the least of their noise.
    """
    repeats = len(found[reference])
    print(f"\n{title} (n = {repeats}, {machine()})\n")
    print(f"| | {unit} | ratio to {reference} | spread of the ratio | ratio of the best rounds |")
    print("|---|---|---|---|---|")
    for name, values in found.items():
        ratios = [value / base for value, base in zip(values, found[reference], strict=True)]
        middle, value = statistics.median(ratios), statistics.median(values)
        digits = 0 if value >= 100 else 2
        spread, best = f"{min(ratios):.2f} to {max(ratios):.2f}", max(values) / max(found[reference])
        print(f"| {name} | {value:,.{digits}f} | {middle:.2f} | {spread} | {best:.2f} |")


def machine() -> str:
    """The processor that is measured."""
    cores = f"{len(os.sched_getaffinity(0))} cores"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {cores}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {cores}, torch {torch.__version__}"
