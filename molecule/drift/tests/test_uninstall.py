# SPDX-License-Identifier: GPL-3.0-or-later
"""uninstall.yml takes away what came, and nothing else. Last of all: afterwards nothing serves there."""

from __future__ import annotations

import re
import subprocess

import pytest
import testinfra
from conftest import INVENTORY, PROJECT, SSH_CONFIG, command, environment, one_line, playbook, untouched

testinfra_hosts = ["ansible://drifter"]
pytestmark = pytest.mark.long

# A folder that dpkg removes with the last package that has something in it; what other tests here made; what ran
# at the first boot only.
CHURN = re.compile(
    r"(file|sum) (/usr/share/man|/var/lib/metrics|/etc/(machine-id|resolv\.conf))\b.*"
    r"|runs (ldconfig|systemd-(journal-catalog-update|sysusers|update-done))\.service active"
)


def listing(host) -> set[str]:
    script = (PROJECT / "molecule/resources/listing").read_text()
    host.check_output("cat > /var/tmp/listing.sh <<'END'\n" + script + "\nEND")
    return told(host.check_output("sh /var/tmp/listing.sh"))


def told(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip() and not CHURN.fullmatch(line.strip())}


def uninstall(*arguments: str) -> str:
    result = playbook("playbooks/uninstall.yml", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return one_line(result.stdout + result.stderr)


@pytest.mark.parametrize("given", ["", "openwebiu", "nginx,firewall"])
def test_nothing_goes_unless_it_is_named(host, given):
    with untouched(host):
        result = playbook("playbooks/uninstall.yml", "-e", f"uninstall={given}")
    assert result.returncode == 2, result.stdout + result.stderr
    said = one_line(result.stdout + result.stderr)
    assert f"uninstall is '{given}'. Nothing was removed. Say with -e what shall go: uninstall=all, or one or" in said


def test_check_mode_says_what_would_go_and_leaves_it(host):
    with untouched(host):
        said = uninstall("-e", "uninstall=all", "-e", "uninstall_data=true", "--check", "--diff")
    for gone in (
        "unit openwebui.service: stopped and disabled",
        "-package slapd",
        "-/srv/llm/served",
        "-user openwebui",
    ):
        assert gone in said, said


@pytest.fixture(scope="module")
def lookout():
    return testinfra.get_host(
        "ansible://lookout", ansible_inventory=str(INVENTORY), ssh_config=str(SSH_CONFIG), sudo=True
    )


def test_one_role_goes_and_the_others_serve_on(host, lookout, running):
    # Somebody's own, on a host where the role never was.
    theirs = "/etc/systemd/system/openwebui.service"
    lookout.check_output(f"printf '[Service]\nExecStart=/bin/sleep inf\n' > {theirs}; systemctl start openwebui")
    said = uninstall("-e", "uninstall=openwebui")
    assert lookout.service("openwebui").is_running
    lookout.check_output(f"systemctl stop openwebui; rm {theirs}; systemctl daemon-reload")
    assert "drifter is still a member of openwebui: the next site.yml installs that again." in said, said
    assert "Kept /var/lib/openwebui: data" in said, said
    assert not host.file("/opt/onprem-llm/openwebui").exists
    assert not host.file("/etc/systemd/system/openwebui.service").exists
    # Its user owns the data that stays.
    assert host.file("/var/lib/openwebui/uploads").user == "openwebui"
    for unit in ("nginx", "llamacpp@tiny-chat", "postgresql", "slapd"):
        running(unit)
    assert host.package("python3-venv").is_installed is False


def test_everything_goes_but_data(host):
    # What enabled it stays behind; the host is compared with what it was further below.
    host.check_output("rm /etc/systemd/system/model_store-verify.timer && systemctl daemon-reload")
    assert host.file("/etc/systemd/system/timers.target.wants/model_store-verify.timer").is_symlink
    said = uninstall("-e", "uninstall=all")
    for kept in ("/var/lib/postgresql/", "/var/lib/ldap", "/srv/llm/models/onprem/tiny-rag-GGUF/"):
        assert f"Kept {kept}" in said, said
    assert "failed" not in host.check_output(
        "systemctl list-units --state=failed --no-legend --plain | awk '{print $1, \"failed\"}'"
    )
    listening = host.check_output("ss -Htln | awk '{print $4}'").split()
    assert {one.rpartition(":")[2] for one in listening} == {"22"}, listening
    assert "onprem" not in host.check_output("nft list ruleset || true")
    assert not host.file("/opt/onprem-llm").exists
    assert not host.file("/etc/onprem-llm").exists


def test_a_stopped_server_does_not_hide_a_database_of_others(host):
    in_server = "systemctl start postgresql@17-main && cd / && runuser -u postgres -- psql -qX -c '{} DATABASE theirs'"
    host.check_output(f"{in_server.format('CREATE')}; systemctl stop postgresql@17-main")
    result = playbook("playbooks/uninstall.yml", "-e", "uninstall=all", "-e", "uninstall_data=true", "-l", "drifter")
    assert result.returncode == 2, result.stdout
    assert re.search(r"drifter .* changed=0 ", result.stdout), result.stdout
    assert not host.service("postgresql@17-main").is_running
    assert "PostgreSQL on drifter holds theirs besides the databases of onprem.llm" in one_line(result.stdout)
    host.check_output(f"{in_server.format('DROP')}; systemctl stop postgresql@17-main")


def test_with_consent_the_host_is_what_it_was(host):
    uninstall("-e", "uninstall=all", "-e", "uninstall_data=true")
    before, after = told(host.file("/var/tmp/listing").content_string), listing(host)
    assert len(before) > 1000
    assert not sorted(after - before), "new"
    assert not sorted(before - after), "lost"


def test_nothing_is_left_to_take_away(host):
    with untouched(host):
        result = playbook("playbooks/uninstall.yml", "-e", "uninstall=all", "-e", "uninstall_data=true")
    assert set(re.findall(r" changed=(\d+)", result.stdout)) == {"0"}, result.stdout


def module(name: str, arguments: str) -> str:
    ansible = [
        command()[0].removesuffix("-playbook"),
        *command()[1:],
        "drifter",
        "-m",
        f"onprem.llm.{name}",
        "-a",
        arguments,
    ]
    done = subprocess.run(ansible, cwd=PROJECT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_server_that_was_here_before_is_given_its_configuration_back(host):
    """The real module on a real nginx: what a role did to it is undone, what was there stays and runs."""
    before = "before=/var/lib/onprem-llm/before"
    host.check_output("apt-get --assume-yes --no-install-recommends install nginx-light")
    try:
        host.check_output("echo '# mine' >> /etc/nginx/nginx.conf; systemctl reload nginx")
        module("host_before", "path=/var/lib/onprem-llm/before files=/etc/nginx/nginx.conf")
        host.check_output("apt-get --assume-yes --no-install-recommends install libnginx-mod-http-js")
        host.check_output("echo broken > /etc/nginx/nginx.conf; systemctl stop nginx; systemctl disable nginx")
        module(
            "uninstalled",
            f"{before} units=nginx.service paths=/etc/nginx/nginx.conf packages=nginx-light,libnginx-mod-http-js",
        )
        assert host.file("/etc/nginx/nginx.conf").content_string.endswith("# mine\n")
        assert host.service("nginx").is_running
        assert host.service("nginx").is_enabled
        assert host.package("nginx-light").is_installed
        assert not host.package("libnginx-mod-http-js").is_installed
    finally:
        host.check_output(
            "apt-get --assume-yes purge 'nginx*' && apt-get --assume-yes autoremove --purge; rm -r /var/lib/onprem-llm"
        )
