# SPDX-License-Identifier: GPL-3.0-or-later
"""Two hosts without a card: one takes its driver from a repository in NVIDIA's form, the other from Debian."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import testinfra
from conftest import INVENTORY, SSH_CONFIG, one_line, playbook, untouched

SCENARIO = Path(__file__).resolve().parents[1]
# As the inventory has it.
REPOSITORY = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onprem-llm/drivers"
FACTS = "/etc/ansible/facts.d/onprem_llm.fact"
FIRST, NEWER, BROKEN = "590.44.01", "590.50.02", "590.60.13"


def connect(name: str) -> Any:
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=str(INVENTORY), ssh_config=str(SSH_CONFIG))


@pytest.fixture(scope="module")
def drive1() -> Any:
    return connect("drive1")


@pytest.fixture(scope="module")
def drive2() -> Any:
    return connect("drive2")


def drivers(host: str, *arguments: str, **settings: Any) -> tuple[int, int, str]:
    """Runs the stage on a host with some variables set otherwise: exit code, number of changes, what it said."""
    done = playbook("playbooks/drivers.yml", "--limit", host, "-e", json.dumps(settings), *arguments)
    said = one_line(done.stdout + done.stderr)
    found = re.search(rf"{host} : ok=\d+ changed=(\d+)", said)
    assert found, said
    return done.returncode, int(found[1]), said


def offer(drive1: Any, *versions: str) -> None:
    """The repository has these versions from now on, and apt knows."""
    subprocess.run([sys.executable, SCENARIO / "repository.py", REPOSITORY, *versions], check=True)
    drive1.check_output("apt-get --quiet=2 update")


def version(host: Any, package: str) -> str:
    return str(host.check_output(f"dpkg-query --show --showformat '${{Version}}' {package}"))


def apt_works(host: Any) -> None:
    assert host.check_output("dpkg --audit") == ""
    host.check_output("apt-get check")


# --- what the first run made


def test_the_driver_is_built_for_every_kernel(drive1: Any) -> None:
    kernels = drive1.check_output("ls /lib/modules").split()
    assert len(kernels) == 2
    for kernel in kernels:
        assert f"nvidia/{FIRST}, {kernel}, x86_64: installed" in drive1.check_output(f"dkms status -k {kernel}")
        assert drive1.check_output(f"modinfo -k {kernel} -F version nvidia") == FIRST


def test_the_repository_gives_what_is_asked_for_and_nothing_else(drive1: Any) -> None:
    policy = drive1.check_output("apt-cache policy nvidia-kernel-open-dkms cuda-toolkit-12-8 nvidia-smi")
    assert f"{FIRST}-1 1001" in policy
    assert re.search(r"12\.8\S+ 100\b", policy)
    assert not drive1.file("/etc/apt/sources.list.d/cuda-keyring.list").exists
    assert (
        "Signed-By: /etc/apt/keyrings/onprem-llm-nvidia.gpg"
        in drive1.file("/etc/apt/sources.list.d/onprem-llm-nvidia.sources").content_string
    )


def test_debian_brings_its_own_libraries(drive2: Any) -> None:
    assert version(drive2, "libcuda1") == version(drive2, "nvidia-smi") == "550.163.01-2"
    # Debian's alternative is whole, and the real program speaks: there is no driver to talk to.
    assert drive2.run("nvidia-smi").rc == 9
    assert "nvidia-current" in drive2.check_output("modprobe --showconfig")


@pytest.mark.parametrize("name", ["drive1", "drive2"])
def test_a_host_without_a_card_is_healthy(name: str) -> None:
    host = connect(name)
    assert host.check_output("systemctl --failed --plain --no-legend") == ""
    assert host.service("nvidia-ready").is_enabled
    # As at the next boot.
    host.check_output("systemctl start nvidia-ready.service systemd-modules-load.service")
    assert host.check_output("systemctl --failed --plain --no-legend") == ""
    assert host.check_output("modprobe --showconfig | grep -cx 'blacklist nouveau'") != "0"
    assert not host.file("/etc/modules-load.d/nvidia.conf").is_symlink


def test_persistence_waits_for_a_driver(drive2: Any) -> None:
    drive2.check_output("systemctl start nvidia-persistenced.service")
    assert drive2.check_output("systemctl show --property=ConditionResult --value nvidia-persistenced.service") == "no"


@pytest.mark.parametrize(("name", "expected"), [("drive1", f"{FIRST}-1"), ("drive2", "550.163.01-2+tiny")])
def test_it_is_written_down(name: str, expected: str) -> None:
    local = json.loads(connect(name).check_output(f"cat {FACTS}"))
    assert local["components"]["nvidia_driver"]["version"] == expected
    assert local["debts"] == []


def test_the_packages_are_held(drive2: Any) -> None:
    held = drive2.check_output("apt-mark showhold").split()
    assert {"nvidia-kernel-dkms", "libcuda1", "nvidia-smi", "nvidia-kernel-support"} <= set(held)


# --- later


def test_a_newer_driver_changes_nothing(drive1: Any) -> None:
    offer(drive1, FIRST, NEWER, BROKEN)
    assert "Inst nvidia" not in drive1.check_output("apt-get --simulate full-upgrade")
    with untouched(drive1):
        code, changed, said = drivers("drive1")
    assert (code, changed) == (0, 0), said
    assert version(drive1, "nvidia-kernel-open-dkms") == f"{FIRST}-1"


@pytest.mark.long
def test_check_mode_names_the_version(drive1: Any) -> None:
    with untouched(drive1):
        code, _, said = drivers("drive1", "--check", nvidia_driver_version=NEWER)
    assert code == 0, said
    assert f"Change to NVIDIA driver {NEWER}-1 (open, nvidia_repo)" in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "expected"), [("distro", "Install NVIDIA driver 550."), ("nvidia_repo", "Install NVIDIA driver 590.")]
)
def test_check_mode_names_it_on_a_fresh_host(tmp_path: Path, source: str, expected: str) -> None:
    more = tmp_path / "more.ini"
    more.write_text("[nvidia_driver]\ndrive3\n")
    with untouched(connect("drive3")):
        code, _, said = drivers("drive3", "--check", "-i", str(more), nvidia_driver_source=source)
    assert code == 0, said
    assert expected in said


def test_a_failed_build_is_explained_and_undone(drive1: Any) -> None:
    code, _, said = drivers("drive1", nvidia_driver_version=BROKEN)
    assert code == 2
    assert "error: #error too few arguments to function 'pci_resize_resource'" in said.replace("''", "'")
    assert f"The open driver {BROKEN} could not be built for kernel" in said
    assert "Three ways out" in said
    assert "The versions of before were put back." in said
    apt_works(drive1)
    assert version(drive1, "nvidia-kernel-open-dkms") == f"{FIRST}-1"
    assert "nvidia-kernel-open-dkms" in drive1.check_output("apt-mark showhold").split()
    pinned = drive1.file("/etc/apt/preferences.d/onprem-llm-nvidia_driver").content_string
    assert f"Pin: version {FIRST}*" in pinned and BROKEN not in pinned
    test_the_driver_is_built_for_every_kernel(drive1)
    # As if nothing had happened.
    code, _, said = drivers("drive1")
    assert code == 0, said
    assert drivers("drive1")[:2] == (0, 0)


@pytest.mark.long
def test_what_another_run_left_unfinished_is_finished(drive1: Any) -> None:
    drive1.check_output(
        "dkms remove nvidia/%s --all && dpkg --unpack /srv/nvidia/nvidia-kernel-open-dkms_%s-1_amd64.deb", FIRST, FIRST
    )
    assert drive1.check_output("dpkg --audit") != ""
    code, _, said = drivers("drive1")
    assert code == 0, said
    assert "Repair NVIDIA driver" in said
    apt_works(drive1)
    test_the_driver_is_built_for_every_kernel(drive1)


@pytest.mark.long
def test_limits_come_and_go(drive2: Any) -> None:
    code, _, said = drivers("drive2", nvidia_driver_power_limit=250, nvidia_driver_clocks="210,1800")
    assert code == 0, said
    for unit in ("nvidia-ready", "nvidia-power"):
        assert drive2.service(unit).is_enabled
        drive2.check_output(f"systemd-analyze verify /etc/systemd/system/{unit}.service")
        score = drive2.check_output(f"systemd-analyze security --no-pager {unit}.service | tail -n 1")
        assert float(re.findall(r"\d+\.\d", score)[0]) <= 2.0, score
    code, _, said = drivers("drive2")
    assert code == 0, said
    assert not drive2.file("/etc/systemd/system/nvidia-power.service").exists


# --- what is refused


REFUSED = [
    ({"nvidia_driver_source": "runfile"}, "nvidia_driver_runfile names no version"),
    ({"nvidia_driver_clocks": "fast"}, "nvidia_driver_clocks is 'fast'"),
    ({"nvidia_driver_version": "1.2.3"}, "nvidia_driver_version is 1.2.3, and apt offers"),
    (
        {
            "nvidia_repository_key": {
                "version": "1",
                "url": "file:///srv/nvidia/cuda-keyring_1.1-1_all.deb",
                "sha256": "0" * 64,
            }
        },
        "sha256",
    ),
]


@pytest.mark.parametrize(("settings", "expected"), REFUSED, ids=[next(iter(one[0])) for one in REFUSED])
def test_bad_settings_end_in_a_message(drive1: Any, settings: dict[str, Any], expected: str) -> None:
    code, _, said = drivers("drive1", **settings)
    assert code == 2
    assert expected in said.replace("''", "'")
    apt_works(drive1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("/usr/bin/nvidia-uninstall", "", "NVIDIA's installer has put a driver here"),
        (
            "/etc/apt/sources.list.d/cuda.list",
            "deb file:/srv/nvidia/ /\ndeb file:///srv/nvidia /\n",
            "has a source of file:///srv/nvidia/ already: /etc/apt/sources.list.d/cuda.list",
        ),
    ],
)
def test_leftovers_end_in_a_message(drive1: Any, path: str, content: str, expected: str) -> None:
    drive1.check_output(f"printf '%s' '{content}' >{path}")
    try:
        code, changed, said = drivers("drive1")
        assert (code, changed) == (2, 0)
        assert expected in said.replace("''", "'")
    finally:
        drive1.check_output(f"rm {path}")
