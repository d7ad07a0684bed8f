# SPDX-License-Identifier: GPL-3.0-or-later
"""drift.yml on a whole stack: says nothing of an untouched host and writes nothing there; names every change."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import testinfra
from conftest import CHURN, INVENTORY, PROJECT, SSH_CONFIG, lab_command, one_line, playbook
from mutations import MUTATIONS, Mutation, look_at, nothing_differs

testinfra_hosts = ["ansible://drifter"]
HOSTS = ("drifter", "lookout")
# What services, logs and the kernel write by themselves; packages that the labs of this machine share; Ansible's own
# temporary folder in the home of the account that logs in.
BUSY = (*CHURN, "/proc", "/sys", "/dev", "/run", "/tmp", "/var/log", "/var/tmp", "/var/cache/openwebui")
BUSY += ("/var/cache/apt/archives", "/home")


@pytest.fixture(scope="module")
def lookout() -> Any:
    """The control host. Its root may log in to the lab's hosts."""
    host = testinfra.get_host(
        "ansible://lookout", ansible_inventory=str(INVENTORY), ssh_config=str(SSH_CONFIG), sudo=True
    )
    host.check_output("install -d -m 700 ~root/.ssh /var/lib/metrics")
    for name, target in (("id", "id"), ("known_hosts", "known_hosts"), ("ssh_config", "config")):
        text = (SSH_CONFIG.parent / name).read_text().replace(f"{SSH_CONFIG.parent}/", "~/.ssh/")
        host.check_output(f"umask 077; printf %s {shlex.quote(text)} > ~root/.ssh/{target}")
    return host


def listing(host: Any) -> list[str]:
    """Every file of the host with its owner, mode, size and times."""
    prune = " -o ".join(f"-path {folder}" for folder in BUSY)
    said: str = host.check_output(f"find / -xdev \\( {prune} \\) -prune -o -printf '%p %u %g %m %s %T@ %C@\\n'")
    return said.splitlines()


def settled(host: Any) -> None:
    """Until everything that starts has started."""
    asked = "python3 -c 'import urllib.request; urllib.request.urlopen(\"http://127.0.0.1:3000/ready\")'"
    for _ in range(120):
        if host.run(f"! systemctl list-jobs --no-legend | grep -q . && {asked}").succeeded:
            return
        time.sleep(1)
    pytest.fail(host.run("systemctl list-jobs; systemctl --failed").stdout)


def site_puts_it_right(host: Any, folder: Path) -> None:
    # While the door cannot read its configuration, no host changes over: site.yml says so, and what to do first.
    done = playbook("site.yml")
    if "nginx refuses /etc/nginx/nginx.conf as it is" in done.stdout:
        assert "Run playbooks/web.yml" in one_line(done.stdout)
        done = playbook("playbooks/web.yml")
        assert done.returncode == 0, done.stdout + done.stderr
        done = playbook("site.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    settled(host)
    nothing_differs(folder, *HOSTS)


def the_control_host_finds_nothing(lookout: Any) -> None:
    done = lookout.run("systemctl start onprem-llm-drift")
    assert done.rc == 0, lookout.check_output("journalctl -u onprem-llm-drift --no-pager -o cat")
    report = json.loads(lookout.check_output("cat /var/lib/onprem-llm-drift/report.json"))
    assert (report["ok"], report["hosts"], report["differences"]) == (True, dict.fromkeys(HOSTS, 0), [])


def test_a_control_host_finds_nothing_on_untouched_hosts_and_writes_nothing(host, lookout):
    before = listing(host)
    the_control_host_finds_nothing(lookout)
    assert sorted({*before} ^ {*listing(host)}) == []
    metrics = lookout.check_output("cat /var/lib/metrics/onprem_llm_drift.prom")
    assert 'onprem_llm_drift_differences{host="drifter"} 0\n' in metrics
    assert 'onprem_llm_drift_complete{host="drifter"} 1\n' in metrics


def test_the_control_host_looks_every_night_in_a_sandbox(lookout):
    assert lookout.service("onprem-llm-drift.timer").is_running
    said = lookout.check_output("systemd-analyze security --no-pager onprem-llm-drift.service | tail -1")
    assert float(re.findall(r"\d+[.]\d", said)[0]) <= 1.5, said


@pytest.mark.long
def test_the_control_host_reads_secrets_in_a_vault(lookout, tmp_path):
    secret, settings = INVENTORY / "secrets/engine_api_key", INVENTORY / "group_vars/drift.yml"
    clear = secret.read_bytes()
    password = tmp_path / "vault"
    password.write_text("of the vault\n")
    there = lookout.user("root").home + "/vault"
    lookout.check_output(f"umask 077; echo of the vault > {there}")
    with_password = ("--vault-password-file", str(password))
    try:
        settings.write_text(f"drift_vault_password_file: {there}\n")
        subprocess.run([PROJECT / ".venv/bin/ansible-vault", "encrypt", *with_password, secret], check=True)
        done = playbook("playbooks/observe.yml", *with_password)
        assert done.returncode == 0, done.stdout + done.stderr
        the_control_host_finds_nothing(lookout)
        lookout.check_output(f"echo of another > {there}")
        assert lookout.run("systemctl start onprem-llm-drift").failed
        assert "Decryption failed" in lookout.check_output("journalctl -u onprem-llm-drift --no-pager -o cat")
    finally:
        secret.write_bytes(clear)
        settings.unlink()
        done = playbook("playbooks/observe.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def look_and_undo(host: Any, mutations: list[Mutation], folder: Path) -> None:
    """Undone is what site.yml does not put right."""
    try:
        look_at(host, mutations, folder)
    finally:
        for one in mutations:
            host.check_output(one.get("undo", "true"))


def test_each_change_is_named(host, tmp_path):
    assert sum(map(len, MUTATIONS.values())) >= 40
    look_and_undo(host, MUTATIONS["together"], tmp_path)


@pytest.mark.long
def test_site_puts_them_right(host, tmp_path):
    site_puts_it_right(host, tmp_path)


@pytest.mark.long
def test_what_stopped_hides_nothing_else(host, tmp_path):
    look_and_undo(host, MUTATIONS["alone"], tmp_path)
    site_puts_it_right(host, tmp_path)


@pytest.mark.long
def test_nothing_differs_after_logs_were_rotated(host, tmp_path):
    host.check_output("logrotate --force /etc/logrotate.conf")
    nothing_differs(tmp_path, *HOSTS)


@pytest.mark.long
def test_nothing_differs_after_a_reboot(host, tmp_path):
    for verb in ("stop", "start"):
        subprocess.run(lab_command(verb, "drifter"), check=True)
    settled(host)
    nothing_differs(tmp_path, *HOSTS)
