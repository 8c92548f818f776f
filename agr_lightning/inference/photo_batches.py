"""Input files -> batches of read photos, in order; read by threads, ahead of what is asked for."""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from agr_lightning.data.photos import VIDEO_EXTENSIONS
from agr_lightning.inference.photo_reader import PhotoReader, ReadPhoto

# An input, and its place among all.
Input = tuple[int, Path]

# So many photos are read ahead where their pictures are kept, of up to 12 MB each.
_PICTURES = 8


def photo_batches(
    inputs: Sequence[Input],
    reader: PhotoReader,
    batch_size: int,
    done: Callable[[], object] = lambda: None,
) -> Iterator[list[ReadPhoto]]:
    """What is in files, in their order.

    However many inputs there are, and however long a video is, no more than some batches are in memory.

    Args:
        inputs: photos and videos.
        reader: reads them.
        batch_size: faces in a batch; there are more where the last photo of it has them, and fewer at the end, or
            where many photos have none.
        done: called after each input.
    """
    waiting: list[ReadPhoto] = []
    faces = 0
    for photo in _read_ahead(inputs, reader, _PICTURES if reader.keep else batch_size, done):
        waiting.append(photo)
        faces += len(photo.crops)
        if faces >= batch_size or len(waiting) >= (_PICTURES if reader.keep else 2 * batch_size):
            yield waiting
            waiting, faces = [], 0
    if waiting:
        yield waiting


def _read_ahead(
    inputs: Sequence[Input], reader: PhotoReader, ahead: int, done: Callable[[], object]
) -> Iterator[ReadPhoto]:
    """Reads photos in threads, some ahead of what is asked for; videos, which are long, when they are asked for."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading: deque[tuple[Input, Future[list[ReadPhoto]] | None]] = deque()
        todo = iter(inputs)
        try:
            while True:
                while len(reading) < ahead and (one := next(todo, None)) is not None:
                    video = one[1].suffix.lower() in VIDEO_EXTENSIONS
                    reading.append((one, None if video else pool.submit(lambda path: list(reader.read(path)), one[1])))
                if not reading:
                    return
                (place, path), future = reading.popleft()
                for photo in reader.read(path) if future is None else future.result():
                    yield dataclasses.replace(photo, place=place)
                done()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
