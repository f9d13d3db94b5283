"""`skinjob pack`: the results of a sweep in one tar, checked and read on another machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from commands import refusal, skinjob
from sweep_maker import draw_sweep

from skinjob.sweeps.layout import Sweep
from skinjob.sweeps.lease import parse_utc
from skinjob.train import claims

RUN = "bs0032-lr0.01-seed0"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished sweep and its report, as on the cluster."""
    place = tmp_path_factory.mktemp("cluster")
    sweep = draw_sweep(
        place / "runs/my sweep", batch_sizes=(32, 64), epochs=4, has_predictions=True
    )
    (sweep.folder / "images.csv").write_text("path,split,label,bytes,sha256\n")
    sweep.submission_folder.mkdir()
    (sweep.submission_folder / "0.pkl").write_text("private")
    for run in sweep.runs():
        for file in (*run.checkpoint_files, run.folder / ".half.part"):
            file.write_text("large")
        run.log_file.write_text("a log\n")
        run.trained_file("head").write_text("numbers")
    done = skinjob("report", "my sweep", cwd=place, code=0)
    (place / "report.txt").write_text(done.stdout)
    skinjob("pack", cwd=place, code=0)
    return place


@pytest.fixture
def laptop(cluster: Path, tmp_path: Path) -> Path:
    """A folder with the pack alone, as on the laptop."""
    shutil.copy(cluster / "my sweep.tar", tmp_path)
    return tmp_path


def test_a_pack_is_a_bag_without_checkpoints_and_private_files(laptop: Path) -> None:
    """sha256sum checks it anywhere; what only the cluster needs stays there."""
    subprocess.run(["tar", "-xf", "my sweep.tar"], cwd=laptop, check=True)
    bag = laptop / "my sweep"
    for name in ("manifest-sha256.txt", "tagmanifest-sha256.txt"):
        subprocess.run(["sha256sum", "-c", "--quiet", "--strict", name], cwd=bag, check=True)
    packed = {file.relative_to(bag / "data").as_posix() for file in (bag / "data").rglob("*.*")}
    run = f"runs/my sweep/{RUN}/"
    for name in ("config.json", "state.json", "metrics.csv", "predictions.csv", "train.log"):
        assert run + name in packed
    assert {run + "head.safetensors", "runs/my sweep/images.csv"} <= packed
    assert "runs/my sweep/report/index.html" in packed
    assert not [name for name in packed if name.endswith((".pt", ".pkl", ".part"))]
    files = [file for file in (bag / "data").rglob("*") if file.is_file()]
    num_bytes = sum(file.stat().st_size for file in files)
    assert f"Payload-Oxum: {num_bytes}.{len(files)}\n" in (bag / "bag-info.txt").read_text()


def test_equal_results_give_an_equal_pack(cluster: Path) -> None:
    """Two packs of a sweep can be compared by their digest, whenever they were made."""
    for file in (cluster / "runs").rglob("*"):
        os.utime(file)
    skinjob("pack", "my sweep", "--out", "again.tar", cwd=cluster, code=0)
    assert (cluster / "again.tar").read_bytes() == (cluster / "my sweep.tar").read_bytes()
    with tarfile.open(cluster / "again.tar") as tar:  # the last heartbeat, not today
        assert {member.mtime for member in tar} == {parse_utc("2025-03-01T09:10:00Z").timestamp()}
    refused = skinjob("pack", "my sweep", "--out", "again.tar", cwd=cluster)
    assert refusal(refused) == "again.tar exists"


