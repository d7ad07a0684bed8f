# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host's files say of a placement: the program's options, the model's chat, converted experts, rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import classic, convert, flags
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers.convert import Conversion

MARKER = ".complete"
RULES = "ktransformers/optimize/optimize_rules"


class Start(TypedDict):
    """What one model's service starts with beyond the plan."""

    flags: dict[str, Any]
    """All long options."""
    found: dict[str, Any]
    """Those that the model's files tell."""
    rules: str
    """Text of the optimise rules; empty where the release's own are good."""


def program(tree: str, engine: str) -> Path | None:
    """The source of the installed program's options; None while it is not installed."""
    return next(iter(sorted(Path(tree).glob(f"lib/python3*/site-packages/{flags.PARSERS[engine]}"))), None)


def unknown_options(placements: Sequence[Mapping[str, Any]], starts: Mapping[str, Start], source: str) -> list[str]:
    """A sentence per model whose options the program has not."""
    return [
        f"{one['model']}: the installed program has no option {', '.join('--' + name for name in lacking)}. No service "
        "was changed. Upstream may have renamed it: correct `flags` of the placement."
        for one in placements
        if (lacking := flags.unknown({**starts[one["model"]]["flags"], **starts[one["model"]]["found"]}, source))
    ]


def thinks(model_path: str) -> str:
    """The parser for the model's thoughts, by its config.json and its chat template; empty where there are none."""
    folder = Path(model_path)
    config = _json(folder / "config.json")
    template = ""
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(errors="replace")
    else:
        given = _json(folder / "tokenizer_config.json").get("chat_template") or ""
        # Several templates by name: the one for chats is `default`.
        named = {str(one.get("name")): str(one.get("template")) for one in given} if isinstance(given, list) else {}
        template = named.get("default", "") if named else str(given)
    return flags.reasoning_parser(str(config.get("model_type", "")), template)


def located(placement: Mapping[str, Any], targets: Mapping[str, str]) -> dict[str, Any]:
    """The placement with the path its files have now: its pointer leads to them when its service is switched.

    ``targets``: name of a model to the folder of its files.
    """
    target = targets.get(placement["model"])
    return {**placement, "model_path": f"{target}/{placement['variant'].get('entry', '')}"} if target else {**placement}


def identity(placement: Mapping[str, Any]) -> str:
    """What the model's files are: their manifest, else where they came from."""
    manifest = Path(placement["model_path"]).resolve() / "manifest.json"
    return manifest.read_text(errors="replace") if manifest.is_file() else str(placement["source"])


def conversions(placements: Sequence[Mapping[str, Any]], folder: str) -> list[Conversion]:
    """What these placements need converted, done or not. ValueError for what cannot be."""
    found = [convert.conversion(one, folder, identity(one)) for one in placements]
    return [one for one in found if one]


def start(
    placement: Mapping[str, Any],
    address: str,
    release: str,
    tree: str,
    rules_file: str,
    hardware: Hardware,
    weights: str,
    path: str,
) -> Start:
    """All options of one service. ``weights``: folder of its converted experts, or empty; ``path``: its files."""
    if placement["engine"] == flags.CLASSIC:
        used = len([one for one in placement["offload"]["split"] if one])
        rules = own_rules(tree, path.rpartition("/")[0], hardware, used)
        given = flags.classic_flags(placement, address, release, rules_file if rules else "")
        return Start(flags=given, found={}, rules=rules)
    pinned = "reasoning-parser" in placement["flags"]
    parser = "" if pinned else thinks(path)
    return Start(
        flags=flags.server_flags(placement, address, weights),
        found={"reasoning-parser": parser} if parser else {},
        rules="",
    )


def without_config(placement: Mapping[str, Any]) -> str:
    """Classic reads the model's config.json and tokenizer beside the GGUF files: why they are missed, or nothing."""
    folder = Path(placement["model_path"]).parent
    if not folder.is_dir() or (folder / "config.json").is_file():
        return ""
    return (
        f"{placement['model']}: {folder} has no config.json. Classic KTransformers reads it and the tokenizer's files "
        "beside the GGUF files: put them into the model's source, and name them in the variant's `include`."
    )


def own_rules(tree: str, folder: str, hardware: Hardware, gpus: int) -> str:
    """Rules for several GPUs, or for cards before Ampere, made of the release's own; empty where it needs none.

    ValueError for a number of GPUs that the release has no rules for.
    """
    known = [card["compute_capability"] for card in hardware["gpus"] if card["compute_capability"]]
    parts = [one.partition(".") for one in known]
    turing = classic.needs_torch_linear([(int(major), int(minor or 0)) for major, _, minor in parts])
    architectures = _json(Path(folder) / "config.json").get("architectures") or [""]
    name = classic.RULES.get(str(architectures[0]))
    if not name or (gpus < 2 and not turing):
        return ""
    end = classic.GPUS.get(max(gpus, 1), "-none")
    found = sorted(Path(tree).glob(f"lib/python3*/site-packages/{RULES}/{name}{end}.yaml"))
    if not found and Path(tree).exists():
        raise ValueError(
            f"{architectures[0]} on {gpus} GPUs: {tree} has no rules for that many ({RULES}/{name}{end}.yaml). Pin "
            f"`flags: {{tensor-split: ...}}` to use {' or '.join(map(str, classic.GPUS))} of them."
        )
    rules = found[0].read_text() if found else ""
    return classic.torch_rules(rules) if turing else rules


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(errors="replace"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
