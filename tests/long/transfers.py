# SPDX-License-Identifier: GPL-3.0-or-later
"""The transfer program as a process of this machine, and a model with seeded contents for it to fetch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from killing import descendants

from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Request, Source, as_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))
import samples
import server

PROJECT = Path(__file__).resolve().parents[2]
PROGRAM = PROJECT / "roles/model_store/files/model-store"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Site:
    """A store with one model to fetch: repository proof/NAME with one file of each size."""

    def __init__(
        self, hub: server.Hub, folder: Path, name: str, sizes: Sequence[int], *, seed: int, **settings: Any
    ) -> None:
        self.hub, self.folder, self.repo = hub, folder, f"proof/{name}"
        self.store, self.run, self.state = folder / "models", folder / "run", folder / "state"
        for place in (self.run, self.state):
            place.mkdir(parents=True)
        self.served = hub.tree.root / "models" / self.repo
        for number, size in enumerate(sizes, 1):
            samples.seeded(self.served / f"part-{number}.bin", size, seed + number)
        content = hub.tree.repo(self.repo)
        assert content
        self.files = {path: file.sha256 for path, file in content.items()}
        commit = hub.tree.commit(self.repo)
        self.home = self.store / self.repo / commit
        self.model = Model(
            name=name,
            repo=self.repo,
            revision=commit,
            include=("*.bin",),
            commit=commit,
            files=tuple(File(path, file.size, file.sha256) for path, file in content.items()),
            sources=(Source("proof", "modelscope", url=hub.url, token=hub.token),),
            origin="proof",
        )
        self.request = Request(store=str(self.store), models=(self.model,), **settings)

    def clear(self) -> None:
        """Nothing is left, here and on the hub."""
        shutil.rmtree(self.folder)
        shutil.rmtree(self.served)

    def start(self) -> subprocess.Popen[bytes]:
        """The program at work on the request."""
        place = self.run / "request.json"
        place.unlink(missing_ok=True)
        with open(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            json.dump(as_json(self.request), file)
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROJECT / "collections"),
            "RUNTIME_DIRECTORY": str(self.run),
            "STATE_DIRECTORY": str(self.state),
        }
        with (self.folder / "said").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, str(PROGRAM), "fetch"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def fetch(self, seconds: float = 300) -> int:
        """The program's exit status; -9 when it did not end in that time."""
        program = self.start()
        try:
            return program.wait(seconds)
        except subprocess.TimeoutExpired:
            program.kill()
            return program.wait()

    def first_byte(self, program: subprocess.Popen[bytes]) -> float:
        """When the hub began to send."""
        while not self.sent():
            assert program.poll() is None, self.said()
            time.sleep(0.001)
        return time.monotonic()

    def sent(self) -> int:
        """Bytes of the model's files that the hub has sent."""
        return sum(self.hub.sent_for[f"{self.repo}/{path}"] for path in self.files)

    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        return found

    def children(self, pid: int) -> list[int]:
        return descendants(pid)

    def visible(self) -> bool:
        """Whether anything is published."""
        return any(self.home.glob("*.bin"))

    def nothing_is_early(self) -> None:
        """Whatever can be seen is whole and right, and a manifest lists nothing else."""
        for path in self.home.glob("*.bin"):
            assert sha256(path) == self.files[path.name], f"{path.name} is visible and wrong"
        if (self.home / "manifest.json").exists():
            self.complete()

    def complete(self) -> None:
        listed = {entry["path"]: entry for entry in json.loads((self.home / "manifest.json").read_text())["files"]}
        assert {path: entry["sha256"] for path, entry in listed.items()} == self.files
        for path, checksum in self.files.items():
            assert sha256(self.home / path) == checksum, path
            assert (self.home / path).stat().st_mode & 0o222 == 0, path
