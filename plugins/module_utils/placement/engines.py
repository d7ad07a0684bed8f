# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engine may serve which files on which machine: rules as data, and the sentence each of them gives.

A fact that is unknown (``None``) refuses nothing; it becomes an assumption that the plan prints.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Gpu, Hardware
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

#: Of two engines that are equally fast the earlier one is chosen.
ORDER = ("llamacpp", "ollama", "vllm", "sglang", "ktransformers")
CLASSIC = "ktransformers-classic"

#: Instruction sets by the names the messages use; flags as /proc/cpuinfo spells them.
#: kt-kernel 0.7.2 picks its variant by exactly these (kt_kernel/_cpu_detect).
AVX2 = ("avx2",)
AVX512_BF16 = ("avx512f", "avx512bw", "avx512_vnni", "avx512vbmi", "avx512_bf16")
AMX = ("amx_tile", "amx_int8", "amx_bf16", "avx512f", "avx512bw", "avx512_vnni", "avx512vbmi", "avx512_bf16")
AVX512 = ("avx512f", "avx512bw")
KT_VARIANTS = (
    ("amx", AMX),
    ("avx512_bf16", AVX512_BF16),
    ("avx512_vbmi", ("avx512f", "avx512bw", "avx512_vnni", "avx512vbmi")),
    ("avx512_vnni", ("avx512f", "avx512bw", "avx512_vnni")),
    ("avx512_base", AVX512),
    ("avx2", AVX2),
)
AMX_KERNEL = (5, 16)
"""Linux gives a process the tiles from 5.16 on (arch_prctl ARCH_REQ_XCOMP_PERM); before, they end it (kt#320)."""


class Method(NamedTuple):
    """How an engine computes with the weights of one quantisation."""

    name: str
    """As the engine calls it."""
    quantisations: str
    """Regular expression over the publisher's name, in capitals."""
    isa: tuple[str, ...] = ()
    capability: tuple[int, int] | None = None
    """Compute capability it needs where that is more than the engine's own."""
    converted: float = 1.0
    """Bytes of an expert after a conversion to one before; 1 where the files are used as they are."""
    source: str = ""


class Rule(NamedTuple):
    """What one engine needs. Versions are those the wheels and packages of the named release ask for."""

    title: str
    methods: dict[str, tuple[Method, ...]]
    """Format of the files -> methods, best first."""
    gpu: bool = False
    capability: tuple[int, int] | None = None
    capability_below: tuple[int, int] | None = None
    glibc: tuple[int, int] | None = None
    python: tuple[str, ...] = ()
    driver: tuple[int, int] | None = None
    driver_better: tuple[int, int] | None = None
    x86: bool = False
    isa: tuple[str, ...] = ()
    moe: bool = False
    embedding: bool = True
    equal_gpus: bool = False
    """Splits each tensor over the GPUs, so they must be of one kind."""
    experts_in_ram: bool = False
    only_pinned: str = ""
    """Why it is never chosen unless the inventory pins it."""
    sources: str = ""


