# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of what serves, on a port of its own, that answers while the original is replaced.

For a model that one host alone serves. The copy is of the present configuration, not of the next one: it answers as
the original did, and the switch, its gate and the way back are the same with it or without.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ansible_collections.onprem.llm.plugins.module_utils.placement import memory
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import Configuration, File, Record, Service

SUFFIX = "--beside"
FURTHER = 1000  # from the original's port to the copy's


class BesideError(Exception):
    """No copy can be made. The text says of what and why."""


def renamed(text: str, model: str) -> str:
    """A unit's or a path's name for the copy: what names the instance gets the suffix, anything else stays."""
    return re.sub(rf"(?<=[/@]){re.escape(model)}(?=\.)", model + SUFFIX, text)


def files_of(now: Configuration, service: Service) -> list[File]:
    """The files that are this service's alone."""
    return [file for file in now.files if renamed(file.path, service.model) != file.path]


def server(url: str) -> str:
    """ADDRESS:PORT as nginx names it."""
    return urlsplit(url).netloc


def ports(wanted: Configuration, now: Record | None) -> list[int]:
    """Where requests may come in: to what is wanted, and to what it replaces or could go back to; copies too."""
    before = now and (now.back if not wanted.same(now.back) else now.previous)
    found = set()
    for one in (*wanted.services, *(before.services if before else ())):
        if port := urlsplit(one.url).port:
            found |= {port, port + FURTHER} if one.beside else {port}
    return sorted(found)


def taken(url: str) -> bool:
    """Whether somebody listens there."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=2).close()
    except OSError:
        return False
    return True


def copy(now: Configuration, service: Service) -> Configuration:
    """The copy's files and its service. BesideError when its files do not say which port it listens on."""
    port = urlsplit(service.url).port or 0
    other = urlunsplit(urlsplit(service.url)._replace(netloc=re.sub(r"\d+$", str(port + FURTHER), server(service.url))))
    own = files_of(now, service)
    names = {file.path: renamed(file.path, service.model) for file in own}
    found, changed = [], 0
    for file in own:
        text, hits = re.subn(rf"(--port[= ]['\"]?){port}\b", rf"\g<1>{port + FURTHER}", file.content)
        changed += hits
        for path, name in names.items():
            text = text.replace(path, name)
        found.append(File(names[file.path], text, file.mode))
    if port + FURTHER > 65535:
        raise BesideError(f"{service.unit} cannot be started beside itself: it has port {port}, the last one is 65535")
    if changed != 1:
        raise BesideError(
            f"{service.unit} cannot be started beside itself: its files say --port {port} {changed} times, not once"
        )
    beside = replace(service, unit=renamed(service.unit, service.model), url=other, restart_on=tuple(names.values()))
    return Configuration(now.version, {}, tuple(found), (beside,))


def left(now: Record) -> list[tuple[Service, tuple[str, ...], str]]:
    """Copies that are there: of which service, their files, and their units."""
    found: dict[str, tuple[Service, tuple[str, ...], str]] = {}
    for one in (now.good, now.previous, now.wanted, now.found):
        for service in one.services if one else ():
            paths = tuple(renamed(file.path, service.model) for file in files_of(one, service)) if one else ()
            there = tuple(path for path in paths if os.path.lexists(path))
            if there:
                found.setdefault(service.unit, (service, there, renamed(service.unit, service.model)))
    return list(found.values())


def moves(services: Sequence[Service]) -> dict[str, str]:
    """By a service's ADDRESS:PORT that of its copy."""
    ports = {server(one.url): (urlsplit(one.url).port or 0) + FURTHER for one in services}
    return {here: re.sub(r"\d+$", str(port), here) for here, port in ports.items()}


def fits(placements: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Of the placements of one host, by model: whether it could be there twice, as the plan counts memory."""
    taken: dict[str, int] = {}
    on_nodes: dict[int, int] = {}
    for one in placements:
        for device in one["memory"]:
            taken[device["device"]] = taken.get(device["device"], 0) + memory.used(device)
        for node in one.get("nodes") or []:
            on_nodes[node["node"]] = on_nodes.get(node["node"], 0) + node["used"]
    return {
        str(one["model"]): one["fits"] == "memory"
        and all(taken[d["device"]] + memory.used(d) <= d["capacity"] - d["reserve"] for d in one["memory"])
        and all(on_nodes[n["node"]] + n["used"] <= n["capacity"] for n in one.get("nodes") or [] if n["used"])
        for one in placements
    }
