# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller or a host killed at any moment of an upgrade or of a plain run: the next run makes it good.

  .venv/bin/pytest -q -s tests/long/test_rollout_kills.py

Two hosts serve a model behind the door of a third. One upgrade is watched to the end: when which task begins. Then,
round after round: a run that asks for another revision, another build, both, or nothing new, is hit at a moment drawn
from that upgrade, and so are the next two. The run alone dies, or with all its processes, or one of the hosts loses its
power. The run after the last kill, with the same inventory, must end well without any manual step, serve what is asked
for on both hosts, leave nothing owed and nothing drained; at the end a further run must change nothing.

Environment:
  ONPREM_KILLS    kills for this commit, over all calls (3)
  ONPREM_MINUTES  a call ends after about this time; the next one goes on (55). An unfinished count shows as skipped.
  ONPREM_SEED     repeats the moments of a failed call
  ONPREM_KEEP     1 leaves the hosts of a failed call running
  ONPREM_LAB      which hosts (1): two calls may count side by side, on hosts 1 and 2
State and outputs: .cache/long/rollout-kills-LAB.json, .cache/long/rollout-kills-LAB.log
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import PROJECT, Run, load, save

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="test hosts need root")

NUMBER = int(os.environ.get("ONPREM_LAB", "1"))
LAB, NET = f"long-rollout-{NUMBER}", f"10.77.{222 + NUMBER}"
FOLDER = PROJECT / f".cache/long/rollout-kills-{NUMBER}"
LOG = FOLDER.with_suffix(".log")
TESTHOST, HUB = str(PROJECT / "tools/testhost"), str(PROJECT / "tests/hub/hub")
STATE = Path(os.environ.get("TESTHOST_STATE", "/var/lib/testhosts")) / LAB
KILLS = int(os.environ.get("ONPREM_KILLS", "3"))
COUNT = FOLDER.with_suffix(".json")
SEED = load(COUNT)["seed"]
#: One after the other, before a run is left alone.
PER_ROUND = 3
HOSTS = {"rk-a": f"{NET}.11", "rk-b": f"{NET}.12", "rk-web": f"{NET}.13"}
ENGINES = ("rk-a", "rk-b")
#: How long a run may go on after a host lost its power: ssh gives it up after 15 s, each task in a row anew.
PATIENCE = 180

SITE = """---
public_name: llm.kills.example
tls_source: own_ca
lab: {}
models:
  - {name: assistant, kind: chat, repo: onprem/tiny, revision: "{{ lab.revision }}", source: lab, include: [chat.gguf],
     entry: chat.gguf, context: 2048, parallel: 2}
model_sources: {lab: {type: directory, path: /srv/lab/models}}
placements:
  - {model: assistant, host: rk-a, engine: llamacpp, threads: 1, flags: {poll: 0, temp: 0}}
  - {model: assistant, host: rk-b, engine: llamacpp, threads: 1, flags: {poll: 0, temp: 0}}
llamacpp_install_method: binary
llamacpp_archive: "{{ lab_builds[lab.build] | combine({'version': '0.7.0', 'url': lab_url}) }}"
lab_url: "file:///srv/lab/builds/{{ lab.build }}.tar.gz"
lab_builds: "{{ lookup('ansible.builtin.file', inventory_dir ~ '/../given/lock.json') | from_json }}"
# Killed runs share the machine with what they left running.
rollout_expect: ""
rollout_speed_ratio: 0.1
rollout_watch: 4
rollout_drain_timeout: 30
"""


def inventory() -> dict[str, Any]:
    hosts = {
        name: {
            "ansible_host": address,
            "ansible_user": "ansible",
            "ansible_become": True,
            "ansible_ssh_common_args": f"-F {STATE / 'ssh_config'} -o ServerAliveInterval=5",
        }
        for name, address in HOSTS.items()
    }
    engines: dict[str, Any] = {"hosts": dict.fromkeys(ENGINES)}
    return {"all": {"hosts": hosts}, "inference": engines, "llamacpp": engines, "nginx": {"hosts": {"rk-web": None}}}


