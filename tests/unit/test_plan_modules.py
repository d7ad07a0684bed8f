# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules and filters of the plan: what they make of headers, hosts and pins, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decisions
import machines
import pytest
from ansible.errors import AnsibleFilterError
from ansible.module_utils.testing import patch_module_args

from ansible_collections.onprem.llm.plugins.filter import models as model_filters
from ansible_collections.onprem.llm.plugins.filter import recorded
from ansible_collections.onprem.llm.plugins.module_utils import installed
from ansible_collections.onprem.llm.plugins.module_utils.placement.models import variant_key
from ansible_collections.onprem.llm.plugins.module_utils.shape import published
from ansible_collections.onprem.llm.plugins.modules import placement, plan_report

GROUPS = {"inference": ["gpu1", "gpu2"], "llamacpp": ["gpu1", "gpu2"]}
SOURCES = {"modelscope": {"type": "modelscope", "url": "https://modelscope.cn"}}
LAPTOP = machines.hardware("laptop-i7-1260p")
Call = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Call:
    def call(module: Any, **arguments: Any) -> dict[str, Any]:
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return call


def known(*entries: dict[str, Any]) -> list[dict[str, Any]]:
    return model_filters.known_models(list(entries), decisions.CATALOGUE, GROUPS, SOURCES)


SMALL = {"name": "chat", "catalogue": "qwen3-4b-q4"}
GIANT = {"name": "giant", "catalogue": "deepseek-r1"}


