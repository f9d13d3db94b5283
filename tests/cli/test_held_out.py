"""Which images `--val-fraction` holds out, what is said about it, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import commands
import numpy as np
import pytest
from commands import only_sweep, refusal, skinjob
from PIL import Image, ImageOps
from trees import make_tree

from skinjob.data.audit import Pair, with_copies
from skinjob.data.images import ImageFile, ImageSet, Split, read_index, write_index
from skinjob.data.lesions import draw_lesion
from skinjob.data.scan import scan
from skinjob.data.validation import copies_together, hold_out
from skinjob.errors import ConfigError, ImagesError
from skinjob.report.predictions import read_copies
from skinjob.submit.remarks import find_copies
from skinjob.sweeps.layout import Sweep

SMALL = ("--cluster", "local", "--device", "cpu", "--batch-sizes", "4", "--epochs", "1")
VAL = ("--val-fraction", "0.25")


def made(sizes: Sequence[int] = (40, 20), num_equal: int = 1) -> ImageSet:
    """Returns an image set without files, so many per class; *num_equal* each have equal bytes."""
    files = [
        ImageFile(
            f"{split}/{label}/{number:03}.jpg",
            split,
            label,
            1,
            hashlib.sha256(f"{split} {label} {number // num_equal}".encode()).hexdigest(),
        )
        for split in ("test", "train")
        for label, size in enumerate(sizes)
        for number in range(size)
    ]
    return ImageSet(Path(), tuple(map(str, range(len(sizes)))), tuple(files))


def held(images: ImageSet) -> set[str]:
    return {file.sha256 for file in images.split(Split.VAL)}


@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.25, 0.5])
def test_each_class_gives_its_share(fraction: float) -> None:
    """Val has the fraction of each class, train has the rest, and test stays as it is."""
    images = made()
    counts = hold_out(images, fraction).counts()
    assert counts["val"] == {"0": round(40 * fraction), "1": round(20 * fraction)}
    assert counts["train"] == {"0": 40 - counts["val"]["0"], "1": 20 - counts["val"]["1"]}
    assert hold_out(images, fraction).split("test") == images.split("test")
    assert hold_out(images, 0.0) is images


def test_the_same_images_are_held_out_everywhere() -> None:
    """The choice depends on content alone: not on order, names, test images or the machine."""
    images = made()
    chosen = held(hold_out(images, 0.15))
    shuffled = random.Random(0).sample(images.files, len(images.files))
    renamed = [replace(file, path=file.path.replace("/0", "/x0")) for file in shuffled]
    no_test = [file for file in images.files if file.split != "test"]
    for files in (shuffled, renamed, no_test):
        assert held(hold_out(replace(images, files=tuple(files)), 0.15)) == chosen
    assert held(hold_out(images, 0.15, seed=1)) != chosen
    paths = [file.path.removesuffix(".jpg") for file in hold_out(images, 0.1).split("val")]
    assert paths == [  # as on the machine where this test was written
        *("train/0/006", "train/0/011", "train/0/012", "train/0/037"),
        *("train/1/005", "train/1/011"),
    ]


def test_equal_images_are_on_one_side() -> None:
    """A network cannot learn a validation image by heart from its copy, in any class."""
    images = made((40, 20), num_equal=3)
    copies = [replace(file, path=f"train/1/c{n}", label=1) for n, file in enumerate(images.files)]
    images = replace(images, files=(*images.files, *copies[60:66]))  # copies of class 0 in class 1
    for fraction in (0.1, 0.25, 0.5):
        split = hold_out(images, fraction)
        assert not held(split) & {file.sha256 for file in split.split("train")}
        wanted = {"0": 40 * fraction, "1": 26 * fraction}
        for name, count in split.counts()["val"].items():
            assert wanted[name] - 3 <= count <= round(wanted[name])


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn lesions, 12 + 4 of each class; train has a smaller copy of each of its lesions.

    A test image is a copy of a training image, and so is another that is mirrored.
    """
    root = tmp_path_factory.mktemp("copied") / "lesions"
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("benign", "malignant")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                draw = np.random.default_rng((len(split), label, number))
                image = draw_lesion(draw, name, 64)
                image.save(folder / f"{number:02}.png")
                if split == "train":
                    smaller = image.resize((50, 50))
                    (ImageOps.mirror(smaller) if number == 3 else smaller).save(
                        folder / f"{number:02}-copy.jpg", quality=80
                    )
    with Image.open(root / "train/benign/05.png") as image:
        image.resize((40, 40)).save(root / "test/benign/copy.png")
    return root


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.35, 0.5])
def test_near_copies_are_on_one_side(copied: Path, fraction: float) -> None:
    """A lesion that is in train in two sizes, or mirrored, is in val with both files or none."""
    images = scan(copied)
    pairs = find_copies(images).in_train
    assert pairs is not None
    split = hold_out(images, fraction, group=copies_together(images, pairs))
    lesions = Counter(file.path.split(".")[0].removesuffix("-copy") for file in split.split("val"))
    assert set(lesions.values()) == {2}
    assert split.counts()["val"] == dict.fromkeys(("benign", "malignant"), 2 * int(12 * fraction))
    assert not {file.sha256 for file in split.split("val")} & {
        file.sha256 for file in split.split("train")
    }


