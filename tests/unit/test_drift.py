# SPDX-License-Identifier: GPL-3.0-or-later
"""Drift: what a run in check mode and a look at a host come to, as one list."""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
import yaml
from ansible import context as ansible_context
from ansible.cli.playbook import PlaybookCLI
from ansible.module_utils.testing import patch_module_args
from ansible.modules import stat
from conventions import PROJECT

from ansible_collections.onprem.llm.plugins.action import drift_check, drift_report
from ansible_collections.onprem.llm.plugins.module_utils.doctor import drift as doctor_drift
from ansible_collections.onprem.llm.plugins.module_utils.doctor.sockets import Listener
from ansible_collections.onprem.llm.plugins.module_utils.drift import difference, events, host
from ansible_collections.onprem.llm.plugins.module_utils.drift.difference import Difference
from ansible_collections.onprem.llm.plugins.modules import drift_host


def event(action: str, kind: str = "runner_on_ok", **result: Any) -> dict[str, Any]:
    """One event as ansible-runner gives it."""
    data = {"host": "web", "play": "Serve", "role": "nginx", "task": "Write it", "resolved_action": action}
    return {"event": kind, "event_data": {**data, "res": result}}


def rows(*given: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one.what, one.how) for one in events.read(given).differences]


# --- from a run in check mode


def test_a_file_that_differs_is_named_with_its_lines_and_attributes() -> None:
    shown = {"after_header": "/etc/x", "before": "a\nb\n", "after": "# mode 0644 -> 0600\na\nc\n"}
    (found,) = events.read([event("onprem.llm.config_files", changed=True, diff=[shown])]).differences
    assert (found.what, found.how, found.found_by) == ("/etc/x", "content, mode 0644 -> 0600", "nginx: Write it")
    assert "-b\n+c" in found.diff and "mode" not in found.diff


def test_only_attributes_differ() -> None:
    shown = {"after_header": "/k", "before": "(secret)\n", "after": "# owner a -> b\n# group c -> d\n(secret)\n"}
    assert rows(event("onprem.llm.config_files", changed=True, diff=[shown])) == [("/k", "owner a -> b, group c -> d")]


def test_a_file_that_is_not_there() -> None:
    shown = {"after_header": "/etc/x", "before": "", "after": "a\n"}
    assert rows(event("ansible.builtin.template", changed=True, diff=shown)) == [("/etc/x", "is not there")]


def test_what_a_file_task_would_change() -> None:
    shown = {"before": {"path": "/l", "src": "old"}, "after": {"path": "/l", "src": "new"}}
    assert rows(event("ansible.builtin.file", changed=True, diff=shown)) == [("/l", "src old -> new")]


@pytest.mark.parametrize(
    ("action", "result", "expected"),
    [
        (
            "onprem.llm.service_current",
            {"actions": {"x.service": {"actions": ["restart"], "reasons": ["it is inactive"]}}},
            ("x.service", "it is inactive; owed: restart"),
        ),
        (
            "onprem.llm.rollout_switch",
            {"reasons": ["/opt/x/current leads to other, not to 1.0"]},
            ("/opt/x/current", "leads to other, not to 1.0"),
        ),
        (
            "ansible.builtin.template",
            {"dest": "/etc/x", "diff": {"after_header": "/tmp/x.j2", "before": "", "after": "a\n"}},
            ("/etc/x", "is not there"),
        ),
        (
            "onprem.llm.model_transfer",
            {"notes": ["chat: 1 file would be fetched"]},
            ("model chat", "its files are not as published: chat: 1 file would be fetched"),
        ),
        ("onprem.llm.rollout_switch", {"reasons": ["x@y.service: it is failed"]}, ("x@y.service", "it is failed")),
        (
            "onprem.llm.ldap_tree",
            {"operations": [{"action": "modify", "dn": "uid=a", "attributes": ["mail"]}]},
            ("uid=a", "modify: mail"),
        ),
        (
            "ansible.builtin.apt",
            {"stdout": "Inst lib (1 s)\nInst x (2 s)\n", "invocation": {"module_args": {"name": ["x"]}}},
            ("package x", "is not installed"),
        ),
        (
            "onprem.llm.packages",
            {"stdout": "Inst lib (1 s)\nInst x (2 s)\n", "invocation": {"module_args": {"name": ["x", "y"]}}},
            ("package x", "is not installed"),
        ),
        (
            "community.postgresql.postgresql_ext",
            {"ext": "vector", "invocation": {"module_args": {"login_db": "o", "version": "latest"}}},
            ("extension vector of the database o", "version none -> latest"),
        ),
        ("ansible.builtin.systemd_service", {"name": "y.service"}, ("y.service", "would be changed: Write it")),
        ("ansible.builtin.command", {}, ("Write it", "is owed")),
    ],
)
def test_each_kind_of_task_names_its_object(action: str, result: dict[str, Any], expected: tuple[str, str]) -> None:
    assert rows(event(action, changed=True, **result)) == [expected]
    assert rows(event(action, changed=False, **result)) == []


