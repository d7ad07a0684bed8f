# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import local_facts
from ansible_collections.onprem.llm.plugins.module_utils.doctor import debts
from ansible_collections.onprem.llm.plugins.module_utils.local_facts import LocalFactsError

MODULE = Path(__file__).resolve().parents[2] / "plugins/modules/local_facts.py"
REBOOT = {"what": "reboot", "why": "nouveau is loaded"}


def run(path: Path, check: bool = False, **options: Any) -> dict[str, Any]:
    arguments = {"path": str(path), **options, "_ansible_check_mode": check, "_ansible_diff": True}
    result = subprocess.run(
        [sys.executable, MODULE],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def test_a_section_and_its_debts_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "facts.d/onprem_llm.fact"
    section: dict[str, Any] = {"component": "nvidia_driver", "facts": {"version": "550"}, "debts": [REBOOT]}
    assert run(path, check=True, **section)["changed"] and not path.exists()
    first = run(path, **section)
    assert first["changed"] and "550" in first["diff"][0]["after"]
    assert not run(path, **section)["changed"] and not run(path, check=True, **section)["changed"]
    kept = json.loads(path.read_text())
    assert kept == first["local"] == first["ansible_facts"]["onprem_llm"]
    assert kept["components"] == {"nvidia_driver": {"version": "550"}}
    assert kept["debts"] == [{"component": "nvidia_driver", **REBOOT}]
    assert run(path)["local"] == kept


def test_components_do_not_touch_each_other(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    run(path, component="nvidia_driver", facts={"version": "550"}, debts=[REBOOT])
    run(path, component="cuda_toolkit", facts={"default": "12.4"}, debts=[])
    run(path, component="nvidia_driver", debts=[])
    kept = json.loads(path.read_text())
    assert kept["components"] == {"nvidia_driver": {"version": "550"}, "cuda_toolkit": {"default": "12.4"}}
    assert kept["debts"] == []
    assert run(path, component="cuda_toolkit", facts={})["local"]["components"] == {"nvidia_driver": {"version": "550"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is not what onprem.llm writes"),
        ('{"components": {}, "debts": []}', "is not what onprem.llm writes"),
        ('{"format": 1, "components": []}', "is not what onprem.llm writes"),
        ('{"format": 7, "components": {}, "debts": []}', "has format 7, and this release knows 1"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named_and_kept(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "facts"
    path.write_text(text)
    answer = run(path, component="nvidia_driver", facts={"version": "1"})
    assert answer["failed"] and message in answer["msg"] and f"mv {path} {path}.old" in answer["msg"]
    assert path.read_text() == text
    [finding] = debts.judge("gpu1", str(path), text)
    assert finding.state == "failed" and str(path) in finding.detail and "site.yml" in finding.remedy


def test_what_an_older_release_wrote_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    path.write_text('{"format": 0, "components": {"nvidia_driver": {"version": "550"}}}')
    kept = run(path, component="llamacpp", facts={"version": "1"}, debts=[{"what": "rollout", "why": "it died"}])
    assert kept["local"]["components"] == {"nvidia_driver": {"version": "550"}, "llamacpp": {"version": "1"}}
    assert [one["what"] for one in kept["local"]["debts"]] == ["rollout"]


def test_a_debt_nobody_can_pay_is_refused() -> None:
    with pytest.raises(
        LocalFactsError, match=re.escape("{'what': 'lunch', 'why': 'noon'} is none. Write {what: reboot")
    ):
        local_facts.change(local_facts.empty(), "nvidia_driver", None, [{"what": "lunch", "why": "noon"}])


def test_the_doctor_says_what_is_owed() -> None:
    facts = local_facts.change(local_facts.empty(), "nvidia_driver", {}, [REBOOT])
    [finding] = debts.judge("gpu1", "/facts", local_facts.render(facts))
    assert (finding.state, finding.check) == ("warning", "host.reboot")
    assert finding.detail == "nvidia_driver is owed a reboot: nouveau is loaded" and "reboot the host" in finding.remedy
    assert [one.state for one in debts.judge("gpu1", "/facts", None)] == ["ok"]
