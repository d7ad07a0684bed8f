# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver of a host, as it is read: texts of dkms, dpkg, apt, mokutil and make.log, headers, firmware, disks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines
import nvidia_hosts
import pytest
from nvidia_hosts import NEW, OLD, Machine

from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import (
    dkms,
    kernels,
    look,
    packages,
    plan,
    secure_boot,
    verify,
)
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import Options, order, upstream


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nvidia-current/550.163.01, 6.12.117+deb13-amd64, x86_64: installed", ("nvidia-current", "installed", "")),
        ("nvidia-current-open/550.163.01: added", ("nvidia-current-open", "added", "")),
        ("nvidia/550.163.01, 6.12.117+deb13-amd64, x86_64: built", ("nvidia", "built", "")),
        # dkms 2, by its manual
        ("nvidia, 550.163.01, 5.10.0-32-amd64, x86_64: installed", ("nvidia", "installed", "")),
        ("nvidia-current, 550.163.01: added", ("nvidia-current", "added", "")),
        (
            "nvidia/550.163.01, 6.1.0-37-amd64, x86_64: installed (WARNING! Diff between built and installed module!)",
            ("nvidia", "installed", "WARNING! Diff between built and installed module!"),
        ),
        (
            "nvidia-open/550.163.01, 6.1.0-37-amd64, x86_64: installed (Original modules exist)",
            ("nvidia-open", "installed", "Original modules exist"),
        ),
    ],
)
def test_dkms_status(text: str, expected: tuple[str, str, str]) -> None:
    (found,) = dkms.parse_status(f"zfs/2.3.2, 6.12.117+deb13-amd64, x86_64: installed\n{text}\nnvidia-fs/2.20: added\n")
    assert (found["name"], found["state"], found["warning"]) == expected
    assert found["version"] == "550.163.01"


def test_dkms_status_of_nothing() -> None:
    assert dkms.parse_status("") == [] == dkms.parse_status("Error! Could not locate dkms.conf file.\nnonsense")


def test_the_errors_of_a_log() -> None:
    assert dkms.errors(nvidia_hosts.MAKE_LOG.format(kernel=NEW)) == [nvidia_hosts.SEEN]
    many = "\n".join(f"/a/b.c:{n}:1: error: number {n}" for n in range(9))
    assert dkms.errors(many) == ["b.c:6:1: error: number 6", "b.c:7:1: error: number 7", "b.c:8:1: error: number 8"]
    assert dkms.errors("gcc: fatal error: Killed signal terminated program cc1\nmake: *** [x] Error 1") == [
        "gcc: fatal error: Killed signal terminated program cc1"
    ]
    assert dkms.errors("one\ntwo\n\nthree\nfour") == ["two", "three", "four"]


def test_a_log_of_another_kernel_is_no_reason(tmp_path: Path) -> None:
    """There is one make.log, of the last build that failed."""
    host = Machine(tmp_path)
    host.kernel(OLD, form="old")
    host.kernel(NEW, running=True)
    host.driver("open", built=False)
    log = tmp_path / "var/lib/dkms/nvidia-current-open/550.163.01/build/make.log"
    machines.write(log, nvidia_hosts.MAKE_LOG.format(kernel=NEW))
    assert [one["errors"] for one in host.see()["kernels"]] == [[], [nvidia_hosts.SEEN]]


@pytest.mark.parametrize(
    ("name", "flavour", "rt"),
    [
        (NEW, "amd64", False),
        ("6.12.117+deb13-cloud-amd64", "cloud-amd64", False),
        ("6.12.117+deb13-rt-amd64", "rt-amd64", True),
        ("6.1.0-37-amd64", "amd64", False),
        ("6.1.0-37-cloud-amd64", "cloud-amd64", False),
        ("6.1.0-0.deb11.13-amd64", "amd64", False),
        ("6.12.9+bpo-amd64", "amd64", False),
        ("6.8.0-41-generic", "generic", False),
        ("6.8.0-1016-realtime", "realtime", True),
        ("6.8.0-1010-aws", "aws", False),
        ("6.12.0", None, False),
    ],
)
def test_the_flavour_of_a_kernel(name: str, flavour: str | None, rt: bool) -> None:
    assert kernels.flavour(name) == flavour
    assert kernels.is_rt(kernels.flavour(name)) == rt


