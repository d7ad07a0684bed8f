# SPDX-License-Identifier: GPL-3.0-or-later
"""The model store against a hub: published, offline, resumed, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import Model, Outcome, Store, StoreError

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import samples
import server

REPOSITORY = Path(__file__).parents[2]
PARTS = [f"F16/m-F16-0000{number}-of-00002.gguf" for number in (1, 2)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[server.Hub]:
    repo = tmp_path / "root/models/onprem/m-GGUF"
    samples.split(repo / "F16", "m-F16", 2, rows=2000)
    (repo / "README.md").write_text("# A model\n")
    with server.running(tmp_path / "root") as running:
        yield running


class Host:
    """A host's disk, and what a run on it does."""

    def __init__(self, folder: Path, hub: server.Hub) -> None:
        self.hub = hub
        self.models, self.served = folder / "models", folder / "served"
        self.home = self.models / "onprem/m-GGUF/master"
        self.pointer = self.served / "chat"
        repo = hub.tree.root / "models/onprem/m-GGUF"
        self.sizes = [(repo / part).stat().st_size for part in PARTS]
        self.whole = transfer.human(sum(self.sizes))
        self.model = Model("chat", "onprem/m-GGUF", "master", "modelscope", hub.url, ("F16/*",), (), PARTS[0])

    def run(self, *, check: bool = False, free: int = 10**12, **changes: Any) -> Outcome:
        source = transfer.Source(attempts=2, timeout=5, sleep=lambda _seconds: None)
        store = Store(self.models, self.served, source, check=check, free=lambda _folder: free)
        return store.publish(replace(self.model, **changes))

    def refuses(self, **how: Any) -> str:
        """The message of a run that fails; nothing is published by it."""
        before = self.state()
        with pytest.raises(StoreError) as refusal:
            self.run(**how)
        assert self.state() == before
        return str(refusal.value)

    def state(self) -> list[str]:
        """Everything published and every pointer."""
        published = [path for path in self.models.rglob("*") if ".staging" not in path.parts]
        published = [path for path in published if ".rejected" not in path.parts and path.is_file()]
        return sorted(map(str, published)) + [
            f"{path} -> {os.readlink(path)}" for path in self.served.glob("*") if path.is_symlink()
        ]


@pytest.fixture
def host(tmp_path: Path, hub: server.Hub) -> Host:
    return Host(tmp_path / "host", hub)


def test_a_model_is_published_read_only_and_pointed_to(host: Host) -> None:
    done = host.run()
    assert (done.changed, done.fetched, done.before, done.after) == (True, PARTS, "", str(host.home))
    assert os.readlink(host.pointer) == str(host.home)
    manifest = json.loads((host.home / "manifest.json").read_text())
    assert [entry["path"] for entry in manifest["files"]] == PARTS
    assert manifest["commit"] == host.hub.tree.commit("onprem/m-GGUF")
    for entry in manifest["files"]:
        place = host.pointer / entry["path"]
        assert place.stat().st_mode & 0o777 == 0o444
        assert hashlib.sha256(place.read_bytes()).hexdigest() == entry["sha256"]
    assert not list((host.models / ".staging").glob("*/**/*"))


def test_the_second_run_needs_no_network(host: Host) -> None:
    host.run()
    asked = len(host.hub.requests)
    done = host.run(location="http://127.0.0.1:1")
    assert (done.changed, done.fetched, done.transferred) == (False, [], 0)
    assert done.commit
    assert not host.run(check=True, location="http://127.0.0.1:1").changed
    assert len(host.hub.requests) == asked


def test_two_models_of_one_repository_share_its_files(host: Host) -> None:
    host.run()
    done = host.run(name="embedding")
    assert (done.changed, done.transferred) == (True, 0)
    assert os.readlink(host.served / "embedding") == os.readlink(host.pointer)


def test_another_selection_adds_to_the_same_revision(host: Host) -> None:
    host.run()
    done = host.run(name="docs", include=("README.md",), entry="")
    assert done.fetched == ["README.md"]
    assert not host.run().changed
    assert not host.run(name="docs", include=("README.md",), entry="").changed
    assert len(json.loads((host.home / "manifest.json").read_text())["files"]) == 3


