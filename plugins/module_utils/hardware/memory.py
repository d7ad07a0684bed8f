# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory modules, and the bandwidth they give in theory.

Sources: dmidecode -t 17; without it, the channels and memory speed that the manufacturers publish per processor
(Intel ARK, AMD product pages), found by the processor's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.hardware.cpu import Info, Topology, isa
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Dimms, Hardware

BUS = 8  # bytes per transfer of one channel of DDR3, DDR4 and DDR5


class Channels(NamedTuple):
    """Of one socket: channels, and millions of transfers per second with one module per channel."""

    generation: str
    channels: int
    speed: int


# First match wins. Where a series is mixed, its slower parts stand before it or the series has its common speed.
GENERATIONS: list[tuple[str, tuple[str, ...], Channels]] = [
    (r"XEON\(R\) 69\d\dP", (), Channels("Granite Rapids-AP", 12, 6400)),
    (r"XEON\(R\) 6[57]\d\dP", (), Channels("Granite Rapids-SP", 8, 6400)),
    (r"Platinum 85\d\d", (), Channels("Emerald Rapids", 8, 5600)),
    (r"Gold 6530", (), Channels("Emerald Rapids", 8, 4800)),
    (r"Gold 65\d\d", (), Channels("Emerald Rapids", 8, 5200)),
    (r"Gold 55\d\d", (), Channels("Emerald Rapids", 8, 4800)),
    (r"Silver 45\d\d", (), Channels("Emerald Rapids", 8, 4400)),
    (r"Gold (6430|54\d\d)", (), Channels("Sapphire Rapids", 8, 4400)),
    (r"(Silver|Bronze) [34]4\d\d", (), Channels("Sapphire Rapids", 8, 4000)),
    (r"(Platinum 8|Gold 6)4\d\d", (), Channels("Sapphire Rapids", 8, 4800)),
    (r"Platinum 8352V|Gold (6330|53\d\d)", (), Channels("Ice Lake-SP", 8, 2933)),
    (r"Silver 43\d\d", (), Channels("Ice Lake-SP", 8, 2666)),
    (r"(Platinum 8|Gold 6)3\d\d", ("avx512_vbmi2",), Channels("Ice Lake-SP", 8, 3200)),
    (r"(Platinum 8|Gold 6)2\d\d", (), Channels("Cascade Lake", 6, 2933)),
    (r"Gold 52\d\d", (), Channels("Cascade Lake", 6, 2666)),
    (r"(Silver|Bronze) [34]2\d\d", (), Channels("Cascade Lake", 6, 2400)),
    (r"(Platinum 8|Gold 6)1\d\d", (), Channels("Skylake-SP", 6, 2666)),
    (r"(Gold 5|Silver 4|Bronze 3)1\d\d", (), Channels("Skylake-SP", 6, 2400)),
    (r"E5-[124]6\d\d\w* v4", (), Channels("Broadwell-EP", 4, 2400)),
    (r"E5-[124]6\d\d\w* v3", (), Channels("Haswell-EP", 4, 2133)),
    (r"E5-[124]6\d\d\w* v2", (), Channels("Ivy Bridge-EP", 4, 1866)),
    (r"EPYC 9\w{2}5", (), Channels("EPYC 9005", 12, 6000)),
    (r"EPYC 9\w{2}4", (), Channels("EPYC 9004", 12, 4800)),
    (r"EPYC 8\w{2}4", (), Channels("EPYC 8004", 6, 4800)),
    (r"EPYC 7\w{2}[23]", (), Channels("EPYC 7002 or 7003", 8, 3200)),
    (r"EPYC 7\w{2}1", (), Channels("EPYC 7001", 8, 2666)),
    (r"Threadripper PRO 7\d{3}WX", (), Channels("Threadripper PRO 7000", 8, 5200)),
    (r"Threadripper PRO [35]\d{3}WX", (), Channels("Threadripper PRO 3000 or 5000", 8, 3200)),
    (r"Ryzen \d (PRO )?[79]\d{3}X", (), Channels("Ryzen 7000 or 9000", 2, 5200)),
    (r"Ryzen \d (PRO )?5\d{3}", (), Channels("Ryzen 5000", 2, 3200)),
    (r"1[234]th Gen|Core\(TM\) i\d-1[234]\d", (), Channels("Core of the 12th to 14th generation, with DDR4", 2, 3200)),
    # Names that virtual machines hide: the instruction sets still tell the oldest generation it can be.
    (r"Xeon", ("amx_tile",), Channels("a Xeon with AMX, Sapphire Rapids or newer", 8, 4800)),
    (r"EPYC", ("avx512_bf16",), Channels("an EPYC with AVX-512, 9004 or newer", 12, 4800)),
]


