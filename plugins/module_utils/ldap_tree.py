# SPDX-License-Identifier: GPL-3.0-or-later
"""Which operations bring a directory to the entries that are wanted. Pure: nothing here talks to a server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, list[str]]

# Values of these are names of entries: `UID=Alice, ou=people` is the same as `uid=alice,ou=people`.
NAMES = frozenset({"member", "uniquemember", "owner", "manager", "seealso", "olcrootdn", "olcppolicydefault"})
SECRET = frozenset({"userpassword", "olcrootpw"})
HIDDEN = "********"

# In cn=config the server numbers values and entries that have an order: `{0}to * by ...`, `olcOverlay={1}refint`.
INDEX = re.compile(r"^\{-?\d+\}")


class TreeError(Exception):
    """The wanted entries contradict each other, or the server refused one."""


@dataclass(frozen=True)
class Wanted:
    """An entry as it shall be. An attribute that no field names is left alone."""

    dn: str
    attributes: Values = field(default_factory=dict)  # exactly these values; none removes the attribute
    includes: Values = field(default_factory=dict)  # at least these
    excludes: Values = field(default_factory=dict)  # none of these
    password: str | None = None  # kept as given
    initial_password: str | None = None  # given to an entry that has none; the person may change it


@dataclass(frozen=True)
class Found:
    """An entry as the server has it."""

    dn: str
    attributes: Values


@dataclass(frozen=True)
class Change:
    action: str  # add | delete | replace
    attribute: str
    values: list[str]


@dataclass(frozen=True)
class Add:
    dn: str
    attributes: Values


@dataclass(frozen=True)
class Modify:
    dn: str
    changes: list[Change]
    before: Values


@dataclass(frozen=True)
class Delete:
    dn: str


Operation = Add | Modify | Delete


@dataclass(frozen=True)
class Plan:
    operations: list[Operation]
    unlisted: list[str]  # entries of the containers that nobody asked for


def split_dn(dn: str) -> list[str]:
    """The parts of a name; a comma behind a backslash belongs to a value."""
    return [part.strip() for part in re.split(r"(?<!\\),", dn)]


def normal_dn(dn: str, *, indexes: bool = True) -> str:
    """The same text for every spelling of a name. ``indexes=False`` also leaves out the server's numbers."""
    parts = []
    for part in split_dn(dn):
        pairs = []
        for pair in re.split(r"(?<!\\)\+", part):
            name, _equals, value = pair.partition("=")
            value = value.strip().lower()
            pairs.append(f"{name.strip().lower()}={value if indexes else INDEX.sub('', value)}")
        parts.append("+".join(sorted(pairs)))
    return ",".join(parts)


def below(dn: str, container: str) -> bool:
    """Whether ``dn`` lies anywhere below ``container``. Both normal."""
    return dn.endswith("," + container)


def normal_value(attribute: str, value: str) -> str:
    """The same text for values the server holds for equal."""
    if attribute.lower() in NAMES:
        return normal_dn(value)
    return value.lower() if attribute.lower() == "objectclass" else value


def is_numbered(values: Sequence[str]) -> bool:
    return bool(values) and all(INDEX.match(value) for value in values)


def without_numbers(values: Sequence[str]) -> list[str]:
    """Values the server numbered, in their order and without the numbers."""
    return [INDEX.sub("", value) for value in sorted(values, key=lambda v: int(v[1 : v.index("}")]))]


def values_of(entry: Found, attribute: str) -> list[str]:
    for name, values in entry.attributes.items():
        if name.lower() == attribute.lower():
            return values
    return []


def changes_of_exact(attribute: str, wanted: Sequence[str], found: Sequence[str]) -> list[Change]:
    if is_numbered(found):
        if list(wanted) == without_numbers(found):
            return []
        return [Change("replace", attribute, list(wanted))]
    have = {normal_value(attribute, value): value for value in found}
    want = {normal_value(attribute, value): value for value in wanted}
    missing = [value for key, value in want.items() if key not in have]
    surplus = [value for key, value in have.items() if key not in want]
    if attribute.lower() == "objectclass":  # a class somebody added, say posixAccount, is theirs to keep
        surplus = []
    if not missing and not surplus:
        return []
    if len(surplus) == len(have):  # nothing stays
        return [Change("replace", attribute, list(want.values()))]
    # Adding comes first: an attribute that must have a value is at no moment without one.
    changes = [Change("add", attribute, missing)] if missing else []
    return changes + ([Change("delete", attribute, surplus)] if surplus else [])


def changes_of_some(
    attribute: str, includes: Sequence[str], excludes: Sequence[str], found: Sequence[str]
) -> list[Change]:
    plain = without_numbers(found) if is_numbered(found) else found
    have = {normal_value(attribute, value): value for value in plain}
    want = {normal_value(attribute, value): value for value in includes}
    refuse = {normal_value(attribute, value) for value in excludes}
    missing = [value for key, value in want.items() if key not in have]
    surplus = [value for key, value in have.items() if key in refuse and key not in want]
    changes = [Change("add", attribute, missing)] if missing else []
    return changes + ([Change("delete", attribute, surplus)] if surplus else [])


def add_of(wanted: Wanted) -> Add:
    attributes = {name: list(values) for name, values in wanted.attributes.items() if values}
    for name, values in wanted.includes.items():
        attributes[name] = attributes.get(name, []) + [v for v in values if v not in attributes.get(name, [])]
    password = wanted.password or wanted.initial_password
    if password:
        attributes["userPassword"] = [password]
    return Add(wanted.dn, {name: values for name, values in attributes.items() if values})


