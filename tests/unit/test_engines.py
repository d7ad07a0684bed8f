# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the engines: each refusal names the object, the value, the limit and the way out."""

from __future__ import annotations

from typing import Any

import decisions
import pytest
from decisions import catalogue, header, machine

from ansible_collections.onprem.llm.plugins.module_utils.placement import engines
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

SPR = "spr-2s-xeon-gold-6430-1tb"
R1 = ("deepseek-r1", "FP8")


def refusals(engine: str, hardware: Any, variant: tuple[Any, Shape], slots: int = 1, kind: str = "chat") -> list[str]:
    return engines.refusals(engine, hardware, variant[1], variant[0], slots, kind)


def test_a_suitable_machine_is_refused_nothing() -> None:
    assert refusals("ktransformers", machine(SPR, "rtx-4090-24g"), catalogue(*R1)) == []
    assert refusals("llamacpp", machine(SPR, "rtx-4090-24g"), header("deepseek-r1-q4_k_m-mla")) == []
    new = machine(SPR, "h200-sxm", driver=decisions.NEW_DRIVER)
    assert refusals("vllm", new, catalogue(*R1)) == [] == refusals("sglang", new, catalogue(*R1))


@pytest.mark.parametrize(
    ("engine", "gpus", "changes", "sentence"),
    [
        (
            "ktransformers",
            ["rtx-2080ti-22g-modded"],
            {},
            "gpu0 (NVIDIA GeForce RTX 2080 Ti) has compute capability 7.5; KTransformers needs 8.0 or newer. "
            "Use llama.cpp with this card, or a newer card.",
        ),
        (
            "ktransformers",
            ["rtx-5090"],
            {},
            "gpu0 (NVIDIA GeForce RTX 5090) has compute capability 12.0; the wheels of KTransformers are built for "
            "less than 10.0 (SM 80, 86, 89, 90). Use llama.cpp, or build kt-kernel from source.",
        ),
        ("ktransformers", [], {}, "KTransformers needs a GPU; this machine has none. Use llama.cpp."),
        (
            "ktransformers",
            ["rtx-4090-24g"],
            {"glibc": "2.34"},
            "KTransformers needs glibc 2.35 or newer; this system has 2.34. "
            "Use a newer release of the system, or llama.cpp.",
        ),
        (
            "ktransformers",
            ["rtx-4090-24g"],
            {"python": ["3.13", "3.10"]},
            "KTransformers needs Python 3.11 or 3.12; installed: 3.10, 3.13. "
            "Install one of them beside it, or use llama.cpp.",
        ),
        (
            "vllm",
            ["h200-sxm"],
            {},
            "vLLM needs NVIDIA driver 580 or newer; loaded is 570.172.08. Install a newer driver.",
        ),
        (
            "vllm",
            ["rtx-2080ti-22g-modded"],
            {"driver": decisions.NEW_DRIVER},
            "vLLM's method fp8 needs compute capability 8.0; the newest GPU that it would use has 7.5. "
            "Add another variant, or a newer card.",
        ),
        ("sglang", [], {}, "SGLang needs a GPU; this machine has none. Use llama.cpp."),
        (
            "llamacpp",
            ["rtx-4090-24g"],
            {},
            "llama.cpp reads gguf; FP8 is safetensors. Add a variant in gguf.",
        ),
    ],
)
def test_a_refusal_says_what_and_what_to_do(
    engine: str, gpus: list[str], changes: dict[str, Any], sentence: str
) -> None:
    assert refusals(engine, machine(SPR, *gpus, **changes), catalogue(*R1)) == [sentence]


def test_experts_in_ram_need_a_model_of_experts() -> None:
    dense = catalogue("deepseek-r1-distill-llama-70b", "FP8")
    assert refusals("ktransformers", machine(SPR, "rtx-4090-24g"), dense) == [
        "KTransformers is for models of experts, and this one has 0. Use llama.cpp, or vLLM on GPUs."
    ]


def test_ktransformers_embeds_nothing() -> None:
    (first, *_) = refusals("ktransformers", machine(SPR, "rtx-4090-24g"), catalogue(*R1), kind="embedding")
    assert first == "KTransformers serves no embedding models. Use llama.cpp."


