# SPDX-License-Identifier: GPL-3.0-or-later
"""The role rollout on hosts that are this machine: what starts at once, what waits, and what the door is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conventions import PROJECT

WAITS = """
- hosts: all
  gather_facts: false
  vars:
    ansible_connection: local
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    records_dir: "{{ playbook_dir }}/{{ inventory_hostname }}/records"
    facts_file: "{{ playbook_dir }}/{{ inventory_hostname }}/facts"
  tasks:
    - ansible.builtin.include_role: {name: onprem.llm.rollout}
      vars: {rollout_component: engine, rollout_version: "1.0", rollout_services: []}
"""
DOOR = """
- hosts: localhost
  gather_facts: false
  vars_files: [VARS]
  tasks:
    - ansible.builtin.copy:
        content: "{{ {'out': __rollout_servers, 'back': __rollout_serving, 'moves': __rollout_moves,
                     'leaving': __rollout_leaving} | to_json }}"
        dest: "{{ playbook_dir }}/said.json"
        mode: "0600"
""".replace("VARS", str(PROJECT / "roles/rollout/vars/main.yml"))
WAVE = """
- hosts: rollout
  gather_facts: false
  any_errors_fatal: true
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    records_dir: "{{ playbook_dir }}/{{ inventory_hostname }}/records"
    facts_file: "{{ playbook_dir }}/{{ inventory_hostname }}/facts"
    rollout_owed:
      - {component: engine, state: present, version: "1.0", urls: ["http://{{ inventory_hostname }}:1"], restarts: []}
  tasks:
    - ansible.builtin.include_role: {name: onprem.llm.rollout, tasks_from: wave}
"""


def run(folder: Path, play: str, *arguments: str, code: int = 0, **variables: Any) -> str:
    (folder / "play.yml").write_text(play)
    (folder / "systemctl").write_text("#!/bin/sh\n")
    (folder / "systemctl").chmod(0o755)
    program = str(Path(sys.executable).parent / "ansible-playbook")
    done = subprocess.run(
        [program, str(folder / "play.yml"), *arguments, "--extra-vars", json.dumps(variables)],
        cwd=PROJECT,
        env={
            **{**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "false"},
            "PATH": f"{folder}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_what_starts_waits_on_a_host_where_something_else_has_to_go_first(tmp_path: Path) -> None:
    owed = [{"component": "other", "restarts": [], "urls": []}]
    hosts = {"all": {"hosts": {"free": {}, "owing": {"rollout_owed": owed}}}}
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    run(tmp_path, WAITS, "-i", str(tmp_path / "hosts.json"))
    assert json.loads((tmp_path / "free/records/engine.json").read_text())["state"] == "good"
    assert not (tmp_path / "owing/records").exists()
    (debt,) = json.loads((tmp_path / "owing/facts").read_text())["debts"]
    assert (debt["component"], debt["what"]) == ("engine", "rollout")


def test_what_the_door_is_told(tmp_path: Path) -> None:
    """Taken out is what is replaced; put back is all that serves now, or again when it was refused."""
    a, b, c, new = (f"http://192.0.2.1:{port}" for port in (9101, 9102, 9103, 9201))
    restarts = [
        {"unit": "a", "model": "a", "url": a, "becomes": a, "beside": False},
        {"unit": "b", "model": "b", "url": b, "becomes": new, "beside": False},
        # Taken away; and one of which nobody knows where it answered.
        {"unit": "c", "model": "c", "url": c, "becomes": "", "beside": False},
        {"unit": "d", "model": "", "url": "", "becomes": "", "beside": False},
    ]
    switches = [
        {"component": "engine", "restarts": restarts, "urls": [a, new]},
        {"component": "watched", "restarts": [], "urls": ["http://[2001:db8::1]:9301"]},
    ]
    others = [{"address": "2001:db8::2", "port": 9103}, {"address": "192.0.2.3", "port": 1}]
    same = [{"address": "192.0.2.1", "port": 9103}]
    elsewhere = {
        "rollout_endpoints": [{"model": model, "servers": others} for model in ("a", "c")],
        "__rollout_doors": {"results": [{"alone": {"192.0.2.1:9101": "engine_a", "192.0.2.1:9103": "engine_c"}}, {}]},
    }
    nowhere = {"rollout_endpoints": [], "__rollout_doors": {"results": []}}
    run(tmp_path, DOOR, rollout_owed=switches, **elsewhere)
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["out"] == ["192.0.2.1:9101", "192.0.2.1:9102", "192.0.2.1:9103"]
    assert sorted(said["back"]) == [
        "192.0.2.1:9101",
        "192.0.2.1:9102",
        "192.0.2.1:9103",
        "192.0.2.1:9201",
        "[2001:db8::1]:9301",
    ]
    # Only what no other host served before goes to the one that is new.
    assert said["leaving"] == {"192.0.2.1:9103": ["[2001:db8::2]:9103", "192.0.2.3:1"]}
    # Another engine of the same host: there is nowhere else to go.
    run(tmp_path, DOOR, rollout_owed=switches, **elsewhere | {"rollout_endpoints": [{"model": "c", "servers": same}]})
    assert json.loads((tmp_path / "said.json").read_text())["leaving"] == {}
    # The switch went well; another engine serves on the port of one that left.
    run(tmp_path, DOOR, rollout_owed=switches, __rollout_left=["192.0.2.1:9101", "192.0.2.1:9103"], **nowhere)
    back = json.loads((tmp_path / "said.json").read_text())["back"]
    assert "192.0.2.1:9101" in back and "192.0.2.1:9103" not in back
    assert said["moves"] == {"192.0.2.1:9102": "192.0.2.1:9201"}
    assert json.loads((tmp_path / "said.json").read_text())["leaving"] == {}


def test_hosts_of_a_wave_switch_together(tmp_path: Path) -> None:
    """Each is out of service until all have switched: one after the other they would be for as long as all take."""
    hosts = {"rollout": {"hosts": {name: {"ansible_connection": "local"} for name in "ab"}}}
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    said = run(tmp_path, WAVE, "-i", str(tmp_path / "hosts.json"))
    assert said.count("Look at what serves, or switch it: engine, present") == 1
    assert all(json.loads((tmp_path / host / "records/engine.json").read_text())["state"] == "good" for host in "ab")


def test_a_host_that_is_lost_in_its_turn_ends_the_run_and_is_named(tmp_path: Path) -> None:
    hosts = {
        "a": {"ansible_host": "127.0.0.1", "ansible_port": 1},
        "b": {"ansible_connection": "local"},
    }
    (tmp_path / "hosts.json").write_text(json.dumps({"rollout": {"hosts": hosts}}))
    said = run(tmp_path, WAVE, "-i", str(tmp_path / "hosts.json"), code=2)
    assert "a does not answer (ssh), so nobody knows how far the switch of engine came." in " ".join(said.split())
    assert "b does not answer" not in said
