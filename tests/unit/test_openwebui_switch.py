# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change of Open WebUI's version leaves behind wherever it breaks off, and what the next run makes of that."""

from __future__ import annotations

import errno
import functools
import grp
import json
import os
import pwd
import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import jinja2
import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from ansible_collections.onprem.llm.plugins.module_utils import (
    config_files,
    database_dump,
    local_facts,
    openwebui_switch,
    transfer,
)
from ansible_collections.onprem.llm.plugins.module_utils.openwebui_switch import Plan, Record, SwitchError, at
from ansible_collections.onprem.llm.plugins.modules import database_dump as module_of_dumps
from ansible_collections.onprem.llm.plugins.modules import openwebui_switch as module_of_switch

OLD, NEW, OTHER = "0.11.4-py3.11-aaaa", "0.12.4-py3.11-bbbb", "0.13.0-py3.11-cccc"
NOW = "20260101T000000Z"
BUILT = [OLD, NEW, OTHER]
SERVE = Path(__file__).parents[2] / "roles/openwebui/tasks/serve.yml"


def plan(record: Record, current: str, wanted: str, restores: str = "") -> Plan:
    return openwebui_switch.plan(record, current, wanted, restores, NOW, BUILT)


def upgrade() -> Record:
    return openwebui_switch.begun(openwebui_switch.first(OLD), NEW, f"{OLD}-then", "", True)


def trying(record: Record) -> Record:
    return {**record, "state": "trying"}


def test_a_first_installation_replaces_nothing() -> None:
    assert not plan(openwebui_switch.first(""), "", NEW).switch


def test_a_database_that_was_there_before_is_kept_and_leads_nowhere_back() -> None:
    assert plan(openwebui_switch.first(""), "", NEW).dump == f"found-{NOW}"
    record: Record = {**openwebui_switch.first(NEW), "previous": at("", f"found-{NOW}")}
    assert plan(record, NEW, NEW).back_to is None
    assert openwebui_switch.facts(record)["previous"] == {}


def test_a_database_that_an_uninstalled_version_left_is_kept_too() -> None:
    """Its record stayed, so that what it served is known; nothing serves."""
    tasks = yaml.safe_load(SERVE.read_text())
    (task,) = (task for task in tasks if task.get("ansible.builtin.include_tasks") == "first.yml")
    runs = jinja2.Environment().compile_expression(task["when"])

    def first(record: Record, current: str) -> bool:
        compared = {"current": current}
        found = plan(record, current, NEW)
        rest = {"openwebui_database_server": "db", "groups": {"all": ["db"]}, "ansible_check_mode": False}
        return bool(runs(__openwebui_compared=compared, __openwebui_plan=found, **rest))

    left = openwebui_switch.first(OLD)
    assert plan(left, "", NEW).serves == at(OLD)
    assert first(left, "") and first(openwebui_switch.first(""), "")
    assert not first(left, OLD) and not first(openwebui_switch.first(NEW), NEW)
    # What broke off in the trial has its dump.
    assert not first(trying(upgrade()), "")
    assert plan(left, "", NEW).dump == f"found-{NOW}"


def test_the_same_version_is_left_alone() -> None:
    assert not plan(openwebui_switch.first(NEW), NEW, NEW).switch


def test_another_version_is_changed_to_after_a_dump_of_its_own() -> None:
    assert plan(openwebui_switch.first(OLD), OLD, NEW) == Plan(at(OLD), False, True, f"{OLD}-{NOW}", "", None)


def test_what_broke_off_before_the_trial_begins_anew() -> None:
    """The service may have been started since, so the data that were copied are not those that count."""
    found = plan(upgrade(), OLD, NEW)
    assert (found.switch, found.withdraw, found.dump) == (True, False, f"{OLD}-{NOW}")
    assert not plan(upgrade(), OLD, OLD).switch


def test_what_broke_off_in_the_trial_goes_on_with_its_dump() -> None:
    """Only the trial has seen the data since."""
    for current in (OLD, NEW):
        found = plan(trying(upgrade()), current, NEW)
        assert (found.switch, found.withdraw, found.dump, found.resumes) == (True, False, f"{OLD}-then", True)


