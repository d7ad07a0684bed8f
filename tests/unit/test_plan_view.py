# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan as a table, as a page, and as what would change."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import plans
import pytest

from ansible_collections.onprem.llm.plugins.module_utils.placement import page, table, words
from ansible_collections.onprem.llm.plugins.module_utils.placement.differences import differences
from ansible_collections.onprem.llm.plugins.module_utils.placement.memory import used
from ansible_collections.onprem.llm.plugins.module_utils.placement.page_style import STYLE

NAMES = list(plans.ALL)
HOSTILE = "<script>alert(1)</script>\"'&--><img src=x onerror=alert(2)>"


# --- the table


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_the_table_is_too_long_and_no_bar_is_broken(name: str, width: int) -> None:
    text = table.render(plans.ALL[name](), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text and "…" not in text
    whole = [bar for line in text.splitlines() for bar in re.findall(r"(?<=RAM )[█▓▒░]+", line)]
    assert whole and {len(bar) for bar in whole} == {table.BAR}


@pytest.mark.parametrize("width", [80, 160])
def test_the_same_columns_stand_below_each_other(width: int) -> None:
    lines = table.render(plans.fleet(), width).splitlines()
    for column in ("GPU [▁-█]", "RAM [█▓▒░]", "fits$"):
        places = {found.start() for line in lines if (found := re.search(column, line))} - {0}
        assert len(places) == 1, f"{column} begins at {places}"


def test_twenty_hosts_with_three_models() -> None:
    text = table.render(plans.fleet(), 100)
    assert len(re.findall(r"(?m)^rack\d\d: ", text)) == 20
    assert len(re.findall(r"(?m)^  (?:qwen3-235b|assistant|embedding) ", text)) == 60
    assert text.endswith("60 placements of 3 models on 20 hosts: 60 fit in memory. Files: 2899 GB.\n")


def test_a_bar_shows_the_shares_of_its_device() -> None:
    def bar(**parts: float) -> str:
        return table._bar(plans.device("gpu0", 100, **parts))

    assert bar(weights=50, reserve=0) == "█████░░░░░"
    assert bar(weights=30, kv=10, compute=5, overhead=5, reserve=10, others=20) == "▓▓█████▒░░"
    assert bar(weights=100, reserve=0) == "██████████"
    assert bar(weights=150, reserve=50) == "████████▒▒", "too much still ends with its box"
    assert table._bar(plans.device("gpu0", 0, reserve=0)) == "░░░░░░░░░░", "a device of unknown size"


def test_equal_gpus_are_one_column_each_and_the_model_s_largest_share_is_named() -> None:
    text = table.render(plans.h200(), 120)
    assert "8 × H200 140.4 GiB" in text
    assert "GPU ▇▇▇▇▇▇▇▇ max 121.0/140.4 GiB" in text
    nine = table.render(plans.three_by_three(), 160)
    assert "GPU █▆ max   2.4/24.0 GiB" in nine, "the embedding lies on the second GPU, the first is fuller"


def test_what_does_not_fit_says_how_much_is_missing_and_what_would_fit() -> None:
    text = table.render(plans.does_not_fit(), 120)
    assert "missing:  5.2 GiB of RAM\n                2.8 GiB of gpu0\n" in text
    assert "instead:  With a context of 32768 it fits: 2.1 tok/s." in text
    assert "pinned:   context, threads" in text
    assert "Stops before any download: llama-70b on x99 does not fit." in " ".join(text.split())
    assert "Stops unless placement_allow_paging is set: deepseek-r1-iq1 on guide" in " ".join(text.split())


def test_a_better_engine_that_is_not_available_is_told_from_a_refused_one() -> None:
    text = " ".join(table.render(plans.three_by_three(), 120).split())
    assert "not: vllm FP8: 219.9 GiB of weights on 48.0 GiB of GPU memory" in text
    better = plans.three_by_three()["placements"][0]["rejected"][0]["reason"]
    repeated = plans.placement(
        *("m", "h", "llamacpp", "Q8_0", []),
        alternatives=[better, "Another way."],
        rejected=[plans.rejection("ktransformers", "BF16", better, better=True)],
    )
    assert page.render(plans.plan("Once", [], [repeated])).count("there is no role") == 1
    assert "better: ktransformers BF16: Would be better, not available: there is no role" in text


def test_one_reason_of_several_engines_is_said_once() -> None:
    text = table.render(plans.amx_r1(), 120)
    assert text.count("641.3 GiB of weights on 24.0 GiB of GPU memory") == 1
    assert "vllm FP8, sglang FP8: 641.3 GiB of weights on 24.0 GiB of GPU memory" in text
    assert "<li>vllm FP8, sglang FP8: 641.3 GiB" in page.render(plans.amx_r1())


def test_several_models_of_a_host_are_summed_once() -> None:
    plan = plans.three_by_three()
    sums = {d["device"]: d for d in words.together([p for p in plan["placements"] if p["host"] == "gpu1"])}
    assert sums["gpu0"]["others"] == 0 and sums["gpu0"]["reserve"] == plans.GIB
    assert words.gib(used(sums["gpu0"])) == "22.8"
    assert "together" in table.render(plan, 160) and "together" not in table.render(plans.amx_r1(), 160)


def test_a_model_without_room_is_not_summed() -> None:
    plan = plans.does_not_fit()
    assert words.together(plan["placements"][:1]) == []


def test_machines_that_are_not_there_have_each_model_for_itself() -> None:
    plan = plans.three_by_three() | {"what_if": True}
    plan["placements"] += plans.does_not_fit()["placements"]
    for text in (table.render(plan, 120), page.render(plan)):  # type: ignore[arg-type]
        assert "Each model has each machine for itself." in text
        assert "together" not in text and "Memory of the host" not in text
        assert "Stops" not in text and "Files:" not in text


@pytest.mark.parametrize(
    "speed, said",
    [(0.714, "0.71"), (0.9999, "1.0"), (1.04, "1.0"), (9.94, "9.9"), (9.97, "10"), (123.4, "123"), (94278, "94300")],
)
def test_a_speed_has_no_more_figures_than_it_deserves(speed: float, said: str) -> None:
    assert words.rate(speed) == said


def test_a_plan_without_models_and_a_host_without_facts() -> None:
    empty = plans.plan("Empty", [], [])
    assert "No model is to be served." in table.render(empty) and "No model is to be served." in page.render(empty)
    lost = plans.plan("Lost", [], [plans.placement("m", "gone", "llamacpp", "Q8_0", [])])
    assert "gone: nothing is known of this machine" in table.render(lost)
    assert "Nothing is known of this machine." in page.render(lost)


# --- the page


class Page(HTMLParser):
    """Elements, and whether each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in page.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, key: str) -> list[str]:
        return [value for _, attributes in self.found if (value := attributes.get(key)) is not None]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_well_formed_and_needs_nothing_else(name: str) -> None:
    plan = plans.ALL[name]()
    text = page.render(plan)
    read = Page(text)
    assert not re.search(r"https?://|url\(|@import|src=", text)
    assert {tag for tag, _ in read.found}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert all(target.startswith("#") and target[1:] in read.all("id") for target in read.all("href"))
    assert len(set(read.all("id"))) == len(read.all("id"))
    for placement in plan["placements"]:
        assert placement["model"] in read.words and words.VERDICTS[placement["fits"]] in read.words
        for device in placement["memory"]:
            assert words.label(device) in read.words
        for line in placement["reasons"] + placement["alternatives"] + [r["reason"] for r in placement["rejected"]]:
            assert line in read.words


@pytest.mark.parametrize("name", NAMES)
def test_every_drawing_of_the_page_has_words_and_stays_in_its_box(name: str) -> None:
    read = Page(page.render(plans.ALL[name]()))
    assert all(attributes.get("aria-label") for _, attributes in read.found if attributes.get("role") == "img")
    for style in read.all("style"):
        sizes = dict(part.split(":") for part in style.split(";"))
        assert set(sizes) <= {"width", "left"} and all(value.endswith("%") for value in sizes.values())
        assert -0.01 <= sum(float(value[:-1]) for value in sizes.values()) <= 100.01, style
    boxes = re.findall(r'<span class="bar".*?</span></span>', page.render(plans.ALL[name]()))
    for box in boxes:
        assert sum(map(float, re.findall(r"width:([\d.]+)%", box))) <= 100.1


def test_a_bar_s_shares_are_of_the_device() -> None:
    text = page.render(plans.plan("One", [], [plans.placement("m", "h", "llamacpp", "Q8_0", [BAR])]))
    label = "gpu0: 70.0 of 100.0 GiB (weights 40.0, KV cache 20.0, compute 6.0, engine 4.0, kept free 10.0)"
    assert f'aria-label="{label}"' in text
    drawn = re.findall(r'class="part (\w+)" style="width:([\d.]+)%', text)
    assert drawn == [
        *[("weights", "40.00"), ("kv_cache", "20.00"), ("compute", "6.00")],
        *[("overhead", "4.00"), ("reserve", "10.00")],
    ]


BAR = plans.device("gpu0", 100, weights=40, kv=20, compute=6, overhead=4, reserve=10)


def test_a_numa_node_shows_what_its_models_have_there() -> None:
    ram = plans.device("ram", 200, weights=30, kv=10)
    nodes = [{"node": 0, "capacity": 100 * plans.GIB, "used": 40 * plans.GIB}, {"node": 1, "capacity": 0, "used": 0}]
    one = plans.placement("m", "h", "llamacpp", "Q8_0", [ram], nodes=nodes)
    two = plans.placement("n", "h", "llamacpp", "Q8_0", [ram], nodes=nodes)
    text = page.render(plans.plan("Two", [], [one, two]))
    assert 'aria-label="NUMA 0: 80.0 of 100.0 GiB (weights 60.0, KV cache 20.0)"' in text
    assert 'aria-label="NUMA 0: 40.0 of 100.0 GiB (weights 30.0, KV cache 10.0)"' in text


def test_speeds_stand_on_one_scale_of_powers_of_ten() -> None:
    axes = page._axes(plans.three_by_three()["placements"])
    assert [tick for _, tick in axes["decode"].ticks()] == ["10", "100", "1k"], "an embedding model answers nothing"
    assert [round(axes["decode"].at(speed), 1) for speed in (0, 10, 31.6228, 100, 5000)] == [0, 0, 25, 50, 100]
    slow = page._axes([plans.placement("m", "h", "llamacpp", "Q8_0", [], predicted=plans.speed(0.05, None))])
    assert [tick for _, tick in slow["decode"].ticks()] == ["0.01", "0.1"] and "prefill" not in slow


def test_layers_on_gpus_are_told_apart_from_parts_of_every_layer() -> None:
    def told(split: list[int]) -> str:
        offload = {"gpu_layers": 62, "cpu_moe_layers": 0, "split": split}
        return page._offload(plans.placement("m", "h", "llamacpp", "Q8_0", [], offload=offload))

    assert [told([62]), told([31, 31]), told([62, 62])] == [
        *("62 layers", "62 layers (31 + 31)", "62 layers, each across 2 GPUs")
    ]


def test_what_is_too_much_is_drawn_behind_the_limit() -> None:
    text = page.render(plans.does_not_fit())
    assert "2.8 GiB missing" in text and 'class="limit" style="left:88.71%"' in text


def test_hostile_text_stays_text() -> None:
    plan: Any = hostile(plans.does_not_fit())
    read = Page(page.render(plan))
    assert {tag for tag, _ in read.found}.isdisjoint({"script", "img"})
    assert not [key for _, attributes in read.found for key in attributes if key.startswith("on")]
    assert read.words.count("<script>") > 20
    assert max(map(len, table.render(plan, 100).splitlines())) <= 100


def hostile(value: Any) -> Any:
    """Every free text of a plan is the worst it can be."""
    kept = ("fits", "device", "kind", "policy", "state", "architecture")
    if isinstance(value, dict):
        return {key: part if key in kept else hostile(part) for key, part in value.items()}
    if isinstance(value, list):
        return [hostile(part) for part in value]
    return HOSTILE if isinstance(value, str) else value


def test_nothing_of_the_page_has_a_width_that_a_phone_has_not() -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page.render(plans.amx_r1())
    for rule, value in re.findall(r"(?<![\w-])(width|min-width|height|grid-template-columns): ([^;]*);", STYLE):
        lengths = [
            float(number) * (16 if unit == "rem" else 1) for number, unit in re.findall(r"([\d.]+)(rem|px)", value)
        ]
        if rule != "grid-template-columns":
            assert all(length <= 24 for length in lengths), f"{rule}: {value}"
    narrow = STYLE.split("@media (max-width: 46rem)")[1].split("@media print")[0]
    assert not re.search(r"grid-template-columns:[^;]*\d(rem|px)", narrow)
    for name in (".bars .row", ".columns"):
        assert f"{name} {{ grid-template-columns: minmax(0, 1fr)" in narrow
    assert "prefers-color-scheme: dark" in STYLE and "@media print" in STYLE


# --- what would change


def installed(placement: Any, **changes: Any) -> dict[str, Any]:
    return {key: placement[key] for key in ("model", "engine", "flags", "source", "port")} | changes


def test_nothing_changes_where_the_plan_is_installed() -> None:
    plan = plans.three_by_three()
    there: dict[str, list[dict[str, Any]]] = {}
    for placement in plan["placements"]:
        there.setdefault(placement["host"], []).append(installed(placement))
    assert differences(plan["placements"], there) == ["Nothing would change."]
    # What is read back from a unit file is text.
    there["gpu1"][0]["flags"] = {k: v if v is True else str(v) for k, v in there["gpu1"][0]["flags"].items()}
    there["gpu1"][0]["port"] = str(there["gpu1"][0]["port"])
    assert differences(plan["placements"], there) == ["Nothing would change."]
    assert differences([], {}) == ["Nothing would change."]


def test_each_change_is_a_sentence() -> None:
    one = plans.placement("assistant", "gpu1", "llamacpp", "Q4_K_M", [])
    two = plans.placement("assistant", "gpu2", "llamacpp", "Q4_K_M", [])
    three = plans.placement("thinker", "gpu1", "vllm", "FP8", [])
    now = {
        "gpu1": [
            installed(
                one,
                flags={"ctx-size": 16384, "parallel": 1, "threads": 8, "gpu-layers": 99, "mlock": True},
                port=9100,
                source="old/repo@1",
            ),
            installed(three, engine="llamacpp", flags={"threads": 1}),
            installed(one, model="old-model"),
        ],
        "gpu2": [],
        "gpu3": [installed(one)],
    }
    assert differences([one, three, two], now) == [
        "gpu1: assistant: files old/repo@1 -> unsloth/assistant-GGUF@master; port 9100 -> 9101; "
        "ctx-size 16384 -> 32768; threads 8 -> 16; mlock is dropped; no-mmap is added",
        "gpu1: thinker: engine llamacpp -> vllm",
        "gpu1: old-model stops",
        "gpu2: assistant is new",
        "gpu3: assistant stops",
    ]


def test_a_model_that_does_not_fit_leaves_its_host_as_it_is() -> None:
    no = plans.does_not_fit()["placements"][0]
    assert differences([no], {"x99": [installed(no, engine="llamacpp")]}) == [
        "x99: llama-70b does not fit, so the run would stop and leave the host as it is"
    ]


def test_what_the_options_do_not_show_is_compared_too() -> None:
    one = plans.placement("assistant", "gpu1", "llamacpp", "Q4_K_M", [])
    one["numa"] = {"policy": "bind", "nodes": [1]}
    one["environment"] = {"CUDA_VISIBLE_DEVICES": "1"}
    now = {"gpu1": [installed(one) | {"numa": "bind 0", "environment": {}}]}
    assert differences([one], now) == [
        "gpu1: assistant: NUMA policy bind 0 -> bind 1; environment none -> CUDA_VISIBLE_DEVICES=1"
    ]
    assert differences([one], {}) == ["gpu1: not asked what it serves now"]
