# SPDX-License-Identifier: GPL-3.0-or-later
"""The program as the role installs it: what it does, how it ends, and what it says."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage, program, sources, status
from ansible_collections.onprem.llm.plugins.module_utils.model_store.damage import Damage
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import (
    Model,
    ModelStatus,
    Request,
    Source,
    Status,
    as_json,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import samples
import server

PROJECT = Path(__file__).parents[2]
UTILS = "ansible_collections/onprem/llm/plugins/module_utils"
PARTS = [f"F16/m-F16-0000{number}-of-00002.gguf" for number in (1, 2)]
REPO = "onprem/m-GGUF"
TOKEN = "a-token-that-nobody-sees"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[server.Hub]:
    samples.split(tmp_path / "root/models" / REPO / "F16", "m-F16", 2, rows=2000)
    with server.running(tmp_path / "root", token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program's tree, as it lies on a host."""
    top = tmp_path_factory.mktemp("opt")
    for folder in ("", "model_store"):
        (top / UTILS / folder).mkdir(parents=True, exist_ok=True)
        for path in (PROJECT / "plugins/module_utils" / folder).glob("*.py"):
            shutil.copy(path, top / UTILS / folder)
    shutil.copy(PROJECT / "roles/model_store/files/model-store", top)
    return top / "model-store"


class Host:
    def __init__(self, folder: Path, hub: server.Hub, command: Path) -> None:
        self.hub, self.command = hub, command
        self.store, self.run_folder, self.state = folder / "models", folder / "run", folder / "state"
        self.home = self.store / REPO / "master"
        self.manifest = self.home / "manifest.json"
        self.environment = {"RUNTIME_DIRECTORY": str(self.run_folder), "STATE_DIRECTORY": str(self.state)}
        for path in (self.run_folder, self.state):
            path.mkdir(parents=True)
        source = Source("hub", "modelscope", hub.url, token=TOKEN)
        wanted = Model("chat", REPO, "master", ("F16/*",), (), PARTS[0], sources=(source,))
        self.model = sources.listing(wanted, None, transfer.Source(attempts=1))[0]
        self.whole = sum(file.size for file in self.model.files)

    def ask(self, **settings: Any) -> None:
        request = Request(str(self.store), (self.model,), **{"attempts": 1, "stall_seconds": 5, **settings})
        status.write_json(self.run_folder / "request.json", as_json(request), 0o600)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        # Isolated as on a host: of this Python only its libraries.
        argv = [sys.executable, "-IB", str(self.command), *arguments]
        environment = {**os.environ, **self.environment}
        return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output = process.communicate(timeout=60)[0]
        assert TOKEN not in output
        return process.returncode, output

    @property
    def status(self) -> Status:
        found = status.read(self.run_folder / "status.json")
        assert found is not None
        return found


@pytest.fixture
def host(tmp_path: Path, hub: server.Hub, command: Path) -> Host:
    return Host(tmp_path / "host", hub, command)


def test_a_request_is_carried_out(host: Host) -> None:
    host.ask()
    assert host.run("fetch") == (0, f"model 'chat': published, {transfer.human(host.whole)}\n")
    assert host.manifest.exists()
    assert (host.status.state, host.status.models[0].state) == ("done", "published")
    assert [path.name for path in host.run_folder.iterdir()] == ["status.json"]
    assert (host.run_folder / "status.json").stat().st_mode & 0o777 == 0o644
    assert TOKEN not in (host.run_folder / "status.json").read_text() + host.manifest.read_text()


def test_others_can_read_what_is_published_whatever_the_umask(host: Host) -> None:
    host.ask()
    old = os.umask(0o077)
    try:
        assert host.run("fetch")[0] == 0
    finally:
        os.umask(old)
    for path in (host.home / PARTS[0], host.manifest):
        assert path.stat().st_mode & 0o777 == 0o444
        for folder in [folder for folder in path.parents if folder.is_relative_to(host.store)]:
            assert folder.stat().st_mode & 0o777 == 0o755


def test_a_failure_says_why(host: Host) -> None:
    host.ask()
    host.hub.faults = [server.Fault("missing", PARTS[1])]
    code, output = host.run("fetch")
    assert code == 1
    assert f"model 'chat': {PARTS[1]} of {REPO} (revision master) could not be had" in output
    assert "HTTP 404" in output
    assert "Traceback" not in output
    assert (host.status.state, host.status.models[0].state) == ("failed", "failed")
    assert host.status.models[0].message in output
    assert not (host.run_folder / "request.json").exists()
    assert not host.manifest.exists()


@pytest.mark.parametrize(("text", "why"), [(None, "nothing is asked for"), ("{", "cannot be read")])
def test_a_request_nobody_can_read(host: Host, text: str | None, why: str) -> None:
    if text is not None:
        (host.run_folder / "request.json").write_text(text)
    code, output = host.run("fetch")
    assert code == 1
    assert f"{host.run_folder}/request.json" in output
    assert why in output


