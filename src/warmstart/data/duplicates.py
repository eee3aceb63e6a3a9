"""Exact copies by decoded pixels, near-copies by perceptual hash and tangent distance, confirmed on features.

A thumbnail becomes the 64 lowest frequencies of its cosine transform, freed of brightness and contrast, and measured
against what is usual in this data set, so that sameness everybody shares (a white background, one camera) counts for
nothing. Their signs are the perceptual hash (Zauner 2010); pairs of few differing bits are candidates. A candidate's
residual is the tangent distance of Simard, LeCun and Denker (1993, "Efficient Pattern Recognition Using a New
Transformation Distance") under shifts and stretches, which is what cropping and resizing leave behind. A mirrored
picture changes the sign of every odd horizontal frequency, so flips cost one exclusive-or.

The thresholds were measured on CIFAR-10: docs/decisions/0003-near-duplicates.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from warmstart import runtime

SIDE = 16
"""Side of a thumbnail in pixels."""
NUM_BITS = 64
MAX_BITS = 20
"""Candidates differ in at most this many of 64 bits: 99 % of pictures cropped by 5 %, 1 in 500 random pairs."""
MIN_COSINE = 0.55
"""Candidates below this cosine of their frequencies are not worth a tangent distance."""
SURE = 0.05
"""Residual up to which the pictures alone decide."""
NEAR = 0.12
"""Residual of a near-copy, unless features of the two are further apart than nearest neighbours usually are."""
LOOSE = 0.35
"""Residual of a near-copy when the features are closer than nearest neighbours almost ever are."""
WEAK_QUANTILE, STRONG_QUANTILE = 0.05, 0.95
"""Quantiles of the background, the similarity of a picture to its nearest neighbour in the data set."""
MIN_CONTRAST = 2.0
"""Pictures with less standard deviation (grey levels of 255) show nothing that could be compared."""
MAX_PARTNERS = 32
"""Near-copies listed per picture and split: 10,000 frames of one film are reported without 50 million pairs."""
SHIFT_PENALTY, STRETCH_PENALTY = 1e-3, 64e-3
BLOCK_ROWS, BLOCK_COLUMNS, CHUNK_PAIRS = 256, 16384, 16384
BACKGROUND_QUERIES, BACKGROUND_ROWS = 256, 16384


@dataclass(frozen=True)
class NearPairs:
    """Pairs of rows that show the same picture, sorted by (left, right).

    Shape:
        left, right: int64 (P,), left < right. flipped: bool (P,), one is the other's mirror image.
        residual: float32 (P,), 0 for equal up to crop, size and brightness, about 2 for unrelated pictures.
    """

    left: np.ndarray
    right: np.ndarray
    flipped: np.ndarray
    residual: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def take(self, which: np.ndarray) -> NearPairs:
        """Return some of the pairs."""
        return NearPairs(self.left[which], self.right[which], self.flipped[which], self.residual[which])


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
        thumbnails: uint8 (N, 16, 16). features: float (N, D). parts: int (N,). valid: bool (N,).
    """
    valid = np.ones(len(thumbnails), bool) if valid is None else valid
    rows = np.flatnonzero(valid & (thumbnails.reshape(len(thumbnails), -1).std(1) >= MIN_CONTRAST))
    if len(rows) < 2:
        return _collect([])
    search = _Search.over(thumbnails[rows])
    parts = np.zeros(len(rows), np.int64) if parts is None else parts[rows].astype(np.int64)
    counts = np.zeros((len(rows), int(parts.max()) + 1), np.int64)
    judge = _Judge.over(features, rows, seed)
    with runtime.threads(1), ThreadPoolExecutor(max(1, workers)) as pool:
        blocks = pool.map(lambda start: judge.confirmed(search.candidates(start)), range(0, len(rows), BLOCK_ROWS))
        kept = [_limited(block, parts, counts) for block in blocks]
    found = _collect(kept)
    return NearPairs(rows[found.left], rows[found.right], found.flipped, found.residual)


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Return 64 sign bits of low frequencies, relative to the median of this data set.

    Shape:
        thumbnails: uint8 (N, 16, 16). Returns uint64 (N,).
    """
    return _Search.over(thumbnails).hashes


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
        return _collect(found)

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
            near = residual <= LOOSE
            yield NearPairs(one[near], two[near], np.full(int(near.sum()), flipped), residual[near])

    def _residual(self, left: np.ndarray, right: np.ndarray, flipped: bool) -> np.ndarray:
        """Return what shifts and stretches of the mean picture do not explain of the difference, float32 (P,)."""
        size = (self.length[left] ** 2 + self.length[right] ** 2) / 2
        signs = _mirror_signs() if flipped else np.float32(1)
        difference = self.own[left] * signs - self.own[right]
        one, two = self.thumbnails[left], self.thumbnails[right]
        middle = _normal(one[:, :, ::-1] if flipped else one) + _normal(two)  # (P, 256)
        moves = (middle @ _tangents()).reshape(-1, 4, NUM_BITS) * (self.scale / 2)
        system = moves @ moves.transpose(0, 2, 1)  # (P, 4, 4)
        system += size[:, None, None] * np.diag([SHIFT_PENALTY] * 2 + [STRETCH_PENALTY] * 2).astype(np.float32)
        amount = np.linalg.solve(system, moves @ difference[:, :, None])  # (P, 4, 1)
        rest = difference - (amount.transpose(0, 2, 1) @ moves)[:, 0]
        return np.asarray((rest**2).sum(1) / size, np.float32)


@dataclass(frozen=True)
class _Judge:
    """Decides on candidates; without features the residual decides alone."""

    features: np.ndarray | None
    rows: np.ndarray
    mean: np.ndarray
    weak: float
    strong: float

    @staticmethod
    def over(features: np.ndarray | None, rows: np.ndarray, seed: int) -> _Judge:
        if features is None:
            return _Judge(None, rows, np.zeros(0), 0.0, 0.0)
        order = runtime.rng(seed, "background").permutation(rows)
        sample = np.asarray(features[np.sort(order[:BACKGROUND_ROWS])], np.float32)
        mean = sample.mean(0)
        sample = _unit(sample - mean)
        queries = sample[:: max(1, len(sample) // BACKGROUND_QUERIES)]
        similar = queries @ sample.T
        similar[np.arange(len(queries)), np.arange(0, len(sample), max(1, len(sample) // BACKGROUND_QUERIES))] = -1
        weak, strong = np.quantile(similar.max(1), [WEAK_QUANTILE, STRONG_QUANTILE])
        return _Judge(features, rows, mean, float(weak), float(strong))

    def confirmed(self, pairs: NearPairs) -> NearPairs:
        """Keep the pairs that are near-copies."""
        if self.features is None:
            return pairs.take(pairs.residual <= NEAR)
        keep = pairs.residual <= SURE
        for start in range(0, len(pairs), CHUNK_PAIRS // 8):
            which = np.flatnonzero(~keep[start : start + CHUNK_PAIRS // 8]) + start
            similar = self._similarity(pairs.left[which], pairs.right[which])
            near = (pairs.residual[which] <= NEAR) & (similar >= self.weak)
            keep[which] = near | (similar >= self.strong)
        return pairs.take(keep)

    def _similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        assert self.features is not None
        one = _unit(np.asarray(self.features[self.rows[left]], np.float32) - self.mean)
        two = _unit(np.asarray(self.features[self.rows[right]], np.float32) - self.mean)
        return np.asarray(np.einsum("pd,pd->p", one, two))


def _limited(pairs: NearPairs, parts: np.ndarray, counts: np.ndarray) -> NearPairs:
    """Drop pairs of which both pictures have `MAX_PARTNERS` in the other's part already; updates the counts."""
    keep = np.zeros(len(pairs), bool)
    for one, two in ((pairs.left, pairs.right), (pairs.right, pairs.left)):
        cell = one * counts.shape[1] + parts[two]
        order = np.argsort(cell, kind="stable")
        ordered = cell[order]
        fresh = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
        seen = np.arange(len(order)) - np.repeat(fresh, np.diff(np.r_[fresh, len(order)]))
        keep[order] |= counts.ravel()[ordered] + seen < MAX_PARTNERS
    kept = pairs.take(keep)
    np.add.at(counts, (kept.left, parts[kept.right]), 1)
    np.add.at(counts, (kept.right, parts[kept.left]), 1)
    return kept


