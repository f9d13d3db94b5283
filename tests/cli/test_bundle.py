"""A bundle crosses the air gap and installs, or says what is wrong and changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from bundle_maker import (
    BREAKS,
    PYTHON,
    install,
    make_wheel,
    network_attempts,
    pip_wheel,
    stub_bundle,
)
from click.testing import CliRunner
from commands import import_path, refusal, skinjob
from local_server import Site
from trees import make_tree
from untrained import write_untrained

from skinjob import download as download_module
from skinjob.bundle.resolve import is_reachable, read_lock
from skinjob.bundle.target import choose_torch, make_target, read_description
from skinjob.bundle.write import ABOUT, Bundle, split_bundle
from skinjob.cli import cli
from skinjob.errors import BundleError, DownloadError
from skinjob.weights.backbones import BACKBONES
from skinjob.weights.file import list_digest

OTHER = "3.10" if PYTHON != "3.10" else "3.11"
REGISTRY = "https://pypi.org/simple/pip/"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "PAUSES_S", (0.0, 0.0, 0.0))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(name="pip", scope="session")
def _pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pip_wheel(tmp_path_factory.mktemp("pip"))


@pytest.fixture(name="original", scope="session")
def _original(pip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_bundle(tmp_path_factory.mktemp("made") / "bundle", pip).folder


@pytest.fixture(name="bundle")
def _bundle(original: Path, tmp_path: Path) -> Iterator[Path]:
    """A small bundle that a test may change; what it installs is removed."""
    yield shutil.copytree(original, tmp_path / "bundle")
    shutil.rmtree(tmp_path, ignore_errors=True)


def listing(folder: Path) -> list[tuple[str, int]]:
    """Returns every path below a folder, with the time of its last change if it is a file.

    A folder's own time changes when install.sh tries whether a program may run there.
    """
    paths = sorted(folder.rglob("*"))
    times = [0 if path.is_dir() else path.lstat().st_mtime_ns for path in paths]
    return [(str(path.relative_to(folder)), time) for path, time in zip(paths, times, strict=True)]


def describe_as(bundle: Path, key: str, value: str) -> None:
    """Changes a line of BUNDLE.txt, and its digest in SHA256SUMS."""
    about = bundle / ABOUT
    lines = [
        line if line.split()[0] != key else f"{key} {value}"
        for line in about.read_text().split("\n")[:-1]
    ]
    about.write_text("".join(f"{line}\n" for line in lines))
    list_again(bundle, ABOUT)


def list_again(bundle: Path, name: str) -> None:
    """Writes the digest that a file has now into SHA256SUMS."""
    sums = bundle / "SHA256SUMS"
    digest = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    lines = [
        f"{digest}  {name}" if line.endswith(f"  {name}") else line
        for line in sums.read_text().splitlines()
    ]
    sums.write_text("".join(f"{line}\n" for line in lines))


# --- installing -------------------------------------------------------------------------------


@pytest.mark.slow
def test_install_upgrade_and_return(bundle: Path, pip: Path, tmp_path: Path) -> None:
    """It installs without a network, once; an upgrade keeps the old version; a failure undoes."""
    prefix = tmp_path / "my site"
    first = install(bundle, "--prefix", prefix, "--python", sys.executable)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "the stub works" in first.stdout
    assert network_attempts(bundle) == 0
    digest = hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest()
    assert f"digest  {digest} " in first.stdout
    version = (prefix / "current").resolve()
    assert version.name == f"0.1.0-{digest[:12]}"
    assert (prefix / "weights/resnet18.safetensors").read_bytes() == b"weights"
    next_line = first.stdout.splitlines()[-1].removeprefix("next:   ")
    line = f"{next_line.partition(' && skinjob ')[0]} && skinjob && python -c 'import small'"
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True)
    assert done.stdout == "the stub\n", done.stderr

    before = listing(prefix)
    second = install(bundle, "--prefix", prefix, "--python", sys.executable)
    assert f"installed already: {version}\n" in second.stdout
    assert listing(prefix) == before

    newer = stub_bundle(tmp_path / "newer", pip, selftest="print('ok      newer')").folder
    assert install(newer, "--prefix", prefix, "--python", sys.executable).returncode == 0
    assert (prefix / "current").resolve() != version
    assert version.is_dir()

    back = install(bundle, "--prefix", prefix, "--python", sys.executable)
    assert f"switched back to: {version}\n" in back.stdout
    assert (prefix / "current").resolve() == version

    before = listing(prefix)
    broken = stub_bundle(tmp_path / "broken", pip, selftest=BREAKS).folder
    failed = install(broken, "--prefix", prefix, "--python", sys.executable)
    assert failed.returncode == 1
    *output, error, fix = failed.stderr.splitlines()
    assert output == ["the stub broke"]
    assert error == "error: the new version fails its self-test; nothing was changed"
    assert fix.startswith("fix:   sh ")
    names = [name for name, _ in listing(prefix)]
    assert names == [name for name, _ in before]
    assert (prefix / "current").resolve() == version


@pytest.mark.slow
def test_a_newer_bundle_keeps_the_weights_of_queued_jobs(
    bundle: Path, pip: Path, tmp_path: Path
) -> None:
    """PREFIX/weights keeps each file, also the user's own and those behind an earlier link."""
    words, weights = ("--prefix", tmp_path / "site", "--python", sys.executable), "site/weights"
    assert install(bundle, *words).returncode == 0
    folder, version = tmp_path / weights, (tmp_path / "site/current").resolve()
    shutil.rmtree(folder)
    folder.symlink_to("current/weights")  # as an earlier installer left it
    own = folder / "own.safetensors"
    own.write_bytes(b"own")
    list_digest(own, hashlib.sha256(b"own").hexdigest())
    newer = stub_bundle(tmp_path / "newer", pip, backbone=BACKBONES["resnet50"]).folder
    done = install(newer, *words)
    assert done.returncode == 0, done.stderr
    assert not folder.is_symlink()
    names = ["own.safetensors", "resnet18.safetensors", "resnet50.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", *names]
    assert skinjob("verify", weights, cwd=tmp_path, code=0).stdout.endswith("no fault in 3 files\n")
    shutil.rmtree(version)
    assert (folder / "resnet18.safetensors").read_bytes() == b"weights"

    (folder / "resnet18.safetensors").unlink()
    (folder / "resnet18.safetensors").write_bytes(b"changed")
    done = install(bundle, *words)
    kept = f"{folder}/resnet18.safetensors has other content, and stays; "
    assert f"note    {kept}the bundle has --weights {version}/weights/resnet18" in done.stdout
    assert (folder / "resnet18.safetensors").read_bytes() == b"changed"


