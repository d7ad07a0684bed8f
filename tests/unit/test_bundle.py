# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle: which models go in, what its list of checksums says, and a part of a Debian archive."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conventions
import pytest
from conventions import PROJECT, ROLE_NAMES, module_of, role

from ansible_collections.onprem.llm.plugins.action import bundle_models
from ansible_collections.onprem.llm.plugins.module_utils import apt_archive, apt_components, bundle, transfer
from ansible_collections.onprem.llm.plugins.module_utils.cuda import packages as cuda_packages
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import build as kt_build
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest, sources
from ansible_collections.onprem.llm.plugins.module_utils.model_store.manifest import Entry, Manifest, Selection
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import StoreError
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import packages as nvidia_packages
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import Options

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import samples
import server


def variant(repo: str, quantisation: str = "", size: int | None = None, **more: Any) -> dict[str, Any]:
    base = {"source": "hub", "repo": repo, "revision": "master", "include": ["*"], "entry": "a.gguf"}
    return {**base, "quantisation": quantisation, "size": size, **more}


BIG = {"name": "big", "variants": [variant("o/big", "FP8", 700_000_000_000), variant("o/big-GGUF", "Q4_K_M")]}
SMALL = {"name": "small", "variants": [variant("o/small")]}


# --- which models


def test_without_a_plan_every_model_has_one_variant() -> None:
    found = bundle.bundled_models([SMALL], [])
    assert [(one["name"], one["repo"]) for one in found] == [("small", "o/small")]
    with pytest.raises(bundle.BundleError) as caught:
        bundle.bundled_models([SMALL, BIG], [])
    assert "- 'big' has 2: FP8 (700.0 GB), Q4_K_M (size unknown)" in str(caught.value)
    assert "'small'" not in str(caught.value)
    assert "-e bundle_plan=plan.json here." in str(caught.value)


def test_a_plan_decides_and_companions_come_along() -> None:
    chosen = variant("o/big", "FP8", companions=[{"repo": "o/original", "revision": "main"}])
    nowhere = {"model": "big", "host": "b", "engine": "", "variant": BIG["variants"][1]}
    found = bundle.bundled_models(
        [BIG],
        [
            {"model": "big", "host": "a", "engine": "llamacpp", "variant": chosen},
            {"model": "big", "host": "c", "engine": "llamacpp", "variant": chosen},
            nowhere,
        ],
    )
    assert [one["repo"] for one in found] == ["o/big", "o/original"]


def test_a_plan_for_other_models_is_refused() -> None:
    placed = [{"model": "other", "host": "a", "engine": "llamacpp", "variant": variant("o/other")}]
    with pytest.raises(bundle.BundleError, match=r"bundle_plan places no small: .*Make it again"):
        bundle.bundled_models([SMALL], placed)


# --- bringing them


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[server.Hub]:
    repo = tmp_path / "root/models/onprem/m-GGUF"
    samples.split(repo / "F16", "m-F16", 2, rows=20000)
    really = sources.asking
    monkeypatch.setattr(sources, "asking", lambda one, asked: replace(really(one, asked), attempts=1))
    with server.running(tmp_path / "root") as running:
        yield running


def bring(store: Path, hub: server.Hub, *, check: bool = False) -> dict[str, Any]:
    """What the module answers; the controller's part of it, without Ansible around."""
    plugin = SimpleNamespace(_task=SimpleNamespace(check_mode=check))
    entry = "F16/m-F16-00001-of-00002.gguf"
    wanted = {"name": "chat", "source": "hub", "repo": "onprem/m-GGUF", "revision": "master", "include": ["F16/*"]}
    given = {
        **bundle_models.DEFAULTS,
        "store": str(store),
        "models": [{**wanted, "entry": entry}],
        "sources": {"hub": {"type": "modelscope", "url": hub.url}},
        "fleet": None,
    }
    answer: dict[str, Any] = bundle_models.ActionModule._fetch(plugin, given)
    return answer


