# SPDX-License-Identifier: GPL-3.0-or-later
"""What a component of a host serves with, what it served with before, and where a switch between the two stands.

One JSON file per component. What it calls good has passed the gate; what is wanted has not yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import transfer

FORMAT = 1
GOOD, SWITCHING, WATCHING, RETURNING, FAILED = "good", "switching", "watching", "returning", "failed"
#: A run that finds one of these took over from one that broke off.
UNFINISHED = (SWITCHING, WATCHING, RETURNING)


class RecordError(Exception):
    """The record cannot be understood. The text says the way out."""


@dataclass(frozen=True)
class File:
    """A file of root's, and none of it secret: it is kept here to go back to."""

    path: str
    content: str
    mode: str = "0644"  # octal


@dataclass(frozen=True)
class Service:
    """A unit that serves one model. Without ``url`` it is started and stopped, never asked."""

    unit: str
    model: str = ""
    model_name: str = ""  # what requests call it
    kind: str = "chat"  # or embedding
    restart_on: tuple[str, ...] = ()
    url: str = ""
    ready: str = "/health"
    key_file: str = ""
    predicted: float | None = None  # decode speed that the plan expects, tok/s
    dimensions: int = 0  # of an embedding; 0: any
    beside: bool = False  # the plan says that a copy of it fits beside it


@dataclass(frozen=True)
class Configuration:
    """Everything that decides what is served, so that it can be put back without the inventory."""

    version: str
    links: Mapping[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    services: tuple[Service, ...] = ()
    speeds: Mapping[str, float] = field(default_factory=dict)  # decode speed by unit as measured, tok/s

    def same(self, other: Configuration | None) -> bool:
        """Whether both serve alike. What was measured or predicted does not count."""

        def core(one: Configuration) -> tuple[Any, ...]:
            units = sorted(service.unit for service in one.services)
            return one.version, dict(one.links), sorted(one.files, key=lambda file: file.path), units

        return other is not None and core(self) == core(other)

    def service(self, unit: str) -> Service | None:
        return next((one for one in self.services if one.unit == unit), None)


def configuration(said: Mapping[str, Any]) -> Configuration:
    return Configuration(
        version=str(said["version"]),
        links=dict(said["links"]),
        files=tuple(File(**file) for file in said["files"]),
        services=tuple(
            Service(**{**service, "restart_on": tuple(service.get("restart_on") or ())}) for service in said["services"]
        ),
        speeds=dict(said.get("speeds") or {}),
    )


@dataclass(frozen=True)
class Record:
    component: str
    state: str = GOOD
    since: float = 0.0  # seconds since the epoch: when this state began
    why: str = ""  # of a failure
    good: Configuration | None = None
    previous: Configuration | None = None
    wanted: Configuration | None = None  # what a switch that is not through leads to
    found: Configuration | None = None  # what served before the first switch; nobody has asked it anything
    processes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # by unit, while it is watched
    boot: str = ""  # of the host, in which these began

    @property
    def back(self) -> Configuration | None:
        """What serves again when the switch fails."""
        return self.good or self.found


def path_of(folder: str, component: str) -> Path:
    return Path(folder) / f"{component}.json"


def parse(text: str, path: str) -> Record:
    way_out = (
        f"Move it away (mv {path} {path}.old) and run site.yml: what serves is asked, and taken as good when it passes."
    )
    try:
        said = json.loads(text)
        if isinstance(said.get("format"), int) and said["format"] > FORMAT:
            raise RecordError(
                f"{path} has format {said['format']}, and this release knows {FORMAT}: a newer onprem.llm was here. "
                f"Use that one; to go on nevertheless: {way_out}"
            )
        parts = {name: said[name] and configuration(said[name]) for name in ("good", "previous", "wanted", "found")}
        if said["state"] not in (GOOD, FAILED, *UNFINISHED):
            raise ValueError(f"state {said['state']!r}")
        return Record(
            component=said["component"],
            state=said["state"],
            since=float(said["since"]),
            why=said["why"],
            processes={unit: (int(one[0]), int(one[1])) for unit, one in said["processes"].items()},
            boot=str(said.get("boot", "")),
            **parts,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path} is not what onprem.llm writes ({type(error).__name__}: {error}). {way_out}"
        ) from error


def plain(record: Record) -> dict[str, Any]:
    """As the file has it. ``version`` is for readers: that of what is good."""
    return {"format": FORMAT, "version": record.good.version if record.good else "", **asdict(record)}


def read(folder: str, component: str) -> Record | None:
    path = path_of(folder, component)
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    return parse(text, str(path))


def write(folder: str, record: Record) -> None:
    os.makedirs(folder, mode=0o755, exist_ok=True)
    transfer.write_atomically(
        path_of(folder, record.component), json.dumps(plain(record), indent=1, sort_keys=True) + "\n", 0o600
    )
