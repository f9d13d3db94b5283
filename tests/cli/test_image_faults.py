"""All faults of an image folder are listed before anything is queued; good images are accepted."""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import import_path, only_sweep, refusal, skinjob
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trees import make_sweep, make_tree

from skinjob.config import ClusterConfig, TrainConfig, grid
from skinjob.console import printable
from skinjob.data.images import MAX_PIXELS, decode, read_index, write_index
from skinjob.data.scan import scan
from skinjob.errors import ImagesError
from skinjob.submit.folders import write_plan
from skinjob.submit.plan import make_plan

SMALL = ("--batch-sizes", "4", "--epochs", "1", "--cluster", "local")
ENV = os.environ | import_path()
QUADRANTS = np.array([[0, 80], [160, 240]], np.uint8)  # every turn or flip of it looks different


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "skin_cancer", num_train=3, num_test=2)


def faults(root: Path) -> dict[str, str]:
    """Returns what the scan lists as wrong: the reason by the path below *root*."""
    with pytest.raises(ImagesError) as fault:
        scan(root)
    pairs = [line.split("  ", 1) for line in fault.value.details]
    return {path.removeprefix(f"{root}/"): what.strip() for path, what in pairs}


def drawn(mode: str = "RGB", size: tuple[int, int] = (20, 24)) -> Image.Image:
    """Returns an image of four grey rectangles, the darkest at the top left."""
    grey = Image.fromarray(QUADRANTS).resize(size, Image.Resampling.NEAREST)
    return grey.convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Returns a small PNG whose header claims another size."""
    content = bytearray(encoded(drawn(), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def tiff_of_many_colours() -> bytes:
    """Returns a small TIFF that claims 1,027 values per pixel; Pillow logs a message about it."""
    content = encoded(drawn(), "TIFF")
    tag = struct.pack("<HHI", 277, 3, 1)  # SamplesPerPixel, one number of 16 bits
    assert content.count(tag) == 1
    return content.replace(tag + b"\3\0", tag + struct.pack("<H", 1027))


# Bad files


def _cut(path: Path) -> None:
    content = encoded(drawn(size=(200, 200)), "JPEG")
    path.write_bytes(content[: len(content) * 2 // 3])


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is at most 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)


FAULTY: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_cut, "truncated"),
    "empty": (_write(b""), "empty file"),
    "page": (_write(b"<html>"), "not an image"),
    "pointer": (_write(b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer, not"),
    "zeros": (_write(bytes(5000)), "not an image"),
    "postscript": (_write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n"), "not an image"),
    "dead link": (lambda path: path.symlink_to("gone.jpg"), "broken symbolic link"),
    "own link": (lambda path: path.symlink_to(path.name), "too many levels of symbolic links"),
    "folder": (lambda path: path.mkdir(), "a folder, not a file"),
    "pipe": (os.mkfifo, "a named pipe, not a file"),
    "socket": (_socket, "a socket, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
    "point": (
        _write(encoded(drawn(size=(1, 1)), "PNG")),
        "1 x 1 pixels, but each side must have at least 16",
    ),
    "thin": (
        _write(encoded(drawn(size=(15, 99)), "PNG")),
        "15 x 99 pixels, but each side must have at least 16",
    ),
    "long": (
        _write(encoded(drawn(size=(16, 257)), "PNG")),
        "16 x 257 pixels: the long side is more",
    ),
    "bomb": (_write(png_header(20_000, 20_000)), "a decompression bomb?"),
    "half a bomb": (_write(png_header(10_000, 10_000)), "a decompression bomb?"),
    "colours": (_write(tiff_of_many_colours()), "not an image"),
    "huge": (_sparse, "2,147,483,648 bytes, but at most"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_bad_file_is_listed_with_its_fault(tree: Path, name: str) -> None:
    """Anything that is not a usable image is named with the reason, and the scan never blocks."""
    make, words = FAULTY[name]
    make(tree / "train/benign/bad.JPG")
    reasons = faults(tree)
    assert list(reasons) == ["train/benign/bad.JPG"]
    assert words in reasons["train/benign/bad.JPG"]


def test_all_faults_are_listed_at_once_by_path(project: Path) -> None:
    """A single command lists all bad files and folders, a line each, and an error with a fix."""
    tree = project / "skin_cancer"
    for name, (make, _) in FAULTY.items():
        make(tree / f"train/benign/{name}.jpg")
    (tree / "train/extra").mkdir()
    shutil.rmtree(tree / "test/malignant")
    (tree / "test/malignant").mkdir()
    result = skinjob("submit", *SMALL, cwd=project)
    message = refusal(result)
    lines = result.stdout.splitlines()
    assert len(lines) == len(FAULTY) + 2
    assert [line.split("  ")[0] for line in lines] == sorted(line.split("  ")[0] for line in lines)
    assert len({len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines}) == 1  # aligned
    assert message.startswith(
        f"2 faulty folders, {len(FAULTY)} of {20 + len(FAULTY)} images faulty: "
    )
    assert message.endswith(f" and {len(lines) - 3} more")
    assert not (project / "runs").exists()


def test_a_decompression_bomb_is_recognized_by_its_header(
    tree: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An image that would fill the memory is listed, but not decoded, and no warning is printed."""
    side = int(MAX_PIXELS**0.5)
    (tree / "train/benign/most.png").write_bytes(png_header(side, side))
    (tree / "train/benign/more.png").write_bytes(png_header(side + 1, side + 1))
    reasons = faults(tree)
    assert "bomb" in reasons["train/benign/more.png"]
    assert (
        "bomb" not in reasons["train/benign/most.png"]
    )  # decoded, and listed because pixels are missing
    assert capfd.readouterr().err == ""