_GGUF = (Method("gguf", r".*", source="llama.cpp reads every type that it writes"),)
_CLASSIC = (
    Method("gguf", r"(UD-)?(Q[458]_0|Q[2-6]_K.*|IQ4_XS|IQ1_S|IQ2_XXS|B?F16)", source="custom_gguf.py, 0.2.3; kt#754"),
)
# kt-kernel 0.7.2 experts.py, README.md, Native-Precision and AVX2 tutorials. Bytes after a conversion: 8 bits per
# weight, and 4.2 (deepseek-v3.2-sglang-tutorial: 350 GB for 671 billion weights in AMXINT4).
_KT = (
    Method("FP8", r"FP8(?!.*PER.?CHANNEL).*", AVX2, source="kt-kernel: FP8 with AVX2 since 0.5.3"),
    Method("FP8_PERCHANNEL", r"FP8.*PER.?CHANNEL.*", AVX512_BF16, source="kt-kernel README: AVX512F, BW, BF16, VBMI"),
    Method("RAWINT4", r"(RAW.?)?INT4|W4A16.*", AVX2, source="kt-kernel: RAWINT4 with AVX2 since 0.5.3"),
    Method("GPTQ_INT4", r"GPTQ.*(INT)?4.*", AVX2, source="kt-kernel experts.py"),
    Method("MXFP4", r"MXFP4.*", AVX2, source="kt-kernel experts.py"),
    Method("MXFP8", r"MXFP8.*", AVX2, (9, 0), source="kt-kernel: MiniMax-M3, SM90 only"),
    Method("BF16", r"BF16", AVX2, source="kt-kernel: BF16 with AVX2 since 0.5.3"),
    # The README asks for AMX. Measured with 0.7.2: all five AVX512 builds compute with them, on AVX512F and BW alone
    # (AMXInt8_MOE: error 0.022 in each); the tiles only make them faster.
    Method("AMXINT8", r"AMX.?INT8", AVX512, source="kt-kernel 0.7.2, measured"),
    Method("AMXINT4", r"AMX.?INT4", AVX512, source="kt-kernel 0.7.2, measured"),
    Method("AMXINT8", r"BF16", AVX512, converted=0.5, source="convert_cpu_weights.py --quant-method int8"),
    Method("AMXINT4", r"BF16", AVX512, converted=0.26, source="convert_cpu_weights.py --quant-method int4"),
    Method("AMXINT4", r"FP8(?!.*PER.?CHANNEL).*", AVX512, converted=0.52, source="the same, --input-type fp8"),
)
# vLLM's table of quantisations: AWQ and GPTQ from Turing on, FP8 weights from Ampere on (Marlin), NVFP4 likewise.
_VLLM = (
    Method("as stored", r"FP16|F16|FP32|F32"),
    Method("as stored", r"BF16", capability=(8, 0), source="bfloat16 needs Ampere"),
    Method("fp8", r"FP8.*|MXFP8.*", capability=(8, 0), source="vLLM: FP8 weights through Marlin from Ampere on"),
    Method("awq", r".*AWQ.*", source="vLLM: AWQ from Turing on"),
    Method("gptq", r".*GPTQ.*", source="vLLM: GPTQ from Turing on"),
    Method("compressed-tensors", r"(RAW.?)?INT[48]|W[48]A(16|8).*", capability=(8, 0), source="vLLM: Marlin"),
    Method("mxfp4", r"MXFP4.*|NVFP4.*", capability=(8, 0), source="vLLM: Marlin from Ampere on"),
)

RULES: dict[str, Rule] = {
    "llamacpp": Rule(
        "llama.cpp",
        {"gguf": _GGUF},
        capability=(5, 0),
        driver=(525, 0),
        sources="llama.cpp docs/build.md; CUDA 12 runs with drivers from 525 on",
    ),
    "ollama": Rule(
        "Ollama",
        {"gguf": _GGUF},
        capability=(5, 0),
        driver=(550, 0),
        sources="ollama docs: compute capability 5.0, driver 550; an older driver silently means the CPU (ol#17290)",
    ),
    "vllm": Rule(
        "vLLM",
        {"safetensors": _VLLM},
        gpu=True,
        capability=(7, 5),
        glibc=(2, 28),
        python=("3.11", "3.12", "3.13", "3.14"),
        driver=(580, 0),
        x86=True,
        equal_gpus=True,
        sources="vllm 0.33.0 wheel: manylinux_2_28, Python >=3.11,<3.15, CUDA 13 runtime, cubins from sm_75 on",
    ),
    "sglang": Rule(
        "SGLang",
        {"safetensors": _VLLM},
        gpu=True,
        capability=(8, 0),
        glibc=(2, 28),
        python=("3.11", "3.12", "3.13"),
        driver=(580, 0),
        x86=True,
        equal_gpus=True,
        sources="sglang 0.5.23: Python >=3.11, torch 2.14.1 for CUDA 13, flashinfer from SM80 on",
    ),
    "ktransformers": Rule(
        "KTransformers",
        {"safetensors": _KT},
        gpu=True,
        capability=(8, 0),
        capability_below=(10, 0),
        glibc=(2, 35),
        python=("3.11", "3.12"),
        driver=(525, 0),
        driver_better=(570, 0),
        x86=True,
        isa=AVX2,
        moe=True,
        embedding=False,
        equal_gpus=True,
        experts_in_ram=True,
        sources="kt-kernel 0.7.2 wheel: cp311 and cp312, manylinux_2_35, SM 80, 86, 89, 90; torch 2.9.1 for CUDA 12.8",
    ),
    CLASSIC: Rule(
        "classic KTransformers",
        {"gguf": _CLASSIC},
        gpu=True,
        capability=(7, 5),
        python=("3.11",),
        driver=(525, 0),
        x86=True,
        isa=AVX2,
        moe=True,
        embedding=False,
        experts_in_ram=True,
        only_pinned="its last release is 0.4.1 of November 2025; pin it to have it nevertheless",
        sources="ktransformers 0.3.2 doc/en/install.md; Turing with KLinearTorch instead of Marlin (kt#235)",
    ),
}