def test_a_library_that_is_missing(host: Host, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from ansible_collections.onprem.llm.plugins.module_utils.model_store import curl

    monkeypatch.setattr(curl, "pycurl", None)
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    host.ask()
    old = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        assert program.main(["fetch"]) == 1
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), old, strict=True):
            signal.signal(number, handler)
    assert "python3-pycurl" in capsys.readouterr().err
    assert "python3-pycurl" in host.status.models[0].message


def test_who_is_told_to_stop_stops_and_keeps_what_came(host: Host) -> None:
    host.ask()
    host.hub.rate = 200_000
    process = host.start("fetch")
    began(host, 60_000)
    process.send_signal(signal.SIGTERM)
    # Ended by the signal itself: for systemd a service that was stopped.
    assert process.wait(timeout=10) == -signal.SIGTERM
    assert host.status.state == "failed"
    assert "It was told to stop. What came is kept" in host.status.models[0].message
    assert not (host.run_folder / "request.json").exists()
    kept = sum(path.stat().st_size for path in host.store.rglob("*.part"))
    assert kept > 0
    host.hub.rate = 0
    host.ask()
    assert host.run("fetch")[0] == 0
    assert host.status.from_hubs == host.whole - kept


def began(host: Host, sent: int) -> None:
    deadline = time.monotonic() + 20
    while host.hub.sent < sent and time.monotonic() < deadline:
        time.sleep(0.01)
    assert host.hub.sent >= sent


def test_two_never_fetch_into_one_store(host: Host) -> None:
    host.store.mkdir()
    handle = os.open(host.store, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    host.ask()
    process = host.start("fetch")
    time.sleep(1)
    assert process.poll() is None
    assert host.hub.sent == 0
    os.close(handle)
    assert process.wait(timeout=20) == 0
    assert host.manifest.exists()


def test_killed_at_any_moment_and_started_again(host: Host) -> None:
    """Twelve kills, from before the first byte until after the last: the last run converges."""
    host.ask()
    host.hub.rate = 2_000_000
    for kill in range(12):
        process = host.start("fetch")
        sent = host.hub.sent
        deadline = time.monotonic() + 20
        while process.poll() is None and host.hub.sent - sent < 60_000 * (kill % 4) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.02 * (kill % 3))
        process.kill()
        process.communicate()
        if host.manifest.exists():
            break
        # What it was asked is still there: systemd starts it again.
        assert (host.run_folder / "request.json").exists()
        assert host.status.state == "running" if (host.run_folder / "status.json").exists() else True
    host.hub.rate = 0
    host.ask()
    assert host.run("fetch")[0] == 0
    published = json.loads(host.manifest.read_text())["files"]
    assert [(entry["path"], entry["sha256"]) for entry in published] == [
        (file.path, file.sha256) for file in host.model.files
    ]
    assert not [path for path in host.store.rglob("*.part")]


# verify and status -----------------------------------------------------------------------------------------------


def test_verify_finds_and_the_next_fetch_mends(host: Host) -> None:
    host.ask()
    host.run("fetch")
    verify = ("verify", "--store", str(host.store))
    assert host.run(*verify) == (0, f"2 files, {transfer.human(host.whole)}, were read\n")
    victim = host.home / PARTS[0]
    before, data = victim.stat(), bytearray(victim.read_bytes())
    data[70_000] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, output = host.run(*verify)
    assert code == 1
    assert f"{victim}: 1 of 16 pieces are damaged" in output
    assert "Damaged: 1. Run playbooks/models.yml" in output
    assert f"damaged: {REPO} master {PARTS[0]}" in host.run("status")[1]
    sent = host.hub.sent
    host.ask()
    assert host.run("fetch")[0] == 0
    assert host.hub.sent - sent == 16 << 10
    assert host.run(*verify)[0] == 0


def test_status_is_for_people_and_for_programs(host: Host) -> None:
    assert host.run("status") == (0, "No transfer since this host was started.\n")
    assert json.loads(host.run("status", "--json")[1]) is None
    host.ask()
    host.run("fetch")
    damage.write(host.state / "damage.json", 1_700_000_000.0, [Damage("o/m", "main", "a.bin", (3,))])
    told = host.run("status")[1]
    assert "done, " in told
    assert f"chat: 100.0 % of {transfer.human(host.whole)}, published" in told
    assert "damaged: o/m main a.bin (run playbooks/models.yml: it mends what is placed here)" in told
    assert "verified last: 2023-11-1" in told
    assert json.loads(host.run("status", "--json")[1])["state"] == "done"


def test_the_lines_of_a_transfer_that_runs() -> None:
    chat = ModelStatus("chat", 200 * 10**9, 50 * 10**9, "fetching", "modelscope")
    words = ModelStatus("words", 10**9, 0, "failed", "", "model 'words': no source has it")
    seen = Status("x", "running", 0, 95, [chat, words], rate=2e7, remaining=15 * 10**10, eta=7500, warnings=["a moved"])
    assert program.lines(seen, 100) == [
        "running, 5 s ago; 20.0 MB/s, 2 h 05 min to go",
        "  chat: 25.0 % of 200.0 GB, fetching from modelscope",
        "  words: 0.0 % of 1.0 GB, failed",
        "    model 'words': no source has it",
        "  a moved",
    ]