@pytest.fixture
def other_user() -> list[str]:
    """The words that start Python as a user who owns nothing."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("being another user needs root and setpriv")
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    if subprocess.run([*words, "-c", "import skinjob.data.scan"], env=ENV).returncode != 0:
        pytest.skip("another user may not read this Python")
    return words


def test_files_and_folders_that_may_not_be_read_are_listed(other_user: list[str]) -> None:
    """Files and folders without read permission are listed, and never skipped."""
    code = (
        "import sys; from pathlib import Path; from skinjob.data.scan import scan\n"
        "try: scan(Path(sys.argv[1]))\n"
        "except Exception as fault: print(*fault.details or [fault.message], sep='\\n')\n"
    )

    def scanned() -> list[str]:
        words = [*other_user, "-c", code, str(tree)]
        result = subprocess.run(words, env=ENV, capture_output=True, text=True)
        assert not result.stderr
        return [" ".join(line.split()) for line in result.stdout.splitlines()]

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = make_tree(Path(folder) / "skin_cancer", num_train=2, num_test=2)
        (tree / "train/benign/0.jpg").chmod(0)
        (tree / "train/malignant/more").mkdir(mode=0)
        (tree / "test/benign").chmod(0)
        assert scanned() == [
            f"{tree}/test/benign permission denied",
            f"{tree}/train/benign/0.jpg permission denied",
            f"{tree}/train/malignant/more permission denied",
        ]
        (tree / "test").chmod(0o644)  # the names in it can be read, their files cannot
        assert scanned()[:2] == [
            f"{tree}/test/benign permission denied",
            f"{tree}/test/malignant permission denied",
        ]
        tree.chmod(0)
        assert scanned() == [f"image folder {tree}: permission denied"]


# Bad folders


def _remove(*names: str) -> Callable[[Path], object]:
    return lambda tree: [shutil.rmtree(tree / name) for name in names]


def _empty(tree: Path) -> None:
    for file in (tree / "test/benign").iterdir():
        file.unlink()


def _rename(tree: Path) -> None:
    for file in list((tree / "test/benign").iterdir()):
        file.rename(file.with_suffix(".HEIC"))


def _all_bad(tree: Path) -> None:
    for file in (tree / "test/benign").iterdir():
        file.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (_remove("test"), {"test": "no such folder"}),
        (_remove("test", "train"), {"test": "no such folder", "train": "no such folder"}),
        (lambda tree: (tree / "test").rename(tree / "Test"), {"test": "no such folder, but Test/"}),
        (_remove("test/benign"), {
            "test": "1 class folders, 2 or more expected",
            "train/benign": "no such class in test",
        }),
        (_remove("train/benign", "test/benign"), {
            "test": "1 class folders, 2 or more expected",
            "train": "1 class folders, 2 or more expected",
        }),
        (lambda tree: (tree / "test/benign").rename(tree / "test/Benign"), {
            "test/Benign": "no such class in train",
            "train/benign": "no such class in test",
        }),
        (_empty, {"test/benign": "no image in it (.jpg, .jpeg"}),
        (_rename, {"test/benign": "no image in it, but 2 .heic"}),
        (_all_bad, {
            "test/benign": "no image in it that can be trained on",
            "test/benign/0.jpg": "empty file",
            "test/benign/1.jpg": "empty file",
        }),
        (lambda tree: [shutil.copytree(tree / s / "benign", tree / s / "a\nb") for s in
                       ("train", "test")], {
            "test/a\\nb": "its name is not printable text",
            "train/a\\nb": "its name is not printable text",
        }),
    ],
)  # fmt: skip
def test_a_tree_of_another_shape_is_refused(
    tree: Path, spoil: Callable[[Path], object], wanted: dict[str, str]
) -> None:
    """Everything that is wrong with the folders is listed at once, by folder."""
    spoil(tree)
    reasons = faults(tree)
    assert reasons.keys() == wanted.keys()
    assert all(reasons[path].startswith(words) for path, words in wanted.items()), reasons


@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_a_wrong_image_folder_is_a_single_error(tmp_path: Path, kind: str) -> None:
    """A typing mistake in --data gives an error with the path, and no list."""
    root = tmp_path / "a\nb"
    if kind == "file":
        root.write_text("")
    with pytest.raises(
        ImagesError, match=r"a\\nb: (no such folder|not a folder, a zip or a tar)$"
    ) as fault:
        scan(root)
    assert not fault.value.details


def test_an_image_folder_inside_the_given_folder_is_named(project: Path) -> None:
    """If train/ and test/ are in a subfolder, the fix is the command with that subfolder."""
    tree = project / "skin_cancer"
    tree.rename(project / "unpacked")
    tree.mkdir()
    (project / "unpacked").rename(tree / "skin cancer")
    result = skinjob("submit", *SMALL, cwd=project)
    assert refusal(result) == "image folder skin_cancer: train/ and test/ are in its skin cancer/"
    assert result.stderr.endswith(" --data 'skin_cancer/skin cancer'\n")
    assert "--data skin_cancer " not in result.stderr


def test_a_class_in_two_unicode_forms_is_shown_with_a_fix(project: Path) -> None:
    """The error shows both forms, as a Mac and as Linux write them; the fix renames a folder."""
    tree = project / "skin_cancer"
    (tree / "train/malignant").rename(tree / "train/m\u00e9lanome")
    (tree / "test/malignant").rename(tree / "test/me\u0301lanome")
    result = skinjob("submit", *SMALL, "--dry-run", cwd=project)
    composed, combined = ascii("m\u00e9lanome"), ascii("me\u0301lanome")
    words = f"it is written {composed}, and {combined} is another Unicode form of it"
    assert f"no such class in test ({words})" in refusal(result)
    fix = result.stderr.splitlines()[1].removeprefix("fix:   ")
    subprocess.run(["bash", "-c", fix], cwd=project, check=True)
    assert scan(tree).classes == ("benign", "m\u00e9lanome")


@pytest.mark.parametrize(
    ("name", "written"), [("b\u0435nign", "'b\\u0435nign'"), ("benign ", "'benign '")]
)
def test_a_class_that_only_looks_like_another_is_written_out(
    tree: Path, name: str, written: str
) -> None:
    """The error makes a Cyrillic letter or a space at the end visible."""
    (tree / "test/benign").rename(tree / "test" / name)
    assert faults(tree)[f"test/{name}".strip()].endswith(f"(it is written {written})")


def test_two_classes_that_look_the_same_are_refused(tree: Path) -> None:
    """If a copy has split a class in two, it is not trained as two classes."""
    for split in ("train", "test"):
        (tree / split / "malignant").rename(tree / split / "m\u00e9")
        shutil.copytree(tree / split / "m\u00e9", tree / split / "me\u0301")
    reasons = faults(tree)
    assert len(reasons) == 4
    assert all(words.startswith("another class looks the same") for words in reasons.values())


# Good images


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_all_kinds_are_taken(tree: Path, mode: str, progressive: bool) -> None:
    """Grey, CMYK and progressive JPEGs are images, also with an upper-case suffix."""
    content = encoded(drawn(mode), "JPEG", progressive=progressive)
    (tree / "train/benign/new.JPEG").write_bytes(content)
    assert len(scan(tree).files) == 11


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_the_content_counts_and_not_the_suffix(tree: Path, kind: str) -> None:
    """A PNG that is named .jpg is trained on like any other image."""
    content = encoded(drawn(), kind)
    (tree / "train/benign/new.jpg").write_bytes(content)
    assert len(scan(tree).files) == 11
    assert np.array_equal(np.asarray(decode(content))[[0, -1], [0, -1], 0], [0, 240])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    """A file with several frames is one image: its first frame."""
    others = [Image.new("RGB", (20, 24), colour) for colour in ("red", "blue")]
    content = encoded(drawn(), kind, save_all=True, append_images=others)
    assert abs(int(np.asarray(decode(content))[-1, -1, 0]) - 240) < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_a_viewer_turns_it(kind: str, orientation: int) -> None:
    """A photograph that was taken sideways is trained on upright, as its EXIF data say."""
    turned = {  # what the camera did to the picture, by the EXIF standard's table of orientations
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(drawn(size=(32, 48)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turned[orientation](upright)))
    seen = decode(encoded(stored, kind, exif=exif))
    assert seen.size == (32, 48)
    assert np.abs(np.asarray(seen, int) - upright).max() < 12


def test_exif_that_cannot_be_read_is_no_fault(tree: Path) -> None:
    """Damage outside the pixels never makes an image bad."""
    content = encoded(drawn(), "PNG", exif=b"Exif\0\0no header")
    (tree / "train/benign/new.jpg").write_bytes(content)
    assert len(scan(tree).files) == 11


def test_hidden_files_of_other_programs_are_left_out(tree: Path) -> None:
    """Files of Finder, Explorer and unzip are neither images nor classes nor faults."""
    for name in (".DS_Store", "._0.jpg", ".thumbs/0.jpg", "__MACOSX/0.jpg", "Thumbs.db"):
        for folder in ("train/benign", "train"):
            file = tree / folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"x")
    images = scan(tree)
    assert images.classes == ("benign", "malignant")
    assert len(images.files) == 10
    assert images.left_out == ("3 hidden", "1 .db", "2 hidden in train/ itself")


def test_circular_links_list_no_image_twice(tree: Path) -> None:
    """The scan enters a linked folder once, and never a folder that it is already in."""
    elsewhere = tree.parent / "elsewhere"
    shutil.copytree(tree / "train/malignant", elsewhere)
    (tree / "train/malignant/more").symlink_to(elsewhere)
    (tree / "train/malignant/again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(elsewhere)
    for name, target in (("self", "."), ("up", ".."), ("root", "../.."), ("top", "/")):
        (tree / "train/benign" / name).symlink_to(target)
    assert scan(tree).counts()["train"] == {"benign": 3, "malignant": 6}


NAMES = [b"a b'c\"d,e;f.jpg", b"line\nbreak\r\n.jpg", b"\xff\xfe.jpg", "größe-皮膚.jpg".encode(),
         b"\x1b[31mred.jpg", b"-rf.jpg", b"back\\slash.jpg", b" .jpg"]  # fmt: skip


@pytest.mark.train
def test_every_list_can_hold_any_file_name(project: Path) -> None:
    """Names of any bytes come back from images.csv and predictions.csv, and fill a line each."""
    from skinjob.train.job import run_job

    folder = project / "skin_cancer/test/benign"
    named = [folder / os.fsdecode(name) for name in NAMES]
    for path in named:
        shutil.copy(folder / "0.jpg", path)
    sweep = make_sweep(
        project / "skin_cancer", project / "weights/resnet18.safetensors", project / "runs"
    )
    images = scan(project / "skin_cancer")
    assert read_index(sweep.images_file, images.root, images.classes) == images
    run = sweep.runs()[0]
    run_job([run.folder])
    with run.predictions_file.open(newline="", errors="surrogateescape") as lines:
        seen = [row["image"] for row in csv.DictReader(lines)]
    assert seen == [file.path for file in images.split("test")]
    assert {f"test/benign/{path.name}" for path in named} <= set(seen)
    for path in named:
        path.write_bytes(b"")
    result = skinjob("submit", *SMALL, cwd=project)
    refusal(result)
    lines = result.stdout.splitlines()
    assert len(lines) == len(NAMES)
    assert all(line.isprintable() for line in lines)


# --skip-bad-images


def spoil(project: Path) -> None:
    tree = project / "skin_cancer"
    _cut(tree / "train/benign/0.jpg")
    (tree / "test/malignant/0.jpg").write_bytes(b"")
    (tree / "test/malignant/\udcff\n.jpg").write_bytes(b"<html>")


@pytest.mark.train
def test_skip_bad_images_leaves_them_out(project: Path) -> None:
    """The sweep trains on the rest; plan, sweep.json and report say what was left out."""
    spoil(project)
    refused = skinjob("submit", *SMALL, cwd=project)
    assert "3 of 25 images faulty" in refusal(refused)
    assert " --skip-bad-images   # leaves them out" in refused.stderr
    result = skinjob("submit", *SMALL, "--skip-bad-images", "--wait", cwd=project)
    assert result.returncode == 0, result.stderr
    assert "skipped  3 faulty images" in result.stdout
    assert "train    7 benign, 8 malignant" in result.stdout
    sweep = only_sweep(project / "runs")
    skipped = {image["path"]: image["fault"] for image in sweep.info().images.skipped}
    assert list(skipped) == [
        "train/benign/0.jpg",
        "test/malignant/0.jpg",
        "test/malignant/\udcff\n.jpg",
    ]
    assert skipped["test/malignant/0.jpg"] == "empty file"
    index = read_index(sweep.images_file, Path(), ("benign", "malignant"))
    assert len(index.files) == 22
    assert not skipped.keys() & {file.path for file in index.files}
    report = skinjob("report", cwd=project)
    assert "3 faulty images were left out of training and test" in report.stdout
    page = (sweep.report_folder / "index.html").read_text()
    assert "3 faulty images were left out of training and test" in page
    assert "<dt>images skipped</dt><dd>3</dd>" in page


@pytest.mark.slow
def test_a_sweep_without_its_bad_images_is_continued(project: Path) -> None:
    """The option, variable or job file gives the same sweep, also after the images are removed."""
    spoil(project)
    plan = make_plan(
        configs=grid(
            TrainConfig(
                data=str(project / "skin_cancer"),
                weights=str(project / "weights/resnet18.safetensors"),
                batch_size=4,
                epochs=1,
            ),
            batch_size=[4],
        ),
        cluster=ClusterConfig(cluster="local"),
        runs=project / "runs",
        skip_bad_images=True,
    )
    write_plan(plan)
    (project / "job.toml").write_text("[train]\nskip_bad_images = true\n")
    again = ("submit", *SMALL, "--dry-run")
    for result in (
        skinjob(*again, "--skip-bad-images", cwd=project),
        skinjob(*again, cwd=project, SKINJOB_SUBMIT_SKIP_BAD_IMAGES="1"),
        skinjob(*again, "--job", "job.toml", cwd=project),
    ):
        assert "exists, continues" in result.stdout, result.stderr
    for image in plan.images.skipped:
        (project / "skin_cancer" / image.path).unlink()
    assert "exists, continues" in skinjob(*again, cwd=project).stdout


def test_folders_are_not_skipped(project: Path) -> None:
    """A class without images is an error even with --skip-bad-images."""
    tree = project / "skin_cancer"
    _all_bad(tree)
    result = skinjob("submit", *SMALL, "--skip-bad-images", cwd=project)
    assert "1 faulty folder" in refusal(result)
    assert "--skip-bad-images" not in result.stderr
    assert not (project / "runs").exists()


# Images that exist twice


def test_an_image_in_both_splits_or_classes_is_a_note(project: Path) -> None:
    """Plan and sweep.json count equal images in train and test, or in two classes; no error."""
    tree = project / "skin_cancer"
    shutil.copy(tree / "train/benign/0.jpg", tree / "test/benign/copy.jpg")
    shutil.copy(tree / "train/benign/1.jpg", tree / "test/benign/copy2.jpg")
    shutil.copy(tree / "train/malignant/0.jpg", tree / "train/benign/two.jpg")
    result = skinjob("submit", *SMALL, "--dry-run", cwd=project)
    assert result.returncode == 0, result.stderr
    notes = [line for line in result.stdout.splitlines() if line.startswith("note ")]
    assert "2 test images are in train too, byte for byte (first: test/benign/copy.jpg)" in notes[0]
    assert "2 images are in two classes, byte for byte (first: train/benign/two.jpg)" in notes[1]
    info = make_sweep(tree, project / "weights/resnet18.safetensors", project / "runs").info()
    assert info.images.repeated == {"test_in_train": 2, "in_two_classes": 2}


def test_good_images_give_no_note(project: Path) -> None:
    """If all images are good and different, the plan has no note."""
    result = skinjob("submit", *SMALL, "--dry-run", cwd=project)
    assert result.returncode == 0
    assert "note " not in result.stdout
    assert "skipped" not in result.stdout


# Images that change while the job waits


def _same_size(file: Path) -> None:
    file.write_bytes(random.Random(0).randbytes(file.stat().st_size))


def _same_clock(file: Path) -> None:
    """Changes a byte after the pixels, and restores the file's times."""
    times = file.stat()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\0")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.unlink()
        make(file)

    return change