@pytest.mark.slow
def test_a_bundle_can_carry_images_and_a_python(pip: Path, tmp_path: Path) -> None:
    """install.sh unpacks the Python into the version, and names the images for submit.

    The archive stands for a build of python-build-standalone: its Python starts the test's own.
    """
    interpreter = tmp_path / "interpreter"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    archive, images = tmp_path / "cpython.tar.gz", tmp_path / "i.zip"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(interpreter, f"python/bin/python{PYTHON}")
    images.write_bytes(b"images")
    extras = {"python/python.tar.gz": archive, "images/images.zip": images}
    bundle = stub_bundle(tmp_path / "bundle", pip, extras=extras).folder
    done = install(bundle, "--prefix", tmp_path / "site", PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok      Python {PYTHON} ({bundle}/python/python.tar.gz)\n" in done.stdout
    assert f"images: skinjob submit --data {bundle}/images/images.zip\n" in done.stdout
    assert (tmp_path / f"site/current/python/bin/python{PYTHON}").is_file()
    stub_bundle(tmp_path / "bundle", pip)
    assert not (bundle / "python").exists()
    assert not (bundle / "images").exists()


def python_archive(file: Path, head: bytes, version: str = "3.12") -> Path:
    """Writes an archive as python-build-standalone does, with the start of a program."""
    (file.parent / "program").write_bytes(head)
    with tarfile.open(file, "w:gz") as tar:
        tar.add(file.parent / "program", f"python/bin/python{version}")
    return file


def elf(machine: int) -> bytes:
    """Returns the start of a program for Linux on a processor."""
    return b"\x7fELF".ljust(18, b"\0") + machine.to_bytes(2, "little")


def test_a_python_for_another_target_is_refused(tmp_path: Path) -> None:
    """The archive must have the Python that the packages are for, and the cluster's processor."""
    archives = {
        "3.9": (elf(62), "3.9", "no python/bin/python3.12 in it, but python3.9"),
        "none": (elf(62), "2.7", "no python/bin/python3.N in it"),
        "arm": (elf(183), "3.12", "is for aarch64; the cluster has x86_64"),
        "mac": (b"\xcf\xfa\xed\xfe".ljust(20), "3.12", "is no program for Linux on x86_64"),
    }
    for name, (head, version, problem) in archives.items():
        python_archive(tmp_path / name, head, version)
        words = ("bundle", "--python", "3.12", "--cpu", "--with-python", name)
        assert problem in refusal(skinjob(*words, cwd=tmp_path))
    for file, problem in ((__file__, "no .tar.gz ("), ("nope", "nope: No such file or directory")):
        words = ("bundle", "--python", "3.12", "--cpu", "--with-python", file)
        assert problem in refusal(skinjob(*words, cwd=tmp_path))


def test_a_carried_python_is_the_python_of_the_bundle(tmp_path: Path) -> None:
    """Where no node has a usable Python, the archive says its version; without uv it ends there."""
    text = NODE.format("login", "2.28", "3.6.8", "535.104.05", "8.0 NVIDIA A100")
    (tmp_path / "cluster.txt").write_text(text)
    words = ("bundle", "--for", "cluster.txt")
    refused = skinjob(*words, cwd=tmp_path, PATH="")
    assert refusal(refused).startswith("cluster.txt: no Python 3.10 to 3.14 that all nodes run")
    assert " --with-python FILE.tar.gz " in refused.stderr
    python_archive(tmp_path / "python.tar.gz", elf(62))
    taken = skinjob(*words, "--with-python", "python.tar.gz", cwd=tmp_path, PATH="")
    assert taken.stdout.startswith("for     Python 3.12, glibc 2.28, x86_64, driver 535")


def truncated(bundle: Path) -> None:
    wheel = bundle / "wheels/small-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:300])


def flipped(bundle: Path) -> None:
    wheel = bundle / "wheels/small-1.0-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    content[40] ^= 1
    wheel.write_bytes(content)


def missing(bundle: Path) -> None:
    (bundle / "wheels/small-1.0-py3-none-any.whl").unlink()


def extra(bundle: Path) -> None:
    (bundle / "wheels/evil-1.0-py3-none-any.whl").write_bytes(b"")
    (bundle / "wheels/.DS_Store").write_bytes(b"")  # a Mac's: no fault


def half_copied(bundle: Path) -> None:
    (bundle / "SHA256SUMS").unlink()


FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated wheel": (truncated, "wheels/small-1.0-py3-none-any.whl: not as packed", "rm "),
    "flipped bit": (flipped, "wheels/small-1.0-py3-none-any.whl: not as packed", "rm "),
    "unreadable wheel": (
        lambda _: None,
        "wheels/small-1.0-py3-none-any.whl: not as packed",
        "rm ",
    ),
    "missing wheel": (missing, "wheels/small-1.0-py3-none-any.whl: is missing", "rsync "),
    "extra wheel": (extra, "wheels/evil-1.0-py3-none-any.whl: is not in the list", "rm "),
    "half a copy": (half_copied, "{bundle}: not a whole bundle: no SHA256SUMS", "rsync "),
    "processor": (
        lambda bundle: describe_as(bundle, "arch", "riscv64"),
        f"bundle is for riscv64; this machine is {os.uname().machine}",
        "skinjob bundle --arch ",
    ),
    "glibc": (
        lambda bundle: describe_as(bundle, "glibc", "2.99"),
        "bundle is for glibc 2.99 or newer; this machine has 2.",
        "skinjob bundle --glibc ",
    ),
    "python": (
        lambda bundle: describe_as(bundle, "python", "3.7"),
        "bundle is for Python 3.7; found " + ".".join(map(str, sys.version_info[:3])),
        "module load python/3.7; ",
    ),
    "disk": (
        lambda bundle: describe_as(bundle, "room_kb", str(10**13)),
        "{tmp} has ",
        "sh {bundle}/install.sh --prefix ",
    ),
    "files": (
        lambda bundle: describe_as(bundle, "room_files", str(10**13)),
        "{tmp} has ",
        "sh {bundle}/install.sh --prefix ",
    ),
    "noexec": (
        lambda bundle: (bundle.parent / "there").mkdir(),
        "{tmp}/there does not let programs run (noexec)",
        "sh {bundle}/install.sh --prefix ",
    ),
    "read-only": (
        lambda bundle: (bundle.parent / "there").mkdir(),
        "{tmp}/there: cannot be written",
        "sh {bundle}/install.sh --prefix ",
    ),
    "a file": (
        lambda bundle: (bundle.parent / "there").touch(),
        "{tmp}/there: is not a folder",
        "sh {bundle}/install.sh --prefix ",
    ),
    "another program": (
        lambda bundle: (bundle.parent / "there/current").mkdir(parents=True),
        "{tmp}/there/current: not a link, so not an installation of skinjob",
        "sh {bundle}/install.sh --prefix ",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_refused_install_changes_nothing(name: str, bundle: Path, tmp_path: Path) -> None:
    """Each fault is an error with its fix, in two lines, before anything is written."""
    spoil, error, fix = FAULTS[name]
    spoil(bundle)
    prefix = tmp_path / "there"
    options = {"noexec": "noexec", "read-only": "ro"}.get(name)
    mount = f"mount -t tmpfs -o {options} none '{prefix}'" if options else ""
    if name == "unreadable wheel":  # a disk fault: /proc/PID/mem cannot be read from its start
        mount = f"mount --bind /proc/$$/mem '{bundle}/wheels/small-1.0-py3-none-any.whl'"
    before = listing(tmp_path)
    done = install(bundle, "--prefix", prefix, "--python", sys.executable, before=mount)
    places = {"bundle": bundle, "tmp": tmp_path}
    assert refusal(done).startswith(error.format(**places))
    assert done.stderr.splitlines()[1].startswith(f"fix:   {fix.format(**places)}")
    (tmp_path / "counts").unlink()
    assert listing(tmp_path) == before


@pytest.mark.slow
def test_a_python_is_run_and_not_trusted(bundle: Path, tmp_path: Path) -> None:
    """A Python that does not run is passed over, and all that were found are named."""
    tools = tmp_path / "tools"
    tools.mkdir()
    stubs = {f"python{PYTHON}": "exit 127", "python3": "echo 3.9.18", "python": "echo 3.8.1"}
    stubs[f"python{OTHER}"] = f"echo '{OTHER}.4 (free-threaded)'"
    for name, line in stubs.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    describe_as(bundle, "python", "3.77")
    done = install(bundle, PATH=f"{tools}:/usr/bin:/bin")
    words = refusal(done)
    assert words.startswith("bundle is for Python 3.77; found 3.9.18, 3.8.1")
    assert f"{OTHER}.4 (free-threaded)" in words
    real = Path(sys.base_prefix, f"bin/python{PYTHON}")
    (tools / "python").unlink()
    (tools / "python").symlink_to(real)
    describe_as(bundle, "python", PYTHON)
    done = install(bundle, PATH=f"{tools}:/usr/bin:/bin")
    assert f" ({tools}/python)\n" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "skinjob/current").exists(), "beside the bundle, without --prefix"


@pytest.mark.slow
def test_swapped_content_is_refused_by_its_hash(bundle: Path, tmp_path: Path) -> None:
    """A wheel that SHA256SUMS was made to fit, but not requirements.txt, is not installed."""
    make_wheel(bundle / "wheels", "small", "1.0", {"small.py": b"import os\n"})
    list_again(bundle, "wheels/small-1.0-py3-none-any.whl")
    done = install(bundle, "--prefix", tmp_path / "there", "--python", sys.executable)
    *output, error, _ = done.stderr.splitlines()
    assert error == "error: pip could not install the wheels; nothing was changed"
    assert any("small" in line for line in output)
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
def test_what_a_killed_install_left_is_removed(bundle: Path, tmp_path: Path) -> None:
    """Leftovers of a killed install go; another install that still runs is not disturbed."""
    digest = hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest()
    version = tmp_path / f"there/versions/0.1.0-{digest[:12]}"
    version.mkdir(parents=True)
    (tmp_path / "python").symlink_to(sys.executable)
    words, here = ("--prefix", "there", "--python", "./python"), f"cd '{tmp_path}'"
    (version / "installing").write_text(f"{os.uname().nodename} {os.getpid()}\n")
    refused = refusal(install(bundle, *words, before=here))
    assert refused.startswith(f"{version}: another install is writing it")
    assert version.exists()
    (version / "installing").write_text(f"{os.uname().nodename} 999999999\n")
    (version / "half").touch()
    done = install(bundle, *words, before=here)  # paths of the current folder work, too
    assert done.returncode == 0, done.stderr
    assert not (version / "half").exists()


# --- writing ----------------------------------------------------------------------------------


def test_a_broken_download_is_resumed(pip: Path, tmp_path: Path) -> None:
    """Each wheel is held to its digest; a second call sends nothing and removes what is old."""
    site = Site(cuts=[1000])
    first = stub_bundle(tmp_path / "bundle", pip, site=site)
    assert site.ranges[:2] == ["", "bytes=1000-"]
    (first.folder / "wheels/old-1.0-py3-none-any.whl").touch()
    site.headers.clear()
    second = stub_bundle(tmp_path / "bundle", pip, site=site)
    assert (site.headers, second) == ([], first), "the same bytes, the same digest"
    check = subprocess.run(
        ["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=first.folder, capture_output=True
    )
    assert check.returncode == 0
    carried = first.folder / "weights/resnet18.safetensors"  # the name that submit looks for
    assert carried.read_bytes() == b"weights"
    (first.folder / "wheels" / pip.name).write_bytes(b"another")
    stub_bundle(tmp_path / "bundle", pip, site=site)
    assert len(site.headers) > 0
    site.status = 404
    missing(first.folder)
    with pytest.raises(DownloadError, match="404"):
        stub_bundle(tmp_path / "bundle", pip, site=site)
    assert not (first.folder / "SHA256SUMS").exists(), "half a bundle does not install"


def test_images_and_folder_are_checked_before_packages(tmp_path: Path) -> None:
    """A fault of --out or --data is reported before anything is resolved, with a fix that works.

    Without PATH there is no uv, which resolves.
    """
    data, words = make_tree(tmp_path / "images"), ("bundle", "--python", "3.12")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").touch()
    for place, fault in (("other", "holds other files"), ("other/thesis.txt", "Not a directory")):
        refused = skinjob(*words, "--data", data, "--out", place, cwd=tmp_path, PATH="")
        assert refusal(refused).startswith(f"{place}: {fault}")
    archive = shutil.make_archive(str(tmp_path / "made"), "gztar", tmp_path, "images")
    refused = skinjob(*words, "--data", archive, cwd=tmp_path, PATH="")
    assert refusal(refused).endswith("so no image can be read by itself")
    gunzip = f"gunzip {archive} && skinjob bundle --python 3.12 --data {tmp_path}/made.tar"
    assert refused.stderr.splitlines()[-1] == f"fix:   {gunzip}"
    next(data.rglob("*.jpg")).write_bytes(b"")
    refused = skinjob(*words, "--data", "images", cwd=tmp_path, PATH="")
    assert refused.stderr.splitlines()[-2].startswith("error: 1 of 24 images faulty")
    pack, again, *_ = refused.stderr.splitlines()[-1].removeprefix("fix:   ").split(" && ")
    assert again.startswith("skinjob bundle --python 3.12 --data good.zip ")
    skinjob(*pack.split()[1:], cwd=tmp_path, code=0)
    assert (tmp_path / "good.zip").is_file()
    assert not (tmp_path / "skinjob-bundle").exists()


@pytest.mark.parametrize(("made", "carried"), [("zip", "zip"), ("tar", "tar"), ("", "zip")])
def test_images_are_carried_by_what_they_are(
    made: str, carried: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive keeps its kind, whatever its name is; a folder becomes a zip.

    Packages and weights have no part in it, so nothing is resolved and only the names are taken.
    """
    data = make_tree(tmp_path / "images")
    if made:
        archive = shutil.make_archive(str(tmp_path / "made"), made, tmp_path, "images")
        data = Path(archive).rename(tmp_path / "my.images")
    extras: list[dict[str, Path]] = []

    def take(*arguments: object) -> Bundle:
        extras.append(cast(dict[str, Path], arguments[-1]))
        return Bundle(tmp_path / "bundle", "", 0, 0, 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("skinjob.bundle.resolve.resolve", lambda *_: ([], ""))
    monkeypatch.setattr("skinjob.bundle.write.write_bundle", take)
    monkeypatch.setattr("skinjob.commands.bundle._read_weights", lambda _: None)
    words = ["--python", "3.12", "--data", str(data)]
    CliRunner().invoke(cli, ["bundle", *words], catch_exceptions=False)
    assert [list(names) for names in extras] == [[f"images/images.{carried}"]]
    (file,) = extras[0].values()
    assert file.is_relative_to(tmp_path), "not in /tmp, which may be small"


def test_a_folder_with_other_files_is_left_alone(pip: Path, tmp_path: Path) -> None:
    """`--out` never writes among files that are not a bundle's."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/thesis.txt").touch()
    with pytest.raises(BundleError, match="holds other files"):
        stub_bundle(tmp_path / "bundle", pip)
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["thesis.txt"]


def test_parts_join_to_the_bundle_or_name_what_is_wrong(bundle: Path, tmp_path: Path) -> None:
    """`--split` makes parts no larger than asked; join.sh names a missing and a broken part."""
    parts = split_bundle(Bundle(bundle, "", 0, 0, 0), 300_000)
    names = sorted(path.name for path in parts.glob("*.tar.*"))
    assert names[0] == "bundle.tar.00001", "more than 999 are in order, too"
    assert len(names) > 3
    assert all((parts / name).stat().st_size <= 300_000 for name in names)
    shutil.move(bundle, tmp_path / "laptop")
    (parts / names[1]).rename(tmp_path / "kept")
    shutil.copy(parts / names[0], parts / names[1])
    (parts / names[2]).rename(tmp_path / "kept2")
    done = subprocess.run(["sh", parts / "join.sh"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[:2] == [
        f"error: {names[1]}: not as packed",
        f"error: {names[2]}: is missing",
    ]
    assert not bundle.exists()
    (tmp_path / "kept").replace(parts / names[1])
    (tmp_path / "kept2").replace(parts / names[2])
    done = subprocess.run(["sh", parts / "join.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert skinjob("verify", "bundle", cwd=tmp_path, code=0).stdout.startswith("bundle: no fault ")
    extra(bundle)
    verified = skinjob("verify", "bundle", cwd=tmp_path, code=1)
    assert "bundle/wheels/evil-1.0-py3-none-any.whl: is not in SHA256SUMS\n" in verified.stdout


def test_an_index_may_leave_out_sizes() -> None:
    """pytorch.org's index says no sizes, and names its builds with a plus sign."""
    url = "https://example.org/whl/cpu/torch-2.14.1%2Bcpu-cp312-cp312-manylinux_2_28_x86_64.whl"
    wheel = f'{{ url = "{url}", hashes = {{ sha256 = "ab" }} }}'
    text = f'[[packages]]\nname = "torch"\nversion = "2.14.1+cpu"\nwheels = [{wheel}]\n'
    (torch,) = read_lock(text)
    assert torch.file_name == "torch-2.14.1+cpu-cp312-cp312-manylinux_2_28_x86_64.whl"
    assert torch.size_bytes is None


# --- the target -------------------------------------------------------------------------------

NODE = "node {}\narch x86_64\nglibc {}\npython {} /usr/bin/python3\ndriver {}\ngpu {}\n"
REFUSED = {
    "no python": ([], "the cluster's Python is not known", "skinjob bundle --print-describe"),
    "old python": (["--python", "3.9"], "Python 3.9: skinjob and torch run on", "skinjob bundle"),
    "glibc": (
        ["--python", "3.12", "--glibc", "2.17"],
        "cluster has glibc 2.17; torch >= 2.9 needs 2.28 (RHEL 8 or newer)",
        "apptainer exec IMAGE.sif sh describe.sh",
    ),
    "not a glibc": (
        ["--python", "3.12", "--glibc", "8"],
        "glibc '8': a version such as",
        "getconf",
    ),
    "driver": (
        ["--python", "3.12", "--driver", "470"],
        "driver 470 knows no CUDA 12",
        "skinjob bundle --python 3.12 --driver 470 --cpu",
    ),
    "GPU": (
        ["--python", "3.12", "--sm", "60"],
        "these torch builds have no code for sm_60",
        "skinjob bundle --python 3.12 --sm 60 --cpu",
    ),
    "processor": (
        ["--python", "3.12", "--arch", "ppc64le"],
        "no torch for the processor ppc64le",
        "skinjob bundle --python 3.12 --arch ppc64le --arch x86_64",
    ),
    "no file": (["--for", "cluster.txt"], "cluster.txt: No such file", "skinjob bundle --print"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_target_that_cannot_work_is_refused(name: str, tmp_path: Path) -> None:
    """A target without torch is refused before packages are resolved, with a fix."""
    words, error, fix = REFUSED[name]
    done = skinjob("bundle", *words, cwd=tmp_path, PATH="")
    assert refusal(done).startswith(error)
    assert fix.removeprefix("skinjob bundle") in done.stderr.splitlines()[1]


@pytest.mark.parametrize(
    ("asked", "requirement", "note"),
    [
        ({"driver": 580, "sm": 80}, (), ""),
        ({"driver": 535}, ("torch<2.11",), "as driver 535 runs no CUDA 13"),
        ({"driver": 580, "sm": 70}, ("torch<2.11",), "newer builds have no code for sm_70"),
        ({}, ("torch<2.11",), "the driver is unknown"),
        ({"driver": 470, "is_cpu": True}, (), ""),
        ({"driver": 580, "sm": 90, "arch": "aarch64"}, (), ""),
        ({"arch": "aarch64", "is_cpu": True}, ("torch<2.11",), ""),
    ],
)
def test_the_driver_and_the_gpu_choose_torch(
    asked: dict[str, int | str | bool], requirement: tuple[str, ...], note: str
) -> None:
    """The newest torch that runs there is bundled, and an older one is explained."""
    build, words = choose_torch(make_target({}, {"python": "3.12", **asked}))
    assert build.requirements == requirement
    assert note in words


def test_this_machine_describes_itself(tmp_path: Path) -> None:
    """describe.sh needs only sh, and what it writes is what `bundle --for` reads."""
    (tmp_path / "describe.sh").write_text(
        skinjob("bundle", "--print-describe", cwd=tmp_path, code=0).stdout
    )
    path = f"{Path(sys.base_prefix, 'bin')}:/usr/bin:/bin"
    done = subprocess.run(
        ["sh", "describe.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": path, "HOME": str(tmp_path)},
        check=True,
    )
    (tmp_path / "cluster.txt").write_text(done.stdout)
    facts = read_description(tmp_path / "cluster.txt")
    assert (facts["arch"], facts["glibc"]) == (
        os.uname().machine,
        os.confstr("CS_GNU_LIBC_VERSION").split()[1],  # type: ignore[union-attr]
    )
    assert facts["python"] >= PYTHON
    assert f"space HOME {tmp_path}: " in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_nodes_are_described_together(tmp_path: Path) -> None:
    """The oldest glibc, driver and GPU of all nodes count, and a Python that each of them runs."""
    file = tmp_path / "cluster.txt"
    login = NODE.format("login", "2.34", "3.12.4", "unknown", "unknown")
    login += "python 3.11.7 /opt/python3.11\npython 3.14.0 /opt/python free-threaded\n"
    nodes = [
        NODE.format("gpu1", "2.28", "3.11.9", "580.65.06", "9.0 NVIDIA H100"),
        NODE.format("gpu2", "2.34", "3.11.9", "535.104.05", "7.0 Tesla V100"),
    ]
    file.write_text(login + "".join(nodes))
    expected = {"arch": "x86_64", "glibc": "2.28", "driver": "535", "sm": "70", "python": "3.11"}
    assert read_description(file) == expected
    file.write_text(login.replace("3.1", "3.8.1") + "module python/3.12.1\n")
    assert read_description(file)["python"] == "3.12"
    file.write_text(login.replace("3.1", "3.8.1"))
    with pytest.raises(BundleError, match="that all nodes run"):
        read_description(file)
    assert read_description(file, python="3.12")["python"] == "3.12", "as the fix says"
    file.write_text(login + nodes[0].replace("x86_64", "aarch64"))
    with pytest.raises(BundleError, match="nodes with aarch64 and x86_64"):
        read_description(file)
    assert read_description(file, arch="aarch64")["driver"] == "580", "as the fix says"


# --- with a package index ---------------------------------------------------------------------


@pytest.fixture(name="registry", scope="session")
def _registry() -> None:
    if not is_reachable(REGISTRY):
        pytest.skip(f"{REGISTRY} cannot be reached from here")


DISGUISE = """
import platform, sys, sysconfig
sys.platform = "darwin"
platform.system = lambda: "Darwin"
platform.machine = lambda: "arm64"
platform.release = lambda: "24.0.0"
platform.mac_ver = lambda *_: ("15.0", ("", "", ""), "arm64")
sysconfig.get_platform = lambda: "macosx-15.0-arm64"
"""


def python_like_a_macs(folder: Path) -> Path:
    """Returns a Python that says of itself that it runs on a Mac."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "sitecustomize.py").write_text(DISGUISE)
    return folder / "bin/python"


@pytest.mark.slow
@pytest.mark.usefixtures("registry")
def test_the_laptop_has_no_part_in_the_list(tmp_path: Path) -> None:
    """From Linux, from a Mac and from another Python, the packages for a cluster are the same."""
    words = ("bundle", "--python", "3.12", "--driver", "535", "--dry-run")
    pythons = [sys.executable, str(python_like_a_macs(tmp_path / "mac"))]
    pythons += map(str, Path(sys.base_prefix).parent.glob(f"{OTHER}.*/bin/python"))  # pyenv's
    lists = [skinjob(*words, cwd=tmp_path, code=0, UV_PYTHON=exe).stdout for exe in pythons]
    assert "torch 2.10 (CUDA 12.8), as driver 535 runs no CUDA 13\n" in lists[0]
    assert "nvidia-cudnn-cu12" in lists[0]
    assert set(lists) == {lists[0]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mac"]


@pytest.mark.train
def test_the_self_test_minds_a_gpu_that_torch_cannot_use(tmp_path: Path) -> None:
    """On a machine with a GPU whose driver is too old, nothing is switched over."""
    write_untrained(tmp_path / "weights/resnet18.safetensors")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0: Tesla K80\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "skinjob.bundle.selftest", "580"],
        cwd=tmp_path,
        env=os.environ
        | import_path()
        | {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("cannot use this machine's GPU: it needs driver 580 or newer\n")


@pytest.mark.slow
@pytest.mark.usefixtures("registry")
def test_without_an_index_nothing_is_written(tmp_path: Path) -> None:
    """No internet is an error that names the address."""
    words = [sys.executable, "-m", "skinjob", "bundle", "--python", "3.12"]
    done = subprocess.run(
        ["unshare", "-rn", *words],
        cwd=tmp_path,
        env=os.environ | import_path() | {"UV_HTTP_RETRIES": "0", "UV_NO_CACHE": "1"},
        capture_output=True,
        text=True,
    )
    assert refusal(done).startswith("Failed to fetch: https://")
    assert list(tmp_path.iterdir()) == []
