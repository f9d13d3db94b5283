"""Whatever a file holds, reading it gives values that are right or an error in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sweep_maker import draw_sweep
from trees import make_sweep, make_tree

from skinjob.cli import main
from skinjob.commands.options import MAX_RANGE, IntegerList, NumberList
from skinjob.commands.sources import JOB_TABLES, read_file
from skinjob.config import TrainConfig
from skinjob.data.images import ImageSet, read_index, write_index
from skinjob.data.scan import scan
from skinjob.errors import ConfigError, ImagesError, RunError, SkinjobError
from skinjob.report.findings import missing
from skinjob.report.tables import MetricsFile, group_runs, read_run, read_sweep
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import METRICS, RunState
from skinjob.weights.file import SUMS_NAME, list_digest, listed_digest

few = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
many = settings(few, max_examples=600)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
THREE = "\N{FULLWIDTH DIGIT THREE}"
ODD = st.sampled_from(
    (
        *(b"\0", b'"', b"\r", b"\n", b"\r\n", b",", b"-", b"_", b" ", b".", b"\xff"),
        *(b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"nan", b"1e999", b"9" * 30, THREE.encode()),
        *(b"\0" * 512, b'"' + b"x" * 200_000),
    )
)
Edits = list[tuple[int, int, bytes]]
EDITS = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 3), ODD | st.binary(max_size=3)),
    min_size=1,
    max_size=3,
)


def edited(content: bytes, edits: Edits) -> bytes:
    """Returns *content* with some of its bytes put in place of a few others."""
    for at, length, new in edits:
        start = at % (len(content) + 1)
        content = content[:start] + new + content[start + length :]
    return content


def tried(read: Callable[[], Any], refusal: type[SkinjobError]) -> Any:
    """Returns what reading gives, or the error in which it ends."""
    try:
        return read()
    except refusal as error:
        return error


# --- metrics.csv ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A run, the bytes of its metrics.csv, and what they say."""

    run: Run
    content: bytes
    file: MetricsFile


@pytest.fixture
def written(tmp_path: Path) -> Written:
    run = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=3).runs()[0]
    return Written(run, run.metrics_file.read_bytes(), read_run(run))


@many
@given(EDITS)
@example([(0, 0, b"\xef\xbb\xbf")])
@example([(300, 0, b'"')])
@example([(300, 0, b'"' + b"x" * 200_000)])
def test_a_damaged_csv_is_named_or_still_a_table(written: Written, edits: Edits) -> None:
    """No damage ends in a traceback, and none mixes up runs, epochs, batch sizes or types."""
    written.run.metrics_file.write_bytes(edited(written.content, edits))
    read = tried(lambda: read_run(written.run), RunError)
    if isinstance(read, RunError):
        assert f"{written.run.metrics_file}, line " in read.message
        assert len(read.message) < 1000
        return
    assert len(read.texts) == len(read.values) <= 3
    assert all(text.isprintable() for row in read.texts for text in row)
    for values, row in zip(read.values, written.file.values, strict=False):
        for name, value, before in zip(METRICS, values, row, strict=True):
            assert type(value) is type(before) or str(value) == "nan", name
            assert value == before or name not in ("run", "epoch")


@pytest.mark.parametrize("value", ["x", "0\0", '"', "0x1", "True", "0\r0", "\udcff"], ids=ascii)
def test_a_value_that_no_job_writes_is_refused(written: Written, value: str) -> None:
    """A number is a number, and a quote or a line break in a text does not move the columns."""
    is_text = value not in ('"', "0\r0")
    for column, name in enumerate(METRICS):
        lines = written.content.decode().split("\r\n")
        cells = lines[2].split(",")
        cells[column] = value
        lines[2] = ",".join(cells)
        damaged = "\r\n".join(lines).encode("utf-8", "surrogateescape")
        written.run.metrics_file.write_bytes(damaged)
        found = tried(lambda: read_run(written.run), RunError)
        if name in ("sweep", "time_utc") and is_text and isinstance(found, MetricsFile):
            assert found.texts[1][column].isprintable()
        else:
            assert re.search(r"metrics\.csv, line [34]: ", found.message), name


@pytest.mark.parametrize(("column", "value"), [("batch_size", "33"), ("seed", "7")])
def test_a_wrong_digit_moves_no_row_to_another_curve(
    written: Written, column: str, value: str
) -> None:
    """Which curve a row belongs to is in the run's folder, and not in the row."""
    lines = [line.split(",") for line in written.content.decode().splitlines()]
    lines[2][list(METRICS).index(column)] = value
    written.run.metrics_file.write_text("\n".join(map(",".join, lines)), encoding="utf-8")
    [series] = group_runs([read_sweep(written.run.sweep)])
    assert (series.batch_size, series.epochs, series.num_counted) == (32, 3, 1)


# --- config.json, state.json, sweep.json ------------------------------------------------------


