# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's judgements, as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.action import doctor_report
from ansible_collections.onprem.llm.plugins.module_utils.doctor import (
    finding,
    front,
    memory,
    models,
    ports,
    sockets,
    units,
)
from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import DoctorError, Finding
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage

UNIT = {
    "Id": "nginx.service",
    "Names": "nginx.service",
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "NRestarts": "0",
    "UnitFileState": "enabled",
    "ActiveEnterTimestampMonotonic": "100000000",  # 100 s after boot
}
NOW = 1000.0


# --- findings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["failed", "not_asked"])
def test_a_finding_that_is_not_ok_names_a_remedy(state: str) -> None:
    with pytest.raises(DoctorError, match="names no remedy"):
        Finding("a.b", "h", state, "seen")


def test_a_finding_has_a_known_state() -> None:
    with pytest.raises(DoctorError, match="'fine' is no state"):
        Finding("a.b", "h", "fine", "seen", "do")


@pytest.mark.parametrize(
    ("states", "ok"),
    [
        (["ok"], True),
        (["ok", "ok"], True),
        (["ok", "failed"], False),
        (["ok", "not_asked"], False),  # not asked is never green
        (["not_asked"], False),
        ([], False),  # nor is silence
    ],
)
def test_verdict(states: list[str], ok: bool) -> None:
    assert finding.verdict([Finding("a", "h", state, "d", "r") for state in states])["ok"] is ok


@pytest.mark.parametrize(
    ("result", "check", "state"),
    [
        ({"unreachable": True, "msg": "No route to host"}, "host.reachable", "failed"),
        ({"lost": True}, "host.reachable", "not_asked"),
        ({"msg": "MODULE FAILURE"}, "doctor.host", "failed"),
        ({}, "doctor.host", "failed"),
        ({"findings": [{"check": "a", "host": "h", "state": "ok", "detail": "d", "remedy": ""}]}, "a", "ok"),
    ],
)
def test_a_task_that_brought_nothing_is_never_silence(result: dict[str, Any], check: str, state: str) -> None:
    assert [(one.check, one.state) for one in finding.from_task("h", "host", result)] == [(check, state)]


def test_a_skipped_task_is_silent() -> None:
    assert finding.from_task("h", "ports", {"skipped": True}) == []


def test_a_finding_without_all_its_parts_is_refused() -> None:
    with pytest.raises(DoctorError, match="lacks 'remedy'"):
        finding.from_task("h", "host", {"findings": [{"check": "a", "host": "h", "state": "ok", "detail": "d"}]})


def test_table_groups_by_host_and_repeats_what_failed_with_its_remedy() -> None:
    found = [
        finding.ok("units.nginx", "web1", "active"),
        finding.failed("units.slapd", "data1", "failed (failed)", "read the journal"),
        finding.not_asked("front.login", "web1", "no account", "set doctor_user"),
        finding.not_asked("front.models", "web1", "no account", "set doctor_user"),
    ]
    assert [line for line, _ in finding.table(found)] == [
        "",
        "web1",
        "  ok         units.nginx   active",
        "  not asked  front.login   no account",
        "  not asked  front.models  no account",
        "",
        "data1",
        "  FAILED     units.slapd   failed (failed)",
        "",
        "Not asked, and what to do:",
        "  web1: front.login, front.models: no account",
        "      do: set doctor_user",
        "",
        "FAILED, and what to do:",
        "  data1: units.slapd: failed (failed)",
        "      do: read the journal",
        "",
        "1 ok, 1 FAILED, 2 not asked",
    ]


def test_table_wraps_long_details_under_themselves() -> None:
    lines = [line for line, _ in finding.table([finding.ok("a", "h", "word " * 40)], width=80)]
    assert all(len(line) <= 80 for line in lines)
    assert lines[3].startswith(" " * len("  ok         a  "))


