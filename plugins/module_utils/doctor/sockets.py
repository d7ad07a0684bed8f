# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens on TCP, read from /proc, and whether that is what the site declares."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import DoctorError, Finding, failed, ok

LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    address: str
    port: int
    process: str  # '' when it could not be told

    @property
    def beyond(self) -> bool:
        """Whether another machine can ask for it, firewall aside."""
        address = ipaddress.ip_address(self.address.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return not (mapped or address).is_loopback

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "beyond": self.beyond}


@dataclass(frozen=True)
class Declared:
    """A port the site means to be reachable; no sources means by anybody."""

    port: int
    sources: tuple[str, ...] = ()
    optional: bool = False  # nothing may listen there and that is fine


def declared(raw: Iterable[Mapping[str, Any]]) -> list[Declared]:
    """Ports as the inventory declares them; one port named twice may be reached by both."""
    merged: dict[int, Declared] = {}
    for entry in raw:
        try:
            port = int(entry["port"])
        except (KeyError, TypeError, ValueError):
            port = 0
        if not 0 < port < 65536:
            raise DoctorError(f"declared ports: {dict(entry)} names no port; write {{port: 443, sources: []}}")
        new = Declared(port, tuple(str(s) for s in entry.get("sources") or []), bool(entry.get("optional", False)))
        old = merged.get(port)
        if old:
            anybody = not old.sources or not new.sources
            sources = () if anybody else tuple(dict.fromkeys(old.sources + new.sources))
            new = Declared(port, sources, old.optional and new.optional)
        merged[port] = new
    return sorted(merged.values(), key=lambda entry: entry.port)


def decode(hexadecimal: str) -> tuple[str, int]:
    """An address of /proc/net/tcp: 32-bit words in the byte order of the machine, port in hexadecimal."""
    words, _, port = hexadecimal.partition(":")
    raw = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw), int(port, 16)


def parse(table: str) -> list[tuple[str, int, str]]:
    """(address, port, inode) of every listening socket in the text of /proc/net/tcp or tcp6."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == LISTEN:
            found.append((*decode(fields[1]), fields[9]))
    return found


def owners(proc: Path, inodes: set[str]) -> dict[str, str]:
    """Process names by socket inode. Processes that end meanwhile are passed over."""
    names: dict[str, str] = {}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            for descriptor in os.scandir(folder / "fd"):
                target = os.readlink(descriptor.path)
                inode = target[8:-1] if target.startswith("socket:[") else ""
                if inode in inodes and inode not in names:
                    names[inode] = (folder / "comm").read_text().strip()
        except OSError:
            continue
    return names


def listeners(proc: Path = Path("/proc")) -> list[Listener]:
    rows: list[tuple[str, int, str]] = []
    for name in ("tcp", "tcp6"):
        path = proc / "net" / name
        if path.exists():  # a kernel without IPv6 has no tcp6
            rows += parse(path.read_text())
    names = owners(proc, {inode for _, _, inode in rows})
    return sorted({Listener(a, p, names.get(i, "")) for a, p, i in rows}, key=lambda one: (one.port, one.address))


def named(found: Iterable[Listener]) -> str:
    """Ports with their processes, each port once."""
    names: dict[int, str] = {}
    for one in sorted(found, key=lambda listener: listener.port):
        names[one.port] = names.get(one.port) or one.process
    return ", ".join(f"{port} {name}".rstrip() for port, name in names.items()) or "none"


def compare(host: str, found: Sequence[Listener], wanted: Sequence[Declared]) -> list[Finding]:
    """What this host itself can say. Whether an undeclared port is open is for others to see."""
    beyond = [one for one in found if one.beyond]
    open_ports = {one.port for one in beyond}
    known = {entry.port for entry in wanted}
    undeclared = [one for one in beyond if one.port not in known]
    detail = f"beyond loopback: {named(beyond)}"
    if undeclared:
        detail += f"; not declared: {named(undeclared)} (see ports.from.* for whether the firewall closes it)"
    findings = [ok("ports.listening", host, detail)]
    for entry in wanted:
        if entry.port not in open_ports and not entry.optional:
            inside = [one for one in found if one.port == entry.port]
            findings.append(
                failed(
                    f"ports.listening.{entry.port}",
                    host,
                    f"port {entry.port} is declared, but "
                    + (f"{named(inside)} listens on loopback only" if inside else "nothing listens there"),
                    f"run site.yml for {host}; if the port is no longer meant to be used, take it out of"
                    " doctor_declared_ports",
                )
            )
    return findings
