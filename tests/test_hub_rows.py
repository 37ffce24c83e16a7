"""What is taken of a set and kept: real streams over small parquet files of several row groups, no network."""

import dataclasses
import io
import multiprocessing
import os
import time

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, List, Value
from huggingface_hub.errors import GatedRepoError
from PIL import Image as Pictures

from rftkit import hub, hub_rows
from rftkit.config import UserError

N, FILES = 2400, 2  # rows of the set, in files of twelve row groups of 100
TYPES = Features({"n": Value("int64"), "box": List(Value("float32")), "image": Image(), "more": Value("string")})
COMMIT, OTHER = "a" * 40, "b" * 40


def picture(i):
    return Pictures.fromarray(np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8))


def write(folder, add=0, n=N):
    """A repository of n rows, sorted, with a README and a file that must not be touched."""
    data = folder / "data"
    data.mkdir(parents=True)
    for k in range(FILES):
        some = range(k * n // FILES, (k + 1) * n // FILES)
        rows = [{"n": i + add, "box": [i / 3, 0.1], "image": picture(i + add), "more": "x"} for i in some]
        Dataset.from_list(rows, features=TYPES).to_parquet(
            str(data / f"test-{k:05d}-of-{FILES:05d}.parquet"), batch_size=100
        )
    (data / "other-00000-of-00001.parquet").write_text("not a parquet file")
    return hub_rows.Source(str(folder), "data/test-*", ("n", "box", "image"), COMMIT)


def test_a_picture_that_is_declared_as_bytes_is_one(tmp_path, home):
    """As MMStar's file has it: its column of pictures holds their files, and does not say that they are pictures."""
    data = tmp_path / "set/data"
    data.mkdir(parents=True)
    files = []
    for i in range(4):
        picture(i).save(file := io.BytesIO(), format="PNG")
        files.append({"n": i, "image": file.getvalue()})
    types = Features({"n": Value("int64"), "image": Value("binary")})
    Dataset.from_list(files, features=types).to_parquet(str(data / "test-00000-of-00001.parquet"))
    afresh()
    rows = hub_rows.load(hub_rows.Source(str(tmp_path / "set"), "data/test-*", ("n", "image"), COMMIT))
    assert [row["image"].size for row in rows] == [(5, 4)] * 4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hub") / "set")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def afresh():
    """As another process would find it."""
    hub_rows._load.cache_clear()
    hub_rows._commit.cache_clear()


def no_network(monkeypatch):
    """From here on nothing may be loaded."""

    def refuse(*_, **__):
        raise ConnectionError("there is no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    afresh()


def numbers(rows):
    return rows.column("n")


def files(home):
    return sorted(path.name for path in home.rglob("*.parquet"))


def only(home, start):
    (path,) = home.rglob(f"{start:08d}-*.parquet")
    return path


# --- what is taken ------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_set_and_pictures_its_very_bytes(source, home):
    rows = hub_rows.load(source, 120)
    assert len(rows) == 120 and numbers(rows) == list(range(120))
    for i in (0, 19, 20, 119):
        row = rows[i]
        assert (
            row["n"] == i
            and row["image"].tobytes() == picture(i).tobytes()
            and row["box"] == pytest.approx([i / 3, 0.1])
        )
        assert set(row) == set(source.columns)
    kept = pyarrow.parquet.read_table(only(home, 0), columns=["image"]).column("image").to_pylist()
    original = Dataset.from_parquet(f"{source.repo}/data/test-00000-of-00002.parquet").cast_column(
        "image", Image(decode=False)
    )
    assert kept[7]["bytes"] == original[7]["image"]["bytes"]
    for index in (120, -1):
        with pytest.raises(IndexError):
            rows[index]


def test_a_run_reads_what_it_needs_and_no_more(source, home, monkeypatch):
    streamed = []
    real = hub_rows._write
    monkeypatch.setattr(
        hub_rows, "_write", lambda path, rows, schema: (streamed.append(len(rows)), real(path, rows, schema))
    )
    hub_rows.load(source, 501)
    assert streamed == [500, 500] and files(home) == ["00000000-00000500.parquet", "00000500-00001000.parquet"]
    (folder,) = {path.parent for path in home.rglob("*.parquet")}
    assert folder.parent.name == COMMIT and folder.name == "data--test"
    hub_rows.load(source, 1000)
    assert len(streamed) == 2  # they were there
    assert len(hub_rows.load(source)) == N and streamed == [500, 500, 500, 500, 400]
    assert len(hub_rows.load(source, 10**9)) == N and len(streamed) == 5


def test_a_set_that_ends_with_a_part_ends(tmp_path, home):
    even = write(tmp_path / "even", n=2 * hub_rows.PART)
    assert numbers(hub_rows.load(even)) == list(range(1000)) and files(home)[-1] == "00001000-00001000.parquet"
    afresh()
    assert len(hub_rows.load(even, 5000)) == 1000


def test_shuffled_rows_come_from_all_over_and_are_the_same_again(source, home, tmp_path, monkeypatch):
    few = numbers(hub_rows.load(source, 100, shuffled=True))
    whole = numbers(hub_rows.load(source, shuffled=True))
    assert whole[:100] == few and sorted(whole) == list(range(N))
    groups = {n // 100 for n in whole[: hub_rows.PART]}
    assert len(groups) == 10  # the row groups that a full buffer is made of
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path / "another"))
    assert numbers(hub_rows.load(source, 100, shuffled=True)) == few
    assert numbers(hub_rows.load(source, 100)) == list(range(100))  # kept apart


def test_only_rows_that_are_wanted_are_kept(source, home):
    odd = hub_rows.load(
        source, 520, keep=("odd", lambda row: row["n"] % 2 == 1 and row["image"]["bytes"][:4] == b"\x89PNG")
    )
    assert numbers(odd) == list(range(1, 1041, 2)) and only(home, 0).parent.name == "data--test+odd"


def test_how_many_rows_a_shuffled_set_costs(source, home, monkeypatch):
    """Counted at the files: the row groups that are read until n rows came out."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    real, read = Parquet._generate_tables, []

    def counting(self, *args, **kwargs):
        for key, table in real(self, *args, **kwargs):
            read.append(len(table))
            yield key, table

    monkeypatch.setattr(Parquet, "_generate_tables", counting)
    hub_rows.load(source, 100, shuffled=True)
    assert sum(read) == hub_rows.streamed(100) == hub_rows.streamed(500) == 1000 and hub_rows.streamed(501) == 1500


# --- kept -----------------------------------------------------------------------------------------------------------------


def test_a_second_time_touches_no_network(source, home, monkeypatch):
    first = hub_rows.load(source, 300, shuffled=True)
    no_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    again = hub_rows.load(source, 500, shuffled=True)
    assert again is not first and numbers(again)[:300] == numbers(first) and again[299]["image"].size == (5, 4)
    with pytest.raises(
        UserError, match=r"cannot be loaded \(ConnectionError: there is no network\): check the network"
    ) as told:
        hub_rows.load(source, 501, shuffled=True)
    assert "\n" not in str(told.value) and numbers(hub_rows.load(source, 500, shuffled=True)) == numbers(again)


def test_an_interrupted_stream_goes_on_where_it_stopped(source, home, monkeypatch):
    real = datasets.IterableDataset.skip

    def breaking(self, n):
        def rows():
            for i, row in enumerate(real(self, n)):
                if i == 700:
                    raise ConnectionResetError("the line is dead")
                yield row

        return rows()

    monkeypatch.setattr(datasets.IterableDataset, "skip", breaking)
    with pytest.raises(UserError, match=r"ConnectionResetError: the line is dead.*rows that were taken are kept"):
        hub_rows.load(source, 1200)
    assert files(home) == ["00000000-00000500.parquet"]
    before = only(home, 0).stat().st_mtime_ns
    monkeypatch.setattr(datasets.IterableDataset, "skip", real)
    assert numbers(hub_rows.load(source, 1200)) == list(range(1200)) and only(home, 0).stat().st_mtime_ns == before


@pytest.mark.parametrize("how", ["cut", "empty", "lost", "fewer rows", "fewer columns"])
def test_a_broken_file_is_told_and_made_again(how, source, home, capsys):
    whole = numbers(hub_rows.load(source, shuffled=True))
    path = only(home, 500)
    table = pyarrow.parquet.read_table(path)
    if how in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 1000 if how == "cut" else 0])
    elif how == "lost":
        path.unlink()
    else:
        pyarrow.parquet.write_table(table[:499] if how == "fewer rows" else table.drop(["box"]), path)
    afresh()
    assert numbers(hub_rows.load(source, shuffled=True)) == whole and hub_rows.load(source, shuffled=True)[999]["box"]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == (how != "lost") and all("cannot be read" in s and "taken again" in s for s in said)


def test_a_rotten_page_is_found_when_it_is_read(source, home, capsys):
    rows = hub_rows.load(source, 500)
    path = only(home, 0)
    picture_8 = pyarrow.parquet.read_table(path).column("image")[8].as_py()["bytes"]
    content = bytearray(path.read_bytes())
    content[content.index(picture_8[60:90]) + 10] ^= 255
    path.write_bytes(content)
    assert rows[8]["image"].tobytes() == picture(8).tobytes() and rows[499]["n"] == 499
    assert capsys.readouterr().out.count("its rows are taken again") == 1


def test_a_half_written_file_is_not_taken_for_rows(source, home, monkeypatch):
    def killed(table, path, **_):
        path.write_bytes(b"PAR1 half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            hub_rows.load(source, 10)
    assert files(home) == [] and numbers(hub_rows.load(source, 10)) == list(range(10))


# --- commits ----------------------------------------------------------------------------------------------------------------


def test_another_commit_has_rows_of_its_own(source, home, tmp_path):
    old = hub_rows.load(source, 50)
    moved = tmp_path / "old"
    os.rename(source.repo, moved)
    try:
        write(moved.parent / "new", add=5000)
        os.rename(tmp_path / "new", source.repo)
        new = hub_rows.load(dataclasses.replace(source, pin=OTHER), 50)
        assert numbers(new) == list(range(5000, 5050)) and numbers(old) == list(range(50))
        with pytest.raises(UserError, match=r"has other rows than .*data--test holds .*: delete that folder"):
            hub_rows.load(source, 600)  # the file was changed under the old name
        assert numbers(hub_rows.load(source, 50)) == list(range(50))
    finally:
        os.rename(source.repo, tmp_path / "gone")
        os.rename(moved, source.repo)


def test_without_a_pin_the_commit_that_was_taken_first_is_stayed_with(home, monkeypatch):
    class Told:
        sha = COMMIT

    asked = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, repo, **_: asked.append(repo) or Told)
    loose = hub_rows.Source("somebody/set", "data/test-*", ("n",))
    assert hub_rows.commit(loose) == COMMIT and asked == ["somebody/set"]
    (home / "data" / "somebody--set" / OTHER / "data--test").mkdir(parents=True)
    afresh()
    assert hub_rows.commit(loose) == OTHER and asked == ["somebody/set"]
    assert hub_rows.commit(dataclasses.replace(loose, pin=COMMIT)) == COMMIT


# --- who else may be there --------------------------------------------------------------------------------------------------


def _ask(source, home, n, out):
    os.environ["RFTKIT_HOME"] = str(home)
    written = []
    real = hub_rows._write
    hub_rows._write = lambda path, rows, schema: (written.append(path.name), time.sleep(0.5), real(path, rows, schema))
    out.put((numbers(hub_rows.load(source, n)), written))


def test_two_processes_at_once_take_rows_once(source, home):
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    asking = [context.Process(target=_ask, args=(source, home, n, out)) for n in (400, 900)]
    for process in asking:
        process.start()
    told = [out.get(timeout=120) for _ in asking]
    for process in asking:
        process.join(60)
    assert sorted(len(found) for found, _ in told) == [400, 900]
    assert all(found == list(range(len(found))) for found, _ in told)
    assert sorted(name for _, names in told for name in names) == files(home) and len(files(home)) == 2


# --- what cannot be had -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_had_is_told_in_one_sentence(source, home, monkeypatch):
    odd = dataclasses.replace(source, columns=("n", "answer"))
    with pytest.raises(UserError, match=r"has no column answer \(expected are n, answer\): it has changed"):
        hub_rows.load(odd, 10)
    with pytest.raises(UserError, match=r"nobody/nothing cannot be loaded \(.*\): check the network") as told:
        hub_rows.load(dataclasses.replace(source, repo="nobody/nothing"), 10)
    assert "\n" not in str(told.value)

    class Response:
        status_code, headers, request, text = 403, {}, None, ""

    def gated(*_, **__):
        raise GatedRepoError("Access to this set is restricted.\nAsk for it.", response=Response())

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(UserError, match=r"GatedRepoError: .*Access to this set is restricted") as told:
        hub_rows.load(source, 10)
    assert "\n" not in str(told.value)


# --- what the tasks make of it ------------------------------------------------------------------------------------------------


def test_questions_beyond_the_first_are_those_that_follow(source, home):
    """Each question once, whether one asks for all or for one, in an order that depends on the seed."""

    def size(n):
        return len(hub_rows.load(source, n, shuffled=True))

    places = [hub.place(1, "set", i, size) for i in range(N)]
    assert sorted(places) == list(range(N)) and [hub.place(1, "set", i, size) for i in (3, 700)] == [
        places[3],
        places[700],
    ]
    assert sorted(places[: hub_rows.PART]) == list(range(hub_rows.PART))
    assert [hub.place(2, "set", i, size) for i in range(20)] != places[:20]
    for index in (N, -1):
        with pytest.raises(UserError, match=f"none with index {index}"):
            hub.place(1, "set", index, size)