# --- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "before", "state", "says"),
    [
        ({}, None, "ok", "active for 15 min"),
        ({"NRestarts": "2"}, None, "ok", "restarted 2 times"),
        ({"UnitFileState": "generated"}, None, "ok", "active"),
        ({"UnitFileState": "disabled"}, None, "failed", "will not start at boot"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, None, "failed", "no such unit"),
        ({"LoadState": "masked", "ActiveState": "inactive"}, None, "failed", "masked"),
        ({"ActiveState": "failed", "Result": "exit-code"}, None, "failed", "exit-code"),
        ({"ActiveState": "inactive", "SubState": "dead"}, None, "failed", "inactive (dead)"),
        ({"NRestarts": "7"}, {"NRestarts": "6"}, "failed", "restarts in a loop"),
        (
            {"NRestarts": "7", "ActiveState": "activating", "SubState": "auto-restart"},
            {"NRestarts": "7"},
            "failed",
            "loop",
        ),
        ({"NRestarts": "1"}, {"NRestarts": "1"}, "ok", "restarted 1"),  # fell once, and stays up since
    ],
)
def test_units(change: dict[str, str], before: dict[str, str] | None, state: str, says: str) -> None:
    one = units.judge("h", "nginx", {**UNIT, **change}, NOW, None if before is None else {**UNIT, **before})
    assert (one.check, one.state) == ("units.nginx", state)
    assert says in one.detail


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({}, False),
        ({"NRestarts": "3"}, False),  # long ago
        ({"NRestarts": "1", "ActiveEnterTimestampMonotonic": "995000000"}, True),
        ({"ActiveEnterTimestampMonotonic": "995000000"}, False),  # young, but never fell
        ({"ActiveState": "activating"}, True),
        ({"ActiveState": "failed"}, False),  # no second look needed
    ],
)
def test_which_units_deserve_a_second_look(change: dict[str, str], doubt: bool) -> None:
    assert units.suspicious({**UNIT, **change}, NOW) is doubt


def test_units_are_found_by_any_of_their_names() -> None:
    shown = units.parse("Id=slapd.service\nNames=slapd.service ldap.service\n\nId=b.service\nNames=b.service\n")
    found = units.match(["ldap", "b.service", "missing"], shown)
    assert [found[name].get("Id") for name in found] == ["slapd.service", "b.service", None]


def test_a_pattern_finds_the_instances_there_are() -> None:
    shown = [
        {**UNIT, "Id": f"postgresql@17-{name}.service", "ActiveState": state}
        for name, state in (("a", "active"), ("b", "failed"))
    ]
    findings = units.judge_all("h", ["postgresql@*", "redis@*"], shown, [], NOW)
    assert [(one.check, one.state) for one in findings] == [
        ("units.postgresql@17-a", "ok"),
        ("units.postgresql@17-b", "failed"),
        ("units.redis@*", "failed"),
    ]


def test_a_second_look_counts_and_the_others_keep_their_first() -> None:
    young = {**UNIT, "Id": "b.service", "Names": "b.service", "NRestarts": "1"}
    findings = units.judge_all("h", ["nginx", "b"], [UNIT, young], [{**young, "NRestarts": "2"}], NOW)
    assert [(one.check, one.state) for one in findings] == [("units.nginx", "ok"), ("units.b", "failed")]


def test_a_dot_in_the_name_of_an_instance_is_no_suffix() -> None:
    assert units.full("llamacpp@qwen2.5-7b") == "llamacpp@qwen2.5-7b.service"
    assert units.full("apt-daily.timer") == "apt-daily.timer"


# --- listening sockets ----------------------------------------------------------------------------------------------

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0
   2: 0BCE4D0A:0016 01CE4D0A:D431 01 00000000:00000000 02:00000000 00000000     0        0 333 2 0 20 4 30 10 -1
"""
TCP6 = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 444
   1: 00000000000000000000000001000000:1538 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 555
   2: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 666
"""


