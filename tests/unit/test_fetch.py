# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetching against a hub: published, resumed, mended, shared, and everything that is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage, sources, store, verify
from ansible_collections.onprem.llm.plugins.module_utils.model_store.fetch import _Run, fetch
from ansible_collections.onprem.llm.plugins.module_utils.model_store.fleet import Fleet
from ansible_collections.onprem.llm.plugins.module_utils.model_store.status import Report
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import (
    Model,
    Pieces,
    Request,
    Source,
    Status,
    StoreError,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import samples
import server

PARTS = [f"F16/m-F16-0000{number}-of-00002.gguf" for number in (1, 2)]
PIECE = 16 << 10
REPO = "onprem/m-GGUF"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[server.Hub]:
    repo = tmp_path / "root/models" / REPO
    samples.split(repo / "F16", "m-F16", 2, rows=2000)
    (repo / "README.md").write_text("# A model\n")
    with server.running(tmp_path / "root") as running:
        yield running


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts, without a pause between them."""
    really = sources.asking

    def quick(source: Source, request: Request) -> transfer.Source:
        return replace(really(source, request), attempts=2, timeout=5, sleep=lambda _seconds: None)

    monkeypatch.setattr(sources, "asking", quick)


class Host:
    """A host's disk, and what a transfer on it does."""

    def __init__(self, folder: Path, hub: server.Hub) -> None:
        self.hub = hub
        self.store, self.findings = folder / "models", folder / "state/damage.json"
        self.home = self.store / REPO / "master"
        self.repo = hub.tree.root / "models" / REPO
        self.sizes = [(self.repo / part).stat().st_size for part in PARTS]
        self.source = Source("hub", "modelscope", hub.url)
        self.wanted = Model("chat", REPO, "master", ("F16/*",), (), PARTS[0], sources=(self.source,))
        self.status = Status("")

    def model(self, **changes: Any) -> Model:
        """The model as its first source lists it."""
        return sources.listing(replace(self.wanted, **changes), None, transfer.Source(attempts=1))[0]

    def run(self, *models: Model, fleet: object = None, free: int = 10**12, **settings: Any) -> Status:
        request = Request(str(self.store), models or (self.model(),), **settings)
        report = Report(request)
        try:
            fetch(
                request,
                report,
                findings=self.findings,
                fleet=cast("Fleet | None", fleet),
                free=lambda _folder: free,
            )
        finally:
            self.status = report.status()
        return self.status

    def refuses(self, *models: Model, **how: Any) -> str:
        """The message of a run that fails; nothing is published by it."""
        before = self.published()
        with pytest.raises(StoreError) as refusal:
            self.run(*models, **how)
        assert self.published() == before
        return str(refusal.value)

    def published(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.store))
            for path in self.store.rglob("*")
            if path.is_file() and not path.relative_to(self.store).parts[0].startswith(".")
        )

    def flip(self, part: str, *places: int, keep_time: bool = False) -> None:
        """Change bytes of a published file, as somebody or (with its time kept) a bad disk does."""
        place = self.home / part
        before, data = place.stat(), bytearray(place.read_bytes())
        for at in places:
            data[at] ^= 1
        place.chmod(0o644)
        with open(place, "r+b") as file:
            file.write(data)
        place.chmod(0o444)
        if keep_time:
            os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def host(tmp_path: Path, hub: server.Hub) -> Host:
    return Host(tmp_path / "host", hub)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def nobody_asked(hub: server.Hub) -> Iterator[None]:
    asked = len(hub.requests)
    yield
    assert hub.requests[asked:] == []


# Published -------------------------------------------------------------------------------------------------------