def test_items_of_a_loop_are_looked_at_one_by_one() -> None:
    items = [{"ansible_loop_var": "item", "item": name, "changed": name == "b"} for name in "ab"]
    assert rows(event("ansible.builtin.command", changed=True, results=items)) == [("b", "would be changed: Write it")]


def test_what_two_tasks_tell_is_listed_once() -> None:
    owed = {"changed": True, "reasons": ["x.service: it is failed"]}
    assert len(rows(event("onprem.llm.rollout_switch", **owed), event("onprem.llm.rollout_switch", **owed))) == 1


def test_a_change_that_a_task_hides_is_counted() -> None:
    stats = {"event": "playbook_on_stats", "event_data": {"changed": {"web": 2}}}
    found = rows(event("x", changed=True, name="n"), event("y", censored="hidden"), stats)
    assert found[-1] == ("a task that hides its result", "would make 1 changes")


def stats(**counted: dict[str, int]) -> dict[str, Any]:
    return {"event": "playbook_on_stats", "event_data": counted}


@pytest.mark.parametrize("lost", ["failures", "dark"])
def test_a_failure_says_where_the_look_ended(lost: str) -> None:
    failed = [event("x", "runner_on_failed", msg=text) for text in ("that was expected", "no\n such port")]
    looked = events.read([*failed, stats(**{lost: {"web": 1}})])
    assert [one.reason for one in looked.broken] == ["no such port"]
    assert looked.broken_in == {"web": "Serve"}


def test_a_host_that_cannot_be_reached_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("one", "two", "three")
    for name in names:
        (tmp_path / f"{name}.yml").write_text(f"- {{name: {name}, hosts: all}}\n")
    site = "".join(f"- ansible.builtin.import_playbook: {name}.yml\n" for name in names)
    (tmp_path / "site.yml").write_text(site)

    def broken(host: str, play: str) -> difference.Broken:
        return difference.Broken(host, play, "no")

    looked = events.Looked(broken=[broken("gone", "one"), broken("web", "one")], unreachable={"gone"})
    looked.broken_in = dict.fromkeys(("gone", "web"), "one")
    asked = []

    def check(path: Path, words: list[str], limit: str) -> events.Looked:
        asked.append((path.stem, limit))
        return events.Looked(broken=[broken("web", path.stem)], unreachable={"web"})

    plugin = object.__new__(drift_check.ActionModule)
    monkeypatch.setattr(plugin, "check", check)
    plugin.go_on(tmp_path / "site.yml", [], looked)
    # It went down between the stages.
    assert asked == [("two", "web")]
    assert [(one.host, one.found_by) for one in looked.broken] == [("gone", "one"), ("web", "one"), ("web", "two")]
    assert events.read([stats(dark={"gone": 1}, failures={"web": 1})]).unreachable == {"gone"}


