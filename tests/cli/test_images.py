"""What `skinjob submit` says about an image folder before anything is queued."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import skinjob
from numpy.typing import NDArray
from PIL import Image
from trees import make_tree

from skinjob.data.images import decode, read_index, write_index
from skinjob.data.scan import scan
from skinjob.errors import ImagesError

SMALL = ("--cluster", "local", "--batch-sizes", "4", "--dry-run")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "skin_cancer", num_train=3, num_test=2)


@pytest.mark.parametrize("at_once", [1, 4, 1000])
def test_scan_counts_every_image_by_split_and_class(
    tree: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """The counts that the user sees before anything is queued are those of the folders."""
    monkeypatch.setattr("skinjob.data.scan.AT_ONCE", at_once)
    assert scan(tree).counts() == {
        "train": {"benign": 3, "malignant": 3},
        "test": {"benign": 2, "malignant": 2},
    }


def test_index_brings_back_the_same_images(tree: Path, tmp_path: Path) -> None:
    """A job sees exactly the images that were scanned, including those with odd names."""
    shutil.copy(tree / "train/benign/0.jpg", tree / 'train/benign/é, "x"\n.jpg')
    images = scan(tree)
    write_index(images, tmp_path / "images.csv")
    again = read_index(tmp_path / "images.csv", tree, images.classes)
    assert again == images
    assert again.fingerprint() == images.fingerprint()


def test_the_fingerprint_depends_on_content_and_not_on_place(tree: Path, tmp_path: Path) -> None:
    """A copy of the images has the same fingerprint; a changed image gives another."""
    copy = shutil.copytree(tree, tmp_path / "elsewhere")
    assert scan(copy).fingerprint() == scan(tree).fingerprint()
    Image.new("RGB", (50, 50)).save(copy / "test/benign/0.jpg")
    assert scan(copy).fingerprint() != scan(tree).fingerprint()
    assert scan(copy).fingerprint("train") == scan(tree).fingerprint("train")


def _leave_out(tree: Path) -> None:
    """Adds other files that image folders often hold, and JPEGs with rare suffixes."""
    benign, image = tree / "train/benign", tree / "train/benign/0.jpg"
    for name in ("a.jfif", "b.JPE", "c.JPG ", "sub/d.jpg"):  # these are used
        (benign / name).parent.mkdir(exist_ok=True)
        shutil.copy(image, benign / name)
    for place in ("train", "test/malignant", "."):
        for name in (".ipynb_checkpoints/0.jpg", ".DS_Store", "__MACOSX/._0.jpg"):
            (tree / place / name).parent.mkdir(exist_ok=True)
            shutil.copy(image, tree / place / name)
    for name in ("Thumbs.db", "1.heic", "2.HEIC", "._0.jpg", "README", "a.\x1b[31mx"):
        (benign / name).write_bytes(b"x")
    for name in ("train/1.jpg", "train/2.jpg", "test/3.png", "valid/benign/0.jpg", "4.jpg"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tree / name)
    for name in ("archive.zip", "train/more.zip", "labels.csv"):
        (tree / name).write_bytes(b"x")
    for number in range(7):
        (tree / f"w{number}").mkdir()


LEFT_OUT = (
    "3 hidden",
    "2 .heic",
    "1 .db",
    "1 without suffix",
    "1 .\\x1b[31mx",
    "1 image beside train/ and test/",
    "1 .zip beside train/ and test/",
    *("valid/ is not used", "w0/ is not used", "w1/ is not used", "w2/ is not used"),
    *("w3/ is not used", "3 more folders not used"),
    "2 images in train/ itself",
    "1 .zip in train/ itself",
    "2 hidden in train/ itself",
    "1 image in test/ itself",
)


def test_files_that_are_left_out_are_counted_by_kind(project: Path) -> None:
    """Plan and doctor show files in another format and images in a wrong folder."""
    _leave_out(project / "skin_cancer")
    images = scan(project / "skin_cancer")
    assert len(images.files) == 24 + 4
    assert sorted(images.left_out) == sorted(LEFT_OUT)
    words = ", ".join(images.left_out)
    plan = skinjob("submit", *SMALL, cwd=project)
    assert f"left out {words}\n" in plan.stdout
    doctor = skinjob("doctor", *SMALL[:-1], cwd=project)
    assert f"left out: {words}\n" in doctor.stdout


def test_an_image_that_changed_since_the_scan_is_noticed(tree: Path) -> None:
    """No number comes from an image that was not submitted."""
    images = scan(tree)
    Image.new("RGB", (50, 50)).save(tree / images.files[0].path)
    with pytest.raises(ImagesError, match="has changed since"):
        images.files[0].read(images.store)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    """Grey, palette, alpha, CMYK and 16-bit images are trained on as they look."""
    grey = np.linspace(0, 255, 256).reshape(16, 16)
    if mode == "I;16":
        image = Image.fromarray((grey * 257).astype(np.uint16))
    else:
        image = Image.fromarray(grey.astype(np.uint8)).convert(mode)
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(file)
    rgb = decode(file.read_bytes())
    assert rgb.mode == "RGB"
    if mode != "1":
        assert np.abs(np.asarray(rgb, float).mean(axis=2) - grey).max() < 4


GREY = np.linspace(0, 255, 400).round().reshape(20, 20)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("float32", GREY / 255),
        ("float32", GREY / 255 * 1.06 - 0.03),
        ("float32", GREY),
        ("float32", GREY * 257),
        ("int32", GREY),
        ("int32", GREY * 257),
        ("uint16", GREY),
        ("uint16", GREY * 257),
    ],
)
def test_grey_values_of_every_usual_range_are_scaled(
    kind: str, values: NDArray[np.float64]
) -> None:
    """An image that another program saved as floats or 16 bits is trained on as it looks."""
    content = io.BytesIO()
    Image.fromarray(values.astype(kind)).save(content, "TIFF")
    rgb = np.asarray(decode(content.getvalue()), float)
    assert np.abs(rgb.mean(axis=2) - GREY).max() < 9  # values outside the range are clipped


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("int32", GREY * 2**20, "from 0 to 2.67387e+08, expected is 0 to 255 or 0 to 65535"),
        (
            "float32",
            GREY * -999,
            "from -254745 to -0, expected is 0 to 1 or 0 to 255 or 0 to 65535",
        ),
        ("float32", np.where(GREY > 9, GREY, np.nan), "from numbers to NaN or infinity"),
    ],
)
def test_grey_values_of_no_usual_range_are_a_fault(
    tree: Path, kind: str, values: NDArray[np.float64], words: str
) -> None:
    """An image that would be black, white or noise is listed before anything is queued."""
    Image.fromarray(values.astype(kind)).save(tree / "train/benign/new.tif")
    with pytest.raises(ImagesError, match="1 of 11 images faulty") as fault:
        scan(tree)
    assert words in fault.value.message


def test_images_that_show_nothing_are_counted_before_the_queue(project: Path) -> None:
    """Plain black or white images, transparent icons and 12-bit values in 16 bits are counted."""
    folder = project / "skin_cancer/train/benign"
    Image.new("RGB", (50, 50), "white").save(folder / "a.jpg")
    Image.new("RGBA", (50, 50)).save(folder / "b.png")
    Image.fromarray((GREY * 16).astype(np.uint16)).save(folder / "c.tif")
    Image.fromarray((GREY / 17).astype(np.uint8)).save(folder / "d.png")  # 16 grey levels
    Image.fromarray((GREY / 15).astype(np.uint8)).save(folder / "e.png")  # 18: not counted
    words = "4 images hold a single grey level, or nearly (first: train/benign/a.jpg)"
    assert words in skinjob("submit", *SMALL, cwd=project).stdout
