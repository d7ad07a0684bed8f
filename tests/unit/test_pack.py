# SPDX-License-Identifier: GPL-3.0-or-later
"""All models on all machines: one budget per machine, pins first, replicas while they fit, ports that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import decisions
import pytest
from decisions import GIB, header, machine, machines

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import memory, pack
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Placement
from ansible_collections.onprem.llm.plugins.module_utils.shape import published

X99, GOLD, LAPTOP = "hsx-1s-x99-e5-2696v3-64gb", "spr-2s-xeon-gold-6430", "laptop-i7-1260p"
LLAMA, QWEN30, QWEN4 = "llama-70b-q4_k_m", "qwen3-30b-a3b-q4_k_m", "qwen3-4b-q4_k_m"
R1, EMBEDDING = "deepseek-r1-ud-iq1_s-legacy", "qwen3-embedding-0.6b-q8_0"


def model(name: str, file: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "chat", "variants": [header(file)[0]], "file": file, **more}


def packed(
    hosts: Mapping[str, Hardware], models: Sequence[dict[str, Any]], pins: Sequence[dict[str, Any]] = (), **more: Any
) -> dict[tuple[str, str], Placement]:
    shapes = {one["name"]: [header(one["file"])[1]] for one in models}
    allowed = {host: {"llamacpp"} for host in hosts}
    found = pack.pack(hosts, models, shapes, allowed, {"llamacpp"}, pins, more.pop("paging", False), **more)
    return {(one["model"], one["host"]): one for one in found}


def test_models_of_a_host_share_its_memory() -> None:
    """The large one takes the GPU's room first, the small one what is left, and nothing is counted twice."""
    hosts = {"a": machine(X99, "rtx-2080ti-22g-modded")}
    models = [model("small", QWEN4, context=4096, parallel=1), model("large", QWEN30, context=8192, parallel=1)]
    found = packed(hosts, models)
    large, small = found["large", "a"], found["small", "a"]
    assert large["offload"]["gpu_layers"] == 49 and large["offload"]["cpu_moe_layers"] == 0
    assert small["offload"]["gpu_layers"] < 37
    for device in small["memory"]:
        before = next(one for one in large["memory"] if one["device"] == device["device"])
        assert device["others"] == memory.used(before)
        assert memory.free(device) >= 0


def test_generous_models_make_room_for_each_other() -> None:
    """Alone each would fill the GPU with its cache; together they take less, so that both find a place there."""
    hosts = {"a": machine(X99, "rtx-2080ti-22g-modded")}
    alone = packed(hosts, [model("one", QWEN4)])["one", "a"]
    assert (alone["context"], alone["slots"]) == (32768, 4)
    both = packed(hosts, [model("one", QWEN4), model("two", QWEN4)])
    assert [one["offload"]["gpu_layers"] for one in both.values()] == [37, 37]
    assert {(one["context"], one["slots"]) for one in both.values()} == {(8192, 2)}


def test_models_too_generous_to_fit_together_take_less() -> None:
    hardware: Any = machine(LAPTOP)
    hardware["memory"]["total"] = 13 * GIB
    alone = packed({"a": hardware}, [model("one", QWEN4)])["one", "a"]
    together = packed({"a": hardware}, [model(name, QWEN4) for name in ("one", "two", "three")])
    assert {one["fits"] for one in together.values()} == {"memory"}
    assert together["three", "a"]["context"] < alone["context"]


def test_a_model_goes_where_it_is_fastest_then_everywhere_it_fits() -> None:
    hosts = {"slow": machine(LAPTOP), "fast": machine(GOLD, "rtx-4090-24g")}
    found = packed(hosts, [model("m", QWEN4, context=4096, parallel=1)])
    assert [host for _, host in found] == ["fast", "slow"], "the best place is packed first"
    assert {one["fits"] for one in found.values()} == {"memory"}


