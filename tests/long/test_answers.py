# SPDX-License-Identifier: GPL-3.0-or-later
"""How often a service that stands answers everything right: the doctor, ONPREM_ASKS times, on the host of a scenario.

Wants the lab of the scenario `default`, converged: `molecule -c .config/molecule/config.yml converge -s default`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
STATE = Path(os.environ.get("TESTHOST_STATE", "/var/lib/testhosts"))
SSH_CONFIG = STATE / "m-default/ssh_config"
ASKS = int(os.environ.get("ONPREM_ASKS", "3"))


@pytest.mark.parametrize("ask", range(1, ASKS + 1))
def test_everything_is_answered_right(tmp_path: Path, ask: int) -> None:
    assert SSH_CONFIG.exists(), __doc__
    report = tmp_path / "doctor.json"
    command = [PROJECT / ".venv/bin/ansible-playbook", "-i", PROJECT / "molecule/default/inventory"]
    done = subprocess.run(
        [*command, "playbooks/doctor.yml", "-e", f"doctor_json={report}"],
        cwd=PROJECT,
        env={k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")}
        | {"ANSIBLE_SSH_ARGS": f"-F {SSH_CONFIG} -o ControlMaster=auto -o ControlPersist=60s"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    said = json.loads(report.read_text())
    untrue = [finding for finding in said["findings"] if finding["state"] != "ok"]
    assert not untrue, json.dumps(untrue, indent=1)
    assert done.returncode == 0 and said["ok"] and said["answer"]["source"], done.stdout[-3000:]