def test_test_images_link_no_training_images(copied: Path, tmp_path: Path) -> None:
    """A test image that is a copy of two groups changes no side of the split."""
    images = scan(copied)
    known = find_copies(images)
    assert known.in_train is not None
    assert known.everywhere is not None
    places = {file.path: place for place, file in enumerate(images.files)}
    bridges = [
        Pair(places[f"train/benign/{number:02}.png"], places["test/benign/copy.png"], "made up")
        for number in range(12)
    ]
    split = hold_out(images, 0.2, group=copies_together(images, known.in_train))
    bridged = copies_together(images, [*known.everywhere, *bridges])
    assert hold_out(images, 0.2, group=bridged) == split


def test_the_list_of_images_says_which_are_copies(copied: Path, tmp_path: Path) -> None:
    """Copies have the same number, images without a copy none, and a list without the column
    says that nobody looked.
    """
    images = scan(copied)
    known = find_copies(images)
    assert known.everywhere is not None
    sweep = Sweep(tmp_path)
    write_index(with_copies(images, known.everywhere), sweep.images_file)
    copies = read_copies(sweep)
    assert copies is not None
    numbers = copies.groups
    assert numbers["train/benign/03.png"] == numbers["train/benign/03-copy.jpg"]
    assert len(numbers) == 49
    tests = [file.path for file in images.split("test")]
    assert [tests[n] for n in copies.is_trained(tests).nonzero()[0]] == ["test/benign/copy.png"]
    assert len(set(copies.numbers(tests))) == len(tests)
    assert read_index(sweep.images_file, copied, images.classes) == images
    sweep.images_file.write_text(sweep.images_file.read_text().replace(",train,", ",val,"))
    held_out = read_copies(sweep)
    assert held_out is not None
    assert not held_out.is_trained(tests).any(), "a copy in val is no copy in train"
    write_index(images, sweep.images_file)
    assert read_copies(sweep) is None


def test_the_plan_shows_what_is_held_out(project: Path) -> None:
    """The counts of each class, the value, and a list of images that says which they are."""
    result = skinjob("submit", *SMALL, *VAL, "--dry-run", cwd=project, code=0)
    assert "\ntrain    6 benign, 6 malignant\nval      2 benign, 2 malignant\n" in result.stdout
    assert "\nval_fraction = 0.25\n" in result.stdout
    assert "\nval " not in skinjob("submit", *SMALL, "--dry-run", cwd=project).stdout


