# SPDX-License-Identifier: GPL-3.0-or-later
"""Equal hosts compile once, an unequal one for itself; whatever breaks, nothing half counts as complete.

Every call of the compiler leaves a line in /var/tmp/builds on the host where it ran.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import time
from typing import Any

import conftest
import pytest
from conftest import PROJECT, SCENARIO, command, environment, one_line, playbook
from killing import Run

ROOT = "/opt/onprem-llm/hello"
PLAYBOOK = str(SCENARIO / "converge.yml")
#: Also what finds nothing.
on = functools.partial(conftest.on, check=False)
ALL = ("b1", "b2", "b3")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="reaching test hosts from outside needs root")


def did(name: str, what: str) -> int:
    """How often the compiler did it on this host."""
    return int(on(name, f"grep -cx '{what}' /var/tmp/builds") or 0)


def marker(name: str, key: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(on(name, f"cat {ROOT}/{key}/.complete") or "{}")
    return said


def has(name: str, key: str) -> bool:
    return bool(marker(name, key)) and on(name, f"{ROOT}/{key}/greet") == "hello"


def run(*arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    return playbook(PLAYBOOK, "--extra-vars", json.dumps(variables), *arguments)


def done(*arguments: str, **variables: Any) -> str:
    ran = run(*arguments, **variables)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def begun(**variables: Any) -> Run:
    """A run that can be killed."""
    words = command(PLAYBOOK, "--limit", "b1,b2", "--extra-vars", json.dumps(variables))
    return Run(words, environment(), PROJECT)


def changes(said: str) -> dict[str, int]:
    return {name: int(count) for name, count in re.findall(r"(?m)^(\S+)\s+: ok=\d+\s+changed=(\d+)", said)}


def nothing_is_left(key: str) -> None:
    """No stage, no archive; nobody gives anything, and no host is let in."""
    for name in ALL:
        assert on(name, f"ls -d {ROOT}/{key}.* /var/cache/onprem-llm/build /run/systemd/system/onprem-llm-build*") == ""
        assert on(name, "systemctl is-active onprem-llm-build") == "inactive"
        assert on(name, "ss -Hltn 'sport = :8472'") == ""
        assert on(name, "ls /etc/onprem-llm/firewall/*/build.nft") == ""
        assert "build_receivers" not in on(name, "nft list table inet onprem_llm")


def test_two_equal_hosts_compile_once() -> None:
    """On the one in the group `builder`; the Debian 12 host has another key and compiles for itself."""
    assert [did(name, "linked 1-trixie") for name in ALL] == [0, 1, 0]
    assert [did(name, "linked 1-bookworm") for name in ALL] == [0, 0, 1]
    assert has("b1", "1-trixie") and has("b2", "1-trixie") and has("b3", "1-bookworm")
    assert marker("b1", "1-trixie") == marker("b2", "1-trixie")
    assert marker("b1", "1-trixie")["builder"] == "b2"
    assert marker("b1", "1-trixie")["facts"] == {"version": 1}
    nothing_is_left("1-*")


def test_who_only_receives_has_no_compiler() -> None:
    assert on("b1", "dpkg -l tcc libc6-dev gcc | grep ^ii") == ""
    assert "tcc" in on("b2", "dpkg -l tcc | grep ^ii")


def test_a_changed_key_is_built_once_and_what_a_host_has_is_given() -> None:
    """Without the builder another equal host compiles; the builder then receives that."""
    asked = one_line(done("--check", hello_version=2))
    assert "b2 would build hello 2-trixie, for b1 too." in asked
    assert "b1 would receive hello 2-trixie from b2, which would build it." in asked
    assert "b3 would build hello 2-bookworm." in asked
    done("--limit", "b1", hello_version=2)
    assert [did(name, "linked 2-trixie") for name in ALL] == [1, 0, 0]
    said = done("--limit", "b1,b2", hello_version=2)
    assert [did(name, "linked 2-trixie") for name in ALL] == [1, 0, 0]
    assert has("b2", "2-trixie") and marker("b2", "2-trixie")["builder"] == "b1"
    nothing_is_left("2-*")
    # And again: nobody does anything, or asks anybody.
    starts = "journalctl -u onprem-llm-build -o cat | grep -c ^Started"
    before = on("b1", starts)
    said = done("--limit", "b1,b2", hello_version=2)
    assert changes(said) == {"b1": 0, "b2": 0} and on("b1", starts) == before == "1"


@pytest.mark.long
def test_a_killed_build_goes_on_where_it_stopped() -> None:
    """Ansible is killed with everything it started here; the linker lives on there, and is waited for."""
    first = begun(hello_version=3, hello_pause=6)
    deadline = time.monotonic() + 60
    while did("b2", "begin 3-trixie") == 0:
        assert time.monotonic() < deadline and first.process.poll() is None, first.output
        time.sleep(0.1)
    first.kill(everything=True)
    on("b2", "pkill -9 -f AnsiballZ; pkill -9 -f build_step; true")
    assert did("b2", "linked 3-trixie") == 0
    assert not has("b2", "3-trixie") and not has("b1", "3-trixie")
    done("--limit", "b1,b2", hello_version=3)
    assert did("b2", "compiled 3-trixie") == 1, "what was compiled is taken up again"
    # The one left behind ended first: this run's linker never ran beside it.
    assert on("b2", "grep 3-trixie /var/tmp/builds").split("\n")[1:] == [
        f"{what} 3-trixie" for what in ("begin", "linked", "begin", "linked")
    ]
    assert has("b1", "3-trixie") and has("b2", "3-trixie")
    nothing_is_left("3-*")


def test_when_the_builder_fails_the_others_name_it() -> None:
    before = [on(name, f"readlink {ROOT}/current") for name in ("b1", "b2")]
    ran = run("--limit", "b1,b2", hello_version=4, hello_code="int main(void) { return nothing; }")
    said = one_line(ran.stdout)
    assert ran.returncode != 0
    assert "hello.c:1: error: 'nothing' undeclared" in said
    assert f"The whole log is {ROOT}/4-trixie.log" in said
    assert "b2 was to build hello 4-trixie for b1 and did not: see its own failure above" in said
    assert f"and the log {ROOT}/4-trixie.log on b2. Nothing was changed here." in said
    assert "--limit '!b2'" in said
    assert "error: 'nothing' undeclared" in on("b2", f"cat {ROOT}/4-trixie.log")
    assert on("b1", f"ls -d {ROOT}/4-*") == "" and not has("b2", "4-trixie")
    assert [on(name, f"readlink {ROOT}/current") for name in ("b1", "b2")] == before and all(before)


@pytest.mark.long
def test_what_does_not_run_is_not_complete() -> None:
    """The compiler was content; the verification on the builder is not."""
    ran = run("--limit", "b1,b2", hello_version=4, hello_answer="good day")
    assert ran.returncode != 0
    assert not marker("b2", "4-trixie") and not marker("b1", "4-trixie")
    done("--limit", "b1,b2", hello_version=4)
    assert has("b1", "4-trixie") and has("b2", "4-trixie")
    nothing_is_left("4-*")


def test_an_archive_that_was_altered_is_refused() -> None:
    """With the checksum that was promised and the one that came."""
    on(
        "b2",
        "systemd-run --collect sh -c 'until [ -e /run/systemd/system/onprem-llm-build.service ]; do sleep 0.02; done;"
        " printf XX | dd of=/var/cache/onprem-llm/build/5-trixie.tar bs=1 seek=2000 conv=notrunc'",
    )
    ran = run("--limit", "b1,b2", hello_version=5)
    assert ran.returncode != 0
    promised = marker("b2", "5-trixie")["sha256"]
    refusal = f"the bytes are not the ones promised: expected sha256 {promised}, got sha256 [0-9a-f]{{64}}"
    assert re.search(refusal, one_line(ran.stdout)), ran.stdout
    assert on("b1", f"ls -d {ROOT}/5-*") == ""
    nothing_is_left("5-*")


@pytest.mark.long
def test_a_tree_that_was_altered_is_not_given() -> None:
    """The one of the test before, on the host that built it."""
    promised = marker("b2", "5-trixie")["sha256"]
    on("b2", f"echo >> {ROOT}/5-trixie/bin/hello")
    ran = run("--limit", "b1,b2", hello_version=5)
    said = one_line(ran.stdout)
    assert ran.returncode != 0
    assert re.search(f"5-trixie was altered since it was built: its sha256 was {promised} and is [0-9a-f]{{64}}", said)
    assert "b2 was to give hello 5-trixie for b1 and did not" in said
    assert on("b1", f"ls -d {ROOT}/5-*") == ""
    on("b2", f"rm -r {ROOT}/5-trixie")
    done("--limit", "b1,b2", hello_version=5)
    assert has("b1", "5-trixie") and marker("b1", "5-trixie")["sha256"] == marker("b2", "5-trixie")["sha256"]
    nothing_is_left("5-*")


@pytest.mark.long
def test_a_run_that_dies_leaves_an_offer_that_ends_by_itself() -> None:
    """To those hosts only, sandboxed; and the next run is not held up by it."""
    words = command(
        PLAYBOOK, "--limit", "b1,b2", "--extra-vars", json.dumps({"hello_version": 6, "build_offer_seconds": 8})
    )
    ran = Run(words, environment(), PROJECT)
    assert ran.reaches(lambda tasks: any("Receive it" in name for name, _ in tasks)), ran.output
    ran.kill(everything=True)
    assert on("b2", "systemctl is-active onprem-llm-build") == "active"
    assert "elements = { 10.77.210.11 }" in one_line(on("b2", "nft list set inet onprem_llm build_receivers"))
    knock = 'import socket; socket.create_connection(("10.77.210.12", 8472), 1)'
    assert on("b1", f"python3 -c '{knock}' 2>&1") == ""
    assert on("b3", f"python3 -c '{knock}' 2>&1").endswith("timed out")
    rated = on("b2", "systemd-analyze security --no-pager onprem-llm-build.service | tail -n 1")
    assert float(re.search(r"(\d+\.\d)", rated)[1]) <= 1.5, rated
    deadline = time.monotonic() + 30
    while on("b2", "systemctl is-active onprem-llm-build") == "active":
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert on("b2", "systemctl show -P Result onprem-llm-build") == "success"
    assert "10.77.210" not in on("b2", "nft list set inet onprem_llm build_receivers")
    done("--limit", "b1,b2", hello_version=6)
    assert has("b1", "6-trixie") and did("b2", "linked 6-trixie") == 1
    nothing_is_left("6-*")


@pytest.mark.long
def test_builds_of_long_ago_are_removed() -> None:
    """Two are kept beside the one in use."""
    for name in ("b1", "b2"):
        assert on(name, f"ls {ROOT}").split() == ["4-trixie", "5-trixie", "6-trixie", "current"]
