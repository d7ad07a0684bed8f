# SPDX-License-Identifier: GPL-3.0-or-later
"""What serves is replaced under load, host by host, and no request fails; what is worse than before does not stay."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import INVENTORY, PROJECT, SCENARIO, command, environment, lab_command, on, one_line, playbook
from killing import Run

HOSTS = ("ro-a", "ro-b", "ro-c")
UNIT = "llamacpp@assistant.service"
SERVED = "/srv/llm/served/assistant"
CURRENT = "/opt/onprem-llm/llamacpp/current"
RATE = 20
WATCH = 2
#: What the tests begin with and come back to.
BASE = {"revision": "v2", "build": "other"}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="reaching test hosts from outside needs root")


def state(name: str) -> dict[str, Any]:
    """Where a host's links lead, which process serves, and what its record says."""
    links, pid = on(name, f"readlink {SERVED} {CURRENT}").split(), on(name, f"systemctl show -P MainPID {UNIT}")
    record = json.loads(on(name, "cat /var/lib/onprem-llm/rollout/llamacpp.json"))
    return {"model": links[0].rsplit("/", 1)[-1], "build": links[1].rsplit("/", 1)[-1], "pid": pid, "record": record}


def fleet() -> dict[str, dict[str, Any]]:
    return {name: state(name) for name in HOSTS}


def drained() -> str:
    return on("ro-web", "grep -E '^ *server .* down;' /etc/nginx/nginx.conf || true")


@contextmanager
def load(key: str) -> Iterator[dict[str, Any]]:
    """Requests through the front door's loopback, as applications there send them; afterwards, what became of them."""
    on("ro-web", "mkdir -p /run/load")
    subprocess.run(
        lab_command("exec", "ro-web", "tee", "/run/load/load.py"),
        input=(SCENARIO / "load.py").read_bytes(),
        check=True,
        capture_output=True,
    )
    url = "http://127.0.0.1:8480/engine/v1"
    words = lab_command("exec", "ro-web", "python3", "/run/load/load.py", url, key, "assistant", str(RATE))
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        time.sleep(2)
        found: dict[str, Any] = {}
        try:
            yield found
            time.sleep(2)
        finally:
            said, _ = process.communicate(timeout=180)
        found |= json.loads(said)
    assert found["rate"] > 0.9 * RATE, f"the load was no load: {found['rate']:.1f} requests/s"


def arguments(watch: float = WATCH, **lab: Any) -> list[str]:
    """Models and engines, as site.yml runs them, with one line of the inventory changed."""
    variables = json.dumps({"lab": lab, "rollout_watch": watch})
    return ["playbooks/models.yml", "playbooks/engines.yml", "--extra-vars", variables]


def change(watch: float = WATCH, **lab: Any) -> subprocess.CompletedProcess[str]:
    return playbook(*arguments(watch, **lab))


