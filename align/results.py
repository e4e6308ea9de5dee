"""Tables of scores in files: csv and json for other programs, h5 with the evidence behind them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..datasets.errors import unknown
from ..datasets.rdms import RDMs
from ..datasets.storage import atomic, new_hdf5, open_saved, read_table, to_json, write_table
from .score import COLUMNS, Evidence

if TYPE_CHECKING:
    import h5py

    from ..encoders.routing.maps import RoutingMaps
    from .inference import ModelComparison
    from .topology import Identification

SUFFIXES = (".csv", ".json", ".h5")
TEXT = ("model", "layer", "dataset", "subject", "region", "metric", "formula")
NUMBERS = tuple(column for column in COLUMNS if column not in TEXT)
CONTENT = "results"


def save_results(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table of scores; a file that is already there is replaced only once the new one is whole.

    Parameters
    ----------
    table : pandas.DataFrame
        From `align.score`, `align.rsa` or `load_results`.
    path : str or Path
        ``.csv``: the table. ``.json``: a list with one record per row, missing numbers as null. ``.h5``: the
        table and the evidence behind it, from which `align.report` draws, comparisons of models and routing maps
        among it; RDMs are kept as float32.

    Raises
    ------
    ValueError
        For another suffix, a folder, or a table without the columns of `Score`.
    FileNotFoundError
        If the folder of `path` does not exist.
    """
    check_table(table, "table")
    path = check_target(path)
    suffix = _suffix(path)
    if suffix == ".csv":
        write_text(path, csv_text(table))
    elif suffix == ".json":
        write_text(path, _json_text(table))
    else:
        _save_hdf5(table, path)


def load_results(path: str | Path) -> pd.DataFrame:
    """Read what `save_results` wrote.

    Returns
    -------
    pandas.DataFrame
        The table; from an ``.h5`` file with its evidence in ``table.attrs["evidence"]``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        For another suffix, and for a file that was cut off or that does not hold a table of scores.
    """
    path = Path(path)
    suffix = _suffix(path)
    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; expected a file saved by save_results.")
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}.")
    if suffix == ".h5":
        with open_saved(path, CONTENT) as file, _reading(path):
            return _read_hdf5(file)
    with _reading(path):
        with path.open(encoding="utf-8-sig", newline="") as file:  # a line end within a name is kept as it is
            text = file.read()
        return _typed(_parse_csv(text) if suffix == ".csv" else _parse_json(text))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the content of a file becomes a ValueError that names the file."""
    try:
        yield
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a whole file of results ({str(error).strip()}); save it again with save_results."
        ) from error


def check_table(table: Any, name: str) -> None:
    """Raise ValueError unless `table` (called `name` in the message) is a frame with the columns of `Score`."""
    source = "a table of scores comes from align.score, align.rsa or align.load_results"
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{name} is a {type(table).__name__}; expected a pandas DataFrame: {source}.")
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise ValueError(f"{name} lacks the columns {', '.join(missing)}; {source}.")
    infinite = np.isinf(table[["score", "ceiling", "ci_low", "ci_high"]].astype(float)).any(axis=1)
    if infinite.any():
        raise ValueError(f"{name} has {int(infinite.sum())} rows with infinite scores, ceilings or intervals.")


def check_target(path: str | Path) -> Path:
    """`path`, if a file can be written there."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; expected the name of a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: there is no folder {path.parent}; create it first.")
    return path


def write_text(path: Path, text: str) -> None:
    """Write all of a text or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def csv_text(table: pd.DataFrame) -> str:
    """The table as csv with a header; numbers in full precision, missing ones empty."""
    return table.to_csv(index=False, lineterminator="\n")


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(unknown("suffix of path", path.suffix, SUFFIXES, f"Found {str(path)!r}."))
    return suffix


# ---------------------------------------------------------------------------------------------------- csv, json


def _json_text(table: pd.DataFrame) -> str:
    records = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _parse_csv(text: str) -> pd.DataFrame:
    rows = list(csv.reader(io.StringIO(text)))
    width = len(rows[0]) if rows else 0
    ragged = [number for number, row in enumerate(rows, start=1) if len(row) != width]
    # A last line that was cut off inside its last field still has every field, but not its end.
    if ragged or not text.endswith("\n"):
        raise ValueError(f"row {ragged[0] if ragged else len(rows)} of {len(rows)} is cut off")
    columns = {}
    for name, *values in zip(*rows, strict=True):
        # Only numbers have missing values: a region may be called NA, a subject 01 and a layer nothing at all.
        columns[name] = values if name in TEXT else _numbers(values, strict=name in NUMBERS)
    return pd.DataFrame(columns)


def _numbers(texts: list[str], strict: bool) -> list[Any]:
    """Texts as exact numbers; text that is none is an error, or if not `strict` leaves the column as it is."""
    try:
        return [math.nan if text == "" else int(text) if text.lstrip("-").isdigit() else float(text) for text in texts]
    except ValueError:
        if strict:
            raise
        return texts


def _parse_json(text: str) -> pd.DataFrame:
    records = json.loads(text)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("expected a list of records")
    return pd.DataFrame(records) if records else pd.DataFrame(columns=COLUMNS)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with text as text and numbers as numbers, whatever the file made of columns without any."""
    check_table(table, "it")
    typed = {column: table[column].fillna("").astype(str) for column in TEXT}
    typed |= {column: pd.to_numeric(table[column].astype(object).where(table[column].notna())) for column in NUMBERS}
    return table.assign(**typed)