def decided(run: Call, *entries: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    given = {
        "models": known(*entries),
        "hardware": {"gpu1": LAPTOP, "gpu2": LAPTOP},
        "groups": GROUPS,
        "addresses": {"gpu1": "192.0.2.1", "gpu2": "192.0.2.2"},
        "served_dir": "/srv/llm/served",
    }
    return run(placement, **{**given, **arguments})


def test_a_model_is_served_by_every_host_that_may(run: Call) -> None:
    found = decided(run, SMALL)
    assert [(one["model"], one["host"], one["fits"], one["port"]) for one in found["served"]] == [
        ("chat", "gpu1", "memory", 9101),
        ("chat", "gpu2", "memory", 9101),
    ]
    assert found["served"][0]["model_path"] == "/srv/llm/served/chat/Qwen3-4B-Q4_K_M.gguf"
    assert found["served"][0]["source"] == "Qwen/Qwen3-4B-GGUF@master"
    assert [server["address"] for server in found["endpoints"][0]["servers"]] == ["192.0.2.1", "192.0.2.2"]
    assert (found["refused"], found["changed"]) == ([], False)


def test_the_plan_is_the_same_whichever_host_answers_first(run: Call) -> None:
    """A stage by itself, or --limit, asks the hosts in another order; two that are equal must not change places."""
    first = decided(run, SMALL)
    other = decided(run, SMALL, hardware={"gpu2": LAPTOP, "gpu1": LAPTOP})
    assert other == first
    assert [one["host"] for one in other["served"]] == GROUPS["inference"]


def test_a_host_that_did_not_answer_is_left_out(run: Call) -> None:
    found = decided(run, SMALL, hardware={"gpu2": LAPTOP})
    assert [one["host"] for one in found["served"]] == ["gpu2"]
    said = "gpu1 did not answer and is left out; what it serves may be planned elsewhere."
    assert found["notes"] == [f"{said} It is owed a run: start it, then run site.yml again."]
    assert (found["refused"], found["silent"]) == ([], ["gpu1"])
    nobody = decided(run, SMALL, hardware={})
    assert nobody["refused"] == ["chat: no host that may serve it answered (gpu1, gpu2)."]
    assert nobody["placements"] == []


def test_a_host_that_did_not_answer_keeps_its_place_at_the_door(run: Call) -> None:
    found = decided(run, {**SMALL, "name": "first", "hosts": "gpu1"}, SMALL, hardware={"gpu2": LAPTOP})
    assert found["refused"] == [], "what the others serve does not wait for it"
    assert found["notes"][1:] == ["first: no host that may serve it answered (gpu1)."]
    servers = {one["model"]: [tuple(server.values()) for server in one["servers"]] for one in found["endpoints"]}
    assert servers == {
        "first": [("gpu1", "192.0.2.1", 9101, 0)],
        "chat": [("gpu2", "192.0.2.2", 9102, 1), ("gpu1", "192.0.2.1", 9102, 0)],
    }


def test_a_host_whose_driver_does_not_answer_keeps_what_runs_on_its_cards(run: Call) -> None:
    """An update of the driver waits for a reboot: what runs goes on, a service that is restarted would lose its GPU."""
    card = machines.hardware("hsx-1s-x99-e5-2696v3-64gb", ["rtx-2080ti-22g-modded"])
    why = "the driver was updated and the old one is still loaded; reboot"
    lost = {**card, "driver": {**card["driver"], "state": "reboot_required"}, "unknown": {"driver": why}}
    served = {"model": "chat", "engine": "llamacpp", "port": 9101, "flags": {"gpu-layers": "37"}}
    found = decided(run, SMALL, hardware={"gpu1": lost, "gpu2": card}, installed={"gpu1": [served], "gpu2": [served]})
    assert list(found["cardless"]) == ["gpu1"] and found["notes"] == list(found["cardless"].values())
    assert found["notes"][0].startswith(
        f"gpu1 serves chat on its GPU, and the state of its NVIDIA driver is 'reboot_required': {why}. "
    )
    assert "-e nvidia_driver_reboot=if_needed" in found["notes"][0]
    assert "playbooks/uninstall.yml -e uninstall=llamacpp --limit gpu1" in found["notes"][0]
    assert found["refused"] == [] and {one["host"] for one in found["endpoints"][0]["servers"]} == {"gpu1", "gpu2"}
    slow = {**served, "flags": {"gpu-layers": "0", "device": "none"}}
    for there in ([], [slow], [{**slow, "flags": {}}]):
        assert decided(run, SMALL, hardware={"gpu1": lost}, installed={"gpu1": there})["cardless"] == {}, there
    for other in ({"engine": "ollama", "flags": {"num_gpu": "5"}}, {"engine": "ktransformers", "flags": {}}):
        assert decided(run, SMALL, hardware={"gpu1": lost}, installed={"gpu1": [{**served, **other}]})["cardless"], (
            other
        )


def test_what_only_a_lost_host_could_serve_waits_for_it(run: Call) -> None:
    """The others go on; the door keeps its place."""
    large = machines.hardware("spr-2s-xeon-gold-6430")
    before = decided(run, GIANT, SMALL, hardware={"gpu1": large, "gpu2": LAPTOP})
    assert [one["host"] for one in before["served"] if one["model"] == "giant"] == ["gpu1"]
    ports = {"gpu1": {"giant": 9101}, "gpu2": {"chat": 9101}}
    found = decided(run, GIANT, SMALL, hardware={"gpu2": LAPTOP}, ports=ports)
    assert [(one["model"], one["host"]) for one in found["served"]] == [("chat", "gpu2")]
    assert found["refused"] == []
    assert found["notes"][1].startswith(
        "giant waits for gpu1, which did not answer; it fits on no other host. giant on"
    )
    servers = {one["model"]: [server["host"] for server in one["servers"]] for one in found["endpoints"]}
    assert servers == {"giant": ["gpu1"], "chat": ["gpu2", "gpu1"]}
    # What answers is not stopped for that, and what the site wants on a host that answers is not forgotten.
    there = decided(run, GIANT, SMALL, hardware={"gpu2": LAPTOP}, ports={"gpu2": {"giant": 9101}})
    pin = {"model": "giant", "host": "gpu2", "engine": "llamacpp"}
    pinned = decided(run, GIANT, SMALL, hardware={"gpu2": LAPTOP}, pins=[pin])
    assert len(there["refused"]) == len(pinned["refused"]) == 1


def test_what_fits_nowhere_is_refused_with_what_is_missing(run: Call) -> None:
    found = decided(run, GIANT, SMALL)
    assert {one["model"] for one in found["served"]} == {"chat"}
    assert len(found["refused"]) == 2
    assert all(said.startswith("giant on gpu") and "GiB" in said for said in found["refused"])


def test_paging_is_served_only_with_consent(run: Call) -> None:
    entry = {"name": "r1", "catalogue": "deepseek-r1-iq1"}
    guides = {"gpu1": machines.hardware("icx-2s-xeon-8352v-16vcpu-90gb", ["vgpu-32g"])}
    stopped = decided(run, {**entry, "hosts": "gpu1"}, hardware=guides)
    assert [one["fits"] for one in stopped["placements"]] == ["paged"]
    assert stopped["served"] == []
    assert "placement_allow_paging: true accepts that." in stopped["refused"][0]
    allowed = decided(run, {**entry, "hosts": "gpu1"}, hardware=guides, allow_paging=True)
    assert (len(allowed["served"]), allowed["refused"]) == (1, [])


def test_a_header_counts_before_published_figures(run: Call) -> None:
    (model,) = known(SMALL)
    (variant,) = model["variants"]
    shape = published.shape(model["published"], variant) | {"basis": "header of a file", "exact": True}
    header = {"key": variant_key(variant), "shape": shape, "error": None, "bytes": 1_200_000, "requests": 3}
    read = decided(run, SMALL, headers=[header])
    assert read["notes"] == ["Headers of 1 models: 1.2 MB read from their sources."]
    assert not any("published" in reason for reason in read["served"][0]["reasons"])
    away = {**header, "shape": None, "error": "the source 'modelscope' did not answer", "bytes": 0}
    unread = decided(run, SMALL, headers=[away])
    assert unread["notes"] == ["A header could not be read: the source 'modelscope' did not answer."]
    assert any("published configuration" in reason for reason in unread["served"][0]["reasons"])


def test_a_model_of_which_nothing_is_known_is_refused(run: Call) -> None:
    files = {"source": "modelscope", "repo": "o/r", "revision": "master", "include": ["*"], "entry": "m.gguf"}
    entry = {"name": "own", "kind": "chat", **files}
    (model,) = known(entry)
    header = {"key": variant_key(model["variants"][0]), "shape": None, "error": "HTTP 404", "bytes": 0, "requests": 1}
    assert decided(run, entry, headers=[header])["refused"] == [
        "own: nothing is known of it, so it cannot be planned. m.gguf: HTTP 404. Mend that, or describe the model in "
        "the catalogue (`published`)."
    ]


def test_pins_that_contradict_the_inventory_fail(run: Call) -> None:
    answer = decided(run, SMALL, pins=[{"model": "chat", "host": "gpu9"}])
    assert "the host is no member of the group inference (members: gpu1, gpu2)" in answer["msg"]


def test_the_report_says_what_would_change(run: Call) -> None:
    found = decided(run, SMALL, hardware={"gpu1": LAPTOP})
    given = {"title": "prod", "placements": found["placements"], "hardware": {"gpu1": LAPTOP}, "notes": ["A note."]}
    report = run(plan_report, **given, installed={"gpu1": []})
    assert report["changes"] == ["gpu1: chat is new"]
    assert "gpu1: chat is new" in report["table"] and "A note." in report["table"]
    assert report["page"].startswith("<!doctype html>") and "A note." in report["page"]
    imagined = run(plan_report, **given, what_if=True)
    assert imagined["changes"] == []


def test_what_is_installed_is_read_from_the_files_of_the_services(tmp_path: Path) -> None:
    (tmp_path / "llamacpp").mkdir()
    (tmp_path / "llamacpp/chat.env").write_text(
        "# Files: o/r@master\nCUDA_VISIBLE_DEVICES=1\nLLAMACPP_OPTIONS=--port 9101 --threads 4\n"
    )
    (tmp_path / "llamacpp/chat--beside.env").write_text("LLAMACPP_OPTIONS=--port 10101\n")
    assert installed.read(tmp_path) == [
        {
            "model": "chat",
            "engine": "llamacpp",
            "port": 9101,
            "source": "o/r@master",
            "flags": {"threads": "4"},
            "environment": {"CUDA_VISIBLE_DEVICES": "1"},
            "numa": "",
        }
    ]
    assert installed.read(tmp_path / "nowhere") == []


def test_the_length_of_an_embeddings_vectors_is_known_where_it_is_served(run: Call) -> None:
    found = decided(run, SMALL, {"name": "vectors", "catalogue": "qwen3-embedding-0.6b"})
    by_model = {one["model"]: one["dimensions"] for one in found["served"]}
    assert by_model == {"chat": 0, "vectors": 1024}


def test_a_model_that_serves_keeps_its_port(run: Call) -> None:
    """Also on a host that does not answer, as the door knows it; a new model takes the next that is free."""
    new = {"name": "first", "catalogue": "qwen3-4b-q4"}
    found = decided(run, new, SMALL, hardware={"gpu1": LAPTOP}, ports={"gpu1": {"chat": 9101}, "gpu2": {"chat": 9105}})
    ports = [{one["host"]: one["port"] for one in model["servers"]} for model in found["endpoints"]]
    assert ports == [{"gpu1": 9102, "gpu2": 9101}, {"gpu1": 9101, "gpu2": 9105}]


def test_filters_say_what_is_wrong() -> None:
    with pytest.raises(AnsibleFilterError, match="which does not exist"):
        known({"name": "x", "catalogue": "y"})
    with pytest.raises(AnsibleFilterError, match="plan_hardware: This is not JSON"):
        recorded.recorded_machines("machines:")
    record = machines.machines()["laptop-i7-1260p"]
    assert list(recorded.recorded_machines(json.dumps([record]))) == ["laptop-i7-1260p"]
