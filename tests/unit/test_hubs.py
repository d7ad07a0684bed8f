# SPDX-License-Identifier: GPL-3.0-or-later
"""Hubs: URLs, listings and globs, without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import hubs

SHA = "ab" * 32
COMMIT = "c" * 40


class Pages:
    """Canned answers by URL."""

    def __init__(self, pages: dict[str, Any], headers: dict[str, dict[str, str]] | None = None) -> None:
        self.pages, self.headers = pages, headers or {}

    def __call__(self, url: str) -> tuple[bytes, Mapping[str, str]]:
        page = self.pages[url]
        return page if isinstance(page, bytes) else json.dumps(page).encode(), self.headers.get(url, {})


@pytest.mark.parametrize("kind", hubs.KINDS)
def test_a_password_in_the_address_is_not_shown(kind: str) -> None:
    def nothing(_url: str) -> tuple[bytes, Mapping[str, str]]:
        return b"<html>", {}

    def empty(_url: str) -> tuple[bytes, Mapping[str, str]]:
        return b"{}", {}

    hub = hubs.Hub(kind, "https://me:geheim@hub.test", "o/m", "main")
    for answers in (nothing, empty):
        for question in (hub.listing, hub.commit):
            with pytest.raises(hubs.HubError, match=r"hub\.test") as refusal:
                question(answers)
            assert "geheim" not in str(refusal.value)
    with pytest.raises(hubs.HubError) as refusal:
        hubs.Hub(kind, "ftp://me:geheim@hub.test", "o/m", "main")
    assert "geheim" not in str(refusal.value)


def ms(revision: str = "master") -> hubs.Hub:
    return hubs.Hub("modelscope", "https://hub.test/", "unsloth/M-GGUF", revision)


LISTING = "https://hub.test/api/v1/models/unsloth/M-GGUF/repo/files?Revision={}&Recursive=True"


def entry(path: str, **other: Any) -> dict[str, Any]:
    return {"Path": path, "Type": "blob", "Size": 3, "Sha256": SHA, "Revision": COMMIT, **other}


def test_modelscope_listing_and_urls() -> None:
    files = [{"Path": "UD-Q4", "Type": "tree", "Size": 0}, entry("UD-Q4/a b.gguf"), entry("README.md", Sha256="")]
    listing = ms().listing(Pages({LISTING.format("master"): {"Data": {"Files": files}}}))
    assert listing.files == (hubs.File("UD-Q4/a b.gguf", 3, SHA), hubs.File("README.md", 3, ""))
    assert ms().download_url("UD-Q4/a b.gguf") == (
        "https://hub.test/api/v1/models/unsloth/M-GGUF/repo?Revision=master&FilePath=UD-Q4%2Fa+b.gguf"
    )


def test_modelscope_listing_that_is_cut_at_its_limit_is_walked_by_folder() -> None:
    """3000 entries look complete and are not."""
    tree = {f"{folder}/{number}.bin": 1 for folder in ("a", "b") for number in range(2000)} | {"c.bin": 1}

    def fetch(url: str) -> tuple[bytes, Mapping[str, str]]:
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        root = query.get("Root", "")
        inside = [path for path in tree if path.startswith(root + "/" if root else "")]
        found = [entry(path) for path in inside]
        if query["Recursive"] == "False":
            found = [{"Path": name, "Type": "tree"} for name in ("a", "b")] + [entry("c.bin")]
        return json.dumps({"Data": {"Files": found[:3000]}}).encode(), {}

    assert {file.path for file in ms().listing(fetch).files} == set(tree)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", "did not answer with JSON but with '<html>"),
        ({"Message": "no such model"}, "without a file list (no such model)"),
        ({"Data": {"Files": [entry("../../etc/passwd")]}}, "unusable path '../../etc/passwd'"),
        ({"Data": {"Files": [entry("/etc/passwd")]}}, "unusable path"),
        ({"Data": {"Files": [entry("a\\b")]}}, "unusable path"),
        ({"Data": {"Files": [entry("a", Size="3")]}}, "without a usable path and size"),
        ({"Data": {"Files": [entry("a", Size=-1)]}}, "without a usable path and size"),
        ({"Data": {"Files": [entry("a", Sha256="abc")]}}, "the hub's sha256 of 'a' is none"),
    ],
)
def test_answers_that_cannot_be_used(answer: Any, message: str) -> None:
    with pytest.raises(hubs.HubError) as refusal:
        ms().listing(Pages({LISTING.format("master"): answer}))
    assert message in str(refusal.value)


def test_modelscope_commit_is_the_one_whose_listing_is_the_same() -> None:
    older = "d" * 40
    files = [entry("a", Revision=older), entry("b")]
    pages = Pages(
        {
            LISTING.format("master"): {"Data": {"Files": files}},
            LISTING.format(older): {"Data": {"Files": files[:1]}},
            LISTING.format(COMMIT): {"Data": {"Files": files}},
        }
    )
    assert ms().commit(pages) == COMMIT
    assert ms(COMMIT).commit(Pages({})) == COMMIT


def test_modelscope_that_names_no_commit() -> None:
    pages = Pages({LISTING.format("master"): {"Data": {"Files": [entry("a", Revision="")]}}})
    with pytest.raises(hubs.HubError, match="names no commit for revision 'master' of unsloth/M-GGUF"):
        ms().commit(pages)


def test_huggingface_follows_pages_and_knows_both_kinds_of_checksum() -> None:
    hub = hubs.Hub("huggingface", "https://hf.test", "o/m", "main")
    first = "https://hf.test/api/models/o/m/tree/main?recursive=true"
    pages = Pages(
        {
            first: [{"type": "directory", "path": "d"}, {"type": "file", "path": "c.json", "size": 2, "oid": "1" * 40}],
            first + "&cursor=x": [{"type": "file", "path": "d/w", "size": 9, "lfs": {"oid": SHA, "size": 9}}],
            "https://hf.test/api/models/o/m/revision/main": {"sha": COMMIT},
        },
        {first: {"link": f'<{first}&cursor=x>; rel="next"'}},
    )
    files = hub.listing(pages).files
    assert files == (hubs.File("c.json", 2, "", "1" * 40), hubs.File("d/w", 9, SHA))
    assert hub.download_url("d/w") == "https://hf.test/o/m/resolve/main/d/w"
    assert hub.commit(pages) == COMMIT


def test_the_pages_of_a_mirror_are_asked_of_the_mirror() -> None:
    """Mirrors of Hugging Face pass its Link header on as it is."""
    hub = hubs.Hub("huggingface", "https://mirror.test/hf", "o/m", "main")
    first = "https://mirror.test/hf/api/models/o/m/tree/main?recursive=true"
    theirs = '<https://hf.test/api/models/o/m/tree/main?recursive=true&cursor=x>; rel="next"'
    page = [{"type": "file", "path": "a", "size": 1, "oid": "1" * 40}]
    pages = Pages({first: [], first + "&cursor=x": page}, {first: {"link": theirs}})
    assert [file.path for file in hub.listing(pages).files] == ["a"]


def test_pages_without_end() -> None:
    hub = hubs.Hub("huggingface", "https://hf.test", "o/m", "main")
    first = "https://hf.test/api/models/o/m/tree/main?recursive=true"
    with pytest.raises(hubs.HubError, match="continues its file list with itself"):
        hub.listing(Pages({first: []}, {first: {"link": f'<{first}>; rel="next"'}}))


def test_a_mirror_serves_the_manifest_we_wrote() -> None:
    hub = hubs.Hub("mirror", "http://mirror.test/models", "o/m", COMMIT)
    manifest = {"commit": COMMIT, "files": [{"path": "a.gguf", "size": 1, "sha256": SHA, "mtime_ns": 5}]}
    url = f"http://mirror.test/models/o/m/{COMMIT}/manifest.json"
    assert hub.listing(Pages({url: manifest})) == hubs.Listing((hubs.File("a.gguf", 1, SHA),), (COMMIT,))


@pytest.mark.parametrize(
    ("selections", "include", "exclude", "covered"),
    [
        ([], ["*.gguf"], [], True),  # a manifest that does not say is believed
        ([{"include": [], "exclude": []}], ["*.gguf"], ["mmproj*"], True),
        ([{"include": ["*"]}], [], [], True),
        ([{"include": ["a", "b"]}], ["a"], [], True),
        ([{"include": ["a"]}, {"include": ["b"]}], ["b"], [], True),
        ([{"include": ["a"]}], ["a", "b"], [], False),
        ([{"include": ["a"]}], [], [], False),
        ([{"include": ["a"], "exclude": ["x"]}], ["a"], ["x", "y"], True),
        ([{"include": ["a"], "exclude": ["x"]}], ["a"], [], False),
    ],
)
def test_what_a_manifest_is_complete_for(
    selections: list[Any], include: list[str], exclude: list[str], covered: bool
) -> None:
    text = json.dumps({"files": [], "selections": selections}).encode()
    assert hubs.parse_manifest(text, "here").covers(include, exclude) is covered


@pytest.mark.parametrize("text", [b'{"files": [], "selections": ["a"]}', b'{"files": 1}', b"[]"])
def test_what_is_no_manifest(text: bytes) -> None:
    with pytest.raises(hubs.HubError, match="here is no manifest"):
        hubs.parse_manifest(text, "here")


@pytest.mark.parametrize("address", ["", "hub.test", "ftp://hub.test", "file:///etc", "https:///x"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(hubs.HubError, match="must begin with https"):
        hubs.Hub("modelscope", address, "o/m", "master")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), ["UD-IQ1_S/m-1.gguf", "UD-IQ1_S/m-2.gguf", "m-Q4_K_M.gguf", "mmproj-F16.gguf"]),
        (["UD-IQ1_S/*"], (), ["UD-IQ1_S/m-1.gguf", "UD-IQ1_S/m-2.gguf"]),
        (["**/UD-IQ1_S/*"], (), ["UD-IQ1_S/m-1.gguf", "UD-IQ1_S/m-2.gguf"]),
        (["**UD-IQ1_S**"], ["*-2.gguf"], ["UD-IQ1_S/m-1.gguf"]),
        (["*.gguf"], ["mmproj*", "UD-*"], ["m-Q4_K_M.gguf"]),
        (["*q4_k_m*"], (), []),
    ],
)
def test_globs(include: list[str], exclude: list[str], expected: list[str]) -> None:
    names = ["mmproj-F16.gguf", "UD-IQ1_S/m-2.gguf", "UD-IQ1_S/m-1.gguf", "m-Q4_K_M.gguf"]
    found = hubs.select([hubs.File(name, 1) for name in names], include, exclude)
    assert [file.path for file in found] == expected