@pytest.mark.parametrize(("wanted", "switch"), [(OLD, False), (OTHER, True)])
def test_a_trial_that_is_not_wanted_any_more_is_taken_back_first(wanted: str, switch: bool) -> None:
    found = plan(trying(upgrade()), OLD, wanted)
    assert (found.withdraw, found.switch, found.serves) == (True, switch, at(OLD))
    assert found.dump == f"{OLD}-{NOW}" and not found.resumes


def test_the_way_back_leads_to_the_version_before_with_its_data() -> None:
    record = openwebui_switch.passed(trying(upgrade()))
    assert plan(record, NEW, "").back_to == at(OLD, f"{OLD}-then")
    found = plan(record, NEW, OLD, f"{OLD}-then")
    assert (found.switch, found.dump, found.restores) == (True, f"{NEW}-{NOW}", f"{OLD}-then")
    back = openwebui_switch.begun(record, OLD, found.dump, found.restores, True)
    # Broken off, it goes on; when the inventory is what counts, it is taken back.
    assert plan(trying(back), NEW, OLD).restores == f"{OLD}-then"
    assert plan(trying(back), NEW, NEW).withdraw
    # And once there, back is forward.
    assert plan(openwebui_switch.passed(trying(back)), OLD, "").back_to == at(NEW, f"{NEW}-{NOW}")


def test_there_is_no_way_back_to_what_was_removed() -> None:
    record = openwebui_switch.passed(trying(upgrade()))
    assert openwebui_switch.plan(record, NEW, "", "", NOW, [NEW]).back_to is None


def test_the_way_back_from_a_trial_is_what_served() -> None:
    assert plan(trying(upgrade()), OLD, "").back_to == at(OLD)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert openwebui_switch.read(path, OLD) == openwebui_switch.first(OLD)
    path.write_text(openwebui_switch.render(trying(upgrade())))
    assert openwebui_switch.read(path, NEW) == trying(upgrade())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "null"])
def test_a_damaged_record_is_named_with_the_way_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(SwitchError, match=rf"{path} is damaged.*mv {path} {path}\.old"):
        openwebui_switch.read(path, OLD)


def test_without_a_record_the_last_data_that_are_kept_stay(tmp_path: Path) -> None:
    """A damaged one was moved away; what is left says when, no more."""
    for name in (f"{NEW}-20260101T000000Z", f"{OLD}-20260301T000000Z"):
        (tmp_path / name / "uploads").mkdir(parents=True)
    (tmp_path / "found-20260201T000000Z.dump").touch()
    (tmp_path / "record.json.old").touch()
    record = openwebui_switch.read(tmp_path / "record.json", NEW)
    assert record == {**openwebui_switch.first(NEW), "previous": at("", f"{OLD}-20260301T000000Z")}
    assert plan(record, NEW, OTHER).back_to is None


MIGRATIONS = [
    "revision = 'a'\ndown_revision = None\n",
    "from alembic import op\nrevision: str = 'b'\ndown_revision: str | None = 'a'\ndef upgrade(): pass\n",
    "revision = 'c'\ndown_revision = 'a'\n",
    "revision = 'd'\ndown_revision = ('b', 'c')\nbranch_labels = None\n",
]


def test_the_last_migration_is_the_one_that_none_follows() -> None:
    assert openwebui_switch.heads(MIGRATIONS) == {"d"}
    openwebui_switch.check_schema("d", MIGRATIONS, "1.0")


@pytest.mark.parametrize("revision", ["a", "", "x"])
def test_a_migration_that_did_not_happen_is_seen(revision: str) -> None:
    with pytest.raises(SwitchError, match=f"end with revision d and the database is at {revision or 'none'}"):
        openwebui_switch.check_schema(revision, MIGRATIONS, "1.0")