def good(ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


@pytest.fixture(scope="module")
def key(secrets):
    return secrets("engine_api_key")


@pytest.fixture(autouse=True)
def fresh():
    """Every test begins with the same fleet, and leaves it whole."""
    assert drained() == ""
    yield
    assert drained() == ""


def swapped(key: str, **lab: Any) -> None:
    """Changes a line under load: no request fails, and each host has its turn when the one before was watched."""
    before = fleet()
    with load(key) as seen:
        good(change(**lab))
    after = fleet()
    assert seen["failed"] == [], seen
    assert {host["model"] for host in after.values()} == {lab["revision"]}
    assert all(after[name]["pid"] != before[name]["pid"] for name in HOSTS)
    assert {host["record"]["state"] for host in after.values()} == {"good"}
    since = [after[name]["record"]["since"] for name in HOSTS]
    assert since == sorted(since) and min(since[1] - since[0], since[2] - since[1]) >= WATCH, since


def test_another_model_and_another_version_cost_no_request(key):
    swapped(key, **BASE)


@pytest.mark.long
@pytest.mark.parametrize("lab", [{"revision": "v1"}, {"build": "plain"}, BASE], ids=["model", "engine", "both"])
def test_a_swap_costs_no_request(key, lab):
    swapped(key, **{**BASE, **lab})


@pytest.mark.long
def test_the_hosts_of_a_batch_are_replaced_together(key):
    with load(key) as seen:
        for lab in ({**BASE, "revision": "v1"}, BASE):
            ran = playbook(*arguments(**lab), "--extra-vars", "rollout_batch=2")
            good(ran)
            assert ran.stdout.count("Look at what serves, or switch it: llamacpp, present]") == 2, ran.stdout[-6000:]
            assert {host["model"] for host in fleet().values()} == {lab["revision"]}
    assert seen["failed"] == [], seen


@pytest.mark.long
def test_a_run_that_changes_nothing_touches_nothing():
    before = fleet()
    ran = change(**BASE)
    good(ran)
    assert fleet() == before
    assert not re.search(r"changed=[1-9]", ran.stdout) and "Send no more requests here" not in ran.stdout


#: What is changed, and what the run says about it.
BAD = {
    "corrupt": ({"revision": "corrupt"}, "tensor|corrupt|load|magic|bounds"),
    "gibberish": ({"revision": "gibberish"}, "actsacts|capital of France"),
    "slow": ({"build": "slow"}, "tokens per second|tok/s"),
    "memory": ({"flags": {"ctx-size": 400000, "rope-scaling": "linear"}}, "oom|killed"),
    "crash": ({"build": "crash"}, "SEGV|core-dump|segfault|signal|died"),
}


SAMPLE = [name if name == "gibberish" else pytest.param(name, marks=pytest.mark.long) for name in BAD]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """On the canary a service gets no more than what the present model needs many times over."""
    folder, load_again = "/run/systemd/system/llamacpp@.service.d", "systemctl daemon-reload"
    on("ro-a", f"mkdir -p {folder}; printf '[Service]\\nMemoryMax=400M\\n' > {folder}/memory.conf; {load_again}")
    yield
    on("ro-a", f"rm -r {folder}; {load_again}")


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("bad", SAMPLE)
def test_what_is_worse_does_not_stay(key, bad):
    """The canary goes back by itself within a minute, nobody notices, and the other hosts are left as they are."""
    lab, why = BAD[bad]
    before = fleet()
    with load(key) as seen:
        ran = change(**{**BASE, **lab})
    assert ran.returncode != 0, ran.stdout[-3000:]
    after = fleet()
    refused = [name for name in HOSTS if after[name]["pid"] != before[name]["pid"]]
    assert refused in ([], ["ro-a"]), refused
    for name in HOSTS:
        assert (after[name]["model"], after[name]["build"]) == (before[name]["model"], before[name]["build"])
    assert seen["failed"] == [], seen
    text = one_line(ran.stdout).lower()
    assert any(word.lower() in text for word in why.split("|")), ran.stdout[-6000:]
    # What is wrong stands in the record until the line is put right again.
    assert after["ro-a"]["record"]["state"] in ("good", "failed")


@pytest.mark.long
def test_what_dies_while_it_is_watched_does_not_stay(key):
    """It answered well for a while. Requests in its hands when it died are lost, no others."""
    seconds = 60 if os.environ.get("ONPREM_LONG") else 8
    before = fleet()
    with load(key) as seen:
        ran = change(**{**BASE, "build": "later"}, watch=seconds + 12)
    assert ran.returncode != 0, ran.stdout[-3000:]
    after = fleet()
    assert [name for name in HOSTS if after[name]["pid"] != before[name]["pid"]] == ["ro-a"]
    assert after["ro-a"]["build"] == before["ro-a"]["build"]
    assert len(seen["failed"]) <= 5 and all("broke off" in one["wrong"] for one in seen["failed"]), seen


def placed(*hosts: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"model": "assistant", "host": host, "engine": "llamacpp", "threads": 1, "flags": {"poll": 0, "temp": 0}} | more
        for host in hosts
    ]


def changed(book: str, **more: Any) -> str:
    ran = playbook(*book.split(), "--extra-vars", json.dumps({"rollout_watch": WATCH, **more}))
    good(ran)
    return one_line(ran.stdout)


@pytest.mark.long
def test_another_port_costs_no_request_and_neither_does_the_way_back(key):
    """The firewall lets requests in where each host serves until its turn, and where it would go back to."""
    moved = placed(*HOSTS, port=9201)
    try:
        for book in (
            "playbooks/engines.yml",
            "playbooks/web.yml",
            "playbooks/rollback.yml --extra-vars rollback=llamacpp",
        ):
            with load(key) as seen:
                changed(book, lab=BASE, placements=moved)
            assert seen["failed"] == [], (book, seen)
            port = 9101 if "rollback" in book else 9201
            assert set(re.findall(r"server 10\S+:(\d+)", on("ro-web", "cat /etc/nginx/nginx.conf"))) == {str(port)}, (
                book
            )
    finally:
        changed("playbooks/engines.yml playbooks/web.yml", lab=BASE)


@pytest.mark.long
def test_a_key_follows_another_and_no_request_is_refused(key):
    """Both are accepted from a host's turn on, then the former one by nobody."""
    secret, new = INVENTORY / "secrets/engine_api_key", "follows_" * 4
    books = "playbooks/models.yml playbooks/engines.yml playbooks/web.yml"
    try:
        for keys, asked in ((f"{new}\n{key}\n", key), (f"{new}\n", new)):
            secret.write_text(keys)
            with load(asked) as seen:
                changed(books, lab=BASE)
            assert seen["failed"] == [], seen
        with load(key) as seen:
            pass
        assert len(seen["failed"]) == seen["requests"] and "status 401" in seen["failed"][0]["wrong"], seen
    finally:
        secret.write_text(f"{key}\n")
        changed(books, lab=BASE)