@pytest.mark.parametrize(
    ("given", "message", "fix"),
    [
        ("0.6", "val fraction is 0.6, and must be 0 to 0.5", "skinjob submit --val-fraction 0"),
        ("-0.1", "val fraction is -0.1, and must be 0 to 0.5", "skinjob submit --val-fraction 0"),
        ("nan", "val fraction is nan, and must be 0 to 0.5", "skinjob submit --val-fraction 0"),
        (
            "0.05",
            "val fraction 0.05 leaves class benign (8 images in train/) without a validation image",
            "skinjob submit --val-fraction 0.1",
        ),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    project: Path, given: str, message: str, fix: str
) -> None:
    """On the command line and in a job file, with a value that works."""
    result = skinjob("submit", *SMALL, f"--val-fraction={given}", cwd=project)
    assert refusal(result) == message
    assert result.stderr.endswith(fix.removeprefix("skinjob submit") + "\n")
    assert skinjob(*fix.split()[1:], *SMALL, "--dry-run", cwd=project).returncode == 0
    (project / "job.toml").write_text(f"[train]\nval_fraction = {given}\n")
    result = skinjob("submit", *SMALL, "--job", "job.toml", cwd=project)
    assert refusal(result) == f"job file job.toml: {message}"
    assert not (project / "runs").exists()


def test_a_class_of_one_image_has_no_validation_split() -> None:
    """Then no fraction works, and the fix is to do without."""
    for images in (made((40, 1)), made((40, 3), num_equal=3)):
        with pytest.raises(ConfigError, match="leaves class 1 ") as raised:
            hold_out(images, 0.5)
        assert raised.value.fix == "skinjob submit --val-fraction 0"


def test_a_batch_must_fit_what_is_left_to_train_on(project: Path) -> None:
    """16 images less the 4 of val are 12."""
    given = ("--cluster", "local", "--batch-sizes", "4,16", *VAL)
    message = refusal(skinjob("submit", *given, cwd=project))
    assert message == "batch size 16 is more than the 12 training images"


@pytest.mark.train
def test_a_sweep_with_a_validation_split_is_like_any_other(finished: Path) -> None:
    """Submit, status, list, doctor, report and the same submit again; 0 is the recipe as before."""
    project, plain, small = finished, only_sweep(finished / "runs"), commands.SMALL
    again = skinjob("submit", *small, "--val-fraction", "0", cwd=project, code=0).stdout
    assert f"{plain.name}  (exists, continues)" in again
    assert "\nval " not in again
    assert "val_fraction" not in json.loads(plain.runs()[0].config_file.read_text())

    skinjob("submit", *small, *VAL, "--name", "val", "--wait", cwd=project, code=0)
    sweep = project / "runs/val"
    again = skinjob("submit", *small, *VAL, cwd=project, code=0).stdout
    assert "val  (exists, continues)" in again
    assert "done  not repeated" in again
    assert "2 runs: 2 done" in skinjob("status", sweep, cwd=project, code=0).stdout
    assert skinjob("list", cwd=project, code=0).stderr == ""
    report = skinjob("report", sweep, cwd=project, code=0)
    assert "is chosen with the 4 validation images; the test images give" in report.stdout
    assert "*" not in report.stdout
    page = (sweep / "report/index.html").read_text("utf-8")
    assert "<dt>images, val</dt><dd>2 benign, 2 malignant</dd>" in page
    assert "val fraction 0.25" in page
    both = skinjob("report", sweep, plain.folder, cwd=project, code=0).stdout
    assert "The sweeps differ in their val fraction: compare them with care." in both
    doctor = skinjob("doctor", "--cluster", "local", "--batch-sizes", "4,16", *VAL, cwd=project)
    assert "batch size 16 is more than the 12 training images" in doctor.stdout


def test_a_test_image_that_is_in_val_too_is_named(project: Path) -> None:
    """It would be a choice made on a test image."""
    data = project / "skin_cancer"
    split = hold_out(scan(data), 0.25)
    shutil.copy(data / split.split("val")[0].path, data / "test/benign/copy.jpg")
    result = skinjob("submit", *SMALL, *VAL, "--dry-run", cwd=project, code=0)
    assert "1 test image is in train too, byte for byte (first: test/benign/copy.jpg)" in (
        result.stdout
    )


def _as_written(rows: list[dict[str, str]], columns: Sequence[str], file: Path) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def test_the_list_of_images_is_read_by_name(project: Path) -> None:
    """Columns may have any order, others may come, and a list without splits has the folders'."""
    skinjob("submit", *SMALL, *VAL, cwd=project, code=0)
    sweep = only_sweep(project / "runs")
    file, root, classes = sweep.images_file, project / "skin_cancer", ("benign", "malignant")
    images = read_index(file, root, classes)
    assert images == hold_out(scan(root), 0.25)
    assert images.fingerprint() == sweep.info().images.fingerprint != scan(root).fingerprint()
    with file.open(newline="") as lines:
        rows = [{**row, "phash": "0"} for row in csv.DictReader(lines)]
    _as_written(rows, ("phash", "sha256", "split", "bytes", "label", "path"), file)
    assert read_index(file, root, classes) == images
    _as_written(rows, ("path", "label", "bytes", "sha256"), file)
    assert read_index(file, root, classes) == scan(root)
    _as_written(rows, ("path", "split", "bytes", "sha256"), file)
    with pytest.raises(ImagesError, match="no column label"):
        read_index(file, root, classes)


@pytest.mark.parametrize(("folder", "split"), [("test", "train"), ("test", "val"), ("train", "x")])
def test_a_list_that_moves_a_test_image_is_refused(tmp_path: Path, folder: str, split: str) -> None:
    """No list of images can make a test image one that is trained or chosen on."""
    images = scan(make_tree(tmp_path / "data", num_train=2, num_test=2))
    files = tuple(replace(f, split=split) if f.split == folder else f for f in images.files)
    file = tmp_path / "images.csv"
    write_index(replace(images, files=files), file)
    with pytest.raises(ImagesError, match=f"is not of split '{split}'"):
        read_index(file, images.root, images.classes)
