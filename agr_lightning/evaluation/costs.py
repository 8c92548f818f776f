"""What a network costs to run on a CPU: parameters, multiply-adds, size, and time, measured in turns with others."""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from agr_lightning.models.network import AGRNetwork

THROUGHPUT_BATCH = 32

# Each network gets this long in a round: slow ones more than a single call, and quick ones no longer.
_SECONDS_A_ROUND = 0.15


class Cost(NamedTuple):
    """What a network costs.

    Attributes:
        parameters: how many.
        multiply_adds: of convolutions and matrix products, for one image.
        megabytes: of the weights as 32-bit floats, 10^6 bytes.
        latency: of a batch of one, on one core, milliseconds.
        throughput: in batches of 32, on one core, images a second.
    """

    parameters: int
    multiply_adds: int
    megabytes: float
    latency: float
    throughput: float


def measure_costs(networks: Sequence[tuple[AGRNetwork, int]], rounds: int = 7) -> list[Cost]:
    """Measures networks in turns, so that what slows the machine down slows all of them.

    Args:
        networks: each with the side of its images in pixels.
        rounds: of which the medians are taken.
    """
    latencies: list[list[float]] = [[] for _ in networks]
    batches: list[list[float]] = [[] for _ in networks]
    with _one_thread(), torch.inference_mode():
        facts = [_facts(network.eval(), size) for network, size in networks]
        for _ in range(rounds):
            for place, (network, size) in enumerate(networks):
                latencies[place].append(_seconds(network, 1, size))
                batches[place].append(_seconds(network, THROUGHPUT_BATCH, size))
    return [
        Cost(*fact, 1000 * statistics.median(single), THROUGHPUT_BATCH / statistics.median(batch))
        for fact, single, batch in zip(facts, latencies, batches, strict=True)
    ]


def _facts(network: AGRNetwork, size: int) -> tuple[int, int, float]:
    with FlopCounterMode(display=False) as counter:
        network(_images(1, size))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    megabytes = sum(value.numel() * value.element_size() for value in network.state_dict().values()) / 1e6
    return parameters, counter.get_total_flops() // 2, megabytes


def _seconds(network: AGRNetwork, batch: int, size: int) -> float:
    """The quickest of the calls in a short while."""
    images = _images(batch, size)
    network(images)
    taken: list[float] = []
    while not taken or sum(taken) < _SECONDS_A_ROUND:
        start = time.perf_counter()
        network.predict(images)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _images(batch: int, size: int) -> torch.Tensor:
    shape = (batch, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