def test_a_model_is_published_read_only(host: Host) -> None:
    status = host.run()
    manifest = json.loads((host.home / "manifest.json").read_text())
    assert [entry["path"] for entry in manifest["files"]] == PARTS
    assert manifest["commit"] == host.hub.tree.commit(REPO)
    for entry in manifest["files"]:
        place = host.home / entry["path"]
        assert place.stat().st_mode & 0o777 == 0o444
        assert digest(place) == entry["sha256"]
        assert len(entry["pieces"]) == -(-entry["size"] // PIECE)
    assert [path for path in (host.store / ".staging").rglob("*") if path.is_file()] == []
    assert [(model.state, model.done) for model in status.models] == [("published", sum(host.sizes))]
    assert status.from_hubs == sum(host.sizes)


def test_what_is_here_is_not_asked_for(host: Host) -> None:
    model = host.model()
    host.run(model)
    with nobody_asked(host.hub):
        assert host.run(model).models[0].state == "published"


def test_another_selection_adds_to_the_same_revision(host: Host) -> None:
    docs = host.model(name="docs", include=("README.md",), entry="")
    host.run(host.model(), docs)
    assert host.published() == sorted(f"{REPO}/master/{name}" for name in ("README.md", "manifest.json", *PARTS))


def test_a_pin_that_moves_brings_nothing_again(host: Host) -> None:
    host.run()
    pinned = host.model(revision=host.hub.tree.commit(REPO))
    with nobody_asked(host.hub):
        host.run(pinned, free=0)
    assert (host.home.with_name(pinned.revision) / PARTS[0]).samefile(host.home / PARTS[0])


def test_equal_files_of_a_model_come_once(host: Host) -> None:
    for name in ("a", "b", "c"):
        (host.repo / f"{name}.bin").write_bytes(b"weights" * 1000)
    host.run(host.model(include=("*.bin",), entry=""))
    assert host.hub.sent == 7000
    assert {digest(host.home / f"{name}.bin") for name in "abc"} == {digest(host.repo / "a.bin")}


def test_files_of_no_size(host: Host) -> None:
    (host.repo / "empty.bin").touch()
    host.run(host.model(include=("*.bin",), entry=""))
    assert (host.home / "empty.bin").stat().st_size == 0


# Refused ---------------------------------------------------------------------------------------------------------


def test_a_model_nobody_listed(host: Host) -> None:
    assert "model 'chat': its files were not listed" in host.refuses(host.wanted)


def test_a_disk_that_is_too_small(host: Host) -> None:
    model = host.model()
    with nobody_asked(host.hub):
        message = host.refuses(model, free=100_000)
    whole, lacking = transfer.human(sum(host.sizes)), transfer.human(sum(host.sizes) - 100_000)
    assert f"'chat': {whole} of {whole} must still be stored in {host.store}" in message
    assert f"100.0 kB are free: {lacking} too little. Nothing was downloaded." in message


def test_only_the_bytes_still_to_come_need_room(host: Host) -> None:
    host.hub.faults = [server.Fault("cut", PARTS[1], 200_000), server.Fault("no-range", PARTS[1])]
    assert "the answer ended after 200000 of" in host.refuses()
    host.hub.faults = []
    rest = host.sizes[1] - 200_000
    assert f"{transfer.human(rest)} of {transfer.human(host.sizes[1])} must" in host.refuses(free=rest - 1)
    assert host.run(free=rest).from_hubs == rest


def test_a_disk_that_fills_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    really = transfer._Part.add
    wrote = 0

    def add(part: Any, block: bytes) -> None:
        nonlocal wrote
        wrote += len(block)
        if wrote > 300_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(part, block)

    host.hub.rate = 2_000_000  # small blocks
    monkeypatch.setattr(transfer._Part, "add", add)
    others = host.model(name="docs", include=("README.md",), entry="")
    with pytest.raises(StoreError) as refusal:
        host.run(host.model(), others, free=10**6, parallel=1)
    kept = sum(path.stat().st_size for path in (host.store / ".staging").rglob("*") if path.is_file())
    assert f"the disk of {host.store} is full (No space left on device)" in str(refusal.value)
    assert "1.0 MB are free" in str(refusal.value)
    assert "What came is kept. Make room there and run again" in str(refusal.value)
    assert [model.state for model in host.status.models] == ["failed", "failed"]
    assert 0 < kept <= 300_000
    monkeypatch.setattr(transfer._Part, "add", really)
    assert host.run().from_hubs == sum(host.sizes) - kept


def test_wrong_bytes_are_never_published(host: Host) -> None:
    host.hub.faults = [server.Fault("wrong", PARTS[1])]
    message = host.refuses()
    assert f"model 'chat': {PARTS[1]} of {REPO} (revision master) could not be had. hub: http://127.0.0.1" in message
    assert f"expected sha256 {digest(host.repo / PARTS[1])}, got sha256 " in message
    assert f"({transfer.human(host.sizes[1])}). They were deleted." in message
    left = [path.stat().st_size for path in host.store.rglob("*") if path.is_file()]
    assert left == [host.sizes[0]]  # the good part
    host.hub.faults = []
    assert host.run().from_hubs == host.sizes[1]  # the good part was kept


@pytest.mark.parametrize("kind", ["empty", "page", "missing", "bad-hash"])
def test_answers_that_are_no_model(host: Host, kind: str) -> None:
    host.hub.faults = [server.Fault(kind, PARTS[0])]
    assert f"model 'chat': {PARTS[0]} of {REPO} (revision master) could not be had. hub: http://" in host.refuses()


def test_a_corrupt_model_with_the_right_checksum(host: Host) -> None:
    path = host.repo / PARTS[1]
    path.write_bytes(path.read_bytes()[:-100])
    message = host.refuses()
    assert "tensor 'blk.3.weight' ends at byte" in message
    assert "it is not published. Choose another revision or file" in message


def test_a_part_that_include_leaves_out(host: Host) -> None:
    message = host.refuses(host.model(include=(PARTS[0],)))
    assert "1 of 2 parts are there, missing: F16/m-F16-00002-of-00002.gguf" in message


def test_one_model_that_fails_does_not_keep_the_others(host: Host) -> None:
    host.hub.faults = [server.Fault("missing", PARTS[0])]
    docs = host.model(name="docs", include=("README.md",), entry="")
    with pytest.raises(StoreError, match="model 'chat'"):
        host.run(host.model(), docs)
    assert [model.state for model in host.status.models] == ["failed", "published"]
    assert PARTS[0] in host.status.models[0].message


# Touched and damaged ---------------------------------------------------------------------------------------------


def test_a_file_that_was_touched_is_verified_again(host: Host) -> None:
    model = host.model()
    host.run(model)
    os.utime(host.home / PARTS[0])
    with nobody_asked(host.hub):
        host.run(model)


def test_only_damaged_pieces_of_a_changed_file_are_fetched(host: Host) -> None:
    host.run()
    sent, inode = host.hub.sent, (host.home / PARTS[0]).stat().st_ino
    host.flip(PARTS[0], 5, 6, 5 * PIECE)
    host.run()
    assert host.hub.sent - sent == 2 * PIECE
    assert digest(host.home / PARTS[0]) == digest(host.repo / PARTS[0])
    assert (host.home / PARTS[0]).stat().st_ino == inode
    assert not list((host.store / ".staging").rglob("*.swarm"))


def test_rot_that_verify_finds_is_mended(host: Host) -> None:
    model = host.model()
    host.run(model)
    host.flip(PARTS[1], 100_000, keep_time=True)
    with nobody_asked(host.hub):
        host.run(model)  # nothing tells yet
    verify.verify(host.store, host.findings, tell=lambda _line: None)
    assert [(one.path, one.pieces) for one in damage.read(host.findings).damaged] == [(PARTS[1], (6,))]
    sent = host.hub.sent
    host.run(model)
    assert host.hub.sent - sent == PIECE
    assert digest(host.home / PARTS[1]) == digest(host.repo / PARTS[1])
    assert damage.read(host.findings).damaged == ()


def test_a_file_that_was_cut_off_is_mended(host: Host) -> None:
    host.run()
    sent = host.hub.sent
    (host.home / PARTS[0]).chmod(0o644)
    os.truncate(host.home / PARTS[0], 200_000)
    host.run()
    assert host.hub.sent - sent <= host.sizes[0] - 200_000 + PIECE
    assert digest(host.home / PARTS[0]) == digest(host.repo / PARTS[0])


def test_a_file_that_is_another_now_is_fetched_whole(host: Host) -> None:
    host.run()
    (host.repo / "README.md").write_text("# Other weights\n")
    (host.repo / PARTS[0]).write_bytes((host.repo / PARTS[0]).read_bytes()[:-1] + b"!")
    host.run()
    assert digest(host.home / PARTS[0]) == digest(host.repo / PARTS[0])


def test_a_damaged_file_nobody_can_mend_stays_as_it_is(host: Host) -> None:
    model = host.model()
    host.run(model)
    host.flip(PARTS[0], 5)
    before = digest(host.home / PARTS[0])
    host.hub.faults = [server.Fault("missing", REPO)]
    assert "could not be had" in host.refuses(model)
    assert digest(host.home / PARTS[0]) == before


def test_a_manifest_that_rotted_is_written_anew(host: Host) -> None:
    model = host.model()
    host.run(model)
    path = host.home / "manifest.json"
    path.chmod(0o644)
    path.write_text("{ rotten")
    (found,) = verify.verify(host.store, host.findings, tell=lambda _line: None).damaged
    assert found.path == path.name
    with nobody_asked(host.hub):
        host.run(model)
    assert damage.read(host.findings).damaged == ()
    assert verify.verify(host.store, host.findings, tell=lambda _line: None).files == 2


def test_one_piece_is_in_memory_at_a_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Block(bytearray):
        pass

    seen: list[weakref.ref[Block]] = []
    really = transfer.fetch_range

    def fetched(*args: Any, **named: Any) -> Block:
        assert not [one for one in seen if one() is not None]
        block = Block(really(*args, **named))
        seen.append(weakref.ref(block))
        return block

    monkeypatch.setattr(transfer, "fetch_range", fetched)
    host.run()
    host.flip(PARTS[0], 5, PIECE + 5, 2 * PIECE + 5)
    host.run()
    assert len(seen) == 3
    assert digest(host.home / PARTS[0]) == digest(host.repo / PARTS[0])


# Sources ---------------------------------------------------------------------------------------------------------


def second(host: Host, tmp_path: Path) -> tuple[Path, Source]:
    """A directory with the same files."""
    folder = tmp_path / "disk"
    shutil.copytree(host.repo, folder / REPO)
    for path in folder.rglob("*"):
        path.chmod(0o777)  # anybody can write: copied, not shared
    return folder / REPO, Source("disk", "directory", path=str(folder))


def test_the_next_source_has_what_the_first_lacks(host: Host, tmp_path: Path) -> None:
    _folder, disk = second(host, tmp_path)
    model = replace(host.model(), sources=(host.source, disk))
    host.hub.faults = [server.Fault("missing", PARTS[1])]
    status = host.run(model)
    assert status.models[0].state == "published"
    assert len(status.warnings) == 1
    assert "model 'chat': hub: http://127.0.0.1" in status.warnings[0]


def test_the_next_source_goes_on_where_the_first_broke_off(host: Host, tmp_path: Path) -> None:
    _folder, disk = second(host, tmp_path)
    model = replace(host.model(), sources=(host.source, disk))
    host.hub.faults = [server.Fault("cut", PARTS[1], 200_000), server.Fault("no-range", PARTS[1])]
    # Each attempt at the hub begins anew there; the disk's own begins where the last one ended.
    assert host.run(model).from_hubs == host.sizes[0] + 2 * 200_000 + host.sizes[1] - 200_000


def test_a_source_with_another_file_is_passed_over(host: Host, tmp_path: Path) -> None:
    folder, disk = second(host, tmp_path)
    (folder / PARTS[1]).write_bytes(b"another size")
    model = replace(host.model(), sources=(disk, host.source))
    assert host.run(model).from_hubs == sum(host.sizes)
    assert digest(host.home / PARTS[1]) == digest(host.repo / PARTS[1])


def test_all_sources_are_named_when_none_has_it(host: Host, tmp_path: Path) -> None:
    _folder, disk = second(host, tmp_path)
    shutil.rmtree(disk.path)
    model = replace(host.model(), sources=(disk, replace(host.source, url="http://127.0.0.1:1")))
    message = host.refuses(model)
    assert f"disk: {disk.path} does not have the file, or has another" in message
    assert "hub: http://127.0.0.1:1/api" in message
    assert "Connection refused" in message


def test_a_disk_that_does_not_hold_the_model_is_no_news(host: Host, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    model = replace(host.model(), sources=(Source("disk", "directory", path=str(tmp_path / "disk")), host.source))
    assert host.run(model).warnings == []


def test_a_source_that_is_away_is_not_asked_for_every_file(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Nobody:
        def open(self, url: str, _headers: dict[str, str], _timeout: float, _way: transfer.Way) -> Any:
            asked.append(url)
            raise OSError("nobody is there")

    monkeypatch.setattr(transfer, "Urllib", Nobody)
    model = replace(
        Model("chat", REPO, "master", sources=(host.source,), origin="hub"),
        files=tuple(
            File(f"part-{number}.bin", 1000, hashlib.sha256(bytes(number)).hexdigest()) for number in range(20)
        ),
    )
    assert "nobody is there" in host.refuses(model, parallel=1)
    assert len(asked) == 2


def test_a_source_that_is_away_is_asked_by_one_thread(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Nobody:
        def open(self, url: str, _headers: dict[str, str], _timeout: float, _way: transfer.Way) -> Any:
            time.sleep(0.05)  # the others come meanwhile
            asked.append(url)
            raise OSError("nobody is there")

    really = _Run.failed

    def slow(*args: Any) -> None:
        time.sleep(0.05)
        really(*args)

    monkeypatch.setattr(transfer, "Urllib", Nobody)
    monkeypatch.setattr(_Run, "failed", slow)
    files = tuple(File(f"{number}.bin", 9, hashlib.sha256(bytes(number)).hexdigest()) for number in range(8))
    model = replace(Model("chat", REPO, "master", sources=(host.source,), origin="another"), files=files)
    message = host.refuses(model, parallel=8)
    assert message.count("nobody is there") == 8
    assert len(asked) == 2  # the attempts of one


# Directory -------------------------------------------------------------------------------------------------------


def directory(host: Host, folder: Path) -> Model:
    return host.model(sources=(Source("disk", "directory", path=str(folder)),))


def test_a_directory_without_checksums_says_so(host: Host) -> None:
    folder = host.hub.tree.root / "models"
    status = host.run(directory(host, folder))
    assert status.notes == ["model 'chat': checksum: computed here, nothing to compare with"]
    manifest = json.loads((host.home / "manifest.json").read_text())
    assert {entry["checksum"] for entry in manifest["files"]} == {"computed here"}


@pytest.mark.parametrize(("mode", "shared"), [(0o644, os.getuid() == 0), (0o666, False)])
def test_a_directory_is_shared_only_when_nobody_else_can_write_it(host: Host, mode: int, shared: bool) -> None:
    folder = host.hub.tree.root / "models"
    for part in PARTS:
        (folder / REPO / part).chmod(mode)
    host.run(directory(host, folder), free=0 if shared else 10**9)
    for part in PARTS:
        assert (host.home / part).samefile(folder / REPO / part) == shared
        assert (host.home / part).read_bytes() == (folder / REPO / part).read_bytes()


def test_a_directory_on_another_disk_is_copied(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_places: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    host.run(directory(host, host.hub.tree.root / "models"))
    assert not (host.home / PARTS[0]).samefile(host.repo / PARTS[0])


def test_a_directory_with_a_manifest_is_checked_against_it(host: Host, tmp_path: Path) -> None:
    host.run()
    host.store.rename(tmp_path / "usb")
    assert host.run(directory(host, tmp_path / "usb")).notes == []
    victim = tmp_path / "usb" / REPO / "master" / PARTS[0]
    model = directory(host, tmp_path / "usb")
    shutil.rmtree(host.store)
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    message = host.refuses(model)
    assert PARTS[0] in message
    assert str(victim) in message


# Ended -----------------------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Not an Exception: nothing in the code can catch it and tidy up."""


def test_ended_between_any_two_steps(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends before each rename in turn: nothing half published, and no byte fetched twice."""
    really, model = os.replace, host.model()
    steps = 0
    while not (host.home / "manifest.json").exists():
        steps += 1
        left = steps

        def replace_or_end(*places: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise PowerCut
            really(*places)

        monkeypatch.setattr(os, "replace", replace_or_end)
        try:
            host.run(model, parallel=1)
        except PowerCut:
            assert not (host.home / "manifest.json").exists()
        monkeypatch.setattr(os, "replace", really)
    assert steps > 2
    assert host.hub.sent == sum(host.sizes)


def test_ended_while_mending(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    model = host.model()
    host.run(model)
    host.flip(PARTS[0], 0, 3 * PIECE, 9 * PIECE)
    really, left = transfer.fetch_range, 1

    def fetch_or_end(*given: Any, **how: Any) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise PowerCut
        return really(*given, **how)

    monkeypatch.setattr(transfer, "fetch_range", fetch_or_end)
    with pytest.raises(PowerCut):
        host.run(model)
    monkeypatch.setattr(transfer, "fetch_range", really)
    sent = host.hub.sent
    host.run(model)
    assert host.hub.sent - sent == 2 * PIECE
    assert digest(host.home / PARTS[0]) == digest(host.repo / PARTS[0])


# Fleet -----------------------------------------------------------------------------------------------------------


class Peers:
    """A fleet of which each answer is given beforehand."""

    def __init__(self, host: Host, answers: Callable[[str, Path], str], pieces: Pieces | None = None) -> None:
        self.host, self.answers, self.known = host, answers, pieces
        self.calls: list[tuple[str, str]] = []
        self.causes: list[str] = []
        self.shown: Callable[[str], bytes] | None = None
        """What is seen to come, in order."""
        self.names = {digest(host.repo / part): part for part in PARTS}

    def note(self, what: str, key: str) -> None:
        self.calls.append((what, self.names[key]))

    def have(self, key: str, path: Path, size: int, pieces: Pieces) -> None:
        assert digest(path) == key
        assert (path.stat().st_size, pieces.size) == (size, PIECE)
        self.note("have", key)

    def wants(self, keys: list[str], _warn: Callable[[str], None]) -> None:
        for key in keys:
            self.note("wants", key)

    def want(
        self, key: str, _size: int, target: Path, progress: Callable[[str, int], None], watch: transfer.Watch
    ) -> str:
        self.note("want", key)
        if self.shown is not None:
            watch()(b"begun anew")
            see, data = watch(), self.shown(self.names[key])
            for at in range(0, len(data), 1000):
                see(data[at : at + 1000])
        progress("waiting", 0)
        progress("fleet", 10)
        return self.answers(self.names[key], target)

    def pieces(self, _key: str) -> Pieces | None:
        return self.known

    def failed(self, key: str, message: str, cause: str) -> None:
        assert message
        self.causes.append(cause)
        self.note("failed", key)

    def finish(self) -> None:
        self.calls.append(("finish", ""))


def test_the_fleet_brings_what_it_has(host: Host) -> None:
    model = host.model()

    def answers(part: str, target: Path) -> str:
        shutil.copy(host.repo / part, target)
        return "done"

    peers = Peers(host, answers)
    with nobody_asked(host.hub):
        host.run(model, fleet=peers, parallel=1)
    one, two = PARTS
    brought = [("want", one), ("have", one), ("want", two), ("have", two)]
    assert peers.calls == [("wants", one), ("wants", two), *brought, ("finish", "")]
    again = Peers(host, answers)
    host.run(model, fleet=again)
    assert again.calls[:2] == [("have", one), ("have", two)]
    assert "want" not in dict(again.calls)


@pytest.mark.parametrize("wrong", [b"", b"!"])
def test_what_was_seen_to_come_is_not_read_again(host: Host, monkeypatch: pytest.MonkeyPatch, wrong: bytes) -> None:
    def answers(part: str, target: Path) -> str:
        shutil.copy(host.repo / part, target)
        return "done"

    def come(part: str) -> bytes:
        data = (host.repo / part).read_bytes()
        return data[: len(data) - len(wrong)] + wrong

    peers = Peers(host, answers)
    peers.shown = come

    def inspected(place: Path, _file: File) -> None:
        assert not place.exists()

    monkeypatch.setattr(store, "inspected", inspected)
    status = host.run(fleet=peers)
    assert status.from_hubs == (sum(host.sizes) if wrong else 0)
    assert digest(host.home / PARTS[1]) == digest(host.repo / PARTS[1])


def test_whose_turn_it_is_asks_the_hub(host: Host) -> None:
    peers = Peers(host, lambda _part, _target: "fetch")
    host.run(fleet=peers)
    assert host.hub.sent == sum(host.sizes)


def test_wrong_bytes_of_the_fleet_are_thrown_away(host: Host) -> None:
    def answers(part: str, target: Path) -> str:
        target.write_bytes(bytes((host.repo / part).stat().st_size))
        return "done"

    status = host.run(fleet=Peers(host, answers))
    assert f"model 'chat': {PARTS[0]}: the pieces that came do not make the file" in " ".join(status.warnings)
    assert status.from_hubs == sum(host.sizes)
    assert digest(host.home / PARTS[0]) == digest(host.repo / PARTS[0])


@pytest.mark.parametrize(("fault", "cause"), [("missing", ""), ("wrong", "wrong")])
def test_who_fails_says_so(host: Host, fault: str, cause: str) -> None:
    host.hub.faults = [server.Fault(fault, PARTS[1])]
    peers = Peers(host, lambda _part, _target: "fetch")
    host.refuses(fleet=peers)
    assert ("failed", PARTS[1]) in peers.calls
    assert peers.causes == [cause]
    assert peers.calls[-1] == ("finish", "")


def test_who_found_nobody_says_so(host: Host) -> None:
    away = replace(host.model(), sources=(replace(host.source, url="http://127.0.0.1:1"),))
    peers = Peers(host, lambda _part, _target: "fetch")
    host.refuses(away, fleet=peers)
    assert set(peers.causes) == {"unreachable"}


def test_who_watches_hears_of_a_failure_before_the_others_are_served(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.hub.faults = [server.Fault("missing", PARTS[1])]
    told = []
    reports: list[Report] = []
    really = Report.__init__

    def made(self: Report, *args: Any, **named: Any) -> None:
        reports.append(self)
        really(self, *args, **named)

    monkeypatch.setattr(Report, "__init__", made)
    peers = Peers(host, lambda _part, _target: "fetch")
    monkeypatch.setattr(peers, "finish", lambda: told.append(reports[-1].status()))
    host.refuses(fetch_from := host.model(), fleet=peers)
    assert [(one.state, one.models[0].state) for one in told] == [("failed", "failed")]
    assert PARTS[1] in told[0].models[0].message
    host.hub.faults = []
    host.run(fetch_from, fleet=peers)
    assert told[1].state == "seeding"


def test_what_a_dead_fleet_left_is_not_fetched_again(host: Host) -> None:
    host.run()
    told = json.loads((host.home / "manifest.json").read_text())["files"][0]
    shutil.rmtree(host.store)

    def answers(part: str, target: Path) -> str:
        data = bytearray((host.repo / part).read_bytes())
        data[PIECE : 3 * PIECE] = bytes(2 * PIECE)
        store.working(target).write_bytes(data)
        return "fetch"

    model, sent = host.model(include=(PARTS[0],)), host.hub.sent
    with pytest.raises(StoreError, match="1 of 2 parts"):
        host.run(model, fleet=Peers(host, answers, Pieces(PIECE, tuple(told["pieces"]))))
    assert host.hub.sent - sent == 2 * PIECE


def test_the_fleet_mends_what_is_damaged(host: Host) -> None:
    host.run()
    host.flip(PARTS[0], 5)

    def answers(part: str, target: Path) -> str:
        assert part == PARTS[0]
        assert store.working(target).samefile(host.home / part)
        with open(store.working(target), "r+b") as file:
            file.write((host.repo / part).read_bytes())
        store.working(target).rename(target)
        return "done"

    model = host.model()
    with nobody_asked(host.hub):
        host.run(model, fleet=Peers(host, answers))
    assert digest(host.home / PARTS[0]) == digest(host.repo / PARTS[0])
    assert not [path for path in (host.store / ".staging").rglob("*") if path.is_file()]
