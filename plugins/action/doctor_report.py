# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints and writes the doctor's report; fails when anything is untrue."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.doctor import finding
from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import (
    FAILED,
    NOT_ASKED,
    OK,
    WARNING,
    DoctorError,
)

COLOURS = {OK: "green", FAILED: "red", NOT_ASKED: "yellow", WARNING: "yellow", "": "normal"}


def build(results: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The report over all results."""
    findings = finding.unique(
        one for given in results for one in finding.from_task(str(given["host"]), str(given["task"]), given["result"])
    )
    answers = [dict(given["result"]["answer"]) for given in results if given["result"].get("answer")]
    return {
        **finding.verdict(findings),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "findings": [one.as_dict() for one in findings],
        "answer": answers[0] if answers else {},
    }


def write(path: Path, report: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    transfer.write_atomically(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n", 0o644)


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset(("results", "json"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result["changed"] = False
        display = Display()
        if self._task.check_mode:
            display.display("doctor: not asked in check mode", color="yellow")
            return {**result, "skipped": True, "msg": "not asked in check mode"}
        try:
            report = build(self._task.args.get("results") or [])
            findings = [finding.parse(one) for one in report["findings"]]
        except (DoctorError, KeyError, TypeError) as error:
            return {**result, "failed": True, "msg": f"the report cannot be made: {error}"}
        for line, state in finding.table(findings):
            display.display(line, color=COLOURS[state])
        for key, value in report["answer"].items():
            display.display(f"  {key:9}  {value}")
        if target := self._task.args.get("json"):
            try:
                write(Path(target).expanduser(), report)
            except OSError as error:
                return {
                    **result,
                    "failed": True,
                    "msg": f"doctor_json '{target}' cannot be written: {error.strerror}",
                    "report": report,
                }
        failed = [one for one in findings if one.state == FAILED]
        if failed or not findings:
            lines = [f"{one.host}: {one.check}: {one.detail}. Do: {one.remedy}" for one in failed]
            return {**result, "failed": True, "msg": "\n".join(["The doctor found what is not true:", *lines])}
        return {**result, "report": report}