def test_models_are_brought_once_and_a_second_run_asks_nobody(tmp_path: Path, hub: server.Hub) -> None:
    size = sum(path.stat().st_size for path in (tmp_path / "root").rglob("*.gguf"))
    store = tmp_path / "disk/models"
    assert bring(store, hub, check=True) == {"changed": True, "fetched": ["chat"], "transferred": 0}
    assert not store.exists() and not hub.requests
    assert bring(store, hub) == {"changed": True, "fetched": ["chat"], "transferred": size}
    hub.requests.clear()
    assert bring(store, hub) == {"changed": False, "fetched": [], "transferred": 0}
    assert not hub.requests


def test_a_run_that_broke_off_is_continued(tmp_path: Path, hub: server.Hub) -> None:
    paths = sorted((tmp_path / "root").rglob("*.gguf"))
    cut = paths[1].stat().st_size // 2
    hub.faults = [server.Fault("cut", "00002-of", cut)]
    with pytest.raises(StoreError, match=r"model 'chat': F16/m-F16-00002-of-00002.gguf of onprem/m-GGUF"):
        bring(tmp_path / "models", hub)
    assert not (tmp_path / "models/onprem/m-GGUF/master").exists()
    hub.faults = []
    assert bring(tmp_path / "models", hub)["transferred"] == paths[1].stat().st_size - cut


def test_of_two_runs_one_brings_the_models(tmp_path: Path, hub: server.Hub) -> None:
    size = sum(path.stat().st_size for path in (tmp_path / "root").rglob("*.gguf"))
    hub.faults = [server.Fault("slow", "00001-of", value=size)]  # about half a second
    answers: list[dict[str, Any]] = []
    runs = [threading.Thread(target=lambda: answers.append(bring(tmp_path / "models", hub))) for _ in range(2)]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert [(one["fetched"], one["transferred"]) for one in answers] == [(["chat"], size), ([], 0)]


# --- the role


