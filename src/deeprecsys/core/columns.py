"""Tables of equally long columns, as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core.values import UserError


def save_columns(path: str | Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Writes equally long columns as .parquet, .npz or .csv."""
    target = Path(path)
    match target.suffix:
        case ".npz":
            np.savez(target, **{name: column for name, column in columns.items()})  # type: ignore[arg-type]
        case ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table(dict(columns)), target)
        case ".csv":
            import pyarrow as pa
            import pyarrow.csv

            pyarrow.csv.write_csv(pa.table(dict(columns)), target)
        case other:
            raise UserError(
                f"cannot write {other or 'a file without suffix'}: use .parquet or .npz"
            )


def load_columns(path: str | Path) -> dict[str, NDArray[Any]]:
    """Reads what `save_columns` wrote; UserError in one line if it cannot."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {source}")
    try:
        match source.suffix:
            case ".npz":
                with np.load(source, allow_pickle=False) as archive:
                    return {name: archive[name] for name in archive.files}
            case ".parquet":
                import pyarrow.parquet as pq

                table = pq.read_table(source)
            case ".csv":
                import pyarrow.csv

                table = pyarrow.csv.read_csv(source)
            case other:
                raise UserError(f"cannot read {other or 'a file without suffix'}: {source}")
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read {source}: {reason}") from error
    return {name: table[name].to_numpy() for name in table.column_names}
