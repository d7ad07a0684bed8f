# SPDX-License-Identifier: GPL-3.0-or-later
"""Who lacks which models, who asks a source for their files, and who gives them to whom: the same from any host."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

#: What a host said of its models (model_store_info) or was told of them (model_source_info), in no special order.
Said = Sequence[Mapping[str, Any]]

#: What is known of a model whose files are.
LISTED = ("files", "commit", "origin")


def transfer_plan(
    models: Said,
    host: str,
    hosts: Sequence[str],
    peers: Iterable[str],
    looks: Mapping[str, Said],
    listings: Mapping[str, Said],
    refusals: Mapping[str, Said] | None = None,
    mirrors: Collection[str] = (),
) -> dict[str, Any]:
    """What one host has to do with a transfer.

    ``models``: those it shall have. ``hosts``: the run's, in its order, without those that failed. ``peers``: hosts
    that give files to each other. ``looks``, ``listings``, ``refusals``: what each host found, was told, and was not
    told and why (``name``, ``why``), failed ones too. ``mirrors`` come before all others. A selection of files is
    named by the ``key`` of a look: several models may have the same.

    Gives ``mine``, the models it lacks or gives to others; ``asks``, those whose files it asks for, for all hosts,
    because none of them has them; ``asks_too``, those it asks for itself, because who asked first was not told;
    ``problems``, sentences about those that it lacks and nobody was told the files of; ``request``, those that can be
    transferred, with their files; ``sharers``, the hosts that have to do with the same files, this one among them, or
    nobody.
    """
    peers = set(peers)
    hosts = sorted(hosts, key=lambda name: name not in mirrors)  # a stable sort
    found = {name: {look["name"]: look for look in said} for name, said in looks.items()}
    own = found[host]
    first: dict[str, str] = {}
    for name in hosts:
        for look in looks.get(name, ()):
            if not look["complete"]:
                first.setdefault(look["key"], name)
    # What somebody has needs no source to list it; and where a branch has moved since, all get the same files.
    told: dict[str, dict[str, Any]] = {}
    for look in (look for said in looks.values() for look in said if look["complete"]):
        told.setdefault(look["key"], {part: look[part] for part in LISTED})
    # Who gives nothing and takes nothing has to do with what it lacks itself alone.
    needed = {look["key"] for name in hosts if name in peers for look in looks.get(name, ()) if not look["complete"]}
    mine = [
        {**model, "key": own[model["name"]]["key"], "complete": own[model["name"]]["complete"]}
        for model in models
        if not own[model["name"]]["complete"] or (host in peers and own[model["name"]]["key"] in needed)
    ]
    asks = {model["key"]: model for model in mine if first.get(model["key"]) == host and model["key"] not in told}
    for name, said in listings.items():
        for listing in said:
            told[found[name][listing["name"]]["key"]] = {part: listing[part] for part in LISTED}
    unlisted = [model for model in mine if not model["complete"] and model["key"] not in told]
    request = [{**model, **told[model["key"]]} for model in mine if model["key"] in told]
    wanted = {model["key"] for model in request}
    sharers = [name for name in hosts if name in peers and any(look["key"] in wanted for look in looks.get(name, ()))]
    # Who comes first fetches, so those that no source told anything come last.
    sharers.sort(key=lambda name: bool((refusals or {}).get(name)))
    refused = {own[one["name"]]["key"] for one in (refusals or {}).get(host, ())}
    return {
        "mine": mine,
        "asks": list(asks.values()),
        "asks_too": list({model["key"]: model for model in unlisted if model["key"] not in refused}.values()),
        "problems": list(filter(None, (_nobody(model, found, refusals or {}) for model in unlisted))),
        "request": request,
        "sharers": sharers if host in sharers and len(sharers) > 1 else [],
    }


def _nobody(model: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], refusals: Mapping[str, Said]) -> str:
    """What was said to those who asked for the files of a model; empty when nobody was refused."""
    heard: dict[str, list[str]] = {}
    for host, said in refusals.items():
        for one in said:
            if found[host][one["name"]]["key"] == model["key"]:
                heard.setdefault(one["why"], []).append(host)
    said_to = [f"{', '.join(hosts)}: {why}" for why, hosts in heard.items()]
    return "\n".join([f"model '{model['name']}': nobody was told its files.", *said_to]) if heard else ""