def title(engine: str) -> str:
    return RULES[engine].title if engine in RULES else engine


def group(engine: str) -> str:
    """Group of the hosts that may run it: classic is one of the ways to install KTransformers."""
    return "ktransformers" if engine == CLASSIC else engine


@functools.cache
def version(text: str | None) -> tuple[int, int] | None:
    """The first two numbers of a version, as in (580, 65); None when there is none."""
    found = re.match(r"\D*(\d+)(?:\.(\d+))?", text or "")
    return (int(found[1]), int(found[2] or 0)) if found else None


def dotted(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"


def quantisation(shape: Shape, variant: Mapping[str, Any]) -> str:
    """As the model's entry names it, else as the files do."""
    return str(variant.get("quantisation") or shape["quantisation"])


def methods(engine: str, shape: Shape, variant: Mapping[str, Any]) -> tuple[Method, ...]:
    """Those that read these files, whatever the machine."""
    return _methods(engine, shape["format"], quantisation(shape, variant).upper())


@functools.cache
def _methods(engine: str, files: str, name: str) -> tuple[Method, ...]:
    found = RULES[engine].methods.get(files, ())
    return tuple(one for one in found if re.fullmatch(one.quantisations, name))


def runnable(engine: str, hardware: Hardware, shape: Shape, variant: Mapping[str, Any]) -> list[Method]:
    """Those of the methods that this machine can compute with."""
    return [one for one in methods(engine, shape, variant) if not _method_problem(engine, hardware, one)]


def kt_variant(hardware: Hardware) -> str:
    """Which of kt-kernel's builds this processor and kernel can run; empty when none."""
    kernel = version(hardware["system"]["kernel"])
    old = kernel is not None and kernel < AMX_KERNEL
    there = set(hardware["cpu"]["isa"])
    return next((name for name, isa in KT_VARIANTS if there >= set(isa) and not (name == "amx" and old)), "")


def usable_gpus(engine: str, hardware: Hardware) -> tuple[list[int], list[str]]:
    """Positions of the GPUs that this engine can use together, and why it does not use the others.

    Without a working driver none, nor with one that is too old for an engine that runs without a GPU as well. Engines
    that split every tensor take the kind that has most memory in total.
    """
    rule = RULES[engine]
    cards = hardware["gpus"]
    state = hardware["driver"]["state"]
    if not cards:
        return [], []
    if state not in ("ok", "unknown"):
        why = (
            hardware["unknown"].get("driver")
            or hardware["unknown"].get("gpus")
            or "Install the driver, then plan again."
        )
        return [], [f"{_names(cards)}: not used, the state of the NVIDIA driver is '{state}'. {why}"]
    if not rule.gpu and (old := _driver_problems(rule, hardware)):
        return [], [f"{_names(cards)}: not used. {one}" for one in old]
    good: list[int] = []
    said: list[str] = []
    for place, card in enumerate(cards):
        problem = _gpu_problem(rule, f"gpu{place}", card)
        said += [problem] if problem else []
        good += [] if problem else [place]
    if rule.equal_gpus and good:
        kinds: dict[tuple[str, int], list[int]] = {}
        for place in good:
            kinds.setdefault((cards[place]["name"], cards[place]["memory"] or 0), []).append(place)
        best = max(kinds.items(), key=lambda kind: (kind[0][1] * len(kind[1]), -kind[1][0]))
        said += [
            f"gpu{place} ({cards[place]['name']}) is not used by {rule.title}: it splits every tensor over equal GPUs, "
            f"and those are the {best[0][0]}."
            for place in good
            if place not in best[1]
        ]
        good = best[1]
    return good, said


def _names(cards: Sequence[Gpu]) -> str:
    return " and ".join(sorted({card["name"] for card in cards}))


def _gpu_problem(rule: Rule, device: str, card: Gpu) -> str:
    name = f"{device} ({card['name']})"
    if card["memory"] is None:
        return f"{name} is not used: its memory is unknown. With a working driver nvidia-smi tells it."
    if card["mig"]:
        return (
            f"{name} is not used: MIG is on, so its {card['memory'] / 2**30:.0f} GiB are not one device. Turn MIG off."
        )
    capability = version(card["compute_capability"])
    if capability is None:
        return ""
    if rule.capability and capability < rule.capability:
        oldest = RULES["llamacpp"].capability
        instead = "Use llama.cpp with this card, or a" if oldest and capability >= oldest else "Use a"
        return (
            f"{name} has compute capability {dotted(capability)}; {rule.title} needs {dotted(rule.capability)} or "
            f"newer. {instead} newer card."
        )
    if rule.capability_below and capability >= rule.capability_below:
        return (
            f"{name} has compute capability {dotted(capability)}; the wheels of {rule.title} are built for less than "
            f"{dotted(rule.capability_below)} (SM 80, 86, 89, 90). Use llama.cpp, or build kt-kernel from source."
        )
    return ""


def refusals(
    engine: str, hardware: Hardware, shape: Shape, variant: Mapping[str, Any], slots: int, kind: str = "chat"
) -> list[str]:
    """Why this engine cannot serve these files on this machine, one sentence each; empty when it can."""
    rule = RULES[engine]
    system, said = hardware["system"], []
    if kind == "embedding" and not rule.embedding:
        said.append(f"{rule.title} serves no embedding models. Use llama.cpp.")
    if engine == "ollama" and kind == "embedding" and not shape["pooling"]:
        said.append(
            f"{rule.title} computes vectors only with files that name their pooling, and these do not. Use llama.cpp."
        )
    if engine == CLASSIC and slots > 1:
        said.append(f"{rule.title} answers one conversation at a time; {slots} are asked for. Use llama.cpp.")
    if rule.moe and not shape["experts"]:
        said.append(f"{rule.title} is for models of experts, and this one has 0. Use llama.cpp, or vLLM on GPUs.")
    else:
        said += _file_problems(engine, rule, hardware, shape, variant)
    if rule.x86 and hardware["architecture"] not in ("x86_64", ""):
        said.append(f"{rule.title} needs x86_64; this machine is {hardware['architecture']}. Use llama.cpp.")
    elif lacking := [flag for flag in rule.isa if flag not in hardware["cpu"]["isa"]]:
        said.append(f"{rule.title} needs {', '.join(lacking).upper()}; this CPU does not have it. Use llama.cpp.")
    if rule.gpu:
        good, why = usable_gpus(engine, hardware)
        if not hardware["gpus"]:
            said.append(f"{rule.title} needs a GPU; this machine has none. Use llama.cpp.")
        elif not good:
            said += why
        if hardware["gpus"]:
            said += _driver_problems(rule, hardware)
    glibc = version(system["glibc"])
    if rule.glibc and glibc and glibc < rule.glibc:
        said.append(
            f"{rule.title} needs glibc {dotted(rule.glibc)} or newer; this system has {dotted(glibc)}. "
            "Use a newer release of the system, or llama.cpp."
        )
    if rule.python and system["python"] is not None:
        there = {".".join(one.split(".")[:2]) for one in system["python"]}
        if not there & set(rule.python):
            said.append(
                f"{rule.title} needs Python {' or '.join(rule.python)}; installed: "
                f"{', '.join(system['python']) or 'none'}. Install one of them beside it, or use llama.cpp."
            )
    return said


def _driver_problems(rule: Rule, hardware: Hardware) -> list[str]:
    have = version(hardware["driver"]["version"])
    if not rule.driver or have is None or have >= rule.driver:
        return []
    return [
        f"{rule.title} needs NVIDIA driver {rule.driver[0]} or newer; loaded is {hardware['driver']['version']}. "
        "Install a newer driver."
    ]


def _file_problems(engine: str, rule: Rule, hardware: Hardware, shape: Shape, variant: Mapping[str, Any]) -> list[str]:
    name = quantisation(shape, variant) or "of unknown quantisation"
    if shape["format"] not in rule.methods:
        wants = " or ".join(rule.methods)
        return [f"{rule.title} reads {wants}; {name} is {shape['format']}. Add a variant in {wants}."]
    reads = methods(engine, shape, variant)
    if not reads:
        return [f"{rule.title} has no method for {name} in {shape['format']}. Add a variant it reads."]
    problems = [_method_problem(engine, hardware, one) for one in reads]
    if all(problems):
        return [problems[0]]
    toolkit = version(hardware["driver"]["toolkit"])
    # unsloth#4849, lc#21255: compiled with 13.2, tensors of IQ types come out as gibberish.
    if engine == "llamacpp" and toolkit == (13, 2) and any(t.upper().startswith("IQ") for t in shape["types"]):
        return [
            f"CUDA 13.2 miscompiles the IQ types, and {name} has them: the answers are gibberish. "
            "Install CUDA 12.8, 13.0, 13.1 or 13.3, or take a variant without IQ types."
        ]
    return []


def _method_problem(engine: str, hardware: Hardware, method: Method) -> str:
    rule = RULES[engine]
    lacking = [flag for flag in method.isa if flag not in hardware["cpu"]["isa"]]
    if lacking:
        return (
            f"{rule.title}'s method {method.name} needs {', '.join(lacking)}; this CPU does not have it. Use llama.cpp."
        )
    if method.capability:
        used = usable_gpus(engine, hardware)[0]
        have = [version(hardware["gpus"][place]["compute_capability"]) for place in used]
        known = [one for one in have if one]
        if known and max(known) < method.capability:
            return (
                f"{rule.title}'s method {method.name} needs compute capability {dotted(method.capability)}; "
                f"the newest GPU that it would use has {dotted(max(known))}. Add another variant, or a newer card."
            )
    return ""


def assumptions(engine: str, hardware: Hardware) -> list[str]:
    """What the rules of this engine ask and nobody knows, one sentence each."""
    rule, system = RULES[engine], hardware["system"]
    gpus = bool(hardware["gpus"]) and (rule.gpu or bool(usable_gpus(engine, hardware)[0]))
    asked: Sequence[tuple[bool, str, str]] = (
        (bool(rule.glibc) and system["glibc"] is None, "glibc", f"{dotted(rule.glibc or (0, 0))} or newer"),
        (bool(rule.python) and system["python"] is None, "Python", " or ".join(rule.python)),
        (
            gpus and rule.driver is not None and hardware["driver"]["version"] is None,
            "NVIDIA driver",
            f"{(rule.driver or (0, 0))[0]} or newer",
        ),
        (
            rule.experts_in_ram and engine != CLASSIC and set(hardware["cpu"]["isa"]) >= set(AMX)
            and version(system["kernel"]) is None,
            "kernel",
            f"{dotted(AMX_KERNEL)} or newer, for AMX",
        ),
    )  # fmt: skip
    said = [f"Unknown: {what}; assumed: {wanted}." for unknown, what, wanted in asked if unknown]
    if gpus and any(card["compute_capability"] is None for card in hardware["gpus"]) and rule.capability:
        said.append(f"Unknown: compute capability of a GPU; assumed: {dotted(rule.capability)} or newer.")
    driver = version(hardware["driver"]["version"])
    if gpus and rule.driver_better and driver and rule.driver and rule.driver <= driver < rule.driver_better:
        said.append(
            f"Driver {hardware['driver']['version']} runs {rule.title} by CUDA's minor compatibility; "
            f"{rule.driver_better[0]} or newer is better."
        )
    return said
