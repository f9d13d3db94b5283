"""Reading any file gives values that are right, or an error."""

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
from skinjob.report.rows import MetricsFile, read_run
from skinjob.report.tables import group_runs, read_sweep
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
    """Returns *content* with a few of its bytes replaced."""
    for at, length, new in edits:
        start = at % (len(content) + 1)
        content = content[:start] + new + content[start + length :]
    return content


def tried(read: Callable[[], Any], refusal: type[SkinjobError]) -> Any:
    """Returns what *read* returns, or the error that it raises."""
    try:
        return read()
    except refusal as error:
        return error


# --- metrics.csv ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A run, the bytes of its metrics.csv, and its content."""

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
def test_a_damaged_csv_is_an_error_or_still_a_table(written: Written, edits: Edits) -> None:
    """No damage gives a traceback, or mixes up runs, epochs or types."""
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
    """A number must be a number, and a quote or line break in a text does not move the columns."""
    is_text = value not in ('"', "0\r0")
    names = written.content.decode().split("\r\n")[0].split(",")
    for column, name in enumerate(names):
        lines = written.content.decode().split("\r\n")
        cells = lines[2].split(",")
        cells[column] = value
        lines[2] = ",".join(cells)
        damaged = "\r\n".join(lines).encode("utf-8", "surrogateescape")
        written.run.metrics_file.write_bytes(damaged)
        result = tried(lambda: read_run(written.run), RunError)
        if name in ("sweep", "time_utc") and is_text and isinstance(result, MetricsFile):
            assert result.texts[1][column].isprintable()
        else:
            assert re.search(r"metrics\.csv, line [34]: ", result.message), name


@pytest.mark.parametrize(("column", "value"), [("batch_size", "33"), ("seed", "7")])
def test_a_wrong_digit_moves_no_row_to_another_curve(
    written: Written, column: str, value: str
) -> None:
    """The run's folder decides which curve a row belongs to, and not the row."""
    lines = [line.split(",") for line in written.content.decode().splitlines()]
    lines[2][lines[0].index(column)] = value
    written.run.metrics_file.write_text("\n".join(map(",".join, lines)), encoding="utf-8")
    [series] = group_runs([read_sweep(written.run.sweep)])
    assert (series.batch_size, series.epochs, series.num_counted) == (32, 3, 1)


# --- config.json, state.json, sweep.json ------------------------------------------------------


