# SPDX-License-Identifier: GPL-3.0-or-later
"""The production sample's shape on three hosts: who reaches what, and that what crosses hosts is encrypted."""

from __future__ import annotations

import base64
import json

import pytest
import testinfra
from conftest import INVENTORY, SSH_CONFIG, playbook

ADDRESSES = {"gpu1": "10.77.2.11", "web1": "10.77.2.12", "data1": "10.77.2.13"}
# Port of a host: the hosts that may reach it. Everybody else finds it closed.
OPEN = {
    ("gpu1", 9101): {"web1"},
    ("gpu1", 9102): {"web1"},
    ("data1", 5432): {"web1"},
    ("data1", 636): {"web1"},
    ("web1", 443): {"gpu1", "data1"},
    ("web1", 3000): set(),
    ("web1", 8480): set(),
}


@pytest.fixture(scope="module")
def hosts():
    return {
        name: testinfra.get_host(
            f"ansible://{name}", ansible_inventory=str(INVENTORY), ssh_config=str(SSH_CONFIG), sudo=True
        )
        for name in ADDRESSES
    }


@pytest.mark.parametrize(("name", "release"), [("gpu1", "13"), ("web1", "12"), ("data1", "13")])
def test_the_split_over_debian_12_and_13(hosts, name, release):
    assert hosts[name].system_info.release.split(".")[0] == release


@pytest.mark.parametrize("target", OPEN, ids=lambda target: f"{target[0]}-{target[1]}")
def test_a_port_is_open_to_its_consumers_only(hosts, target):
    """T1, looked at from the other hosts."""
    name, port = target
    for looker in sorted(set(ADDRESSES) - {name}):
        probe = hosts[looker].run(f"timeout 2 bash -c '</dev/tcp/{ADDRESSES[name]}/{port}'")
        assert (probe.rc == 0) == (looker in OPEN[target]), f"{looker} -> {name}:{port}: exit code {probe.rc}"


# The application's own address of the database, once as it is and once without TLS. Nothing secret is printed.
CONNECT = """
import re, sys, psycopg2
text = open("/etc/onprem-llm/openwebui/openwebui.env").read()
url = re.search(r'^DATABASE_URL="?([^"\\n]+)', text, re.M).group(1)
assert "sslmode=verify-full" in url
if sys.argv[1] == "clear":
    url = url.split("?")[0] + "?sslmode=disable"
try:
    with psycopg2.connect(url) as connection:
        cursor = connection.cursor()
        cursor.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
        print("connected, tls", cursor.fetchone()[0])
except psycopg2.OperationalError as error:
    print("refused:", "no encryption" in str(error))
"""


@pytest.mark.parametrize(("how", "said"), [("verified", "connected, tls True"), ("clear", "refused: True")])
def test_the_database_is_reached_by_tls_only(hosts, how, said):
    coded = base64.b64encode(CONNECT.encode()).decode()
    python = "/opt/onprem-llm/openwebui/current/bin/python"
    assert hosts["web1"].check_output(f"echo {coded} | base64 -d | {python} - {how}") == said


def test_the_controller_sees_a_cited_answer(tmp_path):
    """The doctor through the public name; DNS does not know it here, so it is told the address."""
    report = tmp_path / "doctor.json"
    done = playbook("playbooks/doctor.yml", "-e", f"doctor_json={report}")
    assert done.returncode == 0, done.stdout[-3000:]
    said = json.loads(report.read_text())
    assert said["ok"] is True
    assert said["answer"]["source"].startswith("doctor-")


def test_a_limited_run_works():
    """`--limit`: secrets and addresses of the other hosts are known; those that serve models are only looked at."""
    done = playbook("site.yml", "--limit", "web1", "--check")
    assert done.returncode == 0, done.stdout[-3000:]