def test_uploads_are_kept_as_they_were_and_brought_back(tmp_path: Path) -> None:
    uploads, kept = tmp_path / "data/uploads", tmp_path / "kept/d/uploads"
    (uploads / "folder").mkdir(parents=True)
    for name in ("one", "folder/two"):
        (uploads / name).write_text(name)
    openwebui_switch.clone(uploads, kept)
    (uploads / "one").unlink()
    (uploads / "three").touch()
    # What a run that was killed left behind is in nobody's way.
    (uploads.parent / ".uploads.part").mkdir()
    openwebui_switch.clone(kept, uploads)
    assert {path.name: path.read_text() for path in uploads.rglob("*") if path.is_file()} == {
        "one": "one",
        "two": "folder/two",
    }
    assert sorted(path.name for path in uploads.parent.iterdir()) == ["uploads"]
    openwebui_switch.clone(tmp_path / "nothing", uploads)
    assert not uploads.exists()


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was written through to the disk, in order; "all" without a word to this machine's disks."""
    order: list[str] = []
    monkeypatch.setattr(os, "sync", lambda: order.append("all"))
    monkeypatch.setattr(transfer, "sync_folder", lambda path: order.append(path.name))
    return order


def test_a_copy_is_on_the_disk_before_what_it_replaces_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: list[str]
) -> None:
    uploads, kept = tmp_path / "data/uploads", tmp_path / "kept/d/uploads"
    for folder in (uploads, kept):
        folder.mkdir(parents=True)
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: synced.append(path.name) or rename(path, to))
    openwebui_switch.clone(kept, uploads)
    assert synced == ["all", "uploads", ".uploads.part", "data"]


def test_a_dump_is_on_the_disk_when_it_is_said_to_be(tmp_path: Path, synced: list[str]) -> None:
    class Server(database_dump.Server):
        def run(self, *_: Any, **__: Any) -> str:
            return ""

    database_dump.dump(Server(5432), "chat", tmp_path / "then.dump")
    assert synced == [tmp_path.name]


def test_half_a_dump_is_removed(tmp_path: Path) -> None:
    class Server(database_dump.Server):
        def run(self, *_: Any, stdout: IO[bytes] | None = None, **__: Any) -> str:
            assert stdout
            stdout.write(b"half")
            raise database_dump.DumpError("pg_dump failed")

    with pytest.raises(database_dump.DumpError):
        database_dump.dump(Server(5432), "chat", tmp_path / "then.dump")
    assert list(tmp_path.iterdir()) == []


class Host:
    """A web host whose commands do nothing, for one step after the other."""

    def __init__(self, folder: Path) -> None:
        self.kept, self.root, self.uploads = folder / "kept", folder / "root", folder / "data/uploads"
        self.ran: list[list[str]] = []
        self.warned: list[str] = []
        for path in (self.root / OLD, self.root / NEW, self.uploads):
            path.mkdir(parents=True)
        (self.root / "current").symlink_to(OLD)
        (self.uploads / "one").write_text("one")
        self.facts = folder / "facts"

    def command(self, argv: list[str], **_: Any) -> tuple[int, str, str]:
        self.ran.append(argv)
        return 0, "ActiveState=inactive\n", ""

    def step(self, state: str, **change: Any) -> dict[str, Any]:
        places = {"root": self.root, "kept": self.kept, "data": self.uploads.parent, "facts": self.facts}
        rest = {"name": NEW, "dump": f"{OLD}-then", "restores": "", "email": "a@b", "password": "p", "port": 1}
        rest |= {"keep": 2, "environment": None, "why": "", "timeout": 1, "unit": ""}
        params = {key: str(value) for key, value in places.items()} | rest | {"state": state} | change
        module = SimpleNamespace(params=params, run_command=self.command, check_mode=False, warn=self.warned.append)
        result: dict[str, Any] = getattr(module_of_switch.Switch(module), state)()
        return result

    def record(self) -> Record:
        return openwebui_switch.read(self.kept / "record.json", "")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(module_of_switch, "TRIAL_FILE", tmp_path / "trial.service")
    monkeypatch.setattr(module_of_switch.Switch, "wait", lambda *_: 1.0)
    me = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
    monkeypatch.setattr(config_files, "Wanted", functools.partial(config_files.Wanted, **me))
    return Host(tmp_path)


