# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with an installed driver, one sentence each, and why a reboot is owed."""

from __future__ import annotations

from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import choose, packages, refuse
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.plan import served
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import (
    Debt,
    Host,
    Kernel,
    Plan,
    upstream,
)

WAYS_OUT = {
    "open": "nvidia_driver_flavour: proprietary; nvidia_driver_source: nvidia_repo with "
    f"{choose.OPEN_KNOWS_NEW_FORM} or newer; or keep and boot an older kernel",
    "proprietary": "another nvidia_driver_version; nvidia_driver_source: nvidia_repo with a newer one; or keep and "
    "boot an older kernel",
}


def problems(host: Host, plan: Plan) -> list[str]:
    """Empty when every kernel has the driver in the version of the packages, and nothing stands in its way."""
    if not plan["wanted"] or not plan["installed"]:
        return []
    version = upstream(plan["installed"])
    kernels = served(host, packages.builds(plan["packages"]))
    if plan["source"] == "preinstalled":
        kernels = [one for one in kernels if one["running"]]
    found = [sentence for one in kernels if (sentence := kernel(one, plan, version))]
    if not host["container"]:
        others = [one for one in host["kernels"] if one not in kernels]
        found += [refuse.next_without(one) for one in others if one["next"] and not one["module"] and not one["rt"]]
    # A failed build leaves packages unfinished, and those nouveau: only the first of these is the cause.
    unfinished = {name: state for name, state in host["broken"].items() if refuse.own(name, host)}
    if unfinished and not found:
        named = ", ".join(f"{name} ({state})" for name, state in sorted(unfinished.items()))
        found.append(f"dpkg has not finished {named}: run this role again, or look at `dpkg --configure -a`.")
    found += [sentence for sentence in [mixed(host, version)] if sentence]
    if host["nouveau"]["blacklisted"] is False and not found and plan["source"] != "preinstalled":
        found.append(
            "nouveau is not blacklisted, so it takes the GPUs at the next boot: no file of /etc/modprobe.d says "
            "`blacklist nouveau` (on Debian the glx alternative links it, which needs libcuda1)."
        )
    return found


def kernel(one: Kernel, plan: Plan, version: str) -> str | None:
    """What is wrong with a kernel's modules."""
    dkms = next((module for module in one["dkms"] if module["version"] == version), None)
    if one["module"] == version and (dkms is None or dkms["state"] == "installed"):
        if dkms and "Diff" in dkms["warning"]:
            return (
                f"Kernel {one['name']}: dkms says of {dkms['name']}/{version}: {dkms['warning']} Another file took "
                f"the place of the built module; run `dkms install --force {dkms['name']}/{version} -k {one['name']}`."
            )
        return None
    if one["errors"]:
        state = dkms["state"] if dkms else "not there"
        return (
            f"The {plan['flavour']} driver {version} could not be built for kernel {one['name']} (dkms: {state}): "
            f"{' | '.join(one['errors'])}. Three ways out: {WAYS_OUT[plan['flavour'] or 'proprietary']}."
        )
    if not packages.builds(plan["packages"]):
        return (
            f"Kernel {one['name']} has {said(one)}, and the packages are {version}: the archive's "
            f"linux-modules-nvidia package for this kernel is not installed."
        )
    what = f"dkms: {dkms['state']}" if dkms else "dkms does not know it"
    headers = "" if one["headers"] else f"; its headers are missing (linux-headers-{one['name']})"
    return (
        f"Kernel {one['name']} has {said(one)}, and the driver is {version} ({what}{headers}). "
        f"Run `dkms autoinstall -k {one['name']}` and read its output."
    )


def said(one: Kernel) -> str:
    return f"an nvidia module {one['module']}" if one["module"] else "no nvidia module"


def mixed(host: Host, version: str) -> str | None:
    """Library and module of two versions: nvidia-smi ends with 18, and no reboot helps."""
    wrong = [
        f"{name} {one['version']}"
        for name, one in sorted(host["packages"].items())
        if name in ("libcuda1", "nvidia-smi", "nvidia-driver-cuda", "nvidia-kernel-support")
        or name.startswith(("nvidia-utils-", "libnvidia-compute-", "libnvidia-ml1"))
        if upstream(one["version"]) != version
    ]
    if not wrong:
        return None
    return (
        f"The driver is {version}, and of other versions are {', '.join(wrong)}: nvidia-smi says Driver/library "
        f"version mismatch, and a reboot does not help. Install them in {version}."
    )


def waiting(host: Host, plan: Plan) -> list[str]:
    """What keeps the driver from running before the next boot."""
    if not plan["wanted"] or host["container"]:
        return []
    found = []
    running = next((one for one in host["kernels"] if one["running"]), None)
    on_disk = running["module"] if running and plan["installed"] else None
    if host["loaded"] and on_disk and host["loaded"] != on_disk:
        found.append(f"the loaded driver is {host['loaded']} and the one on disk {on_disk}")
    elif host["smi"] == "reboot_required" and plan["installed"]:
        loaded = host["loaded"] or "of an unknown version"
        found.append(f"nvidia-smi says Driver/library version mismatch; the loaded driver is {loaded}")
    # NVIDIA's installer gives up where nouveau is loaded, so there it is owed before anything is installed.
    if host["nouveau"]["loaded"] and (plan["installed"] or plan["source"] == "runfile"):
        found.append("nouveau is loaded and holds the GPUs")
    return found


def debts(host: Host, plan: Plan) -> list[Debt]:
    """Why this host has to be rebooted before its driver is what the packages say."""
    found = waiting(host, plan)
    if plan["wanted"] and plan["installed"] and not host["container"]:
        found += [
            f"kernel {host['running']} runs and {one['name']} is installed"
            for one in host["kernels"]
            if one["next"] and not one["running"]
        ]
        if host["reboot_required"] is not None:
            names = f" for {host['reboot_required']}" if host["reboot_required"] else ""
            found.append(f"the system asks for it{names} (/run/reboot-required)")
    return [Debt(what="reboot", why=why) for why in found]
