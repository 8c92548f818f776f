"""Which images show the same photo: byte-identical, recompressed, or slightly shifted; also where one is gone.

What is compared is found with room for rounding, and decided by integers, so that every machine finds the same groups.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from tqdm import tqdm

from agr_lightning.files import usable_cpus

THUMBNAIL = 32

# Chosen on UTKFace, where raising either bound or lowering the correlation a little changes almost
# nothing: copies and look-alikes stand well apart.
_MAX_BITS = 10
_MIN_CORRELATION = 0.97

# The distance of standardised thumbnails with that correlation, and a little for rounding; and along how many
# directions it is looked at first.
_REACH, _DIMENSIONS = math.sqrt(2 - 2 * _MIN_CORRELATION) + 1e-3, 10

_ROWS_AT_ONCE = 1024

# Bits of a fingerprint by which images of one photo may differ. Of 18,974 images of UTKFace none is nearer to another
# photo than 44; copies in another format or with 64 pixels differ in fewer than 30.
COPY_BITS = 40


def find_groups(thumbnails: NDArray[np.uint8], digests: ArrayLike) -> NDArray[np.int64]:
    """Groups images of the same photo.

    Two images are copies when their bytes agree, or when their difference hashes differ in at most 10 of
    112 bits and their thumbnails correlate by at least 0.97. Groups are the connected components.
    The hash holds, for an 8x8 reduction, whether each cell is brighter than its left and than its upper
    neighbour (dHash in both directions).

    Takes grayscale thumbnails, uint8 ``(n, 32, 32)``, and digests of the files' contents, text ``(n,)``. Returns for
    each image the index of the first member of its group, int64 ``(n,)``; its own when alone.
    """
    same_bytes = _first_of_each(digests)
    different = np.unique(same_bytes)
    pairs = np.stack([np.arange(len(thumbnails)), same_bytes], axis=1)
    return _components(pairs, _near_pairs(thumbnails, different))


def join_groups(groups: NDArray[np.int64], persons: NDArray[Any]) -> NDArray[np.int64]:
    """Joins groups that share a person, by name; an empty one is nobody. Returns numbers of groups, int64 ``(n,)``."""
    rows, named = np.arange(len(groups)), np.flatnonzero(persons != "")
    pairs = np.stack([named, named[_first_of_each(persons[named])]], axis=1)
    return groups[_components(np.stack([rows, _first_of_each(groups)], axis=1), pairs)]


def _first_of_each(values: ArrayLike) -> NDArray[np.int64]:
    """For each value, the index of the first that equals it."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def _components(*pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each index, the first of those that pairs connect with it, ``(n,)``; the first array has a pair for each."""
    joined, n = np.concatenate(pairs), len(pairs[0])
    graph = coo_matrix((np.ones(len(joined), np.int8), joined.T), shape=(n, n))
    return _first_of_each(connected_components(graph)[1])


