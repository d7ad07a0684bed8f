# SPDX-License-Identifier: GPL-3.0-or-later
"""The hubs' own clients download from the hub of the tests: it speaks their protocol, faults included.

The clients are those of requirements/hubs.txt, in an environment of their own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import clients
import samples
import server

REPO = "onprem/m-GGUF"
TOKEN = "t0ken-of-the-test"
SHARD = f"{REPO}/F16/m-F16-00001-of-00002.gguf"
Command = Callable[..., list[str]]

both = pytest.mark.parametrize("client", [clients.modelscope, clients.huggingface])


@pytest.fixture(scope="module", autouse=True)
def programs() -> Path:
    return clients.programs()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "root/models" / REPO
    samples.seeded_split(folder / "F16", "m-F16", 2, 5_000_000)
    (folder / "README.md").write_text("# m\n")
    (folder / "empty.txt").touch()
    (folder / ".gitattributes").write_text("*.gguf filter=lfs diff=lfs merge=lfs -text\n")
    return folder


@pytest.fixture
def hub(repo: Path) -> Iterator[server.Hub]:
    """As the real ones: a token is asked for, and large files lie on another host."""
    with server.running(repo.parents[2], token=TOKEN) as running:
        running.cdn = f"http://localhost:{running.server_address[1]}"
        running.xet = True
        yield running


def ran(hub: server.Hub, folder: Path, command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**clients.environment(hub.url, folder / "home", TOKEN), **more}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def files(folder: Path) -> dict[str, bytes]:
    """What a client left, without its own notes."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in paths}
    own = re.compile(r"^(\.cache/|\.msc|\.mv|\._____temp/|\.lock)")
    return {name: path.read_bytes() for name, path in names.items() if not own.match(name)}


@both
def test_a_whole_repository(hub: server.Hub, repo: Path, tmp_path: Path, client: Command) -> None:
    done = ran(hub, tmp_path, client(REPO, tmp_path / "got"))
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "got") == files(repo)
    assert hub.sent_for[SHARD] == (repo / "F16/m-F16-00001-of-00002.gguf").stat().st_size


@both
def test_a_selection_of_files(hub: server.Hub, repo: Path, tmp_path: Path, client: Command) -> None:
    done = ran(hub, tmp_path, client(REPO, tmp_path / "got", "--include", "*-00002-of-*"))
    assert done.returncode == 0, done.stderr
    assert list(files(tmp_path / "got")) == ["F16/m-F16-00002-of-00002.gguf"]


@both
def test_a_connection_that_breaks_off(hub: server.Hub, repo: Path, tmp_path: Path, client: Command) -> None:
    hub.faults = [server.Fault("cut-once", "00001-of", 1_000_000)]
    done = ran(hub, tmp_path, client(REPO, tmp_path / "got"))
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "got") == files(repo)
    assert len([path for path, _range in hub.requests if path.startswith("/cdn/") and "00001-of" in path]) == 2


def test_modelscope_in_parallel_parts(hub: server.Hub, repo: Path, tmp_path: Path) -> None:
    parts = {
        "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "4",
        "MODELSCOPE_DOWNLOAD_PARALLEL_THRESHOLD_MB": "1",
        "MODELSCOPE_DOWNLOAD_PART_SIZE_MB": "1",
    }
    done = ran(hub, tmp_path, clients.modelscope(REPO, tmp_path / "got"), **parts)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "got") == files(repo)
    assert len([given for path, given in hub.requests if "cdn" in path and re.match(r"bytes=\d+-\d+", given)]) >= 8


@both
def test_wrong_bytes_are_refused(hub: server.Hub, repo: Path, tmp_path: Path, client: Command) -> None:
    """Hugging Face's client does not hash what it downloads, its `hf cache verify` does."""
    hub.faults = [server.Fault("wrong", "00001-of", 2_000_000)]
    done = ran(hub, tmp_path, client(REPO, tmp_path / "got"))
    if client is clients.huggingface:
        assert done.returncode == 0, done.stderr
        done = ran(hub, tmp_path, ["hf", "cache", "verify", REPO, "--local-dir", str(tmp_path / "got")])
    assert done.returncode != 0
    assert "00001-of-00002" in done.stdout + done.stderr


def test_hugging_face_finds_every_hash_right(hub: server.Hub, tmp_path: Path) -> None:
    assert ran(hub, tmp_path, clients.huggingface(REPO, tmp_path / "got")).returncode == 0
    done = ran(hub, tmp_path, ["hf", "cache", "verify", REPO, "--local-dir", str(tmp_path / "got")])
    assert done.returncode == 0, done.stdout + done.stderr


@both
def test_without_the_token(hub: server.Hub, tmp_path: Path, client: Command) -> None:
    done = ran(hub, tmp_path, client(REPO, tmp_path / "got"), MODELSCOPE_API_TOKEN="", HF_TOKEN="")
    assert done.returncode != 0 and not files(tmp_path / "got")


LISTING = {
    "modelscope": "from modelscope_hub import HubApi\n"
    "found = [file.path for file in HubApi().list_repo_files('onprem/many', 'model')]",
    "huggingface": "from huggingface_hub import HfApi\nfound = HfApi().list_repo_files('onprem/many')",
}


@pytest.mark.parametrize("client", LISTING)
def test_more_files_than_one_list_holds(hub: server.Hub, tmp_path: Path, client: str) -> None:
    folder = hub.tree.root / "models/onprem/many"
    names = [f"{number % 3}/{number}.txt" for number in range(3100)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    done = ran(hub, tmp_path, ["python", "-c", f"{LISTING[client]}\nimport json; print(json.dumps(found))"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(name for name in found if "/" in name) == sorted(names)  # ModelScope's client counts folders too
