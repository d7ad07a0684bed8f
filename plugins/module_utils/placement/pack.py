# SPDX-License-Identifier: GPL-3.0-or-later
"""All models on all machines: each machine's memory is one budget, which its models share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import attempt, decide, engines, memory, words
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Placement
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

FIRST_PORT = 9101
#: The most context and slots a model takes unasked. Where models crowd each other out, all of them take less.
MOST = ((32768, 4), (8192, 2), (4096, 1))
VERDICTS = ("memory", "paged", "no")

Key = tuple[str, str]
"""Model and host."""


def ports(
    models: Sequence[Mapping[str, Any]],
    pins: Iterable[Mapping[str, Any]],
    host: str,
    installed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Model -> port on this host: the pinned one, else the one it has there already, else the next.

    ``installed``: what is there now. Requests go there until the door is told, so what another model has, also one
    that shall serve no more, is not given away.
    """
    names = [str(model["name"]) for model in models]
    there = dict(installed or {})
    found = {str(pin["model"]): int(pin["port"]) for pin in pins if pin["host"] == host and pin.get("port")}
    for name in names:
        if there.get(name) and there[name] not in found.values():
            found.setdefault(name, there[name])
    taken = {*found.values(), *there.values()}
    free = (port for port in range(FIRST_PORT, 65536) if port not in taken)
    return {name: found.get(name) or next(free) for name in names}


class _Packing:
    """One way through the models: what was placed where, and what it takes."""

    def __init__(self, site: _Site, most: tuple[int, int]) -> None:
        self.site, self.most = site, most
        self.placed: dict[Key, Placement] = {}
        self.taken: dict[str, dict[str, int]] = {host: {} for host in site.hosts}

    def look(self, model: str, host: str) -> Placement:
        """What this host would make of the model now; with the same memory free it is worked out once."""
        return self.site.decided(model, host, self.most, self.taken[host])

    def put(self, model: str, host: str, placement: Placement) -> None:
        self.placed[model, host] = placement
        if placement["fits"] == "no" or self.site.what_if:
            return
        taken = self.taken[host]
        for device in placement["memory"]:
            name = device["device"]
            # Pages of mmap that miss RAM belong to nobody.
            room = max(0, device["capacity"] - device["reserve"] - device["others"])
            taken[name] = taken.get(name, 0) + min(memory.used(device), room)

    def pins(self, *, paged: bool) -> None:
        """Those that need not page; with ``paged`` the rest."""
        for model, host in self.site.pinned:
            if (model, host) not in self.placed:
                found = self.look(model, host)
                if paged or found["fits"] != "paged":
                    self.put(model, host, found)

    def once(self, *, paged: bool) -> None:
        """Every model at its best place, larger ones first: small ones find room beside them. As ``pins``."""
        pinned = {model for model, _ in self.site.pinned}
        for model in self.site.by_size:
            if model in pinned or any(placed == model for placed, _ in self.placed):
                continue
            seen = {host: self.look(model, host) for host in self.site.candidates(model)}
            if not seen:
                continue
            best = min(seen, key=lambda host: _worth(seen[host]))
            # What serves stays where it is: another host that is hardly better is not worth a move.
            verdict, seconds = _worth(seen[best])
            stays = (host for host in seen if self.site.serves(model, host) and _worth(seen[host])[0] == verdict)
            best = next((host for host in stays if _worth(seen[host])[1] <= seconds * attempt.TIE), best)
            if seen[best]["fits"] == "paged" and not paged:
                continue
            if seen[best]["fits"] == "no":
                for host, placement in seen.items():
                    self.put(model, host, placement)
            else:
                self.put(model, best, seen[best])

    def replicas(self) -> None:
        """More machines that may serve a model do, as long as it fits in their memory; first those that do so now."""
        for now in (True, False):
            for model in self.site.by_size:
                if any(p["fits"] == "no" for (name, _), p in self.placed.items() if name == model):
                    continue
                for host in self.site.candidates(model):
                    if (model, host) not in self.placed and self.site.serves(model, host) == now:
                        placement = self.look(model, host)
                        if placement["fits"] == "memory":
                            self.put(model, host, placement)

    def everywhere(self) -> None:
        """For machines one thinks of buying: each model on each of them, alone."""
        for model in self.site.models:
            for host in self.site.candidates(model):
                self.put(model, host, self.look(model, host))

    def run(self) -> _Packing:
        if self.site.what_if:
            self.everywhere()
        else:
            # What must page takes all the RAM there is, so everything else is placed before it.
            for paged in (False, True):
                self.pins(paged=paged)
                self.once(paged=paged)
            self.replicas()
        return self

    def misfits(self) -> tuple[int, int]:
        verdicts = [placement["fits"] for placement in self.placed.values()]
        return verdicts.count("no"), verdicts.count("paged")

    def seconds(self) -> float:
        """Of the typical request, each model at its best place, all models together."""
        best: dict[str, float] = {}
        for (model, _), placement in self.placed.items():
            best[model] = min(best.get(model, math.inf), _worth(placement)[1])
        return sum(best.values())


