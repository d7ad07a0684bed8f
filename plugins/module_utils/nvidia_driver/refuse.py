# SPDX-License-Identifier: GPL-3.0-or-later
"""What forbids an installation, one sentence each: the object, its value, the limit, and the ways out."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import choose, packages, secure_boot
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import (
    Host,
    Kernel,
    Options,
    SecureBoot,
    order,
    upstream,
)

# NVIDIA's packages want this DKMS from this driver on; Debian 12 has an older one.
DKMS_SINCE, DKMS_NEEDED = "570.148", "3.1.8"
# Folder, secret key and certificate, as the distribution's DKMS wants them.
DEBIAN_KEY = ("/var/lib/dkms", "mok.key", "mok.pub")
UBUNTU_KEY = ("/var/lib/shim-signed/mok", "MOK.priv", "MOK.der")


def unsigned(found: SecureBoot, ubuntu: bool) -> str | None:
    """Secure Boot would keep the kernel from loading what DKMS builds."""
    if not secure_boot.enforced(found) or found["enrolled"]:
        return None
    state = "Secure Boot is on" if found["on"] else f"The kernel is locked down ({found['lockdown']})"
    folder, secret, certificate = UBUNTU_KEY if ubuntu else DEBIAN_KEY
    key = found["key"] or f"{folder}/{certificate}"
    make = (
        ""
        if found["key"]
        else f"mkdir -p {folder}; openssl req -new -x509 -newkey rsa:2048 -nodes -days 36500 -outform DER "
        f'-subj "/CN=DKMS module signing key/" -keyout {folder}/{secret} -out {key}; '
    )
    why = "is not enrolled" if found["key"] else "does not exist yet"
    return (
        f"{state}, and the key that DKMS signs modules with ({key}) {why}, so the kernel would refuse the driver. "
        f"As root on the host: {make}mokutil --import {key} (asks for a new password); reboot, and at its console "
        "choose Enroll MOK and give that password; then run again. Or switch Secure Boot off in the firmware"
        + (", or take the modules that Ubuntu signs (nvidia_driver_source: distro)." if ubuntu else ".")
    )


def runfile(host: Host, options: Options) -> str | None:
    """Packages and NVIDIA's installer do not know of each other."""
    there = packages.drivers(host)
    if options.source == "runfile" and there:
        return (
            f"nvidia_driver_source is runfile, and packages have put a driver here ({', '.join(sorted(there))}); the "
            "two overwrite each other. Purge those packages (apt-get purge) and run again, or set "
            "nvidia_driver_source: distro or nvidia_repo."
        )
    if not host["runfile"] or options.source == "runfile":
        return None
    return (
        f"NVIDIA's installer has put a driver here ({', '.join(host['runfile'])}), and packages would overwrite parts "
        "of it. Remove it (nvidia-uninstall) and run again, or set nvidia_driver_source: runfile or preinstalled."
    )


def unfinished(others: dict[str, str]) -> str | None:
    """Packages that have nothing to do with the driver and make every run of apt fail."""
    if not others:
        return None
    named = ", ".join(f"{name} ({state})" for name, state in sorted(others.items()))
    return (
        f"dpkg has unfinished packages: {named}. They are not the driver's, so nobody but you should decide: "
        "look at `dpkg --configure -a`, repair or remove them, then run again."
    )


def no_headers(kernel: Kernel) -> str:
    """The running kernel has no headers and apt has none for it; called for such a kernel."""
    package = f"linux-headers-{kernel['name']}"
    if kernel["version"] is None:
        return (
            f"The running kernel {kernel['name']} is none of the distribution's and has no headers at "
            f"/lib/modules/{kernel['name']}/build, so no driver can be built for it. Put them there, or boot a kernel "
            "of the distribution."
        )
    return (
        f"apt has no {package}, and without headers no driver can be built for the running kernel {kernel['name']}. "
        "Three ways out: install the kernel that apt offers and boot it (apt-get install linux-image-"
        f"{kernel['flavour']}; reboot); add a mirror or snapshot that still has {package}; or bring "
        f"{package} yourself (dpkg -i)."
    )


