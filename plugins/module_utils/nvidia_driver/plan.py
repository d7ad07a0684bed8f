# SPDX-License-Identifier: GPL-3.0-or-later
"""What belongs on a host and what has to be done for it. Pure: facts and wishes in, a plan and refusals out."""

from __future__ import annotations

import re
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import choose, packages, refuse
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import (
    Host,
    Kernel,
    Options,
    Plan,
    upstream,
)


class Decision(NamedTuple):
    plan: Plan
    refused: list[str]
    notes: list[str]


def wanted(host: Host, options: Options) -> tuple[bool, str]:
    """Does a driver belong on this host, and why."""
    cards = choose.ours(host)
    if options.install == "always":
        return True, "nvidia_driver_install is always"
    if host["container"]:
        return False, f"this is a container ({host['container']}): the driver belongs on the host whose kernel it is"
    if cards:
        return True, f"GPUs: {choose.titles(cards)}"
    if host["gpus"]:
        return False, f"all GPUs are given to virtual machines (vfio-pci): {choose.titles(host['gpus'])}"
    if not host["bus"]:
        return False, "/sys/bus/pci does not show the PCI bus, so no GPU is known"
    return False, "there is no NVIDIA GPU on the PCI bus"


def empty(host: Host, options: Options, wanted: bool, why: str) -> Plan:
    return Plan(
        wanted=wanted,
        why=why,
        source=options.source,
        flavour=None,
        branch=None,
        action="none",
        installed=None,
        version=None,
        driver=None,
        packages=[],
        install=[],
        purge=[],
        configure=[],
        pin=None,
        hold=[],
        build=[],
        load=bool(wanted and not host["container"] and choose.ours(host)),
        unbuilt=unbuilt(host),
        frozen=next((f"{upstream(one)}*" for one in packages.drivers(host).values()), None),
    )


def decide(host: Host, options: Options) -> Decision:
    plan = empty(host, options, *wanted(host, options))
    if not plan["wanted"]:
        return Decision(plan, [], [])
    notes = [
        f"{card['name']} ({card['device']}) is not in the table of GPUs: both flavours are taken to fit it"
        for card in choose.ours(host)
        if choose.capability(card) is None
    ]
    if options.source == "preinstalled":
        return Decision(*preinstalled(host, plan), notes)
    found = Decision(plan, [], notes)
    installed = packages.drivers(host)
    finished = sorted(name for name, one in host["packages"].items() if one["state"] == "installed")
    kinds = {packages.flavour_of(name) for name in finished} - {None}
    series = branch(host, options)
    picked = {one: picks(host, options, one, series) for one in choose.FLAVOURS}
    targets = {one: target(host, options, picked[one][-1]) for one in choose.FLAVOURS}
    drivers = {one: upstream(version) if version else expected(host, options) for one, version in targets.items()}
    choice = choose.flavour(host, options, drivers, kinds.pop() if len(kinds) == 1 else None)
    found.refused.extend(choice.refused)
    if choice.flavour is None:
        return found
    names, version = picked[choice.flavour], targets[choice.flavour]
    built = packages.builds(names)
    current = present(host, options, names[-1], choice.flavour)
    plan["flavour"], plan["branch"] = choice.flavour, series or None
    plan["installed"], plan["version"] = current, version
    plan["driver"] = upstream(version) if version else None
    plan["packages"] = [*(headers(host, options, found) if built else []), *names]
    plan["purge"] = sorted(name for name in installed if packages.flavour_of(name) != choice.flavour)
    plan["pin"] = f"{upstream(version)}*" if version and options.source != "runfile" else None
    plan["hold"] = [one for one in finished if packages.related(one) and not packages.PREBUILT.fullmatch(one)]
    late = [one["name"] for one in served(host, built) if version and one["module"] != upstream(version)]
    plan["build"] = late if built else []
    if plan["purge"]:
        why = [line for one in host["kernels"] for line in one["errors"]]
        found.notes.append(
            f"{', '.join(plan['purge'])} goes, {names[-1]} comes" + (f": {' | '.join(why)}" if why else "")
        )
    plan["configure"] = sorted(name for name in host["broken"] if refuse.own(name, host) and name not in plan["purge"])
    plan["install"] = missing(host, options, plan, found)
    plan["action"] = action(plan)
    found.refused.extend(refusals(host, options, plan, built))
    return found


def unbuilt(host: Host) -> list[str]:
    if any(one["running"] and one["module"] for one in host["kernels"]):
        return []
    return sorted(name for name in host["broken"] if packages.related(name))


def preinstalled(host: Host, plan: Plan) -> tuple[Plan, list[str]]:
    """Somebody else installs; here is only looked."""
    running = next((one["module"] for one in host["kernels"] if one["running"]), None)
    version = host["loaded"] or running or next((one["module"] for one in host["kernels"] if one["module"]), None)
    plan["installed"] = plan["version"] = plan["driver"] = version
    return plan, [] if version else [refuse.nothing_there(host)]


def branch(host: Host, options: Options) -> str:
    """The series in the names of packages: the asked one, the installed one, Ubuntu's newest that serves the GPUs."""
    if options.branch:
        return options.branch.removesuffix("-server")
    for name in packages.drivers(host):
        found = re.search(r"-(\d+)(?:-server)?(?:-open)?$", name)
        if found:
            return found[1]
    if options.source != "distro" or host["distribution"] != "ubuntu":
        return ""
    needs = [choose.needs(card) for card in choose.ours(host)]
    fits = [
        one
        for one in host["branches"]
        if all(int(one) >= int(need.first or 0) and int(one) <= int(need.last or 10**6) for need in needs)
    ]
    # None fits: the newest, which the choice then refuses by name.
    return (fits or host["branches"] or [""])[-1]


