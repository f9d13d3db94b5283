"""A fetch leaves weights that are checked, name their source, and are not fetched twice."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import state_dict_maker as make
from commands import import_path, refusal, skinjob
from local_server import LOGIN_PAGE, Site, serving
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from untrained import write_untrained

from skinjob import download as download_module
from skinjob.errors import DownloadError, SkinjobError, WeightsError
from skinjob.weights import fetch as fetch_module
from skinjob.weights.backbones import DEFAULT, Preprocessing
from skinjob.weights.fetch import fetch_weights, find_source
from skinjob.weights.file import (
    WeightsInfo,
    find_weights,
    read_backbone,
    read_weights_info,
    write_demo_weights,
)

NAME = "resnet18.safetensors"


@pytest.fixture(autouse=True)
def _no_pauses_and_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "PAUSES_S", (0.0, 0.0, 0.0))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def _no_big_files_left(tmp_path: Path) -> Iterator[None]:
    """Each test makes 50 to 150 MB; pytest keeps the folders of three sessions."""
    yield
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_size > 1_000_000:
            path.unlink()


@pytest.fixture(name="pth", scope="session")
def _pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet18 in the layout of the published file, with its digest in the name."""
    path = tmp_path_factory.mktemp("published") / "made.pth"
    make.write_old_layout(path, make.resnet18_arrays())
    return path.rename(path.with_name(f"resnet18-{_digest(path)[:8]}.pth"))


@pytest.fixture(name="site")
def _site(pth: Path) -> Iterator[Site]:
    with serving(Site(files={f"/{pth.name}": pth.read_bytes()})) as site:
        yield site