def test_equal_hosts_are_taken_in_the_inventorys_order() -> None:
    hosts = {"b": machine(GOLD), "a": machine(GOLD)}
    assert [host for _, host in packed(hosts, [model("m", QWEN4, context=4096, parallel=1)])] == ["b", "a"]


def test_hosts_of_the_model_are_the_only_candidates() -> None:
    hosts = {"a": machine(GOLD), "b": machine(GOLD)}
    found = packed(hosts, [model("m", QWEN4, hosts=["b"], context=4096, parallel=1)])
    assert list(found) == [("m", "b")]


def test_a_replica_is_only_made_where_it_fits_in_memory() -> None:
    hosts = {"a": machine(GOLD), "b": machine("vm-1s-epyc-2vcpu")}
    assert list(packed(hosts, [model("m", LLAMA, context=4096, parallel=1)])) == [("m", "a")]


def test_what_fits_nowhere_says_so_on_each_candidate_and_names_another_host() -> None:
    hosts = {"a": machine(LAPTOP), "b": machine(LAPTOP), "c": machine(GOLD)}
    found = packed(hosts, [model("m", LLAMA, hosts=["a", "b"], context=32768, parallel=4)])
    assert set(found) == {("m", "a"), ("m", "b")}
    for placement in found.values():
        assert placement["fits"] == "no"
        (sentence,) = [
            one for one in placement["alternatives"] if one.startswith("It would fit on c (llama.cpp, Q4_K_M")
        ]
        assert sentence.endswith("which is not among the model's hosts.")


def test_paged_is_better_than_nothing_and_names_another_host() -> None:
    hosts = {"a": machine("icx-2s-xeon-8352v-16vcpu-90gb", "vgpu-32g"), "b": machine(GOLD)}
    found = packed(hosts, [model("m", R1, hosts=["a"], context=2048, parallel=1)])
    assert found["m", "a"]["fits"] == "paged"
    assert any("It would fit on b (llama.cpp, UD-IQ1_S" in one for one in found["m", "a"]["alternatives"])
    anywhere = packed(hosts, [model("m", R1, context=2048, parallel=1)])
    assert list(anywhere) == [("m", "b")], "memory comes before paging, and nobody pages a replica"


@pytest.mark.parametrize("pins", [[], [{"model": "r1", "host": "a", "flags": {"mlock": False}}]], ids=["", "pinned"])
def test_what_must_page_leaves_room_for_the_others(pins: list[dict[str, Any]]) -> None:
    """It takes all the RAM there is, so it comes last though it is the largest."""
    hosts = {"a": machine("icx-2s-xeon-8352v-16vcpu-90gb", "vgpu-32g")}
    embedding = {**model("embedding", EMBEDDING), "kind": "embedding"}
    models = [model("r1", R1, context=2048, parallel=1), embedding, model("small", QWEN4)]
    found = packed(hosts, models, pins, paging=True)
    assert {name: one["fits"] for (name, _), one in found.items()} == {
        "r1": "paged", "embedding": "memory", "small": "memory"
    }  # fmt: skip


def test_of_two_models_only_one_is_bound_to_a_node() -> None:
    models = [model(name, QWEN4, context=4096, parallel=1) for name in ("one", "two")]
    found = packed({"a": machine("spr-2s-xeon-gold-6430")}, models)
    assert [one["numa"]["policy"] for one in found.values()].count("bind") <= 1
    assert found["two", "a"]["numa"]["policy"] == "distribute"


def test_pins_are_placed_first_and_exactly_there() -> None:
    hosts = {"a": machine(X99, "rtx-2080ti-22g-modded"), "b": machine(LAPTOP)}
    models = [model("large", QWEN30, context=8192, parallel=1, hosts=["a"]), model("small", QWEN4, context=4096)]
    pins = [{"model": "small", "host": "a", "flags": {"gpu-layers": "all"}}]
    found = packed(hosts, models, pins)
    assert next(iter(found)) == ("small", "a")
    assert found["small", "a"]["offload"]["gpu_layers"] == 37
    assert found["large", "a"]["offload"]["cpu_moe_layers"] > 0, "the pinned one took its room first"