@pytest.mark.train
@pytest.mark.parametrize(
    ("change", "words", "place", "train"),
    [
        (Path.unlink, "no such file", "train/benign/0.jpg", "head"),
        (_same_size, "has changed", "test/malignant/1.jpg", "head"),
        (_same_size, "has changed", "train/benign/0.jpg", "all"),
        (_same_clock, "has changed", "train/benign/0.jpg", "head"),
        (_replace_by(os.mkfifo), "a named pipe, not a file", "train/benign/0.jpg", "head"),
        (_replace_by(Path.mkdir), "a folder, not a file", "test/malignant/1.jpg", "head"),
    ],
    ids=["removed", "garbage", "garbage, all layers", "one byte", "pipe", "folder"],
)
def test_a_job_fails_if_an_image_has_changed_since_the_submit(
    weights: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    words: str,
    place: str,
    train: str,
) -> None:
    """The error names the image; no number comes from an image that was not submitted."""
    from skinjob.train.job import run_job

    data = make_tree(tmp_path / "data", num_train=2, num_test=2)
    run = make_sweep(data, weights, tmp_path / "runs", batch_sizes=[2], train=train).runs()[0]
    change(data / place)
    with pytest.raises(ImagesError, match=f"{place}.*{words}"):
        run_job([run.folder])
    state = run.state()
    assert state.status == "failed"
    assert place in str(state.reason)
    assert not run.predictions_file.exists()
    assert len(run.metrics_file.read_text().splitlines() if run.metrics_file.exists() else []) < 2


