# SPDX-License-Identifier: Apache-2.0
"""Images in a Parquet file of the usual layout: `image: struct<bytes, path>`, `label: int64`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from splitee.errors import DataError
from splitee.samples.fitting import T
from splitee.samples.images import UnreadableImage, load_image
from splitee_device.data.base import DeferredImage, Images, Indices, Source, Split, numbered
from splitee_device.data.spill import SpilledImages

_ROWS_AT_ONCE = 64  # encoded images in memory at a time


def open_parquet(path: Path) -> Source:
    """The rows of the file at `path`; there is no test split. Raises DataError."""
    parquet = ParquetImages(path)
    names = parquet.class_names or numbered(parquet.labels)

    def name(row: int) -> str:
        return f"{path} row {row}"

    def images(indices: Indices) -> Iterator[DeferredImage]:
        return (partial(load_image, encoded, name=name(row)) for row, encoded in parquet.encoded(indices))

    def prepare(indices: Indices, folder: Path | None) -> Images:
        """Copies the rows to a file: reading one row means reading all that are compressed with it."""
        spilled = SpilledImages(parquet.encoded(indices), folder)

        def load(row: int, make: Callable[[Image.Image], T]) -> T:
            try:
                encoded = spilled.read(row)
            except OSError as error:
                raise UnreadableImage(name(row), str(error.strerror)) from None
            return load_image(encoded, make, name=name(row))

        return lambda rows: (partial(load, row) for row in map(int, rows))

    return Source(names, Split(parquet.labels, images, name, prepare), None)


class ParquetImages:
    """Labels and class names of a file, and its encoded images as a stream. Raises DataError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._reading(), pq.ParquetFile(path) as file:
            self._check_columns(file.schema_arrow)
            column = file.read(columns=["label"]).column("label")
        if column.null_count:
            raise DataError(f"{path}: {column.null_count} rows have no label")
        self.labels: npt.NDArray[np.int64] = column.to_numpy().astype(np.int64)
        self.class_names = self._class_names(file.schema_arrow.metadata or {})

    def encoded(self, rows: npt.NDArray[np.intp]) -> Iterator[tuple[int, bytes]]:
        """(row, encoded image) of the wanted rows, in ascending order; other rows' bytes are skipped.

        Row groups without wanted rows are not read, and only a few rows are in memory at a time.
        """
        with self._reading(), pq.ParquetFile(self._path, buffer_size=1 << 16) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            for group, start in enumerate(starts[:-1]):
                wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, starts[group + 1])]
                if len(wanted):
                    yield from self._of_group(file, group, int(start), wanted)

    @staticmethod
    def _of_group(
        file: pq.ParquetFile, group: int, start: int, rows: npt.NDArray[np.intp]
    ) -> Iterator[tuple[int, bytes]]:
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=["image.bytes"]):
            images = cast(pa.StructArray, batch.column("image")).field("bytes")
            end = start + len(images)
            for row in rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)]:
                yield int(row), images[int(row) - start].as_py() or b""
            start = end

    def _check_columns(self, schema: pa.Schema) -> None:
        found = {field.name: field.type for field in schema}
        image, label = found.get("image"), found.get("label")
        if (
            image is None
            or label is None
            or not pa.types.is_struct(image)
            or image.get_field_index("bytes") < 0
            or "binary" not in str(image.field("bytes").type)  # of any kind
            or not pa.types.is_integer(label)
        ):
            columns = ", ".join(f"{name}: {kind}" for name, kind in found.items())
            raise DataError(
                f"{self._path}: expected columns image: struct<bytes, path> and label: int64; got {columns}"
            )

    def _class_names(self, metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
        """The names in the schema's metadata; None: there are none."""
        if b"class_names" not in metadata:
            return None
        try:
            names = json.loads(metadata[b"class_names"])
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self._path}: class_names in its metadata is not a JSON list of strings")
        return tuple(names)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            if "magic bytes" in reason or "smaller than the minimum" in reason:
                reason = "it is cut off or damaged"
            raise DataError(f"{self._path}: cannot be read as a Parquet file: {reason}") from None
