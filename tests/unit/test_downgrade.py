# SPDX-License-Identifier: GPL-3.0-or-later
"""An older engine than the one that serves is asked for: the real role says so, names both, and the ways out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conventions import PROJECT

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - ansible.builtin.include_role: {name: onprem.llm.rollout, tasks_from: preflight}
      vars:
        rollout_component: llamacpp
        rollout_version: "{{ item.asked }}"
        rollout_installed: "{{ item.installed }}"
        rollout_allow_downgrade: "{{ item.allow | default(false) }}"
      loop: "{{ cases }}"
"""


WIRED = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  vars_files: [WIRING]
  tasks:
    - ansible.builtin.set_fact:
        onprem_llm: {components: {ktransformers: {version: 0.7.2, pointer: /opt/kt/0.7.2-wheel-py3.11-0a1b}}}
        cacheable: true
    - ansible.builtin.include_role: {name: onprem.llm.rollout, tasks_from: preflight}
      vars:
        rollout_component: ktransformers
        rollout_version: "{{ item.asked }}"
        rollout_links: {/opt/kt/current: "/opt/kt/{{ item.tree }}"}
      loop: "{{ cases }}"
""".replace("WIRING", str(PROJECT / "group_vars/all/wiring.yml"))


def ask(tmp_path: Path, *cases: dict[str, Any], play: str = PLAY) -> tuple[int, str]:
    (tmp_path / "play.yml").write_text(play)
    program = str(Path(sys.executable).parent / "ansible-playbook")
    done = subprocess.run(
        [program, str(tmp_path / "play.yml"), "--extra-vars", json.dumps({"cases": cases})],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_downgrade_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    code, said = ask(tmp_path, {"asked": "0.6.2", "installed": "0.10.0"})
    assert code == 2
    for piece in (
        "llamacpp 0.10.0 serves on localhost, and this inventory asks for 0.6.2, which is older.",
        "playbooks/rollback.yml -e rollback=llamacpp",
        "-e rollout_allow_downgrade=true",
    ):
        assert piece in said, said


def test_what_is_no_downgrade_goes_on(tmp_path: Path) -> None:
    code, said = ask(
        tmp_path,
        {"asked": "0.6.2", "installed": "0.10.0", "allow": True},
        {"asked": "0.10.0", "installed": "0.6.2"},
        # A build number of before the releases: older than these, and nothing to compare with.
        {"asked": "0.7.0", "installed": "b8146"},
        {"asked": "0.7.0", "installed": ""},
    )
    assert code == 0, said


def test_classic_counts_its_versions_by_itself(tmp_path: Path) -> None:
    code, said = ask(tmp_path, {"asked": "0.4.1", "tree": "0.4.1-classic-avx2-py3.11"}, play=WIRED)
    assert code == 0, said
    code, said = ask(tmp_path, {"asked": "0.7.1", "tree": "0.7.1-source-avx2-py3.11"}, play=WIRED)
    assert code == 2 and "ktransformers 0.7.2 serves on localhost" in said, said
