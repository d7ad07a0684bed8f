# SPDX-License-Identifier: GPL-3.0-or-later
"""What dpkg and apt say of the toolkit's packages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils import apt_archive
from ansible_collections.onprem.llm.plugins.module_utils.apt_policy import parse_policy

#: The distribution's toolkit: name of the package, and of the source of all its parts.
DISTRO = "nvidia-cuda-toolkit"
#: Fields of dpkg-query, one package per line.
FORMAT = "${binary:Package}\t${source:Package}\t${Version}\t${db:Status-Want}\t${db:Status-Status}\n"
#: Libraries of the driver that a toolkit brings along where nothing else has installed them.
DRIVER = re.compile(r"(libcuda1|libnvidia-ml1|libnvidia-compute-.*|nvidia-alternative)")


class Package(NamedTuple):
    """An installed package."""

    name: str
    source: str
    version: str
    held: bool


class Change(NamedTuple):
    """A package that apt would install, and the version it would have."""

    name: str
    version: str


def parse_installed(text: str) -> list[Package]:
    """What dpkg-query prints with FORMAT, without packages that are not whole."""
    rows = [line.split("\t") for line in text.splitlines()]
    return [
        Package(name.partition(":")[0], source, version, want == "hold")
        for name, source, version, want, status in rows
        if status == "installed"
    ]


def parts(installed: Iterable[Package], package: str) -> list[Package]:
    """The installed parts of a toolkit: those of its source; in NVIDIA's repository those with its number."""
    if package == DISTRO:
        return [one for one in installed if one.source == DISTRO]
    ending = package.removeprefix("cuda-toolkit")
    return [one for one in installed if one.name.endswith(ending)]


def parse_offers(policy: str) -> list[str]:
    """Versions in what ``apt-cache policy PACKAGE`` prints, the one that apt would install first."""
    return next(iter(parse_policy(policy).values()), [])


def complaint(said: str) -> str:
    """Why apt cannot install, from what it prints."""
    lines = [line.strip() for line in said.splitlines() if line.startswith(("E: ", " "))]
    return (" ".join(lines[-4:])[:600] or "it names no reason; run `apt-get check`").rstrip(".") + "."


def parse_changes(text: str) -> list[Change]:
    """The ``Inst`` lines of ``apt-get --simulate``."""
    return [Change(*found) for found in re.findall(r"(?m)^Inst (\S+) (?:\[\S+\] )?\((\S+) ", text)]


def parse_sizes(uris: str, shown: str) -> tuple[int, int]:
    """Bytes to fetch and bytes on the disk, in what ``apt-get --print-uris`` and ``apt-cache show`` print."""
    disk = sum(int(size) for size in re.findall(r"(?m)^Installed-Size: (\d+)$", shown))
    return sum(deb.size for deb in apt_archive.parse_uris(uris)), disk * 1024


def space_refusal(download: int, disk: int, archives: tuple[int, int], system: tuple[int, int]) -> str:
    """archives, system: file system (its number) and free bytes of apt's folder and of /usr; empty when it fits."""
    together = archives[0] == system[0]
    needs = [("/var/cache/apt/archives", download, archives[1]), ("/usr", disk, system[1])]
    if together:
        needs = [("the file system of /usr and /var/cache/apt", download + disk, system[1])]
    for place, wanted, free in needs:
        if wanted > free:
            return (
                f"The toolkit needs {_gigabytes(download)} for the download and {_gigabytes(disk)} once installed, and "
                f"{place} has {_gigabytes(free)} free. Make room ({_gigabytes(wanted - free)} are missing), or compile "
                "on "
                "another host (group builder)."
            )
    return ""


def _gigabytes(size: int) -> str:
    return f"{size / 10**9:.1f} GB"


def driver_refusal(changes: Sequence[Change], driver: str | None) -> str:
    """Why an installation would break the driver; empty when it would not, or when none is loaded.

    driver: version of the loaded driver, as in 550.163.01. Its libraries must have the same one.
    """
    foreign = [one for one in changes if DRIVER.fullmatch(one.name) and not _is(one.version, driver or "")]
    if not driver or not foreign:
        return ""
    named = ", ".join(f"{one.name} {one.version}" for one in foreign)
    return (
        f"apt would install {named} beside the driver {driver} that is loaded, and no program could use the GPU any "
        "more. "
        "Take the toolkit from where the driver comes from: with NVIDIA's repository cuda_toolkit_source: nvidia_repo, "
        "with "
        "the distribution's packages cuda_toolkit_source: distro; after a runfile neither fits, use its toolkit by "
        "cuda_toolkit_source: none."
    )


def _is(package: str, driver: str) -> bool:
    return re.match(rf"(?:\d+:)?{re.escape(driver)}(?![\d.])", package) is not None
