# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources: who is asked first, who is believed, and where the bytes are."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import hubs, transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import sources
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Request, Source, StoreError
from ansible_collections.onprem.llm.plugins.modules import model_source_info

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import samples
import server

REPO = "onprem/m-GGUF"
PARTS = [f"F16/m-F16-0000{n}-of-00002.gguf" for n in (1, 2)]
MANNER = transfer.Source(attempts=2, timeout=5, sleep=lambda _seconds: None)
NOWHERE = "http://127.0.0.1:1"


def filled(root: Path) -> Path:
    repo = root / "models" / REPO
    samples.split(repo / "F16", "m-F16", 2)
    (repo / "README.md").write_text("# A model\n")
    return root


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[server.Hub]:
    with server.running(filled(tmp_path / "root")) as running:
        yield running


def modelscope(hub: server.Hub | str, name: str = "modelscope", **more: str) -> Source:
    return Source(name, "modelscope", hub if isinstance(hub, str) else hub.url, **more)


def huggingface(hub: server.Hub | str, name: str = "huggingface", **more: str) -> Source:
    return Source(name, "huggingface", hub if isinstance(hub, str) else hub.url, **more)


def mirror(hub: server.Hub, name: str = "mirror") -> Source:
    return Source(name, "mirror", f"{hub.url}/artifacts")


def directory(path: Path, name: str = "usb") -> Source:
    return Source(name, "directory", path=str(path))


def model(*of: Source, **more: Any) -> Model:
    plain = Model("chat", REPO, "master", include=("F16/*",), sources=of)
    return replace(plain, **more)


def listing(wanted: Model) -> Model:
    return sources.listing(wanted, manner=MANNER)[0]


def refuses(wanted: Model) -> str:
    with pytest.raises(StoreError) as refusal:
        listing(wanted)
    return str(refusal.value)


def published(hub: server.Hub, selections: list[Any], paths: list[str], revision: str = "master") -> Path:
    """A mirror's folder, as the model store publishes it."""
    files = hub.tree.repo(REPO) or {}
    home = hub.tree.root / "artifacts" / REPO / revision
    home.mkdir(parents=True, exist_ok=True)
    entries = [{"path": path, "size": files[path].size, "sha256": files[path].sha256} for path in paths]
    (home / "manifest.json").write_text(json.dumps({"files": entries, "selections": selections}))
    for path in paths:
        (home / path).parent.mkdir(exist_ok=True)
        (home / path).write_bytes(files[path].path.read_bytes())
    return home


# Order ------------------------------------------------------------------------------------------------------------


def test_the_order_of_sources() -> None:
    known = {
        "hf": {"type": "huggingface"},
        "usb": {"type": "directory"},
        "ms": {"type": "modelscope"},
        "ai": {"type": "modelscope"},
        "corporate": {"type": "mirror"},
    }
    assert sources.ordered(known, "ms") == ["usb", "corporate", "ms", "hf", "ai"]
    assert sources.ordered(known, "corporate") == ["usb", "corporate", "hf", "ms", "ai"]
    assert sources.ordered(known, "gone") == ["usb", "corporate", "hf", "ms", "ai"]


def test_the_token_goes_as_the_hub_wants_it() -> None:
    request = Request("/srv", (), attempts=3, stall_seconds=9)
    asked = sources.asking(modelscope("https://hub.test", token="t"), request)
    assert (asked.attempts, asked.timeout) == (3, 9)
    assert asked.identity("https://hub.test/x")[1] == {"Authorization": "Bearer t", "Cookie": "m_session_id=t"}
    assert sources.asking(huggingface("https://hf.test", token="t"), request).identity("https://hf.test/x")[1] == {
        "Authorization": "Bearer t"
    }
    with pytest.raises(StoreError, match="token of the source 'modelscope' holds a line end"):
        sources.asking(modelscope("https://hub.test", token="t\nX: y"), request)
    assert "t0ken" not in repr(sources.asking(modelscope("https://hub.test", token="t0ken"), request))


