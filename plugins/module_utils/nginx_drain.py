# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes servers out of nginx's upstreams and puts them back, in the text of a configuration.

A server is one line ``server ADDRESS:PORT [parameters];`` within ``upstream NAME { … }``; out of service it has the
parameter ``down``. Putting back what was taken out restores the text to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

UPSTREAM = re.compile(r"(?m)^[ \t]*upstream\s+(\S+)\s*\{[^}]*\}")
SERVER = re.compile(r"(?m)^([ \t]*server\s+)([^\s;]+)([^;\n]*);")


def _down(parameters: str) -> bool:
    return "down" in parameters.split()


def alone(text: str, servers: Collection[str], answers: Callable[[str], bool]) -> dict[str, str]:
    """Those of ``servers`` without which an upstream would have none, and the name of that upstream.

    Of the others only those count that ``answers`` says are there.
    """
    found: dict[str, str] = {}
    for upstream in UPSTREAM.finditer(text):
        up = [address for _, address, parameters in SERVER.findall(upstream[0]) if not _down(parameters)]
        mine = [address for address in up if address in servers]
        if mine and not any(answers(address) for address in up if address not in servers):
            found |= dict.fromkeys(mine, upstream[1])
    return found


def ports(text: str) -> dict[str, dict[str, int]]:
    """By address, without brackets, the ports of its models: an upstream of the role nginx is called engine_MODEL."""
    found: dict[str, dict[str, int]] = {}
    for upstream in UPSTREAM.finditer(text):
        for _, server, _ in SERVER.findall(upstream[0]):
            address, _, port = server.rpartition(":")
            if upstream[1].startswith("engine_") and port.isdigit():
                found.setdefault(address.strip("[]"), {})[upstream[1].removeprefix("engine_")] = int(port)
    return found


def named(text: str, servers: Collection[str]) -> list[str]:
    """Those of ``servers`` that an upstream names."""
    here = {address for upstream in UPSTREAM.finditer(text) for _, address, _ in SERVER.findall(upstream[0])}
    return sorted(here & set(servers))


def marked(text: str, servers: Collection[str], down: bool) -> str:
    """The text in which exactly these servers were taken out of all upstreams (``down``), or put back."""

    def server(line: re.Match[str]) -> str:
        lead, address, parameters = line.groups()
        if address not in servers or _down(parameters) == down:
            return line[0]
        parameters = parameters + " down" if down else re.sub(r"\s+down\b", "", parameters)
        return f"{lead}{address}{parameters};"

    return UPSTREAM.sub(lambda upstream: SERVER.sub(server, upstream[0]), text)


def moved(text: str, moves: Mapping[str, str]) -> str:
    """The text in which each server of ``moves`` has another address in all upstreams; the parameters stay."""

    def server(line: re.Match[str]) -> str:
        lead, address, parameters = line.groups()
        return f"{lead}{moves.get(address, address)}{parameters};"

    return UPSTREAM.sub(lambda upstream: SERVER.sub(server, upstream[0]), text)