def test_the_report_of_a_pack_is_the_report_of_its_sweep(cluster: Path, laptop: Path) -> None:
    """Page, tables and pictures are equal on the laptop, and the pack stays as packed."""
    here = (cluster / "report.txt").read_text()
    there = skinjob("report", "my sweep.tar", cwd=laptop, code=0)
    moved = here.replace("runs/my sweep/report/", "my sweep-report/")
    assert there.stdout == moved
    report, copy = cluster / "runs/my sweep/report", laptop / "my sweep-report"
    for file in sorted(report.iterdir()):
        assert (copy / file.name).read_bytes() == file.read_bytes(), file.name
    done = skinjob("verify", "my sweep.tar", "my sweep", cwd=laptop, code=0)
    assert done.stdout.count("no fault in") == 2


def test_a_pack_that_changed_on_the_way_is_refused(laptop: Path) -> None:
    """Each file that is changed, missing or new is named; nothing is unpacked."""
    subprocess.run(["tar", "-xf", "my sweep.tar"], cwd=laptop, check=True)
    bag = laptop / "my sweep"
    folder = Sweep(bag / "data/runs/my sweep").runs()[0].folder
    (folder / "metrics.csv").write_text("other")
    (folder / "train.log").unlink()
    (folder / "extra.txt").write_text("x")
    (bag / "bag-info.txt").write_text("other")
    names = {
        f"data/runs/my sweep/{RUN}/metrics.csv": "not as packed",
        f"data/runs/my sweep/{RUN}/train.log": "is missing",
        f"data/runs/my sweep/{RUN}/extra.txt": "is not in manifest-sha256.txt",
        "bag-info.txt": "not as packed",
    }
    done = skinjob("verify", "my sweep", cwd=laptop)
    assert refusal(done).startswith("4 faults: ")
    assert all(f"my sweep/{name}: {fault}\n" in done.stdout for name, fault in names.items())
    bag.rename(laptop / "bad")
    subprocess.run(["tar", "-cf", "bad.tar", "bad"], cwd=laptop, check=True)
    shutil.rmtree(laptop / "bad")
    assert refusal(skinjob("report", "bad.tar", cwd=laptop)) == "bad.tar: not as packed"
    assert sorted(path.name for path in laptop.iterdir()) == ["bad.tar", "my sweep.tar"]


def test_an_unpacked_pack_that_has_changed_is_not_reported(laptop: Path) -> None:
    """A number that was edited in the folder is named, not reported as the cluster's."""
    skinjob("report", "my sweep.tar", "--out", "first", cwd=laptop, code=0)
    skinjob("report", "my sweep.tar", "--out", "second", cwd=laptop, code=0)
    metrics = Path("my sweep/data/runs/my sweep", RUN, "metrics.csv")
    (laptop / metrics).write_text((laptop / metrics).read_text().replace("0.", "0.9"))
    for name, words in {
        "my sweep.tar": "my sweep has changed since it was unpacked",
        "my sweep": "my sweep: not as packed",
    }.items():
        done = skinjob("report", name, "--out", "third", cwd=laptop)
        assert refusal(done) == words
        assert done.stdout == f"{metrics}: not as packed\n"


def test_names_of_any_characters_are_listed(tmp_path: Path) -> None:
    """A list is read as sha256sum reads it; a path that leads out of the pack is a fault."""
    sweep = draw_sweep(tmp_path / "runs/s", batch_sizes=(32,), epochs=4)
    for name in ("a\u2028b", "a\x0bb", "50%", "two\nlines", " * "):
        (sweep.folder / name).write_text("a note")
    skinjob("pack", cwd=tmp_path, code=0)
    skinjob("verify", "s.tar", cwd=tmp_path, code=0)
    subprocess.run(["tar", "-xf", "s.tar"], cwd=tmp_path, check=True)
    skinjob("verify", "s", cwd=tmp_path, code=0)
    with (tmp_path / "s/manifest-sha256.txt").open("a") as manifest:
        manifest.write(f"{'0' * 64}  {tmp_path}/s.tar\n")
    done = skinjob("verify", "s", cwd=tmp_path)
    assert refusal(done).startswith("2 faults: ")