def record_of(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Draws what a file of *kind* may hold when some of its values were spoilt."""
    good = asdict(kind(data="d", weights="w", batch_size=1) if kind is TrainConfig else kind())
    names = st.sampled_from([field.name for field in fields(kind)] + ["newer"])
    return st.dictionaries(names, JSON, max_size=4).map(lambda odd: good | odd)


def is_of_its_types(record: Any) -> bool:
    """Says whether every value of a record is of the type that its class gives it."""
    return all(
        isinstance(getattr(record, name), int | float if kind is float else kind)
        for name, kind in get_type_hints(type(record)).items()
    )


@few
@given(record_of(RunState) | JSON)
@example({"heartbeat_utc": "yesterday"})
@example({"error": 3, "status": "failed"})
def test_a_state_is_of_its_types_or_refused(written: Written, values: Any) -> None:
    """Whoever reads a state need not look at it twice, and the report goes on without it."""
    run = written.run
    run.state_file.write_text(json.dumps(values), encoding="utf-8")
    state = tried(run.state, RunError)
    if isinstance(state, RunError):
        assert str(run.state_file) in state.message
    else:
        assert is_of_its_types(state)
        times = [said for name, said in asdict(state).items() if name.endswith("_utc") and said]
        assert all(datetime.fromisoformat(said.removesuffix("Z")) for said in times)
    assert len(missing([read_sweep(run.sweep)])) <= 1


@few
@given(record_of(TrainConfig) | JSON)
@example({"batch_size": "32", "data": "d", "weights": "w"})
@example({"batch_size": 0, "data": "d", "weights": "w"})
@example({"data": "d"})
def test_a_config_is_of_its_types_or_refused(written: Written, values: Any) -> None:
    """A job starts with values that can be trained with, or with an error that names the file."""
    written.run.config_file.write_text(json.dumps(values), encoding="utf-8")
    config = tried(written.run.config, RunError)
    if isinstance(config, RunError):
        assert str(written.run.config_file) in config.message
    else:
        assert is_of_its_types(config)


@few
@given(
    st.dictionaries(
        st.sampled_from(["runs", "recipe", "weights", "images", "jobs", "created_utc"]),
        JSON | st.dictionaries(st.sampled_from(["epochs", "counts", "kind", "untrained"]), JSON),
    )
    | JSON
)
@example({"runs": ["\0"], "recipe": {"epochs": 1}})
@example({"runs": ["a"], "recipe": {"epochs": "1"}})
@example({"runs": 3})
def test_a_sweep_file_is_of_its_shape_or_refused(written: Written, values: Any) -> None:
    """A sweep.json that was edited, or is another program's, gives a table or an error."""
    sweep = written.run.sweep
    old = json.loads(sweep.sweep_file.read_text(encoding="utf-8"))
    odd = old | values if isinstance(values, dict) else values
    sweep.sweep_file.write_text(json.dumps(odd), encoding="utf-8")
    table = tried(lambda: read_sweep(sweep), RunError)
    sweep.sweep_file.write_text(json.dumps(old), encoding="utf-8")
    if isinstance(table, RunError):
        assert str(sweep.folder) in table.message
    else:
        assert type(table.num_epochs) is type(table.num_compared) is int
        assert type(table.weights_kind) is str


@few
@given(st.binary(max_size=40) | st.sampled_from([b"[" * 100_000, b"9" * 5_000, b"\xff\xfe{}"]))
def test_what_is_no_json_is_refused(written: Written, content: bytes) -> None:
    """Bytes of any kind are an error that names the file."""
    run = written.run
    readers: list[tuple[Path, Callable[[], Any]]] = [
        (run.state_file, run.state),
        (run.config_file, run.config),
        (run.sweep.sweep_file, run.sweep.info),
    ]
    for file, read in readers:
        file.write_bytes(content)
        with pytest.raises(RunError, match=re.escape(str(file))):
            read()


# --- images.csv -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return scan(make_tree(tmp_path_factory.mktemp("data") / "skin_cancer", num_train=3, num_test=2))


@few
@given(edits=EDITS)
@example([(0, 0, b"\xef\xbb\xbf")])
@example([(100, 0, b'"' + b"x" * 200_000)])
def test_a_damaged_list_of_images_is_refused_or_seen(
    images: ImageSet, tmp_path: Path, edits: Edits
) -> None:
    """What reads as other images has another fingerprint, which the job looks at."""
    file = tmp_path / "images.csv"
    write_index(images, file)
    file.write_bytes(edited(file.read_bytes(), edits))
    found = tried(lambda: read_index(file, images.root, images.classes), ImagesError)
    if isinstance(found, ImagesError):
        assert str(file) in found.message
    elif found.fingerprint() == images.fingerprint():
        seen = [(image.path, image.split, image.label) for image in found.files]
        assert seen == [(image.path, image.split, image.label) for image in images.files]


def test_every_cut_of_a_list_of_images_is_seen(images: ImageSet, tmp_path: Path) -> None:
    """Fewer images are never the images that were submitted."""
    file = tmp_path / "images.csv"
    write_index(images, file)
    content = file.read_bytes()
    for cut in range(len(content.rstrip())):
        file.write_bytes(content[:cut])
        found = tried(lambda: read_index(file, images.root, images.classes), ImagesError)
        assert isinstance(found, ImagesError) or found.fingerprint() != images.fingerprint()


def test_a_job_does_not_train_on_a_part_of_the_images(tmp_path: Path, weights: Path) -> None:
    """A list of images that lost its end stops the job, with the file's name."""
    job = pytest.importorskip("skinjob.train.job")
    data = make_tree(tmp_path / "skin_cancer", num_train=4, num_test=2)
    sweep = make_sweep(data, weights, tmp_path / "runs", batch_sizes=[4])
    lines = sweep.images_file.read_bytes().splitlines(keepends=True)
    sweep.images_file.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ImagesError, match=r"images\.csv has changed since the submit"):
        job.run_job([run.folder for run in sweep.runs()])


