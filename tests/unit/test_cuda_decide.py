# SPDX-License-Identifier: GPL-3.0-or-later
"""CUDA toolkits: what belongs on a host and what is refused, from what apt, dpkg and nvcc print.

Texts of apt and dpkg are those of Debian 13 (nvidia-cuda-toolkit 12.4.131~12.4.1-2) and 12 (11.8.89~11.8.0-5~deb12u1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.onprem.llm.plugins.module_utils.cuda import decide, packages, versions
from ansible_collections.onprem.llm.plugins.module_utils.cuda.decide import Decision, Settings
from ansible_collections.onprem.llm.plugins.module_utils.cuda.packages import Package

ROOT = Path(__file__).parents[2]
BLOCKED = yaml.safe_load((ROOT / "group_vars/all/floors.yml").read_text())["cuda_blocked"]
TRIXIE, BOOKWORM = "12.4.131~12.4.1-2", "11.8.89~11.8.0-5~deb12u1"
HOME = "/opt/onprem-llm/cuda_toolkit"

POLICY = f"""nvidia-cuda-toolkit:
  Installed: {TRIXIE}
  Candidate: {TRIXIE}
  Version table:
 *** {TRIXIE} 500
        500 http://mirror trixie/non-free amd64 Packages
        100 /var/lib/dpkg/status
     12.2.140~12.2.2-1 500
        500 http://mirror older/non-free amd64 Packages
"""
SIMULATED = """Inst libcuda1 (550.163.01-2 Debian:13.7/stable [amd64])
Inst linux-libc-dev [6.12.94-1] (6.12.117-1 Debian-Security:13/stable-security [all])
Inst nvidia-cuda-toolkit (12.4.131~12.4.1-2 Debian:13.7/stable [amd64])
Conf libcuda1 (550.163.01-2 Debian:13.7/stable [amd64])
"""
URIS = """'http://mirror/pool/nvidia-cuda-toolkit_12.4.131%7e12.4.1-2_amd64.deb' toolkit.deb 43210 SHA256:00
'file:/srv/libcuda1.deb' libcuda1_550.deb 790 MD5Sum:00
"""
SHOWN = """Package: nvidia-cuda-toolkit
Installed-Size: 130
Depends: nvidia-profiler

