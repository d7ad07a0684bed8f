# SPDX-License-Identifier: GPL-3.0-or-later
"""Installed kernels and their headers."""

from __future__ import annotations

import re

from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Run, Tree
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import dkms
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import Kernel, Module, Package, order

MODULES = "/lib/modules"
# pci_resize_resource got an argument in these kernels of the long-term series, and in all from 6.19 on.
NEW_FORM = {(6, 1): (6, 1, 187), (6, 12): (6, 12, 97)}
NEW_FORM_ALWAYS = (6, 19)
# Between the last version seen with the old form and the first seen with the new one.
LAST_OLD = {(6, 1): (6, 1, 176), (6, 12): (6, 12, 94)}


def flavour(name: str) -> str | None:
    """cloud-amd64 of 6.12.117+deb13-cloud-amd64, generic of 6.8.0-41-generic."""
    found = re.fullmatch(r"\d+(?:\.\d+)*(?:[+~][\w.+~]*)?(?:-\d[\w.+~]*)?-([a-z].*)", name)
    return found[1] if found else None


def is_rt(flavour: str | None) -> bool:
    return bool(re.search(r"(?:^|-)(?:rt|realtime)(?:-|$)", flavour or ""))


def metas(packages: dict[str, Package]) -> list[str]:
    """Flavours that follow a meta package of images, unless it is held: amd64 of linux-image-amd64."""
    free = (name for name, one in packages.items() if not one["held"])
    found = (re.fullmatch(r"linux-image-(?!unsigned-)([a-z].*)", name) for name in free)
    return sorted(one[1] for one in found if one and not one[1].endswith(("-dbg", "-signed-template")))


def packaged(name: str, packages: dict[str, Package]) -> Package | None:
    for package in (f"linux-image-{name}", f"linux-image-unsigned-{name}", f"linux-image-{name}-unsigned"):
        if package in packages:
            return packages[package]
    return None


def form(text: str | None) -> str | None:
    """By include/linux/pci.h: new where pci_resize_resource takes the regions to leave alone."""
    if text is None or "pci_resize_resource" not in text:
        return None
    return "new" if "exclude_bars" in text else "old"


def expected_form(version: str | None) -> str | None:
    """Of headers that are not there yet, by the version of kernel or package; None where nobody looked."""
    numbers = order(re.split(r"[-+~]", version or "")[0])
    if len(numbers) < 2:
        return None
    series = numbers[:2]
    if series >= NEW_FORM_ALWAYS or (series in NEW_FORM and numbers >= NEW_FORM[series]):
        return "new"
    if series in LAST_OLD and numbers <= LAST_OLD[series]:
        return "old"
    return None


def read_form(tree: Tree, name: str) -> str | None:
    for folder in ("source", "build"):
        found = form(tree.text(f"{MODULES}/{name}/{folder}/include/linux/pci.h"))
        if found:
            return found
    return None


def status(run: Run, name: str) -> list[Module]:
    return dkms.parse_status(run(["dkms", "status", "-k", name])[1])


def module_version(run: Run, name: str) -> str | None:
    """Debian calls the module nvidia-current, all others nvidia."""
    for module in ("nvidia-current", "nvidia"):
        rc, out, _ = run(["modinfo", "-k", name, "-F", "version", module])
        if rc == 0 and out.strip():
            return out.split()[0]
    return None


def after_boot(tree: Tree, packages: dict[str, Package], running: str) -> str:
    """The kernel that boots next: the newest, unless it was there at this boot already and the boot loader left it."""
    names = [one for one in tree.names(MODULES) or [] if packaged(one, packages) and not is_rt(flavour(one))]
    newest = max(names, key=order, default=running)
    if order(newest) <= order(running):
        return running
    booted = re.search(r"(?m)^btime (\d+)$", tree.text("/proc/stat") or "")
    installed = tree.path(f"/var/lib/dpkg/info/linux-image-{newest}.list")
    there = booted and installed.is_file() and installed.stat().st_mtime < int(booted[1])
    return running if there else newest


def read(tree: Tree, run: Run, packages: dict[str, Package], running: str) -> list[Kernel]:
    """Kernels that a package installed, and the running one, oldest first."""
    found = []
    coming = after_boot(tree, packages, running)
    for name in sorted(tree.names(MODULES) or [], key=order):
        package = packaged(name, packages)
        if package is None and name != running:
            continue  # headers of a kernel that is not there, or what a removed kernel left
        kind = flavour(name)
        modules = status(run, name)
        failed = [one for one in modules if one["state"] != "installed"]
        version = package["version"] if package else None
        found.append(
            Kernel(
                name=name,
                version=version,
                flavour=kind,
                rt=is_rt(kind) or (name == running and tree.number("/sys/kernel/realtime") == 1),
                running=name == running,
                next=name == coming,
                headers=tree.exists(f"{MODULES}/{name}/build"),
                form=read_form(tree, name) or expected_form(version or name),
                dkms=modules,
                module=module_version(run, name),
                errors=[line for one in failed for line in dkms.failed_build(tree, one, name)],
            )
        )
    return found
