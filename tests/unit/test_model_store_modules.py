# SPDX-License-Identifier: GPL-3.0-or-later
"""model_store_info and model_pointer as Ansible runs them: answers, check mode, idempotence, messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import COMMIT, CONTENT, DOCS, MODEL, PARTS, README, Host

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage, look, store
from ansible_collections.onprem.llm.plugins.module_utils.model_store.damage import Damage
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, model_from
from ansible_collections.onprem.llm.plugins.module_utils.rollout import record as rollout

REPOSITORY = Path(__file__).parents[2]
NEW = replace(MODEL, revision=COMMIT)


def settings(model: Model) -> dict[str, Any]:
    """A model as a playbook gives it: with more keys than the store reads, and without its files."""
    return {
        "name": model.name,
        "repo": model.repo,
        "revision": model.revision,
        "include": list(model.include),
        "entry": model.entry,
        "source": "modelscope",
        "engine": "llamacpp",
    }


class Ansible:
    """Runs the modules on a host's disk."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.damage = host.store.parent / "damage.json"

    def run(self, module: str, *models: Model, check: bool = False, **more: Any) -> dict[str, Any]:
        given = {
            "store": str(self.host.store),
            "served_dir": str(self.host.served),
            "models": [settings(model) for model in models],
            "_ansible_check_mode": check,
            "_ansible_remote_tmp": str(self.host.store.parent),
            **more,
        }
        ran = subprocess.run(
            [sys.executable, "-m", f"ansible_collections.onprem.llm.plugins.modules.{module}"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "collections")},
            check=False,
        )
        answer: dict[str, Any] = json.loads(ran.stdout)
        return answer

    def info(self, *models: Model, **more: Any) -> dict[str, Any]:
        answer = self.run("model_store_info", *models, damage=str(self.damage), **more)
        assert not answer.get("changed")
        return answer

    def point(self, *models: Model, **more: Any) -> dict[str, Any]:
        return self.run("model_pointer", *models, **more)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def ansible(host: Host) -> Ansible:
    return Ansible(host)


# model_store_info ------------------------------------------------------------------------------------------------


def test_a_fresh_host(ansible: Ansible) -> None:
    answer = ansible.info(MODEL, DOCS, needs=["no_such_library"], check=True)
    assert answer["models"] == [
        {
            "name": model.name,
            "key": store.selection_key(model),
            "complete": False,
            "served": False,
            "why": "not there",
            "files": [],
            "commit": "",
            "origin": "",
        }
        for model in (MODEL, DOCS)
    ]
    assert answer["lacking"] == ["no_such_library"]
    assert not ansible.host.store.exists()


def test_a_host_with_one_of_two_models(ansible: Ansible) -> None:
    ansible.host.publish()
    store.point(ansible.host.served, "chat", ansible.host.home)
    found = {one["name"]: one for one in ansible.info(MODEL, DOCS)["models"]}
    assert (found["chat"]["complete"], found["chat"]["served"], found["chat"]["why"]) == (True, True, "")
    assert (found["docs"]["complete"], found["docs"]["why"]) == (False, "another selection of files is there")
    # Others that lack the model need no source to know its files.
    listed = model_from({**found["chat"], "repo": MODEL.repo, "revision": MODEL.revision})
    assert (listed.files, listed.commit, listed.origin) == (MODEL.files, COMMIT, "modelscope")
    assert found["docs"]["files"] == []


def test_a_model_that_cannot_be(ansible: Ansible) -> None:
    ansible.host.publish()
    for bad, said in (
        (replace(MODEL, entry="other"), "entry 'other' is not among the files of onprem/m-GGUF"),
        (replace(MODEL, repo="../x"), "model 'chat': repo is '../x'"),
        (replace(MODEL, revision=""), "model 'chat': it has no revision"),
    ):
        answer = ansible.info(bad)
        assert answer["failed"] and said in answer["msg"]


def test_why_a_model_is_not_complete(host: Host) -> None:
    wanted = replace(MODEL, files=())

    def why(*damaged: Damage) -> str:
        found = look.look(host.store, host.served, wanted, damaged)
        assert found.complete == (not found.why)
        return found.why

    host.publish()
    host.publish(DOCS)
    assert why() == why(Damage(MODEL.repo, "v2", PARTS[0]), Damage(MODEL.repo, "master", README)) == ""
    assert why(Damage(MODEL.repo, "master", PARTS[0], (3, 17))) == f"damaged: 2 pieces of {PARTS[0]}"
    assert why(Damage(MODEL.repo, "master", PARTS[1], (3,)), Damage(MODEL.repo, "master", PARTS[0])) == (
        f"damaged: 1 piece of {PARTS[1]}, {PARTS[0]}"
    )
    os.utime(host.home / PARTS[0])
    assert why() == f"{PARTS[0]} is another file or was touched"
    (host.home / PARTS[0]).unlink()
    assert why() == f"{PARTS[0]} is not there"
    (host.home / "manifest.json").unlink()
    assert why() == "not there"