Package: libcuda1
Installed-Size: 3
"""
INSTALLED = """libcublas12:amd64\tnvidia-cuda-toolkit\t12.4.5.8~12.4.1-2\tinstall\tinstalled
libcuda1:amd64\tnvidia-graphics-drivers\t550.163.01-2\tinstall\tinstalled
nvidia-cuda-toolkit\tnvidia-cuda-toolkit\t12.4.131~12.4.1-2\thold\tinstalled
cuda-nvcc-12-8\tcuda-nvcc-12-8\t12.8.93-1\tinstall\tinstalled
cuda-toolkit-12-8\tcuda-toolkit-12-8\t12.8.1-1\tinstall\tinstalled
cuda-toolkit-13-0\tcuda-toolkit-13-0\t13.0.2-1\tinstall\thalf-configured
old\told\t1\tdeinstall\tconfig-files
"""


def decided(
    source: str = "distro",
    asked: tuple[str, ...] = (),
    *,
    pins: dict[str, str] | None = None,
    capabilities: tuple[str, ...] = (),
    installed: str = "",
    offers: dict[str, list[str]] | None = None,
    runs: str | None = None,
) -> Decision:
    there = [Package("nvidia-cuda-toolkit", "nvidia-cuda-toolkit", installed, False)] if installed else []
    settings = Settings(source, asked, pins or {}, capabilities, BLOCKED, HOME)
    return decide.decide(settings, there, offers, runs)


# --- what is printed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Cuda compilation tools, release 12.4, V12.4.131\nBuild cuda_12.4.r12.4/compiler.34097967_0", "12.4"),
        ("Cuda compilation tools, release 13.0, V13.0.88", "13.0"),
        ("nvcc: not found", ""),
    ],
)
def test_release_of_nvcc(text: str, found: str) -> None:
    assert versions.release(text) == found


@pytest.mark.parametrize(
    ("version", "found"),
    [
        (TRIXIE, "12.4"),
        (BOOKWORM, "11.8"),
        ("12.0.140~12.0.1-4build4", "12.0"),
        ("12.8.1-1", "12.8"),
        ("1:13.0.2-1", "13.0"),
        ("unknown", ""),
    ],
)
def test_release_of_a_package(version: str, found: str) -> None:
    assert versions.of_package(version) == found


def test_what_nvcc_compiles_for() -> None:
    assert versions.compilers("sm_50\nsm_89\nsm_90\nsm_120\n") == ["5.0", "8.9", "9.0", "12.0"]


def test_offers_begin_with_the_candidate() -> None:
    assert packages.parse_offers(POLICY) == [TRIXIE, "12.2.140~12.2.2-1"]
    held_back = POLICY.replace(f"Candidate: {TRIXIE}", "Candidate: 12.2.140~12.2.2-1")
    assert packages.parse_offers(held_back) == ["12.2.140~12.2.2-1", TRIXIE]
    assert packages.parse_offers("nvidia-cuda-toolkit:\n  Installed: (none)\n  Candidate: (none)\n") == []
    assert packages.parse_offers("N: Unable to locate package cuda-toolkit-12-8\n") == []


def test_parts_of_a_toolkit() -> None:
    installed = packages.parse_installed(INSTALLED)
    assert [(one.name, one.held) for one in packages.parts(installed, packages.DISTRO)] == [
        ("libcublas12", False),
        ("nvidia-cuda-toolkit", True),
    ]
    assert [one.name for one in packages.parts(installed, "cuda-toolkit-12-8")] == [
        "cuda-nvcc-12-8",
        "cuda-toolkit-12-8",
    ]
    # What is not whole is not installed.
    assert packages.parts(installed, "cuda-toolkit-13-0") == []


def test_what_an_installation_takes() -> None:
    assert packages.parse_sizes(URIS, SHOWN) == (44_000, 133 * 1024)
    # What is in apt's cache already is not listed.
    assert packages.parse_sizes("", SHOWN)[0] == 0
    assert packages.parse_changes(SIMULATED) == [
        ("libcuda1", "550.163.01-2"),
        ("linux-libc-dev", "6.12.117-1"),
        ("nvidia-cuda-toolkit", TRIXIE),
    ]


# --- what is wanted


def test_a_fresh_host_gets_what_the_distribution_has_in_its_exact_version() -> None:
    done = decided(offers={"nvidia-cuda-toolkit": [TRIXIE]})
    assert done.refused == []
    assert done.install == [f"nvidia-cuda-toolkit={TRIXIE}"]
    assert done.toolkits[0]._asdict() == {
        "version": "12.4",
        "package": "nvidia-cuda-toolkit",
        "package_version": TRIXIE,
        "installed": False,
        "home": f"{HOME}/12.4",
    }


def test_what_is_installed_stays() -> None:
    newer = "12.4.140~12.4.2-1"
    done = decided(installed=TRIXIE, offers={"nvidia-cuda-toolkit": [newer, TRIXIE]})
    assert (done.refused, done.install) == ([], [])
    # Not even asked for by its release: also without any package source.
    assert decided(installed=TRIXIE, asked=("12.4",), offers={}).refused == []


def test_another_version_comes_when_it_is_pinned() -> None:
    newer = "12.4.140~12.4.2-1"
    offers = {"nvidia-cuda-toolkit": [newer, TRIXIE]}
    assert decided(installed=TRIXIE, pins={"12.4": newer}, offers=offers).install == [f"nvidia-cuda-toolkit={newer}"]
    assert decided(installed=newer, pins={"12.4": TRIXIE}, offers=offers).install == [f"nvidia-cuda-toolkit={TRIXIE}"]
    assert decided(installed=TRIXIE, pins={"12.4": TRIXIE}, offers={}).install == []
    (refused,) = decided(pins={"12.4": "12.4.9"}, offers=offers).refused
    assert "asks for nvidia-cuda-toolkit 12.4.9" in refused and f"offer {newer}, {TRIXIE}" in refused


def test_several_side_by_side() -> None:
    offers = {"cuda-toolkit-12-8": ["12.8.1-1"], "cuda-toolkit-13-0": ["13.0.2-1", "13.0.1-1"]}
    done = decided("nvidia_repo", ("13.0", "12.8"), pins={"13.0": "13.0.1-1"}, offers=offers)
    assert done.install == ["cuda-toolkit-13-0=13.0.1-1", "cuda-toolkit-12-8=12.8.1-1"]
    assert [one.home for one in done.toolkits] == [f"{HOME}/13.0", f"{HOME}/12.8"]


def test_none_is_nothing() -> None:
    assert decided("none", ("12.8",), offers={}) == ([], [], [])


def test_before_the_sources_are_there_only_settings_are_judged() -> None:
    done = decided()
    assert (done.refused, done.toolkits[0].version, done.toolkits[0].installed) == ([], None, False)
    assert decided("nvidia_repo", ("13.2",)).refused


# --- refusals


@pytest.mark.parametrize("version", ["12.8", "13.0", "13.1", "13.3", "13.10", "12.4"])
def test_releases_that_may_be_used(version: str) -> None:
    assert versions.blocked(version, BLOCKED) == ""


@pytest.mark.parametrize("version", ["13.2", "13.2.1"])
def test_a_blocked_release_is_refused_with_its_reason(version: str) -> None:
    assert "gibberish" in versions.blocked(version, BLOCKED)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"source": "nvidia_repo", "asked": ("12.8", "13.2")}, "asks for CUDA 13.2: its compiler breaks"),
        ({"source": "nvidia_repo"}, "cuda_toolkit_versions is empty"),
        ({"asked": ("12.4", "12.8")}, "a distribution has one toolkit"),
        ({"asked": ("12",)}, "cuda_toolkit_versions holds '12'"),
        ({"capabilities": ("89",)}, "cuda_toolkit_architectures holds '89'"),
        ({"asked": ("12.4",), "pins": {"12.8": "1"}}, "pins 12.8, and cuda_toolkit_versions (12.4) has no such"),
        ({"asked": ("12.8",), "offers": {"nvidia-cuda-toolkit": [TRIXIE]}}, "the distribution has 12.4"),
        ({"offers": {"nvidia-cuda-toolkit": []}}, "No package source of this host offers nvidia-cuda-toolkit"),
        ({"installed": TRIXIE, "capabilities": ("12.0",)}, "12.8 is the first release that does"),
        (
            {"installed": TRIXIE, "capabilities": ("10.3",)},
            "12.9 is the first release that does. Set cuda_toolkit_source",
        ),
        ({"installed": BOOKWORM, "runs": "11.4", "capabilities": ("8.9",)}, ""),
        ({"source": "nvidia_repo", "asked": ("13.0",), "capabilities": ("7.0",)}, "from 13.0 on the oldest is 7.5"),
        ({"source": "nvidia_repo", "asked": ("13.0",), "runs": "12.4"}, "it runs CUDA up to 12.4"),
    ],
)
def test_refusals_name_value_limit_and_way_out(how: dict[str, Any], said: str) -> None:
    refused = decided(**how).refused
    assert len(refused) == (1 if said else 0), refused
    assert said in " ".join(refused)
    for one in refused:
        assert one.endswith(".") and ("cuda_toolkit_" in one or "Choose" in one or "Look at" in one)


@pytest.mark.parametrize(
    "how",
    [
        {"installed": TRIXIE, "runs": None},
        {"installed": TRIXIE, "capabilities": ("8.9", "5.0", "9.0")},
        {"source": "nvidia_repo", "asked": ("12.8",), "capabilities": ("12.0", "5.0")},
        # Nobody knows yet who compiles for it: the smoke test will tell.
        {"source": "nvidia_repo", "asked": ("13.3",), "capabilities": ("14.0",)},
        {"source": "nvidia_repo", "asked": ("12.8",), "runs": "12.4"},
    ],
)
def test_what_is_unknown_refuses_nothing(how: dict[str, Any]) -> None:
    assert decided(**how).refused == []


def test_a_driver_of_the_same_major_release_runs_it_with_a_warning() -> None:
    (warned,) = decided("nvidia_repo", ("12.8",), runs="12.4").warned
    assert "12.8 is newer than this host's driver (12.4)" in warned
    assert decided("nvidia_repo", ("12.8",), runs="12.8").warned == []
    assert decided("nvidia_repo", ("13.0",), runs="12.8").warned == []


def test_space_is_counted_per_file_system() -> None:
    def refused(archives: tuple[int, int], system: tuple[int, int]) -> str:
        return packages.space_refusal(1_900_000_000, 5_100_000_000, archives, system)

    gigabyte = 10**9
    assert refused((1, 7 * gigabyte), (1, 7 * gigabyte)) == ""
    assert "the file system of /usr and /var/cache/apt has 6.0 GB free. Make room (1.0 GB are missing)" in refused(
        (1, 6 * gigabyte), (1, 6 * gigabyte)
    )
    assert refused((1, 2 * gigabyte), (2, 6 * gigabyte)) == ""
    assert "/var/cache/apt/archives has 1.0 GB free" in refused((1, gigabyte), (2, 6 * gigabyte))
    assert "/usr has 5.0 GB free" in refused((1, 2 * gigabyte), (2, 5 * gigabyte))


@pytest.mark.parametrize(
    ("driver", "refused"),
    [("550.163.01", False), (None, False), ("580.126.09", True), ("550.163.0", True), ("50.163.01", True)],
)
def test_the_toolkit_never_brings_another_drivers_libraries(driver: str | None, refused: bool) -> None:
    said = packages.driver_refusal(packages.parse_changes(SIMULATED), driver)
    assert bool(said) == refused
    assert not refused or f"libcuda1 550.163.01-2 beside the driver {driver}" in said


def test_what_apt_complains_about() -> None:
    said = "Reading package lists...\nE: Unable to correct problems, you have held broken packages.\n"
    assert packages.complaint(said) == "E: Unable to correct problems, you have held broken packages."
    assert packages.complaint("") == "it names no reason; run `apt-get check`."