def test_the_record_is_on_the_disk_before_the_service_stops(host: Host, synced: list[str]) -> None:
    host.step("stopped")
    assert synced[0] == "kept"
    assert host.record()["state"] == "dumping"


def test_uploads_that_are_as_they_were_need_no_room_to_come_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another file system their copy would lie beside them, and the version before would not start again."""
    host.step("stopped")
    host.step("armed")

    def full(*_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(openwebui_switch, "link", full)
    host.step("back")
    assert host.record()["state"] == "failed"
    # However often it failed before.
    assert host.ran[-2:] == [
        ["systemctl", "reset-failed", "openwebui.service"],
        ["systemctl", "enable", "--now", "openwebui.service"],
    ]
    assert (host.uploads / "one").read_text() == "one"


def test_uploads_that_the_trial_changed_are_put_back(host: Host) -> None:
    host.step("stopped")
    host.step("armed")
    (host.uploads / "one").unlink()
    (host.uploads / "two").touch()
    host.step("back")
    assert [path.name for path in host.uploads.iterdir()] == ["one"]


def test_a_password_that_is_newer_than_the_data_is_no_obstacle_on_the_way_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_switch, "signs_in", lambda *_: False)
    monkeypatch.setattr(openwebui_switch, "check_schema", lambda *_: None)
    monkeypatch.setattr(module_of_switch.Switch, "ask", lambda *_: "d")
    (host.root / NEW / "lib/python3.11/site-packages/open_webui").mkdir(parents=True)
    for restores in ("", f"{NEW}-then"):
        record = openwebui_switch.begun(openwebui_switch.first(OLD), NEW, f"{OLD}-then", restores, login=True)
        host.kept.mkdir(exist_ok=True)
        (host.kept / "record.json").write_text(openwebui_switch.render(trying(record)))
        if not restores:
            with pytest.raises(SwitchError, match="a@b could sign in before and cannot now"):
                host.step("tried")
    host.step("tried")
    assert [text for text in host.warned if "the data are older" in text]


def test_an_uninstall_takes_a_trial_away_that_broke_off() -> None:
    (task,) = yaml.safe_load((SERVE.parent / "uninstall.yml").read_text())
    assert module_of_switch.TRIAL in task["onprem.llm.uninstalled"]["units"]
    assert str(module_of_switch.TRIAL_FILE) in task["onprem.llm.uninstalled"]["paths"]


def test_the_environment_of_a_trial_that_was_never_begun_goes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run died while the data were copied, and the version that served is asked for again."""
    environment = host.root.parent / "trial.env"
    environment.touch()
    monkeypatch.setattr(local_facts, "keep", lambda *_: SimpleNamespace(changed=False))
    host.step("stopped")
    assert host.step("settled", environment=str(environment))["changed"]
    assert not environment.exists() and host.record()["state"] == "good"
    assert not host.step("settled", environment=str(environment))["changed"]


@pytest.mark.parametrize("state", ["armed", "back"])
def test_uploads_stay_where_what_was_kept_is_gone(host: Host, state: str) -> None:
    host.step("stopped", restores=f"{OLD}-then")
    (host.kept / "record.json").write_text(openwebui_switch.render(trying(host.record())))
    shutil.rmtree(host.kept / f"{OLD}-then")
    with pytest.raises(SwitchError, match=rf"{host.kept}/{OLD}-then, where the uploads were kept, is not there"):
        host.step(state)
    assert (host.uploads / "one").exists()


def test_uploads_that_are_a_file_system_are_refused_before_anything_stops(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == host.uploads)
    with pytest.raises(SwitchError, match=rf"{host.uploads} is a file system.*Mount it at {host.uploads.parent}"):
        host.step("stopped")
    assert not [argv for argv in host.ran if "disable" in argv]


