# SPDX-License-Identifier: GPL-3.0-or-later
"""What all scenarios' tests share: the lab's facts, and services that explain themselves when they are down."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent.parent
# What scenarios share with other tests: runs that can be killed, the hub.
sys.path[:0] = [str(PROJECT / "tests/hub"), str(PROJECT / "tests/long")]
SCENARIO = Path(os.environ.get("MOLECULE_SCENARIO_DIRECTORY", PROJECT / "molecule/default"))
INVENTORY = SCENARIO / "inventory"
SSH_CONFIG = Path(os.environ.get("TESTHOST_STATE", "/var/lib/testhosts")) / f"m-{SCENARIO.name}/ssh_config"


def pytest_configure(config: pytest.Config) -> None:
    """A stage may take some of a scenario's tests only, as the option -k names them."""
    config.option.keyword = os.environ.get("ONPREM_ONLY") or config.option.keyword


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked long runs in `make test-long` only."""
    if not os.environ.get("ONPREM_LONG"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def lab_command(verb: str, name: str, *words: str) -> list[str]:
    """The command that does something to a host of the lab, from outside and as root."""
    return [str(PROJECT / "tools/testhost"), verb, f"m-{SCENARIO.name}", name, *words]


def on(name: str, script: str, check: bool = True) -> str:
    """What a command says on a host."""
    done = subprocess.run(lab_command("exec", name, "bash", "-c", script), check=False, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{name}: {script}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def secrets() -> Callable[[str], str]:
    """A secret of the scenario's site by name."""
    return lambda name: (INVENTORY / "secrets" / name).read_text().strip()


@pytest.fixture(scope="session")
def ca_file() -> Path:
    return INVENTORY / "secrets/tls/ca.crt"


@pytest.fixture
def running(host: Any) -> Callable[[str], None]:
    """Asserts that a unit runs; when it does not, its journal is in the report."""

    def check(unit: str) -> None:
        if not host.service(unit).is_running:
            pytest.fail(f"{unit} is down\n" + host.run(f"journalctl --no-pager -n 40 -o cat -u {unit}").stdout)

    return check


def ask(
    url: str | urllib.request.Request,
    ca: Path,
    body: dict[str, Any] | None = None,
    token: str | None = None,
    method: str | None = None,
) -> tuple[int, Any]:
    """Status and answer (JSON where it is) of a GET, or of a POST when there is a body. The certificate is verified."""
    request = url if isinstance(url, urllib.request.Request) else urllib.request.Request(url, method=method)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(ca))),
    )
    try:
        with opener.open(request, timeout=60) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def command(*arguments: str) -> list[str]:
    """How a person runs a playbook of the project against the scenario's inventory."""
    return [str(PROJECT / ".venv/bin/ansible-playbook"), "-i", str(INVENTORY), *arguments]


def environment() -> dict[str, str]:
    """For ``command``: nothing of molecule's, and the way to the lab's hosts."""
    ours = {"ANSIBLE_SSH_ARGS": f"-F {SSH_CONFIG} -o ControlMaster=auto -o ControlPersist=60s"}
    return {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")} | ours


def playbook(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a playbook to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


#: Services whose restart would be a change. Patterns that match nothing are fine.
SERVICES = ("llamacpp@*", "postgresql@*", "slapd", "openwebui", "nginx", "onprem-llm-firewall")
#: What services write by themselves.
CHURN = ("/var/lib/postgresql", "/var/lib/openwebui", "/var/lib/ldap", "/var/lib/systemd", "/var/lib/nginx")


@contextmanager
def untouched(host: Any, but: str = "") -> Iterator[None]:
    """Meanwhile no file, package, firewall rule or service of the host changes, except files that match ``but``."""
    mark = "/run/untouched"
    show = f"nft list ruleset; systemctl show --property=Id,InvocationID,ActiveState {' '.join(SERVICES)}"
    before = host.check_output(f"touch {mark}; {show}")
    yield
    prune = " -o ".join(f"-path {folder}" for folder in CHURN)
    found = host.check_output(
        f"find /etc /opt /srv /usr/local /var/lib -xdev \\( {prune} \\) -prune -o -cnewer {mark} -print"
    ).splitlines()
    assert not [path for path in found if not (but and re.fullmatch(but, path))]
    assert host.check_output(show) == before


def one_line(text: str) -> str:
    """What was said, however it was wrapped."""
    return " ".join(text.split())
