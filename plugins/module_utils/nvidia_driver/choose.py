# SPDX-License-Identifier: GPL-3.0-or-later
"""Which flavour of the kernel modules fits the GPUs, the kernels' headers and the driver: one of two, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import kernels
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import Card, Host, Options, order, upstream

FLAVOURS = ("proprietary", "open")
# NVIDIA's announcement of the open modules: Maxwell, Pascal and Volta have only the proprietary ones, Blackwell has
# only the open ones, and both drive what lies between.
TURING, BLACKWELL = (7, 5), (10, 0)
FAMILIES = {5: "Maxwell", 6: "Pascal", 7: "Volta", 10: "Blackwell", 12: "Blackwell"}
FIRST_OF_BLACKWELL = "570"
LAST_BEFORE_TURING = "580"
# The first open driver that knows the new pci_resize_resource; the proprietary one never calls it.
OPEN_KNOWS_NEW_FORM = "580.126.09"
# Drivers of Debian's own archive, by release, for hosts whose package lists do not say.
DEBIAN = {"12": "535.309.01", "13": "550.163.01"}


class Needs(NamedTuple):
    flavours: tuple[str, ...]
    first: str | None
    """Oldest driver series."""
    last: str | None
    """Newest driver series."""


class Choice(NamedTuple):
    flavour: str | None
    refused: list[str]


def capability(card: Card) -> tuple[int, int] | None:
    major, _, minor = (card["capability"] or "").partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def needs(card: Card) -> Needs:
    """What a GPU asks of the driver; one of unknown architecture asks nothing."""
    found = capability(card)
    if found and found < TURING:
        return Needs(("proprietary",), None, LAST_BEFORE_TURING)
    if found and found >= BLACKWELL:
        return Needs(("open",), FIRST_OF_BLACKWELL, None)
    return Needs(FLAVOURS, None, None)


def ours(host: Host) -> list[Card]:
    """GPUs that are not given to virtual machines."""
    return [card for card in host["gpus"] if card["driver"] != "vfio-pci"]


def title(card: Card) -> str:
    """The GPU with what decides: NVIDIA GeForce RTX 5090 (Blackwell, 0000:38:00.0)."""
    found = capability(card)
    special = found is not None and not TURING <= found < BLACKWELL
    family = FAMILIES.get(found[0], "") if found and special else ""
    inside = ", ".join(word for word in (family, card["address"]) if word)
    return card["name"] + (f" ({inside})" if inside else "")


def titles(cards: Sequence[Card]) -> str:
    """Each kind of GPU once, with its addresses' count."""
    kinds: dict[str, list[Card]] = {}
    for card in cards:
        kinds.setdefault(card["name"], []).append(card)
    return ", ".join(
        f"{len(same)} x {title({**same[0], 'address': None})}" if len(same) > 1 else title(same[0])
        for same in kinds.values()
    )


def contradiction(cards: Sequence[Card]) -> str | None:
    """GPUs that no driver serves together."""
    closed = [card for card in cards if needs(card).flavours == ("proprietary",)]
    open_ = [card for card in cards if needs(card).flavours == ("open",)]
    if not closed or not open_:
        return None
    return (
        f"No driver serves all GPUs of this host: {titles(closed)} only has proprietary kernel modules, "
        f"{titles(open_)} only open ones, and a kernel loads one driver. Take one kind out, give it to a virtual "
        "machine (vfio-pci), or put it into another host."
    )


def series(version: str) -> int:
    return order(version)[0] if order(version) else 0


def too_old(cards: Sequence[Card], version: str, where: str) -> str | None:
    """GPUs that a driver does not know yet."""
    late = [card for card in cards if (first := needs(card).first) and series(version) < int(first)]
    if not late:
        return None
    return (
        f"{titles(late)} needs a driver of the {FIRST_OF_BLACKWELL} series or newer with open kernel modules, and "
        f"{where} has {version}. Set nvidia_driver_source: nvidia_repo (or runfile), or take a newer distribution."
    )


