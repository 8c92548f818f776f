"""`fit` against a bare PyTorch loop with the same network, batches, optimizer and precision.

The first table is what counts: images a second of both. The second says, line by line, what the Trainer, metrics,
logging and the progress bar add to a step, measured with images so small that they are much of it.

python benchmarks/fit_overhead.py [--root UTKFace] [--precision bf16-mixed] [--steps 60] [--repeats 7]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from measure import USE_STOPWATCH, Stopwatch, in_turns, machine, per_second, quietly, show, silence, wait_for_device
from torch import Tensor

from agr_lightning.data.loading import Batch
from agr_lightning.datamodule import UTKFaceDataModule
from agr_lightning.module import AGRModule

WARM_UP = 5


class WithoutMetrics(AGRModule):
    """The training step without metrics."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        outputs = self.network(batch.images)
        return self.loss.total(self.loss(outputs, {"age": batch.age, "gender": batch.gender, "race": batch.race}))

    def on_train_epoch_end(self) -> None:
        pass


class WithoutLogging(AGRModule):
    """The training step with metrics that are not logged."""

    def log(self, *args: object, **kwargs: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of UTKFace images; without it, drawn cards")
    parser.add_argument("--backbone", default="agr_cnn")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed", "16-mixed"])
    parser.add_argument("--compile", action="store_true", help="compile the training step of both")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args()
    silence()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        steps, batch = chosen.steps + WARM_UP, chosen.batch_size

        def rate(loop: Callable[..., list[float]]) -> Callable[[], float]:
            return lambda: per_second(loop(chosen, chosen.size, batch, steps), batch, WARM_UP)

        loops = {"bare PyTorch loop": rate(bare), "fit": rate(fit), "bare loop, one ready batch": rate(ready)}
        found = in_turns(loops, chosen.repeats)
        title = f"Training {chosen.backbone} at {chosen.size} px, {chosen.precision}, batches of {batch}"
        show(title, found, "images a second", "bare PyTorch loop")

        def step(loop: Callable[..., list[float]]) -> Callable[[], float]:
            return lambda: 1000 / per_second(loop(chosen, 32, 2, 2 * steps), 1, 20)

        lines: dict[str, Callable[..., list[float]]] = {
            "bare PyTorch loop": bare,
            "in a Trainer": lambda *a: in_a_trainer(WithoutMetrics, False, *a),
            "with metrics": lambda *a: in_a_trainer(WithoutLogging, False, *a),
            "with logging": lambda *a: in_a_trainer(AGRModule, True, *a),
            "with a progress bar: fit": fit,
        }
        costs = in_turns({name: step(loop) for name, loop in lines.items()}, chosen.repeats)
    print(f"\nWhat a step takes, of 2 images at 32 px (n = {chosen.repeats}, {machine()})\n")
    print("| | ms a step, median | best round | more than the line above, best rounds |\n|---|---|---|---|")
    above = min(costs["bare PyTorch loop"])
    for name, values in costs.items():
        print(f"| {name} | {sorted(values)[len(values) // 2]:.2f} | {min(values):.2f} | {min(values) - above:.2f} |")
        above = min(values)


def bare(chosen: argparse.Namespace, size: int, batch_size: int, steps: int, one_batch: bool = False) -> list[float]:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = UTKFaceDataModule(**_source(chosen), image_size=size, batch_size=batch_size, num_workers=chosen.num_workers)
    data.setup("fit")
    module = AGRModule(backbone=chosen.backbone)
    network = module.network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps + 1)
    dtype = torch.float16 if chosen.precision == "16-mixed" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=chosen.precision == "16-mixed")
    forward = torch.compile(network) if chosen.compile else network
    times: list[float] = []
    while True:
        for batch in _again_and_again(data.train_dataloader(), device) if one_batch else data.train_dataloader():
            images, age, gender, race, _ = (part.to(device, non_blocking=True) for part in batch)
            with torch.autocast(device.type, dtype, enabled=chosen.precision != "32-true"):
                losses = module.loss(forward(images), {"age": age, "gender": gender, "race": race})
                loss = module.loss.total(losses)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            times.append(time.perf_counter())
            if len(times) == steps:
                wait_for_device()
                times[-1] = time.perf_counter()
                return times


def ready(*settings: Any) -> list[float]:
    return bare(*settings, one_batch=True)


def _again_and_again(loader: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    batch = Batch(*(part.to(device) for part in next(iter(loader))))
    while True:
        yield batch


def in_a_trainer(
    kind: type[AGRModule], log: bool, chosen: argparse.Namespace, size: int, batch_size: int, steps: int
) -> list[float]:
    torch.manual_seed(0)
    data = UTKFaceDataModule(**_source(chosen), image_size=size, batch_size=batch_size, num_workers=chosen.num_workers)
    trainer = Trainer(
        max_steps=steps,
        limit_val_batches=0,
        precision=chosen.precision,
        logger=TensorBoardLogger(".") if log else False,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[Stopwatch()],
    )
    trainer.fit(kind(backbone=chosen.backbone, image_size=size), data)
    return Stopwatch.times


def fit(chosen: argparse.Namespace, size: int, batch_size: int, steps: int) -> list[float]:
    options = [f"--data.{name}={value}" for name, value in _source(chosen).items()]
    options += [f"--data.image_size={size}", f"--data.batch_size={batch_size}"]
    options += [f"--data.num_workers={chosen.num_workers}", f"--model.backbone={chosen.backbone}"]
    options += [f"--model.compile={chosen.compile}", "--trainer.accelerator=auto"]
    options += [f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=0", "--test_after_fit=false"]
    options += [f"--trainer.precision={chosen.precision}", USE_STOPWATCH]
    quietly("fit", *options)
    return Stopwatch.times


def _source(chosen: argparse.Namespace) -> dict[str, str | int]:
    return {"root": chosen.root} if chosen.root else {"synthetic": 6000}


if __name__ == "__main__":
    main()