def test_an_old_kernel_costs_the_tiles_but_no_method() -> None:
    old = machine(SPR, "rtx-4090-24g", kernel="5.15.0-100-generic")
    variant, shape = catalogue(*R1)
    assert refusals("ktransformers", old, (variant, shape)) == []
    assert [one.name for one in engines.runnable("ktransformers", old, shape, variant)] == ["FP8", "AMXINT4"]
    assert engines.kt_variant(old) == "avx512_bf16"


@pytest.mark.parametrize(
    ("machine_id", "expected"),
    [
        (SPR, "amx"),
        ("spr-2s-snc4-xeon-8480", "amx"),
        ("icx-2s-xeon-8352v", "avx512_vbmi"),
        ("hsx-2s-e5-2696v3", "avx2"),
        ("genoa-1s-nps4-epyc-9534", "avx512_bf16"),
    ],
)
def test_the_build_of_kt_kernel_follows_the_processor(machine_id: str, expected: str) -> None:
    assert engines.kt_variant(machine(machine_id)) == expected


def test_a_method_that_needs_avx512_is_refused_without_it() -> None:
    variant, shape = catalogue(*R1)
    files = (dict(variant, quantisation="AMXINT8"), shape)
    assert refusals("ktransformers", machine("icx-2s-xeon-8352v", "rtx-4090-24g"), files) == [], "AMX is not needed"
    (sentence,) = refusals("ktransformers", machine("hsx-2s-e5-2696v3", "rtx-4090-24g"), files)
    assert sentence == (
        "KTransformers's method AMXINT8 needs avx512f, avx512bw; this CPU does not have it. Use llama.cpp."
    )


def test_cuda_13_2_miscompiles_iq_types_only() -> None:
    bad = machine(SPR, "rtx-4090-24g", driver={"version": "595.10", "cuda": "13.2", "toolkit": "13.2"})
    (sentence,) = refusals("llamacpp", bad, header("deepseek-r1-ud-iq1_s-legacy"))
    assert sentence == (
        "CUDA 13.2 miscompiles the IQ types, and UD-IQ1_S has them: the answers are gibberish. "
        "Install CUDA 12.8, 13.0, 13.1 or 13.3, or take a variant without IQ types."
    )
    assert refusals("llamacpp", bad, header("llama-70b-q4_k_m")) == []


def test_another_architecture_than_x86() -> None:
    arm: Any = {**machine(SPR, "h200-sxm", driver=decisions.NEW_DRIVER), "architecture": "aarch64"}
    assert refusals("vllm", arm, catalogue(*R1)) == ["vLLM needs x86_64; this machine is aarch64. Use llama.cpp."]
    assert refusals("llamacpp", arm, header("llama-70b-q4_k_m")) == []


def test_what_is_unknown_refuses_nothing_and_is_said() -> None:
    bare = machine(SPR, "rtx-4090-24g", glibc=None, python=None, kernel=None, driver=None)
    assert refusals("ktransformers", bare, catalogue(*R1)) == []
    assert engines.assumptions("ktransformers", bare) == [
        "Unknown: glibc; assumed: 2.35 or newer.",
        "Unknown: Python; assumed: 3.11 or 3.12.",
        "Unknown: NVIDIA driver; assumed: 525 or newer.",
        "Unknown: kernel; assumed: 5.16 or newer, for AMX.",
    ]
    assert engines.assumptions("llamacpp", machine(SPR)) == []


def test_a_driver_that_only_just_runs_it_is_mentioned() -> None:
    old = machine(SPR, "rtx-4090-24g", driver={"version": "550.54.15", "cuda": "12.4", "toolkit": None})
    assert engines.assumptions("ktransformers", old) == [
        "Driver 550.54.15 runs KTransformers by CUDA's minor compatibility; 570 or newer is better."
    ]


def test_gpus_without_a_working_driver_are_not_used() -> None:
    broken: Any = machine(SPR, "rtx-4090-24g")
    broken["driver"]["state"] = "not_loaded"
    broken["unknown"]["driver"] = "The module nvidia is not loaded. Load it with modprobe nvidia."
    assert engines.usable_gpus("llamacpp", broken) == (
        [],
        [
            "NVIDIA GeForce RTX 4090: not used, the state of the NVIDIA driver is 'not_loaded'. "
            "The module nvidia is not loaded. Load it with modprobe nvidia."
        ],
    )