def record_of(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Draws the content of a file of *kind* in which some values are wrong."""
    good = asdict(kind(data="d", weights="w", batch_size=1) if kind is TrainConfig else kind())
    names = st.sampled_from([field.name for field in fields(kind)] + ["newer"])
    return st.dictionaries(names, JSON, max_size=4).map(lambda odd: good | odd)


def is_of_its_types(record: Any) -> bool:
    """Returns whether every value of a record has the type that its class declares."""
    return all(
        isinstance(getattr(record, name), int | float if kind is float else kind)
        for name, kind in get_type_hints(type(record)).items()
    )


@few
@given(record_of(RunState) | JSON)
@example({"heartbeat_utc": "yesterday"})
@example({"error": 3, "status": "failed"})
def test_a_state_has_the_right_types_or_is_refused(written: Written, values: Any) -> None:
    """Code that reads a state need not check its types; a report continues without a bad state."""
    run = written.run
    run.state_file.write_text(json.dumps(values), encoding="utf-8")
    state = tried(run.state, RunError)
    if isinstance(state, RunError):
        assert str(run.state_file) in state.message
    else:
        assert is_of_its_types(state)
        times = [time for name, time in asdict(state).items() if name.endswith("_utc") and time]
        assert all(datetime.fromisoformat(time.removesuffix("Z")) for time in times)
    assert len(missing([read_sweep(run.sweep)])) <= 1


@few
@given(record_of(TrainConfig) | JSON)
@example({"batch_size": "32", "data": "d", "weights": "w"})
@example({"batch_size": 0, "data": "d", "weights": "w"})
@example({"data": "d"})
def test_a_config_has_the_right_types_or_is_refused(written: Written, values: Any) -> None:
    """A job gets values of the right types, or an error that names the file."""
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
def test_a_sweep_file_has_the_right_types_or_is_refused(written: Written, values: Any) -> None:
    """A sweep.json that was edited, or is of another program, gives a table or an error."""
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
def test_a_file_that_is_not_json_is_refused(written: Written, content: bytes) -> None:
    """Any other bytes are an error that names the file."""
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
def test_a_damaged_list_of_images_is_refused_or_has_another_fingerprint(
    images: ImageSet, tmp_path: Path, edits: Edits
) -> None:
    """A job checks the fingerprint, so it never trains on other images."""
    file = tmp_path / "images.csv"
    write_index(images, file)
    file.write_bytes(edited(file.read_bytes(), edits))
    result = tried(lambda: read_index(file, images.root, images.classes), ImagesError)
    if isinstance(result, ImagesError):
        assert str(file) in result.message
    elif result.fingerprint() == images.fingerprint():
        seen = [(image.path, image.split, image.label) for image in result.files]
        assert seen == [(image.path, image.split, image.label) for image in images.files]


def test_an_incomplete_list_of_images_is_noticed(images: ImageSet, tmp_path: Path) -> None:
    """A list with fewer images never has the fingerprint of the submitted images."""
    file = tmp_path / "images.csv"
    write_index(images, file)
    content = file.read_bytes()
    for cut in range(len(content.rstrip())):
        file.write_bytes(content[:cut])
        result = tried(lambda: read_index(file, images.root, images.classes), ImagesError)
        assert isinstance(result, ImagesError) or result.fingerprint() != images.fingerprint()


def test_a_job_does_not_train_on_a_part_of_the_images(tmp_path: Path, weights: Path) -> None:
    """A job fails if its list of images lost its end; the error names the file."""
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
def test_any_values_in_a_job_file_are_accepted_or_refused_in_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, values: dict[tuple[str, str], str]
) -> None:
    """No job file makes the command print a traceback or write a file."""
    monkeypatch.chdir(tmp_path)
    tables = {table: [(k, v) for (t, k), v in values.items() if t == table] for table, _ in values}
    lines = [
        line
        for table, pairs in tables.items()
        for line in (f"[{table}]", *(f"{key} = {value}" for key, value in pairs))
    ]
    Path("job.toml").write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:  # at the latest because there are no weights
        main(["submit", "--job", "job.toml", "--dry-run"])
    lines_of_error = capsys.readouterr().err.splitlines()
    assert ended.value.code in (1, 2)
    assert [line[:7] for line in lines_of_error] == ["error: ", "fix:   "], lines_of_error
    assert [path.name for path in tmp_path.iterdir() if path.name != "s"] == ["job.toml"]


@few
@given(st.binary(max_size=60) | WORDS.map(str.encode))
@example(b"a = " + b"[" * 100_000)
@example(b"a = " + b"9" * 5_000)
@example(b"a = 2026-99-99")
@example(b"\xff")
def test_any_bytes_in_a_job_file_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is not TOML is an error that names the file."""
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
    """Any text gives numbers or a usage error, quickly and with little memory."""
    for kind, number in ((IntegerList(), int), (NumberList(), float)):
        try:
            numbers = kind.convert(value, None, None)
        except click.BadParameter:
            continue
        assert 1 <= len(numbers) <= MAX_RANGE * (str(value).count(",") + 1)
        assert all(type(item) is number for item in numbers)


@few
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1))
def test_a_list_reads_as_it_is_written(numbers: list[int]) -> None:
    """Numbers that the user writes with commas are the numbers that are used."""
    assert IntegerList().convert(",".join(map(str, numbers)), None, None) == tuple(numbers)


# --- SHA256SUMS -------------------------------------------------------------------------------


@few
@given(
    content=st.binary(max_size=200), digest=st.text("0123456789abcdef", min_size=64, max_size=64)
)
@example(b"\xff" * 64 + b"  a\n", "0" * 64)
def test_adding_a_digest_keeps_the_other_lines_of_sha256sums(
    tmp_path: Path, content: bytes, digest: str
) -> None:
    """Whatever SHA256SUMS contains, the new line can be read back and the other lines stay."""
    sums, weights = tmp_path / SUMS_NAME, tmp_path / "resnet18.safetensors"
    content = content.replace(b"\r", b"\n")
    sums.write_bytes(content)
    list_digest(weights, digest)
    assert listed_digest(weights) == digest
    lines = sums.read_bytes().split(b"\n")
    assert [line for line in content.split(b"\n") if line] == [line for line in lines if line][:-1]


def test_sums_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    """A folder named SHA256SUMS does not count as a file without digests."""
    (tmp_path / SUMS_NAME).mkdir()
    with pytest.raises(SkinjobError, match="SHA256SUMS: cannot be read"):
        listed_digest(tmp_path / "resnet18.safetensors")
