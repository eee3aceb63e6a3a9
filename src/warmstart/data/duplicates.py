"""Exact copies by decoded pixels, near-copies by perceptual hash, registration, and features where there are any.

1. Candidates. The 64 lowest frequencies of a thumbnail, freed of brightness and contrast and measured against what is
   usual in this data set. Their signs are the perceptual hash (Zauner 2010); pairs of few differing bits go on. A
   mirrored picture changes the sign of every odd horizontal frequency, so flips cost one exclusive-or.
2. Residual: the tangent distance (Simard, LeCun and Denker 1993, "Efficient Pattern Recognition Using a New
   Transformation Distance") under shifts and stretches. Each picture keeps its nearest few in each split.
3. Agreement: the pair is registered and its finer detail correlated (`alignment`). How much is enough depends on the
   data: shirts on white ground agree more than holiday photos, so the bar is what alike pictures hardly ever reach.
4. Features settle what lies near the bar.

The constants were measured on CIFAR-10: docs/decisions/0003-near-duplicates.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from warmstart import runtime
from warmstart.data.alignment import SIDE, Detail, cosines, normal

COARSE = SIDE // 2
"""Side in pixels of the pictures that are searched; the closer look takes the whole thumbnail."""
NUM_BITS = 64
MAX_BITS = 20
"""Candidates differ in at most this many of 64 bits: 99 % of pictures cropped by 5 %, 1 in 500 random pairs."""
MIN_COSINE = 0.55
"""Candidates below this cosine of their frequencies are not worth a tangent distance."""
MAX_RESIDUAL = 0.45
"""Candidates above this tangent distance are not worth a closer look; copies cropped by 5 % have 0.14 at most."""
MAX_PARTNERS = 4
"""Nearest candidates kept per picture and split: 10,000 frames of one film are told without 50 million pairs."""
SAME_RESIDUAL, SAME_AGREEMENT = 0.03, 0.6
"""Copies made so small that their detail is lost still have nearly equal shapes."""
MIN_AGREEMENT, MAX_AGREEMENT = 0.85, 0.93
"""Limits of the bar for agreement; between them it is what 1 in 2,000 background pairs would reach."""
BACKGROUND_RESIDUAL, BACKGROUND_SIGMAS = 0.3, 3.3
"""Pairs of a larger residual are the background: alike, and hardly ever copies."""
MIN_BACKGROUND = 50
"""With fewer background pairs the bar stays at its lower limit."""
GREY = 0.2
"""Features decide on pairs whose agreement is this much below the bar, or above it and below `CERTAIN`."""
CERTAIN = 0.95
WEAK_QUANTILE, STRONG_QUANTILE = 0.05, 0.95
"""Of the similarity of a picture's features to its nearest neighbour's: below weak is no copy, above strong is one."""
MIN_CONTRAST = 2.0
"""Pictures with less standard deviation (grey levels of 255) show nothing that could be compared."""
SHIFT_PENALTY, STRETCH_PENALTY = 1e-3, 64e-3
BLOCK_ROWS, BLOCK_COLUMNS, CHUNK_PAIRS = 256, 16384, 16384
LOOK_PAIRS = 512
SAMPLE_ROWS, SAMPLE_QUERIES = 4096, 512


@dataclass(frozen=True)
class NearPairs:
    """Pairs of rows that show the same picture, sorted by (left, right).

    Shape:
        left, right: int64 (P,), left < right. flipped: bool (P,), one is the other's mirror image.
        residual: float32 (P,), 0 for equal coarse shapes, about 2 for unrelated pictures.
        agreement: float32 (P,), correlation of the detail after registration, 1 for equal pictures.
    """

    left: np.ndarray
    right: np.ndarray
    flipped: np.ndarray
    residual: np.ndarray
    agreement: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def take(self, which: np.ndarray) -> NearPairs:
        """Return some of the pairs."""
        return NearPairs(*(column[which] for column in self._columns()))

    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.left, self.right, self.flipped, self.residual, self.agreement

    @staticmethod
    def joined(parts: list[NearPairs]) -> NearPairs:
        """Put pairs end to end, sort them, and keep the nearer of a pair found both straight and mirrored."""
        if not parts:
            row = np.zeros(0, np.int64)
            return NearPairs(row, row, np.zeros(0, bool), np.zeros(0, np.float32), np.zeros(0, np.float32))
        columns = zip(*(part._columns() for part in parts), strict=True)
        pairs = NearPairs(*(np.concatenate(column) for column in columns))
        pairs = pairs.take(np.lexsort((pairs.flipped, pairs.residual, pairs.right, pairs.left)))
        again = (np.diff(pairs.left) == 0) & (np.diff(pairs.right) == 0)
        return pairs.take(np.r_[True, ~again][: len(pairs)])


def first_copies(hashes: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return for every row the first row of equal hash: itself when it is the first, or is not valid.

    Shape:
        hashes: uint8 (N, 16). valid: bool (N,). Returns int64 (N,).
    """
    rows = np.flatnonzero(valid)
    first = np.arange(len(hashes))
    keys = np.ascontiguousarray(hashes[rows]).view(np.void(hashes.shape[1]).dtype).ravel()
    _, start, inverse = np.unique(keys, return_index=True, return_inverse=True)
    first[rows] = rows[start[inverse]]
    return first


