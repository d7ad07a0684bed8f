# SPDX-License-Identifier: GPL-3.0-or-later
"""Placements pinned in the inventory: completed, checked, and turned into the endpoints that applications use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

# Engines that have a role. The group of the same name holds the hosts that may run it.
ENGINES = ("llamacpp",)
MODEL_KINDS = ("chat", "embedding")
MODEL_KEYS = ("name", "kind", "repo", "revision", "source", "include", "entry")


class Placement(TypedDict):
    """One model on one host. ``flags`` are long options of the engine without dashes; ``True`` means no value."""

    model: str
    kind: str
    host: str
    engine: str
    port: int
    flags: dict[str, Any]
    model_path: str
    source: str


class Server(TypedDict):
    host: str
    address: str
    port: int


class Endpoint(TypedDict):
    """One model and the servers that answer for it. ``dimensions`` is the length of an embedding, else ``None``."""

    model: str
    kind: str
    dimensions: int | None
    servers: list[Server]


def resolve_models(
    models: Sequence[Mapping[str, Any]], catalogue: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The site's ``models`` with what the catalogue knows of them, and what is wrong, one sentence each."""
    resolved: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, entry in enumerate(models):
        name = entry.get("name", f"number {number + 1}")
        key = entry.get("catalogue")
        if key is not None and key not in catalogue:
            known = ", ".join(sorted(catalogue)) or "empty"
            problems.append(
                f"models: '{name}' names the catalogue entry '{key}', which does not exist (catalogue: {known})."
            )
            continue
        model = {**catalogue.get(str(key), {}), **{k: v for k, v in entry.items() if k != "catalogue"}}
        missing = [k for k in MODEL_KEYS if not model.get(k)]
        if missing:
            problems.append(
                f"models: '{name}' has no {', '.join(missing)}. Set it there, or name a catalogue entry that has it."
            )
        elif not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", str(model["name"])):
            problems.append(
                f"models: the name '{name}' cannot be the name of a service. Use small letters, digits and . _ -"
            )
        elif model["kind"] not in MODEL_KINDS:
            problems.append(f"models: '{name}' is of kind '{model['kind']}'. Known: {', '.join(MODEL_KINDS)}.")
        elif model["kind"] == "embedding" and not model.get("dimensions"):
            problems.append(f"models: '{name}' is an embedding model without `dimensions`, the length of its vectors.")
        else:
            resolved.append(model)
    names = [m["name"] for m in resolved]
    for name in sorted({n for n in names if names.count(n) > 1}):
        problems.append(f"models: the name '{name}' is used twice. Applications ask for a model by its name.")
    return resolved, problems


def check_sources(models: Sequence[Mapping[str, Any]], sources: Mapping[str, Any]) -> list[str]:
    """Models whose files come from a source that the site does not have."""
    known = ", ".join(sorted(sources)) or "none"
    return [
        f"models: '{model['name']}' comes from the source '{model['source']}', which is not in `model_sources` "
        f"(there: {known}). Add it there, or choose one that is."
        for model in models
        if model["source"] not in sources
    ]


def check_pins(
    pins: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
) -> list[str]:
    """What makes the pinned placements impossible, one sentence each, naming the pin, the value and the way out."""
    by_name = {m["name"]: m for m in models}
    problems = []
    ports: dict[tuple[str, int], str] = {}
    for number, pin in enumerate(pins):
        missing = [key for key in ("model", "host", "engine", "port") if pin.get(key) is None]
        if missing:
            problems.append(f"placements: entry {number + 1} ({dict(pin)}) has no {', '.join(missing)}.")
            continue
        model, host, engine = str(pin["model"]), str(pin["host"]), str(pin["engine"])
        label = f"placements: '{model}' on '{host}'"
        if model not in by_name:
            known = ", ".join(sorted(by_name)) or "none"
            problems.append(f"{label}: there is no such model in `models` (there: {known}).")
        if host not in groups.get("inference", []):
            members = ", ".join(groups.get("inference", [])) or "nobody"
            problems.append(
                f"{label}: the host is no member of the group inference (members: {members}). "
                "Add it there, or place the model on a member."
            )
        if engine not in ENGINES:
            problems.append(f"{label}: there is no role for the engine '{engine}'. Known: {', '.join(ENGINES)}.")
        elif host not in groups.get(engine, []):
            problems.append(
                f"{label}: the engine is {engine}, but the host is no member of the group {engine}. "
                f"Add it to that group in the inventory's hosts.yml, or pin an engine it has."
            )
        try:
            port = int(pin["port"])
        except (TypeError, ValueError):
            port = 0
        if not 1024 <= port <= 65535:
            problems.append(f"{label}: the port is {pin['port']!r}. Use a number from 1024 to 65535.")
        elif (host, port) in ports:
            problems.append(
                f"{label}: port {port} is taken by '{ports[host, port]}' on the same host. "
                "Give each model of a host its own port."
            )
        else:
            ports[host, port] = model
    for model in by_name:
        if not any(pin.get("model") == model for pin in pins):
            problems.append(
                f"models: '{model}' has no placement, so nothing would serve it. "
                "Add an entry to `placements`, or take the model out."
            )
    return problems


def complete(pin: Mapping[str, Any], model: Mapping[str, Any], served_dir: str) -> Placement:
    """A pin with what follows from its model. What the pin says itself wins."""
    flags: dict[str, Any] = {"parallel": 1}
    if model.get("context"):
        flags["ctx-size"] = model["context"]
    if model["kind"] == "embedding":
        # A chunk must fit into one batch, so the batches are as long as the context.
        flags |= {"embedding": True, "pooling": model.get("pooling", "mean")}
        if model.get("context"):
            flags |= {"batch-size": model["context"], "ubatch-size": model["context"]}
    return {
        "model": model["name"],
        "kind": model["kind"],
        "host": pin["host"],
        "engine": pin["engine"],
        "port": int(pin["port"]),
        "flags": flags | dict(pin.get("flags") or {}),
        "model_path": f"{served_dir}/{model['name']}/{model['entry']}",
        "source": f"{model['repo']}@{model['revision']}",
    }


def endpoints(
    placements: Sequence[Placement], models: Sequence[Mapping[str, Any]], addresses: Mapping[str, str]
) -> list[Endpoint]:
    """Per model the servers that answer for it, in the order of ``models``."""
    return [
        {
            "model": model["name"],
            "kind": model["kind"],
            "dimensions": model.get("dimensions"),
            "servers": [
                {"host": p["host"], "address": addresses[p["host"]], "port": p["port"]}
                for p in placements
                if p["model"] == model["name"]
            ],
        }
        for model in models
    ]
