# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of one host: what is there, what is missing, published in an order a power cut respects."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import COMMIT, CONTENT, DOCS, MODEL, PARTS, README, Host, PowerCut, listed, refusal, tree

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest, store
from ansible_collections.onprem.llm.plugins.module_utils.model_store.store import Verified


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# Places ----------------------------------------------------------------------------------------------------------


def test_where_things_lie(host: Host) -> None:
    file = MODEL.files[0]
    assert store.home(host.store, MODEL) == host.home
    assert store.stage(host.store, MODEL) == host.stage
    assert store.staged(host.stage, file) == host.stage / f"{PARTS[0]}.{file.sha256[:12]}"
    assert store.staged(host.stage, File("a", 5, "", "b" * 40)) == host.stage / f"a.{'b' * 12}"
    assert store.staged(host.stage, File("a", 5)) == host.stage / "a.5"


@pytest.mark.parametrize("value", ["../x", "a b", "", "/etc", ".hidden"])
def test_names_that_lead_elsewhere(host: Host, value: str) -> None:
    for call in (store.home, store.stage, store.present, store.missing):
        assert f"revision is '{value}'" in refusal(call, host.store, replace(MODEL, revision=value))
        assert f"name is '{value}'" in refusal(call, host.store, replace(MODEL, name=value))
        assert f"repo is 'o/{value}'" in refusal(call, host.store, replace(MODEL, repo=f"o/{value}"))
    assert f"name is '{value}'" in refusal(store.point, host.served, value, host.home)


def test_a_listed_path_that_leads_elsewhere(host: Host) -> None:
    bad = replace(MODEL, files=(File("../../x", 1),))
    with pytest.raises(Exception, match="unusable path"):
        store.missing(host.store, bad)
    assert not host.store.exists()


def test_hosts_that_want_the_same_files_have_the_same_key() -> None:
    both = [replace(MODEL, include=globs) for globs in (("a", "b"), ("b", "a"))]
    assert store.selection_key(both[0]) == store.selection_key(replace(both[1], name="other"))
    others = [MODEL, DOCS, replace(MODEL, revision="v2"), replace(MODEL, exclude=("x",)), replace(MODEL, repo="a/b")]
    assert len({store.selection_key(model) for model in others}) == 5


# What is wanted --------------------------------------------------------------------------------------------------

LISTING = [*MODEL.files, *DOCS.files]


def test_a_selection(host: Host) -> None:
    assert store.select(MODEL, LISTING, "https://hub") == MODEL.files


def test_nothing_matches_include() -> None:
    message = refusal(store.select, replace(MODEL, include=("UD-IQ1_S/*", "*Q4*"), exclude=("x*",)), LISTING, "usb")
    for named in ("model 'chat'", "onprem/m-GGUF (revision master, usb)", "UD-IQ1_S/*, *Q4* without x*", *CONTENT):
        assert named in message
    assert message.endswith("Correct `include`.")


def test_an_entry_that_is_not_there(host: Host) -> None:
    wrong = replace(MODEL, entry="F16/other.gguf")
    message = refusal(store.select, wrong, LISTING, "hub")
    assert "entry 'F16/other.gguf' is not among the files of onprem/m-GGUF that `include` selects: " in message
    assert PARTS[0] in message
    host.publish()
    assert refusal(store.present, host.store, replace(wrong, files=())) == message


def test_a_repository_with_a_manifest_of_its_own() -> None:
    everything = replace(MODEL, include=())
    message = refusal(store.select, everything, [*LISTING, File("manifest.json", 2)], "hub")
    assert "onprem/m-GGUF has a file manifest.json, a name the store needs itself. Add it to `exclude`." in message
    assert store.select(replace(everything, exclude=("manifest.json",)), [*LISTING, File("manifest.json", 2)], "hub")


# Publishing ------------------------------------------------------------------------------------------------------


