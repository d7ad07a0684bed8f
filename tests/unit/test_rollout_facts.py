# SPDX-License-Identifier: GPL-3.0-or-later
"""What a record of switches says on the host: in the local facts, by the doctor, and to what prunes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import local_facts
from ansible_collections.onprem.llm.plugins.module_utils.doctor import debts
from ansible_collections.onprem.llm.plugins.module_utils.rollout import facts, kept
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import (
    Configuration,
    File,
    Record,
    RecordError,
    write,
)

CURRENT, CHAT = "/opt/llm/llamacpp/current", "/srv/llm/served/chat"
SINCE = 1700000000.25


def state(version: str, model: str, text: str = "") -> Configuration:
    links = {CURRENT: f"/opt/llm/llamacpp/{version}-source", CHAT: f"/srv/llm/models/o/m/{model}"}
    return Configuration(version, links, (File("/etc/chat.env", text),))


def test_the_section_names_what_serves_and_what_was_before() -> None:
    record = Record("llamacpp", good=state("2", "b"), previous=state("1", "a"))
    assert facts.section(record) == {
        "version": "2",
        "pointer": "/opt/llm/llamacpp/2-source",
        "state": "good",
        "previous": {"version": "1", "pointer": "/opt/llm/llamacpp/1-source"},
        "models": {"chat": {"pointer": "/srv/llm/models/o/m/b", "previous": "/srv/llm/models/o/m/a"}},
    }
    first = facts.section(Record("llamacpp", good=state("2", "b")))
    assert (first["previous"], first["models"]["chat"]["previous"]) == ({}, "")
    assert facts.section(Record("llamacpp", "switching", wanted=state("2", "b"))) == {}


@pytest.mark.parametrize(
    ("now", "why", "said"),
    [
        ("switching", "", "the switch to 3 that began at 2023-11-14 22:13:20 UTC did not come to its end"),
        ("watching", "", "3 serves since 2023-11-14 22:13:20 UTC and was not watched to the end"),
        (
            "failed",
            "it answered gibberish\njournal: ...",
            "3 was refused at 2023-11-14 22:13:20 UTC: it answered gibberish",
        ),
        (
            "returning",
            "it died",
            "3 was refused at 2023-11-14 22:13:20 UTC (it died), and the way back did not come to its end",
        ),
    ],
)
def test_what_did_not_end_is_owed_and_the_doctor_says_it(tmp_path: Path, now: str, why: str, said: str) -> None:
    record = Record("llamacpp", now, SINCE, why, good=state("2", "b"), wanted=state("3", "c"))
    path = tmp_path / "facts.d/onprem_llm.fact"
    local_facts.keep(path, "llamacpp", facts.section(record), facts.debts(record))
    [finding] = debts.judge("gpu1", str(path), path.read_text())
    assert (finding.state, finding.check) == ("warning", "host.rollout")
    assert finding.detail == f"llamacpp is owed a rollout: {said}"
    assert "run site.yml" in finding.remedy
    local_facts.keep(path, "llamacpp", facts.section(record), facts.debts(replace(record, state="good")))
    assert [one.state for one in debts.judge("gpu1", str(path), path.read_text())] == ["ok"]


def test_trees_that_a_record_points_to_or_names_are_kept(tmp_path: Path) -> None:
    root, converted = tmp_path / "llamacpp", tmp_path / "converted"
    for name in ("1-source", "2-source", "3-source"):
        (root / name).mkdir(parents=True)
    for name in ("chat.AMXINT4-2pools-aa", "chat.AMXINT4-2pools-bb"):
        (converted / name).mkdir(parents=True)

    def here(version: str, text: str) -> Configuration:
        return replace(state(version, "a", text), links={str(root / "current"): f"{version}-source"})

    records = tmp_path / "rollout"
    assert kept.names(records, root) == set()
    named = f"--kt-weight-path {converted}/chat.AMXINT4-2pools-aa"
    write(str(records), Record("ktransformers", good=here("2", ""), previous=here("1", named)))
    assert kept.names(records, root) == {"1-source", "2-source"}
    assert kept.names(records, converted) == {"chat.AMXINT4-2pools-aa"}
    (records / "ktransformers.json").write_text("{")
    with pytest.raises(RecordError, match=r"ktransformers\.json is not what onprem.llm writes"):
        kept.names(records, root)