def test_listening_sockets_are_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/tcp").write_text(TCP)
    (tmp_path / "net/tcp6").write_text(TCP6)
    (tmp_path / "42/fd").mkdir(parents=True)
    (tmp_path / "42/comm").write_text("sshd\n")
    (tmp_path / "42/fd/3").symlink_to("socket:[111]")
    found = sockets.listeners(tmp_path)
    assert [(one.address, one.port, one.process, one.beyond) for one in found] == [
        ("0.0.0.0", 22, "sshd", True),
        ("::", 443, "", True),
        ("127.0.0.1", 3000, "", False),
        ("::1", 5432, "", False),
        ("::ffff:127.0.0.1", 8080, "", False),
    ]


def test_declared_ports_of_one_number_are_merged() -> None:
    entries: list[dict[str, Any]] = [
        {"port": 5432, "sources": ["10.0.0.1"]},
        {"port": 5432, "sources": ["10.0.0.2"]},
        {"port": 22, "sources": [], "optional": True},
        {"port": 22, "sources": ["10.0.0.1"], "optional": True},
    ]
    assert sockets.declared(entries) == [
        sockets.Declared(22, (), True),
        sockets.Declared(5432, ("10.0.0.1", "10.0.0.2"), False),
    ]


@pytest.mark.parametrize("entry", [{}, {"port": 0}, {"port": 70000}, {"port": "https"}, {"port": None}])
def test_a_declared_port_is_a_port(entry: dict[str, Any]) -> None:
    with pytest.raises(DoctorError, match="names no port"):
        sockets.declared([entry])


ALL = sockets.Listener("0.0.0.0", 443, "nginx")
LOOP = sockets.Listener("127.0.0.1", 443, "nginx")


@pytest.mark.parametrize(
    ("found", "wanted", "bad"),
    [
        ([ALL], [sockets.Declared(443)], {}),
        ([LOOP], [sockets.Declared(443)], {"ports.listening.443": "on loopback only"}),
        ([], [sockets.Declared(443)], {"ports.listening.443": "nothing listens"}),
        ([], [sockets.Declared(22, (), True)], {}),
        ([ALL], [], {}),  # whether it is open is for others to see
    ],
)
def test_what_a_host_says_of_its_own_ports(
    found: list[sockets.Listener], wanted: list[sockets.Declared], bad: dict[str, str]
) -> None:
    findings = sockets.compare("h", found, wanted)
    failed = {one.check: one.detail for one in findings if one.state == "failed"}
    assert failed.keys() == bad.keys()
    assert all(text in failed[check] for check, text in bad.items())
    assert findings[0].check == "ports.listening"


# --- ports seen from elsewhere --------------------------------------------------------------------------------------


def seen(
    port: int = 5432,
    listens: str | None = "0.0.0.0",
    sources: list[str] | None = None,
    trusted: tuple[str, ...] = (),
    optional: bool = False,
) -> ports.Target:
    """sources None: not declared."""
    return ports.Target(
        "data1",
        "10.0.0.13",
        (sockets.Listener(listens, port, "postgres"),) if listens else (),
        () if sources is None else (sockets.Declared(port, tuple(sources), optional),),
        trusted,
    )