def test_what_is_published(host: Host) -> None:
    os.umask(0o077)
    try:
        host.publish()
    finally:
        os.umask(0o022)
    data = json.loads((host.home / "manifest.json").read_text())
    assert (data["repo"], data["revision"], data["commit"]) == ("onprem/m-GGUF", "master", COMMIT)
    assert data["source"] == "modelscope: https://modelscope.cn"
    assert data["selections"] == [{"include": ["F16/*"], "exclude": []}]
    assert [entry["path"] for entry in data["files"]] == PARTS
    for entry in data["files"]:
        place = host.home / entry["path"]
        assert place.stat().st_mode & 0o777 == 0o444
        assert entry["mtime_ns"] == place.stat().st_mtime_ns
        assert entry["sha256"] == hashlib.sha256(place.read_bytes()).hexdigest()
        assert (entry["piece_size"], tuple(entry["pieces"])) == (16384, tree(CONTENT[entry["path"]]).hashes)
    for folder in (host.home / "F16", host.home, *list(host.home.parents)[:2]):
        assert folder.stat().st_mode & 0o777 == 0o755
    assert host.paths() == [f"onprem/m-GGUF/master/{path}" for path in (*PARTS, "manifest.json")]
    assert not host.stage.exists()


def test_another_selection_adds_to_the_same_revision(host: Host) -> None:
    host.publish()
    host.publish(DOCS)
    assert [entry.path for entry in manifest.read(host.home).files] == [*PARTS, README]
    for model in (MODEL, DOCS):
        assert store.present(host.store, model)
        assert store.present(host.store, replace(model, files=()))
    assert store.present(host.store, replace(MODEL, include=(), files=())) is None


def test_what_another_model_staged_stays(host: Host) -> None:
    other = store.staged(host.stage, listed(README))
    host.bring(listed(README))
    old = [host.stage / f"{PARTS[0]}.{'f' * 12}{ending}" for ending in ("", ".part", ".swarm")]
    beside = host.stage / f"{PARTS[0]}.json.{'f' * 12}.part"
    for path in (*old, beside):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of an earlier listing")
    host.publish()
    assert sorted(path for path in host.stage.rglob("*") if path.is_file()) == sorted([other, beside])


def test_a_file_mended_in_place_is_recorded_anew(host: Host) -> None:
    host.publish()
    inode = (host.home / PARTS[0]).stat().st_ino
    host.change(PARTS[0], CONTENT[PARTS[0]])
    assert store.present(host.store, MODEL) is None
    link = store.staged(host.stage, MODEL.files[0])
    link.parent.mkdir(parents=True)
    os.link(host.home / PARTS[0], link)
    found = {PARTS[0]: replace(host.bring(MODEL.files[0]), place=link)}
    rest = store.ready(host.store, MODEL, MODEL.files[1])
    assert rest is not None
    store.publish(host.store, MODEL, found | {PARTS[1]: rest})
    assert store.present(host.store, MODEL)
    assert (host.home / PARTS[0]).stat().st_ino == inode
    assert (host.home / PARTS[0]).stat().st_mode & 0o777 == 0o444
    assert not host.stage.exists()


def test_a_revision_that_moved_has_two_commits_and_so_none(host: Host) -> None:
    host.publish()
    host.publish(replace(DOCS, commit="d" * 40))
    assert manifest.read(host.home).commit == ""


def test_checksums_nobody_named_are_those_computed_here(host: Host) -> None:
    bare = replace(MODEL, files=tuple(File(file.path, file.size) for file in MODEL.files))
    found = {file.path: replace(host.bring(file), checksum="computed here") for file in bare.files}
    store.publish(host.store, bare, found)
    assert {entry.checksum for entry in manifest.read(host.home).files} == {"computed here"}
    assert store.present(host.store, bare)
    host.change(PARTS[0], CONTENT[PARTS[0]])
    again = store.ready(host.store, bare, bare.files[0])
    assert again is not None and again.checksum == "computed here"
    host.change(PARTS[0], CONTENT[PARTS[0]][:-1] + b"!")
    assert store.ready(host.store, bare, bare.files[0]) is None


