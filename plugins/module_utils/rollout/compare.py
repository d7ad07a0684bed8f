# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host differs from the configuration it shall serve with, and what bringing it there would replace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.onprem.llm.plugins.module_utils import config_files, service
from ansible_collections.onprem.llm.plugins.module_utils.rollout import beside
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import (
    FAILED,
    UNFINISHED,
    WATCHING,
    Configuration,
    File,
    Record,
    Service,
)

NO, START, SWAP, WATCH = "no", "start", "swap", "watch"


@dataclass(frozen=True)
class Gone:
    """A unit that shall serve no more, and the files and folders that are its own."""

    unit: str
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """A link or a file that is not as wanted. ``before`` is ``None`` where there is none."""

    path: str
    before: str | None
    after: str | None
    why: str


@dataclass(frozen=True)
class Look:
    """``needed``: ``no``; ``start``: nothing that serves is replaced; ``swap``: it is; ``watch``: only that is owed."""

    needed: str
    reasons: tuple[str, ...]
    changes: tuple[Change, ...]
    restarts: tuple[Service, ...]  # services that would be replaced, taken away, or asked anew


def leads_to(link: str, target: str) -> str:
    """The absolute path a link leads to, not followed further."""
    return os.path.normpath(os.path.join(os.path.dirname(link), target))


def link(path: str) -> str | None:
    """Where a link leads, as it says; ``None`` where there is none. OSError where something else is."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None


def wanted_file(file: File) -> config_files.Wanted:
    return config_files.Wanted(file.path, file.content, int(file.mode, 8))


def changes(wanted: Configuration) -> list[Change]:
    found = []
    for path, target in wanted.links.items():
        now = link(path)
        if now is None or leads_to(path, now) != leads_to(path, target):
            found.append(Change(path, now, target, f"{path} leads to {now or 'nothing'}, not to {target}"))
    for file in wanted.files:
        differs = config_files.compare(wanted_file(file))
        if differs:
            what = "is not there" if differs.before is None else "differs" if differs.content else differs.attributes[0]
            found.append(Change(file.path, differs.before, file.content, f"{file.path}: {what}"))
    return found


def leftovers(before: Configuration | None, wanted: Configuration, gone: Sequence[Gone] = ()) -> list[Gone]:
    """Units and files of ``before`` that ``wanted`` has no more, and those of ``gone``."""
    wanted_paths = {file.path for file in wanted.files}
    found = {one.unit: one.paths for one in gone if wanted.service(one.unit) is None}
    for old in before.services if before else ():
        if wanted.service(old.unit) is None:
            found.setdefault(old.unit, ())
    spare = tuple(file.path for file in before.files if file.path not in wanted_paths) if before else ()
    return [Gone(unit, paths) for unit, paths in found.items()] + ([Gone("", spare)] if spare else [])


def present(gone: Gone, state: Callable[[str], service.State]) -> bool:
    """Whether anything of it is left."""
    if any(os.path.lexists(path) for path in gone.paths):
        return True
    if not gone.unit:
        return False
    now = state(gone.unit)
    return now.active not in ("inactive", "not there yet") or now.enabled


def below(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)


def look(
    record: Record | None, wanted: Configuration, gone: Sequence[Gone], state: Callable[[str], service.State]
) -> Look:
    """``state`` says how a unit is. Reads only."""
    differing = changes(wanted)
    reasons = [change.why for change in differing]
    restarts: list[Service] = []
    before = record.back if record else None

    def answering(one: Service) -> Service:
        """The service where requests reach it until now: its port may be another one then."""
        old = before.service(one.unit) if before else None
        return replace(one, url=old.url if old and old.url else one.url)

    for one in wanted.services:
        now = state(one.unit)
        actions, why = service.owed(now, one.restart_on, [])
        reasons += [f"{one.unit}: {text}" for text in why]
        touched = any(below(change.path, one.restart_on) for change in differing)
        if now.active == "active" and (touched or "restart" in actions):
            # The copy is of what serves now, and for a while beside what shall serve: both must fit twice.
            old = record.good.service(one.unit) if record and record.good else None
            twice = one.beside and old is not None and old.beside and old.url == one.url
            restarts.append(replace(answering(one), beside=twice))
    left = [one for one in leftovers(before, wanted, gone) if present(one, state)]
    taken = []  # they answer until now, so their answers end first
    for spare in left:
        if spare.unit:
            reasons.append(f"{spare.unit}: it is placed here no more")
            if state(spare.unit).active == "active":
                old = before.service(spare.unit) if before else None
                taken.append(replace(old or Service(spare.unit), beside=False))
        differing += [Change(path, _text(path), None, f"{path} is left over") for path in spare.paths]
    reasons += _of_record(record, wanted)
    shown = (tuple(reasons), tuple(differing), (*restarts, *taken))
    if record and record.state in UNFINISHED:
        broke_off = f"the switch to {record.wanted.version if record.wanted else 'another version'} broke off"
        if record.state == WATCHING and wanted.same(record.wanted) and not (differing or restarts or left or reasons):
            # Requests may still be sent to the port of before.
            moved = [replace(answering(one), beside=False) for one in wanted.services if answering(one).url != one.url]
            return Look(WATCH, (f"{broke_off} while it was watched",), (), tuple(moved))
        # What serves may be neither the one nor the other: no copy of it.
        return Look(
            SWAP,
            (broke_off, *shown[0]),
            shown[1],
            (*(replace(answering(one), beside=False) for one in wanted.services), *taken),
        )
    if not reasons and not differing and not left:
        copies = tuple(f"{unit} still runs beside the original" for _, _, unit in beside.left(record)) if record else ()
        return Look(WATCH if copies else NO, copies, (), ())
    return Look(SWAP if restarts or taken else START, *shown)


def _of_record(record: Record | None, wanted: Configuration) -> list[str]:
    """What is owed though links, files and services may be as wanted."""
    if record is None:
        return ["nobody has asked yet whether what serves here is good"]
    if record.state == FAILED:
        return [f"the last switch failed: {record.why.splitlines()[0] if record.why else 'it does not say why'}"]
    if record.state not in UNFINISHED and not wanted.same(record.good):
        return [f"what serves here is recorded as {record.good.version if record.good else 'nothing'}"]
    return []


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{path}\n"


def missing(wanted: Configuration) -> list[str]:
    """Links whose targets are not there."""
    places = {path: leads_to(path, target) for path, target in wanted.links.items()}
    return [
        f"{place} (where {path} shall lead) is not there" for path, place in places.items() if not os.path.exists(place)
    ]


def snapshot(
    wanted: Configuration, gone: Sequence[Gone], state: Callable[[str], service.State]
) -> Configuration | None:
    """What serves now in place of ``wanted``; ``None`` where nothing serves, so that nothing could be gone back to."""
    services = tuple(one for one in wanted.services if state(one.unit).active == "active")
    services += tuple(Service(one.unit) for one in gone if state(one.unit).active == "active")
    if not services:
        return None
    links = {path: now for path in wanted.links if (now := link(path)) is not None}
    paths = [file.path for file in wanted.files]
    for one in gone:
        for path in one.paths:
            inside = (
                [path] if not os.path.isdir(path) else [os.path.join(path, name) for name in sorted(os.listdir(path))]
            )
            paths += [name for name in inside if os.path.isfile(name)]
    files = []
    for path in paths:
        if os.path.isfile(path):
            text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
            files.append(File(path, text, f"{os.stat(path).st_mode & 0o7777:04o}"))
    return Configuration("what was found", links, tuple(files), services)