# Generated folders and damaged files

Tree = dict[str, dict[str, dict[str, bytes]]]
"""Split, class, file: content."""
GOOD = [encoded(drawn(mode), kind) for mode, kind in (("RGB", "JPEG"), ("L", "PNG"), ("P", "GIF"))]
BAD = [b"", b"GIF89a", b"<html>", GOOD[1][:50], encoded(drawn(size=(9, 9)), "PNG")]
LETTERS = "aB-'\",;%\n\r\t\x1b\\\u2028\u202eé皮" + os.fsdecode(b"\x80\xff")
STEMS = st.text(LETTERS, min_size=1, max_size=4)
IMAGE_NAMES = st.builds(str.__add__, STEMS, st.sampled_from([".jpg", ".PNG", ".tiff", " x.jpg"]))
CLASSES = ["a", "b", "c d"]


def folders(contents: list[bytes], *, least: int) -> st.SearchStrategy[dict[str, bytes]]:
    return st.dictionaries(IMAGE_NAMES, st.sampled_from(contents), min_size=least, max_size=3)


def trees(folder: st.SearchStrategy[dict[str, bytes]]) -> st.SearchStrategy[Tree]:
    """Draws trees of such folders; both splits have the same classes."""
    return st.lists(st.sampled_from(CLASSES), min_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries(
            {s: st.fixed_dictionaries(dict.fromkeys(names, folder)) for s in ("train", "test")}
        )
    )