# --- job files and options --------------------------------------------------------------------

KEYS = [(table, key) for table, keys in JOB_TABLES.items() for key in sorted(keys)]
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=8)
TOML = st.recursive(
    st.booleans().map(lambda value: str(value).lower())
    | st.integers().map(str)
    | st.sampled_from(["nan", "-inf", "1e400", "0x1F", "1979-05-27", "07:32:00", "9" * 5_000])
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | WORDS.map(json.dumps).filter(lambda text: "\\ud" not in text),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
        | inner.map(lambda part: f"{{ a = {part} }}")
    ),
    max_leaves=5,
)


@few
@given(st.dictionaries(st.sampled_from(KEYS), TOML, max_size=3))
@example({("train", "data"): r'"a\u0000b"'})
@example({("train", "weights"): r'"a\u0000b"'})
@example({("cluster", "setup"): "5"})
@example({("cluster", "setup"): "[[1], {}]"})
@example({("train", "batch_sizes"): '"' + "9" * 5_000 + '"'})
def test_a_job_file_of_any_values_is_taken_or_refused_in_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, values: dict[tuple[str, str], str]
) -> None:
    """The command never ends in a traceback, whatever a job file says; it makes nothing."""
    monkeypatch.chdir(tmp_path)
    tables = {table: [(k, v) for (t, k), v in values.items() if t == table] for table, _ in values}
    lines = [
        line
        for table, pairs in tables.items()
        for line in (f"[{table}]", *(f"{key} = {value}" for key, value in pairs))
    ]
    Path("job.toml").write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:  # there are no weights: so it does in the end
        main(["submit", "--job", "job.toml", "--dry-run"])
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code in (1, 2)
    assert [line[:7] for line in said] == ["error: ", "fix:   "], said
    assert [path.name for path in tmp_path.iterdir() if path.name != "s"] == ["job.toml"]


@few
@given(st.binary(max_size=60) | WORDS.map(str.encode))
@example(b"a = " + b"[" * 100_000)
@example(b"a = " + b"9" * 5_000)
@example(b"a = 2026-99-99")
@example(b"\xff")
def test_a_job_file_of_any_bytes_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """What is no TOML is an error that names the file."""
    file = tmp_path / "job.toml"
    file.write_bytes(content)
    read = tried(lambda: read_file("job file", file, JOB_TABLES).values, ConfigError)
    assert read == {} or str(file) in read.message


@many
@given(st.text(max_size=20) | st.text("0123456789-, ", max_size=30) | JSON)
@example("9" * 5_000)
@example("0-" + "9" * 5_000)
@example("0-99999999999999999")
@example("0-9999999")
def test_lists_are_numbers_or_usage_errors(value: Any) -> None:
    """Any text gives numbers or an error of usage, at once and in little memory."""
    for kind, number in ((IntegerList(), int), (NumberList(), float)):
        try:
            found = kind.convert(value, None, None)
        except click.BadParameter:
            continue
        assert 1 <= len(found) <= MAX_RANGE * (str(value).count(",") + 1)
        assert all(type(one) is number for one in found)


@few
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1))
def test_a_list_reads_as_it_is_written(numbers: list[int]) -> None:
    """What a person writes with commas is what is trained."""
    assert IntegerList().convert(",".join(map(str, numbers)), None, None) == tuple(numbers)


# --- SHA256SUMS -------------------------------------------------------------------------------


@few
@given(
    content=st.binary(max_size=200), digest=st.text("0123456789abcdef", min_size=64, max_size=64)
)
@example(b"\xff" * 64 + b"  a\n", "0" * 64)
def test_any_sums_keep_their_lines_beside_ours(tmp_path: Path, content: bytes, digest: str) -> None:
    """Whatever SHA256SUMS holds, our line is found in it again and the others stay."""
    sums, weights = tmp_path / SUMS_NAME, tmp_path / "resnet18.safetensors"
    content = content.replace(b"\r", b"\n")
    sums.write_bytes(content)
    list_digest(weights, digest)
    assert listed_digest(weights) == digest
    lines = sums.read_bytes().split(b"\n")
    assert [line for line in content.split(b"\n") if line] == [line for line in lines if line][:-1]


def test_sums_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    """A folder in the place of SHA256SUMS does not pass for a file that promises nothing."""
    (tmp_path / SUMS_NAME).mkdir()
    with pytest.raises(SkinjobError, match="SHA256SUMS: cannot be read"):
        listed_digest(tmp_path / "resnet18.safetensors")
