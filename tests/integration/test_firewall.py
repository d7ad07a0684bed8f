# SPDX-License-Identifier: GPL-3.0-or-later
"""T1: the rules of the role firewall in the kernel: a host and two neighbours, as network namespaces. Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

TEMPLATES = Path(__file__).parents[2] / "roles/firewall/templates"
CLIENT, STRANGER = "192.0.2.2", "192.0.2.3"
PORTS = {"ssh": 22, "database": 5432, "door": 443, "left": 9102, "undeclared": 9101, "sometimes": 6881}
SOMETIMES = {"name": "sometimes", "ports": [PORTS["sometimes"]], "set": "peers"}
LISTEN = """
import socket, time
for port in %r:
    globals()[f"s{port}"] = socket.create_server(("", port), backlog=8)
print("ready", flush=True)
time.sleep(60)
"""
CONNECT = """
import socket, sys
probe = socket.socket()
probe.settimeout(0.5)
sys.exit(probe.connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)
"""


def sh(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True, capture_output=True, text=True)


def render(name: str, **variables: Any) -> str:
    text = trust_as_template((TEMPLATES / name).read_text())
    return str(Templar(loader=DataLoader(), variables=variables).template(text))


@pytest.fixture(scope="module")
def namespaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The host (under its address), a client and a stranger; the host has the rules and a listener on every port."""
    init_plugin_loader([])  # the templates take something from a collection
    etc = tmp_path_factory.mktemp("etc")
    for folder in ("rules", "sets"):
        (etc / "firewall" / folder).mkdir(parents=True)
    (etc / "main.nft").write_text(
        render(
            "firewall.nft.j2",
            etc_dir=str(etc),
            firewall_open_tcp_ports=[PORTS["ssh"]],
            firewall_trusted_networks=[],
        )
    )
    for rule in (
        {"name": "database", "ports": [PORTS["database"]], "sources": [CLIENT]},
        {"name": "door", "ports": [PORTS["door"]], "sources": ["0.0.0.0/0", "::/0"]},
        # Its last consumer went away.
        {"name": "left", "ports": [PORTS["left"]], "sources": []},
        # Open to whom its service puts into a set, for as long as it does.
        SOMETIMES,
    ):
        (etc / f"firewall/rules/{rule['name']}.nft").write_text(render("rule.nft.j2", firewall_rule=rule))
    (etc / "firewall/sets/sometimes.nft").write_text(render("set.nft.j2", firewall_rule=SOMETIMES))
    own = f"fw{os.getpid()}"
    names = {"192.0.2.1": f"{own}-host", CLIENT: f"{own}-client", STRANGER: f"{own}-stranger"}
    host = names["192.0.2.1"]
    listener = None
    try:
        for name in names.values():
            sh(f"ip netns add {name}; ip -n {name} link set lo up")
        sh(f"ip -n {host} link add br0 type bridge; ip -n {host} link set br0 up")
        sh(f"ip -n {host} addr add 192.0.2.1/24 dev br0")
        for number, address in enumerate((CLIENT, STRANGER)):
            sh(f"ip -n {host} link add v{number} type veth peer name eth0 netns {names[address]}")
            sh(f"ip -n {host} link set v{number} master br0 up; ip -n {names[address]} link set eth0 up")
            sh(f"ip -n {names[address]} addr add {address}/24 dev eth0")
        sh(f"ip netns exec {host} nft --file {etc}/main.nft")
        listener = subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, "-c", LISTEN % list(PORTS.values())],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert listener.stdout and listener.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 10
        while not reachable(names[CLIENT], PORTS["ssh"]) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield names
    finally:
        if listener:
            listener.kill()
            listener.wait()
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def reachable(namespace: str, port: int, address: str = "192.0.2.1") -> bool:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", CONNECT, address, str(port)]
    return subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize(
    ("who", "what"),
    [(CLIENT, {"ssh", "door", "database"}), (STRANGER, {"ssh", "door"})],
    ids=["client", "stranger"],
)
def test_only_what_was_opened_can_be_reached(namespaces: dict[str, str], who: str, what: set[str]) -> None:
    """T1: a port nobody opened is closed although something listens there; one opened for a client is for it only."""
    assert {name for name, port in PORTS.items() if reachable(namespaces[who], port)} == what


def test_a_host_reaches_itself(namespaces: dict[str, str]) -> None:
    assert reachable(namespaces["192.0.2.1"], PORTS["undeclared"], "127.0.0.1")


def test_a_set_opens_a_port_for_a_while(namespaces: dict[str, str]) -> None:
    host, port = namespaces["192.0.2.1"], PORTS["sometimes"]
    assert not reachable(namespaces[CLIENT], port)
    sh(f"ip netns exec {host} nft add element inet onprem_llm peers '{{ {CLIENT} }}'")
    assert reachable(namespaces[CLIENT], port)
    assert not reachable(namespaces[STRANGER], port)
    sh(f"ip netns exec {host} nft flush set inet onprem_llm peers")
    assert not reachable(namespaces[CLIENT], port)