@pytest.fixture(name="made", scope="session")
def _made(pth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder that a fetch has filled; tests copy what they change."""
    return fetch(tmp_path_factory.mktemp("made"), str(pth)).path.parent


@pytest.fixture(name="out")
def _out(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "weights")


def fetch(out: Path, source: str | None = None, sha256: str | None = None) -> WeightsInfo:
    """Fetches weights that did not exist before, and returns their description."""
    info, was_there = fetch_weights(out, source, sha256)
    assert not was_there
    return info


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _visible(folder: Path) -> list[str]:
    return [name for name in _names(folder) if not name.startswith(".")]


# --- what a fetch leaves ----------------------------------------------------------------------


def test_a_fetch_over_http_leaves_checked_weights(site: Site, pth: Path, tmp_path: Path) -> None:
    """Weights arrive bit for bit, with a digest that `sha256sum -c` accepts, and no other file."""
    site.cuts = [5_000_000, 20_000_000]
    info = fetch(tmp_path / "weights", f"{site.base}/{pth.name}")
    path = tmp_path / "weights" / NAME
    assert (info.path, info.source) == (path, f"{site.base}/{pth.name}")
    assert (info.sha256, info.size_bytes) == (_digest(path), path.stat().st_size)
    tensors, expected = load_file(path), make.resnet18_arrays()
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    check = ["sha256sum", "-c", "SHA256SUMS"]
    done = subprocess.run(check, cwd=path.parent, capture_output=True, text=True)
    assert done.stdout == f"{NAME}: OK\n"
    assert _names(path.parent) == [".fetch.lock", "SHA256SUMS", NAME]


@pytest.mark.train
@pytest.mark.parametrize("layout", ["old", "new"])
def test_the_safetensors_equal_what_torch_loads(tmp_path: Path, layout: str) -> None:
    """Weights made without torch equal those of torch.load, for the old and the new layout."""
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    path = tmp_path / "made.pth"
    if layout == "old":
        make.write_old_layout(path, make.resnet18_arrays(seed=1))
    else:
        torch.save(models.resnet18().state_dict(), path)
    fetched = fetch(tmp_path / "weights", str(path), _digest(path))
    tensors, expected = load_file(fetched.path), torch.load(path, weights_only=True)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        array = tensor.detach().numpy()
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        assert tensors[name].tobytes() == array.tobytes(), name
    missing, unexpected = models.resnet18().load_state_dict(
        {name: torch.from_numpy(array) for name, array in tensors.items()}, strict=False
    )
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)


def test_the_metadata_say_where_the_weights_come_from(made: Path, pth: Path) -> None:
    """The file itself holds architecture, source, digest, preprocessing and licence."""
    with safe_open(made / NAME, framework="np") as content:
        assert content.metadata() == {
            "architecture": "resnet18",
            "source": pth.name,
            "source_sha256": _digest(pth),
            "untrained": "false",
            "licence": "not known: this is not the file that torchvision publishes;"
            " ask who made it",
            "resize": "256",
            "crop": "224",
            "interpolation": "bilinear",
            "mean": "[0.485, 0.456, 0.406]",
            "std": "[0.229, 0.224, 0.225]",
        }


def test_the_published_file_is_recognized_from_any_source(
    pth: Path, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From torchvision or from a disk, the published file gives the same bytes and licence."""
    url = f"{site.base}/{pth.name}"
    ours = replace(DEFAULT, url=url, sha256=_digest(pth), size_bytes=pth.stat().st_size)
    monkeypatch.setattr(fetch_module, "DEFAULT", ours)
    monkeypatch.setattr(fetch_module, "BACKBONES", {ours.name: ours})
    by_default = fetch(tmp_path / "a")
    from_disk = fetch(tmp_path / "b", str(pth))
    assert by_default.sha256 == from_disk.sha256
    assert from_disk.source == url
    with safe_open(from_disk.path, framework="np") as content:
        licence = content.metadata()["licence"]
    assert "BSD-3-Clause" in licence
    assert "ImageNet" in licence


def test_the_published_file_has_a_known_size_and_digest() -> None:
    """Without --source, torchvision's IMAGENET1K_V1 is fetched and all 64 digits are compared."""
    wanted = find_source(None, None)
    assert wanted.location == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert wanted.sha256 == "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
    assert wanted.size_bytes == 46_830_571
    mirror = find_source("https://mirror.example/a/resnet18-f37072fd.pth", None)
    assert mirror.sha256 == wanted.sha256


def test_the_same_weights_have_one_digest_in_every_version(made: Path) -> None:
    """A sweep identifies its weights by digest, so weights that are fetched again still fit."""
    digest = "6c21e36c46313e92f1c2f884e71206b3f63f7025cfd5b32ab4bf5580c9b24a0a"  # since 2026
    assert read_weights_info(made / NAME).sha256 == digest


def test_the_weights_contain_no_password_or_token(pth: Path) -> None:
    """The file holds a mirror's address without user name, password and query."""
    url = f"https://me:secret@mirror.example/{pth.name}?token=secret"
    assert find_source(url, None).public == f"https://mirror.example/{pth.name}"


def test_other_files_keep_their_digests(pth: Path, tmp_path: Path) -> None:
    """A fetch adds or replaces its line in SHA256SUMS; the lines of other files stay."""
    other = f"{'a' * 64}  images.tar\n"
    (tmp_path / "SHA256SUMS").write_text(f"{other}{'b' * 64} *{NAME}\n")
    fetched = fetch(tmp_path, str(pth))
    assert (tmp_path / "SHA256SUMS").read_text() == f"{other}{fetched.sha256}  {NAME}\n"


def test_a_source_file_is_not_changed(pth: Path, tmp_path: Path) -> None:
    """A --source on disk stays as it is, and no file is written beside it."""
    source = tmp_path / "browser" / pth.name
    source.parent.mkdir()
    shutil.copy(pth, source)
    before = source.stat().st_mtime_ns
    fetch(tmp_path / "weights", str(source))
    assert _names(source.parent) == [pth.name]
    assert source.stat().st_mtime_ns == before
    assert _digest(source) == _digest(pth)


def test_the_lines_to_copy_quote_the_paths(made: Path, pth: Path, tmp_path: Path) -> None:
    """The lines to copy carry both files, the one that resumes first, and survive a space."""
    shutil.copytree(made, tmp_path / "my weights")
    done = skinjob("fetch-weights", "--source", pth, "--out", "my weights", cwd=tmp_path)
    files = f"'my weights/{NAME}' 'my weights/SHA256SUMS'"
    where = "USER@LOGIN_NODE:skinjob/weights/"
    rsync, sftp, scp = done.stdout.split("copy it (")[1].splitlines()[1:4]
    assert rsync.startswith(f"  rsync -rt --partial {files} {where} ")
    assert scp.startswith(f"  scp {files} {where} ")
    batch = subprocess.run(["sh", "-c", sftp.split("|")[0]], capture_output=True, text=True).stdout
    puts = [f"put {shlex.quote(f'my weights/{name}')}" for name in (NAME, "SHA256SUMS")]
    assert batch.splitlines() == ["cd skinjob/weights/", *puts]
    assert f"my weights/{NAME} is already complete\n" in done.stdout


# --- weights that exist already ---------------------------------------------------------------


def test_good_weights_are_not_fetched_again(out: Path, pth: Path) -> None:
    """If the weights are there and undamaged, a fetch asks no server and writes nothing."""
    before = (out / NAME).stat().st_mtime_ns
    (out / ".fetch.lock").unlink()
    info, was_there = fetch_weights(out, f"http://127.0.0.1:1/{pth.name}")
    assert was_there
    assert _names(out) == ["SHA256SUMS", NAME]
    assert info.source == pth.name
    assert (out / NAME).stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["flipped", "cut off", "no digest", "untrained", "other source"])
