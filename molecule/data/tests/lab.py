# SPDX-License-Identifier: GPL-3.0-or-later
"""The two hosts of this scenario. This machine is in their network too, and a stranger to them."""

from __future__ import annotations

import json
import re
import socket
from functools import partial
from typing import Any

import testinfra
from conftest import INVENTORY, SSH_CONFIG, playbook

ADDRESS = "10.77.204.11"
CA = "/etc/onprem-llm/tls/ca.crt"


def host(name: str) -> Any:
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=str(INVENTORY), ssh_config=str(SSH_CONFIG))


def converge(*arguments: str, **variables: Any) -> tuple[int, int, str]:
    """Runs the stage with some variables set otherwise: exit code, number of changes on data1, what it said."""
    result = playbook("playbooks/data.yml", *arguments, "--extra-vars", json.dumps(variables))
    said = result.stdout + result.stderr
    found = re.search(r"data1\s+: ok=\d+\s+changed=(\d+)", said)
    assert found, said
    return result.returncode, int(found[1]), said


converge_postgresql = partial(converge, "--tags", "postgresql")
converge_openldap = partial(converge, "--tags", "openldap")


def one_line(text: str) -> str:
    """What was said, however it was wrapped."""
    return " ".join(text.split())


def reachable(port: int) -> bool:
    """From this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((ADDRESS, port)) == 0


def score(unit: str) -> float:
    text = host("data1").check_output(f"systemd-analyze security --no-pager {unit}.service | tail -n 1")
    return float(re.search(r"(\d+\.\d)", text)[1])