def test_a_new_revision_moves_the_pointer(host: Host) -> None:
    host.run()
    commit = host.hub.tree.commit("onprem/m-GGUF")
    done = host.run(revision=commit)
    assert (done.before, done.after) == (str(host.home), str(host.home.with_name(commit)))
    assert os.readlink(host.pointer) == done.after
    assert done.commit == commit


def test_check_mode_says_what_it_would_fetch_and_does_nothing(host: Host) -> None:
    done = host.run(check=True)
    assert (done.changed, done.fetched) == (True, PARTS)
    assert f"2 files, {host.whole}, would be fetched" in done.notes[0]
    assert not host.models.exists()
    assert not host.served.exists()


def test_check_mode_without_a_hub(host: Host) -> None:
    done = host.run(check=True, location="http://127.0.0.1:1")
    assert done.changed
    assert "cannot be reached from here" in done.notes[0]


def test_a_moving_revision_is_warned_of(host: Host) -> None:
    done = host.run()
    assert "revision 'master' of onprem/m-GGUF is a branch or a tag that may move" in done.warnings[0]
    assert "playbooks/lock.yml" in done.warnings[0]
    assert host.run().warnings == []
    assert host.run(revision=host.hub.tree.commit("onprem/m-GGUF")).warnings == []


def test_a_missing_repository(host: Host) -> None:
    message = host.refuses(repo="onprem/none")
    assert "model 'chat': onprem/none (revision master) could not be listed" in message
    assert "HTTP 404" in message
    assert "Check `repo`, `revision`" in message
    assert host.refuses(repo="onprem/none", check=True) == message


def test_a_missing_revision(host: Host) -> None:
    assert "(revision v9) could not be listed" in host.refuses(revision="v9")


def test_a_hub_that_is_away(host: Host) -> None:
    assert "that this host reaches it" in host.refuses(location="http://127.0.0.1:1")


def test_nothing_matches_include(host: Host) -> None:
    message = host.refuses(include=("UD-IQ1_S/*", "*Q4*"))
    for named in ("model 'chat'", "onprem/m-GGUF", "UD-IQ1_S/*, *Q4*", *PARTS, "README.md", "Correct `include`"):
        assert named in message


def test_an_entry_that_is_not_there(host: Host) -> None:
    message = host.refuses(entry="F16/other.gguf")
    assert (
        f"entry 'F16/other.gguf' is not among the files of onprem/m-GGUF that `include` selects: {PARTS[0]}" in message
    )


@pytest.mark.parametrize("value", ["../x", "a b", "", "/etc", ".hidden"])
def test_names_that_lead_elsewhere(host: Host, value: str) -> None:
    assert f"revision is '{value}'" in host.refuses(revision=value)
    assert f"name is '{value}'" in host.refuses(name=value)
    assert f"repo is 'o/{value}'" in host.refuses(repo=f"o/{value}")


def test_a_disk_that_is_too_small(host: Host) -> None:
    for check in (True, False):
        message = host.refuses(free=100_000, check=check)
        assert f"model 'chat': {host.whole} of {host.whole} must still be stored in {host.models}" in message
        lacking = transfer.human(sum(host.sizes) - 100_000)
        assert f"100.0 kB are free: {lacking} too little. Nothing was downloaded." in message
        assert "`models_dir`" in message
    assert not [path for path, _range in host.hub.requests if "FilePath" in path or "cdn" in path]
    assert not host.models.exists()


def test_only_the_bytes_still_to_come_need_room(host: Host) -> None:
    host.hub.faults = [server.Fault("cut", PARTS[1], 200_000), server.Fault("no-range", PARTS[1])]
    assert "the answer ended after 200000 of" in host.refuses()
    host.hub.faults = []
    rest = host.sizes[1] - 200_000
    assert f"{transfer.human(rest)} of {host.whole} must still be stored" in host.refuses(free=rest - 1)
    assert host.run(free=rest).transferred == rest