def modify_of(wanted: Wanted, found: Found, *, password_differs: bool) -> Modify | None:
    changes: list[Change] = []
    for name, values in wanted.attributes.items():
        changes += changes_of_exact(name, values, values_of(found, name))
    for name in dict.fromkeys([*wanted.includes, *wanted.excludes]):
        given = wanted.includes.get(name, []), wanted.excludes.get(name, [])
        changes += changes_of_some(name, *given, values_of(found, name))
    if wanted.password and password_differs:
        changes.append(Change("replace", "userPassword", [wanted.password]))
    if wanted.initial_password and not values_of(found, "userPassword"):
        changes.append(Change("add", "userPassword", [wanted.initial_password]))
    if not changes:
        return None
    touched = {change.attribute for change in changes}
    return Modify(found.dn, changes, {name: values_of(found, name) for name in sorted(touched)})


def loose_dn(dn: str) -> str:
    """The name with its own number left out; the parents keep theirs."""
    first, *parents = split_dn(dn)
    return normal_dn(",".join([normal_dn(first, indexes=False), *parents]))


class Directory:
    """The entries found, by name."""

    def __init__(self, entries: Iterable[Found]) -> None:
        self.exact = {normal_dn(entry.dn): entry for entry in entries}
        self.loose: dict[str, list[Found]] = {}
        for entry in self.exact.values():
            self.loose.setdefault(loose_dn(entry.dn), []).append(entry)

    def get(self, dn: str) -> Found | None:
        """The entry of that name. A name without a number finds the one entry the server numbered."""
        name = normal_dn(dn)
        loose = self.loose.get(name, [])
        return self.exact.get(name) or (loose[0] if len(loose) == 1 else None)


def make_plan(
    wanted: Sequence[Wanted],
    found: Iterable[Found],
    *,
    containers: Sequence[str] = (),
    prune: bool = False,
    passwords_differ: Iterable[str] = (),
) -> Plan:
    """The operations, in the order of ``wanted`` (parents before children), deletions last.

    ``passwords_differ`` names the entries that refused their ``password``.
    """
    names = [normal_dn(entry.dn) for entry in wanted]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise TreeError(f"these entries are given more than once: {'; '.join(twice)}")

    directory = Directory(found)
    differ = {normal_dn(dn) for dn in passwords_differ}
    operations: list[Operation] = []
    for entry in wanted:
        present = directory.get(entry.dn)
        if present is None:
            operations.append(add_of(entry))
        elif modify := modify_of(entry, present, password_differs=normal_dn(entry.dn) in differ):
            operations.append(modify)

    roots = [normal_dn(container) for container in containers]
    listed = set(names)
    unlisted = [
        entry.dn for name, entry in directory.exact.items() if name not in listed and any(below(name, r) for r in roots)
    ]
    unlisted.sort(key=lambda dn: (-len(split_dn(dn)), dn))  # children before their parents
    if prune:
        operations += [Delete(dn) for dn in unlisted]
    return Plan(operations, unlisted)


def shown(attribute: str, values: Sequence[str]) -> list[str]:
    """Values fit for a log."""
    return [HIDDEN] if values and attribute.lower() in SECRET else list(values)


def after(operation: Modify) -> Values:
    """The touched attributes once the operation is done."""
    result = {name: list(values) for name, values in operation.before.items()}
    for change in operation.changes:
        current = result.get(change.attribute, [])
        if change.action == "replace":
            result[change.attribute] = list(change.values)
        elif change.action == "add":
            result[change.attribute] = current + list(change.values)
        else:
            gone = {normal_value(change.attribute, value) for value in change.values}
            result[change.attribute] = [v for v in current if normal_value(change.attribute, v) not in gone]
    return result


def text(dn: str, attributes: Values, *, marks: Mapping[str, str] | None = None) -> str:
    lines = [f"dn: {dn}"]
    for name, values in attributes.items():
        lines += [f"{name}: {value}" for value in ([marks[name]] if marks and name in marks else shown(name, values))]
    return "\n".join(lines) + "\n\n"


def difference(operations: Iterable[Operation]) -> dict[str, str]:
    """What changes, as text before and after; of a password only that it changes."""
    before, later = "", ""
    for operation in operations:
        if isinstance(operation, Add):
            later += text(operation.dn, operation.attributes)
        elif isinstance(operation, Delete):
            before += text(operation.dn, {})
        else:
            touched = [change.attribute for change in operation.changes if change.attribute.lower() in SECRET]
            before += text(operation.dn, operation.before)
            later += text(operation.dn, after(operation), marks={name: f"{HIDDEN} (changed)" for name in touched})
    return {"before": before, "after": later}


def summary(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """What was done, without values."""
    result: list[dict[str, Any]] = []
    for operation in operations:
        if isinstance(operation, Add):
            result.append({"action": "add", "dn": operation.dn, "attributes": list(operation.attributes)})
        elif isinstance(operation, Delete):
            result.append({"action": "delete", "dn": operation.dn, "attributes": []})
        else:
            touched = list(dict.fromkeys(change.attribute for change in operation.changes))
            result.append({"action": "modify", "dn": operation.dn, "attributes": touched})
    return result
