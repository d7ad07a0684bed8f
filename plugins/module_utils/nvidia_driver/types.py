# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of a host and what is decided. Sizes are bytes; None means unknown or not there."""

from __future__ import annotations

import re
from typing import NamedTuple, TypedDict


class Options(NamedTuple):
    """What the caller asks for; see nvidia_driver_info."""

    source: str = "distro"
    flavour: str = "auto"
    branch: str = ""
    version: str = ""
    install: str = "auto"
    sources_pending: bool = False


class Module(TypedDict):
    """A line of dkms status."""

    name: str
    version: str
    state: str
    """added, built, installed ..."""
    warning: str
    """What stands in brackets behind the state."""


class Kernel(TypedDict):
    name: str
    """As uname -r prints it."""
    version: str | None
    """Of its package; None when no package installed it."""
    flavour: str | None
    """amd64, cloud-amd64, generic ...; None where the name has none."""
    rt: bool
    running: bool
    next: bool
    """Does it boot next? The running one too, unless a newer one was installed since."""
    headers: bool
    form: str | None
    """Of pci_resize_resource in its headers: old or new. Without headers, what its version lets expect."""
    dkms: list[Module]
    module: str | None
    """Version of the nvidia module on disk, built by DKMS or not."""
    errors: list[str]
    """Last error lines of a failed build."""


class Card(TypedDict):
    name: str
    address: str | None
    device: str | None
    capability: str | None
    driver: str | None
    """The kernel's: nvidia, nouveau, vfio-pci."""


class Package(TypedDict):
    version: str
    state: str
    """installed, half-configured ... as dpkg names it."""
    held: bool


class SecureBoot(TypedDict):
    on: bool
    lockdown: str | None
    """none, integrity or confidentiality."""
    enrolled: bool | None
    """Is the key that DKMS signs with enrolled? None when nobody tells."""
    key: str | None
    """The certificate DKMS signs with, where there is one."""


class Space(TypedDict):
    free: int
    mount: str
    need: int
    """What an installation takes there."""


class Nouveau(TypedDict):
    loaded: bool
    blacklisted: bool | None


class Host(TypedDict):
    distribution: str | None
    version: str | None
    container: str | None
    gpus: list[Card]
    bus: bool
    """Does /sys show the PCI bus?"""
    running: str
    kernels: list[Kernel]
    metas: list[str]
    """Flavours whose meta package of images is installed and not held: amd64, generic-hwe-24.04 ..."""
    packages: dict[str, Package]
    broken: dict[str, str]
    offers: dict[str, list[str]]
    branches: list[str]
    """Driver series that Ubuntu's archive has for servers."""
    loaded: str | None
    smi: str
    smi_reason: str
    nouveau: Nouveau
    runfile: list[str]
    secure_boot: SecureBoot
    space: dict[str, Space]
    reboot_required: str | None
    """What the system itself wants a reboot for; empty when it does not say."""


class Plan(TypedDict):
    wanted: bool
    why: str
    source: str
    flavour: str | None
    branch: str | None
    action: str
    installed: str | None
    version: str | None
    driver: str | None
    packages: list[str]
    install: list[str]
    purge: list[str]
    configure: list[str]
    pin: str | None
    hold: list[str]
    build: list[str]
    load: bool
    unbuilt: list[str]
    """Unfinished packages that only a purge gets rid of; none while the running kernel has a driver."""
    frozen: str | None
    """As pin, of what is installed."""


class Debt(TypedDict):
    what: str
    why: str


def upstream(version: str) -> str:
    """The driver's own version in that of a package: 550.163.01 of 1:550.163.01-2."""
    found = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return found[1] if found else version


def order(version: str) -> tuple[int, ...]:
    """Sorts versions of drivers and kernels: all numbers in them, in their order."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