def _worth(placement: Placement) -> tuple[int, float]:
    """Less is better: the verdict, then the seconds of the typical request for each conversation."""
    speed = placement["predicted"]
    seconds = attempt.request_seconds(placement["kind"], speed) if speed else 0.0
    return VERDICTS.index(placement["fits"]), seconds


class _Site:
    """What is asked, and every decision made for it."""

    def __init__(
        self,
        hosts: Mapping[str, Hardware],
        models: Sequence[Mapping[str, Any]],
        shapes: Mapping[str, Sequence[Shape | None]],
        allowed: Mapping[str, set[str]],
        existing_roles: set[str],
        pins: Sequence[Mapping[str, Any]],
        allow_paging: bool,
        no_gpu: Mapping[str, Mapping[str, str]],
        installed: Mapping[str, Mapping[str, int]],
        what_if: bool,
    ) -> None:
        self.hosts, self.allowed, self.existing_roles = hosts, allowed, existing_roles
        self.allow_paging, self.no_gpu, self.installed, self.what_if = allow_paging, no_gpu, installed, what_if
        self.models = {str(model["name"]): model for model in models}
        self.variants: dict[str, list[tuple[Mapping[str, Any], Shape]]] = {
            name: [
                (variant, shape)
                for variant, shape in zip(model["variants"], shapes.get(name, []), strict=False)
                if shape is not None
            ]
            for name, model in self.models.items()
        }
        self.pinned = {
            (str(pin["model"]), str(pin["host"])): pin
            for pin in pins
            if pin.get("host") in hosts and str(pin.get("model")) in self.models
        }
        self.by_size = sorted(self.models, key=self._size, reverse=True)
        self._decided: dict[tuple[Any, ...], Placement] = {}

    def _size(self, model: str) -> int:
        return max((shape["weights"] for _, shape in self.variants[model]), default=0)

    def candidates(self, model: str) -> list[str]:
        named = self.models[model].get("hosts")
        return [host for host in self.hosts if named is None or self.what_if or host in named]

    def serves(self, model: str, host: str) -> bool:
        """Whether it is there now."""
        return model in self.installed.get(host, {})

    def decided(self, model: str, host: str, most: tuple[int, int], taken: Mapping[str, int]) -> Placement:
        key = (model, host, most, tuple(sorted(taken.items())))
        if key not in self._decided:
            self._decided[key] = decide.decide(
                self.hosts[host],
                decide.request(self.models[model], host, most),
                self.variants[model],
                self.allowed.get(host, set()),
                self.existing_roles,
                taken,
                self.allow_paging or self.what_if,
                self.pinned.get((model, host), {}),
                no_gpu=self.no_gpu.get(host, {}),
                what_if=self.what_if,
            )
        return self._decided[key]

    def elsewhere(self, packing: _Packing, placement: Placement) -> list[str]:
        """Hosts where it would fit in what is left there, though they are no candidates for it."""
        said = []
        for host in self.hosts:
            if host != placement["host"] and host not in self.candidates(placement["model"]):
                other = packing.look(placement["model"], host)
                if other["fits"] == "memory" and other["predicted"]:
                    said.append(
                        f"It would fit on {host} ({engines.title(other['engine'])}, {other['quantisation']}, about "
                        f"{words.rate(other['predicted']['decode'])} tok/s), which is not among the model's hosts."
                    )
        return said


def pack(
    hosts: Mapping[str, Hardware],
    models: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, Sequence[Shape | None]],
    allowed: Mapping[str, set[str]],
    existing_roles: set[str],
    pins: Sequence[Mapping[str, Any]],
    allow_paging: bool,
    *,
    no_gpu: Mapping[str, Mapping[str, str]] | None = None,
    installed: Mapping[str, Mapping[str, int]] | None = None,
    what_if: bool = False,
) -> list[Placement]:
    """The placements of all models: pinned ones, then each model at its best place, then replicas.

    ``hosts`` in the inventory's order; ``shapes`` per model, parallel to its variants, ``None`` where a header
    could not be read. A model that fits nowhere has a placement with the verdict no on each of its hosts.
    ``installed``: host -> model -> port it has there. What is there stays where another host is hardly better.
    With ``what_if`` every engine may be chosen, and each model has every machine to itself.
    """
    site = _Site(
        hosts, models, shapes, allowed, existing_roles, pins, allow_paging, no_gpu or {}, installed or {}, what_if
    )
    # Of the ways that leave out the fewest, the most generous one that does not cost much speed.
    tried = [_Packing(site, most).run() for most in (MOST[:1] if what_if else MOST)]
    fewest = min(one.misfits() for one in tried)
    good = [one for one in tried if one.misfits() == fewest]
    quickest = min(one.seconds() for one in good)
    best = next(one for one in good if one.seconds() <= quickest * decide.SLOWER)
    numbers = {host: ports(models, site.pinned.values(), host, (installed or {}).get(host)) for host in hosts}
    found = []
    for placement in best.placed.values():
        alternatives = placement["alternatives"]
        if placement["fits"] != "memory" and not what_if:
            alternatives = alternatives + site.elsewhere(best, placement)
        port = numbers[placement["host"]][placement["model"]]
        found.append({**placement, "port": port, "alternatives": alternatives})
    return found  # type: ignore[return-value]
