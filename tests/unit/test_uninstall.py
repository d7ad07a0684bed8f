# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes with a role: packages nobody else needs, files that were not there before, never what is the system's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import conventions
import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from conventions import PROJECT, ROLE_NAMES, load
from test_exposure import trusted

from ansible_collections.onprem.llm.plugins.module_utils.doctor import leftovers
from ansible_collections.onprem.llm.plugins.module_utils.uninstall import before, files, packages
from ansible_collections.onprem.llm.plugins.module_utils.uninstall.packages import Package

# --- packages


def host(text: str) -> dict[str, Package]:
    """Lines of ``name: needs / likes``; a ``-`` in front is a package whose configuration alone is left."""
    found = {}
    for line in text.strip().splitlines():
        name, _, rest = line.strip().partition(":")
        needs, _, likes = rest.partition("/")
        bare = name.lstrip("-")
        provides = ("mta",) if bare.endswith("fix") else ()
        found[bare] = Package(bare, name == bare, provides, packages.names(needs), packages.names(likes))
    return found


BASE = """
libc:
python: libc
libold: libc
"""
OLD = ("libc", "python", "libold")


def going(text: str, wanted: Iterable[str], automatic: str = "", staying: Iterable[str] = ()) -> list[str]:
    return packages.going(host(BASE + text), automatic.split(), OLD, wanted, staying)


def test_a_package_goes_with_what_came_along() -> None:
    said = going(
        "nginx: libc, nginx-common / libgd\nnginx-common: python\nlibgd: libc", ["nginx"], "nginx-common libgd"
    )
    assert said == ["libgd", "nginx", "nginx-common"]


def test_what_was_here_before_stays() -> None:
    assert going("", ["python", "libold"]) == []
    assert going("nginx: libold", ["nginx"], "libold") == ["nginx"]


def test_what_somebody_asked_for_by_name_stays() -> None:
    assert going("nginx: nginx-common\nnginx-common:", ["nginx"], "") == ["nginx"]


def test_what_another_package_needs_or_recommends_stays() -> None:
    text = "nginx: nginx-common\nnginx-common:\ntheirs: nginx\n"
    assert going(text, ["nginx"], "nginx-common") == []
    assert going(text.replace("theirs: nginx", "theirs: / nginx"), ["nginx"], "nginx-common") == []


def test_what_was_here_before_managed_without_a_recommendation() -> None:
    """Also where it could choose: what it had is enough."""
    extra = Package("python", True, (), packages.names("libc, libold | libnew"), packages.names("nginx"))
    there = {**host(BASE + "nginx: libnew\nlibnew:"), "python": extra}
    assert packages.going(there, ["libnew"], OLD, ["nginx"], []) == ["libnew", "nginx"]


def test_what_an_upgrade_of_what_was_here_needs_now_stays() -> None:
    newer = Package("python", True, (), packages.names("libc, libnew (>= 2)"))
    there = {**host(BASE + "nginx: libnew\nlibnew:"), "python": newer}
    assert packages.going(there, ["libnew"], OLD, ["nginx"], []) == ["nginx"]


def test_what_another_role_needs_stays() -> None:
    text = "nginx: nginx-common\nnginx-common:\nnjs: nginx"
    assert going(text, ["nginx", "njs"], "nginx-common", staying=["nginx"]) == ["njs"]


def test_a_virtual_package_counts_as_its_provider() -> None:
    assert going("postfix:\ntheirs: mta", ["postfix"]) == []
    assert going("postfix:\ntheirs: mta | libc", ["postfix"]) == ["postfix"]


def test_configuration_that_is_left_goes_too_and_kernels_never() -> None:
    text = "-slapd:\nlinux-image-6: libc\ndriver: linux-image-6"
    assert going(text, ["slapd", "driver", "linux-image-*"], "linux-image-6") == ["driver", "slapd"]


def test_circles_and_patterns() -> None:
    assert going("a: b\nb: a\nab:", ["a"], "b") == ["a", "b"]
    assert going("postgresql-17:\npostgresql-client-17:", ["postgresql-[1-9]*"]) == ["postgresql-17"]


def test_dpkgs_own_words() -> None:
    text = (
        "nginx:amd64\tinstalled\thttpd, httpd-cgi (= 1)\t, libc6 (>= 2.34), iproute2:any | net-tools\t, \n"
        "libc6:i386\tinstalled\t\t, \t, \nman:all\tconfig-files\t\t, \t, \ngone:amd64\tnot-installed\t\t, \t, \n"
    )
    found = packages.parse(text, "amd64")
    assert found["nginx"] == Package("nginx", True, ("httpd", "httpd-cgi"), (("libc6",), ("iproute2", "net-tools")))
    assert found["libc6:i386"].bare == "libc6"
    assert not found["man"].installed
    assert "gone" not in found