def test_files_that_are_no_pack_are_refused(laptop: Path) -> None:
    """Cut, compressed and other files give an error; another folder is not written to."""
    whole = (laptop / "my sweep.tar").read_bytes()
    with tarfile.open(laptop / "my sweep.tar") as tar:
        largest = max(tar, key=lambda member: member.size)
    (laptop / "cut.tar").write_bytes(whole[: largest.offset_data + largest.size // 2])
    (laptop / "text.csv").write_text("a,b\n")
    with tarfile.open(laptop / "other.tar", "w") as tar:
        tar.add(laptop / "text.csv", "text.csv")
    for name, words in {
        "cut.tar": "cut.tar: not a whole tar: unexpected end of data",
        "text.csv": "text.csv: not a folder, a zip or a tar",
        "other.tar": "other.tar: not a pack: no bagit.txt in it",
    }.items():
        assert refusal(skinjob("report", name, cwd=laptop)) == words
    (laptop / "my sweep").mkdir()
    refused = skinjob("report", "my sweep.tar", cwd=laptop)
    assert refusal(refused) == "my sweep is in the way: it is not this pack"
    assert not list((laptop / "my sweep").iterdir())


def test_a_pack_of_any_name_is_read(cluster: Path, laptop: Path) -> None:
    """A new pack ends in .tar; a renamed pack is unpacked beside itself, with its whole name."""
    refused = skinjob("pack", "my sweep", "--out", "sweep-lr0.05", cwd=cluster, code=2)
    assert "sweep-lr0.05: its name must end in .tar" in refused.stderr
    assert not (cluster / "sweep-lr0.05").exists()
    for name, folder in {
        "results": "results-unpacked",
        "sweep-lr0.05": "sweep-lr0.05-unpacked",
        "sweep-lr0.1.tar": "sweep-lr0.1",
    }.items():
        shutil.copy(laptop / "my sweep.tar", laptop / name)
        skinjob("report", name, "--out", "report", cwd=laptop, code=0)
        skinjob("verify", folder, cwd=laptop, code=0)


def test_a_sweep_that_is_not_over_is_packed_only_when_asked(tmp_path: Path) -> None:
    """No result is left out silently: what is missing is named before and after."""
    sweep = draw_sweep(tmp_path / "runs/s", batch_sizes=(32, 64), updates=300, finished={RUN: 2})
    run = sweep.runs()[0]
    run.update_state()
    (sweep.folder / "sweep.json").write_text(
        sweep.sweep_file.read_text().replace('"slurm"', '"local"')
    )
    (tmp_path / "runs/s/submission").mkdir()
    refused = skinjob("pack", cwd=tmp_path)
    assert refusal(refused) == f"1 of 2 runs not over yet: {RUN} is running, update 166/300"
    done = skinjob("pack", "--unfinished", cwd=tmp_path, code=0)
    assert f"missing: {RUN} is running, update 166/300\n" in done.stdout
    assert "note    no report in it; skinjob report" in done.stdout


def test_no_pack_is_made_while_a_job_computes_the_converged_head(tmp_path: Path) -> None:
    """While a job computes it, the sweep is not complete; what a killed job left is no result."""
    sweep = draw_sweep(tmp_path / "runs/s", batch_sizes=(32,), epochs=4)
    skinjob("pack", "--out", "before.tar", cwd=tmp_path, code=0)
    assert claims.claim(sweep.converged_file)
    refused = skinjob("pack", cwd=tmp_path)
    assert refusal(refused) == "a job is computing the converged head"
    done = skinjob("pack", "--unfinished", "--out", "now.tar", cwd=tmp_path, code=0)
    assert "missing: the converged head, which a job is computing\n" in done.stdout
    mark = sweep.converged_file.with_suffix(".claim")
    mark.write_text(mark.read_text().rpartition(" ")[0] + " 999999999")
    skinjob("pack", "--out", "killed.tar", cwd=tmp_path, code=0)
    for name in ("now.tar", "killed.tar"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "before.tar").read_bytes()