@pytest.mark.parametrize(
    ("version", "form"),
    [
        ("6.12.94-1", "old"),
        ("6.12.95-1", None),  # nobody looked between 6.12.94 and 6.12.97
        ("6.12.107-1", "new"),
        ("6.12.117+deb13-amd64", "new"),
        ("6.1.176-1", "old"),
        ("6.1.187-1", "new"),
        ("6.19.2-1~bpo13+1", "new"),
        ("6.16.3-1~bpo13+1", None),
        ("5.10.0-32-amd64", None),
        ("", None),
    ],
)
def test_the_form_that_a_version_lets_expect(version: str, form: str | None) -> None:
    assert kernels.expected_form(version) == form


def test_kernels(tmp_path: Path) -> None:
    host = Machine(tmp_path)
    host.kernel(NEW, form="new", running=True)
    host.kernel(OLD, form="old")
    host.kernel("6.12.120+deb13-amd64", form=None, headers=False)
    (tmp_path / "lib/modules/6.12.90+deb13-amd64/build").mkdir(parents=True)  # headers of a kernel that is gone
    host.installed("linux-image-amd64", "linux-image-rt-amd64")
    host.installed("linux-image-cloud-amd64", want="hold")
    host.dkms[OLD] = [f"nvidia-current/550.163.01, {OLD}, x86_64: installed"]
    host.modules[OLD] = ("nvidia-current", "550.163.01")
    host.modules[NEW] = ("nvidia", "570.172.08")
    seen = host.see()
    assert [one["name"] for one in seen["kernels"]] == [OLD, NEW, "6.12.120+deb13-amd64"]
    assert [one["form"] for one in seen["kernels"]] == ["old", "new", "new"]
    assert [one["headers"] for one in seen["kernels"]] == [True, True, False]
    assert [one["running"] for one in seen["kernels"]] == [False, True, False]
    assert [one["module"] for one in seen["kernels"]] == ["550.163.01", "570.172.08", None]
    assert [len(one["dkms"]) for one in seen["kernels"]] == [1, 0, 0]
    assert seen["metas"] == ["amd64", "rt-amd64"]


def test_headers_that_are_there_tell_more_than_a_version(tmp_path: Path) -> None:
    host = Machine(tmp_path)
    host.kernel(NEW, form="old")
    assert host.see()["kernels"][0]["form"] == "old"


def test_dpkg_and_apt(tmp_path: Path) -> None:
    assert packages.parse_dpkg(
        "libcuda1\t550.163.01-2\thold\tinstalled\nnvidia-smi\t1\tdeinstall\tconfig-files\nx\t\tunknown\tnot-installed\n"
    ) == {"libcuda1": {"version": "550.163.01-2", "state": "installed", "held": True}}
    text = (
        "linux-headers-amd64:\n  Installed: (none)\n  Candidate: 6.12.117-1\n  Version table:\n"
        "     6.12.117-1 500\n        500 http://mirror.test/debian-security trixie-security/main amd64 Packages\n"
        "     6.12.107-1 500\n        500 http://mirror.test/debian trixie/main amd64 Packages\n"
        "cuda-drivers:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n"
        "libcuda1:\n  Installed: 535.1-1\n  Candidate: 550.163.01-2\n  Version table:\n"
        "     550.163.01-2 500\n        500 http://mirror.test/debian trixie/non-free amd64 Packages\n"
        " *** 535.1-1 100\n        100 /var/lib/dpkg/status\n"
    )
    assert packages.parse_policy(text) == {
        "linux-headers-amd64": ["6.12.117-1", "6.12.107-1"],
        "libcuda1": ["550.163.01-2", "535.1-1"],
    }