def test_ports_follow_the_list_and_pass_over_pinned_ones() -> None:
    models = [model(name, QWEN4) for name in ("one", "two", "three", "four")]
    pins = [{"model": "three", "host": "a", "port": 9102}, {"model": "one", "host": "b", "port": 9300}]
    assert pack.ports(models, pins, "a") == {"one": 9101, "two": 9103, "three": 9102, "four": 9104}
    assert pack.ports(models, pins, "b") == {"one": 9300, "two": 9101, "three": 9102, "four": 9103}
    found = packed({"a": machine(GOLD)}, models, pins[:1])
    assert {name: one["port"] for (name, _), one in found.items()} == pack.ports(models, pins, "a")


def served(found: Mapping[tuple[str, str], Placement]) -> dict[str, dict[str, int]]:
    """As the module takes what is installed."""
    there: dict[str, dict[str, int]] = {}
    for (name, host), one in found.items():
        if one["fits"] == "memory":
            there.setdefault(host, {})[name] = one["port"]
    return there


def test_what_serves_stays_where_it_is_when_a_host_goes_or_comes() -> None:
    """Three equal machines, of which each holds one of the models."""
    models = [model("one", LLAMA, context=4096, parallel=1), model("two", LLAMA, context=4096, parallel=1)]
    first = packed({host: machine(X99) for host in "abc"}, models)
    assert set(first) == {("one", "a"), ("two", "b"), ("one", "c")}
    there = served(first)
    assert packed({host: machine(X99) for host in "abc"}, models, installed=there) == first
    for hosts, wanted in (
        ("bc", {("two", "b"), ("one", "c")}),
        ("ab", {("one", "a"), ("two", "b")}),
        ("0abc", {("one", "0"), ("one", "a"), ("two", "b"), ("one", "c")}),
    ):
        found = packed({host: machine(X99) for host in hosts}, models, installed=there)
        assert {key for key, one in found.items() if one["fits"] == "memory"} == wanted, hosts


def test_what_is_installed_keeps_its_port() -> None:
    """Whatever comes before it in the list; and a port that serves is given away by nobody, nor one of what goes."""
    models = [model(name, QWEN4) for name in ("new", "one", "two")]
    there = {"one": 9101, "gone": 9102, "two": 9103}
    assert pack.ports(models, [], "a", there) == {"new": 9104, "one": 9101, "two": 9103}
    found = packed({"a": machine(GOLD)}, models, installed={"a": there})
    assert {name: one["port"] for (name, _), one in found.items()} == {"new": 9104, "one": 9101, "two": 9103}
    # A pin is obeyed, and what had its port moves.
    pins = [{"model": "new", "host": "a", "port": 9101}]
    assert pack.ports(models, pins, "a", there) == {"new": 9101, "one": 9104, "two": 9103}
    # Two that say the same port cannot both serve there.
    assert pack.ports(models, [], "a", {"new": 9101, "one": 9101}) == {"new": 9101, "one": 9102, "two": 9103}


def test_what_if_gives_each_model_each_machine_alone() -> None:
    hosts = {"a": machine(X99), "b": machine(LAPTOP)}
    models = [model("large", QWEN30, hosts=["elsewhere"]), model("small", QWEN4)]
    found = packed(hosts, models, [{"model": "small", "host": "gone", "port": 9999}], what_if=True)
    assert set(found) == {("large", "a"), ("large", "b"), ("small", "a"), ("small", "b")}
    assert all(device["others"] == 0 for one in found.values() for device in one["memory"])