def test_what_verify_found_counts_until_it_is_mended(ansible: Ansible) -> None:
    ansible.host.publish()
    damage.write(ansible.damage, 1.0, [Damage(MODEL.repo, MODEL.revision, PARTS[0], (2,))])
    assert ansible.info(MODEL)["models"][0]["why"] == f"damaged: 1 piece of {PARTS[0]}"
    damage.write(ansible.damage, 2.0, [])
    assert ansible.info(MODEL)["models"][0]["complete"]


def test_libraries_as_a_distribution_installs_them(tmp_path: Path) -> None:
    for name in ("pycurl.cpython-311-x86_64-linux-gnu.so", "plain.py"):
        (tmp_path / name).touch()
    (tmp_path / "package").mkdir()
    assert look.lacking(["pycurl", "plain", "package", "libtorrent"], tmp_path) == ["libtorrent"]


def test_the_whole_look_reads_no_model(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.publish()
    monkeypatch.setattr(transfer, "Hashes", None)
    monkeypatch.setattr(store, "TreeHash", None)
    assert look.look(host.store, host.served, replace(MODEL, files=())).complete


# model_pointer ---------------------------------------------------------------------------------------------------


def test_a_pointer_four_ways(ansible: Ansible) -> None:
    """In check mode, really, again, and again in check mode."""
    host = ansible.host
    host.publish()
    pointer = {"name": "chat", "before": "", "after": str(host.home)}
    would = ansible.point(MODEL, check=True)
    assert (would["changed"], would["pointers"]) == (True, [pointer])
    assert not host.served.exists()
    done = ansible.point(MODEL)
    assert (done["changed"], done["pointers"], done["removed"], done["freed"]) == (True, [pointer], [], 0)
    assert done["diff"][0]["after"] == f"chat -> {host.home}\n"
    assert os.readlink(host.served / "chat") == str(host.home)
    assert host.served.stat().st_mode & 0o777 == 0o755
    for check in (False, True):
        again = ansible.point(MODEL, check=check)
        assert (again["changed"], again["pointers"]) == (False, [{**pointer, "before": str(host.home)}])


def test_check_mode_on_a_fresh_host(ansible: Ansible) -> None:
    would = ansible.point(MODEL, check=True, prune=True)
    assert (would["changed"], would["pointers"][0]["after"]) == (True, str(ansible.host.home))
    assert not ansible.host.store.exists() and not ansible.host.served.exists()


def test_no_pointer_moves_unless_all_can(ansible: Ansible) -> None:
    host = ansible.host
    host.publish()
    answer = ansible.point(MODEL, DOCS, prune=True)
    assert answer["failed"]
    assert answer["msg"] == (
        f"model 'docs' is not complete in {host.home}: another selection of files is there. No pointer was moved. Run "
        "again; the transfer brings what is missing."
    )
    assert not host.served.exists()
    host.publish(DOCS)
    (host.served / "docs").mkdir(parents=True)
    assert "docs is no pointer of ours" in ansible.point(MODEL, DOCS)["msg"]
    assert os.listdir(host.served) == ["docs"]


def test_a_new_revision_and_the_old_one_pruned(ansible: Ansible) -> None:
    host = ansible.host
    host.publish()
    ansible.point(MODEL, replace(MODEL, name="old"))
    host.publish(NEW)
    moved = ansible.point(NEW)
    assert (moved["pointers"], moved["removed"]) == (
        [{"name": "chat", "before": str(host.home), "after": str(host.home.with_name(COMMIT))}],
        [],
    )
    gone = {"name": "old", "before": str(host.home), "after": ""}
    would = ansible.point(NEW, prune=True, check=True)
    assert os.readlink(host.served / "old") == str(host.home)
    done = ansible.point(NEW, prune=True)
    for answer in (would, done):
        assert answer["changed"]
        assert answer["pointers"][1:] == [gone]
        assert answer["removed"] == ["onprem/m-GGUF/master"]
        assert answer["freed"] >= sum(len(CONTENT[part]) for part in PARTS)
        assert answer["diff"][0]["before"].endswith(f"old -> {host.home}\n")
        assert answer["diff"][1] == {
            "before_header": str(host.store),
            "after_header": str(host.store),
            "before": "onprem/m-GGUF/master\n",
            "after": "",
        }
    assert os.listdir(host.served) == ["chat"]
    assert not host.home.exists()
    assert store.present(host.store, NEW)
    assert not ansible.point(NEW, prune=True)["changed"]


def test_what_is_to_be_kept_is_kept(ansible: Ansible) -> None:
    host = ansible.host
    host.publish()
    host.publish(NEW)
    answer = ansible.point(NEW, prune=True, keep=[settings(MODEL)])
    assert answer["removed"] == []
    assert store.present(host.store, MODEL)


def test_what_serves_moves_its_own_pointer(ansible: Ansible) -> None:
    """The switch does, when it has tried the new files; a pointer that is not there yet is made."""
    host = ansible.host
    host.publish()
    assert ansible.point(MODEL, switched=["chat"])["pointers"][0]["after"] == str(host.home)
    host.publish(NEW)
    for check in (True, False):
        stays = ansible.point(NEW, switched=["chat"], check=check)
        assert (stays["changed"], stays["pointers"]) == (
            False,
            [{"name": "chat", "before": str(host.home), "after": str(host.home)}],
        )
    assert os.readlink(host.served / "chat") == str(host.home)


def record(host: Host, **states: dict[str, Any]) -> str:
    folder = host.store.parent / "rollout"
    folder.mkdir(exist_ok=True)
    parts = {name: states.get(name) and rollout.configuration(states[name]) for name in ("good", "previous")}
    rollout.write(str(folder), rollout.Record("llamacpp", **parts))
    return str(folder)


def serving(host: Host, model: Model, names: str) -> dict[str, Any]:
    home = store.home(host.store, model)
    return {
        "version": "1",
        "links": {str(host.served / model.name): str(home), "/opt/llamacpp/current": "1-source"},
        "files": [{"path": "/etc/chat.env", "content": f"OPTIONS=--model {host.served}/{model.name}/{names}"}],
        "services": [],
    }


def test_what_may_be_gone_back_to_is_not_pruned(ansible: Ansible) -> None:
    """Of the former revision what its engine was given; a model that is placed here no more keeps its pointer too."""
    host = ansible.host
    old = replace(MODEL, name="old")
    for model in (MODEL, DOCS, NEW):
        host.publish(model)
    ansible.point(NEW, old)
    records = record(host, good=serving(host, old, PARTS[0]), previous=serving(host, MODEL, PARTS[0]))
    done = ansible.point(NEW, prune=True, switched=["chat"], records=records)
    assert done["removed"] == [f"onprem/m-GGUF/master/{README}"]
    assert sorted(os.listdir(host.served)) == ["chat", "old"]
    assert store.present(host.store, MODEL)
    # When neither is in the record any more, it goes.
    record(host, good=serving(host, NEW, PARTS[0]))
    done = ansible.point(NEW, prune=True, switched=["chat"], records=records)
    assert (done["removed"], os.listdir(host.served)) == (["onprem/m-GGUF/master"], ["chat"])


def test_an_engine_that_is_given_a_folder_needs_all_of_it(ansible: Ansible) -> None:
    host = ansible.host
    for model in (MODEL, DOCS, NEW):
        host.publish(model)
    ansible.point(NEW)
    records = record(host, previous=serving(host, MODEL, ""))
    assert ansible.point(NEW, prune=True, records=records)["removed"] == []


def test_nothing_is_pruned_while_a_record_cannot_be_read(ansible: Ansible) -> None:
    host = ansible.host
    host.publish()
    host.publish(NEW)
    records = record(host)
    Path(records, "llamacpp.json").write_text("{")
    answer = ansible.point(NEW, prune=True, records=records)
    assert answer["failed"] and f"{records}/llamacpp.json is not what onprem.llm writes" in answer["msg"]
    assert store.present(host.store, MODEL)


def test_nothing_is_pruned_beside_a_transfer(ansible: Ansible) -> None:
    host = ansible.host
    host.publish()
    host.publish(NEW)
    with transfer.alone(host.store, host.store / ".staging"):
        answer = ansible.point(NEW, prune=True)
    assert (answer["removed"], answer["pointers"][0]["after"]) == ([], str(host.home.with_name(COMMIT)))
    said = f"Nothing was pruned: a transfer into {host.store} is running. Run again when it has ended."
    assert said in json.dumps(answer["warnings"])
    assert store.present(host.store, MODEL)
