# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody may do to a host behind Ansible's back, and whether drift.yml names it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from conftest import INVENTORY, playbook

Mutation = dict[str, str]
MUTATIONS: dict[str, list[Mutation]] = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text())


def drift(folder: Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, report and output of a look."""
    report = folder / "drift.json"
    done = playbook("playbooks/drift.yml", "--extra-vars", f"drift_json={report}")
    assert report.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(report.read_text()), done.stdout


def nothing_differs(folder: Path, *hosts: str) -> None:
    """Of these hosts, all of the inventory."""
    code, report, said = drift(folder)
    assert report["differences"] == [] and report["not_looked_at"] == [], said
    assert (code, report["ok"], report["hosts"]) == (0, True, dict.fromkeys(hosts, 0)), said


def named(mutation: Mutation, report: dict[str, Any]) -> bool:
    return any(
        re.fullmatch(mutation["what"], one["what"]) and re.search(mutation.get("how", ""), one["how"])
        for one in report["differences"]
    )


def look_at(host: Any, mutations: list[Mutation], folder: Path) -> None:
    """Do them all, and look."""
    for one in mutations:
        done = host.run(f"set -e\n{one['do']}")
        assert done.rc == 0, f"{one['name']}: {done.stderr}"
    code, report, said = drift(folder)
    missing = [one["name"] for one in mutations if not named(one, report)]
    assert not missing, f"not named: {missing}\n{said}"
    assert (code, report["ok"], report["not_looked_at"]) == (2, False, []), said
    for secret in INVENTORY.glob("secrets/*"):
        assert secret.is_dir() or secret.read_text().strip() not in said + json.dumps(report), secret.name