def channels_of(model: str, isa: Sequence[str]) -> Channels | None:
    """Channels and speed of a socket by the processor's name, None when it is not in the table."""
    for pattern, needed, channels in GENERATIONS:
        if re.search(pattern, model, re.IGNORECASE) and set(needed) <= set(isa):
            return channels
    return None


def typical_bandwidth(hardware: Hardware) -> tuple[int, str] | None:
    """Bytes per second of the whole machine by its processor's name, and the sentence that says so."""
    cpu = hardware["cpu"]
    channels = channels_of(cpu["model"], cpu["isa"])
    if channels is None:
        return None
    whole = cpu["sockets"] * channels.channels * channels.speed * 1_000_000 * BUS
    basis = (
        f"memory bandwidth by the processor's name ({channels.generation}: {cpu['sockets']} x {channels.channels} "
        f"channels x {channels.speed} MT/s = {whole / 1e9:.0f} GB/s), every channel taken as populated"
    )
    if hardware["system"]["virtualisation"] not in (None, "none"):
        basis += "; a virtual machine gets a share of it"
    return whole, basis


def parse_dmidecode(text: str) -> list[dict[str, str]]:
    """Memory devices of dmidecode -t 17 as {locator, bank_locator, size, type, speed, configured}."""
    names = {
        "Locator": "locator",
        "Bank Locator": "bank_locator",
        "Size": "size",
        "Type": "type",
        "Speed": "speed",
        "Configured Memory Speed": "configured",
        "Configured Clock Speed": "configured",
    }
    rows: list[dict[str, str]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith(("\t", " ")):
            if line.strip() and not line.startswith("Handle"):
                inside = line.strip() == "Memory Device"
                if inside:
                    rows.append({})
            continue
        key, colon, value = line.strip().partition(":")
        if inside and colon and key in names:
            rows[-1].setdefault(names[key], value.strip())
    return rows


def place(locator: str, bank: str) -> tuple[str, str] | None:
    """Socket and channel of a module, from how manufacturers print it; None when it does not tell."""
    text = locator.strip()
    if re.fullmatch(r"[A-Z]\d{1,2}", text):  # Dell: the letter is the socket, the number the place
        return text[0], text[1:]
    socket = r"(?:CPU|PROC|NODE|CONTROLLER|P)[ _]?(\d+)"
    for first, second in ((text, bank), (bank, text)):
        channel = re.search(r"CHANNEL[ _]?([A-Z0-9])|C(\d)D\d|DIMM[ _-]?(?:P\d+[ _])?([A-Z])\d?", first, re.IGNORECASE)
        if channel:
            number = re.search(socket, first, re.IGNORECASE) or re.search(socket, second, re.IGNORECASE)
            return number[1] if number else "", next(group for group in channel.groups() if group).upper()
    return None


def speed_of(row: Mapping[str, Any]) -> int | None:
    for key in ("configured", "speed"):
        found = re.fullmatch(r"(\d{2,6}) (?:MT/s|MHz)", str(row.get(key, "")).strip())
        if found:
            return int(found[1])
    return None


def dimms(rows: Sequence[Mapping[str, Any]], most: int | None) -> tuple[Dimms | None, str]:
    """The populated modules, or None and the reason. ``most``: the channels that the processors have, where known.

    The count of channels is a hint: manufacturers name the places of modules as they like.
    """
    present = [row for row in rows if re.match(r"\d+ [KMGT]i?B", str(row.get("size", "")).strip())]
    if not present:
        return None, "dmidecode names no memory module, as in virtual machines; run it on the host itself"
    speeds = [speed for speed in map(speed_of, present) if speed]
    if not speeds:
        return None, "dmidecode names no speed of the memory modules, as in virtual machines; run it on the host itself"
    places = [place(str(row.get("locator", "")), str(row.get("bank_locator", ""))) for row in present]
    known = {one for one in places if one}
    channels = len(known) + places.count(None)
    return (
        Dimms(
            count=len(present),
            type=str(present[0].get("type", "")),
            speed=min(speeds),
            channels=min(channels, most) if most else channels,
        ),
        "",
    )


def populated(
    rows: Sequence[Mapping[str, Any]], info: Info, topology: Topology, unknown: dict[str, str]
) -> Dimms | None:
    """The modules of a machine; the reason goes into ``unknown`` when they do not tell."""
    known = channels_of(info.model, isa(info.flags))
    sockets = len({place.socket for place in topology.values()})
    found, reason = dimms(rows, known.channels * sockets if known else None)
    if found is None:
        unknown["memory.dimms"] = reason
    return found


def bandwidth(found: Dimms) -> int | None:
    """Bytes per second in theory; None for LPDDR, whose channels are not 8 bytes wide."""
    if found["type"].upper().startswith("LPDDR"):
        return None
    return found["channels"] * found["speed"] * 1_000_000 * BUS