def next_without(kernel: Kernel) -> str:
    """The kernel that boots next has no driver and none can be built."""
    return (
        f"Kernel {kernel['name']} boots next, and it has neither a driver nor headers to build one for: apt has no "
        f"linux-headers-{kernel['name']}. Remove that kernel (apt-get purge linux-image-{kernel['name']}) or add a "
        "source that has its headers; do not reboot before."
    )


def realtime(kernel: Kernel) -> str:
    return (
        f"The running kernel {kernel['name']} is a real-time one, and NVIDIA's modules exclude those "
        "(CONFIG_PREEMPT_RT). Boot a kernel of the ordinary flavour, or set nvidia_driver_source: preinstalled."
    )


def full(host: Host) -> list[str]:
    """File systems with too little room; folders on the same one are added up."""
    found = []
    for mount in sorted({one["mount"] for one in host["space"].values()}):
        parts = {folder: one for folder, one in host["space"].items() if one["mount"] == mount}
        need, free = sum(one["need"] for one in parts.values()), min(one["free"] for one in parts.values())
        if free < need:
            shares = ", ".join(f"{folder} {one['need'] / 10**6:,.0f} MB" for folder, one in parts.items())
            ways = (
                "remove old kernels (apt-get autoremove --purge)"
                if mount == "/boot"
                else "empty apt's cache (apt-get clean), remove what is not needed"
            )
            found.append(
                f"{mount} has {free / 10**6:,.0f} MB free, and installing and building the driver takes "
                f"{need / 10**6:,.0f} MB ({shares}). Make room: {ways}, or enlarge it; then run again."
            )
    return found


def not_offered(driver: str, host: Host, options: Options) -> str:
    """apt knows no package of that name."""
    remedy = {
        "debian": "Debian keeps it in the components contrib and non-free; let nvidia_driver_source: distro add them, "
        "and look at what apt-get update says",
        "ubuntu": "Ubuntu keeps it in the component restricted; enable it, or name another nvidia_driver_branch",
    }.get(host["distribution"] or "", "")
    if options.source == "nvidia_repo" or not remedy:
        remedy = "look at what apt-get update says of NVIDIA's repository or its mirror, and at nvidia_driver_branch"
    known = f"; it has the series {', '.join(host['branches'])}" if host["branches"] else ""
    return f"apt offers no package {driver}{known}: {remedy}."


def not_that_version(driver: str, offered: Sequence[str], wanted: str) -> str:
    return (
        f"nvidia_driver_version is {wanted}, and apt offers {driver} in {', '.join(offered)} only. Name one of these, "
        "or give apt a source that has it."
    )


def out_of_step(name: str, offered: Sequence[str], version: str) -> str:
    return (
        f"The driver is {upstream(version)}, and apt offers {name} in {', '.join(offered)} only: library and module of "
        f'two versions do not work together. Set nvidia_driver_version: "{upstream(offered[0])}", or give apt a source '
        f"that has {name} {upstream(version)}."
    )


def old_dkms(host: Host, options: Options, version: str) -> str | None:
    offered = host["offers"].get("dkms", [])
    if options.source != "nvidia_repo" or order(version) < order(DKMS_SINCE) or not offered:
        return None
    if any(order(upstream(one)) >= order(DKMS_NEEDED) for one in offered):
        return None
    return (
        f"NVIDIA's packages of driver {version} want dkms {DKMS_NEEDED} or newer, and apt offers {offered[0]}. Add the "
        "distribution's backports, or take a newer release of it, or an nvidia_driver_branch before 570."
    )


def nothing_there(host: Host) -> str:
    gpus = choose.titles(choose.ours(host)) or "none"
    return (
        "nvidia_driver_source is preinstalled, and this host has no driver: none is loaded and no kernel has an "
        f"nvidia module (GPUs: {gpus}). Install it, or set nvidia_driver_source: distro."
    )


def own(name: str, host: Host) -> bool:
    """Is an unfinished package the driver's affair?"""
    return packages.related(name) or (bool(packages.drivers(host)) and bool(packages.DRAGGED.fullmatch(name)))