def test_what_fails_once_for_all_hosts_ends_the_look_at_each_of_them() -> None:
    def ran(host: str, task: str, kind: str = "runner_on_ok", play: str = "Plan") -> dict[str, Any]:
        data = {"host": host, "play": play, "task": task, "task_uuid": task, "res": {"msg": "no room"}}
        return {"event": kind, "event_data": data}

    begun = [ran(host, "look") for host in ("gpu1", "gpu2", "web")]
    once = [*begun, ran("gpu1", "decide", "runner_on_failed")]
    looked = events.read([*once, stats(failures={"gpu1": 1})])
    assert [(one.host, one.found_by, one.reason) for one in looked.broken] == [
        ("gpu1", "Plan: decide", "no room"),
        ("gpu2", "Plan: decide", "it failed on gpu1: no room"),
        ("web", "Plan: decide", "it failed on gpu1: no room"),
    ]
    assert set(looked.broken_in.values()) == {"Plan"}
    # What failed for one alone: the others did the same task, or went on, in this play or in others.
    for beside in (
        [ran("gpu2", "decide", "runner_on_skipped"), ran("web", "serve", play="Web")],
        [ran("gpu2", "decide"), ran("web", "decide"), ran("gpu2", "keep"), ran("web", "keep")],
    ):
        looked = events.read([*once, *beside, stats(failures={"gpu1": 1})])
        assert [one.host for one in looked.broken] == ["gpu1"]


def test_a_host_that_asked_one_that_is_down_was_looked_at_all_the_same() -> None:
    """A delegated task tells it as the failure of the host that asked."""
    asked = event("x", "runner_on_unreachable", msg="no route to gpu1")
    looked = events.read([asked, event("x", changed=False), stats(dark={"gpu1": 1}, ok={"web": 2})])
    assert (looked.broken, looked.broken_in) == ([], {})


def test_what_tasks_answer_for_is_known_though_nothing_differs() -> None:
    def arguments(**given: Any) -> dict[str, Any]:
        return {"invocation": {"module_args": given}}

    looked = events.read(
        [
            event("onprem.llm.config_files", **arguments(files=[{"path": "/a"}])),
            event("ansible.builtin.template", dest="/b"),
            event("ansible.builtin.file", path="/gone", **arguments(path="/gone", state="absent")),
            event("ansible.builtin.apt", **arguments(name=["p=1"])),
            event("onprem.llm.packages", **arguments(name=["q"])),
            event("onprem.llm.service_current", **arguments(units=[{"name": "u"}])),
            event("onprem.llm.rollout_switch", **arguments(links={"/l": "x"}, services=[{"unit": "s"}])),
            event("ansible.builtin.group", **arguments(name="g")),
        ]
    )
    known = looked.known["web"].as_dict()
    assert known == {"files": ["/a", "/b", "/l"], "units": ["s", "u"], "packages": ["p", "q"], "groups": ["g"]}


# --- what the check in check mode is given


def test_what_the_present_run_was_told_is_passed_on() -> None:
    given = {
        "become": True,
        "become_method": "su",
        "become_password_file": "/b",
        "connection_password_file": "/c",
        "ssh_common_args": "-F x",
        "ssh_extra_args": "-v",
        "forks": 5,
        "vault_password_files": ["/v"],
        "extra_vars": ["a=1"],
    }
    words = drift_check.passed_on(given)
    parsed = PlaybookCLI(["ansible-playbook", *words, "site.yml"])
    parsed.parse()
    cli = ansible_context.CLIARGS
    assert {name: cli[name] for name in given} == {**given, "vault_password_files": ("/v",), "extra_vars": ("a=1",)}
    assert (cli["check"], cli["diff"]) == (True, True)