def test_apt_is_asked_for_all_that_a_decision_needs(tmp_path: Path) -> None:
    host = Machine(tmp_path)
    host.kernel(NEW, running=True)
    host.installed("linux-image-amd64", "libnvidia-ml1")
    seen = host.see()
    both = {"nvidia-kernel-dkms", "nvidia-open-kernel-dkms", "libcuda1", "nvidia-smi", "nvidia-persistenced"}
    names = {"dkms", "libnvidia-ml1", f"linux-headers-{NEW}", "linux-headers-amd64"}
    assert set(packages.names(seen, Options(), [""])) >= names | both
    repository = set(packages.names(seen, Options(source="nvidia_repo", branch="580"), ["580"]))
    assert repository >= names | {"nvidia-open-580", "cuda-drivers-580"} and not repository & both
    assert set(packages.names(seen, Options(source="preinstalled"), [""])) & both == set()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvidia-kernel-dkms", True),
        ("libnvidia-ml1", True),
        ("libcuda1", True),
        ("firmware-nvidia-gsp", True),
        ("libegl-nvidia0", True),
        ("linux-modules-nvidia-570-server-6.8.0-41-generic", True),
        ("nvidia-cuda-toolkit", False),
        ("nvidia-container-toolkit", False),
        ("libnvidia-container1", False),
        ("libcudart12", False),
        ("linux-image-amd64", False),
    ],
)
def test_what_belongs_to_the_driver(name: str, expected: bool) -> None:
    assert packages.related(name) is expected


@pytest.mark.parametrize(
    ("version", "own"),
    [
        ("550.163.01-2", "550.163.01"),
        ("1:575.57.08-0ubuntu1", "575.57.08"),
        ("570.172.08-0ubuntu0.24.04.1", "570.172.08"),
    ],
)
def test_versions(version: str, own: str) -> None:
    assert upstream(version) == own
    assert order("580.95.05") < order("580.126.09") < order("590.1")


@pytest.mark.parametrize("on", [True, False])
def test_secure_boot_of_the_firmware(tmp_path: Path, on: bool) -> None:
    host = Machine(tmp_path)
    host.efi(on)
    assert host.see()["secure_boot"] == {"on": on, "lockdown": None, "enrolled": None, "key": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SecureBoot enabled\n", True),
        ("SecureBoot disabled\n", False),
        ("SecureBoot enabled\nSecureBoot validation is disabled in shim\n", False),
        ("EFI variables are not supported on this system\n", None),
        ("", None),
    ],
)
def test_what_mokutil_says_of_secure_boot(text: str, expected: bool | None) -> None:
    assert secure_boot.parse_state(text) is expected


@pytest.mark.parametrize(
    ("text", "rc", "expected"),
    [
        ("/var/lib/dkms/mok.pub is already enrolled\n", 1, True),
        ("/var/lib/dkms/mok.pub is not enrolled\n", 0, False),
        ("Failed to open /var/lib/dkms/mok.pub\n", 1, None),
    ],
)
def test_a_key_is_known_by_text_alone(tmp_path: Path, text: str, rc: int, expected: bool | None) -> None:
    """mokutil ends with 1 for a key that is enrolled, and for an error."""
    host = Machine(tmp_path)
    machines_key = tmp_path / "var/lib/dkms/mok.pub"
    machines_key.parent.mkdir(parents=True)
    machines_key.write_bytes(b"\x30\x82")
    host.mokutil = [
        {"args": ["--sb-state"], "stdout": "SecureBoot enabled\n"},
        {"args": ["--test-key"], "rc": rc, "stdout": text},
    ]
    found = host.see()["secure_boot"]
    assert found == {"on": True, "lockdown": None, "enrolled": expected, "key": "/var/lib/dkms/mok.pub"}


