# SPDX-License-Identifier: GPL-3.0-or-later
"""Further components of the distribution's own archive, as a source beside those a host has."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ansible_collections.onprem.llm.plugins.module_utils.apt_archive import OWN_KEY

#: A line for each list of packages: address, release, code name, component, key, file.
FORMAT = "|".join(
    f"$({name})" for name in ("REPO_URI", "RELEASE", "CODENAME", "COMPONENT", "SIGNED_BY", "SOURCESENTRY")
)
ASK = ["apt-get", "indextargets", "--format", FORMAT, "Created-By: Packages"]
# What apt before 2.8 writes for a field that it does not know.
UNKNOWN = "$(SIGNED_BY)"
HEAD = "# Written by onprem.llm: components beside those of the host's own sources.\n"


def key_of(text: str, address: str) -> str:
    """The key that a file of sources names for an archive; empty without one."""
    for block in re.split(r"\n\s*\n|\n(?=deb )", text):
        if address.rstrip("/") in re.split(r"[\s/]*\s", block + " "):
            found = re.search(r"(?mi)^Signed-By:[ \t]*(\S+)|\bsigned-by=([^\s\]]+)", block)
            return (found[1] or found[2]) if found else ""
    return ""


def source(
    targets: str, codename: str, components: Sequence[str], own: str, read: Callable[[str], str] = lambda name: ""
) -> str:
    """A deb822 file with the components that suites of the archive lack; empty when they lack none.

    ``targets`` is what ASK answers. ``own`` is the name of the file this text is for, which does not count. ``read``
    gives the text of a file of sources. Address and key are those of the suite's main component: apt refuses one
    archive under two keys.
    """
    keys: dict[tuple[str, str], str] = {}
    there: set[tuple[str, str, str]] = set()
    for line in targets.splitlines():
        address, release, code, component, key, entry = (*line.split("|"), *[""] * 6)[:6]
        if re.search(rf"/{re.escape(own)}(:\d+)?$", entry):
            continue
        there.add((address, release, component))
        if key == UNKNOWN:
            key = key_of(read(entry.rpartition(":")[0]), address)
        suite = re.fullmatch(rf"{re.escape(codename)}(-updates|-security)?", code or release)
        if suite and component == "main" and (not key or OWN_KEY.fullmatch(key)):
            keys[address, release] = key
    # apt lists no component whose list is empty: what one suite has is named for the others too.
    have = {component for address, release, component in there if (address, release) in keys}
    lacking = tuple(one for one in components if one not in have)
    wanted: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for (address, release), key in keys.items():
        if lacking:
            wanted.setdefault((address, lacking, key), []).append(release)
    stanzas = [
        f"Types: deb\nURIs: {address}\nSuites: {' '.join(releases)}\nComponents: {' '.join(lacking)}\n"
        + (f"Signed-By: {key}\n" if key else "")
        for (address, lacking, key), releases in wanted.items()
    ]
    return HEAD + "\n".join(stanzas) if stanzas else ""
