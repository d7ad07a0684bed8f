# SPDX-License-Identifier: GPL-3.0-or-later
"""External files: fetched only when known, and the lock files that make them known."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from ansible_collections.onprem.llm.plugins.module_utils import artifacts
from ansible_collections.onprem.llm.plugins.modules import artifact_file, artifact_lock

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import samples
import server

DATA = gzip.compress(os.urandom(50_000))
SHA = hashlib.sha256(DATA).hexdigest()
NAME = "tool-1.0.tar.gz"

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[server.Hub]:
    (tmp_path / "root/artifacts/github.com/org").mkdir(parents=True)
    (tmp_path / "root/artifacts" / NAME).write_bytes(DATA)
    (tmp_path / "root/artifacts/github.com/org" / NAME).write_bytes(DATA)
    samples.split(tmp_path / "root/models/onprem/m-GGUF", "m", 2)
    with server.running(tmp_path / "root") as running:
        yield running


def call(module: Any, capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """What a module answers."""
    capsys.readouterr()
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return answer


def test_mirror_takes_the_place_of_the_scheme() -> None:
    url = "https://user@github.com/org/tool/v1.tar.gz?x=1"
    assert artifacts.mirrored(url, "") == url
    assert artifacts.mirrored(url, "http://m.test/a/") == "http://m.test/a/github.com/org/tool/v1.tar.gz?x=1"
    assert artifacts.mirrored("file:///srv/v1.tar.gz", "http://m.test") == "file:///srv/v1.tar.gz"


# artifact_file ---------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, hub: server.Hub, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(**changes: Any) -> dict[str, Any]:
        arguments = {"url": f"{hub.url}/artifacts/{NAME}", "sha256": SHA, "dest": str(tmp_path / "cache" / NAME)}
        return call(artifact_file, capsys, attempts=1, **{**arguments, **changes})

    return run


def test_an_artifact_is_put_in_place_once(place: Call, tmp_path: Path, hub: server.Hub) -> None:
    assert place(_ansible_check_mode=True)["changed"]
    assert hub.requests == []
    assert not (tmp_path / "cache").exists()
    assert place()["transferred"] == len(DATA)
    assert (tmp_path / "cache" / NAME).read_bytes() == DATA
    asked = len(hub.requests)
    assert not place()["changed"]
    assert not place(_ansible_check_mode=True)["changed"]
    assert len(hub.requests) == asked


def test_an_artifact_from_a_mirror_or_a_file(place: Call, tmp_path: Path, hub: server.Hub) -> None:
    answer = place(url=f"https://github.com/org/{NAME}", mirror=f"{hub.url}/artifacts")
    assert answer["url"] == f"{hub.url}/artifacts/github.com/org/{NAME}"
    local = tmp_path / "root/artifacts" / NAME
    assert place(url=local.as_uri(), dest=str(tmp_path / "copy"))["changed"]
    assert (tmp_path / "copy").read_bytes() == DATA


def test_an_artifact_with_wrong_bytes_is_deleted(place: Call, tmp_path: Path) -> None:
    answer = place(sha256="0" * 64)
    assert answer["failed"]
    assert f"expected sha256 {'0' * 64}, got sha256 {SHA}" in answer["msg"]
    assert "They were deleted." in answer["msg"]
    assert not list((tmp_path / "cache").glob(f"{NAME}*"))


def test_a_failing_download_shows_its_url_without_credentials(place: Call, hub: server.Hub) -> None:
    url = f"{hub.url}/artifacts/none.tar.gz?token=canary-2".replace("//", "//robot:canary-1@")
    answer = place(url=url)
    assert f"{hub.url}/artifacts/none.tar.gz?token=***: HTTP 404" in answer["msg"]
    assert "canary" not in json.dumps(answer)


def test_what_is_no_checksum(place: Call) -> None:
    assert "sha256 is 'latest': a checksum has 64 digits" in place(sha256="latest")["msg"]


# artifact_lock ---------------------------------------------------------------------------------------------------

ARTIFACTS = """---
# A comment that stays.
artifacts:
  tool:            # as does this one
    version: "1.0"
    url: {url}/artifacts/tool-1.0.tar.gz
    sha256: null   # never fetched
    size: null

  known:
    version: "2"
    url: http://127.0.0.1:1/never-asked
    sha256: {sha}
    size: 7
  other: {{version: "3", url: "{url}/artifacts/github.com/org/tool-1.0.tar.gz", sha256: ~, size: ~}}
"""

CATALOGUE = """---
catalogue:
  tiny:
    repo: onprem/m-GGUF
    revision: master   # lock.yml pins it
    source: here
  usb:
    repo: onprem/m-GGUF
    revision: master
    source: usb
