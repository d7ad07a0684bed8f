# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that come from no package registry: where a mirror has them, and the lock files that describe them.

A lock file is YAML that people read and comment. So it is changed value by value, at the places the parser names,
and every other character stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

#: What compressed files begin with, by the end of their name. An error page under such a name is not one.
MAGIC = {
    ".gz": b"\x1f\x8b",
    ".tgz": b"\x1f\x8b",
    ".xz": b"\xfd7zXZ\x00",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".bz2": b"BZh",
    ".zip": b"PK",
    ".deb": b"!<arch>",
}


class ArtifactError(Exception):
    """An entry that cannot be used."""


def mirrored(url: str, mirror: str) -> str:
    """The URL on the site's mirror: its address, then host and path of the original."""
    parts = urlsplit(url)
    if not mirror or parts.scheme not in ("http", "https"):
        return url
    host = parts.netloc.rpartition("@")[2]
    return f"{mirror.rstrip('/')}/{host}{parts.path}" + (f"?{parts.query}" if parts.query else "")


def not_what_it_says(url: str, start: bytes) -> str:
    """What is wrong with the first bytes of a file, seen from its name; empty when nothing is."""
    path = urlsplit(url).path
    for ending, magic in MAGIC.items():
        if path.endswith(ending) and not start.startswith(magic):
            return f"it is named {ending} but begins with {start[:16]!r}"
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")) and not path.endswith((".html", ".htm")):
        return "a web page came instead of the file"
    return ""


@dataclass(frozen=True)
class Entry:
    """One entry of a lock file and where its values stand in the text: name -> (start, end)."""

    name: str
    values: Mapping[str, Any]
    spans: Mapping[str, tuple[int, int]]


def entries(text: str, top: str, yaml: Any) -> list[Entry]:
    """The entries of the map ``top`` in a YAML text. ``yaml`` is the PyYAML module."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ArtifactError(f"is no valid YAML: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get(top), dict):
        raise ArtifactError(f"has no map '{top}'")
    found = []
    for key, node in root.value:
        if key.value != top:
            continue
        for name, fields in node.value:
            values = data[top][name.value]
            if not isinstance(values, dict):
                raise ArtifactError(f"has an entry '{name.value}' of '{top}' that is no map")
            found.append(Entry(name.value, values, _spans(fields, yaml)))
            # A model's variants have files of their own, and so a revision of their own.
            for field, listed in fields.value:
                if field.value == "variants" and isinstance(listed, yaml.SequenceNode):
                    own = {key: value for key, value in values.items() if key != "variants"}
                    found += [
                        Entry(name.value, {**own, **variant}, _spans(node, yaml))
                        for variant, node in zip(values["variants"], listed.value, strict=True)
                    ]
    return found


def _spans(fields: Any, yaml: Any) -> dict[str, tuple[int, int]]:
    """Where the scalars of a YAML map stand."""
    return {
        field.value: (value.start_mark.index, value.end_mark.index)
        for field, value in fields.value
        if isinstance(value, yaml.ScalarNode)
    }


def replace(text: str, changes: list[tuple[Entry, Mapping[str, str]]]) -> str:
    """The text with new scalars in place of old ones, and nothing else changed."""
    edits = []
    for entry, values in changes:
        for field, value in values.items():
            if field not in entry.spans:
                raise ArtifactError(f"has no '{field}' in the entry '{entry.name}': add the line `{field}: null`")
            edits.append((*entry.spans[field], value))
    for start, end, value in sorted(edits, reverse=True):
        gap = " " if start == end else ""  # `sha256:` with nothing behind it
        text = text[:start] + gap + value + text[end:]
    return text