WHOLE_TREES = trees(folders(GOOD, least=1))
TREES_WITH_BAD_IMAGES = trees(folders([*GOOD, *BAD], least=0))
ANY_TREES = st.dictionaries(
    st.sampled_from(["train", "test"]),
    st.dictionaries(st.sampled_from(CLASSES), folders([*GOOD, *BAD], least=0)),
)


def wrong(tree: Tree) -> set[str]:
    """Returns the paths at which a tree is faulty, found by other code than the scan's."""
    bad = {split for split in ("train", "test") if len(tree.get(split, {})) < 2}
    for split, other in (("train", "test"), ("test", "train")):
        for name, files in tree.get(split, {}).items():
            if other in tree and name not in tree[other]:
                bad.add(f"{split}/{name}")
            if not any(content in GOOD for content in files.values()):
                bad.add(f"{split}/{name}")
            bad |= {f"{split}/{name}/{file}" for file in files if files[file] not in GOOD}
    return bad


@settings(derandomize=True, deadline=None, max_examples=100)
@given(tree=WHOLE_TREES | TREES_WITH_BAD_IMAGES | ANY_TREES)
def test_any_tree_gives_its_images_or_a_list_of_its_faults(
    tmp_path_factory: pytest.TempPathFactory, tree: Tree
) -> None:
    """The scan of any tree returns the images that a job will read, or a line for each fault."""
    folder = tmp_path_factory.mktemp("tree")
    root = folder / "skin_cancer"
    root.mkdir()
    for split, classes in tree.items():
        (root / split).mkdir()
        for name, files in classes.items():
            (root / split / name).mkdir()
            for file, content in files.items():
                (root / split / name / file).write_bytes(content)
    wanted = sorted(printable(path) for path in wrong(tree))
    if wanted:
        with pytest.raises(ImagesError) as fault:
            scan(root)
        lines = [line.removeprefix(f"{root}/") for line in fault.value.details]
        assert sorted(line.split("  ")[0] for line in lines) == wanted
        assert len(fault.value.message.splitlines()) == 1
    else:
        images = scan(root)
        write_index(images, folder / "images.csv")
        assert read_index(folder / "images.csv", root, images.classes) == images
        assert {file.path for file in images.files} == {
            f"{split}/{name}/{file}"
            for split in tree
            for name in tree[split]
            for file in tree[split][name]
        }
    shutil.rmtree(folder)