"""


@pytest.fixture
def lock(tmp_path: Path, hub: server.Hub, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(text: str, kind: str = "artifacts", **changes: Any) -> dict[str, Any]:
        path = tmp_path / "lock.yml"
        if text:
            path.write_text(text)
        sources = {"here": {"type": "modelscope", "url": hub.url}, "usb": {"type": "directory", "path": "/mnt"}}
        answer = call(artifact_lock, capsys, path=str(path), kind=kind, sources=sources, attempts=1, **changes)
        answer["text"] = path.read_text()
        return answer

    return run


def test_lock_fills_in_what_is_not_known_and_changes_nothing_else(lock: Call, hub: server.Hub) -> None:
    text = ARTIFACTS.format(url=hub.url, sha="1" * 64)
    answer = lock(text)
    assert (answer["changed"], answer["resolved"]) == (True, ["tool", "other"])
    expected = text.replace("null   #", f"{SHA}   #").replace("size: null", f"size: {len(DATA)}")
    assert answer["text"] == expected.replace("sha256: ~, size: ~", f"sha256: {SHA}, size: {len(DATA)}")
    assert yaml.safe_load(answer["text"])["artifacts"]["other"]["size"] == len(DATA)
    assert not lock("")["changed"]


def test_lock_fills_in_empty_values(lock: Call, hub: server.Hub) -> None:
    text = f"artifacts:\n  tool:\n    url: '{hub.url}/artifacts/{NAME}'\n    sha256:\n    size:\n"
    answer = lock(text)
    assert answer["text"] == text.replace("sha256:", f"sha256: {SHA}").replace("size:", f"size: {len(DATA)}")


def test_lock_of_one_entry(lock: Call, hub: server.Hub) -> None:
    text = ARTIFACTS.format(url=hub.url, sha="1" * 64)
    assert lock(text, only="other")["resolved"] == ["other"]
    assert "has no entry 'oter'. It has: tool, known, other" in lock(text, only="oter")["msg"]


def test_lock_in_check_mode_uses_no_network(lock: Call, hub: server.Hub) -> None:
    text = ARTIFACTS.format(url=hub.url, sha="1" * 64)
    answer = lock(text, _ansible_check_mode=True, _ansible_diff=True)
    assert answer["resolved"] == ["tool", "other"]
    assert answer["text"] == text
    assert "sha256: ?   # never fetched" in answer["diff"]["after"]
    assert hub.requests == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "tool-1.0.tar.gz: HTTP 404"),
        ("empty", "the answer was empty"),
        ("cut", "the answer ended after 100 of"),
        ("page", "it is named .gz but begins with b'<!DOCTYPE html><"),
    ],
)
def test_lock_refuses_wrong_answers_and_leaves_the_file(lock: Call, hub: server.Hub, fault: str, message: str) -> None:
    text = ARTIFACTS.format(url=hub.url, sha="1" * 64)
    hub.faults = [server.Fault(fault, "tool-1.0", 100), server.Fault("no-range", "tool-1.0")]
    answer = lock(text)
    assert answer["failed"]
    assert message in answer["msg"]
    assert "lock.yml is" in answer["msg"] and "not changed" in answer["msg"]
    assert answer["text"] == text


def test_lock_pins_models_to_commits(lock: Call, hub: server.Hub) -> None:
    answer = lock(CATALOGUE, kind="catalogue")
    commit = hub.tree.commit("onprem/m-GGUF")
    assert answer["resolved"] == ["tiny"]
    assert answer["text"] == CATALOGUE.replace("master   #", f"{commit}   #")
    assert not lock("", kind="catalogue")["changed"]


VARIANTS = """---
catalogue:
  tiny:
    kind: chat
    variants:
      - {repo: onprem/m-GGUF, revision: master, source: here, include: ["Q8_0/*"]}
      # kept as it is
      - repo: onprem/m-GGUF
        revision: master   # lock.yml pins it
        source: here
      - {repo: onprem/m-GGUF, revision: master, source: usb}
"""


def test_lock_pins_every_variant_and_asks_each_repository_once(lock: Call, hub: server.Hub) -> None:
    answer = lock(VARIANTS, kind="catalogue")
    commit = hub.tree.commit("onprem/m-GGUF")
    assert answer["resolved"] == ["tiny"]
    assert answer["text"] == VARIANTS.replace("revision: master", f"revision: {commit}", 2)
    assert not lock("", kind="catalogue")["changed"]


def test_lock_keeps_what_it_could_resolve(lock: Call, hub: server.Hub) -> None:
    text = ARTIFACTS.format(url=hub.url, sha="1" * 64).replace(f'"3", url: "{hub.url}/', f'"3", url: "{hub.url}/gone/')
    answer = lock(text)
    assert answer["failed"]
    assert "lock.yml has new values for tool; not resolved:\nother: " in answer["msg"]
    assert SHA in answer["text"]


def test_lock_of_a_model_that_is_not_there(lock: Call, hub: server.Hub) -> None:
    hub.faults = [server.Fault("missing", "onprem/m-GGUF")]
    answer = lock(CATALOGUE, kind="catalogue")
    assert "is not changed" in answer["msg"] and "HTTP 404" in answer["msg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no valid YAML"),
        ("a: 1", "has no map 'artifacts'"),
        ("artifacts: {a: 1}", "has an entry 'a' of 'artifacts' that is no map"),
        ("artifacts: {a: {sha256: null}}", "has no 'url' in the entry 'a'"),
        ("artifacts: {a: {url: URL, sha256: null}}", "has no 'size' in the entry 'a': add the line `size: null`"),
    ],
)
def test_lock_files_that_are_none(lock: Call, hub: server.Hub, text: str, message: str) -> None:
    assert message in lock(text.replace("URL", f"{hub.url}/artifacts/{NAME}"))["msg"]
