"""Pairs of images that a network takes for the same: candidates for copies, to be looked at.

Pixels show a copy that was resized, shifted or turned. They do not show the same lesion in another
crop or in a second picture; the features that a sweep has computed often do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from skinjob.data.audit import TILE, Audit, Pair
from skinjob.data.images import ImageSet, Split

NUM_DIRECTIONS = 64
"""Features are compared along the directions in which they vary most, each with the same weight.
Without that, all pictures of skin are alike: the cosine of a copy is that of any two images."""
MOST_IMAGES = 20_000  # the time grows with the square
KIND = "alike by features"


def look_alikes(
    audit: Audit, index: ImageSet, views: Path, weights: str, most: int
) -> list[Pair] | None:
    """Returns the pairs with the greatest cosine of their features, without the audit's groups.

    *index* is the image set of a sweep, *views* its folder of views, *weights* the SHA-256 of its
    weights file. An image's features are the mean over its views. Returns None if there are none
    of these images, or those of more than MOST_IMAGES.
    """
    by_path = {file.path: place for place, file in enumerate(audit.images.files)}
    places: list[int] = []
    parts: list[NDArray[np.float32]] = []
    for split in Split:
        own = [by_path.get(file.path, -1) for file in index.split(split)]
        features = _mean_features(views, index.fingerprint(split), weights, len(own))
        if features is not None:
            is_here = np.array(own) >= 0
            places += np.array(own)[is_here].tolist()
            parts.append(features[is_here])
    if len(places) < 2 or len(places) > MOST_IMAGES:
        return None
    directions = _directions(np.concatenate(parts).astype(np.float64))
    group_of = {place: number for number, group in enumerate(audit.groups) for place in group}
    best: list[tuple[float, int, int]] = []
    for top in range(0, len(places), TILE):
        cosines = directions[top : top + TILE] @ directions.T
        cosines[np.tril_indices(len(cosines), top, len(places))] = -1  # each pair once
        num = min(most + len(audit.pairs), cosines.size)
        for i, j in zip(*np.unravel_index(_largest(cosines, num), cosines.shape), strict=True):
            first, second = sorted((places[top + i], places[j]))
            if group_of.get(first, -1) != group_of.get(second, -2):
                best.append((float(cosines[i, j]), first, second))
    best.sort(reverse=True)
    return [Pair(first, second, KIND, alike=alike) for alike, first, second in best[:most]]


def _largest(values: NDArray[np.float64], num: int) -> NDArray[np.intp]:
    """Returns the flat positions of the *num* largest values, in any order."""
    return np.argpartition(values, -num, axis=None)[-num:]


def _mean_features(
    views: Path, fingerprint: str, weights: str, num_images: int
) -> NDArray[np.float32] | None:
    """Returns the mean of a split's views, (num_images, num_features); None if there is no view."""
    total, num = None, 0
    for file in sorted(views.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as view:
                about = view.metadata() or {}
                if (about.get("images"), about.get("weights")) != (fingerprint, weights):
                    continue
                features = view.get_tensor("features")
        except (OSError, SafetensorError):  # a job may remove or write it now
            continue
        if len(features) == num_images:
            total, num = features if total is None else total + features, num + 1
    return None if total is None else total / num


def _directions(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the images as unit vectors along the directions of NUM_DIRECTIONS, (N, D)."""
    features = features - features.mean(axis=0)
    scales, axes = np.linalg.eigh(features.T @ features)
    kept = slice(-min(NUM_DIRECTIONS, max(1, len(features) // 4)), None)
    scores = features @ axes[:, kept] / np.sqrt(np.maximum(scales[kept], 1e-12))
    unit: NDArray[np.float64] = scores / np.linalg.norm(scores, axis=1, keepdims=True)
    return unit