@pytest.mark.parametrize(
    ("target", "open_", "state", "says"),
    [
        (seen(sources=["10.0.0.12"]), True, "ok", "open 5432 postgres"),
        (seen(sources=["10.0.0.0/24"]), True, "ok", "open 5432"),
        (seen(sources=["localhost", "10.0.0.12"]), True, "ok", "open 5432"),
        (seen(sources=[]), True, "ok", "open 5432"),  # declared for anybody
        (seen(sources=["10.0.0.99"]), True, "failed", "declared for 10.0.0.99 only"),
        (seen(sources=["10.0.0.99"]), False, "ok", "closed 5432"),
        (seen(sources=["10.0.0.12"]), False, "failed", "cannot connect"),
        (seen(sources=["10.0.0.12"], optional=True), False, "ok", "closed 5432"),  # it ended meanwhile
        (seen(sources=[], optional=True), False, "failed", "cannot connect"),  # as ssh is declared
        (seen(listens=None, sources=["10.0.0.12"]), False, "ok", "closed"),  # doctor_host says that nobody listens
        (seen(), True, "failed", "not declared"),
        (seen(), False, "ok", "closed 5432"),  # the firewall closes it
        (seen(listens="127.0.0.1"), False, "ok", "closed 5432"),
        (seen(listens="127.0.0.1"), True, "failed", "not declared"),  # something else passes it on
        (seen(trusted=("10.0.0.0/24",)), True, "ok", "open"),
        (seen(trusted=("10.1.0.0/24",)), True, "failed", "not declared"),
    ],
)
def test_a_port_seen_from_another_host(target: ports.Target, open_: bool, state: str, says: str) -> None:
    findings = ports.judge(target, "web1", "10.0.0.12", {5432} if open_ else set())
    assert [one.state for one in findings] == [state]
    assert findings[0].host == "data1"
    assert findings[0].check == ("ports.from.web1" if state == "ok" else "ports.from.web1.5432")
    assert says in findings[0].detail


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "no way"),
        ("10.0.0.13", "is data1 itself"),
        ("127.0.0.1", "is data1 itself"),
        ("10.0.0.1", "none of its ports"),
    ],
)
def test_a_controller_without_a_view_is_not_asked(address: str, says: str) -> None:
    (one,) = ports.judge(seen(sources=[]), "controller", address, set(), controller=True)
    assert one.state == "not_asked"
    assert says in one.detail


@pytest.mark.parametrize(
    ("hosts", "looker", "lookers", "expected"),
    [
        (["a", "b", "c"], "a", 4, ["c", "b"]),
        (["a", "b", "c"], "b", 1, ["a"]),
        (["a", "b", "c"], "c", 1, ["b"]),
        (["a"], "a", 4, []),
        (["a"], "", 4, ["a"]),  # only the controller can look
        (["a", "b"], "", 4, []),
        (["a", "b"], "gone", 4, []),
        ([], "", 4, []),
    ],
)
def test_who_looks_at_whom(hosts: list[str], looker: str, lookers: int, expected: list[str]) -> None:
    results: list[dict[str, Any]] = [{"target": {"host": host}} for host in hosts]
    results.insert(0, {"unreachable": True})
    assert [one["host"] for one in ports.targets(results, looker, lookers)] == expected


@pytest.mark.parametrize("count", [2, 3, 5, 9])
@pytest.mark.parametrize("lookers", [1, 2, 4])
def test_everybody_is_looked_at_by_as_many_as_can(count: int, lookers: int) -> None:
    results: list[dict[str, Any]] = [{"target": {"host": f"h{n}"}} for n in range(count)]
    looked: list[str] = []
    for looker in range(count):
        names = [one["host"] for one in ports.targets(results, f"h{looker}", lookers)]
        assert f"h{looker}" not in names
        looked += names
    assert {looked.count(f"h{n}") for n in range(count)} == {min(lookers, count - 1)}


def test_a_scan_tells_open_from_closed() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        listening, silent = server.getsockname()[1], closed.getsockname()[1]
        assert ports.scan("127.0.0.1", [listening, silent], 1.0) == {listening}


# --- the report -----------------------------------------------------------------------------------------------------