@pytest.mark.long
def test_two_hosts_leave_and_the_last_one_is_replaced_while_a_copy_answers(key):
    """Who leaves ends its answers first. Where nobody else serves, a copy on another port does."""
    here = {**BASE, "hosts": ["ro-a"]}
    alone = placed("ro-a")

    try:
        with load(key) as seen:
            changed("playbooks/engines.yml playbooks/web.yml", lab=here, placements=alone)
        assert seen["failed"] == [], seen
        assert [on(name, f"systemctl is-active {UNIT} || true") for name in HOSTS] == ["active", "inactive", "inactive"]
        with load(key) as seen:
            said = changed(
                "playbooks/models.yml playbooks/engines.yml", lab={**here, "revision": "v3"}, placements=alone
            )
        assert seen["failed"] == [], seen
        assert "Send requests to the copies" in said and "Send requests to the originals" in said
        assert state("ro-a")["model"] == "v3"
        assert "beside" not in on("ro-a", "ls /etc/onprem-llm/llamacpp; systemctl list-units --plain 'llamacpp@*'")
        # Nobody served it but the host that it leaves now.
        there = {**BASE, "hosts": ["ro-b"], "revision": "v3"}
        with load(key) as seen:
            left_out = json.dumps({"rollout_watch": WATCH, "lab": there, "placements": placed("ro-b")})
            ran = playbook("playbooks/engines.yml", "--limit", "ro-a,ro-web", "--extra-vars", left_out)
            assert ran.returncode == 2
            assert "10.77.214.12:9101 shall serve instead of 10.77.214.11:9101 and does not answer" in one_line(
                ran.stdout
            )
            assert on("ro-a", f"systemctl is-active {UNIT}") == "active"
            changed(
                "playbooks/models.yml playbooks/engines.yml playbooks/web.yml", lab=there, placements=placed("ro-b")
            )
        assert seen["failed"] == [], seen
        assert [on(name, f"systemctl is-active {UNIT} || true") for name in HOSTS] == ["inactive", "active", "inactive"]
    finally:
        changed("playbooks/models.yml playbooks/engines.yml playbooks/web.yml", lab=BASE)
    assert {host["model"] for host in fleet().values()} == {BASE["revision"]}


def test_the_next_run_makes_good_what_was_killed():
    """In its rollout the run dies alone, then with all its processes, then a host loses its power."""
    seed = int(os.environ.get("ONPREM_SEED") or random.SystemRandom().randrange(10**6))
    chance, said = random.Random(seed), [f"ONPREM_SEED={seed}"]
    env = environment()
    env["ANSIBLE_SSH_ARGS"] += " -o ServerAliveInterval=5"
    host = chance.choice(HOSTS)
    other = {"revision": "v3", "build": "plain"}
    for kind, lab in (("the run", other), ("its processes", other), (host, BASE)):
        run = Run(command(*arguments(**lab)), env, PROJECT)
        if not run.reaches(lambda seen: any(name.endswith("llamacpp, present") for name, _ in seen)):
            assert run.wait() == 0, run.output[-6000:]
            continue
        run.goes_on(chance.uniform(0, 8))
        said.append(f"{kind} in {run.tasks[-1][0]}")
        if kind == host:
            subprocess.run(lab_command("kill", host), check=True)
            try:
                run.wait(300)
            finally:
                subprocess.run(lab_command("start", host), check=True)
        else:
            run.kill(everything=kind == "its processes")
    print("; ".join(said))
    assert len(said) > 2, said
    ran = change(**BASE)
    assert ran.returncode == 0, f"{said}\n{ran.stdout[-6000:]}"
    for name, here in fleet().items():
        assert (here["model"], here["record"]["state"], here["record"]["wanted"]) == ("v2", "good", None), (name, said)
        local = json.loads(on(name, "cat /etc/ansible/facts.d/onprem_llm.fact"))
        assert local["debts"] == [] and local["components"]["llamacpp"]["pointer"].endswith(here["build"]), (name, said)


@pytest.mark.long
def test_a_hundred_swaps_cost_no_request(key):
    """Three in a run."""
    begun = [state(name)["record"]["since"] for name in HOSTS]
    with load(key) as seen:
        for number in range(34):
            good(change(watch=1, revision=f"v{number % 3 + 1}", build="other"))
            now = [state(name)["record"]["since"] for name in HOSTS]
            assert all(new > old for new, old in zip(now, begun, strict=True)), f"run {number} left a host as it was"
            begun = now
    assert seen["failed"] == [], seen