@pytest.mark.parametrize("pin", [{"model": "m"}, {"host": "a"}, {}])
def test_a_pin_of_no_model_or_host_pins_nothing(pin: dict[str, Any]) -> None:
    found = packed({"a": machine(LAPTOP)}, [model("m", QWEN4)], [{**pin, "threads": 3}], what_if=True)
    assert found["m", "a"]["pinned"] == []


def test_nothing_stops_a_what_if() -> None:
    hosts = {"a": machine("icx-2s-xeon-8352v-16vcpu-90gb", "vgpu-32g")}
    found = packed(hosts, [model("m", R1, context=2048, parallel=1)], what_if=True)["m", "a"]
    assert found["fits"] == "paged"
    assert not [one for one in found["reasons"] if "stops" in one]


def test_a_build_without_cuda_is_passed_on_per_host() -> None:
    hosts = {"a": machine(GOLD, "rtx-4090-24g")}
    found = packed(
        hosts, [model("m", QWEN4, context=4096, parallel=1)], no_gpu={"a": {"llamacpp": "llamacpp_cuda is false on a"}}
    )
    assert "gpu-layers" not in found["m", "a"]["flags"]
    assert any(one.startswith("llamacpp_cuda is false on a") for one in found["m", "a"]["alternatives"])


def test_headers_that_could_not_be_read() -> None:
    models = [{**model("m", QWEN4), "unread": ["The hub did not answer."]}]
    (placement,) = pack.pack({"a": machine(GOLD)}, models, {"m": [None]}, {"a": {"llamacpp"}}, {"llamacpp"}, [], False)
    assert placement["fits"] == "no"
    assert placement["reasons"] == ["No variant could be read, so nothing can be planned.", "The hub did not answer."]


def test_the_same_question_has_the_same_answer() -> None:
    hosts = {"a": machine(GOLD, "rtx-4090-24g"), "b": machine(X99)}
    models = [model("one", QWEN30), model("two", QWEN4), {**model("three", EMBEDDING), "kind": "embedding"}]
    assert packed(hosts, models) == packed(hosts, models)


@pytest.fixture(scope="module")
def every_machine() -> dict[str, Hardware]:
    """Each recorded machine alone, and with each recorded GPU."""
    found: dict[str, Hardware] = {}
    for name in machines.machines():
        found[name] = machine(name)
        for gpu in machines.gpus():
            found[f"{name} {gpu}"] = machine(name, gpu)
    return found


def test_every_machine_is_told_something_about_every_model(every_machine: dict[str, Hardware]) -> None:
    models = [{**one, "name": name} for name, one in decisions.CATALOGUE.items()]
    shapes = {
        one["name"]: [published.shape(one["published"], variant) for variant in one["variants"]] for one in models
    }
    found = pack.pack(every_machine, models, shapes, {}, {"llamacpp"}, [], False, what_if=True)
    assert len(found) == len(every_machine) * len(models) > 2000
    for placement in found:
        assert placement["reasons"] and placement["fits"] in ("memory", "paged", "no")
        if placement["fits"] == "memory":
            assert all(memory.free(device) >= 0 for device in placement["memory"])
        if placement["fits"] != "no":
            assert placement["predicted"] and placement["predicted"]["total"] > 0


def test_the_budget_of_a_host_is_never_exceeded() -> None:
    hosts = {"a": machine(X99, "rtx-2080ti-22g-modded"), "b": machine(LAPTOP)}
    models = [model(f"m{n}", file) for n, file in enumerate([QWEN4, QWEN30, QWEN4, EMBEDDING, QWEN4, LLAMA])]
    found = packed(hosts, models)
    for host in hosts:
        here = [one for (_, where), one in found.items() if where == host and one["fits"] == "memory"]
        assert here
        for name in {device["device"] for one in here for device in one["memory"]}:
            devices = [device for one in here for device in one["memory"] if device["device"] == name]
            total = sum(memory.used(device) for device in devices)
            assert total + max(device["reserve"] for device in devices) <= devices[0]["capacity"] + GIB // 1024