# ----------------------------------------------------------------------------------------------------------- h5


def _save_hdf5(table: pd.DataFrame, path: Path) -> None:
    with new_hdf5(path, CONTENT) as file:
        write_table(file, "table", table)
        evidence = table.attrs.get("evidence")
        if evidence is None:
            return
        group = file.create_group("evidence")
        group.attrs["provenance"] = json.dumps(dict(evidence.provenance), default=str)
        if len(evidence.units):
            _write_units(group, evidence.units)
        if evidence.rdms is not None:
            rdms = group.create_group("rdms")
            rdms.attrs["method"] = evidence.rdms.method
            rdms.create_dataset("vectors", data=evidence.rdms.vectors.astype(np.float32))
            rdms.create_dataset("stimulus_ids", data=np.array(evidence.rdms.stimulus_ids, dtype=object))
            write_table(rdms, "table", evidence.rdms.table)
        if evidence.thumbnails is not None:
            group.create_dataset("thumbnails", data=evidence.thumbnails, compression="gzip", shuffle=True)
        for k, (region, comparison) in enumerate(evidence.comparison.items()):  # a region may be named "V1/V2" or ""
            found = group.create_group(f"comparison/{k}")
            found.attrs["region"] = region
            _write_fields(found, comparison)
        if evidence.identification is not None:
            _write_fields(group.create_group("identification"), evidence.identification)
        if evidence.routing is not None:
            _write_fields(group.create_group("routing"), evidence.routing)


def _read_hdf5(file: h5py.File) -> pd.DataFrame:
    table = _typed(read_table(file["table"]))
    if "evidence" not in file:
        return table
    group = file["evidence"]
    rdms = None
    if "rdms" in group:
        stored = group["rdms"]
        ids = stored["stimulus_ids"].asstr()[()].tolist()
        rdms = RDMs(stored["vectors"][()], ids, read_table(stored["table"]), str(stored.attrs["method"]))
    table.attrs["evidence"] = Evidence(
        units=_read_units(group) if "units" in group else pd.DataFrame(),
        rdms=rdms,
        thumbnails=group["thumbnails"][()] if "thumbnails" in group else None,
        provenance=json.loads(group.attrs["provenance"]),
        comparison=_read_comparisons(group["comparison"]) if "comparison" in group else {},
        identification=_read_identification(group["identification"]) if "identification" in group else None,
        routing=_read_routing(group["routing"]) if "routing" in group else None,
    )
    return table


def _read_comparisons(group: h5py.Group) -> dict[str, ModelComparison]:
    from .inference import ModelComparison

    found = {}
    for one in (group[name] for name in sorted(group, key=int)):
        fields = _read_fields(one)
        fields["folds"] = tuple(fields["folds"]) if fields["folds"] else None  # JSON knows lists only
        found[str(one.attrs["region"])] = ModelComparison(**fields)
    return found


def _read_identification(group: h5py.Group) -> Identification:
    from .topology import Identification

    return Identification(**_read_fields(group))


def _read_routing(group: h5py.Group) -> RoutingMaps:
    from ..encoders.routing.maps import RoutingMaps

    return RoutingMaps(**_read_fields(group))


def _write_fields(group: h5py.Group, found: Any) -> None:
    """Every field of a dataclass: arrays and tables as they are, all else as JSON."""
    for name in (field.name for field in dataclasses.fields(found)):
        value = getattr(found, name)
        if isinstance(value, np.ndarray):
            group.create_dataset(name, data=value)
        elif isinstance(value, pd.DataFrame):
            write_table(group, name, value)
        else:
            group.attrs[name] = to_json(value, name)


def _read_fields(group: h5py.Group) -> dict[str, Any]:
    fields = {name: json.loads(text) for name, text in group.attrs.items() if name != "region"}
    for name, stored in group.items():
        fields[name] = read_table(stored) if hasattr(stored, "items") else stored[()]
    return fields


def _write_units(parent: h5py.Group, units: pd.DataFrame) -> None:
    """Names as codes: a table with a row per layer and unit repeats few of them hundreds of thousands of times."""
    coded = units.copy()
    names = {}
    for column in units:
        if units[column].dtype.kind not in "biuf":
            codes, names[column] = pd.factorize(units[column].astype(object))
            coded[column] = codes.astype(np.int32)
    write_table(parent, "units", coded)
    group = parent.create_group("unit_names")
    for column, values in names.items():
        group.create_dataset(str(column), data=np.array([str(value) for value in values], dtype=object))


def _read_units(parent: h5py.Group) -> pd.DataFrame:
    units = read_table(parent["units"])
    for column, values in parent["unit_names"].items():
        names = np.array([*values.asstr()[()], None], dtype=object)  # the code of a missing name is -1
        units[column] = pd.Series(names[units[column].to_numpy()], index=units.index)
    return units
