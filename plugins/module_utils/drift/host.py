# SPDX-License-Identifier: GPL-3.0-or-later
"""What no task looks at, judged from what a host says of itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from ansible_collections.onprem.llm.plugins.module_utils.doctor import sockets
from ansible_collections.onprem.llm.plugins.module_utils.drift.difference import Difference, unified

DOWN = "does not run"
UNIT_PROPERTIES = ("Id", "LoadState", "ActiveState", "UnitFileState", "FragmentPath", "DropInPaths", "User")
# Where distributions and systemd itself put units.
SHIPPED = ("/usr/lib/systemd/", "/lib/systemd/", "/run/systemd/generator")
# Who is in one of these may read or become anybody.
MIGHTY = ("adm", "disk", "docker", "kmem", "lxd", "root", "shadow", "sudo", "wheel")
# Configuration that belongs to the site: nothing of ours reads it.
SITES_OWN = ("/etc/nftables.conf",)
# What a slim image leaves out of its packages.
LEFT_OUT = re.compile(r"/usr/share/(doc|man|locale|info|lintian|doc-base)/")


def units(host: str, shown: Iterable[Mapping[str, str]], files: Collection[str]) -> list[Difference]:
    """Units that do not run, are masked, replaced, or changed by a drop-in that is not among ``files``."""
    found = []
    for unit in shown:
        name, fragment = unit.get("Id", ""), unit.get("FragmentPath", "")
        if "masked" in (
            unit.get("LoadState"),
            unit.get("UnitFileState"),
            unit.get("UnitFileState", "").partition("-")[0],
        ):
            found.append(Difference(host, name, "is masked: nothing can start it"))
        elif fragment and fragment not in files and not fragment.startswith(SHIPPED):
            found.append(Difference(host, name, f"is defined by {fragment}, which nobody declared"))
        if unit.get("ActiveState") in ("inactive", "failed"):
            found.append(Difference(host, name, DOWN))
        found += [
            Difference(host, name, f"is changed by the drop-in {path}, which nobody declared")
            for path in unit.get("DropInPaths", "").split()
            if path not in files and not path.startswith(SHIPPED)
        ]
    return found


def written(files: Iterable[str]) -> set[str]:
    """Units whose own file is among ``files``, without templates: those are looked at by what runs of them."""
    found = (re.fullmatch(r"/etc/systemd/system/([^/]+(?<!@)[.](?:service|timer|socket))", path) for path in files)
    return {match[1] for match in found if match}


def users(host: str, names: Iterable[str], members: Mapping[str, Sequence[str]]) -> list[Difference]:
    """Users of services that are in a group that may do anything. ``members``: of each group of the host."""
    return [
        Difference(host, f"user {name}", f"runs a service and is in the group {group}")
        for name in sorted(set(names) - {"", "root"})
        for group in MIGHTY
        if name in members.get(group, ())
    ]


def groups(host: str, names: Iterable[str], members: Mapping[str, Sequence[str]]) -> list[Difference]:
    """Who is in a group that our files belong to. Services get such a group from their unit, so nobody need be."""
    return [
        Difference(host, f"group {group}", f"has the member {user}, who may read what is meant for services")
        for group in sorted(set(names) - {"", "root"})
        for user in members.get(group, ())
        if user != group
    ]


def kin(names: Iterable[str], installed: str) -> list[str]:
    """``names`` and what they need of the same source: a package may be a mere name for the one with the program.

    ``installed``: of each package its name, state, source and what it depends on, by tabs.
    """
    table = {row[0]: row[1:] for row in (line.split("\t") for line in installed.splitlines()) if len(row) == 4}
    found, new = set[str](), list(names)
    while new:
        name = new.pop()
        if name in found:
            continue
        found.add(name)
        _, source, needs = table.get(name, ("", "", ""))
        for one in re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", needs):
            if table.get(one, ())[:2] == ["installed", source]:
                new.append(one)
    return sorted(found)


def packages(host: str, policy: str) -> list[Difference]:
    """From `apt-cache policy`: installed in a version that is newer than all that the host's sources offer."""
    found = []
    for section in re.split(r"(?m)^(?=\S+:$)", policy):
        name = section.partition(":")[0]
        # Versions, newest first; the installed one is marked. Priority and source of each are on the lines below it.
        rows = re.findall(r"(?m)^ (\*\*\*|   ) (\S+) -?\d+\n((?:        .*\n?)*)", section)
        others = [version for mark, version, _ in rows if mark.strip() != "***"]
        if not rows or not others or rows[0][0] != "***":
            continue
        sources = [line.split(None, 1)[1].strip() for line in rows[0][2].splitlines() if line.strip()]
        if all(source == "/var/lib/dpkg/status" for source in sources):
            how = f"version {rows[0][1]} comes from no source of this host; the sources offer {others[0]}"
            found.append(Difference(host, f"package {name}", how))
    return found


