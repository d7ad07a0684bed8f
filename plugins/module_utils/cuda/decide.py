# SPDX-License-Identifier: GPL-3.0-or-later
"""Which toolkits belong on a host, in which package and exact version, and what forbids it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.cuda import packages, versions
from ansible_collections.onprem.llm.plugins.module_utils.cuda.packages import Package


class Settings(NamedTuple):
    """What a site wants."""

    source: str
    """distro, nvidia_repo or none."""
    versions: Sequence[str]
    """Releases, the default first; empty is the distribution's own."""
    pins: Mapping[str, str]
    """Release -> exact version of its package."""
    architectures: Sequence[str]
    """Compute capabilities."""
    blocked: Mapping[str, str]
    """Release -> why it may not be used."""
    root: str
    """Folder of the homes."""


class Toolkit(NamedTuple):
    """A wanted toolkit; None is not known before package sources are there."""

    version: str | None
    package: str
    package_version: str | None
    installed: bool
    home: str | None


class Decision(NamedTuple):
    toolkits: list[Toolkit]
    refused: list[str]
    warned: list[str]

    @property
    def install(self) -> list[str]:
        """For apt."""
        return [f"{one.package}={one.package_version}" for one in self.toolkits if not one.installed]


def packages_of(settings: Settings) -> dict[str, str]:
    """Release -> package. A distribution has one toolkit, whatever its release is: the key is then empty."""
    if settings.source == "none":
        return {}
    if settings.source == "distro":
        return {(*settings.versions, *settings.pins, "")[0]: packages.DISTRO}
    return {version: f"cuda-toolkit-{version.replace('.', '-')}" for version in settings.versions}


def decide(
    settings: Settings, installed: Iterable[Package], offers: Mapping[str, Sequence[str]] | None, runs: str | None
) -> Decision:
    """What is installed stays, unless another version is pinned.

    offers: package -> versions that apt has, the one it would install first; None while package sources are to be
    written. runs: newest CUDA of the driver.
    """
    done = Decision([], _settings(settings), [])
    have = {one.name: one.version for one in installed}
    for asked, package in packages_of(settings).items() if not done.refused else ():
        there, pin = have.get(package, ""), settings.pins.get(asked, "")
        offered = (offers or {}).get(package, [])
        wanted = pin or there or next(iter(offered), "")
        version = (versions.of_package(wanted) if package == packages.DISTRO else "") or asked
        if version:
            done.refused.extend(_release(settings, version, runs))
            done.warned.extend(filter(None, [versions.driver_warning(version, runs)]))
        if package == packages.DISTRO and wanted and settings.versions and version != asked:
            done.refused.append(
                f"cuda_toolkit_versions asks for {asked}, and the distribution has {version} ({wanted}). Leave "
                "cuda_toolkit_versions empty, or set cuda_toolkit_source: nvidia_repo."
            )
        if offers is not None and wanted != there and wanted not in offered:
            done.refused.append(
                f"cuda_toolkit_package_versions asks for {package} {pin}, and this host's package sources offer "
                f"{', '.join(offered) or 'none'}. Correct the version, or give the host a source that has it."
            )
        if offers is not None and not wanted:
            done.refused.append(
                f"No package source of this host offers {package}. Look at `apt-get update` and `apt-cache policy "
                f"{package}`, at cuda_toolkit_versions, and at the mirror if there is one."
            )
        home = f"{settings.root}/{version}" if version else None
        here = bool(wanted) and wanted == there
        done.toolkits.append(Toolkit(version or None, package, wanted or None, here, home))
    return done


def _release(settings: Settings, version: str, runs: str | None) -> list[str]:
    """Everything that speaks against one release on this host."""
    found = [versions.blocked_refusal(version, "cuda_toolkit_versions asks for", settings.blocked)]
    found += [versions.driver_refusal(version, runs)]
    found += [versions.architecture_refusal(version, one) for one in settings.architectures]
    return [one for one in found if one]


def _settings(settings: Settings) -> list[str]:
    """What is wrong with the settings themselves."""
    asked, found = settings.versions, []
    if settings.source == "nvidia_repo" and not asked:
        found.append(
            "cuda_toolkit_source is nvidia_repo and cuda_toolkit_versions is empty. NVIDIA's repository has many "
            'releases: name yours, the default first, as in ["12.8"].'
        )
    if settings.source == "distro" and len(asked) > 1:
        found.append(
            f"cuda_toolkit_versions names {', '.join(asked)}, and a distribution has one toolkit. Name that one or "
            "none, "
            "or set cuda_toolkit_source: nvidia_repo."
        )
    for name, numbers in (("versions", asked), ("architectures", settings.architectures)):
        for one in numbers:
            if not re.fullmatch(r"\d+\.\d+", one):
                found.append(f"cuda_toolkit_{name} holds '{one}'. It takes two numbers in quotes, as in \"12.8\".")
    for version in settings.pins:
        if asked and version not in asked:
            found.append(
                f"cuda_toolkit_package_versions pins {version}, and cuda_toolkit_versions ({', '.join(asked)}) has no "
                "such "
                "release. Take it out there, or add it here."
            )
    return found
