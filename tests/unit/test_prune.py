# SPDX-License-Identifier: GPL-3.0-or-later
"""Pruning: what goes, and everything that stays."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from stores import COMMIT, CONTENT, DOCS, MODEL, PARTS, README, Host, PowerCut, listed

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest, prune, store
from ansible_collections.onprem.llm.plugins.module_utils.model_store.manifest import Selection

REPOSITORY = Path(__file__).parents[2]
NEW = replace(MODEL, revision=COMMIT)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nothing_to_prune(host: Host) -> None:
    assert prune.prune(host.store, host.served, []) == prune.Pruned([], 0)
    assert not host.store.exists()
    host.publish()
    before = host.paths()
    assert prune.prune(host.store, host.served, [MODEL]).removed == []
    assert host.paths() == before


def test_a_revision_nobody_needs(host: Host) -> None:
    host.publish()
    host.publish(NEW)
    store.point(host.served, "chat", store.home(host.store, NEW))
    expected = prune.prune(host.store, host.served, [NEW], check=True)
    assert (expected.removed, expected.freed) == (["onprem/m-GGUF/master"], pytest.approx(500_000, abs=9000))
    assert host.home.is_dir()
    assert prune.prune(host.store, host.served, [NEW]) == expected
    assert not host.home.exists()
    assert store.present(host.store, NEW)
    assert prune.prune(host.store, host.served, [NEW]).removed == []


def test_a_revision_a_pointer_leads_to_stays(host: Host) -> None:
    host.publish()
    for link in (host.home, Path("../models/onprem/m-GGUF/master"), host.home / "F16"):
        (host.served).mkdir(exist_ok=True)
        (host.served / "mine").symlink_to(link)
        assert prune.prune(host.store, host.served, [NEW]).removed == []
        (host.served / "mine").unlink()
    (host.served / "foreign").symlink_to("/usr/share")
    (host.served / ".chat.new").symlink_to(host.home)
    assert prune.prune(host.store, host.served, [NEW]).removed == ["onprem/m-GGUF/master"]
    assert host.paths() == []


def test_a_file_nobody_needs(host: Host) -> None:
    host.publish()
    host.publish(DOCS)
    store.point(host.served, "chat", host.home)
    unpublished = host.home / "note.txt"
    unpublished.write_text("an administrator's")
    assert prune.prune(host.store, host.served, [MODEL]).removed == [f"onprem/m-GGUF/master/{README}"]
    recorded = manifest.read(host.home)
    assert [entry.path for entry in recorded.files] == PARTS
    assert recorded.selections == (Selection(("F16/*",), ()),)
    assert store.present(host.store, replace(MODEL, files=()))
    assert store.present(host.store, replace(DOCS, files=())) is None
    assert unpublished.exists()
    assert prune.prune(host.store, host.served, [], gone=["chat"], check=True).removed == ["onprem/m-GGUF/master"]
    assert (host.served / "chat").is_symlink()
    prune.prune(host.store, host.served, [], gone=["chat"])
    assert os.listdir(host.served) == []
    assert host.paths() == ["onprem/m-GGUF/master/note.txt"]


def test_a_pointer_of_another_name_needs_all_files(host: Host) -> None:
    host.publish()
    host.publish(DOCS)
    store.point(host.served, "chat", host.home)
    store.point(host.served, "docs", host.home)
    assert prune.prune(host.store, host.served, [MODEL]).removed == []
    assert prune.prune(host.store, host.served, [MODEL], gone=["docs"]).removed == [f"onprem/m-GGUF/master/{README}"]


def test_retired_pointers(host: Host, tmp_path: Path) -> None:
    store.point(host.served, "chat", host.home)
    store.point(host.served, "old", host.home.with_name("v1"))
    (host.served / "deep").symlink_to(host.home / "F16")
    (host.served / "foreign").symlink_to(tmp_path)
    (host.served / "file").write_text("")
    assert prune.retired(host.store, host.served, ["chat"]) == {"old": str(host.home.with_name("v1"))}
    assert prune.retired(host.store, tmp_path / "none", []) == {}


def test_leftovers_of_models_nobody_wants(host: Host) -> None:
    for model in (MODEL, NEW):
        host.bring(model.files[0], model=model)
    done = prune.prune(host.store, host.served, [MODEL])
    assert done.removed == [f".staging/onprem--m-GGUF@{COMMIT}"]
    assert len(host.paths()) == 1


def test_what_a_stopped_fleet_left_keeps_nothing_on_the_disk(host: Host) -> None:
    host.publish()
    links = host.store / ".staging/.fleet"
    links.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(PARTS):
        os.link(host.home / path, links / str(number))
    prune.prune(host.store, host.served, [], check=True)
    assert len(list(links.iterdir())) == 2
    assert prune.prune(host.store, host.served, []).freed == pytest.approx(500_000, abs=10_000)
    assert host.paths() == []
    assert not links.exists()


def test_a_file_shared_with_a_directory_frees_nothing(host: Host, tmp_path: Path) -> None:
    host.publish()
    os.link(host.home / PARTS[0], tmp_path / "disk")
    done = prune.prune(host.store, host.served, [])
    assert done.freed == pytest.approx(200_000, abs=5000)
    assert (tmp_path / "disk").read_bytes() == CONTENT[PARTS[0]]


def test_ended_in_the_middle_of_pruning(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left, the next run removes, and what is kept stays present."""
    really = Path.unlink
    for steps in range(1, 4):
        host.publish(replace(MODEL, name="other", include=("*",), files=tuple(map(listed, CONTENT))))
        host.publish(DOCS)
        left = steps

        def unlink_or_end(path: Path, missing_ok: bool = False) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise PowerCut
            really(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink_or_end)
        try:
            prune.prune(host.store, host.served, [DOCS])
        except PowerCut:
            assert steps < 4
        monkeypatch.setattr(Path, "unlink", really)
        assert store.present(host.store, replace(DOCS, files=()))
        assert store.present(host.store, replace(MODEL, files=())) is None or host.home.joinpath(PARTS[1]).exists()
        prune.prune(host.store, host.served, [DOCS])
        assert host.paths() == [f"onprem/m-GGUF/master/{path}" for path in (README, "manifest.json")]


HOLD = """
import sys, time
from pathlib import Path
from ansible_collections.onprem.llm.plugins.module_utils import transfer
with transfer.alone(Path(sys.argv[1]), Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_transfer_that_runs_is_not_pruned_beside(host: Host) -> None:
    host.publish()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "collections")}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(host.store)], env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "held\n"
            with pytest.raises(transfer.BusyError):
                prune.prune(host.store, host.served, [])
        finally:
            child.kill()
    assert store.present(host.store, MODEL)