def test_the_schedule_knows_the_password_of_the_vault() -> None:
    text = (PROJECT / "roles/drift/templates/onprem-llm-drift.service.j2").read_text()
    given = {"drift_user": "deploy", "drift_checkout": "/c", "drift_inventory": "/i", "__drift_python": "/usr"}
    template = jinja2.Environment(autoescape=False).from_string(text.replace(" is match('/(root|home)/')", " is none"))
    without = template.render(**given, drift_vault_password_file="")
    with_one = template.render(**given, drift_vault_password_file="/srv/site/vault")
    assert "vault" not in without
    # systemd complains about an empty path.
    assert re.search(r"(?m)^BindReadOnlyPaths=/c /i -/[.]ssh$", without)
    assert " --vault-password-file /srv/site/vault " in with_one
    assert re.search(r"(?m)^BindReadOnlyPaths=.* /srv/site/vault ", with_one)


def test_the_control_host_is_reached_as_the_others_are() -> None:
    """The service may not become another user, so sudo refuses there."""
    refuse = yaml.safe_load((PROJECT / "roles/drift/tasks/preflight.yml").read_text())[0]
    holds = jinja2.Environment(autoescape=False).from_string(refuse["loop"][1]["holds"]).render
    assert (holds(), holds(ansible_connection="ssh"), holds(ansible_connection="local")) == ("True", "True", "False")


def test_the_accounts_home_is_where_the_host_says(capsys: pytest.CaptureFixture[str]) -> None:
    me = pwd.getpwuid(os.getuid())
    with patch_module_args({"path": f"~{me.pw_name}"}), pytest.raises(SystemExit):
        stat.main()
    needed = {"results": [{}, json.loads(capsys.readouterr().out)]}
    home = yaml.safe_load((PROJECT / "roles/drift/vars/main.yml").read_text())["__drift_home"]
    assert jinja2.Environment(autoescape=False).from_string(home).render(__drift_needed=needed) == me.pw_dir


def test_who_must_be_asked_cannot_look() -> None:
    with pytest.raises(drift_check.DriftError, match="--ask-pass"):
        drift_check.passed_on({"ask_pass": True})
    for asks in ("prompt", "site@prompt"):
        with pytest.raises(drift_check.DriftError, match=f"--vault-id {asks}: the check"):
            drift_check.passed_on({"vault_ids": ["other@file", asks]})


def test_a_file_of_variables_is_found_as_ansible_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    words = drift_check.passed_on({"extra_vars": ["@~/x.yml", "@y.yml", "@/z.yml"]})
    assert words[3::2] == [f"@{tmp_path}/home/x.yml", f"@{tmp_path}/y.yml", "@/z.yml"]


# --- from a look at the host


def how(found: list[Difference]) -> list[str]:
    return [f"{one.what}: {one.how}" for one in found]


def test_units() -> None:
    shown = [
        {"Id": "a.service", "LoadState": "loaded", "FragmentPath": "/usr/lib/systemd/system/a.service"},
        {"Id": "m.service", "LoadState": "masked", "FragmentPath": "/etc/systemd/system/m.service"},
        {"Id": "r.service", "UnitFileState": "masked-runtime"},
        {"Id": "s.service", "ActiveState": "inactive"},
        {"Id": "o.service", "LoadState": "loaded", "FragmentPath": "/etc/systemd/system/o.service"},
        {"Id": "d.service", "DropInPaths": "/etc/ours.conf /usr/lib/systemd/d.d/x.conf /run/theirs.conf"},
    ]
    assert how(host.units("web", shown, {"/etc/ours.conf"})) == [
        "m.service: is masked: nothing can start it",
        "r.service: is masked: nothing can start it",
        "s.service: does not run",
        "o.service: is defined by /etc/systemd/system/o.service, which nobody declared",
        "d.service: is changed by the drop-in /run/theirs.conf, which nobody declared",
    ]


