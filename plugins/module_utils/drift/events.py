# SPDX-License-Identifier: GPL-3.0-or-later
"""Events of a run in check mode, as ansible-runner gives them: what would change, what ended early, what is ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.drift.difference import Broken, Difference, unified

Result = Mapping[str, Any]
ENDED = ("runner_on_ok", "runner_on_failed", "runner_on_unreachable")


@dataclass
class Known:
    """What the tasks of a run answer for on one host, whether it differs or not."""

    files: set[str] = field(default_factory=set)
    units: set[str] = field(default_factory=set)
    packages: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, list[str]]:
        return {name: sorted(values) for name, values in vars(self).items()}


@dataclass
class Looked:
    """The outcome of one run."""

    differences: list[Difference] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
    broken_in: dict[str, str] = field(default_factory=dict)  # host: the play in which it ended
    unreachable: set[str] = field(default_factory=set)


def read(events: Iterable[Mapping[str, Any]]) -> Looked:
    """What a run tells. Of a host that Ansible counts as lost the last failure is the reason: what a task expects
    (``rescue``, ``ignore_unreachable``), and a host that is asked for another one, fails too and stops nothing."""
    looked, counted = Looked(), dict[str, int]()
    failed: dict[str, tuple[Broken, str]] = {}
    latest: dict[str, tuple[str, str, int]] = {}  # host: the play and the task that it was in last, and when
    for number, event in enumerate(events):
        data = event.get("event_data") or {}
        kind = event.get("event")
        if data.get("host"):
            latest[str(data["host"])] = (str(data.get("play")), str(data.get("task_uuid")), number)
        if kind == "playbook_on_stats":
            looked.differences += hidden(data.get("changed") or {}, counted)
            looked.unreachable.update(data.get("dark") or {})
            lost = {**(data.get("failures") or {}), **(data.get("dark") or {})}
            looked.broken += [failed[host][0] for host in failed if host in lost]
            looked.broken_in |= {host: failed[host][1] for host in failed if host in lost}
            taken_along(looked, failed, latest)
        if kind not in ENDED or not data.get("host"):
            continue
        host, result = str(data["host"]), data.get("res") or {}
        found_by = f"{data.get('role') or data.get('play')}: {data.get('task')}"
        known = looked.known.setdefault(host, Known())
        action = str(data.get("resolved_action") or data.get("task_action") or "")
        if kind != "runner_on_ok":
            if not data.get("ignore_errors"):
                failed[host] = (Broken(host, found_by, reason(result)), str(data.get("play")))
            continue
        for one in parts(result):
            learn(known, action, one)
            if one.get("changed"):
                looked.differences += [
                    Difference(host, what, how, found_by, diff) for what, how, diff in differences(action, one, data)
                ]
        counted[host] = counted.get(host, 0) + bool(result.get("changed"))
    # Two tasks may tell the same, such as one that compares and one that would switch.
    looked.differences = list({(one.host, one.what, one.how): one for one in reversed(looked.differences)}.values())[
        ::-1
    ]
    return looked


def taken_along(
    looked: Looked, failed: Mapping[str, tuple[Broken, str]], latest: Mapping[str, tuple[str, str, int]]
) -> None:
    """Hosts of the same play that got no further either: what fails for one there (``run_once``) ends it for all."""
    for host in list(looked.broken_in):
        broken, play = failed[host]
        _, task, end = latest[host]
        for other, (its_play, its_task, its_end) in latest.items():
            if other not in looked.broken_in and its_play == play and its_task != task and its_end < end:
                looked.broken.append(Broken(other, broken.found_by, f"it failed on {host}: {broken.reason}"))
                looked.broken_in[other] = play


def hidden(changed: Mapping[str, int], counted: Mapping[str, int]) -> list[Difference]:
    """Changes that Ansible counted and whose tasks hide what they return (``no_log``)."""
    more = {host: number - counted.get(host, 0) for host, number in changed.items()}
    return [
        Difference(host, "a task that hides its result", f"would make {number} changes", "site.yml")
        for host, number in more.items()
        if number > 0
    ]


def parts(result: Result) -> Iterator[Result]:
    """The results of a loop's items, or the result itself."""
    items = result.get("results")
    if isinstance(items, list) and items and all(isinstance(one, dict) and "ansible_loop_var" in one for one in items):
        yield from items
    else:
        yield result


def reason(result: Result) -> str:
    """Why a task failed, on one line."""
    said = [str(one.get("msg", "")) for one in parts(result) if one.get("failed")] or [str(result.get("msg", ""))]
    return " ".join(" ".join(said).split()) or "it gave no reason"


# --- what is ours


def learn(known: Known, action: str, result: Result) -> None:
    """Note what a task's arguments name."""
    given = (result.get("invocation") or {}).get("module_args") or {}
    short = action.rpartition(".")[2]
    if short in ("apt", "packages"):
        known.packages.update(name.partition("=")[0] for name in names_of(given.get("name") or given.get("package")))
        return
    if short == "stat":
        return
    if short == "group":
        known.groups.update(names_of(given.get("name")))
        return
    for file in [result.get("dest"), result.get("path"), given.get("dest"), given.get("path")]:
        if isinstance(file, str) and file.startswith("/") and given.get("state") != "absent":
            known.files.add(file)
    known.files.update(given.get("links") or {})
    for key, name, into in (
        ("files", "path", known.files),
        ("units", "name", known.units),
        ("services", "unit", known.units),
    ):
        into.update(str(one[name]) for one in given.get(key) or [] if isinstance(one, dict) and one.get(name))


def names_of(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value or []]


# --- what differs: (what, how, diff)

Row = tuple[str, str, str]


