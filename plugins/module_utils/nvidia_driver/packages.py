# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages: what dpkg has, what apt offers, which belong to the driver, and which make a headless one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ansible_collections.onprem.llm.plugins.module_utils.apt_policy import parse_policy
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Run
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import Host, Options, Package, upstream

QUERY = ["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\t${db:Status-Want}\\t${db:Status-Status}\\n"]
# Of the driver; not the CUDA toolkit and not the container toolkit, which have versions of their own.
RELATED = re.compile(
    r"nvidia-(?!cuda-|cudnn|container|docker|profiler|visual-profiler|opencl-dev).*|libnvidia-(?!container).*"
    r"|libcuda1|libcudadebugger1|libnvcuvid1|libnvoptix1|lib\w+-nvidia\d*\b.*|cuda-drivers.*"
    r"|firmware-nvidia-.*|xserver-xorg-video-nvidia.*|linux-(?:modules|objects|signatures)-nvidia-.*"
)
# A failed build of the driver leaves these unfinished too: kernels and headers have hooks that call DKMS.
DRAGGED = re.compile(r"dkms|linux-(?:image|headers|modules|kbuild)-.*")
# Ubuntu's modules have the versions of kernels: a new kernel brings its own.
PREBUILT = re.compile(r"linux-(?:modules|objects|signatures)-nvidia-.*")
# Their versions are their own.
FREE = ("nvidia-persistenced", "nvidia-modprobe")
BUILD = ("dkms", "gcc", "libc6-dev", "make")  # what a run file builds with
FINISHED = ("installed", "config-files", "not-installed", "triggers-pending", "triggers-awaited")
# The package that carries a set's version, and the flavour it is.
DRIVERS = (
    (re.compile(r"nvidia-kernel-dkms"), "proprietary"),
    (re.compile(r"nvidia-(?:open-kernel|kernel-open)-dkms"), "open"),
    (re.compile(r"nvidia-(?:dkms|headless-no-dkms|headless)-\d+(?:-server)?-open"), "open"),
    (re.compile(r"nvidia-(?:dkms|headless-no-dkms|headless)-\d+(?:-server)?"), "proprietary"),
    (re.compile(r"nvidia-open(?:-\d+)?"), "open"),
    (re.compile(r"cuda-drivers(?:-\d+)?"), "proprietary"),
)


def parse_dpkg(text: str) -> dict[str, Package]:
    """Packages that have files on the disk, by name, from the lines of QUERY."""
    found = {}
    for line in text.splitlines():
        name, version, want, state = [*line.split("\t"), "", "", ""][:4]
        if version and state not in ("config-files", "not-installed"):
            found[name] = Package(version=version, state=state, held=want == "hold")
    return found


def ask(run: Run, names: Iterable[str]) -> dict[str, list[str]]:
    asked = sorted(set(names))
    return parse_policy(run(["apt-cache", "policy", *asked])[1]) if asked else {}


def related(name: str) -> bool:
    return bool(RELATED.fullmatch(name))


def matters(name: str) -> bool:
    return related(name) or bool(DRAGGED.fullmatch(name)) or name in BUILD


def flavour_of(name: str) -> str | None:
    """proprietary or open, of a package that carries the driver; None of another."""
    return next((flavour for pattern, flavour in DRIVERS if pattern.fullmatch(name)), None)


def broken(packages: dict[str, Package]) -> dict[str, str]:
    return {name: one["state"] for name, one in packages.items() if one["state"] not in FINISHED}


def drivers(host: Host) -> dict[str, str]:
    """Installed packages that carry the driver, and their versions; unfinished ones count."""
    return {name: one["version"] for name, one in host["packages"].items() if flavour_of(name)}


# --- sets


def headers(host: Host) -> list[str]:
    """Packages of headers of every kernel, and the meta packages that bring those of later ones."""
    kernels = [f"linux-headers-{one['name']}" for one in host["kernels"] if one["version"] and not one["rt"]]
    return [*kernels, *(f"linux-headers-{meta}" for meta in host["metas"])]


def sets(host: Host, options: Options, flavour: str, branch: str) -> list[list[str]]:
    """Sets of packages without headers that make the driver, best first. The last of each carries its version."""
    open_ = "-open" if flavour == "open" else ""
    if options.source == "runfile":
        return [list(BUILD)]
    if options.source == "nvidia_repo":
        meta = "nvidia-open" if flavour == "open" else "cuda-drivers"
        if branch:
            return [[f"{meta}-{branch}"]]
        lean = ["nvidia-driver-cuda", "nvidia-kernel-open-dkms" if flavour == "open" else "nvidia-kernel-dkms"]
        return [lean, [meta]] if host["distribution"] == "debian" else [[meta]]
    if host["distribution"] == "ubuntu":
        series = f"{branch}-server"
        tools = [f"nvidia-utils-{series}", "nvidia-modprobe"]
        kernels = [one["name"] for one in host["kernels"] if not one["rt"]]
        prebuilt = [f"linux-modules-nvidia-{series}{open_}-{one}" for one in [*kernels, *host["metas"]]]
        return [
            [*tools, *prebuilt, f"nvidia-headless-no-dkms-{series}{open_}"],
            [*tools, f"nvidia-headless-no-dkms-{series}{open_}", f"nvidia-dkms-{series}{open_}"],
        ]
    # libcuda1 is what makes the glx alternative: without it neither modprobe's aliases nor the blacklist are linked.
    driver = "nvidia-open-kernel-dkms" if flavour == "open" else "nvidia-kernel-dkms"
    return [["nvidia-kernel-support", "libcuda1", "nvidia-smi", "nvidia-persistenced", driver]]


def builds(names: Iterable[str]) -> bool:
    """Does DKMS build the modules of this set, rather than Ubuntu?"""
    return not any(name.startswith("linux-modules-nvidia-") for name in names)


def names(host: Host, options: Options, branches: Iterable[str]) -> list[str]:
    """All packages whose versions a decision needs to know."""
    found = ["dkms", *host["packages"], *headers(host)]
    if options.source != "preinstalled":
        for branch in branches:
            for flavour in ("proprietary", "open"):
                found += [name for one in sets(host, options, flavour, branch) for name in one]
    return sorted(set(found))


def pick(offers: dict[str, list[str]], candidates: list[list[str]]) -> list[str]:
    """The first set that apt can install whole; the first of all when it can install none."""
    return next((one for one in candidates if all(name in offers for name in one)), candidates[0])


def match(versions: Iterable[str], wanted: str) -> str | None:
    """The offered version that is the wanted one: exactly, or of the same driver."""
    offered = list(versions)
    if wanted in offered:
        return wanted
    return next((one for one in offered if upstream(one) == wanted), None)
