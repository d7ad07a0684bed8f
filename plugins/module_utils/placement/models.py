# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's models with what the catalogue knows of them, and the endpoints that applications use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

MODEL_KINDS = ("chat", "embedding")
FORMATS = ("gguf", "safetensors")
#: What describes the files of one variant. Given beside a model's name they count for each of its variants.
VARIANT_KEYS = ("format", "source", "repo", "revision", "include", "exclude", "entry", "size", "legacy", "companions")
VARIANT_REQUIRED = ("source", "repo", "revision", "include")


class Server(TypedDict):
    host: str
    address: str
    port: int
    slots: int
    """Requests it answers at once; 0 for a host that did not answer, of which only its place in the site is known."""


class Endpoint(TypedDict):
    """One model and the servers that answer for it. ``dimensions`` is the length of an embedding, else ``None``."""

    model: str
    kind: str
    dimensions: int | None
    servers: list[Server]


def variants(entry: Mapping[str, Any], known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A model's variants: its own, the catalogue's, or the one its own keys describe. Best quality first.

    ``quantisation`` beside a model's name keeps only the variants of that quantisation.
    """
    common = {key: entry[key] for key in VARIANT_KEYS if key in entry}
    base = {key: known[key] for key in VARIANT_KEYS if key in known}
    wanted = entry.get("quantisation", known.get("quantisation", ""))
    listed = entry.get("variants") or known.get("variants")
    if not listed:
        return [{"format": "gguf", "quantisation": wanted, **base, **common}]
    chosen = [one for one in listed if not wanted or one.get("quantisation") == wanted]
    return [{"format": "gguf", "quantisation": "", **base, **one, **common} for one in chosen]


def variant_key(variant: Mapping[str, Any]) -> str:
    """One name for the files of a variant: what two models share need be read once."""
    return "{source}:{repo}@{revision}:".format(**variant) + str(variant.get("entry") or variant["include"])


def variants_of(models: Sequence[Mapping[str, Any]], host: str) -> list[dict[str, Any]]:
    """The variants whose headers ``host`` reads: those of the models that may run there first. None twice."""
    wanted = [one for model in models if host in model["hosts"][:1] for one in model["variants"]]
    return list({variant_key(one): dict(one) for one in wanted}.values())


def unread_variants(models: Sequence[Mapping[str, Any]], headers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The variants whose header no host could read. None twice."""
    read = {header["key"] for header in headers if header["shape"]}
    wanted = {variant_key(one): dict(one) for model in models for one in model["variants"]}
    return [one for key, one in wanted.items() if key not in read]


def store_models(placements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a store must hold for these placements, as its models: each once, and each under a name of its own.

    A variant's ``companions`` are further repositories an engine reads beside it, most often the original one for its
    configuration and tokenizer: unless they say otherwise, all their files but the weights.
    """
    found: dict[str, dict[str, Any]] = {}
    for placement in placements:
        variant = placement["variant"]
        _keep(found, {**variant, "name": placement["model"]})
        for companion in variant.get("companions") or ():
            name = f"{placement['model']}--{companion['repo'].rpartition('/')[2]}"
            base = {"source": variant["source"], "include": [], "exclude": ["*.safetensors"], "entry": ""}
            _keep(found, {**base, **companion, "name": name})
    return list(found.values())


def model_targets(placements: Sequence[Mapping[str, Any]], models_dir: str) -> dict[str, str]:
    """The name of each model a store holds for these placements, and the folder its pointer shall lead to."""
    return {one["name"]: f"{models_dir}/{one['repo']}/{one['revision']}" for one in store_models(placements)}


def _keep(found: dict[str, dict[str, Any]], model: dict[str, Any]) -> None:
    """Add a model unless it is there; one of other files under the same name gets a longer name."""
    which = ("repo", "revision", "include", "exclude")
    while model["name"] in found and any(found[model["name"]].get(key) != model.get(key) for key in which):
        model = {**model, "name": f"{model['name']}--{model.get('quantisation') or model['repo'].rpartition('/')[2]}"}
    found.setdefault(model["name"], model)


def _variant_problem(one: Mapping[str, Any]) -> str:
    """What a variant lacks, or an empty string."""
    for companion in one.get("companions") or ():
        if not isinstance(companion, Mapping) or not companion.get("repo") or not companion.get("revision"):
            return "has `companions` without repo and revision. Each is a repository: {repo: OWNER/NAME, revision: …}."
    missing = [key for key in VARIANT_REQUIRED if not one.get(key)]
    if one["format"] == "gguf" and not one.get("entry"):
        missing.append("entry")
    if missing:
        return f"has no {', '.join(missing)}. Set it there, or name a catalogue entry that has it."
    if one["format"] not in FORMATS:
        return f"is in the format '{one['format']}'. Known: {', '.join(FORMATS)}."
    return ""


def resolve(
    models: Sequence[Mapping[str, Any]],
    catalogue: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """The site's ``models`` completed, ``hosts`` as a list of host names; and what is wrong, one sentence each."""
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
        base = catalogue.get(str(key), {})
        own = {k: v for k, v in {**base, **entry}.items() if k not in (*VARIANT_KEYS, "catalogue", "quantisation")}
        model = {**own, "variants": variants(entry, base)}
        wrong = _model_problems(str(name), model, groups)
        if not wrong and not model["variants"]:
            there = ", ".join(one.get("quantisation", "") for one in own["variants"])
            asked = entry.get("quantisation", base.get("quantisation"))
            wrong = [f"models: '{name}' has no variant of the quantisation '{asked}'. It has: {there}."]
        problems += wrong
        if not wrong:
            resolved.append({"engine": "auto", **model, "hosts": members(model.get("hosts", "inference"), groups)})
    names = [m["name"] for m in resolved]
    for name in sorted({n for n in names if names.count(n) > 1}):
        problems.append(f"models: the name '{name}' is used twice. Applications ask for a model by its name.")
    return resolved, problems


def members(hosts: str | Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Hosts and groups as host names, in the order of the group inference."""
    wanted = {
        host for name in ([hosts] if isinstance(hosts, str) else hosts) for host in groups.get(str(name), [str(name)])
    }
    return [host for host in groups.get("inference", []) if host in wanted]


def _model_problems(name: str, model: dict[str, Any], groups: Mapping[str, Sequence[str]]) -> list[str]:
    missing = [key for key in ("name", "kind") if not model.get(key)]
    if missing:
        return [f"models: '{name}' has no {', '.join(missing)}. Set it there, or name a catalogue entry that has it."]
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        return [f"models: the name '{name}' cannot be the name of a service. Use small letters, digits and . _ -"]
    if model["kind"] not in MODEL_KINDS:
        return [f"models: '{name}' is of kind '{model['kind']}'. Known: {', '.join(MODEL_KINDS)}."]
    if model["kind"] == "embedding" and not model.get("dimensions"):
        return [f"models: '{name}' is an embedding model without `dimensions`, the length of its vectors."]
    for number in ("context", "parallel"):
        value = model.get(number)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            return [f"models: '{name}' has `{number}: {value}`. Use a whole number from 1, or leave it to the plan."]
    for one in model["variants"]:
        problem = _variant_problem(one)
        if problem:
            which = f" ({one['quantisation']})" if one["quantisation"] and len(model["variants"]) > 1 else ""
            return [f"models: '{name}'{which} {problem}"]
    wanted = model.get("hosts", "inference")
    known = [*groups.get("inference", []), *groups]
    for host in [wanted] if isinstance(wanted, str) else wanted:
        if host not in known:
            there = ", ".join(groups.get("inference", [])) or "nobody"
            return [
                f"models: '{name}' wants the host '{host}', which is no member of the group inference "
                f"(members: {there}). Add it there, or name a member or a group."
            ]
    return []


def known(
    models: Sequence[Mapping[str, Any]],
    catalogue: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    sources: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The models as the plan takes them; ValueError with every problem when one cannot be used."""
    resolved, problems = resolve(models, catalogue, groups)
    kept, more = with_known_sources(resolved, sources)
    if problems or more:
        raise ValueError("These models cannot be planned.\n" + "\n".join(f"- {p}" for p in problems + more))
    return kept


def with_known_sources(
    models: Sequence[Mapping[str, Any]], sources: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The models with those variants whose source the site has, and a sentence for each model that has none left."""
    known = ", ".join(sorted(sources)) or "none"
    kept, problems = [], []
    for model in models:
        there = [one for one in model["variants"] if one["source"] in sources]
        if not there:
            asked = " and ".join(sorted({f"'{one['source']}'" for one in model["variants"]}))
            problems.append(
                f"models: '{model['name']}' comes from the source {asked}, which is not in `model_sources` "
                f"(there: {known}). Add it there, or choose one that is."
            )
        kept.append({**model, "variants": there})
    return kept, problems


def endpoints(
    placements: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    addresses: Mapping[str, str],
    silent: Mapping[str, Mapping[str, int]],
) -> list[Endpoint]:
    """Per model the servers that answer for it, in the order of ``models``.

    ``silent``: by host that did not answer, the ports of its models. They stay: such a host may come back by itself,
    and until then the front door passes it over.
    """
    return [
        {
            "model": model["name"],
            "kind": model["kind"],
            "dimensions": model.get("dimensions"),
            "servers": [
                Server(host=p["host"], address=addresses[p["host"]], port=p["port"], slots=p["slots"])
                for p in placements
                if p["model"] == model["name"]
            ]
            + [
                Server(host=host, address=addresses[host], port=ports[model["name"]], slots=0)
                for host, ports in silent.items()
                if host in model["hosts"]
            ],
        }
        for model in models
    ]