def differences(action: str, result: Result, task: Mapping[str, Any]) -> list[Row]:
    """The objects that a task would change. Never empty: a change whose object is not known has the task's name."""
    rows = READERS.get(action.rpartition(".")[2], lambda _: [])(result) or of_diff(result)
    if rows:
        return rows
    label = result.get("_ansible_item_label") or result.get("item")
    what = next(
        (str(result[key]) for key in ("dest", "path", "unit", "name") if isinstance(result.get(key), str)),
        str(label) if isinstance(label, (str, int)) else "",
    )
    return [(what, f"would be changed: {task.get('task')}", "")] if what else [(str(task.get("task")), "is owed", "")]


def of_diff(result: Result) -> list[Row]:
    """From what a module shows with --diff."""
    shown = result.get("diff") or []
    given = (result.get("invocation") or {}).get("module_args") or {}
    # A template's own header after the change is that of a temporary file.
    own = next((one for one in (result.get("dest"), given.get("dest"), result.get("path")) if one), "")
    rows: list[Row] = []
    for one in shown if isinstance(shown, list) else [shown]:
        before, after = one.get("before"), one.get("after")
        header = str(own or one.get("after_header") or one.get("before_header") or "").partition(" (")[0]
        if isinstance(before, dict) and isinstance(after, dict):
            changes = [f"{key} {before.get(key)} -> {after[key]}" for key in after if before.get(key) != after[key]]
            if changes:
                rows.append((str(after.get("path") or header), ", ".join(changes), ""))
        elif isinstance(before, str) and isinstance(after, str) and before != after:
            rows.append((header, *of_text(before, after)))
    return [row for row in rows if row[0]]


def of_text(before: str, after: str) -> tuple[str, str]:
    """How a file differs, and the difference. Changes of attributes stand as comments before the new content."""
    notes = re.match(r"(?:# (?:mode|owner|group) \S+ -> \S+\n)*", after)
    said = notes.group().splitlines() if notes else []
    content = after[notes.end() :] if notes else after
    how = [line[2:] for line in said]
    if before != content:
        how.insert(0, "is not there" if not before else "content")
    return ", ".join(how), unified(before, content) if before and before != content else ""


def of_units(result: Result) -> list[Row]:
    return [
        (unit, f"{'; '.join(owed.get('reasons') or [])}; owed: {', '.join(owed.get('actions') or [])}", "")
        for unit, owed in (result.get("actions") or {}).items()
    ]


def of_switch(result: Result) -> list[Row]:
    """A component that would be switched: each reason names its link, file or unit, and the diff has their content."""
    component = str(((result.get("invocation") or {}).get("module_args") or {}).get("component", "rollout"))
    texts = {what: diff for what, _, diff in of_diff(result)}
    rows = []
    for reason in result.get("reasons") or []:
        match = re.match(r"(/\S+?|\S+[.]service):? (.+)", str(reason))
        what, how = match.groups() if match else (component, str(reason))
        rows.append((what, how, texts.get(what, "")))
    return rows


def of_entries(result: Result) -> list[Row]:
    """Entries of a directory. Their values stay on the host."""
    return [
        (str(one.get("dn")), f"{one.get('action')}: {', '.join(one.get('attributes') or []) or 'the entry'}", "")
        for one in result.get("operations") or []
    ]


def of_models(result: Result) -> list[Row]:
    """Models of which something would be fetched: each note names one."""
    rows = []
    for note in result.get("notes") or []:
        name = re.match(r"(?:model )?'?([\w.-]+)'?:? ", str(note))
        rows.append((f"model {name[1]}" if name else "models", f"its files are not as published: {note}", ""))
    return rows


def of_packages(result: Result) -> list[Row]:
    given = (result.get("invocation") or {}).get("module_args") or {}
    wanted = {name.partition("=")[0] for name in names_of(given.get("name") or given.get("package"))}
    rows = []
    for name, old, new in re.findall(r"(?m)^Inst (\S+)(?: \[(\S+)\])? \((\S+)", str(result.get("stdout") or "")):
        if name in wanted:
            rows.append((f"package {name}", f"version {old} -> {new}" if old else "is not installed", ""))
    return rows


def of_extension(result: Result) -> list[Row]:
    given = (result.get("invocation") or {}).get("module_args") or {}
    before = result.get("prev_version") or "none"
    return [
        (
            f"extension {result.get('ext') or given.get('name')} of the database {given.get('login_db')}",
            f"version {before} -> {result.get('version') or given.get('version')}",
            "",
        )
    ]


def of_database(result: Result) -> list[Row]:
    given = (result.get("invocation") or {}).get("module_args") or {}
    return [(f"database {result.get('db') or given.get('name')}", "is not there, or not as described", "")]


def of_role(result: Result) -> list[Row]:
    given = (result.get("invocation") or {}).get("module_args") or {}
    wanted = given.get("role_attr_flags") or ""
    return [(f"database role {result.get('user') or given.get('name')}", f"password or rights differ; {wanted}", "")]


def of_privileges(result: Result) -> list[Row]:
    given = (result.get("invocation") or {}).get("module_args") or {}
    shall = "shall not have" if given.get("state") == "absent" else "shall have"
    what = f"{given.get('type')} {given.get('objs')}"
    return [(what, f"{given.get('roles')} {shall} {given.get('privs')}", "")]


READERS = {
    "debug": lambda result: [(one, "is owed", "") for one in [str(result.get("msg") or "")] if one],
    "service_current": of_units,
    "rollout_switch": of_switch,
    "model_transfer": of_models,
    "ldap_tree": of_entries,
    "apt": of_packages,
    "packages": of_packages,
    "postgresql_ext": of_extension,
    "postgresql_db": of_database,
    "postgresql_user": of_role,
    "postgresql_privs": of_privileges,
}