def test_bad_weights_are_replaced(out: Path, pth: Path, harm: str) -> None:
    """A fetch replaces weights that are damaged, unlisted, untrained or of another source."""
    path, sound = out / NAME, _digest(out / NAME)
    if harm == "flipped":
        _flip(path, -100)
    elif harm == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    elif harm == "no digest":
        (out / "SHA256SUMS").unlink()
    else:
        path.unlink()
        write_untrained(path)
    if harm == "other source":
        _rewrite(path, untrained="false", source_sha256="0" * 64)
    assert fetch(out, str(pth)).sha256 == sound == read_weights_info(path).sha256


def test_a_damaged_file_stays_until_its_replacement_is_checked(out: Path, site: Site) -> None:
    """A fetch that fails does not change the file that was there, even a damaged file."""
    _flip(out / NAME, -100)
    before = _digest(out / NAME)
    site.files["/w-01234567.pth"] = b"not what was promised"
    with pytest.raises(DownloadError):
        fetch_weights(out, f"{site.base}/w-01234567.pth")
    assert _digest(out / NAME) == before


def test_a_fetch_removes_the_partial_file_of_a_killed_fetch(pth: Path, tmp_path: Path) -> None:
    """The next fetch removes an incomplete safetensors file."""
    (tmp_path / f".{NAME}.abc.part").write_bytes(b"half")
    fetch_weights(tmp_path, str(pth))
    assert _names(tmp_path) == [".fetch.lock", "SHA256SUMS", NAME]


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _rewrite(path: Path, **changes: str) -> None:
    """Saves a weights file again with other metadata, and its digest in SHA256SUMS."""
    with safe_open(path, framework="np") as content:
        metadata = content.metadata() | changes
    save_file(load_file(path), path, {key: value for key, value in metadata.items() if value})
    (path.parent / "SHA256SUMS").write_text(f"{_digest(path)}  {path.name}\n")


# --- errors of a fetch ------------------------------------------------------------------------


def _refused(out: Path, message: str, source: str, sha256: str | None = None) -> SkinjobError:
    """Returns the error of a fetch, after a check that no visible file was written."""
    with pytest.raises((DownloadError, WeightsError), match=message) as raised:
        fetch_weights(out, source, sha256)
    assert not out.exists() or _visible(out) == []
    return raised.value