def verified(host: str, said: str, files: Collection[str]) -> list[Difference]:
    """From `dpkg --verify`: files of packages that changed or are gone, but those that we write ourselves."""
    found = []
    for line in said.splitlines():
        match = re.match(r"(\S+)\s+(?:c\s+)?(/.*)$", line)
        if match and match[2] not in (*files, *SITES_OWN) and not LEFT_OUT.match(match[2]):
            how = "is missing" if match[1] == "missing" else "is not as its package brought it"
            found.append(Difference(host, match[2], how))
    return found


def ports(host: str, found: Iterable[sockets.Listener], declared: Collection[int]) -> list[Difference]:
    """Ports that other machines could ask, firewall aside, and nobody declared."""
    return [
        Difference(
            host, f"port {one.port}", f"{one.process or 'a process'} listens on {one.address}, which nobody declared"
        )
        for one in found
        if one.beyond and one.port not in declared
    ]


def rules(host: str, file: str, wanted: str, loaded: str) -> list[Difference]:
    """``wanted``: the table as the kernel shows it after loading ``file`` into an empty namespace."""
    if wanted == loaded:
        return []
    how = f"other rules are loaded than {file} says" if loaded else f"the rules of {file} are not loaded"
    return [Difference(host, "firewall rules", how, diff=unified(loaded, wanted))]


def foreign(host: str, found: Iterable[str], files: Collection[str]) -> list[Difference]:
    """Files in folders where only ours may be."""
    return [
        Difference(host, path, "nobody declared this file, and it lies where only declared ones may")
        for path in sorted(set(found) - set(files))
    ]


def folder(host: str, path: str, mode: int, owner: str, group: str, above: str) -> list[Difference]:
    """A folder in which others than root, or than the owner of the folder above it, may exchange files."""
    wrong = [f"belongs to {owner}"] if owner not in ("root", above) else []
    wrong += [f"may be changed by the group {group}"] if mode & 0o020 and group not in ("root", above) else []
    wrong += ["may be changed by everybody"] if mode & 0o002 else []
    return [Difference(host, path, f"{', '.join(wrong)} (mode {mode:04o})")] if wrong else []


def blank(host: str, path: str, text: str) -> list[Difference]:
    """A file that may hold comments only: what stands there wins over what is declared elsewhere. One that includes
    the folder of ours (PostgreSQL) may hold what it likes before that."""
    after = re.split(r"(?m)^\s*include_dir\s*=?\s*'conf[.]d'.*$", text)[-1]
    lines = [line for line in after.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    names = ", ".join(re.split(r"[\s=]", line.strip(), maxsplit=1)[0] for line in lines)
    return [Difference(host, path, f"sets {names}, which wins over what is declared")] if lines else []


def tree(host: str, root: str, since: float, entries: Iterable[tuple[str, float]]) -> list[Difference]:
    """An installed version: ``entries`` are its files and when each changed, ``since`` when it was complete."""
    later = sorted(path for path, changed in entries if changed > since)
    if not later:
        return []
    named = ", ".join(later[:3]) + (f" and {len(later) - 3} more" if len(later) > 3 else "")
    return [Difference(host, root, f"changed after it was installed: {named}")]