def picks(host: Host, options: Options, flavour: str, branch: str) -> list[str]:
    """The set that is installed, or can be completed, else the best one apt can install."""
    candidates = packages.sets(host, options, flavour, branch)
    known = {**host["offers"], **host["packages"]}
    there = (one for one in candidates if one[-1] in host["packages"] and all(name in known for name in one))
    return next(there, packages.pick(host["offers"], candidates))


def target(host: Host, options: Options, driver: str) -> str | None:
    """The version after the run: the asked one, else what is installed, else the candidate. None: nobody tells yet."""
    if options.source == "runfile":
        return options.version or None
    offered = host["offers"].get(driver, [])
    there = host["packages"].get(driver)
    if options.version:
        return packages.match([*([there["version"]] if there else []), *offered], options.version)
    if there:
        return there["version"]
    return offered[0] if offered else None


def expected(host: Host, options: Options) -> str | None:
    """The driver's version where apt does not say: by what was asked, by series, by Debian's release."""
    if options.version:
        return upstream(options.version)
    if options.branch and options.source != "runfile":
        return options.branch.removesuffix("-server")
    return choose.DEBIAN.get(host["version"] or "") if choose.of_archive(host, options) else None


def present(host: Host, options: Options, driver: str, flavour: str) -> str | None:
    """Version that is installed, by package; that of a run file by its module."""
    if options.source == "runfile":
        found = [one["module"] for one in host["kernels"] if one["module"]] if host["runfile"] else []
        return found[-1] if found else None
    same = [version for name, version in packages.drivers(host).items() if packages.flavour_of(name) == flavour]
    there = host["packages"].get(driver)
    return there["version"] if there else next(iter(same), None)


def served(host: Host, built: bool) -> list[Kernel]:
    """Kernels that can have a driver: no real-time ones, and those to build for have headers, there or on offer."""
    return [
        one
        for one in host["kernels"]
        if not one["rt"] and (not built or one["headers"] or f"linux-headers-{one['name']}" in host["offers"])
    ]


def headers(host: Host, options: Options, found: Decision) -> list[str]:
    """Packages of headers; a kernel that can have none is refused when it runs, else noted."""
    names = packages.headers(host)
    for one in host["kernels"]:
        name = f"linux-headers-{one['name']}"
        if one["rt"] or name in host["offers"]:
            continue
        if name in names and name not in host["packages"] and not options.sources_pending:
            names.remove(name)
        if not one["headers"] and not options.sources_pending:
            if one["running"] and not host["container"]:
                found.refused.append(refuse.no_headers(one))
            elif one["next"] and not one["module"] and not host["container"]:
                found.refused.append(refuse.next_without(one))
            else:
                found.notes.append(f"apt has no {name}: kernel {one['name']} gets no driver; remove that kernel")
    return names


def missing(host: Host, options: Options, plan: Plan, found: Decision) -> list[str]:
    """What apt is to be given, in the version of the driver where a package has that."""
    given = []
    version = plan["version"]
    driver = plan["packages"][-1]
    for name in plan["packages"]:
        there, offered = host["packages"].get(name), host["offers"].get(name, [])
        step = packages.related(name) and name not in packages.FREE and not name.startswith("linux-")
        same = packages.match(offered, upstream(version)) if version and step else None
        if name == driver and options.source != "runfile":
            same = version
        if there and there["state"] == "installed" and (not same or there["version"] == same or not changes(plan)):
            continue
        if step and offered and not same and version:
            found.refused.append(refuse.out_of_step(name, offered, version))
        given.append(f"{name}={same}" if same else name)
    return given


def changes(plan: Plan) -> bool:
    return plan["installed"] != plan["version"]


def action(plan: Plan) -> str:
    if plan["installed"] is None and not plan["purge"]:
        return "install"
    if plan["purge"] or plan["installed"] != plan["version"]:
        return "change"
    return "repair" if plan["install"] or plan["configure"] or plan["build"] else "none"


def refusals(host: Host, options: Options, plan: Plan, built: bool) -> list[str]:
    """What forbids to go on, whatever the flavour."""
    driver, version = plan["packages"][-1], plan["version"]
    found: list[str | None] = [refuse.runfile(host, options)]
    running = next((one for one in host["kernels"] if one["running"]), None)
    if built and running and running["rt"]:
        found.append(refuse.realtime(running))
    if built and not host["loaded"]:
        found.append(refuse.unsigned(host["secure_boot"], host["distribution"] == "ubuntu"))
    if options.source == "runfile":
        if not options.version:
            found.append("nvidia_driver_source is runfile and nvidia_driver_version is empty: name the file's version.")
    elif not options.sources_pending and version is None:
        offered = host["offers"].get(driver, [])
        found.append(
            refuse.not_that_version(driver, offered, options.version)
            if offered
            else refuse.not_offered(driver, host, options)
        )
    if built and plan["driver"]:
        found.append(refuse.old_dkms(host, options, plan["driver"]))
    if plan["action"] != "none":
        others = {name: state for name, state in host["broken"].items() if not refuse.own(name, host)}
        found.append(refuse.unfinished(others))
    if plan["action"] in ("install", "change") or plan["build"]:
        found.extend(refuse.full(host))
    return [sentence for sentence in found if sentence]


def facts(plan: Plan) -> dict[str, str | None]:
    """For the host's local facts; empty while nothing is installed."""
    if not plan["installed"]:
        return {}
    return {
        "version": plan["installed"],
        "driver": upstream(plan["installed"]),
        "flavour": plan["flavour"],
        "source": plan["source"],
    }
