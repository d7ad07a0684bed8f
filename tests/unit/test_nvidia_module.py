# SPDX-License-Identifier: GPL-3.0-or-later
"""The module itself: on this machine for real, and on a recorded one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from nvidia_hosts import NEW, Machine

from ansible_collections.onprem.llm.plugins.module_utils import commands
from ansible_collections.onprem.llm.plugins.modules import nvidia_driver_info


def call(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    with patch_module_args({"_ansible_check_mode": True, **options}), pytest.raises(SystemExit):
        nvidia_driver_info.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize(
    ("source", "install"), [("distro", "auto"), ("nvidia_repo", "always"), ("preinstalled", "always")]
)
def test_this_machine(capsys: pytest.CaptureFixture[str], source: str, install: str) -> None:
    answer = call(capsys, source=source, install=install)
    host, plan = answer["host"], answer["plan"]
    assert answer["changed"] is False and host["running"] == os.uname().release
    assert plan["wanted"] or (plan["install"] == [] and answer["refused"] == [])
    assert install == "auto" or plan["wanted"]
    room = os.statvfs("/usr")
    assert host["space"]["/usr"]["free"] == pytest.approx(room.f_bavail * room.f_frsize, rel=0.1)


def test_a_recorded_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = Machine(tmp_path, ["rtx-4090-24g"])
    found.kernel(NEW, running=True)
    found.driver()
    found.write()
    answer = call(capsys, root=str(tmp_path))
    assert answer["plan"]["action"] == "none"
    assert answer["refused"] == answer["notes"] == answer["problems"] == answer["debts"] == []
    assert answer["facts"]["driver"] == "550.163.01"


def test_a_root_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = call(capsys, root=str(tmp_path / "no"))
    assert answer["msg"] == f"root: {tmp_path}/no is no folder; give that of a recorded machine, or leave it out."


def test_what_a_command_ends_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.run(["no-such-program-anywhere"]) == (127, "", "")
    assert commands.run(["sh", "-c", "echo out; echo err >&2; exit 15"]) == (15, "out\n", "err\n")
    rc, _, why = commands.run([str(tmp_path)])
    assert rc == 126 and "Permission denied" in why
    monkeypatch.setenv("APT_CONFIG", "/from/the/task")
    assert commands.run(["sh", "-c", "echo $APT_CONFIG $LC_ALL"])[1] == "/from/the/task C\n"
    monkeypatch.setattr(commands, "TIMEOUT", 0.2)
    assert commands.run(["sleep", "30"]) == (124, "", "no answer in 0.2 seconds")
