# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages go with a role: those it brought and nothing else needs. Dependencies are followed here, not by apt,
because apt would also take what was unneeded before we came."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

#: ``dpkg-query --show --showformat``: one line per package.
SHOW = (
    r"${Package}:${Architecture}\t${db:Status-Status}\t${Provides}\t${Pre-Depends}, ${Depends}\t"
    r"${Recommends}, ${Suggests}\n"
)
#: Whoever brought a kernel: the host may be running it.
NEVER = ("linux-image-*",)


@dataclass(frozen=True)
class Package:
    """One package of a host."""

    name: str
    """As apt writes it: ``name``, or ``name:architecture`` for another architecture than the host's."""
    installed: bool
    """False: removed, but its configuration is still there."""
    provides: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    """Each a choice of names, one of which must be there."""
    likes: tuple[tuple[str, ...], ...] = ()
    """Recommended and suggested, likewise."""

    @property
    def bare(self) -> str:
        return self.name.partition(":")[0]


def names(text: str) -> tuple[tuple[str, ...], ...]:
    """A field of dependencies as choices of names; versions and architectures are left out, since dpkg saw to them."""
    choices = ([re.split(r"[\s:(]", one.strip())[0] for one in choice.split("|")] for choice in text.split(","))
    return tuple(tuple(filter(None, choice)) for choice in choices if any(choice))


def parse(text: str, native: str) -> dict[str, Package]:
    """What dpkg-query printed with ``SHOW``, on a host of this architecture: name -> package."""
    found = {}
    for line in text.splitlines():
        name, status, provides, needs, likes = line.split("\t")
        if status == "not-installed":
            continue
        bare, _, architecture = name.partition(":")
        name = bare if architecture in (native, "all") else name
        flat = tuple(one for choice in names(provides) for one in choice)
        found[name] = Package(name, status != "config-files", flat, names(needs), names(likes))
    return found


def matching(patterns: Iterable[str], packages: Mapping[str, Package]) -> set[str]:
    """Names of packages that are, or match, one of ``patterns``."""
    wanted = list(patterns)
    return {one.name for one in packages.values() if any(fnmatch.fnmatchcase(one.bare, p) for p in wanted)}


def providers(packages: Iterable[Package]) -> dict[str, set[str]]:
    """Installed packages by every name they go by."""
    found: dict[str, set[str]] = {}
    for one in packages:
        for name in (one.bare, *one.provides) if one.installed else ():
            found.setdefault(name, set()).add(one.name)
    return found


def closure(start: Iterable[str], packages: Mapping[str, Package], old: Collection[str], likes: bool) -> set[str]:
    """``start`` and all that is needed by it. What was here before us managed with what was here before us."""
    by_name = providers(packages.values())
    found = set(start)
    todo = sorted(found)
    while todo:
        one = packages[todo.pop()]
        for choice in one.needs + (one.likes if likes and one.name not in old else ()):
            able = set().union(*(by_name.get(name, set()) for name in choice))
            if able and not able & (set(old) if one.name in old else found):
                todo += sorted(able - found)
                found |= able
    return found


def going(
    packages: Mapping[str, Package],
    automatic: Collection[str],
    old: Collection[str],
    wanted: Iterable[str],
    staying: Iterable[str],
) -> list[str]:
    """Packages to purge, sorted.

    packages: what dpkg knows. automatic: installed only because others need them. old: here before us, and the rest
    of a host's life none of our business. wanted: names and patterns of what shall go. staying: of what other roles of
    this host need.
    """
    ours = matching(wanted, packages) - set(old) - matching([*staying, *NEVER], packages)
    leaving = {name for name in ours if packages[name].installed}
    # What came along with them, as far as nobody asked for it by name.
    along = closure(leaving, packages, (), likes=True) & set(automatic) - set(old) - matching(NEVER, packages)
    kept = set(packages) - leaving - along
    needed = closure((one for one in kept if packages[one].installed), packages, old, likes=True)
    return sorted((leaving | along | ours) - needed)


def blocked(going_: Sequence[str], said: str) -> list[str]:
    """What apt would remove besides, by the output of ``apt-get --simulate purge``."""
    also = re.findall(r"(?m)^(?:Remv|Purg) (\S+)", said)
    bare = {one.partition(":")[0] for one in going_}
    return sorted({one for one in also if one.partition(":")[0] not in bare})
