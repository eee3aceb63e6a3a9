"""Features of a dataset: read from the cache what is there, compute the rest once, and keep it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from warmstart import runtime
from warmstart.cache import Cache
from warmstart.data import Dataset, images, loading
from warmstart.data.transforms import SideBySide
from warmstart.errors import DataError
from warmstart.models import lazy
from warmstart.models.lazy import LazyBackbone
from warmstart.shards import KEY
from warmstart.spaces import Rows, Space

if TYPE_CHECKING:
    import torch

    from warmstart import engine
    from warmstart.data.transforms import Transform
    from warmstart.engine import Timing
    from warmstart.models import Backbone, Card
    from warmstart.runtime import Device

log = logging.getLogger(__name__)

FLUSH_BYTES = 64 * 2**20
FLUSH_SECONDS = 20.0
FLUSH_FRACTION = 0.05
"""A kill costs at most this part of the work so far; files grow with the job, so their number does not."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Extracted:
    """Features of rows of a dataset, and what they cost.

    Shape:
        values: float32 (N, …), one array where they are small, else memory-mapped rows that copy when indexed.
    """

    values: np.ndarray | Rows
    computed: int
    """Rows that the engine computed now."""
    hits: int
    """Rows that were there already, or equal one that was computed."""
    seconds: float
    engine: str
    """Name of the engine, or `cache` when nothing had to be computed."""
    engine_table: dict[str, Timing] = field(default_factory=dict)


def extract(
    dataset: Dataset,
    rows: np.ndarray,
    *,
    backbone: Backbone | LazyBackbone,
    card: Card,
    cut: int,
    transform: Transform,
    cache: Cache,
    view: int = 0,
    seed: int = 0,
    workers: int = 2,
    batch_size: int = 32,
    device: torch.device | Device = "cpu",
    content_hashes: Sequence[bytes] | None = None,
    progress: Progress | None = None,
) -> Extracted:
    """Return the values of a frozen prefix for rows of a dataset.

    Args:
        dataset: Where the pictures are.
        rows: Which of them, in which order; int64 (N,).
        backbone: The network; a copy runs in eval mode. One that is not built stays so when nothing is computed.
        card: The facts of its weights.
        cut: Where the frozen prefix ends; at the last cut values are the pooled features.
        transform: From picture to pixels.
        cache: Where values are kept.
        view: Which of the random views of a picture; no effect with a transform that is not random.
        seed: Seed of the random views; no effect with a transform that is not random.
        workers: Threads that read and decode.
        batch_size: Pictures that are decoded and computed together, at least; no value depends on it on the CPU.
        device: Where to compute.
        content_hashes: Hash of every example of the dataset, where the audit has them; read from the files else.
        progress: Called with (rows computed, rows to compute).

    Raises:
        CacheError: Too little disk or too low a limit, known before the computation starts.
        DataError: A picture that cannot be decoded.
    """
    order = _Order(dataset, rows, cache, view, seed, workers, batch_size, device, content_hashes, progress)
    if card.parts and cut == len(card.parts):
        assert isinstance(transform, SideBySide), "a stack has a transform for each of its parts"
        parts = zip(lazy.parts(backbone), card.parts, transform.parts, strict=True)
        return _side_by_side([order.fill(each, part.card, _last_cut(each), square) for each, part, square in parts])
    return order.fill(backbone, card, cut, transform)


@dataclass(frozen=True)
class _Order:
    """What is wanted of any prefix: rows of a dataset, kept in a cache; see `extract`."""

    dataset: Dataset
    rows: np.ndarray
    cache: Cache
    view: int
    seed: int
    workers: int
    batch_size: int
    device: torch.device | Device
    content_hashes: Sequence[bytes] | None
    progress: Progress | None

    def fill(self, backbone: Backbone | LazyBackbone, card: Card, cut: int, transform: Transform) -> Extracted:
        """Compute what the cache lacks, and return all."""
        start, cache, view, seed, workers = time.perf_counter(), self.cache, self.view, self.seed, self.workers
        named = identity(backbone, card)
        space = cache.space(weights=named, transform=transform.key, cut=cut, description=f"{card.name} cut {cut}")
        hashes = self.content_hashes
        keys = row_keys(
            self.dataset, self.rows, transform, view=view, seed=seed, content_hashes=hashes, workers=workers
        )
        missing = _first_of_each(keys, ~space.find(keys))
        choice = None
        if len(missing):
            from warmstart import engine

            where = runtime.pick_device(self.device) if isinstance(self.device, str) else self.device
            batch = engine.batch_size(self.batch_size, where)
            job = _Job(self.dataset, self.rows[missing], keys[missing], transform, view, seed, workers, batch)
            choice = _compute(job, engine.Prefix(_network(backbone), named, cut, where), space, cache, self.progress)
        return Extracted(
            values=space.rows(keys).load(),
            computed=len(missing),
            hits=len(self.rows) - len(missing),
            seconds=time.perf_counter() - start,
            engine=choice.name if choice else "cache",
            engine_table=choice.table if choice else {},
        )


def _last_cut(backbone: Backbone | LazyBackbone) -> int:
    return backbone.num_groups if isinstance(backbone, LazyBackbone) else len(backbone.layer_groups())


def _side_by_side(found: Sequence[Extracted]) -> Extracted:
    """Join the features of parts: a row counts as computed when one of them had to compute it."""
    computed = max(one.computed for one in found)
    return Extracted(
        values=np.concatenate([np.asarray(one.values) for one in found], axis=1),  # (N, D₁ + … + Dₙ)
        computed=computed,
        hits=found[0].computed + found[0].hits - computed,
        seconds=sum(one.seconds for one in found),
        engine=next((one.engine for one in found if one.computed), "cache"),
        engine_table=next((one.engine_table for one in found if one.engine_table), {}),
    )