def test_no_root_is_needed(tmp_path: Path) -> None:
    """Root itself goes into a namespace where it is somebody else, and may give nothing to root."""
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    if user and subprocess.run([*user, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root may not make a user namespace here, and no user is at hand")
    (tmp_path / "disk").mkdir()
    # As most inventories have it; it also holds for the controller.
    groups = {name: {} for name in ("inference", "llamacpp", "openwebui")}
    site = {"all": {"vars": {"ansible_become": True}, "children": groups}}
    (tmp_path / "hosts.yml").write_text(json.dumps(site))
    command = [*user, str(Path(sys.executable).with_name("ansible-playbook")), "playbooks/bundle.yml"]
    command += ["-i", str(tmp_path / "hosts.yml"), "-e", f"bundle_dir={tmp_path / 'disk'}"]
    environment = {**os.environ, "ANSIBLE_REMOTE_TEMP": str(tmp_path / "ansible")}
    for changed in (2, 0):
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        assert re.search(rf"changed={changed} .*failed=0", done.stdout), done.stdout + done.stderr
    assert "  offline.yml\n" in (tmp_path / "disk" / bundle.SUMS).read_text()


def test_another_lock_or_platform_makes_the_wheels_incomplete(tmp_path: Path) -> None:
    for folder, lock, uv in (("now", "1", "1"), ("lock", "2", "1"), ("uv", "1", "2")):
        (tmp_path / folder / "openwebui").mkdir(parents=True)
        (tmp_path / folder / "openwebui/py3.13.txt").write_text(lock)
        (tmp_path / folder / "openwebui/uv.txt").write_text(uv)
    cases = [("now", ["one"]), ("now", ["one", "two"]), ("lock", ["one"]), ("uv", ["one"]), ("now", ["one"])]
    told = [
        {
            "ansible.builtin.copy": {"content": "{{ __bundle_marker }}", "dest": f"{tmp_path}/{number}"},
            "vars": {"__bundle_locks": f"{tmp_path}/{folder}", "__bundle_platforms": platforms},
        }
        for number, (folder, platforms) in enumerate(cases)
    ]
    wheel = {"lock": "openwebui/py3.13.txt", "python": "3.13"}
    known = {"ansible_python_interpreter": sys.executable, "bundle_dir": "/disk", "__bundle_wheel": wheel}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": known, "tasks": told}
    (tmp_path / "play.yml").write_text(
        json.dumps([{**play, "vars_files": [str(PROJECT / "roles/bundle/vars/main.yml")]}])
    )
    command = [Path(sys.executable).with_name("ansible-playbook"), tmp_path / "play.yml"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *others, again = [(tmp_path / str(number)).read_text() for number in range(len(cases))]
    assert first == again and re.fullmatch(r"/disk/wheels/\.3\.13-[0-9a-f]{8}", first)
    assert len({first, *others}) == len(cases) - 1


# --- what hosts with GPUs need

SYSTEMS = {"Debian 12": "3.11", "Debian 13": "3.13", "Ubuntu 24": "3.12"}


def gpu(part: str, source: str, repository: str = "", python: str = "", host: str = "gpu1") -> dict[str, str]:
    return {"host": host, "part": part, "source": source, "repository": repository, "python": python}


def test_wheels_for_the_pythons_that_have_some() -> None:
    site = [gpu("ktransformers", "wheel"), gpu("ktransformers", "wheel", host="gpu2")]
    found = bundle.bundled_wheels(["openwebui", "ktransformers"], site, SYSTEMS)
    assert [tuple(one) for one in found] == [
        ("openwebui/py3.11.txt", "3.11"),
        ("openwebui/py3.13.txt", "3.13"),
        ("openwebui/py3.12.txt", "3.12"),
        ("ktransformers/py3.11.txt", "3.11"),
        ("ktransformers/py3.12.txt", "3.12"),
    ]
    # Nobody in the group: not one of those gigabytes.
    assert bundle.bundled_wheels(["nvidia_driver"], [gpu("nvidia_driver", "distro")], SYSTEMS) == []
    own = [gpu("ktransformers", "source", python="/opt/python3.12/bin/python3.12")]
    assert [tuple(one) for one in bundle.bundled_wheels([], own, {"Debian 13": "3.13"})] == [
        ("ktransformers/py3.12.txt", "3.12"),
        ("ktransformers/build.txt", "3.12"),
    ]
    classic = bundle.bundled_wheels([], [gpu("ktransformers", "classic")], SYSTEMS)
    assert classic == [("ktransformers/classic-py3.11.txt", "3.11")]


def test_there_is_a_lock_for_everything_that_may_be_brought() -> None:
    site = [gpu("ktransformers", method) for method in bundle.PYTHONS]
    for one in bundle.bundled_wheels(["openwebui"], site, SYSTEMS):
        assert (PROJECT / "requirements" / one.lock).is_file(), one


def test_what_cannot_come_along_is_said() -> None:
    site = [gpu("nvidia_driver", "distro"), gpu("cuda_toolkit", "distro"), gpu("ktransformers", "wheel")]
    assert bundle.lacking(site, {"Debian 12": "3.11", "Debian 13": "3.13"}) == []
    mirror = "https://mirror.example/cuda"
    assert bundle.lacking([gpu(part, "nvidia_repo", mirror) for part in ("nvidia_driver", "cuda_toolkit")], {}) == []
    (driver, toolkit) = bundle.lacking(
        [
            gpu("nvidia_driver", "nvidia_repo"),
            gpu("nvidia_driver", "nvidia_repo", host="b"),
            gpu("cuda_toolkit", "nvidia_repo"),
        ],
        SYSTEMS,
    )
    assert "nvidia_driver_source is nvidia_repo on gpu1, b: set nvidia_repository_url" in driver
    assert "cuda_toolkit_source is nvidia_repo on gpu1:" in toolkit and toolkit.endswith(
        "set cuda_toolkit_source: distro."
    )
    (ubuntu,) = bundle.lacking([gpu("nvidia_driver", "distro")], SYSTEMS)
    assert "packages of Ubuntu 24" in ubuntu and "nvidia_driver_source: preinstalled" in ubuntu
    (python,) = bundle.lacking([gpu("ktransformers", "wheel")], {"Debian 13": "3.13"})
    assert "for Python 3.11 and 3.12, and it has 3.13. Set ktransformers_python" in python
    (named,) = bundle.lacking([gpu("ktransformers", "classic", python="/usr/bin/python3")], {})
    assert "for Python 3.11, and it has /usr/bin/python3." in named
    # Hosts with a mirror of apt and of the Python index.
    assert bundle.lacking([gpu("ktransformers", "wheel"), gpu("nvidia_driver", "distro")], {}) == []


def test_what_hosts_say_reaches_the_bundle(tmp_path: Path) -> None:
    """The site's own wiring, without the role: sources, parts and files of an inventory."""
    inventory = tmp_path / "inventory"
    inventory.mkdir()
    (inventory / "groups.yml").write_text((PROJECT / "inventories/groups.yml").read_text())
    runfile = {"version": "1", "url": "https://nvidia.example/1.run", "sha256": "0" * 64, "size": 1}
    site = {
        "nvidia_driver": {
            "hosts": {
                "a": {"nvidia_driver_source": "runfile", "nvidia_driver_runfile": runfile},
                "b": {"nvidia_driver_source": "nvidia_repo"},
            }
        },
        "cuda_toolkit": {"hosts": {"b": {"cuda_toolkit_source": "nvidia_repo"}}},
        "ktransformers": {"hosts": {"a": {"ktransformers_python": "/opt/python3.12"}}},
    }
    (inventory / "hosts.yml").write_text(json.dumps(site))
    told = {"hosts": "{{ bundle_hosts }}", "parts": "{{ bundle_parts }}", "files": "{{ bundle_artifacts }}"}
    task = {
        "ansible.builtin.copy": {"content": "{{ told | to_json }}", "dest": f"{tmp_path}/told"},
        "vars": {"told": told},
    }
    known = {"ansible_python_interpreter": sys.executable, "bundle_systems": ["Debian 13"]}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": known, "tasks": [task]}
    (tmp_path / "play.yml").write_text(
        json.dumps([{**play, "vars_files": [str(path) for path in sorted((PROJECT / "group_vars/all").glob("*.yml"))]}])
    )
    command = [Path(sys.executable).with_name("ansible-playbook"), tmp_path / "play.yml", "-i", inventory]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "told").read_text())
    assert found["hosts"] == [
        gpu("nvidia_driver", "runfile", python="/opt/python3.12", host="a"),
        gpu("nvidia_driver", "nvidia_repo", host="b"),
        gpu("cuda_toolkit", "nvidia_repo", host="b"),
        gpu("ktransformers", "wheel", python="/opt/python3.12", host="a"),
    ]
    # The toolkit of NVIDIA's repository is not the distribution's, whose 1.9 GB stay away.
    assert "nvidia_driver" in found["parts"] and "cuda_toolkit" not in found["parts"]
    assert [one["name"] for one in found["files"]] == ["nvidia_driver_runfile", "nvidia_keyring_debian13"]


def test_the_page_puts_apt_sources_aside(tmp_path: Path) -> None:
    """The commands of docs/offline.md, whether or not a host has each kind of file; nothing is lost."""
    (script,) = re.findall(r"(?s)```sh\n(  for file in /etc/apt.*?)  ```", (PROJECT / "docs/offline.md").read_text())
    script = script.replace("/etc/apt", f"{tmp_path}/apt").replace("/mnt/bundle", str(tmp_path / "disk"))
    offered = tmp_path / "disk/packages/trixie/onprem-llm.sources"
    offered.parent.mkdir(parents=True)
    offered.write_text("bundle")
    parts = tmp_path / "apt/sources.list.d"
    parts.mkdir(parents=True)
    (parts / "debian.sources").write_text("debian")
    subprocess.run(["sh", "-euc", script], check=True)
    assert tree(parts) == {"debian.sources.disabled": b"debian", "onprem-llm.sources": b"bundle"}
    (tmp_path / "apt/sources.list").write_text("classic")
    subprocess.run(["sh", "-euc", script], check=True)
    assert (tmp_path / "apt/sources.list.disabled").read_text() == "classic"


# --- its list of checksums


def published(store: Path, content: bytes) -> Path:
    home = store / "o/small/master"
    home.mkdir(parents=True)
    place = home / "a.gguf"
    place.write_bytes(content)
    found = place.stat()
    entry = Entry("a.gguf", found.st_size, hashlib.sha256(content).hexdigest(), "source", found.st_mtime_ns)
    manifest.write(home, Manifest("o/small", "master", "", "hub", (Selection(("*",), ()),), (entry,)))
    return place


def test_the_list_is_one_that_sha256sum_reads(tmp_path: Path) -> None:
    published(tmp_path / "models", b"weights")
    for name in ("artifacts/host/a b.tar.gz", "packages/x.deb", ".apt/hidden", "artifacts/c.part", bundle.SUMS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    sums = bundle.checksums(tmp_path, tmp_path / "models")
    assert list(sums) == sorted(sums) and set(sums) == {
        "artifacts/host/a b.tar.gz",
        "models/o/small/master/a.gguf",
        "models/o/small/master/manifest.json",
        "packages/x.deb",
    }
    (tmp_path / bundle.SUMS).write_text(bundle.text(sums))
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", bundle.SUMS], cwd=tmp_path, check=True)


def test_models_that_nobody_touched_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = published(tmp_path / "models", b"weights")
    read: list[Path] = []
    really = transfer.hash_file

    def noted(path: Path, hashes: transfer.Hashes) -> transfer.Hashes:
        read.append(path)
        return really(path, hashes)

    monkeypatch.setattr(transfer, "hash_file", noted)
    bundle.checksums(tmp_path, tmp_path / "models")
    assert read == [place.with_name(manifest.MANIFEST)]
    # Of one that somebody touched the list tells what it is now, not what it should be.
    os.utime(place, ns=(1, 1))
    place.write_bytes(b"WEIGHTS")
    sums = bundle.checksums(tmp_path, tmp_path / "models")
    assert sums["models/o/small/master/a.gguf"] == hashlib.sha256(b"WEIGHTS").hexdigest()


# --- Debian packages

MODERN = """\
# comment
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm

Types: deb
URIs: http://elsewhere.example/node
Suites: nodistro
Components: main
"""
CLASSIC = """\
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/security bookworm-security main
deb cdrom:[x]/ bookworm main
"""
#: As makers of software tell people to write them: for a release of the distribution, but none of its archives.
OTHERS = """\
deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] http://docker.example/linux/debian bookworm stable
deb http://docker.example/linux/debian bookworm stable
deb [signed-by=/usr/share/keyrings/hashicorp-archive-keyring.gpg] http://hashicorp.example bookworm main
"""
EMBEDDED = """\
Types: deb
URIs: http://embedded.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
"""


def test_own_sources_for_another_release(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(MODERN)
    (tmp_path / "sources.list").write_text(CLASSIC)
    (tmp_path / "sources.list.d/others.list").write_text(OTHERS)
    (tmp_path / "sources.list.d/embedded.sources").write_text(EMBEDDED)
    assert apt_archive.own_sources(tmp_path, "bookworm", "trixie") == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        "Types: deb\nURIs: http://mirror.example/security\nSuites: trixie-security\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_further_components_of_the_same_archive(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(CLASSIC + OTHERS)
    assert apt_archive.own_sources(tmp_path, "bookworm", "trixie", ["contrib", "non-free"]) == (
        "Types: deb\nURIs: http://mirror.example/security\nSuites: trixie-security\n"
        "Components: main contrib non-free\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_a_host_with_the_bundle_alone_lacks_no_component() -> None:
    """Role nvidia_repository asks apt of such a host, and adds nothing."""
    archive = "file:/mnt/bundle/packages/trixie/debian/"
    parts = ["main", "contrib", "non-free", "non-free-firmware"]
    text = apt_archive.host_sources([apt_archive.Suite(archive, "trixie", one) for one in parts], "/mnt/bundle")
    assert "Components: main contrib non-free non-free-firmware\n" in text
    targets = "\n".join(f"{archive}|trixie|trixie|{one}||/etc/apt/sources.list.d/onprem-llm.sources:1" for one in parts)
    assert apt_components.source(targets, "trixie", parts[1:], "own.sources") == ""


def test_a_machine_of_another_distribution_says_so(tmp_path: Path) -> None:
    with pytest.raises(apt_archive.ArchiveError, match=r"name no archive of arch.*take trixie out of `bundle_systems`"):
        apt_archive.Archive(tmp_path / "new", "trixie", "arch", sources=tmp_path)
    assert not (tmp_path / "new").exists()


class Apt:
    """apt as it answers; ``debs`` is what the closure holds: path in the archive -> content."""

    site = "http://mirror.example/debian/"

    def __init__(self) -> None:
        self.debs = {"pool/main/n/nft/nft_1%3a2-1_amd64.deb": b"nft", "pool/main/l/lib/lib_1_all.deb": b"library"}
        self.index = b"packages"
        self.calls: list[str] = []
        self.words: set[str] = set()

    def __call__(self, argv: Sequence[str], folder: Path) -> str:
        action = next(
            word for word in argv if word in ("update", "install", "download", "download-file", "indextargets")
        )
        self.calls.append(action)
        self.words.update(argv)
        if action == "update":
            checksum = hashlib.sha256(self.index).hexdigest()
            told = f"Origin: Debian\nSHA256:\n {checksum}  8 main/{apt_archive.LIST}\nSHA512:\n"
            (folder / "lists/mirror.example_debian_dists_trixie_InRelease").write_text(told)
        elif action == "install":
            return "".join(
                f"'{self.site}{path}' {path.rpartition('/')[2]} {len(content)} SHA256:0\n"
                for path, content in self.debs.items()
            )
        elif action == "indextargets":
            return f"{self.site} trixie main\n"
        elif action == "download":
            wanted = {apt_archive.Deb("", path.rpartition("/")[2], 0).spec(): path for path in self.debs}
            for spec in argv[argv.index("download") + 1 :]:
                (folder / wanted[spec].rpartition("/")[2]).write_bytes(self.debs[wanted[spec]])
        else:
            Path(argv[-2]).write_bytes(self.index)
        return ""


def archive(tmp_path: Path, apt: Apt, **more: Any) -> apt_archive.Archive:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True, exist_ok=True)
    (tmp_path / "apt/sources.list.d/debian.sources").write_text(MODERN)
    return apt_archive.Archive(tmp_path / "out", "trixie", "bookworm", sources=tmp_path / "apt", call=apt, **more)


def tree(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_archive_of_exactly_what_is_needed(tmp_path: Path) -> None:
    apt = Apt()
    done = archive(tmp_path, apt).fill(["nft"], "/mnt/bundle/packages/trixie")
    assert done.changed and done.fetched == done.size == 10
    # With the network an index that is too old is refused; the disk's own may become so.
    assert not [word for word in apt.words if "Valid-Until" in word]
    assert b"Check-Valid-Until: no" in (tmp_path / "out/onprem-llm.sources").read_bytes()
    found = tree(tmp_path / "out")
    assert set(found) == {
        "debian/dists/trixie/InRelease",
        f"debian/dists/trixie/main/{apt_archive.LIST}",
        "debian/pool/main/n/nft/nft_1:2-1_amd64.deb",
        "debian/pool/main/l/lib/lib_1_all.deb",
        "onprem-llm.sources",
    }
    assert b"URIs: file:/mnt/bundle/packages/trixie/debian\nSuites: trixie\n" in found["onprem-llm.sources"]
    apt.calls.clear()
    again = archive(tmp_path, apt).fill(["nft"], "/mnt/bundle/packages/trixie")
    assert not again.changed and again.fetched == 0 and not {"download", "download-file"} & set(apt.calls)
    # A package left half-way by a killed run is fetched again, one that is needed no longer goes away.
    (tmp_path / "out/debian/pool/main/n/nft/nft_1:2-1_amd64.deb").write_bytes(b"n")
    del apt.debs["pool/main/l/lib/lib_1_all.deb"]
    mended = archive(tmp_path, apt).fill(["nft"], "/mnt/bundle/packages/trixie")
    assert mended.changed and mended.fetched == 3
    assert not (tmp_path / "out/debian/pool/main/l/lib/lib_1_all.deb").exists()


def test_check_mode_only_looks(tmp_path: Path) -> None:
    done = archive(tmp_path, Apt(), check=True).fill(["nft"], "/mnt")
    assert done.changed and done.fetched == 10 and not (tmp_path / "out").exists()


def test_apts_own_words_are_told(tmp_path: Path) -> None:
    with pytest.raises(apt_archive.ArchiveError, match="`sh` failed: E: Unable to locate package nosuch"):
        apt_archive.run(["sh", "-c", "echo 'E: Unable to locate package nosuch' >&2; exit 100"], tmp_path)


def test_the_bundle_has_what_the_roles_install() -> None:
    known: Mapping[str, list[str]] = conventions.load(PROJECT / "group_vars/all/packages.yml")["role_packages"]
    systems: Mapping[str, Mapping[str, Any]] = role("bundle").vars["__bundle_known_systems"]
    missing = []
    for name in ROLE_NAMES:
        asked = [(module_of(task, "packages", "apt") or {}).get("name", []) for task in role(name).tasks]
        # A role may keep the names in a variable, by what needs them.
        asked.append(list(role(name).vars.get("__model_store_packages", {}).values()))
        flat = [one for names in asked for one in ([names] if isinstance(names, str) else names)]
        have = known.get(name, [])
        missing += [f"{name}: {one}" for one in flat if "{" not in one and one not in have]
    # What Python decides.
    named = {
        "cuda_toolkit": {cuda_packages.DISTRO},
        "ktransformers": {*kt_build.BALANCE_SERVE, "libnuma-dev", "libnuma1"},
    }
    for method in kt_build.APT:
        named["ktransformers"] |= {*kt_build.APT[method], *kt_build.RUN_TIME[method]}
    host: Any = {"distribution": "debian", "kernels": [], "metas": ["amd64", "cloud-amd64"]}
    named["nvidia_driver"] = {*nvidia_packages.headers(host), *nvidia_packages.BUILD}
    for one in nvidia_packages.sets(host, Options(source="distro"), "proprietary", ""):
        named["nvidia_driver"] |= set(one)
    for name, wanted in named.items():
        missing += [f"{name}: {one}" for one in sorted(wanted - set(known[name]))]
    for system, version in role("postgresql").vars["__postgresql_versions"].items():
        database = [f"postgresql-{version}", f"postgresql-{version}-pgvector"]
        if systems[system].get("postgresql", database) != database:
            missing.append(f"postgresql: {database} on {system}")
    where = "group_vars/all/packages.yml (or, of postgresql, roles/bundle/vars/main.yml)"
    assert not missing, f"{where} lacks" + conventions.listed(missing)
