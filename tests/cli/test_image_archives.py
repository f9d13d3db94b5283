"""Images in a zip or a tar: the same data set as the folder, and nothing that surprises."""

from __future__ import annotations

import io
import random
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import refusal, skinjob
from trees import make_tree

from skinjob.data.scan import scan
from skinjob.data.store import ArchiveStore, open_store
from skinjob.errors import ImagesError

SMALL = ("--cluster", "local", "--batch-sizes", "4", "--dry-run")
IMAGE = "train/benign/0.jpg"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, with files that are not used, and a name that is not ASCII."""
    root = make_tree(tmp_path_factory.mktemp("images") / "skin_cancer", num_train=4, num_test=2)
    (root / IMAGE).rename(root / "train/benign/é 1.JPG ")
    (root / "train/benign/more").mkdir()
    (root / "train/benign/1.jpg").rename(root / "train/benign/more/0.jpg")
    for name in ("train/benign/notes.txt", "test/.hidden/a.jpg", "labels.csv", "train/b.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    return root


def packed(tree: Path, file: Path, kind: str, top: str = "") -> Path:
    """Returns an archive of a tree, with or without its top folder."""
    if not kind.startswith("zip"):
        words = [*kind.split(), file, tree.name if top else "."]
        subprocess.run(words, cwd=tree.parent if top else tree, check=True)
        return file
    method = zipfile.ZIP_STORED if kind == "zip, stored" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(file, "w", method) as archive:
        for path in sorted(tree.rglob("*")):
            archive.write(path, Path(top, path.relative_to(tree)))
    return file


KINDS = ("zip", "zip, stored", "tar -cf", "tar --format=pax -cf")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", ["", "skin_cancer"])
def test_an_archive_is_the_same_data_set_as_its_folder(
    tree: Path, tmp_path: Path, kind: str, top: str
) -> None:
    """Sweeps and cached views are shared, and what is left out is named, wherever images are."""
    packed(tree, tmp_path / f"images.{kind[:3]}", kind, top)
    here, there = scan(tree), scan(tmp_path / f"images.{kind[:3]}")
    assert there.files == here.files
    assert there.fingerprint() == here.fingerprint()
    assert there.left_out == here.left_out
    assert there.sketches is not None
    assert here.sketches is not None
    assert (there.sketches == here.sketches).all()


def write_zip(file: Path, *extra: tuple[zipfile.ZipInfo, bytes]) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        for entry, content in extra:
            archive.writestr(entry, content)


def entry(name: str, mode: int = stat.S_IFREG, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr, info.compress_type = 3, mode << 16, method
    return info


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, IMAGE
    return info


def with_flag(file: Path) -> None:
    """Marks the last member of a zip as encrypted."""
    content = bytearray(file.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)


def with_nul(file: Path) -> None:
    write_zip(file, (entry("train/benign/Q.jpg"), b"x"))
    file.write_bytes(file.read_bytes().replace(b"benign/Q.jpg", b"benign/\0.jpg"))


def overlapping(file: Path) -> None:
    """Lists every member of a zip under three names, as a bomb does with thousands."""
    with zipfile.ZipFile(file, "a") as archive:
        for info in list(archive.filelist):
            for number in range(3):
                twin = entry(f"{number}{info.filename}")
                twin.header_offset, twin.CRC = info.header_offset, info.CRC
                twin.file_size, twin.compress_size = info.file_size, info.compress_size
                archive.filelist.append(twin)
        archive._didModify = True


def in_zip(name: str, mode: int = stat.S_IFREG, **kwargs: int) -> Callable[[Path], None]:
    return lambda file: write_zip(file, (entry(name, mode, **kwargs), b"x"))


def in_tar(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Path], None]:
    def add(file: Path) -> None:
        with tarfile.open(file, "a:") as archive:
            archive.addfile(member(name, kind))

    return add


def sparse(file: Path) -> None:
    hole = file.with_name("hole.jpg")
    with hole.open("wb") as content:
        content.truncate(1 << 20)
    subprocess.run(["tar", "-rSf", file, hole.name], cwd=file.parent, check=True)


HOSTILE = {
    "zip, absolute": (in_zip("/etc/x.jpg"), "/etc/x.jpg is an absolute path"),
    "zip, dots": (in_zip("train/../../x.jpg"), "train/../../x.jpg leads out of the archive"),
    "zip, backslash": (in_zip("train\\benign\\x.jpg"), "has a backslash in its name"),
    "zip, nul": (with_nul, r"train/benign/\x00.jpg has a NUL byte in its name"),
    "zip, twice": (in_zip("./test/benign/0.jpg"), "./test/benign/0.jpg is there twice"),
    "zip, file and folder": (in_zip("train/benign"), "train/benign is there twice"),
    "zip, below a file": (in_zip("labels.csv/x.jpg"), "labels.csv/x.jpg is below a file"),
    "zip, link": (in_zip("x.jpg", stat.S_IFLNK), "x.jpg is a link"),
    "zip, pipe": (in_zip("x.jpg", stat.S_IFIFO), "x.jpg is not a file"),
    "zip, encrypted": (with_flag, "is encrypted"),
    "zip, method": (in_zip("x.jpg", method=zipfile.ZIP_LZMA), "x.jpg is packed by method 14"),
    "zip, bomb": (overlapping, "its members overlap"),
    "tar, absolute": (in_tar("/etc/x.jpg"), "/etc/x.jpg is an absolute path"),
    "tar, dots": (in_tar("../x.jpg"), "../x.jpg leads out of the archive"),
    "tar, twice": (in_tar("test/benign/0.jpg"), "test/benign/0.jpg is there twice"),
    "tar, link": (in_tar("x.jpg", tarfile.SYMTYPE), "x.jpg is a link"),
    "tar, hard link": (in_tar("x.jpg", tarfile.LNKTYPE), "x.jpg is a link"),
    "tar, device": (in_tar("x.jpg", tarfile.CHRTYPE), "x.jpg is not a file"),
    "tar, sparse": (sparse, "hole.jpg is a sparse file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_as_a_whole(tree: Path, tmp_path: Path, kind: str) -> None:
    """A member that could mean another file than its name says is named; nothing is unpacked."""
    spoil, words = HOSTILE[kind]
    program = "zip" if kind.startswith("zip") else "tar -cf"
    file = packed(tree, tmp_path / f"images.{program[:3]}", program)
    spoil(file)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ImagesError) as fault:
        scan(file)
    assert words in fault.value.message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_cut_archive_is_refused_at_once(tree: Path, tmp_path: Path, kind: str) -> None:
    """A copy that broke off is noticed on the login node, before a member is read."""
    whole = packed(tree, tmp_path / f"images.{kind[:3]}", kind).read_bytes()
    file = tmp_path / f"cut.{kind[:3]}"
    end = whole.rstrip(b"\0") if kind.startswith("tar") else whole
    for length in (600, len(end) // 2, len(end) // 512 * 512, len(end) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ImagesError, match="not a whole"):
            open_store(file)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_no_damage_of_an_archive_is_a_crash(tree: Path, tmp_path: Path, kind: str) -> None:
    """Changed bytes give an error, faulty images, or do not matter."""
    content = packed(tree, tmp_path / f"images.{kind[:3]}", kind).read_bytes()
    draws, file = random.Random(0), tmp_path / f"damaged.{kind[:3]}"
    ends = [len(content) - 2000, 0] if kind.startswith("zip") else [0, 0]
    for number in range(60):
        damaged = bytearray(content)
        for _ in range(draws.choice((1, 4, 30))):
            damaged[draws.randrange(ends[number % 2], len(content))] = draws.randrange(256)
        file.write_bytes(damaged)
        try:
            images = scan(file, skips_bad=True)
        except ImagesError:
            continue
        assert all(image.read(images.store) for image in images.files)


def test_a_member_is_read_up_to_its_declared_size(tree: Path, tmp_path: Path) -> None:
    """A member that inflates to more than the index says is faulty, and fills no memory."""
    file = packed(tree, tmp_path / "images.zip", "zip")
    bomb = entry("train/benign/bomb.jpg", method=zipfile.ZIP_DEFLATED)
    write_zip(file, (bomb, bytes(50 << 20)))
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"train/benign/bomb.jpg"))
    content[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    file.write_bytes(content)
    (bad,) = scan(file, skips_bad=True).skipped
    assert bad.fault == "damaged in the archive: its size is not that in the index"


def test_threads_read_an_archive_at_the_same_time(tree: Path, tmp_path: Path) -> None:
    """Decoding threads share one handle and need no lock."""
    images = scan(packed(tree, tmp_path / "images.zip", "zip, stored"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet
    try:
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda file: images.store.read(file.path), images.files * 20))
    finally:
        sys.setswitchinterval(interval)
    assert read == [(tree / file.path).read_bytes() for file in images.files] * 20


def test_an_archive_that_changes_under_a_job_is_noticed(tree: Path, tmp_path: Path) -> None:
    """A job trusts no offset of an archive that was replaced; its error names the image."""
    images = scan(packed(tree, tmp_path / "images.zip", "zip, stored"))
    images.require_in_archive()
    write_zip(images.root, (entry("new.txt"), b"x"))
    with pytest.raises(ImagesError, match="the archive has changed since it was opened"):
        images.files[0].read(images.store)
    (tmp_path / "other").mkdir()
    other = make_tree(tmp_path / "other/skin", num_train=4, num_test=2, classes=("benign", "other"))
    packed(other, tmp_path / "other.zip", "zip").rename(images.root)
    again = type(images)(images.root, images.classes, images.files)
    with pytest.raises(ImagesError, match=r"images\.zip/.* has changed since the sweep was subm"):
        again.require_in_archive()


def test_a_compressed_tar_is_refused_with_the_command_that_mends_it(project: Path) -> None:
    """No image of a compressed tar can be read by itself, so it is decompressed once."""
    packed(project / "skin_cancer", project / "images.tar.gz", "tar -czf")
    done = skinjob("submit", *SMALL, "--data", "images.tar.gz", cwd=project)
    assert refusal(done).startswith("images.tar.gz: compressed as a whole")
    fix = done.stderr.splitlines()[-1].removeprefix("fix:").strip()
    assert fix.startswith("gunzip images.tar.gz && skinjob submit ")
    assert fix.endswith(" --data images.tar")
    subprocess.run(["gunzip", "images.tar.gz"], cwd=project, check=True)
    for words in (("submit", *SMALL, "--data"), ("doctor", *SMALL[:-1], "--data"), ("audit",)):
        done = skinjob(*words, "images.tar", cwd=project)
        assert "8 benign" in done.stdout


def test_pack_images_makes_an_equal_zip_each_time(project: Path) -> None:
    """The zip holds the images alone, and the next commands are printed with its name."""
    (project / "skin_cancer/train/benign/notes.txt").write_text("x")
    done = skinjob("pack-images", "skin_cancer", cwd=project, code=0)
    assert "zip     images.zip, 24 images\n" in done.stdout
    assert "images.zip USER@LOGIN_NODE:skinjob/" in done.stdout
    assert done.stdout.endswith("skinjob submit --data images.zip\n")
    assert scan(project / "images.zip").files == scan(project / "skin_cancer").files
    assert refusal(skinjob("pack-images", "skin_cancer", cwd=project)) == "images.zip exists"
    for path in (project / "skin_cancer").rglob("*"):
        path.touch()
    (project / "skin_cancer/train/benign/bad.jpg").write_text("x")
    refused = skinjob("pack-images", "skin_cancer", "--out", "bad.zip", cwd=project)
    assert refusal(refused).startswith("1 of 25 images faulty")
    assert "skinjob pack-images skin_cancer --skip-bad-images " in refused.stderr
    skinjob("pack-images", "images.zip", "--out", "again.zip", cwd=project, code=0)
    assert (project / "again.zip").read_bytes() == (project / "images.zip").read_bytes()


def test_a_name_in_an_old_code_page_is_read_as_the_format_says(tmp_path: Path) -> None:
    """Names without the mark of UTF-8 are UTF-8 if they can be, else of the IBM PC."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("train/a/aa.jpg", "train/b/bb.jpg"):
            archive.writestr(name, b"x")
    raw = content.getvalue().replace(b"aa.jpg", "é.jpg".encode()).replace(b"bb.jpg", b"\x82b.jpg")
    (tmp_path / "x.zip").write_bytes(raw)
    store = ArchiveStore(tmp_path / "x.zip")
    assert store.size("train/a/é.jpg") == store.size("train/b/éb.jpg") == 1