def near_pairs(
    thumbnails: np.ndarray,
    *,
    features: np.ndarray | None = None,
    parts: np.ndarray | None = None,
    valid: np.ndarray | None = None,
    seed: int = 0,
    workers: int = 1,
) -> NearPairs:
    """Find pairs of near-copies: re-encoded, resized, slightly cropped, brightened or mirrored.

    Args:
        features: Pooled features of a backbone; they settle the cases that thumbnails leave open.
        parts: A small number per row, such as its split; `MAX_PARTNERS` counts partners in each part.
        valid: Rows to look at; all by default.
        seed: Of the sample that measures how similar nearest neighbours usually are.
        workers: Threads; the result does not depend on them.

    Shape:
        thumbnails: uint8 (N, 32, 32). features: float (N, D). parts: int (N,). valid: bool (N,).
    """
    valid = np.ones(len(thumbnails), bool) if valid is None else valid
    coarse = _coarse(thumbnails)
    rows = np.flatnonzero(valid & (coarse.reshape(len(coarse), COARSE * COARSE).std(1) >= MIN_CONTRAST))
    if len(rows) < 2:
        return NearPairs.joined([])
    parts = np.zeros(len(rows), np.int64) if parts is None else parts[rows].astype(np.int64)
    with runtime.threads(1), ThreadPoolExecutor(max(1, workers)) as pool:
        found = _nearest(_Search.over(coarse[rows]), parts, pool)
        found = replace(found, left=rows[found.left], right=rows[found.right])
        sample = np.sort(runtime.rng(seed, "detail").permutation(rows)[:SAMPLE_ROWS])
        found = _looked_at(found, thumbnails, Detail.over(thumbnails[sample]), pool)
        return found.take(_confirmed(found, features, sample))


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Return 64 sign bits of low frequencies, relative to the median of this data set.

    Shape:
        thumbnails: uint8 (N, 32, 32). Returns uint64 (N,).
    """
    return _Search.over(_coarse(thumbnails)).hashes


@dataclass(frozen=True)
class _Search:
    """What the pictures look like: low frequencies in the data set's own units, and their signs."""

    thumbnails: np.ndarray
    usual: np.ndarray
    """float32 (64,): the median picture, equal to its mirror image."""
    scale: np.ndarray
    """float32 (64,): one over the standard deviation of a frequency."""
    own: np.ndarray
    """float32 (N, 64): what the picture has beyond the usual, in standard deviations."""
    length: np.ndarray
    hashes: np.ndarray

    @staticmethod
    def over(thumbnails: np.ndarray) -> _Search:
        plain = _frequencies(thumbnails)
        usual = np.where(_mirror_signs() > 0, np.median(plain, 0), 0.0).astype(np.float32)
        spread = np.sqrt(((plain - usual) ** 2).mean(0))
        scale = (1 / np.maximum(spread, 0.05 * spread.max() + 1e-6)).astype(np.float32)
        own = (plain - usual) * scale
        length = np.linalg.norm(own, axis=1).clip(min=1e-6)
        packed = np.packbits(own > 0, axis=1, bitorder="little")
        return _Search(thumbnails, usual, scale, own, length, packed.view("<u8").ravel())

    def candidates(self, start: int) -> NearPairs:
        """Compare one block of rows with every later row, straight and mirrored, and measure residuals."""
        found = []
        for flipped in (False, True):
            mask = _mirror_mask() if flipped else np.uint64(0)
            for left, right in self._similar(start, mask):
                found += list(self._measured(left, right, flipped))
        return NearPairs.joined(found)

    def _similar(self, start: int, mask: np.uint64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        stop = min(start + BLOCK_ROWS, len(self.hashes))
        queries = (self.hashes[start:stop] ^ mask)[:, None]
        for column in range(start, len(self.hashes), BLOCK_COLUMNS):
            differing = np.bitwise_count(queries ^ self.hashes[None, column : column + BLOCK_COLUMNS])
            flat = np.flatnonzero(differing <= MAX_BITS)
            left, right = np.divmod(flat, differing.shape[1])
            left, right = left + start, right + column
            later = left < right
            yield left[later], right[later]

    def _measured(self, left: np.ndarray, right: np.ndarray, flipped: bool) -> Iterator[NearPairs]:
        signs = _mirror_signs() if flipped else np.float32(1)
        for start in range(0, len(left), CHUNK_PAIRS):
            one, two = left[start : start + CHUNK_PAIRS], right[start : start + CHUNK_PAIRS]
            cosine = np.einsum("pk,pk->p", self.own[one] * signs, self.own[two]) / (self.length[one] * self.length[two])
            one, two = one[cosine >= MIN_COSINE], two[cosine >= MIN_COSINE]
            residual = self._residual(one, two, flipped)
            near = residual <= MAX_RESIDUAL
            rest = residual[near]
            yield NearPairs(one[near], two[near], np.full(len(rest), flipped), rest, np.zeros_like(rest))

    def _residual(self, left: np.ndarray, right: np.ndarray, flipped: bool) -> np.ndarray:
        """Return what shifts and stretches of the mean picture do not explain of the difference, float32 (P,)."""
        size = (self.length[left] ** 2 + self.length[right] ** 2) / 2
        signs = _mirror_signs() if flipped else np.float32(1)
        difference = self.own[left] * signs - self.own[right]
        one, two = self.thumbnails[left], self.thumbnails[right]
        middle = normal(one[:, :, ::-1] if flipped else one) + normal(two)  # (P, 16, 16)
        moves = (middle.reshape(len(middle), COARSE * COARSE) @ _tangents()).reshape(-1, 4, NUM_BITS) * (self.scale / 2)
        system = moves @ moves.transpose(0, 2, 1)  # (P, 4, 4)
        system += size[:, None, None] * np.diag([SHIFT_PENALTY] * 2 + [STRETCH_PENALTY] * 2).astype(np.float32)
        amount = np.linalg.solve(system, moves @ difference[:, :, None])  # (P, 4, 1)
        rest = difference - (amount.transpose(0, 2, 1) @ moves)[:, 0]
        return np.asarray((rest**2).sum(1) / size, np.float32)


def _nearest(search: _Search, parts: np.ndarray, pool: ThreadPoolExecutor) -> NearPairs:
    """Search all blocks; of every picture keep the `MAX_PARTNERS` nearest in each part."""
    kept: list[NearPairs] = []
    limit = MAX_PARTNERS * len(parts) + CHUNK_PAIRS
    for block in pool.map(search.candidates, range(0, len(parts), BLOCK_ROWS)):
        kept.append(block)
        if sum(map(len, kept)) > limit:
            kept = [_thinned(NearPairs.joined(kept), parts)]
            limit = 2 * len(kept[0]) + CHUNK_PAIRS
    return _thinned(NearPairs.joined(kept), parts)


def _thinned(pairs: NearPairs, parts: np.ndarray) -> NearPairs:
    """Keep a pair that is among the nearest few of either picture in the part of the other."""
    one, two = np.concatenate([pairs.left, pairs.right]), np.concatenate([pairs.right, pairs.left])
    cell = one * (int(parts.max()) + 1) + parts[two]
    order = np.lexsort((two, np.tile(pairs.residual, 2), cell))
    fresh = np.flatnonzero(np.r_[True, np.diff(cell[order]) != 0][: len(order)])
    rank = np.arange(len(order)) - np.repeat(fresh, np.diff(np.r_[fresh, len(order)]))
    keep = np.zeros(len(order), bool)
    keep[order] = rank < MAX_PARTNERS
    return pairs.take(keep[: len(pairs)] | keep[len(pairs) :])


def _looked_at(pairs: NearPairs, thumbnails: np.ndarray, detail: Detail, pool: ThreadPoolExecutor) -> NearPairs:
    """Fill in the agreement."""

    def work(start: int) -> np.ndarray:
        part = pairs.take(np.arange(start, min(start + LOOK_PAIRS, len(pairs))))
        one = thumbnails[part.left]
        one[part.flipped] = one[part.flipped][:, :, ::-1]
        return detail.agreement(one, thumbnails[part.right])

    parts = list(pool.map(work, range(0, len(pairs), LOOK_PAIRS)))
    return replace(pairs, agreement=np.concatenate(parts)) if parts else pairs


def _confirmed(pairs: NearPairs, features: np.ndarray | None, sample: np.ndarray) -> np.ndarray:
    """Decide which pairs are near-copies, bool (P,)."""
    bar = _bar(pairs)
    same = (pairs.residual <= SAME_RESIDUAL) & (pairs.agreement >= SAME_AGREEMENT)
    near = pairs.agreement >= bar
    if features is not None and len(pairs):
        open_ = np.flatnonzero(~same & (pairs.agreement >= bar - GREY) & (pairs.agreement < CERTAIN))
        weak, strong, mean = _background(features, sample)
        similar = _similarity(features, pairs.take(open_), mean)
        near[open_] = np.where(near[open_], similar >= weak, similar >= strong)
    return np.asarray(same | near)


def _bar(pairs: NearPairs) -> float:
    background = pairs.agreement[pairs.residual > BACKGROUND_RESIDUAL]
    if len(background) < MIN_BACKGROUND:
        return MIN_AGREEMENT
    low, middle = np.quantile(background, [0.25, 0.5])  # the upper half may hold copies
    bar = middle + BACKGROUND_SIGMAS * (middle - low) / 0.6745
    return float(np.clip(bar, MIN_AGREEMENT, MAX_AGREEMENT))


def _background(features: np.ndarray, sample: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Measure how similar a picture's features are to its nearest neighbour's in a sample; return the mean as well."""
    values = np.asarray(features[sample], np.float32)
    mean = values.mean(0)
    values = _unit(values - mean)
    queries = np.arange(0, len(values), max(1, len(values) // SAMPLE_QUERIES))
    similar = values[queries] @ values.T
    similar[np.arange(len(queries)), queries] = -1
    weak, strong = np.quantile(similar.max(1), [WEAK_QUANTILE, STRONG_QUANTILE])
    return float(weak), float(strong), mean


def _similarity(features: np.ndarray, pairs: NearPairs, mean: np.ndarray) -> np.ndarray:
    found = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), LOOK_PAIRS):
        part = pairs.take(np.arange(start, min(start + LOOK_PAIRS, len(pairs))))
        one, two = (_unit(np.asarray(features[rows], np.float32) - mean) for rows in (part.left, part.right))
        found[start : start + LOOK_PAIRS] = np.einsum("pd,pd->p", one, two)
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None].clip(min=1e-12))


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    """Halve the side of thumbnails by averaging: uint8 (N, 16, 16)."""
    quads = thumbnails.reshape(len(thumbnails), COARSE, 2, COARSE, 2)
    return (quads.sum((2, 4), dtype=np.uint16) >> 2).astype(np.uint8)


def _frequencies(thumbnails: np.ndarray) -> np.ndarray:
    """Return the 64 lowest frequencies of each picture divided by its contrast, float32 (N, 64)."""
    chunks = [thumbnails[start : start + CHUNK_PAIRS] for start in range(0, len(thumbnails), CHUNK_PAIRS)]
    return np.concatenate([normal(chunk).reshape(len(chunk), COARSE * COARSE) @ _basis() for chunk in chunks])


@cache
def _basis() -> np.ndarray:
    return np.ascontiguousarray(cosines(COARSE, NUM_BITS)[0], np.float32)


@cache
def _mirror_signs() -> np.ndarray:
    return np.asarray(cosines(COARSE, NUM_BITS)[1], np.float32)


@cache
def _mirror_mask() -> np.uint64:
    bits = np.packbits(_mirror_signs() < 0, bitorder="little")
    return np.uint64(bits.view("<u8")[0])


@cache
def _tangents() -> np.ndarray:
    """What shifting (right, down) and stretching (across, upright) by a pixel do to the frequencies of a picture.

    Shape:
        Returns float32 (256, 4 · 64).
    """
    slope = np.gradient(np.eye(COARSE), axis=0)
    across, down = np.kron(np.eye(COARSE), slope), np.kron(slope, np.eye(COARSE))
    place = np.arange(COARSE) - (COARSE - 1) / 2
    horizontal, vertical = np.tile(place, COARSE), np.repeat(place, COARSE)
    moves = np.stack([across, down, horizontal[:, None] * across, vertical[:, None] * down])  # (4, 256, 256)
    effect = cosines(COARSE, NUM_BITS)[0].T @ moves  # (4, 64, 256)
    return np.ascontiguousarray(effect.reshape(-1, COARSE * COARSE).T, np.float32)
