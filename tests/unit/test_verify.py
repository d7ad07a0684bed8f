# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether verify finds every change, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage, manifest, store
from ansible_collections.onprem.llm.plugins.module_utils.model_store.damage import Damage
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model
from ansible_collections.onprem.llm.plugins.module_utils.model_store.verify import settle, verify

PIECE = 16 << 10
CONTENT = {name: random.Random(name).randbytes(size) for name, size in (("a.bin", 10 * PIECE + 7), ("b.bin", 5))}


class Place:
    """A store with one published model, and what verify finds there."""

    def __init__(self, folder: Path) -> None:
        self.store, self.findings = folder / "models", folder / "state/damage.json"
        files = tuple(File(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items())
        self.model = Model("m", "o/m", "main", files=files)
        self.home = store.home(self.store, self.model)
        verified = {}
        for file in files:
            staged = store.staged(store.stage(self.store, self.model), file)
            staged.parent.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(CONTENT[file.path])
            found = store.adopt(staged, file)
            assert found is not None
            verified[file.path] = found
        store.publish(self.store, self.model, verified)
        self.told: list[str] = []

    def verify(self) -> list[tuple[str, tuple[int, ...]]]:
        done = verify(self.store, self.findings, self.told.append)
        kept = damage.read(self.findings)
        assert kept.checked > 0
        assert set(kept.damaged) == set(done.damaged)
        return sorted((one.path, one.pieces) for one in done.damaged)

    def write(self, name: str, data: bytes) -> None:
        """As a bad disk does it: neither mode nor time change."""
        place = self.home / name
        before = place.stat()
        place.chmod(0o644)
        place.write_bytes(data)
        place.chmod(0o444)
        os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))

    def without_pieces(self) -> None:
        """As the first format had it."""
        data = json.loads((self.home / "manifest.json").read_text())
        for entry in data["files"]:
            del entry["piece_size"], entry["pieces"]
        (self.home / "manifest.json").unlink()
        (self.home / "manifest.json").write_text(json.dumps(data))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def flipped(name: str, *places: int) -> bytes:
    data = bytearray(CONTENT[name])
    for at in places:
        data[at] ^= 1
    return bytes(data)


def test_what_is_whole_is_whole(place: Place) -> None:
    done = verify(place.store, place.findings)
    assert (done.files, done.size, done.damaged) == (2, sum(map(len, CONTENT.values())), ())


def test_every_flipped_byte_is_found(place: Place) -> None:
    chance = random.Random(4)
    for _time in range(30):
        at = chance.randrange(len(CONTENT["a.bin"]))
        place.write("a.bin", flipped("a.bin", at))
        assert place.verify() == [("a.bin", (at // PIECE,))]
    place.write("a.bin", CONTENT["a.bin"])
    assert place.verify() == []


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (CONTENT["a.bin"][:-1], (10,)),
        (CONTENT["a.bin"] + b"more", (10,)),
        (CONTENT["a.bin"][: 8 * PIECE], (8, 9, 10)),
        (b"", tuple(range(11))),
    ],
)
def test_other_sizes_are_found(place: Place, data: bytes, pieces: tuple[int, ...]) -> None:
    place.write("a.bin", data)
    assert place.verify() == [("a.bin", pieces)]


def test_it_says_what_is_damaged(place: Place) -> None:
    place.write("a.bin", flipped("a.bin", 3, 3 * PIECE))
    (place.home / "b.bin").unlink()
    assert place.verify() == [("a.bin", (0, 3)), ("b.bin", (0,))]
    assert place.told == [
        f"{place.home}/a.bin: 2 of 11 pieces are damaged (32.8 kB of 163.8 kB)",
        f"{place.home}/b.bin: all of its 5 B are damaged or missing",
    ]


def test_files_without_pieces_are_judged_as_a_whole(place: Place) -> None:
    place.without_pieces()
    assert place.verify() == []
    place.write("a.bin", flipped("a.bin", 3))
    (place.home / "b.bin").unlink()
    assert place.verify() == [("a.bin", ()), ("b.bin", ())]
    assert all("all of its" in line for line in place.told)


def test_what_is_staged_is_not_looked_at(place: Place) -> None:
    stage = place.store / ".staging/o--m@main"
    stage.mkdir(parents=True, exist_ok=True)
    (stage / "manifest.json").write_text((place.home / "manifest.json").read_text())
    assert verify(place.store, place.findings).files == 2


@pytest.mark.parametrize("text", ["{ rotten", '{"format": 2, "files": []}', None])
def test_a_manifest_that_cannot_be_read_is_a_damage(place: Place, text: str | None) -> None:
    """Its files are not known any more: what was found of them before is not forgotten."""
    place.write("a.bin", flipped("a.bin", 0))
    assert place.verify() == [("a.bin", (0,))]
    kept = (place.home / "manifest.json").read_text()
    place.told.clear()
    place.write("manifest.json", (text or kept.replace("o/m", "o/n")).encode())
    done = verify(place.store, place.findings, place.told.append)
    assert (done.files, done.damaged) == (0, (Damage("o/m", "main", "manifest.json"),))
    assert [line.split(": ")[0] for line in place.told] == [f"{place.home}/manifest.json"]
    assert {one.path for one in damage.read(place.findings).damaged} == {"a.bin", "manifest.json"}
    place.write("manifest.json", kept.encode())
    assert place.verify() == [("a.bin", (0,))]


def test_what_is_removed_meanwhile_is_no_damage(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prune takes the manifest first."""
    really = manifest.read

    def read_then_prune(home: Path) -> manifest.Manifest:
        found = really(home)
        if (home / "manifest.json").exists():
            for path in home.iterdir():
                path.unlink()
        return found

    monkeypatch.setattr(manifest, "read", read_then_prune)
    assert verify(place.store, place.findings).damaged == ()


def test_what_it_did_not_reach_stays_known(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("b.bin", b"other")
    place.verify()
    place.write("a.bin", flipped("a.bin", 0))

    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        raise Stopped(line)

    with pytest.raises(Stopped):
        verify(place.store, place.findings, stop)
    assert {one.path for one in damage.read(place.findings).damaged} == {"a.bin", "b.bin"}


def test_what_is_gone_is_forgotten(place: Place) -> None:
    damage.write(place.findings, 5.0, [Damage("o/other", "main", "x", (1,))])
    assert place.verify() == []


def test_a_mended_file_is_taken_off_the_list(place: Place) -> None:
    one, two = Damage("o/m", "main", "a.bin", (1,)), Damage("o/m", "main", "b.bin", (0,))
    damage.write(place.findings, 5.0, [one, two])
    settle(place.findings, ("o/m", "main", "a.bin"), None)
    assert damage.read(place.findings) == damage.Findings(5.0, (two,))
    settle(place.findings, ("o/m", "main", "none"), None)
    assert damage.read(place.findings) == damage.Findings(5.0, (two,))


def test_nothing_is_written_where_nothing_is_known(tmp_path: Path) -> None:
    settle(tmp_path / "state/damage.json", ("o/m", "main", "a"), None)
    assert not (tmp_path / "state").exists()
