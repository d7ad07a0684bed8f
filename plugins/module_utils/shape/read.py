# SPDX-License-Identifier: GPL-3.0-or-later
"""The Shape of one variant of a model from its files, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ansible_collections.onprem.llm.plugins.module_utils import gguf, ranges
from ansible_collections.onprem.llm.plugins.module_utils.shape.classify import ShapeError, shape_of
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

Open = Callable[[str], ranges.File]
"""Opens one file of the repository by its name there; RangeError when it cannot."""


def parts_of(entry: str) -> list[str]:
    """All files of a model from the name of one: its siblings by the -00001-of-0000N pattern, or itself alone."""
    found = gguf.SPLIT_NAME.fullmatch(entry)
    if found is None or not 1 <= int(found["count"]) <= 1000:
        return [entry]
    prefix, count = found["prefix"], int(found["count"])
    return [f"{prefix}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def read_shape(
    open_part: Open,
    names: Sequence[str],
    *,
    traffic: ranges.Traffic | None = None,
    complete: bool = True,
    tables: gguf.Tables | None = None,
) -> Shape:
    """Read the headers of all parts of a GGUF model (``names``, the first part first).

    ``traffic`` is what the opened files count into; without it nothing is said of it. ``complete=False``: the files
    are headers without data. ``tables`` is handed on to ``gguf.read_header``. ShapeError says what is wrong with the
    content, RangeError that it cannot be had.
    """
    headers: dict[str, gguf.Header] = {}
    whole = False
    for name in names:
        try:
            with open_part(name) as file:
                headers[name] = gguf.read_header(file, complete=complete, tables=tables)
                whole = whole or file.whole
        except ranges.RangeError as error:
            if error.missing and len(names) > 1:
                raise ShapeError(
                    f"{error}; it is part {names.index(name) + 1} of {len(names)} of {names[0]}"
                ) from error
            raise
        except gguf.GgufError as error:
            raise ShapeError(str(error)) from error
    try:
        gguf.check_parts(headers)
    except gguf.GgufError as error:
        raise ShapeError(str(error)) from error
    tensors = [tensor for header in headers.values() for tensor in header.tensors]
    basis = f"header of {names[0]}" + (f" ({len(names)} files)" if len(names) > 1 else "")
    if traffic is not None and traffic.requests:
        basis += f", {traffic.said()}"
    if whole:
        basis += "; the server ignores Range, so the files were read from their beginning"
    return shape_of(headers[names[0]].metadata, tensors, basis, names, names[0])
