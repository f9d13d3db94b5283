"""The generated images: the same every time, whole or absent, and neither trivial nor hopeless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from skinjob.data import lesions as demo
from skinjob.data.lesions import draw_lesion, make_images
from skinjob.errors import ImagesError

SIZE = 96  # pixels: small, and still a lesion


def test_the_same_request_gives_the_same_images(tmp_path: Path) -> None:
    """An image depends on its seed, split, class and number alone, never on how many are made."""
    make_images(tmp_path / "small", num_train=2, num_test=1, seed=5, size=SIZE)
    make_images(tmp_path / "large", num_train=4, num_test=2, seed=5, size=SIZE)
    make_images(tmp_path / "other", num_train=2, num_test=1, seed=6, size=SIZE)

    small, large, other = (_contents(tmp_path / name) for name in ("small", "large", "other"))

    assert sorted(small) == [
        "test/benign/0000.jpg",
        "test/malignant/0000.jpg",
        "train/benign/0000.jpg",
        "train/benign/0001.jpg",
        "train/malignant/0000.jpg",
        "train/malignant/0001.jpg",
    ]
    assert len(large) == 2 * (4 + 2)
    assert small == {name: large[name] for name in small}
    assert not set(small.values()) & set(other.values())
    assert len(set(large.values())) == len(large)


def test_a_tree_that_is_there_is_kept_and_a_foreign_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking twice draws nothing twice, and files that another request made are never touched."""
    root = tmp_path / "images"
    make_images(root, num_train=1, num_test=1, size=SIZE)
    first = {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    monkeypatch.setattr(demo, "draw_lesion", lambda *_: pytest.fail("drew again"))
    make_images(root, num_train=1, num_test=1, size=SIZE)
    with pytest.raises(ImagesError, match="other content"):
        make_images(root, num_train=2, num_test=1, size=SIZE)

    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == first
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_an_interrupted_drawing_leaves_no_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree that was cut off half made is not there at all, so nobody trains on half of it."""
    root = tmp_path / "images"
    drawn = 0

    def draw_three(rng: np.random.Generator, label: str, size: int) -> Image.Image:
        nonlocal drawn
        drawn += 1
        assert not root.exists(), "seen half made"
        if drawn > 3:
            raise KeyboardInterrupt
        return draw_lesion(rng, label, size)

    monkeypatch.setattr(demo, "draw_lesion", draw_three)
    with pytest.raises(KeyboardInterrupt):
        make_images(root, num_train=3, num_test=1, size=SIZE)

    assert list(tmp_path.iterdir()) == []


def test_the_classes_differ_and_overlap() -> None:
    """Malignant lesions are the less symmetric and more coloured; neither tells them apart."""
    benign, malignant = (
        np.array(
            [_measure(draw_lesion(np.random.default_rng([1, i]), label, SIZE)) for i in range(80)]
        )
        for label in ("benign", "malignant")
    )  # (80, 2) each: asymmetry, colour

    asymmetry, colour = ((malignant[:, None] > benign[None]).mean(axis=(0, 1))).tolist()  # AUCs

    assert 0.7 < asymmetry < 0.995
    assert 0.7 < colour < 0.995


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.jpg")}


def _measure(picture: Image.Image) -> tuple[float, float]:
    """Returns how much of the dark mask half a turn leaves bare, and its spread of colour."""
    colour = np.asarray(picture, np.float64)
    grey = colour.mean(axis=2)
    y, x = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(y - SIZE / 2, x - SIZE / 2) / (SIZE / 2)
    skin = np.median(grey[(distance > 0.65) & (distance < 0.75)])
    mask: NDArray[np.bool_] = (grey < 0.8 * skin) & (distance < 0.75)
    turned_y = np.clip(np.rint(2 * y[mask].mean() - y[mask]), 0, SIZE - 1).astype(int)
    turned_x = np.clip(np.rint(2 * x[mask].mean() - x[mask]), 0, SIZE - 1).astype(int)
    bare = 1 - mask[turned_y, turned_x].mean()
    return float(bare), float(colour[mask].std(axis=0).mean())