def test_units_that_another_unit_starts() -> None:
    files = [f"/etc/systemd/system/{name}" for name in ("a.service", "b@.service", "c.service.d/x.conf", "d.timer")]
    assert host.written([*files, "/etc/e.service"]) == {"a.service", "d.timer"}


@pytest.mark.parametrize("dropped", ["", "/etc/systemd/system/look.service.d/zz.conf"])
def test_a_drop_in_of_a_unit_that_need_not_run(dropped: str) -> None:
    said = {
        "serve.service": "Id=serve.service\nActiveState=inactive\n",
        "look.service": f"Id=look.service\nActiveState=failed\nUser=root\nDropInPaths={dropped}\n",
    }
    module = SimpleNamespace(
        params={"host": "h", "units": ["serve"], "files": ["/etc/systemd/system/look.service"], "packages": []}
        | {"groups": [], "ports": [], "folders": [], "blank_files": [], "trees": "/none", "firewall": "/none"},
        run_command=lambda words, **_: (0, "\n".join(said[word] for word in words if word in said), ""),
    )
    found = [one for one in drift_host.look(module) if one.what in said]
    expected = [f"look.service: is changed by the drop-in {dropped}, which nobody declared"] if dropped else []
    assert how(found) == ["serve.service: does not run", *expected]


POLICY = """\
{name}:
  Installed: {installed}
  Candidate: {installed}
  Version table:
{rows}"""
HERE = "        100 /var/lib/dpkg/status\n"
OFFERED = "     1.0 500\n        500 http://a/debian trixie/main amd64 Packages\n"


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        (" *** 2.0 100\n" + HERE + OFFERED, True),
        (OFFERED.replace("    ", " ***", 1) + HERE, False),
        # Superseded: the sources have something newer, and the old one is gone from them.
        (OFFERED.replace("1.0", "2.0") + " *** 1.0 100\n" + HERE, False),
        # Nothing to compare with: a package that was installed from a bundle.
        (" *** 1.0 100\n" + HERE, False),
    ],
)
def test_a_package_that_no_source_offers(rows: str, wrong: bool) -> None:
    text = POLICY.format(name="p", installed="2.0", rows=rows) + POLICY.format(name="q", installed="(none)", rows="")
    assert bool(host.packages("web", text)) is wrong


def test_a_package_that_is_a_mere_name_brings_the_one_with_the_program() -> None:
    installed = (
        "nginx-light\tinstalled\tnginx\t, libnginx-mod-http-echo, nginx\n"
        "nginx\tinstalled\tnginx\tinit-system-helpers (>= 1.5), nginx-common (<< 1.1~), libc6 (>= 2.34) | nginx-core\n"
        "nginx-common\tinstalled\tnginx\tdebconf:any\n"
        "nginx-core\tconfig-files\tnginx\t, nginx\n"
        "nginx-doc\tinstalled\tnginx\t, \n"
        "libc6\tinstalled\tglibc\t, \n"
    )
    assert host.kin(["nginx-light", "gone"], installed) == ["gone", "nginx", "nginx-common", "nginx-light"]


def test_files_of_packages() -> None:
    said = "??5?????? c /etc/ours.conf\n??5??????   /usr/sbin/x\nmissing     /usr/share/doc/x\nmissing     /usr/bin/y\n"
    said += "??5?????? c /etc/nftables.conf\n"
    assert how(host.verified("web", said, {"/etc/ours.conf"})) == [
        "/usr/sbin/x: is not as its package brought it",
        "/usr/bin/y: is missing",
    ]


def test_members_of_groups() -> None:
    members = {"onprem-tls": ["eve"], "web": ["web"], "sudo": ["web"], "root": ["root"]}
    assert [one.what for one in host.groups("h", {"onprem-tls", "web", "root"}, members)] == ["group onprem-tls"]
    assert how(host.users("h", ["web", "", "root"], members)) == ["user web: runs a service and is in the group sudo"]


