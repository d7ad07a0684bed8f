# SPDX-License-Identifier: GPL-3.0-or-later
"""The transfer as a unit: started once, joined, replaced, and asked how it ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store.status import Report
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import (
    Fleet,
    Model,
    Request,
    Source,
    as_json,
    request_from,
)
from ansible_collections.onprem.llm.plugins.module_utils.model_store.unit import UNIT, Unit, UnitError, covers

HUB = Source("hub", "modelscope", "https://hub.example", token="secret")
CHAT = Model("chat", "o/chat", "main", files=(File("a", 6, "1" * 64),), sources=(HUB,), origin="hub")
WORDS = replace(CHAT, name="words", repo="o/words")
REQUEST = Request("/srv/models", (CHAT, WORDS))


class Systemd:
    """What systemctl and journalctl would say."""

    def __init__(self) -> None:
        self.state, self.result, self.refuses = "inactive", "success", ""
        self.calls: list[str] = []

    def __call__(self, argv: Sequence[str]) -> tuple[int, str]:
        if argv[0] == "journalctl":
            assert "_SYSTEMD_INVOCATION_ID=abc" in argv
            return 0, "Traceback\nMemoryError\n"
        if argv[1] == "show":
            return 0, f"Result={self.result}\nInvocationID=abc\nActiveState={self.state}\n"
        self.calls.append(argv[1])
        assert argv[2] == UNIT
        if argv[1] == self.refuses:
            return 1, "Unit model_store.service not found.\n"
        if argv[1] == "start":
            self.state = "active"
        if argv[1] == "stop":
            self.state = "inactive"
        return 0, ""


@pytest.fixture
def systemd() -> Systemd:
    return Systemd()


@pytest.fixture
def unit(systemd: Systemd, tmp_path: Path) -> Unit:
    return Unit(tmp_path, systemd)


def asked(unit: Unit) -> Request:
    return request_from(json.loads((unit.folder / "request.json").read_text()))


def test_a_transfer_is_started(unit: Unit, systemd: Systemd) -> None:
    assert unit.would(REQUEST) == "started"
    assert not (unit.folder / "request.json").exists()
    (unit.folder / "status.json").write_text("of an earlier one")
    assert unit.start(REQUEST) == ("started", REQUEST.digest())
    assert systemd.calls == ["reset-failed", "start"]
    assert asked(unit) == REQUEST
    assert (unit.folder / "request.json").stat().st_mode & 0o777 == 0o600
    assert not (unit.folder / "status.json").exists()


def test_the_same_request_joins(unit: Unit, systemd: Systemd) -> None:
    unit.start(REQUEST)
    systemd.calls.clear()
    rotated = replace(REQUEST, models=(replace(CHAT, sources=(replace(HUB, token="other"),)), WORDS))
    assert unit.would(rotated) == "attached"
    assert unit.start(rotated) == ("attached", REQUEST.digest())
    assert systemd.calls == []


def test_part_of_what_runs_joins(unit: Unit) -> None:
    unit.start(REQUEST)
    assert unit.start(replace(REQUEST, models=(WORDS,))) == ("attached", REQUEST.digest())


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, rate_limit=5),
        replace(REQUEST, proxy="http://proxy.test:1"),
        replace(REQUEST, parallel=1),
        replace(REQUEST, models=(replace(CHAT, sources=(replace(HUB, url="https://other.test"),)), WORDS)),
    ],
    ids=["rate limit", "proxy", "parallel", "source"],
)
def test_settings_that_changed_count(unit: Unit, other: Request) -> None:
    unit.start(REQUEST)
    assert unit.start(other)[0] == "replaced"
    assert asked(unit) == other


def test_who_listed_the_files_does_not_matter(unit: Unit) -> None:
    unit.start(REQUEST)
    assert unit.would(replace(REQUEST, models=(replace(CHAT, origin="mirror", commit="c" * 40), WORDS))) == "attached"


def test_a_model_that_was_lost_after_it_was_published_is_brought_again(unit: Unit) -> None:
    unit.start(REQUEST)
    report = Report(REQUEST, unit.folder / "status.json")
    report.model("chat", "published")
    report.write()
    assert unit.would(REQUEST, ["chat"]) == "replaced"
    assert unit.would(REQUEST, ["words"]) == unit.would(REQUEST) == "attached"


def test_one_that_is_ending_is_waited_for(unit: Unit, systemd: Systemd) -> None:
    """At its end it takes its request away; that must not be the new one."""
    unit.start(REQUEST)
    systemd.calls.clear()
    systemd.state = "deactivating"
    assert unit.start(REQUEST)[0] == "replaced"
    assert systemd.calls == ["stop", "reset-failed", "start"]


def among(*names: str) -> Fleet:
    peers = tuple((name, f"10.0.0.{ord(name)}") for name in names)
    return Fleet("b", "10.0.0.98", peers)


def test_a_run_that_reaches_fewer_hosts_joins(unit: Unit) -> None:
    unit.start(replace(REQUEST, fleet=among("a", "b", "c")))
    for fewer in (among("a", "b"), among("b", "c"), None):
        assert unit.would(replace(REQUEST, fleet=fewer)) == "attached"
    moved = replace(among("a", "b"), announce_port=7000)
    for other in (among("b", "a"), among("a", "b", "d"), moved, replace(among("a", "b"), address="10.0.0.7")):
        assert unit.would(replace(REQUEST, fleet=other)) == "replaced"


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, store="/srv/other"),
        replace(REQUEST, models=(replace(CHAT, revision="v2"),)),
        replace(REQUEST, models=(replace(CHAT, files=(File("a", 6, "2" * 64),)),)),
        replace(REQUEST, models=(CHAT, replace(CHAT, name="third"))),
        replace(REQUEST, fleet=Fleet("a", "10.0.0.1", (("a", "10.0.0.1"), ("b", "10.0.0.2")))),
    ],
    ids=["store", "revision", "files", "model", "fleet"],
)
def test_another_request_takes_its_place(unit: Unit, systemd: Systemd, other: Request) -> None:
    unit.start(REQUEST)
    assert not covers(REQUEST, other)
    systemd.calls.clear()
    assert unit.would(other) == "replaced"
    assert unit.start(other) == ("replaced", other.digest())
    assert systemd.calls == ["stop", "reset-failed", "start"]
    assert asked(unit) == other


def test_a_model_that_failed_is_tried_again(unit: Unit) -> None:
    unit.start(REQUEST)
    report = Report(REQUEST, unit.folder / "status.json")
    report.model("chat", "failed", "no source has it")
    report.write()
    assert unit.would(REQUEST) == "replaced"
    assert unit.would(replace(REQUEST, models=(WORDS,))) == "attached"


def test_a_transfer_nobody_can_read_is_replaced(unit: Unit) -> None:
    unit.start(REQUEST)
    (unit.folder / "request.json").write_text("{")
    assert unit.would(REQUEST) == "replaced"


def test_how_it_stands(unit: Unit) -> None:
    unit.start(REQUEST)
    assert (unit.look().status, unit.look().active, unit.look().journal) == (None, True, ())
    Report(REQUEST, unit.folder / "status.json").write()
    status = unit.look().status
    assert status is not None
    assert (status.state, status.request) == ("running", REQUEST.digest())


def test_a_transfer_that_ended_said_why(unit: Unit, systemd: Systemd) -> None:
    unit.start(REQUEST)
    report = Report(REQUEST, unit.folder / "status.json")
    report.failed("the disk is full")
    report.write()
    systemd.state, systemd.result = "failed", "exit-code"
    seen = unit.look()
    assert (seen.active, seen.result, seen.journal) == (False, "exit-code", ())


def test_a_transfer_that_died_leaves_its_journal(unit: Unit, systemd: Systemd) -> None:
    unit.start(REQUEST)
    Report(REQUEST, unit.folder / "status.json").write()
    systemd.state, systemd.result = "failed", "oom-kill"
    seen = unit.look()
    assert (seen.active, seen.result, seen.journal) == (False, "oom-kill", ("Traceback", "MemoryError"))


def test_systemd_refuses(unit: Unit, systemd: Systemd) -> None:
    systemd.refuses = "start"
    with pytest.raises(UnitError) as refusal:
        unit.start(REQUEST)
    assert str(refusal.value) == ("systemctl start model_store.service failed: Unit model_store.service not found.")
    assert "secret" in json.dumps(as_json(REQUEST))
    assert "secret" not in str(refusal.value)