def test_report_holds_everything_and_is_written_at_once(tmp_path: Path) -> None:
    good = finding.ok("units.nginx", "web1", "active").as_dict()
    report = doctor_report.build(
        [
            {"host": "web1", "task": "host", "result": {"findings": [good], "target": {}}},
            {"host": "data1", "task": "host", "result": {"unreachable": True, "msg": "gone"}},
            {"host": "data1", "task": "ports", "result": {"unreachable": True, "msg": "gone"}},  # said once
            {"host": "controller", "task": "front", "result": {"findings": [], "answer": {"question": "?"}}},
        ]
    )
    doctor_report.write(tmp_path / "new/out.json", report)
    read = json.loads((tmp_path / "new/out.json").read_text())
    assert read["ok"] is False
    assert read["counts"] == {"ok": 1, "failed": 1, "not_asked": 0, "warning": 0}
    assert [(one["host"], one["check"]) for one in read["findings"]] == [
        ("web1", "units.nginx"),
        ("data1", "host.reachable"),
    ]
    assert read["answer"] == {"question": "?"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.json"]


# --- small things ---------------------------------------------------------------------------------------------------


def test_planted_words_differ_and_are_plain() -> None:
    words = {front.plant() for _ in range(200)}
    assert len(words) > 150
    assert all(word.isalpha() and word.istitle() and len(word) >= 3 for word in words)


@pytest.mark.parametrize(
    ("name", "created", "old"),
    [
        ("doctor 0123abcd", 100, True),
        ("doctor 0123abcd", 900, False),  # another doctor may be at work on it
        ("doctor", 100, False),
        ("doctor who", 100, False),
        ("Doctor 0123abcd", 100, False),
        ("my doctor 0123abcd", 100, False),
        ("doctor 0123abcd", None, False),
        (None, 100, False),
    ],
)
def test_only_old_work_of_the_doctor_is_swept(name: str | None, created: int | None, old: bool) -> None:
    assert front.old_work(name, "doctor ", created, 500) is old


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "state", "detail"),
    [
        (
            {"reported": {"ram": {"weights": 3 << 30, "kv_cache": 1 << 30, "compute": 0}}, "differences": []},
            "ok",
            "llama.cpp lays it out as planned: ram 4.00 GiB",
        ),
        (
            {"reported": {"ram": {}}, "differences": ["ram: the plan expects 1 GiB.", "gpu0: more."]},
            "warning",
            "ram: the plan expects 1 GiB. gpu0: more.",
        ),
        ({"reported": None, "reason": "no tool\nhere"}, "warning", "not compared: no tool here"),
        ({"msg": "broke off"}, "warning", "not compared: broke off"),
    ],
)
def test_a_plan_that_was_wrong_about_memory_is_a_warning(answer: dict[str, Any], state: str, detail: str) -> None:
    found = memory.judge("gpu1", "chat", answer)
    assert (found.check, found.state, found.detail) == ("memory.chat", state, detail)
    assert finding.verdict([finding.ok("a", "h", "b"), found])["ok"]


def test_every_turn_of_a_loop_is_an_answer() -> None:
    answers = [{"findings": [finding.ok(f"memory.{name}", "gpu1", "x").as_dict()]} for name in ("a", "b")]
    assert [one.check for one in finding.from_task("gpu1", "memory", {"results": answers})] == ["memory.a", "memory.b"]
    assert finding.from_task("gpu1", "memory", {"results": []}) == []


# --- published models


def test_damaged_models_are_named_with_the_way_out() -> None:
    many = tuple(damage.Damage("o/m", "main", f"part-{number}.gguf", (1,)) for number in range(7))
    found = models.judge("gpu1", damage.Findings(1000.0, many), 2000.0)
    assert (found.state, found.check, found.host) == ("failed", "models.files", "gpu1")
    assert "o/m/part-0.gguf, " in found.detail and found.detail.endswith(" and 2 more")
    assert found.remedy.startswith(
        "run playbooks/models.yml for gpu1: it fetches damaged pieces of what is placed there anew"
    )
    assert "remove the folder of a version that is only kept" in found.remedy


@pytest.mark.parametrize(
    ("checked", "detail"),
    [(0.0, "verified when they were fetched, not read again yet"), (1000.0, "read again 2 d ago, all as published")],
)
def test_models_that_are_whole(checked: float, detail: str) -> None:
    found = models.judge("gpu1", damage.Findings(checked), 1000.0 + 2 * 86400)
    assert (found.state, found.detail) == ("ok", detail)
