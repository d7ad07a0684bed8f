# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases of the CUDA toolkit: what each compiles for, which drivers run it, and which may not be used."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: First release that compiles for a compute capability (release notes of CUDA; those before 11.8 are left out).
SINCE = {"8.9": "11.8", "9.0": "11.8", "10.0": "12.8", "12.0": "12.8", "10.3": "12.9", "12.1": "12.9", "11.0": "13.0"}
#: First release that no longer compiles for what is older than a compute capability.
UNTIL = {"12.0": "5.0", "13.0": "7.5"}
#: Every release since 11.0 compiles for it.
ANY = "8.0"


def number(version: str) -> tuple[int, int]:
    """12.8 and 12.8.93 are (12, 8)."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def release(nvcc: str) -> str:
    """Release in what ``nvcc --version`` prints, as in 12.4; empty when it names none."""
    found = re.search(r"\brelease (\d+\.\d+)\b", nvcc)
    return found[1] if found else ""


def of_package(version: str) -> str:
    """Release in a package's version: 12.4.131~12.4.1-2 and 12.8.1-1 are 12.4 and 12.8; empty when there is none."""
    found = re.search(r"~(\d+\.\d+)\.", version) or re.match(r"(?:\d+:)?(\d+\.\d+)", version)
    return found[1] if found else ""


def compilers(listed: str) -> list[str]:
    """Compute capabilities in what ``nvcc --list-gpu-code`` prints: sm_89 and sm_120 are 8.9 and 12.0."""
    return [capability(code) for code in re.findall(r"\bsm_(\d+)\b", listed)]


def capability(code: str) -> str:
    return f"{code[:-1]}.{code[-1]}"


def blocked(version: str, reasons: Mapping[str, str]) -> str:
    """Why a release may not be used; empty when it may. ``reasons`` has releases as keys."""
    return reasons.get(".".join(version.split(".")[:2]), "")


def blocked_refusal(version: str, subject: str, reasons: Mapping[str, str]) -> str:
    """subject: what has this release, with its verb, as in ``/usr/bin/nvcc is``; empty when it may be used."""
    why = blocked(version, reasons)
    if not why:
        return ""
    return f"{subject} CUDA {version}: {why}. Choose another release, and remove this one where it is installed."


def driver_refusal(version: str, runs: str | None) -> str:
    """Why a driver cannot run what this release compiles; empty when it can, or when its limit is not known.

    runs: newest CUDA of the driver, as nvidia-smi prints it. Within one major release an older driver runs newer
    programs (NVIDIA's minor version compatibility), so only the major release counts.
    """
    if not runs or number(version)[0] <= number(runs)[0]:
        return ""
    return (
        f"CUDA {version} compiles what this host's driver cannot run: it runs CUDA up to {runs}. Install a newer "
        "driver "
        f"(nvidia_driver_source, nvidia_driver_version), or a toolkit up to {number(runs)[0]}.x "
        "(cuda_toolkit_versions)."
    )


def driver_warning(version: str, runs: str | None) -> str:
    """What to know of a driver that is older than the release and runs it nevertheless."""
    if not runs or number(version) <= number(runs) or driver_refusal(version, runs):
        return ""
    return (
        f"CUDA {version} is newer than this host's driver ({runs}). It runs what is compiled for the card's own "
        "architecture; code kept as PTX needs a newer driver."
    )


def architecture_refusal(version: str, capability: str) -> str:
    """Why this release cannot compile for a compute capability; empty when it can, or when that is not known."""
    have, want = number(version), number(capability)
    since = SINCE.get(capability)
    if since and have < number(since):
        return (
            f"CUDA {version} knows no compute capability {capability}: {since} is the first release that does. Set "
            f'cuda_toolkit_source: nvidia_repo and cuda_toolkit_versions: ["{max(since, "12.8", key=number)}"], or '
            "take "
            f"{capability} out of cuda_toolkit_architectures."
        )
    for first, oldest in UNTIL.items():
        if have >= number(first) and want < number(oldest):
            return (
                f"CUDA {version} compiles no more for compute capability {capability}: from {first} on the oldest is "
                f"{oldest}. Choose a release before {first} (cuda_toolkit_versions), or take {capability} out of "
                "cuda_toolkit_architectures."
            )
    return ""
