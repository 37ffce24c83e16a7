"""Rows of a data set on the Hub: streamed, so that a run which needs some thousands does not download a whole set, and kept.

What was taken lies under data/ of RFTKIT_HOME in one folder a repository, commit and selection, in parquet files of `PART` rows each,
named after their rows; the last of a set is shorter, and so tells where the set ends. Files appear whole or not at all. Who asks
for more rows than are there takes those that are missing, and who asks for no more needs no network. Pictures stay the bytes
that the set holds. Sets that are needed whole come the same way, so that all of them are kept, mended and read offline alike.

Rows come from the beginning of a set, or, where the first would not do for all because a set is sorted (by subject, by kind of
question), shuffled: row groups in random order through a buffer of `BUFFER` rows, from a fixed seed. So the first `PART` questions
are drawn from the ten row groups that fill the buffer, not from all. No seed of a run enters: all arms and seeds share their rows.
Another release of `datasets` may shuffle otherwise: rows that do not follow on those that are kept are refused. To go on in a set
means to stream again what lies before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from filelock import FileLock
from tqdm import tqdm

from rftkit.config import UserError
from rftkit.runs import output_home

PART = 500  # rows of a file
GROUP = 20  # rows that are read from the disk for one
BUFFER = 1000  # rows that are shuffled at a time; the first `PART` of them come out before more are read
SEED = 0  # of the shuffling

Record = dict[str, Any]  # one row of a data set
Keep = tuple[str, Callable[[Record], bool]]  # which rows are taken, and a name for them


@dataclass(frozen=True)
class Source:
    """Where a set lies on the Hub: `files` of `repo` at the commit `pin` (None: the newest, and from then on that one)."""

    repo: str
    files: str
    columns: tuple[str, ...]
    pin: str | None = None


@dataclass(frozen=True)
class Rows:
    """The first n rows of a folder of parts, by index. A part that can no longer be read is told and taken again by `fill`."""

    folder: Path
    n: int
    fill: Callable[[], int]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Record:
        """The row with its pictures opened."""
        if not 0 <= index < self.n:
            raise IndexError(index)
        part, place = divmod(index, PART)

        def read(file: pyarrow.parquet.ParquetFile) -> Record:
            group = file.read_row_group(place // GROUP)
            return _features(group.schema).decode_example(group.slice(place % GROUP, 1).to_pylist()[0])

        return self._read(part, read)

    def column(self, name: str) -> list[Any]:
        """A column as the files hold it."""
        parts = range(-(-self.n // PART))
        return [v for k in parts for v in self._read(k, lambda f: f.read([name]).column(name).to_pylist())][: self.n]

    def _read(self, part: int, read: Callable[[pyarrow.parquet.ParquetFile], Any]) -> Any:
        for last in (False, True):
            try:
                with _opened(_parts(self.folder)[part]) as file:
                    return read(file)
            except (KeyError, OSError, pyarrow.ArrowException) as error:
                if last:
                    raise
                _drop(_parts(self.folder).get(part), error)
                self.fill()


def load(source: Source, n: int | None = None, *, shuffled: bool = False, keep: Keep | None = None) -> Rows:
    """The first n rows of a source, or all there are where it has fewer or n is None; of those that `keep` says only.

    `keep` sees a row with its pictures as bytes. Raises UserError where the rows cannot be had, or lack a column.
    """
    return _load(source, n, shuffled, keep, output_home() / "data")


@lru_cache(maxsize=256)
def _load(source: Source, n: int | None, shuffled: bool, keep: Keep | None, home: Path) -> Rows:
    revision = _commit(source, home)
    selection = "+".join([_plain(source.files), *(["shuffled"] if shuffled else []), *([keep[0]] if keep else [])])
    folder = home / _plain(source.repo) / (revision or "main") / selection
    fill = partial(_fill, folder, n, source.columns, partial(_stream, source, revision, shuffled, keep))
    return Rows(folder, fill(), fill)


def upto(index: int) -> int:
    """How many rows the parts up to that of one row have."""
    return (index // PART + 1) * PART


def streamed(n: int) -> int:
    """How many rows of a shuffled set are read for n, if they lie in row groups of a hundred, as `datasets` writes pictures."""
    return upto(n - 1) + BUFFER - PART


def commit(source: Source) -> str | None:
    """The pinned commit, else that of rows which were taken before, else the newest, else None where the Hub cannot be asked."""
    return _commit(source, output_home() / "data")


@lru_cache
def _commit(source: Source, home: Path) -> str | None:
    taken = [f for f in (home / _plain(source.repo)).glob("*") if re.fullmatch("[0-9a-f]{40}", f.name)]
    if source.pin or taken or Path(source.repo).is_dir():
        return source.pin or (max(taken, key=os.path.getmtime).name if taken else None)
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(source.repo, timeout=10).sha
    except Exception:  # offline: `load` reports
        return None


# --- from the Hub ---------------------------------------------------------------------------------------------------------


# from the row of a number on: the rows, and a schema for files of them
Stream = Callable[[int], tuple[Iterator[Record], pyarrow.Schema]]


def _stream(
    source: Source, revision: str | None, shuffled: bool, keep: Keep | None, start: int
) -> tuple[Iterator[Record], pyarrow.Schema]:
    """Rows with their pictures as bytes."""
    from datasets import Features, Image, load_dataset

    with _told(source):
        # no_checks: the repository's README promises splits that are left out here
        data = load_dataset(
            source.repo, data_files={"data": source.files}, split="data", revision=revision,
            verification_mode="no_checks", streaming=True,
        )  # fmt: skip
        missing = [name for name in source.columns if name not in data.column_names]
        if missing:
            raise UserError(
                f"The data set {source.repo} has no column {', '.join(missing)} (expected are {', '.join(source.columns)}): "
                "it has changed, so pin an older commit of it in REVISIONS of the module that names it."
            )
        for name in source.columns:
            if (
                name.startswith("image") and getattr(data.features[name], "dtype", None) == "binary"
            ):  # a picture's file without saying so
                data = data.cast_column(name, Image())
        schema = Features({name: data.features[name] for name in source.columns}).arrow_schema
        data = data.select_columns(list(source.columns)).decode(False)
        if shuffled:
            data = data.reshard().shuffle(seed=SEED, buffer_size=BUFFER, max_buffer_input_shards=1)
        if keep:
            data = data.filter(keep[1])

    def rows() -> Iterator[Record]:
        with _told(source):
            yield from data.skip(start)

    return rows(), schema


@contextmanager
def _told(source: Source) -> Iterator[None]:
    """One sentence for whatever goes wrong on the way from the Hub."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the loader, the Hub's client and the network each have their own kinds
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise UserError(
            f"The data set {source.repo} cannot be loaded ({reason}): check the network and the access to the Hub (rows "
            "that were taken are kept), or use the preset 'tiny', which needs neither."
        ) from error