def test_a_dump_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    there = tmp_path / "then.dump"
    with pytest.raises(
        database_dump.DumpError, match=rf"The dump {there} is not there.*Put the file back there, then run"
    ):
        database_dump.check_there(there, "chat")
    there.touch()
    database_dump.check_there(there, "chat")


def test_half_a_copy_of_uploads_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, kept = tmp_path / "data/uploads", tmp_path / "kept/d/uploads"
    uploads.mkdir(parents=True)
    (uploads / "one").touch()

    def full(*_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(openwebui_switch, "link", full)
    with pytest.raises((OSError, shutil.Error)):
        openwebui_switch.clone(uploads, kept)
    assert list(kept.parent.iterdir()) == []


def test_uploads_on_another_file_system_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if os.stat(other).st_dev == tmp_path.stat().st_dev:
            pytest.skip("one file system only")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/one").write_bytes(b"x" * 1000)
        target = Path(other, "not there yet/uploads")
        openwebui_switch.check_room(tmp_path, target)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 999))
        with pytest.raises(SwitchError, match=rf"uploads in {tmp_path} take .* and {other}, which is on another file"):
            openwebui_switch.check_room(tmp_path, target)
        openwebui_switch.check_room(tmp_path, tmp_path / "elsewhere")
        openwebui_switch.check_room(tmp_path / "nothing", target)


GIB = database_dump.GIB


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (database_dump.Room(15 * GIB, 10 * GIB, shared=False), ""),
        (database_dump.Room(14 * GIB, 10 * GIB, shared=False), r"/dumps has 14\.0 GiB free of the 15\.0 GiB needed\."),
        (database_dump.Room(15 * GIB, 9 * GIB, shared=False), r"/data has 9\.0 GiB free of the 10\.0 GiB needed\."),
        (database_dump.Room(25 * GIB, 25 * GIB, shared=True), ""),
        (database_dump.Room(24 * GIB, 24 * GIB, shared=True), r"/dumps has 24\.0 GiB free of the 25\.0 GiB needed\."),
    ],
)
def test_a_dump_needs_room_for_itself_and_for_its_return(room: database_dump.Room, said: str) -> None:
    found = database_dump.lacking(10 * GIB, room, "chat", "/dumps", "/data")
    assert bool(found) == bool(said)
    assert re.search(said, found)
    assert not said or re.search("chat takes 10.0 GiB.*Nothing was changed. Free that space", found)


@pytest.mark.parametrize("there", [True, False])
def test_a_dump_that_is_there_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    def full(*_: Any) -> None:
        raise database_dump.DumpError("no room")

    monkeypatch.setattr(database_dump, "check_cluster", lambda *_: None)
    monkeypatch.setattr(database_dump, "check_room", full)
    (tmp_path / "then.dump").touch()
    given = {"state": "checked", "database": "chat", "cluster": "1", "folder": str(tmp_path), "name": "then"}
    with patch_module_args({**given, "there": there}), pytest.raises(SystemExit):
        module_of_dumps.main()
    assert json.loads(capsys.readouterr().out).get("failed", False) is not there


@pytest.mark.parametrize(("said", "runs"), [({"unreachable": True}, False), ({"changed": True}, True), (None, True)])
def test_uploads_stay_until_their_dumps_are_gone(said: dict[str, bool] | None, runs: bool) -> None:
    """By the folders of uploads alone a later run sees that there are dumps to remove."""
    when = yaml.safe_load((SERVE.parent / "prune.yml").read_text())[-1]["when"]
    given = {} if said is None else {"__openwebui_database": said}
    assert jinja2.Environment().compile_expression(when)(**given) is runs


def test_dumps_that_nothing_needs_are_named(tmp_path: Path) -> None:
    for name in (f"{OLD}-1.dump", f"{OLD}-2.dump", f"{NEW}-3.part", "record.json"):
        (tmp_path / name).touch()
    (tmp_path / f"{OLD}-1").mkdir()
    found = [path.name for path in database_dump.superfluous(tmp_path, [f"{OLD}-2"])]
    assert found == [f"{OLD}-1.dump", f"{NEW}-3.part"]
