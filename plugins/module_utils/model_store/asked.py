# SPDX-License-Identifier: GPL-3.0-or-later
"""From the settings of a site to the request of one host, and from how it ended to what people are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import sources
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import (
    Model,
    Request,
    Source,
    Status,
    StoreError,
    model_from,
    request_from,
)
from ansible_collections.onprem.llm.plugins.module_utils.transfer import human

STILL = "The watch ended before the transfer, which goes on by itself. Run again: the run joins it."
#: Settings that are handed on as they are.
PLAIN = ("parallel", "rate_limit", "proxy", "no_proxy", "attempts", "stall_seconds", "minimum_rate")


def source(name: str, known: Mapping[str, Any], tokens: Mapping[str, str]) -> Source:
    """One of the site's sources."""
    return Source(
        name=name,
        type=str(known["type"]),
        url=str(known.get("url") or ""),
        path=str(known.get("path") or ""),
        revision=str(known.get("revision") or ""),
        token=str(tokens.get(name) or ""),
        ca=str(known.get("ca") or ""),
        fleet=bool(known.get("fleet")),
    )


def proxy(address: str) -> str:
    """The address of a proxy as it is; StoreError, which does not quote it, when it cannot be one."""
    try:
        parts = urlsplit(address)
        port, rest = parts.port, parts.path.strip("/") + parts.query + parts.fragment
    except ValueError:
        port, rest = None, "?"
    if address and (rest or not port or not parts.hostname or parts.scheme not in ("http", "https") or " " in address):
        raise StoreError(
            "`model_store_proxy` is no address of the form http://proxy.example:3128 or http://user:password@"
            f"proxy.example:3128. {transfer.CODED}"
        )
    return address


def request(settings: Mapping[str, Any]) -> Request:
    """The request that the options of model_transfer describe."""
    known, tokens = settings["sources"], settings["tokens"]
    models = []
    for given in settings["models"]:
        names = sources.ordered(known, given["source"])
        models.append(replace(model_from(given), sources=tuple(source(name, known[name], tokens) for name in names)))
    plain = {key: settings[key] for key in PLAIN}
    proxy(settings["proxy"])
    base = request_from({"store": settings["store"], "models": [], "fleet": settings["fleet"] or None, **plain})
    return replace(base, models=tuple(models))


def would(model: Model, files: int, size: int) -> str:
    """What a transfer would do for a model that is not complete here. ``size``: bytes of the ``files`` that lack."""
    if not files:
        return f"{model.name}: what is here would be verified, and mended where it is damaged"
    return f"{model.name}: {files} {'file' if files == 1 else 'files'}, {human(size)}, would be fetched"


def why(status: Status) -> str:
    """Why a transfer failed: what each model that failed says."""
    said = [model.message for model in status.models if model.message]
    return "\n".join(said or status.notes or ["The transfer failed and did not say why: journalctl -u model_store"])


def died(result: str, journal: Sequence[str]) -> str:
    """What is known of a transfer that ended without a word."""
    tail = "\n".join(journal) or "(nothing)"
    return (
        f"The transfer ended without saying why (systemd: {result or 'unknown'}). What it brought stays; run again, "
        f"and it goes on from there. End of its journal (journalctl -u model_store):\n{tail}"
    )
