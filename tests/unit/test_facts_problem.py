# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's file of local facts as Ansible gathered it: an older release's is fine, a damaged one ends the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.facts.system.local import LocalFactCollector

from ansible_collections.onprem.llm.plugins.filter.facts_problem import facts_problem

PATH = "/etc/ansible/facts.d/onprem_llm.fact"


class Quiet:
    """What Ansible's collector needs of a module."""

    def __init__(self, folder: Path) -> None:
        self.params = {"fact_path": str(folder)}

    def warn(self, *said: Any) -> None:
        pass


def gathered(tmp_path: Path, text: str) -> Any:
    """The file as Ansible's own collector gives it to a play."""
    (tmp_path / "onprem_llm.fact").write_text(text)
    return LocalFactCollector().collect(module=Quiet(tmp_path))["local"]["onprem_llm"]


@pytest.mark.parametrize(
    "facts",
    [
        {"format": 1, "components": {}, "debts": []},
        # Written before components had pointers.
        {"format": 1, "components": {"nvidia_driver": {"version": "550"}}, "debts": []},
        {"format": 1, "components": {}},
    ],
)
def test_a_file_of_this_or_an_older_release_is_fine(facts: dict[str, Any], tmp_path: Path) -> None:
    assert facts_problem(gathered(tmp_path, json.dumps(facts)), PATH) == ""


@pytest.mark.parametrize("found", [{}, "", None])
def test_no_file_and_an_empty_one_say_nothing(found: Any) -> None:
    assert facts_problem(found, PATH) == ""


@pytest.mark.parametrize(
    "text",
    ['{"format": 1, "components": {', "\0\0\0\0", "[general]\ncolour=blue\n", '{"components": []}', "[]", '"x"', "7"],
)
def test_a_damaged_file_says_the_way_out(text: str, tmp_path: Path) -> None:
    said = facts_problem(gathered(tmp_path, text), PATH)
    assert said.startswith(f"{PATH} is no"), said
    assert f"Move it away (mv {PATH} {PATH}.old) and run site.yml" in said


def test_a_newer_release_was_here(tmp_path: Path) -> None:
    said = facts_problem(gathered(tmp_path, '{"format": 99, "components": {}, "debts": []}'), PATH)
    assert said.startswith(f"{PATH} has format 99, and this release knows 1: a newer onprem.llm was here."), said