def test_mixed_gpus() -> None:
    """llama.cpp takes them all; an engine that splits tensors takes the kind with most memory."""
    mixed = machine(SPR, "rtx-2080ti-11g", "rtx-4090-24g", "rtx-3090", "rtx-4090-24g")
    assert engines.usable_gpus("llamacpp", mixed) == ([0, 1, 2, 3], [])
    places, why = engines.usable_gpus("ktransformers", mixed)
    assert places == [1, 3]
    assert why == [
        "gpu0 (NVIDIA GeForce RTX 2080 Ti) has compute capability 7.5; KTransformers needs 8.0 or newer. "
        "Use llama.cpp with this card, or a newer card.",
        "gpu2 (NVIDIA GeForce RTX 3090) is not used by KTransformers: it splits every tensor over equal GPUs, "
        "and those are the NVIDIA GeForce RTX 4090.",
    ]


def test_the_method_is_asked_of_the_gpus_that_are_used() -> None:
    """Two 2080 Ti have more memory than the one 4090, so vLLM would split over them."""
    mixed = machine(SPR, "rtx-2080ti-22g-modded", "rtx-2080ti-22g-modded", "rtx-4090-24g", driver=decisions.NEW_DRIVER)
    assert refusals("vllm", mixed, catalogue(*R1)) == [
        "vLLM's method fp8 needs compute capability 8.0; the newest GPU that it would use has 7.5. "
        "Add another variant, or a newer card."
    ]


def test_an_old_driver_costs_the_gpu_and_not_the_engine() -> None:
    old = machine(SPR, "rtx-4090-24g", driver={"version": "470.256.02", "cuda": "11.4", "toolkit": None})
    for engine, needed in (("llamacpp", 525), ("ollama", 550)):
        assert refusals(engine, old, header("llama-70b-q4_k_m")) == []
        assert engines.usable_gpus(engine, old) == (
            [],
            [
                f"NVIDIA GeForce RTX 4090: not used. {engines.title(engine)} needs NVIDIA driver {needed} or newer; "
                "loaded is 470.256.02. Install a newer driver."
            ],
        )
    assert refusals("ktransformers", old, catalogue(*R1)) == [
        "KTransformers needs NVIDIA driver 525 or newer; loaded is 470.256.02. Install a newer driver."
    ]


def test_nobody_is_sent_from_llama_cpp_to_llama_cpp() -> None:
    kepler: Any = machine(SPR, "rtx-4090-24g")
    kepler["gpus"][0]["compute_capability"] = "3.7"
    for engine, name, needed in (("llamacpp", "llama.cpp", "5.0"), ("vllm", "vLLM", "7.5")):
        assert engines.usable_gpus(engine, kepler)[1] == [
            f"gpu0 (NVIDIA GeForce RTX 4090) has compute capability 3.7; {name} needs {needed} or newer. "
            "Use a newer card."
        ]


def test_mig_is_no_whole_card() -> None:
    card: Any = machine(SPR, "a100-sxm4-80g")
    card["gpus"][0]["mig"] = True
    assert engines.usable_gpus("llamacpp", card) == (
        [],
        ["gpu0 (NVIDIA A100-SXM4-80GB) is not used: MIG is on, so its 80 GiB are not one device. Turn MIG off."],
    )


def test_a_gpu_of_unknown_memory_is_not_used() -> None:
    card: Any = machine(SPR, "a100-sxm4-80g")
    card["gpus"][0]["memory"] = None
    assert engines.usable_gpus("llamacpp", card)[1] == [
        "gpu0 (NVIDIA A100-SXM4-80GB) is not used: its memory is unknown. With a working driver nvidia-smi tells it."
    ]


def test_classic_ktransformers_answers_one_conversation() -> None:
    (sentence,) = refusals(
        engines.CLASSIC, machine(SPR, "rtx-2080ti-22g-modded"), header("deepseek-r1-ud-q2_k_xl-legacy"), slots=2
    )
    assert sentence == "classic KTransformers answers one conversation at a time; 2 are asked for. Use llama.cpp."


def test_every_rule_names_its_source() -> None:
    for name, rule in engines.RULES.items():
        assert rule.sources, name
