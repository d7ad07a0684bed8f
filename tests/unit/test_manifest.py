# SPDX-License-Identifier: GPL-3.0-or-later
"""manifest.json: written and read back, both formats, and what is no manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import hubs
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage, manifest
from ansible_collections.onprem.llm.plugins.module_utils.model_store.damage import Damage, Findings
from ansible_collections.onprem.llm.plugins.module_utils.model_store.manifest import Entry, Manifest, Selection
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Pieces

PIECES = Pieces(16 << 10, ("a" * 64, "b" * 64))
MANIFEST = Manifest(
    repo="onprem/m-GGUF",
    revision="master",
    commit="c" * 40,
    source="modelscope: https://modelscope.cn",
    selections=(Selection(("F16/*",), ()), Selection(("README.md",), ("*.bin",))),
    files=(
        Entry("F16/m.gguf", 20_000, "1" * 64, "source", 1_700_000_000_123_456_789, pieces=PIECES),
        Entry("README.md", 7, "2" * 64, "computed here", 5, git_blob="3" * 40),
    ),
)


def changed(**changes: Any) -> dict[str, Any]:
    """The manifest as plain data, with changes to its first file."""
    data: dict[str, Any] = json.loads(manifest.text(MANIFEST))
    data["files"][0] |= changes
    return data


def reread(folder: Path, data: Any) -> Manifest:
    (folder / "manifest.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return manifest.read(folder)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    manifest.write(tmp_path, MANIFEST)
    assert manifest.read(tmp_path) == MANIFEST
    assert (tmp_path / "manifest.json").stat().st_mode & 0o777 == 0o444
    manifest.write(tmp_path, Manifest())
    assert manifest.read(tmp_path) == Manifest()
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_it_is_json_with_a_line_for_each_file() -> None:
    text = manifest.text(MANIFEST)
    data = json.loads(text)
    assert (data["format"], data["selections"][1]) == (2, {"include": ["README.md"], "exclude": ["*.bin"]})
    assert data["files"][0]["piece_size"] == 16384
    assert data["files"][0]["pieces"] == list(PIECES.hashes)
    assert "pieces" not in data["files"][1]
    assert sum('"path"' in line for line in text.splitlines()) == 2


def test_a_mirror_can_serve_it() -> None:
    listing = hubs.parse_manifest(manifest.text(MANIFEST).encode(), "https://mirror.corp.example/manifest.json")
    assert [(file.path, file.size, file.sha256) for file in listing.files] == [
        ("F16/m.gguf", 20_000, "1" * 64),
        ("README.md", 7, "2" * 64),
    ]
    assert listing.commits == ("c" * 40,)


def test_the_format_before_had_no_pieces(tmp_path: Path) -> None:
    data = changed()
    data["format"] = 1
    for entry in data["files"]:
        for key in ("piece_size", "pieces", "git_blob"):
            entry.pop(key, None)
    read = reread(tmp_path, data)
    assert read.files[0] == Entry("F16/m.gguf", 20_000, "1" * 64, "source", 1_700_000_000_123_456_789)
    assert read.selections == MANIFEST.selections


@pytest.mark.parametrize("changes", [{"piece_size": 32768}, {"pieces": ["a" * 64]}, {"size": 200_000}])
def test_pieces_cut_in_another_way_do_not_count(tmp_path: Path, changes: dict[str, Any]) -> None:
    read = reread(tmp_path, changed(**changes))
    assert read.files[0].pieces is None
    assert len(read.files) == 2


@pytest.mark.parametrize(
    "data",
    ["", "[]", "null", '{"files": []}', "\x00", changed(path="../../etc/shadow"), changed(size="x")],
)
def test_what_is_no_manifest_vouches_for_nothing(tmp_path: Path, data: Any) -> None:
    assert reread(tmp_path, data) == Manifest()
    assert manifest.read(tmp_path / "none") == Manifest()


def test_the_order_of_globs_says_nothing() -> None:
    models = [Model("m", "o/m", "v1", include=globs) for globs in (("a", "b"), ("b", "a"))]
    assert manifest.selection(models[0]) == manifest.selection(models[1])


def test_a_file_is_untouched_until_its_size_or_time_changes(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"content")
    entry = Entry("file", 7, "", "source", place.stat().st_mtime_ns)
    assert manifest.untouched(place, entry)
    os.utime(place)
    assert not manifest.untouched(place, entry)
    assert not manifest.untouched(tmp_path / "none", entry)
    assert not manifest.untouched(place / "below", entry)
    os.symlink(place, tmp_path / "link")
    assert not manifest.untouched(tmp_path / "link", entry)


def test_damage_is_kept_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new/damage.json"
    assert damage.read(path) == Findings()
    found = (Damage("o/m", "v1", "a.gguf", (3, 17)), Damage("o/m", "v1", "b.gguf"))
    damage.write(path, 1_700_000_000.5, found)
    assert damage.read(path) == Findings(1_700_000_000.5, found)
    assert json.loads(path.read_text())["damaged"][0] == {
        "repo": "o/m",
        "revision": "v1",
        "path": "a.gguf",
        "pieces": [3, 17],
    }
    path.write_text('{"checked": 1, "damaged": [{}]}')
    assert damage.read(path) == Findings()