def test_apt_removes_nothing_else() -> None:
    said = "Purg nginx [1.26]\nRemv theirs [1] [other]\nInst x"
    assert packages.blocked(["nginx"], said) == ["theirs"]


@pytest.mark.skipif(not Path("/usr/bin/dpkg-query").exists(), reason="no dpkg here")
def test_a_real_host_is_complete() -> None:
    """Everything installed here needs only what is installed here, and nothing goes from what was here before."""
    said = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={packages.SHOW}"], check=True, capture_output=True, text=True
    )
    native = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True)
    there = packages.parse(said.stdout, native.stdout.strip())
    assert len(there) > 50
    able = packages.providers(there.values())
    lacking = [
        one.name for one in there.values() if one.installed for choice in one.needs if not able.keys() & set(choice)
    ]
    assert not lacking
    assert packages.going(there, list(there), list(there), list(there), []) == []


# --- files


@pytest.mark.parametrize("path", ["/etc/systemd/system", "/etc", "/", "/var/lib", "/srv/", "/opt/../usr/lib", "there"])
def test_the_systems_own_folders_never_go(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(files.FilesError, match="belongs to the system"):
        files.existing([path])


def test_what_is_there(tmp_path: Path) -> None:
    for name in ("a@x.service.d", "a@y.service.d", "tree/inner"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    wanted = ["a@*.service.d", "tree", "tree/inner", "dangling", "absent"]
    found = files.existing(f"{tmp_path}/{one}" for one in wanted)
    assert found == [f"{tmp_path}/{one}" for one in ("a@x.service.d", "a@y.service.d", "dangling", "tree")]


def test_what_enabled_a_unit_that_is_gone_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "multi-user.target.wants").mkdir()
    (tmp_path / "a.service").touch()
    for name in ("a.service", "b@x.service", "theirs.service"):
        (tmp_path / "multi-user.target.wants" / name).symlink_to(tmp_path / name.replace("@x", "@"))
    wanting = [f"{tmp_path}/*.wants/{name}" for name in ("a.service", "b@*.service", "absent.service")]
    assert files.dangling(wanting) == [f"{tmp_path}/multi-user.target.wants/b@x.service"]


def test_a_folder_goes_whole_and_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").write_text("x")
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "tree/a/link").symlink_to(tmp_path / "theirs")
    (tmp_path / "tree/a/b/read-only").write_text("x")
    assert files.remove(f"{tmp_path}/tree", act=False) == (True, [])
    assert (tmp_path / "tree/a/b/read-only").exists()
    assert files.remove(f"{tmp_path}/tree") == (True, [])
    assert os.listdir(tmp_path) == ["theirs"]
    assert (tmp_path / "theirs/file").exists()


