"""Batches of pixels from a pool of threads, in an order and with pixels that no worker count can change.

Pillow and numpy release the interpreter's lock while they decode and resize, so threads are enough and nothing is
pickled. Randomness comes from (seed, epoch, example id), so no generator has a state to lose.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from warmstart import runtime
from warmstart.data import Dataset, images
from warmstart.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from warmstart.data.transforms import Transform

CHUNK = 16
"""Pictures per task of the pool: enough to hide the cost of a task, few enough to spread a small batch."""
AHEAD = 4
"""Chunks per worker that may be decoded ahead of the consumer, at least one batch."""


def epoch_order(num: int, *, seed: int, epoch: int) -> np.ndarray:
    """Shuffle the positions 0 … num-1 for one epoch.

    Shape:
        int64 (num,).
    """
    return runtime.rng(seed, "order", epoch).permutation(num)


def batches(
    dataset: Dataset, row_batches: Iterable[np.ndarray], transform: Transform, *, seed: int, epoch: int, workers: int
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Decode and transform rows, batch by batch, in the order of `row_batches`.

    Args:
        dataset: Where inputs and ids come from.
        row_batches: Rows of the dataset, one array per batch; taken one by one, as far ahead as decoding goes.
        transform: Picture → pixels.
        seed: Together with the epoch and the id of an example, fixes its augmentation.
        epoch: See `seed`.
        workers: Threads; 0 decodes in the caller's thread. Has no effect on any value.

    Yields:
        Pixels and their rows.

    Raises:
        DataError: A picture cannot be decoded; its file is named.

    Shape:
        pixels: uint8 (B, 3, H, W); rows: int64 (B,).
    """
    load = _Loader(dataset, transform, seed, epoch)
    if workers <= 0:
        for rows in row_batches:
            yield _stacked([load(rows)]), rows
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="warmstart-load")
    try:
        yield from _ahead(load, row_batches, pool, workers * AHEAD)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ahead(
    load: _Loader, row_batches: Iterable[np.ndarray], pool: ThreadPoolExecutor, limit: int
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Keep up to `limit` chunks in flight, and always the batch after the one that is waited for."""
    waiting: deque[tuple[np.ndarray, list[Future[list[Tensor]]]]] = deque()
    in_flight = 0
    for rows in row_batches:
        parts = [pool.submit(load, rows[at : at + CHUNK]) for at in range(0, max(len(rows), 1), CHUNK)]
        waiting.append((rows, parts))
        in_flight += len(parts)
        while in_flight > limit and len(waiting) > 1:
            done, chunks = waiting.popleft()
            in_flight -= len(chunks)
            yield _stacked([chunk.result() for chunk in chunks]), done
    for done, chunks in waiting:
        yield _stacked([chunk.result() for chunk in chunks]), done


class _Loader:
    """Rows → tensors; safe to call from many threads."""

    def __init__(self, dataset: Dataset, transform: Transform, seed: int, epoch: int) -> None:
        self.dataset, self.transform, self.seed, self.epoch = dataset, transform, seed, epoch

    def __call__(self, rows: np.ndarray) -> list[Tensor]:
        return [self._one(int(row)) for row in rows]

    def _one(self, row: int) -> Tensor:
        try:
            picture = images.open_picture(self.dataset.inputs[row])
        except images.Unreadable as error:
            raise _undecodable(self.dataset, row, error) from error
        if not self.transform.random:
            return self.transform(picture)
        return self.transform(picture, runtime.rng(self.seed, "augment", self.epoch, self.dataset.ids[row]))


def _undecodable(dataset: Dataset, row: int, error: images.Unreadable) -> DataError:
    item = dataset.inputs[row]
    where = os.fspath(item) if isinstance(item, Path) else dataset.ids[row]
    return DataError(
        f"{where} cannot be decoded: {error.reason}",
        "repair or remove the file; `warmstart audit` lists all such files",
    )


def _stacked(chunks: list[list[Tensor]]) -> Tensor:
    import torch

    tensors = [tensor for chunk in chunks for tensor in chunk]
    return torch.stack(tensors) if tensors else torch.empty((0, 3, 0, 0), dtype=torch.uint8)  # (B, 3, H, W)
