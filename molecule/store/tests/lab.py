# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of this scenario, seen from outside so that no fault hides them, and a hub that the tests hold."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import samples
import server
from conftest import INVENTORY, PROJECT, SSH_CONFIG, command, environment
from killing import Run
from transfers import sha256

LAB = "m-store"
NETWORK = "10.77.206"
GATEWAY = f"{NETWORK}.1"
ADDRESSES = {name: f"{NETWORK}.{number}" for number, name in enumerate(("h1", "h2", "h3", "late1"), 11)}
PORTS = (6881, 6882)
UNIT = "model_store"
TESTHOST = str(PROJECT / "tools/testhost")
TOKEN = INVENTORY / "secrets/hub_token"
#: In long tests 20.
KILLS = int(os.environ.get("ONPREM_KILLS", "3"))
SEED = int(os.environ.get("ONPREM_SEED") or random.SystemRandom().randrange(10**6))

MODELS, SERVED = "srv/llm/models", "srv/llm/served"


# Hosts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """Reached through its namespaces: the network may be cut, sshd may be gone."""

    name: str

    @property
    def folder(self) -> Path:
        return SSH_CONFIG.parent / "hosts" / self.name

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def address(self) -> str:
        return ADDRESSES[self.name]

    def testhost(self, verb: str, *arguments: str) -> None:
        subprocess.run([TESTHOST, verb, LAB, self.name, *arguments], check=True, capture_output=True, text=True)

    def run(self, script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        words = [TESTHOST, "exec", LAB, self.name, "bash", "-c", script]
        return subprocess.run(words, check=False, capture_output=True, text=True, input=stdin)

    def output(self, script: str, stdin: str = "") -> str:
        done = self.run(script, stdin)
        assert done.returncode == 0, f"{self.name}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def reaches(self, hosts: Sequence[Host]) -> set[str]:
        """Which of the fleet's ports on these hosts can be reached from here, as HOST:PORT."""
        probes = [f"timeout 1 bash -c '</dev/tcp/{host.address}/{port}' && echo {host.name}:{port} &"
                  for host in hosts for port in PORTS]  # fmt: skip
        return set(self.run(" ".join([*probes, "wait"])).stdout.split())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Not one instruction is executed on the host meanwhile."""
        first = Path("/sys/fs/cgroup/freezer/testhosts") / LAB / self.name
        switch, on, off = first / "freezer.state", "FROZEN", "THAWED"
        if not switch.exists():
            switch, on, off = Path("/sys/fs/cgroup/testhosts") / LAB / self.name / "cgroup.freeze", "1", "0"
        switch.write_text(on)
        try:
            deadline = time.monotonic() + 10
            while on == "FROZEN" and switch.read_text().strip() != on:
                assert time.monotonic() < deadline, f"{self.name} does not freeze"
                time.sleep(0.001)
            yield
        finally:
            switch.write_text(off)

    def copy_of_the_disk(self, target: Path) -> None:
        """What a power cut at this moment would leave: bytes that only lie in memory are not in it."""
        disk = self.folder / "disk.img"
        while True:
            before = disk.stat().st_mtime_ns
            subprocess.run(["cp", "--sparse=always", disk, target], check=True)
            if disk.stat().st_mtime_ns == before:  # the kernel has not written its journal meanwhile
                return


H1, H2, H3, LATE = (Host(name) for name in ADDRESSES)
FLEET = (H1, H2, H3)


@contextmanager
def mounted(disk: Path) -> Iterator[Path]:
    """The root of the host whose disk this is, as the next boot would find it."""
    place = disk.with_suffix(".mnt")
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", disk, place], check=True)
    try:
        yield place / "upper"
    finally:
        subprocess.run(["umount", place], check=True)


def files_with(host: Host, secret: str) -> list[str]:
    """Mode and path of every file of a running host that holds this text; weights aside."""
    places = "/etc /home /opt /root /run /tmp /usr/local /var/lib/model_store /var/log /var/spool /var/tmp"
    script = f"grep -rlsIF -D skip -f - {places} | xargs -r stat -c '%a %n' | sort"
    return host.output(script, stdin=secret + "\n").splitlines()


def stranger_reaches(hosts: Sequence[Host]) -> set[str]:
    """The same from this machine, which is in the lab's network and not of the fleet."""
    found = set()
    for host in hosts:
        for port in PORTS:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex((host.address, port)) == 0:
                    found.add(f"{host.name}:{port}")
    return found


# What lies there -----------------------------------------------------------------------------------------------------


def inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def home_of(root: Path, name: str) -> Path | None:
    """The folder that the pointer of a served model leads to."""
    pointer = root / SERVED / name
    return inside(root, os.readlink(pointer)) if pointer.is_symlink() else None


def check_published(root: Path, expected: dict[str, str], coming: str = "") -> int:
    """Everything that can be seen is whole, read-only and right. Returns how many models are complete.

    ``expected``: sha256 of every file that may be there, by its path below the models' folder. ``coming``: when this
    repository is published, others go: their manifest last, and no pointer leads to them.
    """
    complete = 0
    served = {home_of(root, pointer.name) for pointer in (root / SERVED).glob("[!.]*")}
    for name, checksum in expected.items():
        path = root / MODELS / name
        assert not path.exists() or sha256(path) == checksum, f"{name} is visible and wrong"
    for manifest in (root / MODELS).glob("[!.]*/*/*/manifest.json"):
        for entry in json.loads(manifest.read_text())["files"]:
            place = manifest.parent / entry["path"]
            if coming and f"/{coming}/" not in str(place) and manifest.parent not in served and not place.exists():
                continue
            assert place.stat().st_size == entry["size"] and sha256(place) == entry["sha256"], f"{place} is listed"
            assert place.stat().st_mode & 0o222 == 0, f"{place} can be written"
        complete += 1
    for pointer in (root / SERVED).glob("[!.]*"):
        home = home_of(root, pointer.name)
        assert home and (home / "manifest.json").exists(), f"{pointer.name} leads to {home}, which is not complete"
    return complete


# The hub and its models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proof:
    """A model made for a test: its files have seeded contents."""

    repo: str
    commit: str
    files: dict[str, str]
    """sha256 by path."""
    sizes: dict[str, int]

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    def wanted(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "repo": self.repo,
            "revision": self.commit,
            "source": "proof",
            "include": ["*.bin"],
            "entry": next(iter(self.files)),
        }

    @property
    def below_models(self) -> dict[str, str]:
        return {f"{self.repo}/{self.commit}/{path}": checksum for path, checksum in self.files.items()}


class Lab:
    """A hub in this process, with a token; playbooks that ask for what it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "models").mkdir()
        (folder / "artifacts").mkdir()
        TOKEN.parent.mkdir(mode=0o700, exist_ok=True)
        self.token = f"proof-{random.SystemRandom().randbytes(16).hex()}"
        TOKEN.write_text(self.token + "\n")
        TOKEN.chmod(0o600)
        self.hub = server.Hub(folder, (GATEWAY, 8091), token=self.token)
        self.chance = random.Random(SEED)
        self.models: list[Proof] = []
        self.said: list[str] = []
        """Output of all runs."""
        threading.Thread(target=self.hub.serve_forever, daemon=True).start()

    def forget(self, models: Sequence[Proof]) -> None:
        """The hub has them no longer: nobody needs it for what is published."""
        for model in models:
            shutil.rmtree(self.folder / "models" / model.repo)

    def close(self) -> None:
        self.hub.shutdown()
        self.hub.server_close()
        TOKEN.unlink(missing_ok=True)

    def make(self, name: str, sizes: Sequence[int]) -> Proof:
        """A repository with one file of each size, in bytes."""
        repo = self.folder / "models/proof" / name
        repo.mkdir(parents=True)
        for number, size in enumerate(sizes, 1):
            samples.seeded(repo / f"part-{number}.bin", size, zlib.crc32(f"{SEED} {name} {number}".encode()))
        full = f"proof/{name}"
        content = self.hub.tree.repo(full)
        assert content
        files = {path: file.sha256 for path, file in content.items()}
        sizes_by_path = {path: file.size for path, file in content.items()}
        model = Proof(full, self.hub.tree.commit(full), files, sizes_by_path)
        self.models.append(model)
        return model

    @property
    def expected(self) -> dict[str, str]:
        return {path: checksum for model in self.models for path, checksum in model.below_models.items()}

    def sent(self, model: Proof) -> int:
        """Bytes of the model's files that the hub has sent so far."""
        return sum(self.hub.sent_for[f"{model.repo}/{path}"] for path in model.files)

    def start(self, wanted: dict[str, list[dict[str, Any]]], *arguments: str, **variables: Any) -> Run:
        """playbooks/models.yml as a person runs it, with who shall hold what."""
        sources = {"proof": {"type": "modelscope", "url": self.hub.url, "token_secret": TOKEN.name}}
        here = "{{ wanted[inventory_hostname] | default([]) }}"
        extra = {"wanted": wanted, "model_store_models": here, "model_sources": sources, **variables}
        # The hosts stay what they are: one run gathers their facts for all.
        facts = {"ANSIBLE_CACHE_PLUGIN": "jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(self.folder / "facts")}
        words = command("playbooks/models.yml", "--extra-vars", json.dumps(extra), *arguments)
        return Run(words, {**environment(), **facts}, PROJECT)

    def finish(self, run: Run) -> tuple[int, str]:
        code = run.wait(300)
        self.said.append(run.output)
        return code, run.output

    def store(self, wanted: dict[str, list[dict[str, Any]]], *arguments: str, **variables: Any) -> str:
        """A run that must succeed."""
        code, said = self.finish(self.start(wanted, *arguments, **variables))
        assert code == 0, f"ONPREM_SEED={SEED}\n{said[-5000:]}"
        return said

    def sends(self, model: Proof, count: int, run: Run) -> bool:
        """Wait until the hub has sent so many bytes of the model; False when the run ended before."""
        while self.sent(model) < count:
            if run.process.poll() is not None:
                return False
            time.sleep(0.005)
        return True

    def holds(self, host: Host, model: Proof, name: str) -> None:
        """The host serves this model under that name, and every byte of it is right."""
        home = home_of(host.root, name)
        assert home == host.root / MODELS / model.repo / model.commit, f"{host.name}: {name} leads to {home}"
        for path, checksum in model.files.items():
            assert sha256(home / path) == checksum, f"{host.name}: {path}"
            assert (home / path).stat().st_mode & 0o222 == 0


def at_once(work: Callable[[Host], Any], hosts: Sequence[Host]) -> list[Any]:
    """The same on several hosts at the same time; the first error is raised."""
    results: dict[str, Any] = {}
    errors: list[BaseException] = []

    def one(host: Host) -> None:
        try:
            results[host.name] = work(host)
        except BaseException as error:  # raised below, in the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=one, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[host.name] for host in hosts]


def changes(said: str) -> dict[str, int]:
    """Changed tasks by host, from a run's recap."""
    return {name: int(count) for name, count in re.findall(r"(?m)^(\S+)\s+: ok=\d+\s+changed=(\d+)", said)}


class Watch:
    """Looks at the arguments of every process of this machine, and so of its test hosts, for a secret."""

    def __init__(self, secret: str) -> None:
        self.secret = secret.encode()
        self.found: set[str] = set()
        self.seen = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(0.05):
            for place in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    arguments = place.read_bytes()
                    self.seen += 1
                    if self.secret in arguments:
                        self.found.add(arguments.replace(b"\0", b" ").decode(errors="replace"))

    def end(self) -> None:
        self._end.set()
        self._thread.join()