def test_a_flipped_byte_is_an_error_and_not_resumed(
    site: Site, pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error shows both digests of a damaged download, and the download is removed."""
    content = bytearray(site.files[f"/{pth.name}"])
    content[1_000_000] ^= 1
    site.files[f"/{pth.name}"] = bytes(content)
    damaged = hashlib.sha256(content).hexdigest()
    url = f"{site.base}/{pth.name}"
    monkeypatch.setattr(sys, "argv", ["skinjob", "fetch-weights", "--source", url])
    error = _refused(tmp_path, f"{url}: damaged, .*{damaged}, {_digest(pth)[:8]} expected", url)
    assert error.fix == f"skinjob fetch-weights --source {url}"
    assert _names(tmp_path) == [".fetch.lock"]


@pytest.mark.slow
def test_a_bad_partial_file_costs_one_more_transfer(site: Site, pth: Path, tmp_path: Path) -> None:
    """If an earlier fetch left bad bytes, the digest shows it and all bytes are fetched again."""
    (tmp_path / f".resnet18-{_digest(pth)[:8]}.pth.part").write_bytes(b"bad bytes")
    fetch_weights(tmp_path, f"{site.base}/{pth.name}")
    assert site.ranges == ["bytes=9-", ""]
    assert load_file(tmp_path / NAME).keys() == make.resnet18_arrays().keys()


def test_a_flipped_byte_in_a_source_file_is_refused(pth: Path, tmp_path: Path) -> None:
    """A damaged --source on disk is refused and not changed."""
    bad = tmp_path / pth.name
    shutil.copy(pth, bad)
    _flip(bad, 1_000_000)
    _refused(tmp_path / "weights", f"--source {bad}: damaged", str(bad))
    assert bad.stat().st_size == pth.stat().st_size


def test_an_incomplete_source_file_is_refused_with_its_size(pth: Path, tmp_path: Path) -> None:
    """The error of an incomplete file shows its size, and the published file's size if known."""
    half = tmp_path / "resnet18-f37072fd.pth"
    half.write_bytes(bytes(1000))
    _refused(
        tmp_path / "weights", "incomplete or another file: 1,000 of 46,830,571 bytes", str(half)
    )
    half = tmp_path / pth.name  # the complete size of this file is not known
    half.write_bytes(pth.read_bytes()[:1_000_000])
    _refused(
        tmp_path / "weights", "damaged, incomplete or another file: 1,000,000 bytes", str(half)
    )


def test_a_login_page_is_named_as_a_page(site: Site, pth: Path, tmp_path: Path) -> None:
    """The page of a captive portal is refused as HTML, from the network and from a file."""
    site.files[f"/{pth.name}"] = LOGIN_PAGE
    _refused(tmp_path / "a", "an HTML page came instead", f"{site.base}/{pth.name}")
    page = tmp_path / pth.name
    page.write_bytes(LOGIN_PAGE)
    _refused(tmp_path / "b", "an HTML page, not weights", str(page))


HUGGING_FACE = {"resnet.embedder.embedder.convolution.weight": np.zeros((64, 3, 7, 7), np.float32)}
POINTERS = {
    "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:5c10\nsize 46830571\n",
    "annex": b"/annex/objects/SHA256E-s46830571--5c10.pth\n",
}


@pytest.mark.parametrize("kind", ["LFS", "annex", "Hugging Face", "ours"])
def test_a_source_of_another_kind_is_named_as_what_it_is(
    tmp_path: Path, weights: Path, kind: str
) -> None:
    """The error names a pointer of Git LFS, the file of another library, or a converted file."""
    file = tmp_path / "resnet18-f37072fd.pth"
    if kind in POINTERS:
        file.write_bytes(POINTERS[kind])
        words = "a (Git LFS|git-annex) pointer, not the weights"
    elif kind == "ours":
        shutil.copy(weights, file)
        words = "skinjob fetch-weights has already made this file"
    else:
        save_file(HUGGING_FACE, file, {"format": "pt"})
        words = "'resnet.embedder.*' is not a tensor of resnet18, .*vit_b_16 .Hugging Face's names"
        with pytest.raises(WeightsError, match=words):
            read_weights_info(file)
    _refused(tmp_path / "weights", words, str(file))


@pytest.mark.train
def test_the_fix_for_a_resnet18_of_another_program_converts_it(
    tmp_path: Path, weights: Path
) -> None:
    """A single pasted command makes weights from torchvision's tensors without metadata."""
    save_file(load_file(weights), tmp_path / "other one.safetensors")
    with pytest.raises(WeightsError, match="of another program, without metadata") as raised:
        read_weights_info(tmp_path / "other one.safetensors")
    convert, again = raised.value.fix.split(" && ")
    python = shlex.join([sys.executable])
    typed = f"{python}{convert.removeprefix('python')} && {python} -m {again} --out made"
    environment = os.environ | import_path()
    subprocess.run(["bash", "-c", typed], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "made" / weights.name).exists()


def test_a_404_is_an_error(site: Site, tmp_path: Path) -> None:
    """The error of a mirror without the file shows the mirror's answer."""
    _refused(tmp_path, "answered 404", f"{site.base}/gone-01234567.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weights.pth", None), "weights.pth: its name has no digest"),
        (("https://m.example/w.pth", None), "its name has no digest"),
        (
            ("w-01234567.pth", "f" * 64),
            "ffffffff, but the file name says 01234567",
        ),
        (("w-01234567.pth", "0123"), "--sha256 0123: 4 characters, a SHA-256 has 64 hex digits"),
        (("ftp://m.example/w-01234567.pth", None), "neither an http.s. URL nor a file"),
        (("absent-01234567.pth", None), "absent-01234567.pth: No such file"),
        ((".", "0" * 64), "Is a directory"),
    ],
)
def test_a_source_without_a_single_known_digest_is_refused(
    tmp_path: Path, arguments: tuple[str, str | None], message: str
) -> None:
    """A source without a digest, with two digests, or that is not a file is refused by name."""
    _refused(tmp_path, message, *arguments)


