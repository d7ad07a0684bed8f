# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at the ports of one host from another: open where declared, closed everywhere else."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.doctor import sockets
from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import Finding, failed, not_asked, ok

THREADS = 64


@dataclass(frozen=True)
class Target:
    """A host to look at, as it described itself."""

    host: str
    address: str
    listeners: tuple[sockets.Listener, ...] = ()
    declared: tuple[sockets.Declared, ...] = ()
    trusted: tuple[str, ...] = ()  # networks that may reach every port
    ports: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        ports = {one.port for one in self.listeners} | {entry.port for entry in self.declared}
        object.__setattr__(self, "ports", tuple(sorted(ports)))


def target(raw: Mapping[str, Any]) -> Target:
    return Target(
        host=str(raw["host"]),
        address=str(raw["address"]),
        listeners=tuple(
            sockets.Listener(str(one["address"]), int(one["port"]), str(one["process"])) for one in raw["listeners"]
        ),
        declared=tuple(sockets.declared(raw["declared"])),
        trusted=tuple(str(network) for network in raw.get("trusted") or []),
    )


def targets(results: Iterable[Mapping[str, Any]], looker: str, lookers: int) -> list[dict[str, Any]]:
    """Whom ``looker`` looks at: the hosts before it in a ring, so that each host is seen by ``lookers`` others.

    With looker '' (the controller) these are the hosts nobody else can look at.
    """
    ring = [dict(one["target"]) for one in results if "target" in one]
    names = [str(one["host"]) for one in ring]
    if not looker:
        return ring if len(ring) == 1 else []
    if looker not in names:
        return []
    at = names.index(looker)
    return [ring[at - step] for step in range(1, min(lookers, len(ring) - 1) + 1)]


def own_address(address: str) -> str:
    """The address this machine has on the way to ``address``; '' when there is no way. Sends nothing."""
    try:
        family, _, _, _, sockaddr = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(sockaddr)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def connects(address: str, port: int, timeout: float) -> bool:
    try:
        with socket.create_connection((address, port), timeout):
            return True
    except OSError:
        return False


def scan(address: str, ports: Sequence[int], timeout: float) -> set[int]:
    """Ports that accept a connection. Asked at once: a port that drops packets costs the whole timeout."""
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        answers = pool.map(lambda port: connects(address, port, timeout), ports)
        return {port for port, answer in zip(ports, answers, strict=True) if answer}


def within(address: str, sources: Iterable[str]) -> bool:
    """Whether an address is one of some addresses, names or networks."""
    here = ipaddress.ip_address(address.partition("%")[0])
    for source in sources:
        try:
            if here in ipaddress.ip_network(source, strict=False):
                return True
        except ValueError:
            try:
                resolved = {info[4][0] for info in socket.getaddrinfo(source, None)}
            except OSError:
                continue
            if str(here) in resolved:
                return True
    return False


def judge(seen: Target, looker: str, address: str, reached: set[int], controller: bool = False) -> list[Finding]:
    """Compare what ``looker`` (with its ``address``) could connect to with what the site declares."""
    check = f"ports.from.{looker}"
    remedy = (
        "run the doctor from a controller beside the fleet, or with a second host, so that somebody can look"
        f" at {seen.host}"
    )
    if not address:
        return [not_asked(check, seen.host, f"{looker} has no way to {seen.address}", remedy)]
    if address == seen.address or ipaddress.ip_address(address).is_loopback:
        return [
            not_asked(check, seen.host, f"{looker} is {seen.host} itself and cannot look at it from outside", remedy)
        ]
    if controller and not reached:
        return [
            not_asked(check, seen.host, f"none of its ports answers {looker} ({address}); there may be no way", remedy)
        ]
    free = within(address, seen.trusted)
    wanted = {entry.port: entry for entry in seen.declared}
    beyond = {one.port: one for one in seen.listeners if one.beyond}
    findings = []
    good_open, good_closed = [], []
    for port in seen.ports:
        entry = wanted.get(port)
        name = sockets.named(one for one in seen.listeners if one.port == port) if port in beyond else str(port)
        allowed = free or (entry is not None and (not entry.sources or within(address, entry.sources)))
        if port in reached and not allowed:
            meant = f"it is declared for {', '.join(entry.sources)} only" if entry else "it is not declared"
            findings.append(
                failed(
                    f"{check}.{port}",
                    seen.host,
                    f"port {name} is open to {looker} ({address}), but {meant}",
                    f"run site.yml for {seen.host} (roles firewall and the service's own), or bind the"
                    " service to 127.0.0.1; if it is meant to be reachable by all, add it to"
                    " firewall_open_tcp_ports",
                )
            )
        # What is only there for certain hosts at certain times, as a transfer, may have ended since it was seen.
        elif (
            port not in reached
            and entry
            and allowed
            and not free
            and port in beyond
            and not (entry.optional and entry.sources)
        ):
            findings.append(
                failed(
                    f"{check}.{port}",
                    seen.host,
                    f"port {name} is declared for {looker} ({address}) and listens, but {looker} cannot connect",
                    f"run site.yml for {seen.host}; then look at what stands between: nft list ruleset on"
                    f" {seen.host}, routes",
                )
            )
        elif port in reached:
            good_open.append(name)
        else:
            good_closed.append(name)
    if not findings:
        detail = (
            f"seen from {address}: open {', '.join(good_open) or 'none'}; closed {', '.join(good_closed) or 'none'}"
        )
        findings.append(ok(check, seen.host, detail))
    return findings


def look(seen: Target, looker: str, timeout: float, controller: bool = False) -> list[Finding]:
    address = own_address(seen.address)
    return judge(seen, looker, address, scan(seen.address, seen.ports, timeout) if address else set(), controller)