SAVED: list[tuple[str, dict[str, object]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("GIF", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("PPM", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "jpeg"}),
]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Returns a file with some bits flipped, a part removed, or a part inserted elsewhere."""
    first, last = sorted(draw.sample(range(len(content) + 1), 2))
    match draw.choice(["flip", "flip", "cut", "splice", "end"]):
        case "flip":
            spoilt = bytearray(content)
            for _ in range(draw.randint(1, 8)):
                # Most flips are near the start: after that come pixels, where any value is valid.
                place = draw.randrange(len(spoilt) if draw.random() < 0.5 else min(64, len(spoilt)))
                spoilt[place] ^= 1 << draw.randrange(8)
            return bytes(spoilt)
        case "cut":
            return content[:first] + content[last:]
        case "splice":
            place = draw.randrange(len(content))
            return content[:place] + content[first:last] + content[place:]
        case _:
            return content[:last]


def test_damaged_files_are_taken_or_listed(tree: Path) -> None:
    """No damage to a file makes the scan fail or print a message."""
    draw = random.Random(0)
    picture = drawn(size=(18, 20))
    whole = [encoded(picture, kind, **options) for kind, options in SAVED]
    folder = tree / "train/benign"
    for number in range(600):
        content = damaged(whole[number % len(whole)], draw)
        (folder / f"{number:03}.jpg").write_bytes(content)
    code = (
        "import sys; from pathlib import Path; from skinjob.data.scan import scan\n"
        "print(len(scan(Path(sys.argv[1]), skips_bad=True).skipped))\n"
    )
    words = [sys.executable, "-c", code, str(tree)]
    result = subprocess.run(words, env=ENV, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert 100 < int(result.stdout) < 600  # some files are too damaged, some are not
