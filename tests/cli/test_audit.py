"""`skinjob audit`: copies are found, other images are not, and a shortcut is measured."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refusal, skinjob
from PIL import Image, ImageEnhance, ImageOps
from trees import make_tree

from skinjob.data.lesions import draw_lesion


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    """Drawn lesions, none a copy: train/benign/0.png to test/malignant/2.png."""
    root = tmp_path / "lesions"
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(("benign", "malignant")):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                image = draw_lesion(np.random.default_rng((s, c, number)), name, 96)
                image.save(root / split / name / f"{number}.png")
    return root


def audited(root: Path) -> dict[str, Any]:
    result = skinjob("audit", root, "--json", cwd=root.parent, code=0)
    return dict(json.loads(result.stdout))


def pairs_of(root: Path) -> list[tuple[str, str, str]]:
    return [(pair["first"], pair["second"], pair["kind"]) for pair in audited(root)["pairs"]]


CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "recompressed": (lambda image: image, "nearly the same"),
    "smaller": (lambda image: image.resize((60, 60)), "nearly the same"),
    "wider": (lambda image: image.resize((150, 100)), "nearly the same"),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.15), "nearly the same"),
    "shifted": (lambda image: image.crop((2, 3, 96, 96)), "nearly the same"),
    "mirrored": (ImageOps.mirror, "mirrored"),
    "upside down": (lambda image: image.rotate(180), "turned by 180°"),
    "turned": (lambda image: image.rotate(90), "turned by 90°"),
    "turned back": (lambda image: image.rotate(270), "turned by 90°"),
    "transposed": (lambda image: image.transpose(Image.Transpose.TRANSPOSE), "mirrored"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(change: str, lesions: Path) -> None:
    """A test image that is a training image, saved again with a change, is listed with its kind."""
    function, kind = CHANGES[change]
    with Image.open(lesions / "train/malignant/1.png") as original:
        function(original).save(lesions / "test/malignant/copy.jpg", quality=60)
    result = audited(lesions)
    (pair,) = result["pairs"]
    path = "test/malignant/copy.jpg"
    assert (pair["first"], pair["second"], pair["kind"]) == ("train/malignant/1.png", path, kind)
    assert result["groups"] == [["train/malignant/1.png", path]]
    assert result["test_in_train"] == [path]


def test_a_chain_of_copies_is_one_group(lesions: Path) -> None:
    """Copies with the same bytes and changed copies of an image belong to one group."""
    content = (lesions / "train/benign/0.png").read_bytes()
    (lesions / "test/malignant/same.png").write_bytes(content)
    with Image.open(lesions / "train/benign/0.png") as original:
        original.resize((70, 70)).save(lesions / "train/benign/small.png")
    result = audited(lesions)
    kinds = [pair["kind"] for pair in result["pairs"]]
    assert kinds == ["the same bytes", "nearly the same"], "across the splits comes first"
    group = ["train/benign/0.png", "train/benign/small.png", "test/malignant/same.png"]
    assert result["groups"] == [group]
    printed = skinjob("audit", lesions, cwd=lesions.parent, code=0).stdout
    assert "\nleaks     1 of 7 test images have a copy in train\n" in printed
    assert "\nlabels    1 pair in two classes: a label is wrong\n" in printed


def dark(place: tuple[int, int]) -> Image.Image:
    """A dark image with a reflection of the lamp, always the same, and a dim spot at *place*."""
    y, x = np.mgrid[:64, :64]
    spot = 60 * np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * 12**2))
    noise = np.random.default_rng(place).normal(0, 1, (64, 64))
    pixels = 8 + spot + noise
    pixels[10:14, 22:26] = 200
    return Image.fromarray(np.repeat(pixels.clip(0, 255).astype(np.uint8)[..., None], 3, 2))


def test_different_dark_images_are_no_copies(lesions: Path) -> None:
    """Dark images with different spots have similar hashes; their pixels tell them apart."""
    from skinjob.data.audit import NUM_BITS, _agreement, _signs, sketch

    images = [dark((20, 44)), dark((44, 20))]
    first, second = (_signs(sketch(image)["grey"][None]) for image in images)
    assert (NUM_BITS - _agreement(first, second)[0, 0]) / 2 < 40, "the hash alone would be fooled"
    for number, image in enumerate(images):
        image.save(lesions / f"test/malignant/dark{number}.png")
    assert pairs_of(lesions) == []


def test_uniform_images_are_empty_and_no_copies(lesions: Path) -> None:
    """Images of noise around black hold almost nothing: listed as empty, and never as copies."""
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 20, (96, 96, 3), np.uint8)
        Image.fromarray(noise).save(lesions / f"train/benign/black{number}.png")
    result = audited(lesions)
    assert result["empty"] == [f"train/benign/black{number}.png" for number in range(3)]
    assert result["pairs"] == []


def test_a_folder_of_empty_images_is_audited(lesions: Path) -> None:
    """If no image shows anything, all are listed, and the shortcut is a guess."""
    for file in lesions.rglob("*.png"):
        Image.new("RGB", (40, 40)).save(file)
    result = audited(lesions)
    assert len(result["empty"]) == 12
    assert {pair["kind"] for pair in result["pairs"]} == {"the same bytes"}
    assert result["shortcut"]["auc"] == 0.5


@pytest.mark.parametrize(("quality", "low", "high"), [(10, 0.99, 1.0), (95, 0.35, 0.65)])
def test_the_shortcut_is_what_the_files_give_away(
    quality: int, low: float, high: float, tmp_path: Path
) -> None:
    """If a class has smaller files, the shortcut is near 1; if nothing differs, near 0.5."""
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, its_quality in (("benign", 95), ("malignant", quality)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(40):
                pixels = draws.integers(0, 256, (24, 24, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=its_quality)
    result = audited(tmp_path / "data")["shortcut"]
    assert low <= result["auc"] <= high
    assert low <= result["accuracy"] <= high
    assert result["majority"] == 0.5


def test_the_contact_sheet_shows_pairs_and_nothing_else(lesions: Path, tmp_path: Path) -> None:
    """The page holds both images of a pair, without EXIF and folders, and loads nothing."""
    with Image.open(lesions / "train/malignant/1.png") as original:
        exif = Image.Exif()
        exif[0x010E] = "patient 4711"
        file = lesions / "test/malignant/<b>copy.jpg"
        original.save(file, quality=60, exif=exif, comment=b"born in 1950", dpi=(72, 72))
    printed = skinjob("audit", lesions, "--contact-sheet", "sheet.html", cwd=tmp_path, code=0)
    assert printed.stdout.endswith("\nopen: sheet.html\n")
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert str(tmp_path) not in page
    assert "&lt;b&gt;copy.jpg" in page
    assert "contains 2 images" in page
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|<script|<b>', page)
    pictures = [base64.b64decode(text) for text in re.findall(r'base64,([^"]+)"', page)]
    assert len(pictures) == 2
    for picture in pictures:
        image = Image.open(io.BytesIO(picture))
        assert max(image.size) <= 160
        assert not image.getexif()
        assert not {"comment", "exif", "icc_profile"} & set(image.info)
        assert b"4711" not in picture
        assert b"1950" not in picture


def test_faulty_images_are_left_out_and_named(lesions: Path) -> None:
    """The audit goes on without an image that cannot be read, and says which."""
    (lesions / "train/benign/bad.jpg").write_bytes(b"no image")
    assert [file["path"] for file in audited(lesions)["faulty"]] == ["train/benign/bad.jpg"]
    assert (
        "1 image, left out: train/benign/bad.jpg ("
        in skinjob("audit", lesions, cwd=lesions.parent).stdout
    )


def test_bad_input_is_refused_before_the_scan(lesions: Path, tmp_path: Path) -> None:
    """A missing folder and a sheet that is no page end in two lines, with a command that works."""
    result = skinjob("audit", tmp_path / "none", cwd=tmp_path)
    assert refusal(result) == f"image folder {tmp_path / 'none'}: no such folder"
    assert result.stderr.splitlines()[1] == "fix:   skinjob audit FOLDER"
    result = skinjob("audit", lesions.parent, cwd=tmp_path)
    refusal(result)
    words = skinjob(
        "audit", lesions, "--contact-sheet", lesions / "train/benign/0.png", cwd=tmp_path
    )
    assert "its name must end in .html" in refusal(words, 2)


def test_submit_names_near_copies_and_the_shortcut(
    lesions: Path, tmp_path: Path, weights: Path
) -> None:
    """Before the queue, submit names near copies in test, and what a shortcut reaches."""
    with Image.open(lesions / "train/malignant/1.png") as original:
        original.save(lesions / "test/malignant/copy.jpg", quality=60)
    options = ("--data", lesions, "--weights", weights, "--cluster", "local", "--batch-sizes", "4")
    for fraction in ("0", "0.34"):  # with val, some copies are of its images
        given = (*options, "--val-fraction", fraction, "--dry-run")
        printed = skinjob("submit", *given, cwd=tmp_path, code=0).stdout
        assert (
            "1 test image is nearly the same as a training image (first: test/malignant/copy.jpg): "
            f"skinjob audit {lesions}\n" in printed
        )
        assert re.search(r"^shortcut file size, .* accuracy and AUC ", printed, re.M)


def test_several_classes_have_a_shortcut_too(tmp_path: Path) -> None:
    """With three classes of different colours the shortcut tells them all apart."""
    data = make_tree(
        tmp_path / "data", num_train=12, num_test=6, classes=("benign", "malignant", "other")
    )
    assert audited(data)["shortcut"]["accuracy"] > 0.9