def too_new(cards: Sequence[Card], version: str, where: str) -> str | None:
    """GPUs that a driver does not know any more."""
    early = [card for card in cards if (last := needs(card).last) and series(version) > int(last)]
    if not early:
        return None
    return (
        f"{titles(early)} is served up to the {LAST_BEFORE_TURING} series, and {where} has {version}. "
        f'Set nvidia_driver_branch: "{LAST_BEFORE_TURING}", or nvidia_driver_version to one of that series.'
    )


def forms(host: Host) -> dict[str, str | None]:
    """Kernel to the form of its headers, for those the driver is built for; those to come by their meta package too."""
    found = {one["name"]: one["form"] for one in host["kernels"] if not one["rt"]}
    seen = {one["version"] for one in host["kernels"]}
    for meta in host["metas"]:
        for version in host["offers"].get(f"linux-headers-{meta}", [])[:1]:
            if version not in seen:
                found[upstream(version)] = kernels.expected_form(version)
    return found


def cannot_build(host: Host, version: str) -> str | None:
    """Why the open modules of a version do not compile on a kernel of this host; None when they do."""
    new = [name for name, form in forms(host).items() if form == "new"]
    if not new or order(version) >= order(OPEN_KNOWS_NEW_FORM):
        return None
    return (
        f"The open kernel modules {version} do not compile on kernel {', '.join(new)}: its headers have the new form "
        f"of pci_resize_resource, which they know from {OPEN_KNOWS_NEW_FORM} on (nv-pci.c: too few arguments to "
        "function 'pci_resize_resource'). Three ways out: nvidia_driver_flavour: proprietary; nvidia_driver_source: "
        f"nvidia_repo with {OPEN_KNOWS_NEW_FORM} or newer; or keep and boot an older kernel (Debian 13: up to 6.12.94; "
        "hold its linux-image package and remove newer ones)."
    )


def of_archive(host: Host, options: Options) -> bool:
    return options.source == "distro" and host["distribution"] == "debian"


def where(host: Host, options: Options) -> str:
    if options.source == "distro":
        return "Debian's archive" if host["distribution"] == "debian" else "Ubuntu's archive"
    return {"nvidia_repo": "NVIDIA's repository", "runfile": "the run file"}.get(options.source, options.source)


def flavour(host: Host, options: Options, versions: dict[str, str | None], installed: str | None) -> Choice:
    """The flavour to install.

    versions: flavour to the driver version it would have, None when nobody tells. installed: flavour that is there.
    """
    cards = ours(host)
    clash = contradiction(cards)
    if clash:
        return Choice(None, [clash])
    allowed = [one for one in FLAVOURS if all(one in needs(card).flavours for card in cards)]
    place = where(host, options)
    refusals: dict[str, list[str]] = {}
    for one in FLAVOURS:
        refusals[one] = [] if one in allowed else [wrong_flavour(cards, one)]
        version = versions[one]
        if version:
            wrong = too_old(cards, version, place) or too_new(cards, version, place)
            if one == "open" and not wrong and not prebuilt(host, options):
                wrong = cannot_build(host, version)
            refusals[one] += [wrong] if wrong else []
    if options.flavour != "auto":
        return Choice(options.flavour, refusals[options.flavour])
    # What is there stays; Debian's open modules are the ones that break, NVIDIA recommends its own where both fit.
    preferred = [installed] if installed else []
    preferred += ["proprietary", "open"] if of_archive(host, options) else ["open", "proprietary"]
    possible = [one for one in preferred if one in allowed]
    return next((Choice(one, []) for one in possible if not refusals[one]), Choice(possible[0], refusals[possible[0]]))


def wrong_flavour(cards: Sequence[Card], flavour: str) -> str:
    other = "open" if flavour == "proprietary" else "proprietary"
    wrong = [card for card in cards if flavour not in needs(card).flavours]
    return (
        f"nvidia_driver_flavour is {flavour}, and {titles(wrong)} only works with {other} kernel modules. "
        f"Set nvidia_driver_flavour: auto or {other}."
    )


def prebuilt(host: Host, options: Options) -> bool:
    """Ubuntu builds the modules of its archive itself, for each kernel."""
    return options.source == "distro" and host["distribution"] == "ubuntu"