@pytest.mark.parametrize("call", ["replace", "chmod", "fsync", "unlink", "rmdir"])
def test_ended_before_any_step(host: Host, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A run that ends before each step in turn: nothing is published in part, and every file is found again."""
    host.publish(DOCS)
    really = getattr(os, call)
    steps, ended = 0, True
    while ended:
        steps += 1
        left = steps

        def step_or_end(*places: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise PowerCut
            return really(*places, **named)

        found = {}
        for file in MODEL.files:
            known = store.ready(host.store, MODEL, file)
            assert known is not None or steps == 1, "a file that was here must be found again"
            found[file.path] = known or host.bring(file)
        monkeypatch.setattr(os, call, step_or_end)
        try:
            store.publish(host.store, MODEL, found)
            store.point(host.served, "chat", host.home)
            ended = False
        except PowerCut:
            pass
        monkeypatch.setattr(os, call, really)
        assert store.present(host.store, DOCS)
        published = (host.served / "chat").is_symlink()
        assert not published or store.present(host.store, replace(MODEL, files=()))
        for entry in manifest.read(host.home).files:
            assert hashlib.sha256((host.home / entry.path).read_bytes()).hexdigest() == entry.sha256
    assert os.readlink(host.served / "chat") == str(host.home)


def test_what_was_mended_in_its_place_is_on_the_disk_too(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.publish()
    found = {file.path: store.ready(host.store, MODEL, file) for file in MODEL.files}
    synced, fsync = [], os.fsync

    def watched(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    store.publish(host.store, MODEL, {path: one for path, one in found.items() if one is not None})
    assert synced[:2] == [str(host.home / path) for path in PARTS]


def test_everything_is_on_the_disk_before_what_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may lose what was not synced: files and folders come before the manifest, that before the pointer."""
    events: list[str] = []
    fsync, replaced = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        events.append("sync " + os.readlink(f"/proc/self/fd/{handle}").removeprefix(str(host.store.parent) + "/"))
        fsync(handle)

    def watched_replace(old: Any, new: Any) -> None:
        events.append("move " + str(new).removeprefix(str(host.store.parent) + "/"))
        replaced(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    host.publish()
    store.point(host.served, "chat", host.home)
    home = "models/onprem/m-GGUF/master"
    staged = [str(store.staged(host.stage, file).relative_to(host.store.parent)) for file in MODEL.files]
    assert events == [
        f"sync {staged[0]}",
        f"move {home}/{PARTS[0]}",
        f"sync {staged[1]}",
        f"move {home}/{PARTS[1]}",
        f"sync {home}/F16",
        f"sync {home}",
        "sync models/onprem/m-GGUF",
        "sync models/onprem",
        "sync models",
        f"sync {home}/.manifest.json.new",
        f"move {home}/manifest.json",
        f"sync {home}",
        "move served/chat",
        "sync served",
    ]


# What is there ---------------------------------------------------------------------------------------------------


def test_nothing_is_there(host: Host) -> None:
    assert store.present(host.store, MODEL) is None
    assert store.missing(host.store, MODEL) == (list(MODEL.files), 500_000)
    assert store.ready(host.store, MODEL, MODEL.files[0]) is None
    assert not host.store.exists()


def test_what_is_published_is_believed_without_reading_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.publish()
    (host.home / PARTS[0]).rename(host.home / "aside")
    (host.home / PARTS[0]).write_bytes(bytes(300_000))
    before = (host.home / "aside").stat().st_mtime_ns
    os.utime(host.home / PARTS[0], ns=(before, before))
    monkeypatch.setattr(transfer, "Hashes", None)
    assert store.present(host.store, replace(MODEL, files=()))
    assert store.present(host.store, MODEL)
    assert store.missing(host.store, MODEL) == ([], 0)
    found = store.ready(host.store, MODEL, MODEL.files[0])
    assert found == Verified(host.home / PARTS[0], MODEL.files[0].sha256, tree(CONTENT[PARTS[0]]), "source")


def test_a_file_that_was_touched_is_read_again(host: Host) -> None:
    host.publish()
    os.utime(host.home / PARTS[0])
    assert store.present(host.store, replace(MODEL, files=())) is None
    found = store.ready(host.store, MODEL, MODEL.files[0])
    assert found is not None and found.place == host.home / PARTS[0]
    host.change(PARTS[0], CONTENT[PARTS[0]][:-1] + b"!")
    assert store.ready(host.store, MODEL, MODEL.files[0]) is None


@pytest.mark.parametrize("path", PARTS)
def test_a_file_that_is_gone_or_cut(host: Host, path: str) -> None:
    host.publish()
    host.publish(DOCS)
    (host.home / path).unlink()
    assert store.present(host.store, replace(MODEL, files=())) is None
    assert [file.path for file in store.missing(host.store, MODEL)[0]] == [path]
    (host.home / path).write_bytes(b"short")
    assert [file.path for file in store.missing(host.store, MODEL)[0]] == [path]
    assert store.present(host.store, replace(DOCS, files=()))


def test_another_content_of_the_same_size_is_missing(host: Host) -> None:
    """A branch moved: the new file is fetched, the old one is not read to find that out."""
    host.publish()
    new = CONTENT[PARTS[0]][::-1]
    moved = replace(MODEL, files=(listed(PARTS[0], new), MODEL.files[1]))
    assert store.present(host.store, moved) is None
    assert store.missing(host.store, moved) == ([moved.files[0]], 300_000)
    assert store.ready(host.store, moved, moved.files[0]) is None
    rest = store.ready(host.store, moved, moved.files[1])
    assert rest is not None
    store.publish(host.store, moved, {PARTS[0]: host.bring(moved.files[0], new), PARTS[1]: rest})
    assert store.present(host.store, moved)
    assert store.present(host.store, MODEL) is None


def test_files_that_have_only_gits_name(host: Host) -> None:
    data = CONTENT[README]
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    model = replace(DOCS, files=(File(README, len(data), "", blob),))
    host.publish(model)
    assert manifest.read(host.home).files[0].git_blob == blob
    assert store.present(host.store, model)
    assert store.present(host.store, replace(DOCS, files=(File(README, len(data), "", "f" * 40),))) is None
    host.publish(DOCS)  # another source knows the sha256, and it is the same file
    assert store.ready(host.store, model, model.files[0]) is not None


def test_what_a_killed_run_brought_is_not_brought_again(host: Host) -> None:
    staged = [store.staged(host.stage, file) for file in MODEL.files]
    host.bring(MODEL.files[0])
    transfer.part_of(staged[1]).write_bytes(CONTENT[PARTS[1]][:50_000])
    assert store.missing(host.store, MODEL) == ([MODEL.files[1]], 150_000)
    assert store.ready(host.store, MODEL, MODEL.files[0]) is not None
    with store.working(staged[1]).open("wb") as sparse:
        sparse.truncate(200_000)
        sparse.seek(131_072)
        sparse.write(bytes(65_536))
        os.fsync(sparse.fileno())
    here = store.working(staged[1]).stat().st_blocks * 512
    assert store.missing(host.store, MODEL) == ([MODEL.files[1]], 200_000 - max(here, 50_000))


def test_a_staged_file_that_is_wrong_is_removed(host: Host) -> None:
    staged = host.bring(MODEL.files[0], CONTENT[PARTS[0]][:-1] + b"!").place
    assert store.ready(host.store, MODEL, MODEL.files[0]) is None
    assert not staged.exists()


def test_a_published_file_without_pieces_gets_them_when_it_is_read(host: Host) -> None:
    host.publish()
    old = manifest.read(host.home)
    manifest.write(host.home, replace(old, files=tuple(replace(entry, pieces=None) for entry in old.files)))
    assert store.present(host.store, MODEL)
    found = store.ready(host.store, MODEL, MODEL.files[0])
    assert found is not None and found.pieces == tree(CONTENT[PARTS[0]])


def test_adopting(host: Host) -> None:
    place = host.bring(MODEL.files[0]).place
    assert store.adopt(place, MODEL.files[0]) == Verified(place, MODEL.files[0].sha256, tree(CONTENT[PARTS[0]]))
    assert store.adopt(place, MODEL.files[1]) is None
    assert store.adopt(place, replace(MODEL.files[0], sha256="f" * 64)) is None
    bare = replace(MODEL.files[0], sha256="")
    assert store.adopt(place, bare) is None
    found = store.inspected(place, bare)
    assert found is not None and (found.checksum, found.sha256) == ("computed here", MODEL.files[0].sha256)
    assert store.adopt(place.with_name("none"), MODEL.files[0]) is None


# Room ------------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small(host: Host) -> None:
    message = refusal(store.check_space, host.store, [MODEL], lambda _folder: 100_000)
    assert message == (
        f"model 'chat': 500.0 kB of 500.0 kB must still be stored in {host.store}, where 100.0 kB are free: 400.0 kB "
        "too little. Nothing was downloaded. Make room there, set `models_dir` to a larger disk, or choose a smaller "
        "variant of the model."
    )
    assert not host.store.exists()


def test_only_the_bytes_still_to_come_need_room(host: Host) -> None:
    host.bring(MODEL.files[0])
    transfer.part_of(store.staged(host.stage, MODEL.files[1])).write_bytes(bytes(50_000))
    store.check_space(host.store, [MODEL], lambda _folder: 150_000)
    assert f"150.0 kB of {transfer.human(200_000)}" in refusal(
        store.check_space, host.store, [MODEL], lambda _folder: 149_999
    )
    host.publish()
    store.check_space(host.store, [MODEL], lambda _folder: 0)


def test_what_two_models_share_needs_room_once(host: Host) -> None:
    second = replace(MODEL, name="embedding")
    store.check_space(host.store, [MODEL, second], lambda _folder: 500_000)
    assert refusal(store.check_space, host.store, [MODEL, second, DOCS], lambda _folder: 0).startswith(
        "models 'chat', 'embedding', 'docs': 500.0 kB of 500.0 kB must still be stored"
    )
    host.publish()
    assert "model 'docs': 10 B of 10 B" in refusal(store.check_space, host.store, [MODEL, DOCS], lambda _folder: 9)


def test_what_is_published_elsewhere_needs_no_room(host: Host) -> None:
    host.publish()
    moved = replace(MODEL, revision=COMMIT)
    assert store.missing(host.store, moved) == ([], 0)
    os.utime(host.home / PARTS[0])
    assert store.missing(host.store, moved) == ([moved.files[0]], 300_000)


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert store.free_space(tmp_path / "a/b") == pytest.approx(store.free_space(tmp_path), rel=0.1)


@pytest.mark.parametrize(("mode", "linked"), [(0o644, os.getuid() == 0), (0o666, False), (0o664, False)])
def test_a_file_is_shared_only_when_nobody_else_can_write_it(host: Host, mode: int, linked: bool) -> None:
    host.store.mkdir()
    place = host.store.parent / "file"
    place.touch()
    place.chmod(mode)
    assert store.may_link(host.store, place) == linked


# The pointer -----------------------------------------------------------------------------------------------------


def test_a_pointer_moves_in_one_step(host: Host) -> None:
    assert store.leads_to(host.served, "chat") == ""
    assert store.point(host.served, "chat", host.home) == ""
    assert store.point(host.served, "chat", host.home) == str(host.home)
    other = host.home.with_name(COMMIT)
    (host.served / ".chat.new").symlink_to("/nowhere")  # of a run that was killed
    assert store.point(host.served, "chat", other) == str(host.home)
    assert store.leads_to(host.served, "chat") == os.readlink(host.served / "chat") == str(other)
    assert os.listdir(host.served) == ["chat"]


def test_a_pointer_that_is_a_folder(host: Host) -> None:
    (host.served / "chat").mkdir(parents=True)
    for message in (refusal(store.leads_to, host.served, "chat"), refusal(store.point, host.served, "chat", host.home)):
        assert f"model 'chat': {host.served / 'chat'} is no pointer of ours" in message
        assert message.endswith("; move it away")