def test_a_source_s_own_authority(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    source = replace(modelscope("https://mirror.test"), ca=str(ca), fleet=True)
    with pytest.raises(StoreError, match=r"the source 'modelscope' has the `ca` .*/ca\.crt, which is not on this host"):
        sources.with_token(source, MANNER)
    ca.write_text("")
    assert sources.with_token(source, MANNER).way == transfer.Way(str(ca), fleet=True)


# Lists ------------------------------------------------------------------------------------------------------------


def test_a_list_pins_the_commit_and_warns_of_a_branch(hub: server.Hub) -> None:
    found, warnings = sources.listing(model(modelscope(hub)), manner=MANNER)
    commit = hub.tree.commit(REPO)
    assert [file.path for file in found.files] == PARTS
    assert all(len(file.sha256) == 64 for file in found.files)
    assert (found.commit, found.origin) == (commit, "modelscope")
    assert "revision 'master' of onprem/m-GGUF is a branch or a tag that may move" in warnings[0]
    assert "playbooks/lock.yml" in warnings[0]
    pinned, warnings = sources.listing(model(modelscope(hub), revision=commit), manner=MANNER)
    assert (pinned.files, pinned.commit, warnings) == (found.files, commit, [])


def test_a_list_of_hugging_face_is_that_of_one_commit(hub: server.Hub) -> None:
    found = listing(model(huggingface(hub), include=()))
    assert hubs.is_commit(found.commit)
    assert [file.path for file in found.files] == [*PARTS, "README.md"]
    assert found.files[2].git_blob and not found.files[2].sha256
    assert f"/tree/{found.commit}?recursive=true" in hub.requests[-1][0]


@pytest.mark.parametrize("first", ["away", "missing", "refused", "page"])
def test_the_next_source_answers(hub: server.Hub, tmp_path: Path, first: str) -> None:
    with ExitStack() as stack:
        if first == "away":
            broken = modelscope(NOWHERE, "broken")
        else:
            other = stack.enter_context(server.running(filled(tmp_path / "other")))
            broken = modelscope(other, "broken")
            kind = {"missing": "missing", "refused": "list-refused", "page": "list-page"}[first]
            other.faults = [server.Fault(kind, REPO, 403)]
        found = listing(model(broken, huggingface(hub)))
    assert found.origin == "huggingface"


def test_when_nobody_answers_all_are_named(hub: server.Hub, tmp_path: Path) -> None:
    hub.faults = [server.Fault("list-refused", REPO, 403)]
    away = modelscope("http://robot:hunter2@127.0.0.1:1", "away")
    message = refuses(model(directory(tmp_path), away, huggingface(hub, token="s3cret")))
    for named in (
        "model 'chat': onprem/m-GGUF (revision master) could not be listed. Asked: ",
        f"'usb' ({tmp_path}): the directory {tmp_path} on this host has neither onprem/m-GGUF/master nor onprem/m-GGUF",
        "'away' (http://127.0.0.1:1): ",
        "Connection refused. Check the address, and that this host reaches it",
        f"'huggingface' ({hub.url}): ",
        "HTTP 403 Forbidden. The source asks for a token",
        "Check `repo`, `revision` and `model_sources`, and that this host reaches the sources.",
    ):
        assert named in message
    assert "hunter2" not in message and "s3cret" not in message


def test_without_any_source() -> None:
    assert refuses(model()) == ("model 'chat': no source is described for onprem/m-GGUF. Add one to `model_sources`")


@pytest.mark.parametrize("kind", [modelscope, huggingface])
def test_what_is_not_there(hub: server.Hub, kind: Any) -> None:
    message = refuses(model(kind(hub), repo="onprem/none"))
    assert "model 'chat': onprem/none (revision master) could not be listed" in message
    assert "HTTP 404" in message and "check `repo` and `revision`" in message
    assert "(revision v9) could not be listed" in refuses(model(kind(hub), revision="v9"))


def test_what_include_does_not_find(hub: server.Hub) -> None:
    message = refuses(model(modelscope(hub), include=("UD-IQ1_S/*",)))
    assert message.startswith("model 'chat': nothing in onprem/m-GGUF (revision master")
    assert message.endswith("Correct `include`.")


@pytest.mark.parametrize("name", ["../x", "a b", "/etc", ".hidden"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    assert f"revision is '{name}'" in refuses(model(directory(tmp_path), revision=name))
    assert f"repo is 'o/{name}'" in refuses(model(directory(tmp_path), repo=f"o/{name}"))


@pytest.mark.parametrize("silent", [True, False])
def test_whether_anybody_answered(hub: server.Hub, tmp_path: Path, silent: bool) -> None:
    of = [directory(tmp_path), modelscope(NOWHERE)] + ([] if silent else [modelscope(hub, "other")])
    with pytest.raises(sources.SourceError) as refusal:
        listing(model(*of, repo="onprem/none"))
    assert refusal.value.unreachable is silent


# Mirrors and directories ------------------------------------------------------------------------------------------


def test_a_mirror_lists_what_it_was_filled_with(hub: server.Hub) -> None:
    published(hub, [{"include": ["F16/*"], "exclude": []}], PARTS)
    found = listing(model(mirror(hub), modelscope(hub)))
    assert (found.origin, [file.path for file in found.files]) == ("mirror", PARTS)
    assert not any("/api/" in asked for asked, _range in hub.requests), "the hub is not asked"


def test_a_mirror_that_was_filled_with_less_does_not_list(hub: server.Hub) -> None:
    """Else a model would silently lack files."""
    published(hub, [{"include": ["F16/*-00001-*"], "exclude": []}], PARTS[:1])
    found = listing(model(mirror(hub), modelscope(hub)))
    assert (found.origin, [file.path for file in found.files]) == ("modelscope", PARTS)
    assert sources.found(found, mirror(hub), manner=MANNER)[1] == {PARTS[0]}, "but it serves what it has"
    message = refuses(model(mirror(hub)))
    assert f"{hub.url}/artifacts holds other files of onprem/m-GGUF than those that `include` selects" in message


@pytest.mark.parametrize("layout", [REPO, f"{REPO}/master"])
def test_a_directory(hub: server.Hub, tmp_path: Path, layout: str) -> None:
    home = tmp_path / "a disk" / layout
    samples.split(home / "F16", "m-F16", 2)
    (home / "F16/m.gguf.part").write_bytes(b"unfinished")
    (home / ".cache").mkdir()
    (home / ".cache/x").write_bytes(b"x")
    usb = directory(tmp_path / "a disk")
    found = listing(model(usb, include=()))
    assert [(file.path, file.sha256) for file in found.files] == [(part, "") for part in PARTS]
    address = sources.url(found, usb, PARTS[0])
    assert address == f"file://{tmp_path}/a%20disk/{layout}/{PARTS[0]}"
    part = tmp_path / "t.part"
    part.write_bytes((home / PARTS[0]).read_bytes()[:1000])
    got = transfer.download(address, tmp_path / "t", MANNER, size=found.files[0].size)
    assert got.transferred == got.size - 1000, "a copy that broke off goes on"
    assert (tmp_path / "t").read_bytes() == (home / PARTS[0]).read_bytes()


def test_a_directory_with_a_manifest_is_believed_only_while_it_is_whole(hub: server.Hub) -> None:
    home = published(hub, [], PARTS)
    usb = directory(hub.tree.root / "artifacts")
    assert [file.sha256 for file in listing(model(usb)).files] == [
        hashlib.sha256((home / part).read_bytes()).hexdigest() for part in PARTS
    ]
    (home / PARTS[1]).write_bytes(b"short")
    assert f"manifest.json lists files that are not there, or not whole: {PARTS[1]}" in refuses(model(usb))


def test_a_directory_does_not_lead_out_of_itself(tmp_path: Path) -> None:
    home = tmp_path / "usb" / REPO
    home.mkdir(parents=True)
    (tmp_path / "shadow").write_text("secret")
    (home / "w.gguf").symlink_to(tmp_path / "shadow")
    with pytest.raises(hubs.HubError, match="leads out of"):
        sources.url(model(), directory(tmp_path / "usb"), "w.gguf")
    with pytest.raises(hubs.HubError, match="unusable path"):
        sources.url(model(), directory(tmp_path / "usb"), "../../../shadow")


def test_a_directory_that_is_not_there() -> None:
    message = refuses(model(directory(Path("/no/such"))))
    assert "the directory /no/such on this host has neither onprem/m-GGUF/master nor onprem/m-GGUF" in message
    assert "Copy the files there, or correct the path" in message


# Another source's files -------------------------------------------------------------------------------------------


def test_another_hub_has_the_same_files_under_its_own_revision(hub: server.Hub) -> None:
    commit = hub.tree.commit(REPO)
    listed = listing(model(modelscope(hub), huggingface(hub), revision=commit, include=()))
    asked = len(hub.requests)
    assert sources.found(listed, listed.sources[0], manner=MANNER)[1] == {*PARTS, "README.md"}
    assert len(hub.requests) == asked, "who listed the files is not asked again"
    located, paths = sources.found(listed, listed.sources[1], manner=MANNER)
    assert paths >= set(PARTS)
    address = sources.url(listed, located, PARTS[0])
    assert address.startswith(f"{hub.url}/{REPO}/resolve/")
    assert transfer.fetch_range(address, MANNER, 0, 4) == b"GGUF"


def test_other_bytes_of_another_hub_do_not_count(hub: server.Hub, tmp_path: Path) -> None:
    with server.running(filled(tmp_path / "other")) as other:
        repo = other.tree.root / "models" / REPO
        (repo / PARTS[1]).write_bytes((repo / PARTS[1]).read_bytes()[::-1])
        listed = listing(model(modelscope(hub), huggingface(other)))
        assert sources.found(listed, listed.sources[1], manner=MANNER)[1] == {PARTS[0]}


def test_a_source_that_does_not_have_the_model_is_no_trouble(hub: server.Hub, tmp_path: Path) -> None:
    others = (huggingface(hub), mirror(hub), directory(tmp_path))
    listed = listing(model(modelscope(hub), *others))
    for source in others:
        assert sources.found(replace(listed, repo="onprem/none"), source, manner=MANNER)[1] == frozenset()
    hub.faults = [server.Fault("list-refused", REPO, 403)]
    with pytest.raises(transfer.TransferError, match="HTTP 403"):
        sources.found(listed, others[0], manner=MANNER)


def test_names_of_a_revision_at_each_source() -> None:
    commit, ours, theirs = "c" * 40, modelscope("https://ms.test"), huggingface("https://hf.test")
    wanted = model(ours, theirs)
    assert sources.revisions(wanted, theirs) == ("main",)
    assert sources.revisions(replace(wanted, revision="v1"), theirs) == ("v1",)
    assert sources.revisions(wanted, replace(theirs, revision="gguf")) == ("gguf",)
    assert sources.revisions(wanted, Source("m", "mirror", "https://m.test")) == ("master",)
    listed = replace(wanted, revision=commit, commit=commit, origin="modelscope")
    assert sources.revisions(listed, ours) == (commit, "master")
    assert sources.revisions(listed, theirs) == (commit, "main")
    assert sources.revisions(listed, huggingface("https://hf.test", "hf-mirror")) == (commit, "main")


@pytest.mark.parametrize(
    ("listed", "other", "fit"),
    [
        (("a", 1, "ab" * 32), ("a", 1, "ab" * 32), True),
        (("a", 1, "ab" * 32), ("a", 2, "ab" * 32), False),
        (("a", 1, "ab" * 32), ("a", 1, "cd" * 32), False),
        (("a", 1, "", "1" * 40), ("a", 1, "", "1" * 40), True),
        (("a", 1, "", "1" * 40), ("a", 1, "", "2" * 40), False),
        (("a", 1, "ab" * 32), ("a", 1, "", "1" * 40), True),  # not comparable: the download is judged by ours
        (("a", 1), ("a", 1, "ab" * 32), False),  # nothing would judge it
    ],
)
def test_what_is_the_same_file(listed: Any, other: Any, fit: bool) -> None:
    assert sources.fits(hubs.File(*listed), hubs.File(*other)) is fit


def test_a_token_goes_to_the_hub_and_not_to_its_storage(hub: server.Hub) -> None:
    hub.token, hub.cdn = "secret", f"http://localhost:{hub.server_address[1]}"
    assert "HTTP 401" in refuses(model(modelscope(hub)))
    source = modelscope(hub, token="secret")
    listed = listing(model(source))
    asked = sources.with_token(source, MANNER)
    assert transfer.fetch_range(sources.url(listed, source, PARTS[0]), asked, 0, 4) == b"GGUF"


# The module -------------------------------------------------------------------------------------------------------


class Ended(Exception):
    pass


class Module:
    """Stands for AnsibleModule."""

    params: dict[str, Any]
    check_mode = False
    ended: tuple[str, dict[str, Any]]

    def __init__(self, **_spec: Any) -> None:
        self.no_log_values: set[str] = set()
        self.warnings: list[str] = []
        Module.made = self

    made: Module

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def exit_json(self, **result: Any) -> None:
        Module.ended = ("exit", result)
        raise Ended

    def fail_json(self, **result: Any) -> None:
        Module.ended = ("fail", result)
        raise Ended


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(models: list[dict[str, Any]], known: dict[str, Any], *, check: bool = False, **more: Any) -> Any:
        plain = {"tokens": {}, "proxy": "", "no_proxy": "", "attempts": 2, "timeout": 5}
        monkeypatch.setattr(Module, "params", {**plain, **more, "models": models, "sources": known}, raising=False)
        monkeypatch.setattr(Module, "check_mode", check)
        monkeypatch.setattr(model_source_info, "AnsibleModule", Module)
        with pytest.raises(Ended):
            model_source_info.main()
        return (*Module.ended, Module.made)

    return call


def wanted(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "repo": REPO,
        "revision": "master",
        "source": "ms",
        "include": ["F16/*"],
        "kind": "chat",
        **more,
    }


def test_the_module_asks_once_for_the_same_files(hub: server.Hub, run: Any) -> None:
    hub.token = "t0ken"
    known = {"ms": {"type": "modelscope", "url": hub.url}}
    how, result, made = run([wanted("a"), wanted("b", entry=PARTS[0])], known, tokens={"ms": "t0ken"})
    assert (how, result["changed"], result["notes"]) == ("exit", False, [])
    first, second = result["models"]
    assert (first["name"], second["name"], second["entry"]) == ("a", "b", PARTS[0])
    assert first["files"] == second["files"]
    assert first["origin"] == "ms" and hubs.is_commit(first["commit"])
    assert "sources" not in first and "t0ken" not in json.dumps(result)
    assert len([asked for asked, _range in hub.requests if "Revision=master" in asked]) == 1
    assert len(made.warnings) == 1
    assert json.loads(json.dumps(result))["models"][0]["files"][0].keys() == {"path", "size", "sha256", "git_blob"}


def test_the_module_names_what_is_wrong(hub: server.Hub, run: Any) -> None:
    known = {"ms": {"type": "modelscope", "url": hub.url}}
    how, result, _made = run([wanted("a", repo="onprem/none")], known)
    assert how == "fail" and "model 'a': onprem/none (revision master) could not be listed" in result["msg"]
    how, result, _made = run([wanted("a"), wanted("b", entry="F16/other.gguf")], known)
    assert how == "fail" and "model 'b': entry 'F16/other.gguf' is not among the files" in result["msg"]


def test_the_module_says_what_it_knows_when_a_model_cannot_be_listed(hub: server.Hub, run: Any) -> None:
    known = {"ms": {"type": "modelscope", "url": hub.url}}
    how, result, _made = run([wanted("a", repo="onprem/none"), wanted("b")], known)
    assert (how, [model["name"] for model in result["models"]]) == ("fail", ["b"])
    assert [one["name"] for one in result["unlisted"]] == ["a"] and result["unlisted"][0]["why"] == result["msg"]


def test_a_source_that_is_away_is_asked_for_one_model_only(hub: server.Hub, run: Any, monkeypatch: Any) -> None:
    asked, plain = [], transfer.Urllib.open

    def seen(self: Any, url: str, *rest: Any) -> Any:
        asked.append(url)
        return plain(self, url, *rest)

    monkeypatch.setattr(transfer.Urllib, "open", seen)
    known = {
        "fleet-m": {"type": "mirror", "url": NOWHERE, "fleet": True},
        "ms": {"type": "modelscope", "url": hub.url},
    }
    how, result, _made = run([wanted("a"), wanted("b", include=["*"]), wanted("c", include=["*.md"])], known)
    assert (how, len(result["models"])) == ("exit", 3)
    assert len([url for url in asked if url.startswith(NOWHERE)]) == 1
    (note,) = result["notes"]
    assert "The source 'fleet-m' was passed over" in note and "its service model_mirror runs" in note


def test_the_module_in_check_mode_without_a_network(hub: server.Hub, run: Any) -> None:
    known = {"ms": {"type": "modelscope", "url": NOWHERE}}
    how, result, _made = run([wanted("a")], known, check=True)
    assert (how, result["models"]) == ("exit", [])
    assert "model 'a'" in result["notes"][0] and "What would be fetched is not known" in result["notes"][0]
    how, result, _made = run([wanted("a")], {"ms": {"type": "modelscope", "url": hub.url}}, check=True)
    assert [model["name"] for model in result["models"]] == ["a"]
    how, _result, _made = run([wanted("a")], known)
    assert how == "fail"
