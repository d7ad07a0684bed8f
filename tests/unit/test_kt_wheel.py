# SPDX-License-Identifier: GPL-3.0-or-later
"""KTransformers from wheels: hosts that cannot run it are refused before anything is fetched, with the way out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import wheel
from ansible_collections.onprem.llm.plugins.module_utils.placement.engines import RULES

sys.path.insert(0, str(Path(__file__).parents[1]))
from machines import hardware

PROJECT = Path(__file__).parents[2]
LOCKS = PROJECT / "requirements/ktransformers"
XEON = "spr-2s-xeon-gold-6430"
HASWELL = "hsx-2s-e5-2696v3"


def problems(machine: str = XEON, gpus: tuple[str, ...] = ("rtx-4090-24g",), **changes: Any) -> list[str]:
    keys = ("method", "version", "python", "interpreter", "path", "space", "check")
    settings = {
        **{"method": "wheel", "version": "0.7.2", "python": "3.11", "interpreter": "/usr/bin/python3"},
        **{"path": "/opt/onprem-llm/ktransformers", "space": 11_000_000_000, "check": False},
        **{key: changes.pop(key) for key in keys if key in changes},
    }
    facts = hardware(machine, gpus, **changes)
    facts["id"] = "moe1"
    return wheel.problems(facts, settings)


@pytest.mark.parametrize(
    ("machine", "gpus"),
    [
        (XEON, ("rtx-4090-24g",)),
        (HASWELL, ("rtx-3090",)),
        (XEON, ("h100-sxm5-80g",)),
        (XEON, ("rtx-2080ti-22g-modded", "rtx-4090-24g")),
        (XEON, ()),
    ],
)
def test_hosts_that_can(machine: str, gpus: tuple[str, ...]) -> None:
    assert problems(machine, gpus) == []
    assert problems(machine, gpus, python="3.12") == []


def test_debian_13_has_no_python_for_it() -> None:
    assert problems(python="3.13") == [
        "Python on moe1 is 3.13 (/usr/bin/python3); KTransformers 0.7.2 (wheel) exists for 3.11 and 3.12. Use a host "
        "with "
        "Debian 12 or Ubuntu 24.04, or install such a Python beside it and name it: ktransformers_python: "
        "/path/python3.12."
    ]


def test_glibc() -> None:
    assert problems(glibc="2.31", os="debian 11") == [
        "glibc on moe1 is 2.31 (debian 11); KTransformers 0.7.2 (wheel) needs 2.35. Use Debian 12, Ubuntu 22.04 or "
        "newer, "
        "or llama.cpp."
    ]
    assert problems(glibc=None) == []


@pytest.mark.parametrize(
    ("gpu", "method", "said"),
    [
        (
            "rtx-2080ti-22g-modded",
            "wheel",
            "has compute capability 7.5; KTransformers 0.7.2 (wheel) needs 8.0 or newer and below 10.0. Use "
            "llama.cpp, or "
            "pin classic KTransformers (ktransformers_install_method: classic), or a newer card.",
        ),
        (
            "rtx-5090",
            "wheel",
            "has compute capability 12.0; KTransformers 0.7.2 (wheel) needs 8.0 or newer and below 10.0. Set "
            "ktransformers_install_method: source, or use llama.cpp.",
        ),
        ("rtx-2080ti-22g-modded", "source", "needs 8.0 or newer. Use llama.cpp, or pin classic"),
    ],
)
def test_cards_it_was_not_built_for(gpu: str, method: str, said: str) -> None:
    (found,) = problems(gpus=(gpu,), method=method)
    assert said in found and "in moe1" in found


def test_what_other_methods_allow() -> None:
    assert problems(gpus=("rtx-5090",), method="source") == []
    assert problems(HASWELL, ("rtx-2080ti-22g-modded",), method="classic") == []
    assert "exists for 3.11." in problems(method="classic", python="3.12")[0]


def test_the_driver() -> None:
    old = {"version": "470.256.02", "cuda": "11.4", "toolkit": None}
    assert problems(driver=old) == [
        "The NVIDIA driver on moe1 is 470.256.02; KTransformers 0.7.2 (wheel) needs 525, better 570 or newer. "
        "Install a newer driver, restart, and run again."
    ]
    assert problems(driver={"version": "535.309.01", "cuda": "12.2", "toolkit": None}) == []


def test_a_driver_that_does_not_work_yet() -> None:
    """A check comes before the driver is installed; a run comes after."""
    facts = hardware(XEON, ("rtx-4090-24g",))
    facts["driver"]["state"] = "reboot_required"
    settings = {"method": "wheel", "version": "0.7.2", "python": "3.11", "interpreter": "p", "path": "/opt", "space": 0}
    assert wheel.problems(facts, {**settings, "check": True}) == []
    (found,) = wheel.problems(facts, {**settings, "check": False})
    assert "the state of the NVIDIA driver is 'reboot_required'" in found


def test_the_processor() -> None:
    facts = hardware(XEON, ("rtx-4090-24g",))
    facts["cpu"]["isa"] = ["avx"]
    settings = {"method": "wheel", "version": "0.7.2", "python": "3.11", "interpreter": "p", "path": "/opt", "space": 0}
    (found,) = wheel.problems(facts, {**settings, "check": False})
    assert "lacks avx2, which KTransformers 0.7.2 (wheel) needs. Use llama.cpp on this host." in found
    facts["architecture"] = "aarch64"
    assert "is aarch64; KTransformers" in wheel.problems(facts, {**settings, "check": False})[0]


def test_room() -> None:
    disk = {"path": "/opt", "total": 20 * 10**9, "free": 9 * 10**9, "filesystem": "ext4", "network": False}
    assert problems(disk={**disk, "rotational": False}) == [
        "/opt/onprem-llm/ktransformers on moe1 has 9.0 GB free; KTransformers 0.7.2 (wheel) takes 11 GB. Make room, "
        "or put "
        "opt_dir on a larger disk."
    ]
    assert problems(disk={**disk, "rotational": False}, space=0) == []


def test_every_problem_is_told_at_once() -> None:
    assert len(problems(gpus=("rtx-5090",), python="3.13", glibc="2.31")) == 3


# The locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", RULES["ktransformers"].python)
def test_the_locks_hold_all_that_it_needs(python: str) -> None:
    text = (LOCKS / f"py{python}.txt").read_text()
    pins = dict(re.findall(r"(?m)^([a-z0-9._-]+)==([^ ;]+)", text))
    assert pins["kt-kernel"] == pins["sglang-kt"] == "0.7.2"
    assert pins["torch"] == "2.9.1" and pins["nvidia-cuda-runtime-cu12"].startswith("12.8.")
    # Imported and undeclared; and what would overwrite the fork's module.
    assert "click" in pins and "sglang" not in pins and "transformers" not in pins
    assert "://" not in text


# The role ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [True, False])
def test_a_python_that_is_not_there(tmp_path: Path, check: bool) -> None:
    settings = {"ktransformers_python": f"{tmp_path}/python3.11", "ktransformers_api_key": "x" * 20}
    task = {"ansible.builtin.include_role": {"name": "onprem.llm.ktransformers", "tasks_from": "preflight"}}
    play = {"hosts": "moe1", "connection": "local", "gather_facts": False, "vars": settings, "tasks": [task]}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "moe1,", str(tmp_path / "play.yml")]
    command += ["-e", f"ansible_python_interpreter={sys.executable}", *(["--check"] if check else [])]
    for name in ("paths", "artifacts"):
        command += ["-e", f"@group_vars/all/{name}.yml"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert f"ktransformers_python is {tmp_path}/python3.11, and moe1 cannot run it. " in said
    assert "Name a Python that is there, install this one, or leave it empty to take the host's own." in said