def test_ports() -> None:
    found = [Listener("0.0.0.0", 22, "sshd"), Listener("0.0.0.0", 7, "nc"), Listener("127.0.0.1", 8, "x")]
    assert [one.what for one in host.ports("h", found, {22})] == ["port 7"]


def test_rules_of_the_firewall() -> None:
    assert host.rules("h", "/f", "table\n", "table\n") == []
    assert "not loaded" in host.rules("h", "/f", "table\n", "")[0].how
    assert "+accept" in host.rules("h", "/f", "table\naccept\n", "table\n")[0].diff


def test_folders_in_which_others_may_exchange_files(tmp_path: Path) -> None:
    assert host.folder("h", "/f", 0o755, "root", "root", "root") == []
    assert host.folder("h", "/f", 0o775, "root", "root", "root") == []
    assert host.folder("h", "/main/conf.d", 0o755, "postgres", "postgres", "postgres") == []
    assert how(host.folder("h", "/f", 0o777, "eve", "staff", "root")) == [
        "/f: belongs to eve, may be changed by the group staff, may be changed by everybody (mode 0777)"
    ]
    for name in ("etc/nginx", "opt/engine/1.0/lib"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "opt/engine/current").symlink_to("1.0")
    seen = sorted(drift_host.folders([str(tmp_path / "e?c")], str(tmp_path / "opt")))
    names = ("etc", "etc/nginx", "opt", "opt/engine", "opt/engine/1.0")
    assert seen == [str(tmp_path / name) for name in names]
    (tmp_path / "etc/nginx").chmod(0o777)
    assert "by everybody" in drift_host.kept_shut("h", str(tmp_path / "etc/nginx"))[0].how
    # Inside a version it is a change.
    (tmp_path / "opt/engine/1.0/.complete").touch()
    time.sleep(0.3)
    (tmp_path / "opt/engine/1.0/lib").chmod(0o777)
    assert changes_of(tmp_path / "opt/engine/1.0") == ["lib/"]


def test_a_file_that_may_hold_comments_only() -> None:
    assert host.blank("h", "/f", "# a\n\n") == []
    assert host.blank("h", "/f", "# a\nwork_mem = '4MB'\n")[0].how.startswith("sets work_mem,")


@pytest.mark.parametrize(
    ("text", "wins"),
    [
        ("port = 5432\ninclude_dir = 'conf.d'  # a directory\n\t# of files\n#include = 'x'\n", ""),
        ("port = 5432\ninclude_dir 'conf.d'\n", ""),
        ("port = 5432\ninclude_dir = 'conf.d'\nwork_mem = '4MB'\n", "sets work_mem,"),
        # Nothing of ours is read.
        ("port = 5432\n#include_dir = 'conf.d'\n", "sets port,"),
    ],
)
def test_what_follows_the_files_that_are_declared_wins(text: str, wins: str) -> None:
    assert [one.how[: len(wins)] for one in host.blank("h", "/f", text)] == ([wins] if wins else [])


def test_an_installed_version() -> None:
    assert host.tree("h", "/t", 10.0, [("a", 9.0), ("b", 10.0)]) == []
    later = [(f"f{number}", 11.0) for number in range(5)]
    assert host.tree("h", "/t", 10.0, later)[0].how == "changed after it was installed: f0, f1, f2 and 2 more"


def changes_of(root: Path) -> list[str]:
    found = host.tree("h", str(root), drift_host.installed(str(root)) + 0.2, drift_host.changed_in(str(root)))
    return [one.how.partition(": ")[2] for one in found]