def test_wrong_bytes_are_never_published(host: Host) -> None:
    host.hub.faults = [server.Fault("wrong", PARTS[1])]
    message = host.refuses()
    aside = host.models / ".rejected/onprem/m-GGUF/master" / PARTS[1]
    expected = host.hub.tree.content(host.hub.tree.root / "models/onprem/m-GGUF" / PARTS[1]).sha256
    assert f"expected sha256 {expected}, got sha256 {hashlib.sha256(aside.read_bytes()).hexdigest()}" in message
    assert f"set aside as {aside}" in message
    assert "FilePath=F16%2Fm-F16-00002-of-00002.gguf" in message
    assert not host.pointer.is_symlink()
    host.hub.faults = []
    assert host.run().transferred == host.sizes[1]  # the good part was kept


def test_a_hub_that_names_a_wrong_checksum(host: Host) -> None:
    host.hub.faults = [server.Fault("bad-hash", PARTS[0])]
    assert "the bytes are not the ones promised" in host.refuses()


@pytest.mark.parametrize("kind", ["empty", "page", "missing"])
def test_answers_that_are_no_model(host: Host, kind: str) -> None:
    host.hub.faults = [server.Fault(kind, PARTS[0])]
    assert "model 'chat': http://127.0.0.1" in host.refuses()


def test_a_corrupt_model_with_the_right_checksum(host: Host) -> None:
    path = host.hub.tree.root / "models/onprem/m-GGUF" / PARTS[1]
    path.write_bytes(path.read_bytes()[:-100])
    message = host.refuses()
    assert "tensor 'blk.3.weight' ends at byte" in message
    assert "it is not published. Choose another revision or file" in message


def test_a_part_that_include_leaves_out(host: Host) -> None:
    message = host.refuses(include=(PARTS[0],))
    assert "1 of 2 parts are there, missing: F16/m-F16-00002-of-00002.gguf" in message


def test_a_file_that_was_touched_is_verified_again(host: Host) -> None:
    host.run()
    os.utime(host.home / PARTS[0])
    done = host.run()
    assert (done.changed, done.fetched, done.transferred) == (True, [], 0)
    assert not host.run().changed


def test_a_file_that_was_damaged_is_fetched_again(host: Host) -> None:
    host.run()
    victim = host.home / PARTS[0]
    good = victim.read_bytes()
    victim.chmod(0o644)
    victim.write_bytes(good[:-1] + b"!")
    assert host.run().fetched == [PARTS[0]]
    assert victim.read_bytes() == good


def test_damage_to_one_model_is_not_hidden_by_another(host: Host) -> None:
    host.run()
    (host.home / PARTS[1]).unlink()
    host.run(name="docs", include=("README.md",), entry="")
    assert host.run().fetched == [PARTS[1]]


def test_a_pointer_that_is_a_folder(host: Host) -> None:
    host.pointer.mkdir(parents=True)
    assert f"{host.pointer} is no pointer of ours" in host.refuses()
    assert host.hub.requests == []


def test_a_token_goes_to_the_hub_and_not_to_its_storage(host: Host, hub: server.Hub) -> None:
    hub.token, hub.cdn = "secret", f"http://localhost:{hub.server_address[1]}"
    assert "HTTP 401" in host.refuses()
    Store(host.models, host.served, transfer.Source(token="secret", attempts=1)).publish(host.model)


# Directory -------------------------------------------------------------------------------------------------------


def directory(host: Host, folder: Path, **changes: Any) -> Outcome:
    return host.run(source="directory", location=str(folder), **changes)


def test_a_directory_without_checksums_says_so(host: Host) -> None:
    folder = host.hub.tree.root / "models"
    done = directory(host, folder)
    assert "checksum: computed here, nothing to compare with" in done.notes
    manifest = json.loads((host.home / "manifest.json").read_text())
    assert {entry["checksum"] for entry in manifest["files"]} == {"computed here"}
    assert not directory(host, folder).changed