def fingerprints(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What tells a photo from others when it is gone, and not whom it shows: 256 bits an image, uint8 ``(n, 32)``.

    The signs of the 16x16 lowest frequencies of grayscale thumbnails, uint8 ``(n, 32, 32)``. Source: Zauner,
    "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.
    """
    found = [np.empty((0, 32), np.uint8)]
    for start in range(0, len(thumbnails), _ROWS_AT_ONCE):
        waves = dctn(thumbnails[start : start + _ROWS_AT_ONCE].astype(np.float64), axes=(1, 2))[:, :16, :16]
        found.append(np.packbits((waves > 0).reshape(-1, 256), axis=1))
    return np.concatenate(found)


def of_samples(samples: pd.DataFrame) -> NDArray[np.uint8]:
    """The fingerprints in a table of samples, uint8 ``(samples, 32)``."""
    return np.array([*samples["fingerprint"]], np.uint8).reshape(-1, 32)


def are_known(images: NDArray[np.uint8], known: NDArray[np.uint8], bits: int = COPY_BITS) -> NDArray[np.bool_]:
    """Whether each fingerprint, ``(n, 32)``, differs from one of the known ones in at most so many bits, ``(n,)``."""
    words = np.ascontiguousarray(known).view(np.uint64).T.copy()

    def is_known(image: NDArray[np.uint64]) -> bool:
        differing = (np.bitwise_count(word ^ one) for word, one in zip(words, image, strict=True))
        return bool((sum(differing, np.uint16(0)) <= bits).any())

    with ThreadPoolExecutor(usable_cpus()) as pool:
        found = pool.map(is_known, np.ascontiguousarray(images).view(np.uint64), chunksize=256)
        return np.fromiter(found, np.bool_, len(images))


def _near_pairs(thumbnails: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of some rows that are copies by hash and correlation, int64 ``(pairs, 2)``.

    Compares those that lie near each other in the main directions of all: standardised, two with a correlation of r are
    sqrt(2 - 2 r) apart, and no projection is farther.
    """
    textured = rows[np.ptp(thumbnails.reshape(-1, THUMBNAIL**2), 1)[rows] > 0]  # flat ones correlate with none
    found = [np.empty((0, 2), np.int64)]
    if not len(textured):
        return found[0]
    hashes, places = _hashes(thumbnails), _project(thumbnails, textured)
    tree, starts = cKDTree(places), range(0, len(places), _ROWS_AT_ONCE)
    for start in tqdm(starts, "Comparing images", delay=2, leave=False, disable=None):
        near = tree.query_ball_point(places[start : start + _ROWS_AT_ONCE], _REACH, workers=usable_cpus())
        left = np.repeat(np.arange(start, start + len(near)), [len(each) for each in near])
        right = np.concatenate(near).astype(np.int64)
        pairs = textured[np.stack([left, right], axis=1)[right > left]]
        bits = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).sum(1)
        pairs = pairs[bits <= _MAX_BITS]
        found.append(pairs[_correlate(thumbnails, pairs)])
    return np.concatenate(found)


def _project(thumbnails: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Some thumbnails, of mean 0 and norm 1, along the main directions of a sample, float32 ``(rows, dimensions)``."""

    def standardised(some: NDArray[np.int64]) -> NDArray[np.float32]:
        flat = thumbnails[some].reshape(len(some), -1).astype(np.float32)
        flat -= flat.mean(1, keepdims=True)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        return flat

    sample = standardised(rows[:: max(1, len(rows) // 1024)])
    directions = np.linalg.svd(sample, full_matrices=False)[2][:_DIMENSIONS].T
    portions = (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))
    return np.concatenate([standardised(portion) @ directions for portion in portions], dtype=np.float32)


def _hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Difference hashes, 112 bits in two 64-bit words an image."""
    n, side = len(thumbnails), THUMBNAIL // 8
    cells = thumbnails.reshape(n, 8, side, 8, side).sum((2, 4), dtype=np.int32)
    brighter = [cells[:, :, 1:] > cells[:, :, :-1], cells[:, 1:] > cells[:, :-1]]
    packed = np.packbits(np.concatenate([bits.reshape(n, 56) for bits in brighter], axis=1), axis=1)
    return np.pad(packed, ((0, 0), (0, 2))).view(np.uint64)


def _correlate(thumbnails: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each pair's thumbnails have a Pearson correlation of at least the minimum."""
    keep = [np.empty(0, np.bool_)]
    n = THUMBNAIL**2
    for start in range(0, len(pairs), 4096):
        a, b = thumbnails[pairs[start : start + 4096].T].reshape(2, -1, n).astype(np.int64)
        covariance, spread_a, spread_b = (n * (x * y).sum(1) - x.sum(1) * y.sum(1) for x, y in ((a, b), (a, a), (b, b)))
        # Two flat images have no correlation to speak of: only their bytes can tell them alike.
        product = np.sqrt(spread_a.astype(np.float64) * spread_b)
        keep.append((product > 0) & (covariance >= _MIN_CORRELATION * product))
    return np.concatenate(keep)