class Site:
    """The lab and its inventory. ``asked`` is what the inventory asks for."""

    def __init__(self) -> None:
        self.asked = {"revision": "v1", "build": "plain"}
        self.inventory = FOLDER / "inventory"
        self.trees: dict[str, str] = {}

    def up(self) -> None:
        shutil.rmtree(FOLDER, ignore_errors=True)
        variables = self.inventory / "group_vars/all"
        variables.mkdir(parents=True)
        (self.inventory / "hosts.json").write_text(json.dumps(inventory()))
        (self.inventory / "groups.yml").symlink_to(PROJECT / "inventories/groups.yml")
        (variables / "site.yml").write_text(SITE)
        hosts = [{"name": name, "ip": ip, "image": "trixie"} for name, ip in HOSTS.items()]
        given = FOLDER / "given"
        given.mkdir()
        lab = {"lab": LAB, "network": f"{NET}.0/24", "hosts": hosts, "binds": {str(given): "/srv/lab"}}
        subprocess.run([TESTHOST, "up"], input=json.dumps(lab), text=True, check=True)
        # The hub packs llama.cpp once for all labs; its archive is all that is wanted of it.
        lock = FOLDER / "lock.yml"
        subprocess.run([HUB, "up", "--name", LAB, "--listen", f"{NET}.1:8090", "--lock", lock], check=True)
        (url,) = re.findall(r"url: (\S+/artifacts/\S+)", lock.read_text())
        archive = given / "llama.tar.gz"
        subprocess.run(["curl", "--noproxy", "*", "-sSfo", archive, url], check=True)
        subprocess.run([HUB, "down", "--name", LAB], check=True)
        model = PROJECT / "tests/fixtures/models/tiny-rag-f16.gguf"
        script = PROJECT / "molecule/rollout/models.py"
        subprocess.run([sys.executable, script, given, archive, model, "60"], check=True)

    def down(self) -> None:
        subprocess.run([HUB, "down", "--name", LAB], check=False)
        subprocess.run([TESTHOST, "down", LAB], check=True)

    def testhost(self, verb: str, host: str) -> None:
        subprocess.run([TESTHOST, verb, LAB, host], check=True, capture_output=True)

    def inside(self, host: str, command: str) -> str:
        ran = subprocess.run(
            [TESTHOST, "exec", LAB, host, "--", "sh", "-c", command], check=True, capture_output=True, text=True
        )
        return ran.stdout

    def start(self, playbook: str = "site.yml", *more: str) -> Run:
        env = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        env["ANSIBLE_TIMEOUT"] = "120"  # a busy test machine is no dead host
        command = [str(PROJECT / ".venv/bin/ansible-playbook"), "-i", str(self.inventory), playbook, *more]
        return Run([*command, "-e", json.dumps({"lab": self.asked})], env, PROJECT)

    def written(self, host: str) -> dict[str, Any]:
        local = json.loads(self.inside(host, "cat /etc/ansible/facts.d/onprem_llm.fact"))
        return {"debts": local["debts"], **local["components"]["llamacpp"]}

    def ends_well(self, run: Run, what: str) -> None:
        code = run.wait()
        log(what, run)
        assert code == 0, f"ONPREM_SEED={SEED}: {what} ended with {code}:\n{run.output[-6000:]}"

    def converged(self, what: str) -> None:
        """Both hosts serve what is asked for and owe nothing, and the door sends requests to both."""
        for host in ENGINES:
            record = json.loads(self.inside(host, "cat /var/lib/onprem-llm/rollout/llamacpp.json"))
            local = self.written(host)
            model = self.inside(host, "readlink /srv/llm/served/assistant").strip()
            tree = self.inside(host, "readlink -f /opt/onprem-llm/llamacpp/current").strip()
            maps = self.inside(host, "cat /proc/$(systemctl show -P MainPID llamacpp@assistant)/maps")
            open_files = set(re.findall(r"(/srv/llm/models/\S+|/opt/onprem-llm/llamacpp/[^/\s]+)", maps))
            seen = f"ONPREM_SEED={SEED}: {host} after {what}: {record['state']}, {model}, {tree}, {open_files}, {local}"
            assert record["state"] == "good" and record["wanted"] is None, seen
            assert model.endswith(f"/onprem/tiny/{self.asked['revision']}"), seen
            # A build is known by the tree it was installed into first.
            assert self.trees.setdefault(self.asked["build"], tree) == tree, seen
            assert len(set(self.trees.values())) == len(self.trees), self.trees
            assert open_files == {f"{model}/chat.gguf", tree}, seen
            assert (local["pointer"], local["models"]["assistant"]["pointer"]) == (tree, model), seen
            assert local["debts"] == [], seen
        assert " down;" not in self.inside("rk-web", "cat /etc/nginx/nginx.conf"), what


def log(what: str, run: Run) -> None:
    with LOG.open("a") as file:
        file.write(f"\n##### {time.strftime('%H:%M:%S')} {what}\n{run.output}")


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    LOG.parent.mkdir(parents=True, exist_ok=True)
    LOG.write_text(f"ONPREM_SEED={SEED}\n")
    made = Site()
    try:
        made.up()
        yield made
    finally:
        if not (request.session.testsfailed and os.environ.get("ONPREM_KEEP") == "1"):
            made.down()


def draw(tasks: list[tuple[str, float]], seconds: float, chance: random.Random) -> tuple[str, int, float]:
    """A moment of the watched upgrade, mostly of its switch: task, how often it had begun by then, seconds since."""
    names = [name for name, _ in tasks]
    first = next(begun for name, begun in tasks if name.startswith("onprem.llm.rollout :"))
    last = max(begun for name, begun in tasks if name.startswith("onprem.llm.rollout :"))
    moment = chance.uniform(first, last + 5) if chance.random() < 0.7 else chance.uniform(0, seconds)
    index = max(number for number, (_, begun) in enumerate(tasks) if begun <= moment)
    return names[index], names[: index + 1].count(names[index]), moment - tasks[index][1]