def test_what_was_there_comes_back(tmp_path: Path) -> None:
    copies, etc = tmp_path / "copies", tmp_path / "etc"
    (etc / "enabled").mkdir(parents=True)
    (etc / "conf").write_text("old")
    (etc / "conf").chmod(0o640)
    (etc / "enabled/default").symlink_to("../conf")
    files.keep([f"{etc}/conf", f"{etc}/en*/default", f"{etc}/absent"], copies)
    kept = files.copied([f"{etc}/conf", f"{etc}/en*/default", f"{etc}/absent"], copies)
    assert set(kept) == {f"{etc}/conf", f"{etc}/enabled/default"}
    assert all(files.same(copy, path) for path, copy in kept.items())
    (etc / "conf").write_text("ours")
    (etc / "enabled/default").unlink()
    assert not any(files.same(copy, path) for path, copy in kept.items())
    for path, copy in kept.items():
        files.put_back(copy, path)
    assert (etc / "conf").read_text() == "old"
    assert (etc / "conf").stat().st_mode & 0o777 == 0o640
    assert os.readlink(etc / "enabled/default") == "../conf"


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths on which something is mounted."""
    found: set[str] = set()
    monkeypatch.setattr(os.path, "ismount", lambda path: os.fspath(path) in found)
    return found


def test_what_is_mounted_inside_stays_and_is_no_change_the_next_time(tmp_path: Path, mounted: set[str]) -> None:
    (tmp_path / "cache/uv/theirs").mkdir(parents=True)
    (tmp_path / "cache/ours").write_text("")
    mounted.add(f"{tmp_path}/cache/uv")
    assert files.remove(f"{tmp_path}/cache") == (True, [f"{tmp_path}/cache/uv"])
    assert files.remove(f"{tmp_path}/cache") == (False, [f"{tmp_path}/cache/uv"])
    assert (tmp_path / "cache/uv/theirs").exists()


def test_only_named_folders_go_when_nothing_is_left_in_them(tmp_path: Path, mounted: set[str]) -> None:
    for name in ("a/b", "full/empty", "theirs/empty", "disk", "target"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "full/file").write_text("")
    (tmp_path / "link").symlink_to("target")
    mounted.add(f"{tmp_path}/disk")
    named = ("a/b", "a", "full", "absent", "theirs", "disk", "link", "a/")
    assert files.empty(f"{tmp_path}/{one}" for one in named) == [f"{tmp_path}/a/b", f"{tmp_path}/a"]


def test_a_folder_of_the_system_or_of_the_site_stays_though_it_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda _path: [])
    monkeypatch.setattr(os.path, "isdir", lambda _path: True)
    assert files.empty(["/srv", "/data", "/mnt", "/var/lib", "/srv/llm"]) == ["/srv/llm"]


# --- the record


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert before.read(tmp_path) is None
    one = before.Before(
        ["a"], ["a"], {"nginx.service": "enabled", "getty@.service": "static"}, ["nginx.service"], ["root"], ["adm"]
    )
    (tmp_path / before.RECORD).write_text(before.render(one))
    again = before.read(tmp_path)
    assert again == one
    assert one.had_unit("nginx.service")
    assert one.had_unit("getty@tty1.service")
    assert not one.had_unit("nginx@x.service")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "colour": 2}', '{"format": 2}'])
def test_a_damaged_record_says_the_way_out(text: str, tmp_path: Path) -> None:
    (tmp_path / before.RECORD).write_text(text)
    with pytest.raises(before.BeforeError, match=str(tmp_path)):
        before.read(tmp_path)


# --- the module on a host whose systemd, apt and dpkg are programs of the test

PROGRAMS = {
    "systemctl": 'case "$1" in list-unit-files) cat $HERE/units;; list-units|show) ;; *) echo "$@" >>$HERE/said;; esac',
    "dpkg": "echo amd64",
    "dpkg-query": "cat $HERE/packages",
    "apt-mark": "true",
    "apt-get": 'case "$*" in *--simulate*) ;; *) echo "$@" >> $HERE/said; . $HERE/purge;; esac',
}


class Fake:
    """A folder that stands for a host."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.etc = path / "etc"
        self.before = path / "before"
        (path / "bin").mkdir()
        for name, text in PROGRAMS.items():
            (path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (path / "bin" / name).chmod(0o755)
        for name in ("units", "packages", "purge", "said"):
            (path / name).write_text("")
        (self.etc / "slapd.d").mkdir(parents=True)
        (self.etc / "slapd.d/config").write_text("theirs")
        (self.etc / "conf").write_text("theirs")

    def met(self, **known: Any) -> None:
        """The host at first contact."""
        (self.before / before.COPIES).mkdir(parents=True)
        files.keep([f"{self.etc}/*"], self.before / before.COPIES)
        (self.before / before.RECORD).write_text(before.render(before.Before(**known)))

    def module(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, PROJECT / f"plugins/modules/{name}.py"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
            check=False,
            env={
                "PYTHONPATH": ":".join(sys.path),
                "PATH": f"{self.path}/bin:{os.environ['PATH']}",
                "HERE": str(self.path),
            },
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert not answer.get("failed"), answer
        return answer

    def uninstall(self, **arguments: Any) -> list[str]:
        """What went."""
        found: list[str] = self.module("uninstalled", {"before": str(self.before), **arguments})["gone"]
        return found

    def said(self) -> list[str]:
        """What was said to systemd and apt since the last question."""
        found = (self.path / "said").read_text().splitlines()
        (self.path / "said").write_text("")
        return found


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_what_was_put_back_is_the_operators_again(fake: Fake) -> None:
    fake.met(units={"slapd.service": "enabled"}, running=["slapd.service"])
    (fake.path / "units").write_text("slapd.service enabled\n")
    dump = fake.path / "onprem-llm.dump"
    dump.touch()
    ours = {
        "units": ["slapd.service"],
        "paths": [f"{fake.etc}/conf"],
        "data": [f"{fake.etc}/slapd.d", str(dump)],
    }
    for name in ("slapd.d/config", "conf"):
        (fake.etc / name).write_text("ours")
    assert fake.uninstall(**ours) == [f"{fake.etc}/{name}: put back as it was" for name in ("conf", "slapd.d")]
    assert fake.said()[-1] == "restart slapd.service"
    assert [(fake.etc / name).read_text() for name in ("slapd.d/config", "conf")] == ["theirs", "theirs"]
    for name in ("slapd.d/config", "conf"):
        (fake.etc / name).write_text("theirs, later")
    for consent in (False, True):
        assert fake.uninstall(**ours, consent=consent) == []
        assert fake.said() == []
    assert [(fake.etc / name).read_text() for name in ("slapd.d/config", "conf")] == ["theirs, later"] * 2


def test_a_unit_runs_with_what_was_put_back_though_a_call_broke_off_between(fake: Fake) -> None:
    fake.met(units={"slapd.service": "enabled"}, running=["slapd.service"])
    (fake.path / "units").write_text("slapd.service enabled\n")
    assert fake.uninstall(units=["slapd.service"], paths=[f"{fake.etc}/conf"]) == []
    assert fake.said()[-1] == "restart slapd.service"


def test_a_role_that_was_installed_again_is_taken_away_again(fake: Fake) -> None:
    """Also where a stage's playbook did it, which does not ask host_before."""
    fake.met()
    paths = [f"{fake.etc}/conf", f"{fake.etc}/onprem-llm.conf"]
    fake.uninstall(paths=paths)
    (fake.etc / "conf").write_text("ours")
    (fake.etc / "onprem-llm.conf").write_text("ours")
    gone = [f"{paths[0]}: put back as it was", paths[1]]
    assert fake.uninstall(paths=paths, _ansible_check_mode=True) == gone
    assert fake.uninstall(paths=paths) == gone
    assert (fake.etc / "conf").read_text() == "theirs"
    assert fake.uninstall(paths=paths) == []


def test_what_was_put_back_is_copied_anew_before_a_role_replaces_it_again(fake: Fake) -> None:
    fake.met()
    paths = [f"{fake.etc}/conf", f"{fake.etc}/slapd.d"]
    (fake.etc / "conf").write_text("ours")
    fake.uninstall(paths=paths)
    (fake.etc / "conf").write_text("theirs, later")
    (fake.etc / "slapd.d/more").write_text("theirs, later")
    again = {"path": str(fake.before), "files": paths, "again": paths}
    assert fake.module("host_before", {**again, "again": []})["changed"] is False
    assert fake.module("host_before", {**again, "_ansible_check_mode": True})["changed"] is True
    assert fake.module("host_before", again)["changed"] is True
    (fake.etc / "conf").write_text("ours again")
    (fake.etc / "slapd.d/more").unlink()
    assert fake.module("host_before", again)["changed"] is False
    fake.uninstall(paths=paths)
    assert (fake.etc / "conf").read_text() == (fake.etc / "slapd.d/more").read_text() == "theirs, later"
    (fake.etc / "conf").unlink()
    fake.module("host_before", again)
    (fake.etc / "conf").write_text("ours, where nothing was")
    assert fake.uninstall(paths=paths[:1]) == [paths[0]]


def test_a_purge_brings_back_only_what_it_took(fake: Fake) -> None:
    """What another role that stays removed is none of its business."""
    fake.met()
    (fake.etc / "conf").unlink()
    (fake.path / "packages").write_text("ours:amd64\tinstalled\t\t, \t, \n")
    (fake.path / "purge").write_text(f"rm -r {fake.etc}/slapd.d; : > {fake.path}/packages")
    assert fake.uninstall(packages=["ours"]) == ["package ours"]
    assert (fake.etc / "slapd.d/config").read_text() == "theirs"
    assert not (fake.etc / "conf").exists()


def test_what_a_purge_took_comes_back_though_the_call_broke_off(fake: Fake) -> None:
    fake.met()
    (fake.path / "packages").write_text("ours:amd64\tinstalled\t\t, \t, \n")
    (fake.path / "purge").write_text(f"rm {fake.etc}/conf; : > {fake.path}/packages; kill -9 $PPID")
    with pytest.raises(IndexError):
        fake.uninstall(packages=["ours"])
    assert not (fake.etc / "conf").exists()
    assert fake.uninstall(packages=["ours"]) == []
    assert (fake.etc / "conf").read_text() == "theirs"


# --- roles

#: Roles that leave nothing on a host.
NOTHING = {"artifact", "bundle", "doctor", "plan", "rollout"}


def order() -> list[str]:
    return list(load(PROJECT / "playbooks/uninstall.yml")[0]["vars"]["uninstall_order"])


def of_playbook(expression: str, **known: Any) -> Any:
    """An expression with the variables of playbooks/uninstall.yml, these before them."""
    usual = {
        "before_dir": "/var/lib/onprem-llm/before",
        "uninstall": "all",
        "uninstall_data": False,
        "group_names": [],
        "__wiring_local_facts": {},
        "__uninstall_seen": {"stdout_lines": ["met"]},
    }
    variables = {**load(PROJECT / "playbooks/uninstall.yml")[0]["vars"], **usual, **known}
    templar = Templar(loader=DataLoader(), variables={key: trusted(value) for key, value in variables.items()})
    return templar.template(trust_as_template(expression))


def uninstall_of(role: str) -> str:
    return conventions.text(PROJECT / f"roles/{role}/tasks/uninstall.yml")


def test_every_role_can_be_uninstalled() -> None:
    able = {name for name in ROLE_NAMES if (PROJECT / f"roles/{name}/tasks/uninstall.yml").exists()}
    lacking = set(ROLE_NAMES) - able - NOTHING
    assert not lacking, f"no tasks/uninstall.yml in {sorted(lacking)}"
    assert set(order()) == able, "playbooks/uninstall.yml: uninstall_order is another list than the roles that can"


def test_roles_go_in_the_order_of_the_list() -> None:
    roles = of_playbook("{{ __uninstall_roles }}", group_names=sorted(order()[:-4]))
    assert roles == order()
    assert roles[-1] == "firewall"
    named = of_playbook("{{ __uninstall_roles }}", group_names=order(), uninstall="postgresql,nginx,openldap")
    assert named == ["nginx", "openldap", "postgresql"]


def test_a_role_that_the_host_left_and_that_still_serves_keeps_its_packages() -> None:
    def stays(*seen: str, **known: Any) -> bool:
        said = of_playbook(
            "{{ __uninstall_stay }}", uninstall="nginx", __uninstall_seen={"stdout_lines": ["met", *seen]}, **known
        )
        return "model_mirror" in said

    assert stays("nginx", "model_mirror")
    assert stays("nginx", group_names=["model_mirror"])
    assert not stays("nginx", "left model_mirror")
    assert not stays("nginx")


def test_what_a_call_left_is_gone_on_with(tmp_path: Path) -> None:
    for name in ("etc/nginx", "var/uninstalled/nginx", "var/uninstalled/openwebui"):
        (tmp_path / name).mkdir(parents=True)
    places = {name: f"{tmp_path}/{name}" for name in ("facts_file", "opt_dir")}
    places |= {"before_dir": f"{tmp_path}/var/before", "etc_dir": f"{tmp_path}/etc"}
    marks = {"nginx": f"{tmp_path}/etc/nginx", "openwebui": f"{tmp_path}/etc/openwebui"}
    task = next(one for one in load(PROJECT / "playbooks/uninstall.yml")[0]["tasks"] if "what is here" in one["name"])
    command = of_playbook(task["ansible.builtin.shell"]["cmd"], __wiring_marks=marks, **places)
    done = subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["nginx", "met", "left nginx", "left openwebui"]
    seen = {"stdout_lines": ["met", "left nginx"]}
    assert of_playbook("{{ __uninstall_roles }}", uninstall="nginx", __uninstall_seen=seen) == ["nginx"]


@pytest.mark.parametrize(
    ("given", "groups", "goes"),
    [
        ("openwebui", ["openwebui"], True),
        ("openwebui", ["openwebui", "ktransformers"], False),
        ("openwebui,ktransformers", ["openwebui", "ktransformers"], True),
        ("nginx", ["nginx"], False),
        ("all", ["ktransformers"], True),
    ],
)
def test_what_uv_kept_goes_with_the_last_that_uses_it(given: str, groups: list[str], goes: bool) -> None:
    task = next(one for one in load(PROJECT / "playbooks/uninstall.yml")[0]["tasks"] if "uv" in one["name"])
    known = {"uninstall": given, "group_names": groups, **task["vars"]}
    assert all(of_playbook(f"{{{{ {one} }}}}", **known) for one in task["when"]) is goes
    known["__uninstall_seen"] = {"stdout_lines": ["met", "shared"]}
    assert not all(of_playbook(f"{{{{ {one} }}}}", **known) for one in task["when"])


def test_once_all_is_gone_a_server_of_that_name_is_somebodys_own() -> None:
    """Without the record nobody knows any more that nginx was there before, and the inventory still names the host."""
    said = of_playbook("{{ __uninstall_roles }}", group_names=["nginx"], __uninstall_seen={"stdout_lines": []})
    assert said == order()[-4:]


@pytest.mark.parametrize(
    ("known", "stays"),
    [
        ({}, []),
        ({"__wiring_local_facts": {"nvidia_driver": {"source": "preinstalled"}}}, ["nvidia_driver"]),
        ({"__wiring_local_facts": {"nvidia_driver": {"source": "distro"}}}, []),
        ({"nvidia_driver_source": "preinstalled", "llamacpp_install_method": "binary"}, ["llamacpp", "nvidia_driver"]),
        ({"__wiring_local_facts": {"llamacpp": {"pointer": "/opt/llamacpp/b1-binary-0"}}}, ["llamacpp"]),
        (
            {"__wiring_local_facts": {"llamacpp": {"pointer": "b2-binary-0", "previous": {"pointer": "b1-source-"}}}},
            [],
        ),
    ],
)
def test_what_others_installed_for_a_role_stays(known: dict[str, Any], stays: list[str]) -> None:
    groups = ["llamacpp", "nginx", "nvidia_driver"]
    going_ = of_playbook("{{ __uninstall_packages }}", group_names=groups, **known)
    assert sorted(set(groups) - set(going_)) == stays


def test_accounts_go_with_the_role_whose_packages_made_them() -> None:
    task = next(one for one in load(PROJECT / "playbooks/uninstall.yml")[0]["tasks"] if "packages that" in one["name"])
    expression = task["onprem.llm.uninstalled"]["accounts"]
    known = load(PROJECT / "group_vars/all/packages.yml")
    assert set(known["package_accounts"]) <= set(order())
    known |= {"group_names": ["llamacpp", "openldap", "postgresql"], "uninstall_data": True}
    assert of_playbook(expression, **known | {"uninstall": "llamacpp"}) == {}
    assert of_playbook(expression, **known | {"uninstall": "openldap"}) == {"openldap": "slapd"}
    assert set(of_playbook(expression, **known | {"uninstall": "all"})) == {"openldap", "postgres", "ssl-cert"}


def test_every_unit_of_a_role_is_stopped_by_it() -> None:
    missing = []
    for name in order():
        text = uninstall_of(name)
        for unit in PROJECT.glob(f"roles/{name}/*/*.service*"):
            stem = unit.name.removesuffix(".j2").partition(".")[0].partition("@")[0]
            if stem not in text and "_unit" not in text:
                missing.append(f"{name}: {stem}")
    assert not missing, conventions.listed(missing)


def test_every_role_that_opens_a_port_closes_it() -> None:
    missing = []
    for name in order():
        opens = [task for task in conventions.role(name).tasks if "'open'" in repr(task) and "firewall" in repr(task)]
        if opens and "tasks_from: close" not in uninstall_of(name):
            missing.append(name)
    assert not missing, f"no port is closed by tasks/uninstall.yml of {missing}"


@pytest.mark.parametrize(
    ("folder", "said"), [("/var/lib/node-exporter", "/var/lib/node-exporter/onprem_llm_drift.prom\n"), ("", "")]
)
def test_the_metrics_of_drift_are_where_its_unit_says(folder: str, said: str, tmp_path: Path) -> None:
    """Also where the setting went with the group."""
    text = (PROJECT / "roles/drift/templates/onprem-llm-drift.service.j2").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("ExecStopPost") or folder]
    (tmp_path / "unit").write_text("\n".join(lines).replace("{{ drift_textfile_dir }}", folder))
    argv = load(PROJECT / "roles/drift/tasks/uninstall.yml")[0]["ansible.builtin.command"]["argv"]
    done = subprocess.run([*argv[:-1], tmp_path / "unit"], check=True, capture_output=True, text=True)
    assert done.stdout == said


def test_the_models_are_where_the_unit_says(tmp_path: Path) -> None:
    text = (PROJECT / "roles/model_store/templates/model_store-verify.service.j2").read_text()
    (tmp_path / "unit").write_text(text.replace("{{ models_dir }}", "/data/models"))
    asked, refusal = load(PROJECT / "roles/model_store/tasks/uninstall.yml")[:2]
    argv = asked["ansible.builtin.command"]["argv"]
    done = subprocess.run([*argv[:-1], tmp_path / "unit"], check=True, capture_output=True, text=True)
    installed = {"__model_store_installed": {"stdout": done.stdout.rstrip("\n")}, "inventory_hostname": "gpu3"}
    that = f"{{{{ {refusal['ansible.builtin.assert']['that']} }}}}"
    assert of_playbook(that, **installed, models_dir="/data/models") is True
    assert of_playbook(that, **installed, models_dir="/srv/llm/models") is False
    said = of_playbook(refusal["ansible.builtin.assert"]["fail_msg"], **installed, models_dir="/srv/llm/models")
    assert said.endswith("Add -e models_dir=/data/models and run this again.")


@pytest.mark.parametrize(
    ("there", "version", "way_out"),
    [([], "17", None), (["17"], "17", None), (["15"], "17", "15"), (["15", "17"], "17", None), (["15"], "", "15")],
)
def test_another_version_of_the_database_is_not_taken_for_none(
    there: list[str], version: str, way_out: str | None, tmp_path: Path
) -> None:
    look, refusal = load(PROJECT / "roles/postgresql/tasks/uninstall.yml")[:2]
    for one in there:
        (tmp_path / f"postgresql@{one}-main.service.d").mkdir()
    options = {
        "__postgresql_unit_options": f"{tmp_path}/postgresql@{version}-main.service.d",
        "postgresql_version": version,
        "inventory_hostname": "gpu3",
    }
    command = of_playbook(look["ansible.builtin.shell"]["cmd"], **options)
    done = subprocess.run(["/bin/sh", "-c", command], check=False, capture_output=True, text=True)
    options |= {"__postgresql_installed": {"stdout_lines": done.stdout.splitlines()}, **refusal["vars"]}
    assert of_playbook(f"{{{{ {refusal['ansible.builtin.assert']['that']} }}}}", **options) is (way_out is None)
    if way_out:
        said = of_playbook(refusal["ansible.builtin.assert"]["fail_msg"], **options)
        assert said.endswith(f"Add -e postgresql_version={way_out} and run this again.")


def test_an_initramfs_is_rebuilt_though_an_earlier_rebuild_failed(tmp_path: Path) -> None:
    """By then the file is gone from the host, and from one initramfs."""
    task = next(one for one in load(PROJECT / "roles/nvidia_driver/tasks/uninstall.yml") if "Rebuild" in one["name"])
    script = of_playbook(
        task["ansible.builtin.shell"]["cmd"], __nvidia_driver_nouveau="/etc/modprobe.d/onprem-llm-nvidia.conf"
    )
    for name in ("boot", "modules/6.1", "modules/6.12", "modules/5.10"):
        (tmp_path / name).mkdir(parents=True)
    inside = {"6.1": "onprem-llm-nvidia.conf", "6.12": "onprem-llm-nvidia.conf", "5.10": "theirs.conf", "6.1.bak": "x"}
    for kernel, name in inside.items():
        (tmp_path / f"boot/initrd.img-{kernel}").write_text(f"etc/modprobe.d\netc/modprobe.d/{name}\n")
    update = tmp_path / "update-initramfs"
    update.write_text(f'#!/bin/sh\n[ "$3" != "$BROKEN" ] || exit 1\n: > {tmp_path}/boot/initrd.img-$3\n')
    (tmp_path / "lsinitramfs").write_text('#!/bin/sh\ncat "$1"\n')
    for name in ("update-initramfs", "lsinitramfs"):
        (tmp_path / name).chmod(0o755)
    for place, stands in (("/boot", "/boot"), ("/lib/modules", "/modules"), ("/usr/sbin", "")):
        script = script.replace(f"{place}/", f"{tmp_path}{stands}/")

    def run(broken: str = "") -> tuple[int, str]:
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["/bin/sh", "-c", script],
            env={"PATH": path, "BROKEN": broken},
            check=False,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout

    assert run(broken="6.12") == (1, "changed\n")
    assert run() == (0, "changed\n")
    assert run() == (0, "")


def test_what_has_data_is_known_until_the_data_are_gone() -> None:
    has = {name for name in order() if re.search(r"(?m)^    data:", uninstall_of(name))}
    assert set(load(PROJECT / "playbooks/uninstall.yml")[0]["vars"]["uninstall_with_data"]) == has


def test_files_that_were_replaced_belong_to_a_role() -> None:
    """By the role site.yml knows whose copies to take anew."""
    replaced = load(PROJECT / "group_vars/all/packages.yml")["replaced_files"]
    assert set(replaced) <= set(order())
    for role in replaced:
        known = {
            "before_dir": "",
            "etc_dir": "/etc/onprem-llm",
            "opt_dir": "",
            "tls_dir": "",
            "postgresql_version": "17",
        }
        tasks = load(PROJECT / f"roles/{role}/tasks/uninstall.yml")
        ours = [path for task in tasks for path in task.get("onprem.llm.uninstalled", {}).get("paths", [])]
        named = [of_playbook(path, **conventions.role(role).vars, **known) for path in ours]
        assert any("onprem-llm" in path for path in named), f"{role}: uninstalled cannot tell whether the role is there"


# --- databases of others


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the question with programs of PostgreSQL that answer for these clusters; what systemctl did is in stderr."""
    programs = {
        "pg_lsclusters": f"cat {tmp_path}/clusters",
        "runuser": 'test ! -e "$BROKEN" && printf "postgres\nopenwebui\ntheirs\n"',
        "systemctl": 'echo "$@" >&2',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/PG_VERSION").write_text("17\n")

    def ask(
        clusters: str, record: str | None = "{}", check: str = "ask", broken: bool = False
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "clusters").write_text(clusters.replace("DATA", f"{tmp_path}/data"))
        if record is not None:
            (tmp_path / "before.json").write_text(record)
        return subprocess.run(
            ["/bin/sh", PROJECT / "roles/postgresql/files/databases", "17", f"{tmp_path}/before.json", check],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "BROKEN": str(tmp_path) if broken else ""},
            capture_output=True,
            text=True,
            check=False,
        )

    return ask


Ask = Callable[..., subprocess.CompletedProcess[str]]
OURS = "17 main 5432 online postgres DATA /log\n"
DATABASES = "postgres\nopenwebui\ntheirs\n"


def test_a_server_is_asked_for_its_databases(asked: Ask) -> None:
    said = asked(OURS)
    assert (said.returncode, said.stdout, said.stderr) == (0, DATABASES, "")


def test_a_stopped_server_is_started_to_be_asked_and_stopped_again(asked: Ask) -> None:
    said = asked(OURS.replace("online", "down"))
    assert (said.returncode, said.stdout) == (0, DATABASES)
    assert said.stderr.splitlines() == ["start postgresql@17-main", "stop postgresql@17-main"]
    assert asked(OURS.replace("online", "down"), check="check").stderr == ""


def test_a_server_that_does_not_answer_is_no_server_without_databases(asked: Ask) -> None:
    said = asked(OURS.replace("online", "down"), broken=True)
    assert said.returncode != 0
    assert said.stderr.splitlines()[-1] == "stop postgresql@17-main"


def test_a_list_that_cannot_be_read_is_no_empty_one(asked: Ask, tmp_path: Path) -> None:
    (tmp_path / "pg_lsclusters").write_text("#!/bin/sh\nexit 1\n")
    assert asked(OURS).returncode != 0


def test_other_clusters_are_named_unless_they_were_here_before(asked: Ask) -> None:
    others = OURS.replace("main", "shop") + OURS.replace("17", "15") + OURS.replace("DATA", "/nowhere")
    assert asked(others).stdout == "the cluster 17/shop\nthe cluster 15/main\n"
    assert asked(others, record='{"packages": [\n  "postgresql-15"\n]}').stdout == "the cluster 17/shop\n"


def test_without_a_record_nothing_goes_and_nobody_is_asked(asked: Ask) -> None:
    assert asked(OURS, record=None).stdout == ""


# --- a host that left its group


def test_what_is_left_of_a_role_is_worth_a_look(tmp_path: Path) -> None:
    (tmp_path / "postgresql@17-main.service.d").mkdir()
    marks = {"postgresql": f"{tmp_path}/postgresql@*-main.service.d", "nginx": f"{tmp_path}/nginx"}
    (said,) = leftovers.judge("gpu3", marks)
    assert (said.check, said.host, said.state) == ("host.postgresql", "gpu3", "warning")
    assert said.remedy.endswith("playbooks/uninstall.yml -e uninstall=postgresql --limit gpu3")


def test_the_doctor_knows_the_mark_of_every_role_that_goes_alone() -> None:
    marks = load(PROJECT / "group_vars/all/wiring.yml")["__wiring_marks"]
    assert set(marks) == set(order()[:-4])