def _collect(found: list[NearPairs]) -> NearPairs:
    """Join pairs, sort them, and keep the better of a pair that was found both straight and mirrored."""
    if not found:
        empty = np.zeros(0, np.int64)
        return NearPairs(empty, empty, np.zeros(0, bool), np.zeros(0, np.float32))
    columns = zip(*[(pairs.left, pairs.right, pairs.flipped, pairs.residual) for pairs in found], strict=True)
    left, right, flipped, residual = (np.concatenate(column) for column in columns)
    order = np.lexsort((flipped, residual, right, left))
    pairs = NearPairs(left, right, flipped, residual).take(order)
    again = (np.diff(pairs.left) == 0) & (np.diff(pairs.right) == 0)
    return pairs.take(np.r_[True, ~again][: len(pairs)])


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12))


def _frequencies(thumbnails: np.ndarray) -> np.ndarray:
    """Return the 64 lowest frequencies of each thumbnail divided by its contrast, float32 (N, 64)."""
    lowest = _cosines()[_lowest()].T.astype(np.float32)  # (256, 64)
    chunks = [
        _normal(thumbnails[start : start + CHUNK_PAIRS]) @ lowest for start in range(0, len(thumbnails), CHUNK_PAIRS)
    ]
    return np.concatenate(chunks)