def seconds_per_example(found: Sequence[Extracted]) -> float | None:
    """Return what computing one example took; None where everything was in the cache."""
    computed = sum(one.computed for one in found)
    return sum(one.seconds for one in found) / computed if computed else None


def identity(backbone: Backbone | LazyBackbone, card: Card) -> str:
    """Hash what a backbone's values depend on; see `lazy.identity`."""
    return backbone.identity if isinstance(backbone, LazyBackbone) else lazy.identity(backbone, card)


def _network(backbone: Backbone | LazyBackbone) -> Backbone:
    return backbone.get() if isinstance(backbone, LazyBackbone) else backbone


def row_keys(
    dataset: Dataset,
    rows: np.ndarray,
    transform: Transform,
    *,
    view: int,
    seed: int,
    content_hashes: Sequence[bytes] | None = None,
    workers: int = 2,
) -> np.ndarray:
    """Name rows by the content of their pictures, and by view, seed and example where the transform is random.

    Shape:
        rows: int64 (N,). Returns S16 (N,).
    """
    if content_hashes is None:
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            content = list(pool.map(lambda row: _content_hash(dataset, row), rows.tolist()))
    else:
        content = [bytes(content_hashes[row]) for row in rows.tolist()]
    if transform.random:
        content = [
            bytes.fromhex(runtime.digest(data, view, seed, dataset.ids[row]))
            for data, row in zip(content, rows.tolist(), strict=True)
        ]
    return np.frombuffer(b"".join(content), KEY)


@dataclass(frozen=True)
class _Job:
    """Rows to compute, in order, and how their pictures are read."""

    dataset: Dataset
    rows: np.ndarray
    keys: np.ndarray
    transform: Transform
    view: int
    seed: int
    workers: int
    batch_size: int

    def pixels(self, first: int, last: int) -> Iterator[torch.Tensor]:
        """Decode rows first … last-1, batch by batch, ahead of the engine."""
        starts = range(first, last, self.batch_size)
        parts = (self.rows[start : min(start + self.batch_size, last)] for start in starts)
        loaded = loading.batches(
            self.dataset, parts, self.transform, seed=self.seed, epoch=self.view, workers=self.workers
        )
        return (pixels for pixels, _ in loaded)


def _compute(job: _Job, prefix: engine.Prefix, space: Space, cache: Cache, progress: Progress | None) -> engine.Choice:
    """Run the engine over the job and keep what it returns.

    Equal jobs give equal bits, also when the first one was killed: the engine is on disk before the first rows are,
    and rows are written in whole batches, so the rest falls into the same batches.
    """
    from warmstart import engine

    total, size = len(job.rows), job.batch_size
    first = next(job.pixels(0, min(size, total)))
    choice = engine.pick(prefix, first, remaining=total, folder=cache.engines)
    values = _complete(choice, first)
    cache.reserve(total * (values[0].nbytes + 20))
    writer = _Writer(space, job.keys)
    writer.put(values)
    for values in _one_ahead(choice, job.pixels(len(first), total)):
        if progress is not None:
            progress(writer.done, total)
        writer.put(values)
    writer.flush()
    if progress is not None:
        progress(total, total)
    return choice


def _complete(choice: engine.Choice, first: torch.Tensor) -> np.ndarray:
    """Return the values of the first batch, those that the measurement has left over computed now."""
    if choice.values is None:
        return choice.run(first)
    rest = first[len(choice.values) :]
    return np.concatenate([choice.values, choice.run(rest)]) if len(rest) else choice.values


def _one_ahead(choice: engine.Choice, batches: Iterator[torch.Tensor]) -> Iterator[np.ndarray]:
    """Compute batches in order, the next one already begun while the last one is waited for."""
    wait = None
    for pixels in batches:
        begun = choice.submit(pixels)
        if wait is not None:
            yield wait()
        wait = begun
    if wait is not None:
        yield wait()


class _Writer:
    """Collects values and writes them as shards, in order."""

    def __init__(self, space: Space, keys: np.ndarray) -> None:
        self.done = 0
        self._space = space
        self._keys = keys
        self._parts: list[np.ndarray] = []
        self._started = self._flushed = time.monotonic()

    def put(self, values: np.ndarray) -> None:
        """Take the values of the next rows."""
        self._parts.append(values)
        self.done += len(values)
        now = time.monotonic()
        patience = max(FLUSH_SECONDS, FLUSH_FRACTION * (now - self._started))
        if sum(part.nbytes for part in self._parts) >= FLUSH_BYTES or now - self._flushed >= patience:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        count = sum(len(part) for part in self._parts)
        if count:
            self._space.add(self._keys[self.done - count : self.done], np.concatenate(self._parts))
        self._parts = []
        self._flushed = time.monotonic()


def _content_hash(dataset: Dataset, row: int) -> bytes:
    try:
        return images.content_hash(dataset.inputs[row])
    except images.Unreadable as error:
        raise DataError(
            f"{dataset.ids[row]} cannot be read: {error.reason}",
            "repair or remove the file; `warmstart audit` lists all such files",
        ) from error


def _first_of_each(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the positions that are wanted, ascending, each key once."""
    positions = np.flatnonzero(wanted)
    _, first = np.unique(keys[positions], return_index=True)
    return positions[np.sort(first)]