def hit(site: Site, tasks: list[tuple[str, float]], seconds: float, chance: random.Random) -> str:
    """Start a run, and hit it or a host; where. Empty when it came to its end before such a moment."""
    name, times, rest = draw(tasks, seconds, chance)
    run = site.start()
    reached = run.reaches(lambda seen: [one for one, _ in seen].count(name) >= times)
    run.goes_on(rest)
    asks = "{revision} with {build}".format(**site.asked)
    kind = chance.choice(["the run alone", "all processes of the run", *ENGINES])
    if not reached or run.process.poll() is not None:
        site.ends_well(run, f"a run for {asks} that came to its end before {name}")
        return ""
    if kind in ENGINES:
        site.testhost("kill", kind)
        doing = run.tasks[-1][0]
        try:
            run.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            run.kill(everything=True)
        site.testhost("start", kind)
    else:
        doing = run.kill(everything=kind.startswith("all"))
    where = f"{asks}: {kind} in {doing} after {rest:.1f} s"
    log(f"killed {where}", run)
    return where


def one_round(site: Site, watched: Run, chance: random.Random, kills: int) -> list[str]:
    """Kills one after the other, and a run that is left alone; where they hit."""
    hits: list[str] = []
    for _ in range(kills):
        # Every fourth run has nothing new to bring.
        if chance.random() < 0.75:
            others = [(r, b) for r in ("v1", "v2", "v3") for b in ("plain", "other")]
            others.remove((site.asked["revision"], site.asked["build"]))
            site.asked = dict(zip(("revision", "build"), chance.choice(others), strict=True))
        where = hit(site, watched.tasks, watched.tasks[-1][1] + 5, chance)
        hits += [where] if where else []
    site.ends_well(site.start(), f"the run after {'; '.join(hits) or 'nothing'}")
    site.converged("; ".join(hits))
    return hits


def test_the_next_run_makes_good_what_was_killed(site: Site) -> None:
    print(f"ONPREM_SEED={SEED}")
    limit = time.monotonic() + 60 * float(os.environ.get("ONPREM_MINUTES", "55"))
    state, longest = load(COUNT) | {"seed": SEED}, 300.0
    site.ends_well(site.start(), "the installation")
    site.asked = {"revision": "v2", "build": "other"}
    watched = site.start()
    site.ends_well(watched, "an upgrade that nobody disturbs")
    site.converged("an upgrade that nobody disturbs")
    while state["kills"] < KILLS and time.monotonic() + 1.5 * longest < limit:
        begin = time.monotonic()
        chance = random.Random(f"{SEED}-{len(state['rounds']) + 1}")
        hits = one_round(site, watched, chance, min(PER_ROUND, KILLS - state["kills"]))
        state["kills"] += len(hits)
        state["rounds"].append({"seconds": round(time.monotonic() - begin), "killed": hits})
        longest = max(longest, time.monotonic() - begin)
        save(COUNT, state)
        print(f"{state['kills']} of {KILLS}: {'; '.join(hits)}", flush=True)
    again = site.start()
    site.ends_well(again, "a further run")
    assert re.search(r"changed=[1-9]", again.output) is None, again.output[-3000:]
    if state["kills"] < KILLS:
        pytest.skip(f"{state['kills']} of {KILLS} kills made good so far; call again to go on")


def test_a_host_goes_back_and_forward(site: Site) -> None:
    """rollback.yml takes one host to what it was before; the next site.yml brings what the inventory asks for again."""
    here, beside = map(site.written, ENGINES)
    before = here["previous"]["pointer"], here["models"]["assistant"]["previous"]
    back = site.start("playbooks/rollback.yml", "-e", "rollback=llamacpp", "--limit", ENGINES[0])
    site.ends_well(back, "a rollback of one host")
    now = site.written(ENGINES[0])
    assert (now["pointer"], now["models"]["assistant"]["pointer"]) == before
    assert (now["previous"]["pointer"], now["debts"]) == (here["pointer"], [])
    assert site.written(ENGINES[1]) == beside, "the other host is none of its business"
    assert "The inventory still asks for" in " ".join(back.output.split())
    # Without --limit the other one would go along, and this one further back.
    both = site.start("playbooks/rollback.yml", "-e", "rollback=llamacpp")
    assert both.wait() != 0 and "do not serve llamacpp alike" in " ".join(both.output.split()), both.output[-3000:]
    assert list(map(site.written, ENGINES)) == [now, beside]
    site.ends_well(site.start(), "the run after the rollback")
    site.converged("a rollback")
