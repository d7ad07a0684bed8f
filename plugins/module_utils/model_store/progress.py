# SPDX-License-Identifier: GPL-3.0-or-later
"""What people and programs are told while a transfer runs."""

from __future__ import annotations

import json

from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import ModelStatus, Status, as_json
from ansible_collections.onprem.llm.plugins.module_utils.transfer import human

#: How each state of a model is told; the others need no word.
WORDS = {"queued": "next", "waiting": "another host fetches it", "verifying": "verifying"}


def span(seconds: float) -> str:
    """A time for people: 45 s, 26 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def percent(model: ModelStatus) -> float:
    """How much of the model lies here; 100 only when all of it does."""
    return min(100.0 * model.done / model.total, 99.9 if model.done < model.total else 100.0) if model.total else 100.0


def current(status: Status) -> ModelStatus | None:
    """The model that something happens with now, or will next."""
    for states in (("fetching",), ("verifying",), ("waiting",), ("queued",)):
        for model in status.models:
            if model.state in states:
                return model
    return None


def line(host: str, status: Status) -> str:
    """One line about one host: model, percent, bytes, rate, time left, source."""
    model = current(status)
    if model is None:
        return ""
    place = f" (model {status.models.index(model) + 1} of {len(status.models)})" if len(status.models) > 1 else ""
    parts = [f"{host}: {model.name}{place} {percent(model):.1f} %, {human(model.done)} of {human(model.total)}"]
    if status.rate > 0:
        parts.append(f"{human(round(status.rate))}/s")
    if status.eta is not None and status.remaining > 0:
        parts.append(f"{span(status.eta)} left" + (" for all" if place else ""))
    if model.state in WORDS:
        parts.append(WORDS[model.state])
    elif model.source:
        parts.append(f"from {model.source}" if model.source != "fleet" else "from the fleet")
    return ", ".join(parts)


def json_line(host: str, status: Status) -> str:
    """The same, and all else that is known, as one line of JSON."""
    told = as_json(status)
    told["models"] = [
        {**plain, "percent": round(percent(model), 1)}
        for model, plain in zip(status.models, told["models"], strict=True)
    ]
    return json.dumps({"host": host, **told})


def first_line(host: str, status: Status) -> str:
    """What begins. Told once, also where nobody watches."""
    names = ", ".join(model.name for model in status.models)
    done, total = (sum(getattr(model, what) for model in status.models) for what in ("done", "total"))
    here = f", {human(done)} of it are here" if done else ""
    return f"{host}: {names}: {human(total)}{here}. The transfer goes on by itself, whatever happens to this run."


def last_line(host: str, status: Status) -> str:
    """How it ended."""
    if status.state == "failed":
        return f"{host}: the transfer failed"
    seconds = max(status.updated - status.started, 0.0)
    came = [
        f"{human(count)} from {whom}"
        for whom, count in (("sources", status.from_hubs), ("the fleet", status.from_fleet))
        if count
    ]
    rate = round((status.from_hubs + status.from_fleet) / seconds) if seconds > 0 else 0
    how = f": {' and '.join(came)} in {span(seconds)}, {human(rate)}/s" if came else ", nothing had to be fetched"
    return f"{host}: all models are here{how}"