def test_a_source_of_another_network_is_refused(
    pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published files of another network than --arch are refused by digest, others by tensors."""
    with pytest.raises(WeightsError, match="the weights of resnet18, but --arch is vit_b_16"):
        find_source("https://mirror.example/resnet18-f37072fd.pth", None, "vit_b_16")
    assert find_source(None, None, "resnet50").backbone.name == "resnet50"
    monkeypatch.setattr(sys, "argv", ["skinjob", "fetch-weights", "--arch", "resnet34"])
    with pytest.raises(WeightsError, match="not torchvision's ResNet34: layer1") as raised:
        fetch_weights(tmp_path, str(pth), arch="resnet34")
    assert raised.value.fix == "skinjob fetch-weights --arch resnet34 --arch resnet18"
    assert _visible(tmp_path) == []


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """A weights file with code in it is refused although its digest is right; no code runs."""
    mark = tmp_path / "it-ran"
    run = make.call(make.name("posix", "system"), make.text(f"touch '{mark}'"))
    path = make.write_archive(tmp_path / "w.pth", make.START + run + make.STOP, {})
    _refused(tmp_path / "weights", "uses posix.system", str(path), _digest(path))
    assert not mark.exists()


def test_a_useless_download_is_not_kept(site: Site, tmp_path: Path) -> None:
    """A download with the right digest that is not a ResNet18 is removed."""
    path = make.write_old_layout(tmp_path / "x.pth", {"a": np.zeros(3, np.float32)})
    site.files = {"/x.pth": path.read_bytes()}
    _refused(tmp_path / "w", "not torchvision's ResNet18", f"{site.base}/x.pth", _digest(path))
    assert _names(tmp_path / "w") == [".fetch.lock"]


def _without(arrays: dict[str, np.ndarray]) -> None:
    del arrays["layer3.1.bn2.bias"]


def _with_more(arrays: dict[str, np.ndarray]) -> None:
    arrays["layer1.2.conv1.weight"] = np.zeros((64, 64, 3, 3), np.float32)


def _with_seven_classes(arrays: dict[str, np.ndarray]) -> None:
    arrays |= {"fc.weight": np.zeros((7, 512), np.float32), "fc.bias": np.zeros(7, np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, r"layer3\.1\.bn2\.bias is missing \(float32 \(256,\) expected\)$"),
        (_with_more, r"layer1\.2\.conv1\.weight is not a tensor of it$"),
        (
            _with_seven_classes,
            r"fc\.weight is float32 \(7, 512\), float32 \(1000, 512\) expected"
            r" \(2 differences in total\)$",
        ),
    ],
)
def test_another_architecture_is_refused_by_its_tensor(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    """The error names a tensor that is missing, unknown or of another shape."""
    arrays = make.resnet18_arrays()
    change(arrays)
    path = make.write_old_layout(tmp_path / "w.pth", arrays)
    _refused(
        tmp_path / "weights", f"not torchvision's ResNet18: {message}", str(path), _digest(path)
    )


@pytest.mark.train
@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_torchvisions_other_networks_are_refused(tmp_path: Path, name: str) -> None:
    """A ResNet34 or ResNet50 is not accepted as a ResNet18."""
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        network = getattr(models, name)()
    torch.save(network.to_empty(device="cpu").state_dict(), tmp_path / "w.pth")
    path = tmp_path / "w.pth"
    _refused(tmp_path / "o", "ResNet18: layer.* differences in total", str(path), _digest(path))


def test_a_weights_folder_that_cannot_be_written_is_an_error(pth: Path, tmp_path: Path) -> None:
    """A weights folder that is a file is an error with a fix."""
    (tmp_path / "weights").write_text("")
    result = skinjob("fetch-weights", "--source", pth, cwd=tmp_path)
    assert refusal(result) == "weights: File exists"
    assert "fix:   ls -ld " in result.stderr


@pytest.mark.slow
def test_a_disk_that_fills_during_the_conversion_keeps_the_download(
    site: Site, pth: Path, tmp_path: Path
) -> None:
    """If the disk has room only for the download, that is an error; later, no byte comes twice."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        url = f"{site.base}/{pth.name}"
        _refused(disk, r"disk: No space left on device: [\d,]{10} bytes needed, [\d,]+ free", url)
        subprocess.run(["mount", "-o", "remount,size=120m", str(disk)], check=True)
        fetch_weights(disk, url)
        assert len(site.headers) == 1
        assert _visible(disk) == ["SHA256SUMS", NAME]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- interrupted, and two at once -------------------------------------------------------------

FETCH = textwrap.dedent("""
    import sys
    from pathlib import Path
    from skinjob.weights.fetch import fetch_weights
    print(fetch_weights(Path(sys.argv[1]), sys.argv[2])[0].sha256)
""")


def _start(out: Path, url: str) -> subprocess.Popen[str]:
    # Tests that are started in the background ignore SIGINT, and so do their child processes.
    use_sigint = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", use_sigint + FETCH, str(out), url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for_bytes(out: Path, process: subprocess.Popen[str]) -> Path:
    """Waits until the partial file has bytes, and returns it."""
    while process.poll() is None:
        for path in out.glob(".resnet18-*.pth.part"):
            if path.stat().st_size:
                return path
        time.sleep(0.01)
    raise AssertionError(process.communicate())


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_fetch_leaves_no_weights_and_resumes(
    site: Site, pth: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    """After Ctrl-C or a kill there are no weights; the next fetch continues where it stopped."""
    site.hold_after = 10_000_000
    url = f"{site.base}/{pth.name}"
    process = _start(tmp_path, url)
    partial = _wait_for_bytes(tmp_path, process)
    process.send_signal(stop)
    _, stderr = process.communicate()
    assert stop == signal.SIGKILL or "KeyboardInterrupt" in stderr
    assert _visible(tmp_path) == []
    kept = partial.stat().st_size
    site.hold_after = None
    site.go_on.set()
    fetch_weights(tmp_path, url)
    assert site.ranges == ["", f"bytes={kept}-"]
    assert read_weights_info(tmp_path / NAME).source_sha256 == _digest(pth)


@pytest.mark.slow
def test_two_fetches_at_once_do_not_mix(site: Site, pth: Path, tmp_path: Path) -> None:
    """The second fetch waits for the first and says so; no byte comes twice."""
    site.hold_after = 10_000_000
    url = f"{site.base}/{pth.name}"
    first = _start(tmp_path, url)
    _wait_for_bytes(tmp_path, first)
    second = _start(tmp_path, url)
    message = second.stderr.readline() if second.stderr else ""
    assert (
        message
        == f"waiting for another fetch-weights or demo (which locks {tmp_path}/.fetch.lock)\n"
    )
    site.go_on.set()
    digests = [process.communicate()[0].strip() for process in (first, second)]
    assert digests == [_digest(tmp_path / NAME)] * 2
    assert len(site.headers) == 1


# --- reading the weights ----------------------------------------------------------------------


def test_weights_describe_themselves(made: Path, pth: Path) -> None:
    """A reader gets the same digest, source and architecture from the file as the fetch had."""
    info = read_weights_info(made / NAME)
    assert info.sha256 == _digest(made / NAME)
    assert info.size_bytes == (made / NAME).stat().st_size
    assert (info.backbone.name, info.source) == ("resnet18", pth.name)
    assert info.source_sha256 == _digest(pth)
    assert info.listed
    assert not info.untrained


def test_missing_weights_lead_to_the_fetch(tmp_path: Path) -> None:
    """The fix of missing weights is the command that fetches them."""
    with pytest.raises(WeightsError, match=rf"{tmp_path}/{NAME}: no such file") as raised:
        read_weights_info(tmp_path / NAME)
    assert raised.value.fix.startswith("make fetch-weights ")


def test_weights_damaged_on_the_way_are_refused(out: Path) -> None:
    """If a bit flips between laptop and cluster, the error shows both digests."""
    promised = _digest(out / NAME)
    _flip(out / NAME, -100)
    with pytest.raises(WeightsError, match=f"damaged: .*{_digest(out / NAME)}.* says {promised}"):
        read_weights_info(out / NAME)


def test_weights_without_their_digest_can_be_used(out: Path) -> None:
    """Weights that were copied without SHA256SUMS are read, and marked as not listed."""
    (out / "SHA256SUMS").unlink()
    assert not read_weights_info(out / NAME).listed


@pytest.mark.parametrize("content", [b"", bytes(100), b"\xff" * 100])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    """The error says that the file is not a safetensors file."""
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(WeightsError, match="not a safetensors file, or incomplete"):
        read_weights_info(tmp_path / NAME)


def test_incomplete_weights_are_refused(out: Path) -> None:
    """An incomplete weights file is refused even without SHA256SUMS."""
    (out / "SHA256SUMS").unlink()
    (out / NAME).write_bytes((out / NAME).read_bytes()[:-1])
    with pytest.raises(WeightsError, match="not a safetensors file, or incomplete"):
        read_weights_info(out / NAME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet9"}, "architecture resnet9, resnet18, resnet34, .* expected"),
        (
            {"architecture": ""},
            "a safetensors file of another program, without metadata",
        ),
        ({"source_sha256": ""}, "its metadata cannot be used"),
        ({"mean": "[1, 2]"}, "its metadata cannot be used"),
        ({"resize": "wide"}, "its metadata cannot be used"),
    ],
)
def test_weights_with_other_metadata_are_refused(
    out: Path, changes: dict[str, str], message: str
) -> None:
    """A safetensors file is refused if its metadata are missing, wrong or of another network."""
    _rewrite(out / NAME, **changes)
    with pytest.raises(WeightsError, match=message):
        read_weights_info(out / NAME)


def test_the_tensors_of_weights_are_checked_too(out: Path) -> None:
    """A file whose metadata say ResNet18 is refused if a tensor does not fit."""
    arrays = load_file(out / NAME)
    arrays["conv1.weight"] = arrays["conv1.weight"].astype(np.float16)
    with safe_open(out / NAME, framework="np") as content:
        metadata = content.metadata()
    (out / "SHA256SUMS").unlink()
    save_file(arrays, out / NAME, metadata)
    with pytest.raises(WeightsError, match=r"conv1\.weight is F16 .*, float32 .* expected"):
        read_weights_info(out / NAME)


# --- untrained --------------------------------------------------------------------------------


def test_untrained_weights_say_so(tmp_path: Path) -> None:
    """Random weights are marked as untrained, in the file and for its readers, and are listed."""
    info = write_untrained(tmp_path / NAME, seed=3)
    assert info.untrained
    assert info.listed
    assert info.source == "untrained (random numbers, seed 3)"
    assert info.source_sha256 == ""
    with safe_open(info.path, framework="np") as content:
        assert content.metadata()["untrained"] == "true"


SMALL = replace(DEFAULT, preprocessing=Preprocessing(64, 64))


@pytest.mark.train
def test_the_weights_of_a_demo_say_so_and_keep_their_numbers(tmp_path: Path) -> None:
    """Tensors of any memory order are written correctly, with the input size and the kind."""
    torch = pytest.importorskip("torch")
    model = pytest.importorskip("torchvision.models").resnet18(num_classes=3)
    model = model.to(memory_format=torch.channels_last)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write_untrained(tmp_path / NAME)  # of an earlier demo
    info = write_demo_weights(tmp_path / NAME, tensors, SMALL, "here")
    assert (info.kind, info.untrained, info.listed) == ("demo", False, True)
    assert info.backbone == read_backbone(info.path) == SMALL
    assert find_weights(info.path, "demo") == info
    written = load_file(info.path)
    for name in tensors.keys() - {"fc.weight", "fc.bias"}:
        assert np.array_equal(written[name], tensors[name]), name


@pytest.mark.slow
def test_a_fetch_replaces_the_demos_weights(out: Path, pth: Path, tmp_path: Path) -> None:
    """A fetch replaces the weights that a demo made; a demo does not replace fetched weights."""
    tensors = load_file(out / NAME)
    path = tmp_path / NAME
    write_demo_weights(path, tensors, SMALL, "here")
    assert fetch(tmp_path, str(pth)).kind == "fetched"
    assert find_weights(path, "demo") is None
    with pytest.raises(WeightsError, match="holds fetched weights"):
        write_demo_weights(path, tensors, SMALL, "here")


@pytest.mark.parametrize(
    "harm", [{"kind": "other"}, {"crop": "0"}, {"crop": "4096"}, {"std": "[0, 1, 1]"}]
)
def test_metadata_that_cannot_be_trained_with_are_refused(out: Path, harm: dict[str, str]) -> None:
    """Training takes input size and normalisation from the metadata, so bad values are errors."""
    _rewrite(out / NAME, **harm)
    with pytest.raises(WeightsError, match=next(iter(harm))):
        read_weights_info(out / NAME)