@pytest.mark.parametrize(("mode", "shared"), [(0o644, os.getuid() == 0), (0o666, False)])
def test_a_directory_is_shared_only_when_nobody_else_can_write_it(host: Host, mode: int, shared: bool) -> None:
    folder = host.hub.tree.root / "models"
    for part in PARTS:
        (folder / "onprem/m-GGUF" / part).chmod(mode)
    directory(host, folder, free=0 if shared else 10**9)
    for part in PARTS:
        assert (host.home / part).samefile(folder / "onprem/m-GGUF" / part) == shared
        assert (host.home / part).read_bytes() == (folder / "onprem/m-GGUF" / part).read_bytes()


def test_a_directory_with_a_manifest_is_checked_against_it(host: Host, tmp_path: Path) -> None:
    host.run()
    host.home.parents[2].rename(tmp_path / "usb")
    host.pointer.unlink()
    done = directory(host, tmp_path / "usb")
    assert done.notes == []
    victim = tmp_path / "usb/onprem/m-GGUF/master" / PARTS[0]
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    host.home.parents[2].rename(tmp_path / "gone")
    host.pointer.unlink()
    assert "is not what the manifest beside it says: expected sha256" in host.refuses(
        source="directory", location=str(tmp_path / "usb")
    )


def test_a_directory_that_is_not_there(host: Host) -> None:
    message = host.refuses(source="directory", location="/no/such")
    assert "the directory /no/such on this host, which has neither onprem/m-GGUF/master nor onprem/m-GGUF" in message


class PowerCut(BaseException):
    """Not an Exception: nothing in the code can catch it and tidy up."""


def test_ended_between_any_two_steps(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends before each rename in turn: nothing half published, and no byte fetched twice."""
    really = os.replace
    steps = 0
    while not host.pointer.is_symlink():
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
            host.run()
        except PowerCut:
            assert not host.pointer.is_symlink()
        monkeypatch.setattr(os, "replace", really)
    assert steps > 2
    assert host.hub.sent == sum(host.sizes)
    assert not host.run().changed


def test_a_run_waits_for_what_a_killed_one_left_running(host: Host, tmp_path: Path) -> None:
    """The module on the host outlives a run that is killed on the controller; the next run finds its lock."""
    command = [sys.executable, "-c", CHILD, host.hub.url, str(tmp_path / "host"), PARTS[0]]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "collections")}
    host.hub.faults = [server.Fault("slow", "m-F16", 400_000)]
    child = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 20
    while not list(host.models.rglob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.02)
    impatient = Store(host.models, host.served, transfer.Source(attempts=1), patience=0.05)
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreError, match="another process is fetching into"):
        impatient.publish(host.model)
    child.send_signal(signal.SIGCONT)
    assert not host.run().changed
    assert child.wait() == 0
    assert host.hub.sent == sum(host.sizes)


# Killed ----------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from ansible_collections.onprem.llm.plugins.module_utils.model_store import Model, Store
url, folder = sys.argv[1], Path(sys.argv[2])
model = Model("chat", "onprem/m-GGUF", "master", "modelscope", url, ("F16/*",), (), sys.argv[3])
Store(folder / "models", folder / "served").publish(model)
"""


def test_killed_at_any_moment_and_run_again(host: Host, tmp_path: Path) -> None:
    """Twelve kills, from before the first byte until after the last: the last run converges."""
    command = [sys.executable, "-c", CHILD, host.hub.url, str(tmp_path / "host"), PARTS[0]]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "collections")}
    host.hub.faults = [server.Fault("slow", "m-F16", 2_000_000)]
    for kill in range(12):
        child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        sent = host.hub.sent
        deadline = time.monotonic() + 20
        while child.poll() is None and host.hub.sent - sent < 60_000 * (kill % 4) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.02 * (kill % 3))
        child.send_signal(signal.SIGKILL)
        child.wait()
        if host.pointer.is_symlink():
            break
        assert not (host.home / "manifest.json").exists() or len(host.state()) >= 3
    host.hub.faults = []
    host.run()
    assert os.readlink(host.pointer) == str(host.home)
    assert not host.run().changed
    assert not [path for path in host.models.rglob("*.part")]
