# SPDX-License-Identifier: GPL-3.0-or-later
"""What the model store works with: what is wanted, where it may come from, and how far it is.

A request is made on the controller, once for a run, and handed to the host; the host answers with a status. Both are
plain JSON, so that a person can read them at night.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from ansible_collections.onprem.llm.plugins.module_utils.hubs import File

T = TypeVar("T")


class StoreError(Exception):
    """A model cannot be had; the message names it, what stands in the way, and the way out."""


@dataclass(frozen=True)
class Source:
    """One place that may have a model's files."""

    name: str
    """As in ``model_sources``."""
    type: str
    """modelscope, huggingface, mirror or directory."""
    url: str = ""
    path: str = ""
    revision: str = ""
    """What the repository's revision is called there; empty: as in the model."""
    token: str = field(default="", repr=False)
    ca: str = ""
    """File on the host with the authority that vouches for the source; empty: those that the system trusts."""
    fleet: bool = False
    """A mirror on a host of the own fleet: no proxy, no rate limit, and it answers soon or is not there."""


@dataclass(frozen=True)
class Model:
    """One selection of files of one revision of one repository."""

    name: str
    repo: str
    revision: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    entry: str = ""
    commit: str = ""
    """The commit the revision stood for when it was listed; empty when no source names one."""
    files: tuple[File, ...] = ()
    """The files by path, as the first source that answered lists them; empty: not listed yet."""
    sources: tuple[Source, ...] = ()
    """Asked in this order, file by file. The fleet comes before all of them."""
    origin: str = ""
    """Name of the source that listed the files."""


@dataclass(frozen=True)
class Fleet:
    """The hosts that share this transfer, this one among them."""

    name: str
    """This host, as in the inventory."""
    address: str
    peers: tuple[tuple[str, str], ...] = ()
    """(name, address) of every host in the run's order, this one included: who comes first asks the hub."""
    swarm_port: int = 6881
    announce_port: int = 6882


@dataclass(frozen=True)
class Request:
    """Everything one host is asked to hold."""

    store: str
    """Folder of published models."""
    models: tuple[Model, ...]
    fleet: Fleet | None = None
    """None: this host fetches for itself."""
    parallel: int = 4
    """Files of a model fetched at once."""
    rate_limit: int = 0
    """Bytes per second from hubs, all files together; 0: none."""
    proxy: str = field(default="", repr=False)
    no_proxy: str = ""
    attempts: int = 5
    """Attempts in a row without progress before a source is left."""
    stall_seconds: int = 60
    minimum_rate: int = 1024
    """Bytes per second; slower than that for ``stall_seconds`` is a stall."""

    def digest(self) -> str:
        """Names what is asked for, without secrets: equal digests mean that a running transfer does it already."""
        plain = as_json(self)
        plain["proxy"] = ""
        for model in plain["models"]:
            for source in model["sources"]:
                source["token"] = ""
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


#: How a model, and the transfer as a whole, may stand. ``waiting``: another host of the fleet is fetching it.
STATES = ("queued", "fetching", "waiting", "verifying", "published", "failed")


@dataclass
class ModelStatus:
    """How far one model is."""

    name: str
    total: int = 0
    """Bytes of its files."""
    done: int = 0
    """Bytes that lie here, verified or on their way; never more than ``total``."""
    state: str = "queued"
    source: str = ""
    """Where bytes come from now: the name of a source, or ``fleet``."""
    message: str = ""
    """Why it failed, for people."""


@dataclass
class Status:
    """How far a transfer is; written to a file every second or two."""

    request: str
    """Digest of the request."""
    state: str = "running"
    """running, seeding (all is here, others still take from it), done, failed."""
    started: float = 0.0
    """Seconds since the epoch, as all times here."""
    updated: float = 0.0
    models: list[ModelStatus] = field(default_factory=list)
    from_hubs: int = 0
    """Bytes that came from sources outside the fleet."""
    from_fleet: int = 0
    to_fleet: int = 0
    rate: float = 0.0
    """Bytes per second that arrive, over the last half minute."""
    remaining: int = 0
    eta: float | None = None
    """Seconds; None while nothing is known."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pieces:
    """The tree hash of a file, as BitTorrent v2 defines it (BEP 52): SHA-256 over blocks of 16 KiB, joined in pairs.

    One list serves two ends: to find and mend the damaged pieces of a file, and to spread it over a fleet.
    """

    size: int
    """Bytes of a piece: a power of two from 16 KiB to 64 MiB."""
    hashes: tuple[str, ...]
    """One hexadecimal hash for each piece of the file, in order."""


def as_json(thing: Any) -> dict[str, Any]:
    """Plain data of one of the types above."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(thing)))
    return plain


def _take(kind: type[T], data: Mapping[str, Any]) -> dict[str, Any]:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in known}


def model_from(data: Mapping[str, Any]) -> Model:
    """A Model from plain data; keys it does not know are left out."""
    model = Model(**_take(Model, data))
    return replace(
        model,
        files=tuple(File(**_take(File, file)) for file in data.get("files") or ()),
        sources=tuple(Source(**_take(Source, source)) for source in data.get("sources") or ()),
    )


def request_from(data: Mapping[str, Any]) -> Request:
    """A Request from plain data."""
    request = Request(**_take(Request, data))
    fleet = data.get("fleet")
    return replace(
        request,
        models=tuple(model_from(model) for model in data["models"]),
        fleet=Fleet(**{**_take(Fleet, fleet), "peers": tuple((n, a) for n, a in fleet["peers"])}) if fleet else None,
    )


def status_from(data: Mapping[str, Any]) -> Status:
    """A Status from plain data."""
    plain = {item.name: data[item.name] for item in fields(Status) if item.name in data}
    return Status(**{**plain, "models": [ModelStatus(**model) for model in data.get("models") or ()]})