def test_lockdown() -> None:
    assert secure_boot.parse_lockdown("none [integrity] confidentiality\n") == "integrity"
    assert secure_boot.parse_lockdown("[none] integrity confidentiality\n") == "none"
    assert secure_boot.parse_lockdown(None) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blacklist nouveau\n", True),
        ("options x y\ninstall nouveau /bin/false\n", True),
        ("blacklist nouveaux\n# blacklist nouveau\n", False),
        (None, None),
    ],
)
def test_nouveau(tmp_path: Path, text: str | None, expected: bool | None) -> None:
    host = Machine(tmp_path)
    host.modprobe = text
    assert host.see()["nouveau"] == {"loaded": False, "blacklisted": expected}
    (tmp_path / "sys/module/nouveau").mkdir(parents=True)
    assert host.see()["nouveau"]["loaded"] is True


def test_room(tmp_path: Path) -> None:
    host = Machine(tmp_path)
    (tmp_path / "boot").mkdir()
    (tmp_path / f"boot/initrd.img-{NEW}").write_bytes(b"x" * 100)
    found = host.see()["space"]
    assert found["/boot"] == {"free": 400_000_000, "mount": "/boot", "need": 100 + look.SLACK}
    assert found["/usr"] == {"free": 40_000_000_000, "mount": "/", "need": look.NEEDS["/usr"]}


def test_what_else_is_seen(tmp_path: Path) -> None:
    host = Machine(tmp_path, ["rtx-4090-24g"])
    host.installed("zfs-dkms", version="2.3.2-2", state="half-configured")
    host.loaded("550.163.01")
    (tmp_path / "usr/bin").mkdir(parents=True, exist_ok=True)
    (tmp_path / "usr/bin/nvidia-uninstall").touch()
    seen = host.see()
    assert seen["broken"] == {"zfs-dkms": "half-configured"}
    assert (seen["loaded"], seen["smi"], seen["runfile"]) == ("550.163.01", "unknown", ["/usr/bin/nvidia-uninstall"])
    assert "nvidia-smi is not installed" in seen["smi_reason"]
    assert [(one["name"], one["capability"]) for one in seen["gpus"]] == [("NVIDIA GeForce RTX 4090", "8.9")]
    assert (seen["distribution"], seen["version"], seen["container"], seen["bus"]) == ("debian", "13", None, True)
    host.give_away("0000:18:00.0")
    assert host.see()["gpus"][0]["driver"] == "vfio-pci"


COMMANDS = (
    "dpkg-query",
    "apt-cache",
    "dkms",
    "modinfo",
    "mokutil",
    "modprobe",
    "df",
    "nvidia-smi",
    "systemd-detect-virt",
)
NONSENSE = (
    "",
    "\t\t\t\n",
    ": \n:\n",
    "nvidia/: installed\nnvidia,,,: \n",
    "x:\n  Candidate: \n",
    "\0\ufffd" * 40,
    "9" * 5000,
)


@pytest.mark.parametrize("text", NONSENSE)
@pytest.mark.parametrize("command", COMMANDS)
def test_nonsense_is_no_reason_to_fall_over(tmp_path: Path, command: str, text: str) -> None:
    host = Machine(tmp_path, ["rtx-4090-24g"])
    host.kernel(NEW, running=True)
    host.kernel("not-a-kernel", form=None, package="nonsense")
    host.driver()
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/initrd.img-old").symlink_to("gone")
    host.write()
    for rc in (0, 1):
        machines.command(tmp_path, command, {"rc": rc, "stdout": text})
        for source in ("distro", "nvidia_repo", "runfile", "preinstalled"):
            options = Options(source=source, branch="", version=text[:20])
            found = look.read(str(tmp_path), nvidia_hosts.nobody, options)
            decided = plan.decide(found, options)
            assert isinstance(verify.problems(found, decided.plan), list)
            assert isinstance(verify.debts(found, decided.plan), list)