# --- on the disk ----------------------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    """A repository, pattern or selection as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._]+", "--", name).strip("-")


def _parts(folder: Path) -> dict[int, Path]:
    return {int(path.name[:8]) // PART: path for path in folder.glob("*.parquet")}


def _bounds(path: Path) -> tuple[int, int]:
    """The first row of a part, and the one after its last."""
    start, stop = path.stem.split("-")
    return int(start), int(stop)


def _opened(path: Path) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)


@lru_cache
def _features(schema: pyarrow.Schema) -> Any:
    from datasets import Features

    return Features.from_arrow_schema(schema)


def _broken(path: Path, columns: tuple[str, ...]) -> Exception | None:
    """Why a part is no good. Its pages have checksums of their own, seen when they are read."""
    try:
        with _opened(path) as file:
            start, stop = _bounds(path)
            whole = file.metadata.num_rows == stop - start and set(columns) <= set(file.schema_arrow.names)
            return None if whole else ValueError("other rows or columns than its name says")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        return error


def _drop(path: Path | None, error: Exception) -> None:
    if path is not None:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        tqdm.write(f"{path} cannot be read ({reason}): its rows are taken again.")
        path.unlink(missing_ok=True)


def _count(folder: Path, n: int | None) -> int | None:
    """n, or how many rows the set has where its end is known and comes before. None: all are wanted, and it is not known."""
    ends = [stop for start, stop in map(_bounds, _parts(folder).values()) if stop - start < PART]
    return min([*ends, *([] if n is None else [n])], default=None)


def _missing(folder: Path, n: int | None) -> range:
    """The numbers of the first parts that are not there, up to the next that is."""
    parts, rows = _parts(folder), _count(folder, n)
    need = 10**6 if rows is None else -(-rows // PART)
    first = next((k for k in range(need) if k not in parts), need)
    return range(first, min([k for k in parts if k > first] + [need]))


def _fill(folder: Path, n: int | None, columns: tuple[str, ...], stream: Stream) -> int:
    """Have the first n rows in the folder; how many these are where the set has fewer. One process fills, others wait for it."""
    if _missing(folder, n) or any(_broken(path, columns) for path in _parts(folder).values()):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for path in _parts(folder).values():
                if error := _broken(path, columns):
                    _drop(path, error)
            while parts := _missing(folder, n):
                _take(folder, parts, stream)
    return _count(folder, n) or 0


def _take(folder: Path, parts: range, stream: Stream) -> None:
    """Stream some parts, or as many of them as the set has rows for, each written when it is whole."""
    before = _parts(folder).get(parts[0] - 1)
    known = []  # the row before
    if before is not None:
        with _opened(before) as file:
            known = file.read_row_group(file.num_row_groups - 1).to_pylist()[-1:]
    rows, schema = stream(parts[0] * PART - len(known))
    changed = list(islice(rows, len(known))) != known
    with tqdm(desc="rows taken", initial=parts[0] * PART, mininterval=5) as bar:
        for k in parts:
            part = list(islice(rows, PART))
            if changed or (len(part) < PART and parts.stop in _parts(folder)):
                raise UserError(
                    f"The set has other rows than {folder} holds (another file, or another release of datasets): delete that "
                    "folder, and they are taken anew."
                )
            _write(folder / f"{k * PART:08d}-{k * PART + len(part):08d}.parquet", part, schema)
            bar.update(len(part))
            if len(part) < PART:
                break


def _write(path: Path, rows: list[Record], schema: pyarrow.Schema) -> None:
    new = path.with_name(".new")
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    pyarrow.parquet.write_table(table, new, row_group_size=GROUP, write_page_checksum=True)
    os.replace(new, path)