def _normal(thumbnails: np.ndarray) -> np.ndarray:
    """Free thumbnails of brightness and contrast: float32 (N, 256), mean 0, length 1."""
    pixels = thumbnails.reshape(len(thumbnails), SIDE * SIDE).astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    return np.asarray(pixels / np.linalg.norm(pixels, axis=1, keepdims=True).clip(min=1e-3))


@cache
def _cosines() -> np.ndarray:
    """Orthonormal cosine transform of a flattened 16 × 16 picture, float64 (256, 256)."""
    step = np.arange(SIDE)
    one = np.sqrt(2 / SIDE) * np.cos(np.pi * (step[None] + 0.5) * step[:, None] / SIDE)
    one[0] /= np.sqrt(2)
    return np.asarray(np.kron(one, one))


@cache
def _lowest() -> np.ndarray:
    """Positions of the 64 lowest frequencies by radius, without the constant one."""
    vertical, horizontal = np.divmod(np.arange(SIDE * SIDE), SIDE)
    return np.argsort(vertical**2 + horizontal**2, kind="stable")[1 : NUM_BITS + 1]


@cache
def _mirror_signs() -> np.ndarray:
    return np.asarray(np.where(_lowest() % SIDE % 2 == 0, 1, -1), np.float32)


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
    slope = np.gradient(np.eye(SIDE), axis=0)
    across, down = np.kron(np.eye(SIDE), slope), np.kron(slope, np.eye(SIDE))
    place = np.arange(SIDE) - (SIDE - 1) / 2
    horizontal, vertical = np.tile(place, SIDE), np.repeat(place, SIDE)
    moves = np.stack([across, down, horizontal[:, None] * across, vertical[:, None] * down])  # (4, 256, 256)
    effect = _cosines()[_lowest()] @ moves  # (4, 64, 256)
    return np.ascontiguousarray(effect.reshape(-1, SIDE * SIDE).T, np.float32)
