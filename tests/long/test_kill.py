# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL at any moment of a first installation: the next run makes it good.

  .venv/bin/pytest -q -s tests/long/test_kill.py

One installation is watched to the end: when which task begins. Then round after round on a fresh host with fresh
secrets: runs are killed at moments drawn evenly over the whole installation, five per host, each further on than the
one before, so that every kill hits work that is being done for the first time. The run after a kill starts at once,
beside whatever the killed one left running on the host. The last run is left alone: it must end with a doctor that
finds nothing untrue, and the run after that must change nothing.

Environment:
  ONPREM_KILLS    kills for this commit, over all calls (100)
  ONPREM_MINUTES  a call ends after about this time; the next one goes on (55). An unfinished count shows as skipped.
  ONPREM_SEED     repeats the moments of a failed call
  ONPREM_KEEP     1 leaves the host of a failed round running
State and outputs: .cache/long/kill.json, .cache/long/kill-round-N.log
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from killing import PROJECT, Run, load, save

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="test hosts need root")

FOLDER = PROJECT / ".cache/long"
STATE = FOLDER / "kill.json"
INVENTORY = FOLDER / "inventory"
LAB = "long-kill"
TESTHOST, HUB = str(PROJECT / "tools/testhost"), str(PROJECT / "tests/hub/hub")
SSH_CONFIG = Path(os.environ.get("TESTHOST_STATE", "/var/lib/testhosts")) / LAB / "ssh_config"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PER_HOST = 5

HOSTS = f"""---
all:
  hosts:
    box:
      ansible_host: 10.77.3.11
      ansible_user: ansible
      ansible_become: true
      ansible_ssh_common_args: -F {SSH_CONFIG}
"""
GROUPS = ("inference", "llamacpp", "postgresql", "openldap", "openwebui", "nginx")


class RoundFailed(Exception):
    """A run that should have made good what was killed did not."""


def fresh_host() -> None:
    """A host with nothing on it, and a site without secrets."""
    take_away()
    shutil.rmtree(INVENTORY, ignore_errors=True)
    variables = INVENTORY / "group_vars/all"
    variables.mkdir(parents=True)
    (INVENTORY / "hosts.yml").write_text(HOSTS + "".join(f"{group}: {{hosts: {{box: }}}}\n" for group in GROUPS))
    (INVENTORY / "groups.yml").symlink_to(PROJECT / "inventories/groups.yml")
    for file in (PROJECT / "inventories/sandbox/group_vars/all").glob("*.yml"):
        if file.name != "lock.yml":
            (variables / file.name).symlink_to(file)
    lab = {
        "lab": LAB,
        "network": "10.77.3.0/24",
        "hosts": [{"name": "box", "ip": "10.77.3.11", "image": "trixie"}],
        "binds": {str(CACHE / "onprem-llm/uv"): "/var/cache/onprem-llm/uv"},
    }
    subprocess.run([TESTHOST, "up"], input=json.dumps(lab), text=True, check=True)
    lock = str(variables / "lock.yml")
    subprocess.run([HUB, "up", "--name", LAB, "--listen", "10.77.3.1:8090", "--lock", lock], check=True)


def take_away() -> None:
    subprocess.run([HUB, "down", "--name", LAB], check=False)
    subprocess.run([TESTHOST, "down", LAB], check=True)


def start() -> Run:
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    return Run([str(PROJECT / ".venv/bin/ansible-playbook"), "-i", str(INVENTORY), "site.yml"], env, PROJECT)


def finish(run: Run, log: Path, what: str) -> None:
    code = run.wait()
    with log.open("a") as file:
        file.write(f"\n##### {what}\n{run.output}")
    if code:
        raise RoundFailed(f"{what} ended with {code}:\n{run.output[-6000:]}")


def watch(state: dict[str, Any]) -> None:
    """The installation nobody disturbs: what its tasks are, and when they begin."""
    fresh_host()
    run = start()
    begin = time.monotonic()
    finish(run, FOLDER / "kill-round-0.log", "an installation that nobody disturbs")
    state["tasks"] = run.tasks
    state["seconds"] = time.monotonic() - begin
    save(STATE, state)


def kill_once(state: dict[str, Any], moment: float, chance: random.Random, log: Path, past: list[str]) -> str:
    """Start a run and end it at this moment of the installation. Returns where; empty when there was nothing to end."""
    tasks = state["tasks"]
    index = max((number for number, (_, begun) in enumerate(tasks) if begun <= moment), default=0)
    name, begun = tasks[index]
    times = sum(other == name for other, _ in tasks[: index + 1])
    run = start()
    if not run.reaches(lambda seen: sum(other == name for other, _ in seen) >= times):
        finish(run, log, f"the run after {'; '.join(past) or 'nothing'}, which was to be killed in {name}")
        return ""
    run.goes_on(moment - begun)
    everything = chance.random() < 0.5
    where = f"{run.kill(everything)} ({moment:.1f} s, {'all processes' if everything else 'the run alone'})"
    with log.open("a") as file:
        file.write(f"\n##### killed in {where}\n{run.output}")
    return where


def one_round(state: dict[str, Any], number: int, count: int) -> list[str]:
    """Kills on one fresh host; where they hit."""
    log = FOLDER / f"kill-round-{number}.log"
    log.write_text("")
    chance = random.Random(f"{state['seed']}-{number}")
    fresh_host()
    hits: list[str] = []
    for moment in sorted(chance.uniform(0, state["seconds"]) for _ in range(count)):
        where = kill_once(state, moment, chance, log, hits)
        hits += [where] if where else []
    story = "; ".join(hits)
    finish(start(), log, f"the run after the last kill ({story})")
    again = start()
    finish(again, log, f"the second run (after {story})")
    if not re.search(r"changed=0 ", again.output):
        raise RoundFailed(f"the second run changed something ({story}):\n{again.output[-6000:]}")
    return hits


def test_the_next_run_makes_good_what_was_killed() -> None:
    wanted = int(os.environ.get("ONPREM_KILLS", "100"))
    limit = 60 * float(os.environ.get("ONPREM_MINUTES", "55"))
    state, begin, longest = load(STATE), time.monotonic(), 0.0
    save(STATE, state)
    failed = False
    try:
        if "tasks" not in state:
            watch(state)
        while state["kills"] < wanted:
            longest = max(longest, 3 * state["seconds"])
            if time.monotonic() - begin + longest > limit:
                pytest.skip(f"{state['kills']} of {wanted} kills made good so far; call again to go on")
            before, number = time.monotonic(), len(state["rounds"]) + 1
            hits = one_round(state, number, min(PER_HOST, wanted - state["kills"]))
            longest = max(longest, time.monotonic() - before)
            state["kills"] += len(hits)
            state["rounds"].append({"seconds": round(time.monotonic() - before), "killed": hits})
            save(STATE, state)
            print(f"{state['kills']} of {wanted}: {'; '.join(hits)}", flush=True)
    except RoundFailed as error:
        failed = True
        pytest.fail(f"ONPREM_SEED={state['seed']}, round {len(state['rounds']) + 1}: {error}")
    finally:
        if not (failed and os.environ.get("ONPREM_KEEP") == "1"):
            take_away()