def test_what_is_written_until_an_installation_is_verified_is_no_change(tmp_path: Path) -> None:
    """Nor is what an earlier release wrote into a version while it served."""
    for name in (".complete", "share/late.py", ".verified", ".proofs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        time.sleep(0.3)
    assert changes_of(tmp_path) == []
    (tmp_path / "share/.proofs").touch()
    assert changes_of(tmp_path) == ["share/, share/.proofs"]


def test_what_goes_from_an_installed_version_changes_its_folder(tmp_path: Path) -> None:
    """Also at the top, where llama.cpp has its backends."""
    for name in ("libggml-cuda.so", "deep/a", ".complete"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    time.sleep(0.3)
    assert changes_of(tmp_path) == []
    (tmp_path / "libggml-cuda.so").unlink()
    assert changes_of(tmp_path) == ["./"]
    (tmp_path / "deep/a").unlink()
    assert changes_of(tmp_path) == ["./, deep/"]


# --- the report


ONE = Difference("web", "/etc/x", "content", "nginx: Write it", "\n".join(f"+{n}" for n in range(20))).as_dict()
BROKEN = {"host": "db", "found_by": "openldap: Ask", "reason": "no answer"}


def test_the_report() -> None:
    clean = difference.report(["web", "db"], [], [], "2026-01-01T00:00:00+00:00")
    assert clean["ok"] and difference.headline(clean) == "0 differences on 0 of 2 hosts"
    found = difference.report(["web", "db"], [ONE], [BROKEN], "2026-01-01T00:00:00+00:00")
    assert not found["ok"]
    text = "\n".join(difference.table(found))
    assert "web: 1 difference\n  /etc/x: content\n      (nginx: Write it)\n      +0\n" in text
    assert "... 8 more lines" in text
    assert "NOT LOOKED AT after openldap: Ask: no answer" in text
    assert text.endswith("1 difference on 1 of 2 hosts (web); not looked at to the end: db")
    assert "+0" not in (names := "\n".join(difference.table(found, lines=0))) and "more lines" not in names
    metrics = difference.metrics(found, 7.0)
    assert 'onprem_llm_drift_differences{host="web"} 1\n' in metrics
    assert 'onprem_llm_drift_complete{host="db"} 0\n' in metrics
    assert "onprem_llm_drift_time_seconds 7\n" in metrics


def test_the_report_is_for_its_owner_and_the_metrics_for_everybody(tmp_path: Path) -> None:
    for name, mode in (("report.json", 0o600), ("drift.prom", 0o644)):
        drift_report.write(tmp_path / name, "x", mode)
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_schedule_writes_no_lines_of_files_into_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduled: bool
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(drift_report.Display, "display", lambda _, line, color=None: shown.append(line))
    monkeypatch.setattr(drift_report.ActionBase, "run", lambda *_: {})
    plugin = object.__new__(drift_report.ActionModule)
    metrics = str(tmp_path / "drift.prom") if scheduled else ""
    arguments = {"hosts": ["web"], "checked": {"differences": [ONE], "not_looked_at": []}, "looked": {}}
    arguments |= {"json": str(tmp_path / "report.json"), "metrics": metrics}
    plugin._task = SimpleNamespace(args=arguments)
    said = plugin.run()["msg"]
    assert "  /etc/x: content" in shown
    assert ("      +0" in shown) is not scheduled
    assert ("report.json" in said) is scheduled
    assert "+19" in (tmp_path / "report.json").read_text()


@pytest.mark.parametrize(
    ("found", "age", "state"), [([], 60.0, "ok"), ([ONE], 60.0, "warning"), ([], 9 * 86400.0, "warning")]
)
def test_the_doctor_tells_what_the_last_look_found(found: list[dict[str, str]], age: float, state: str) -> None:
    text = json.dumps(difference.report(["web"], found, [], "1970-01-01T00:00:00+00:00"))
    assert doctor_drift.judge("control", "/r", text, age).state == state


@pytest.mark.parametrize("text", [None, "", "{}", '{"time": "x"}'])
def test_the_doctor_tells_that_there_is_no_report(text: str | None) -> None:
    said = doctor_drift.judge("control", "/r", text, 0.0)
    assert said.state == "warning" and "systemctl start onprem-llm-drift" in said.remedy
