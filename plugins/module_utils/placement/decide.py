# SPDX-License-Identifier: GPL-3.0-or-later
"""One model on one machine: every engine with every variant is tried, and the best of what fits is chosen."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypedDict

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import attempt, engines, memory, pinned, why
from ansible_collections.onprem.llm.plugins.module_utils.placement.attempt import TIE, Option
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Placement, Rejection
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

#: Tokens per conversation and conversations at once, where nothing is given: the largest that cost little.
CONTEXTS = (32768, 16384, 8192, 4096)
SLOTS = (4, 2, 1)
#: How much slower one conversation may get by that, and, of a model that lies in RAM, how large its KV cache may be:
#: this part of the weights, or this part of the RAM if that is more.
SLOWER = 1.5
KV_OF_WEIGHTS, KV_OF_RAM = 1 / 4, 1 / 8
USEFUL = 8192
"""Tokens for a question with its documents and a few turns: below this only where nothing else is possible."""
EMBEDDING_CONTEXT = 8192
#: Engines that take the same memory and are equally fast: Ollama runs llama-server, SGLang computes as vLLM does.
TWINS = {"ollama": "llamacpp", "sglang": "vllm"}


class Request(TypedDict):
    """What is asked for. ``None``: the planner's choice. ``most``: no more than this context and these slots then."""

    name: str
    kind: str
    host: str
    context: int | None
    parallel: int | None
    engine: str
    pooling: str | None
    most: tuple[int, int]
    unread: list[str]


class Found(NamedTuple):
    """What came of one engine: the option it would take, or why there is none."""

    engine: str
    option: Option | None
    rejected: list[Rejection]


def request(model: Mapping[str, Any], host: str, most: tuple[int, int] = (CONTEXTS[0], SLOTS[0])) -> Request:
    """What a resolved entry of ``models`` asks of a host."""
    return {
        "name": str(model["name"]),
        "kind": str(model["kind"]),
        "host": host,
        "context": model.get("context"),
        "parallel": model.get("parallel"),
        "engine": str(model.get("engine") or "auto"),
        "pooling": model.get("pooling"),
        "most": most,
        "unread": list(model.get("unread") or []),
    }


def ladder(asked: Request, pin: pinned.Pin, shape: Shape) -> tuple[list[int], list[int]]:
    """Contexts and numbers of slots to try, the largest first; one of each where they are given.

    A context longer than the model was trained for is never chosen, and refused when asked for.
    """
    trained = shape["context"] or CONTEXTS[0]
    slots = pin.slots or asked["parallel"] or 0
    if pin.tokens:
        return [pin.tokens // (slots or 1)], [slots or 1]
    context = pin.context or asked["context"]
    # A whole input is one batch for an embedding model, and its buffers grow with it.
    most = min(asked["most"][0], trained, CONTEXTS[0] if asked["kind"] == "chat" else EMBEDDING_CONTEXT)
    contexts = [context] if context else [n for n in CONTEXTS if n <= most] or [most]
    return contexts, [slots] if slots else [n for n in SLOTS if n <= asked["most"][1]]


def in_order(contexts: Sequence[int], slots: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Sizes by preference, those of as many slots together: a team has more use for slots than for a very long context.

    The most slots that leave a useful context come first, with the longest context for them; then shorter contexts.
    """
    useful = [context for context in contexts if context >= USEFUL]
    short = [context for context in contexts if context < USEFUL]
    groups = [[(context, number) for context in useful] for number in slots] if useful else []
    return groups + [[(context, number)] for context in short for number in slots]


class _Trial:
    """One decision: what is asked, of which machine, with what already taken."""

    def __init__(
        self, hardware: Hardware, asked: Request, pin: pinned.Pin, taken: Mapping[str, int], no_gpu: Mapping[str, str]
    ) -> None:
        self.hardware, self.asked, self.pin, self.taken, self.no_gpu = hardware, asked, pin, taken, no_gpu
        self.llamacpp: Option | None = None
        """What llama.cpp would take, where it may run: it is as fast as Ollama and stands before it."""
        self._places: dict[str, list[int]] = {}
        self._known: dict[tuple[Any, ...], list[Option]] = {}
        self.failed: list[Option] = []
        """Options that miss memory: the nearest is shown when nothing fits."""

    @functools.cached_property
    def room(self) -> int:
        """All memory of the machine."""
        return memory.ram(self.hardware) + sum(card["memory"] or 0 for card in self.hardware["gpus"])

    def gpu_room(self, engine: str) -> int:
        """All memory of the GPUs it uses."""
        return sum(self.hardware["gpus"][place]["memory"] or 0 for place in self.places(engine))

    def places(self, engine: str) -> list[int]:
        """The GPUs this engine uses."""
        if engine not in self._places:
            self._places[engine] = [] if engine in self.no_gpu else engines.usable_gpus(engine, self.hardware)[0]
        return self._places[engine]

    def at(self, engine: str, variant: Mapping[str, Any], shape: Shape, context: int, slots: int) -> list[Option]:
        """The ways to run it with this context and these slots; worked out once for engines that are alike."""
        like = TWINS.get(engine, engine)
        found = self._worked_out(like, engine, variant, shape, context, slots)
        if like == engine:
            return found
        other = self.llamacpp
        beaten = other and other.shape is shape and other.places == self.places(engine)
        if engine == "ollama" and not beaten and any(one.offload["cpu_moe_layers"] for one in found):
            # It cannot be told which experts lie where.
            return self._worked_out(engine, engine, variant, shape, context, slots)
        return [replace(one, engine=engine, twin=one) for one in found]

    def _worked_out(
        self, like: str, engine: str, variant: Mapping[str, Any], shape: Shape, context: int, slots: int
    ) -> list[Option]:
        places = self.places(engine)
        key = (like, id(shape), context, slots, tuple(places))
        if key not in self._known:
            methods = engines.runnable(engine, self.hardware, shape, variant)
            self._known[key] = attempt.options(
                like, self.hardware, places, variant, shape, methods, self.asked["kind"], context, slots, self.taken,
                self.pin.wishes,
            )  # fmt: skip
        return self._known[key]

    def best_at(self, engine: str, variant: Mapping[str, Any], shape: Shape, context: int, slots: int) -> Option | None:
        """Of the ways to run it with this context and these slots, the preferred one of those that fit."""
        found = self.at(engine, variant, shape, context, slots)
        fitting = [one for one in found if one.fits == "memory"]
        self.failed += [] if fitting else found
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        # The method first (files as they are before a conversion), then the fewest GPUs that are not slower by a tenth.
        same = [one for one in fitting if one.method is fitting[0].method]
        quickest = min(one.seconds for one in same)
        return next(one for one in same if one.seconds <= quickest * TIE)

    def fitted(self, engine: str, variant: Mapping[str, Any], shape: Shape) -> Option | None:
        """The size first in order of those that fit and cost little against the smallest of all."""
        contexts, slots = ladder(self.asked, self.pin, shape)
        smallest = (contexts[-1], slots[-1])
        groups = in_order(contexts, slots)
        like = TWINS.get(engine, engine)
        if like == "llamacpp" and shape["weights"] > self.room:
            # It cannot fit; the smallest is tried only to say by how much.
            return self.best_at(engine, variant, shape, *smallest)
        if like == "llamacpp" and shape["weights"] > self.gpu_room(engine):
            groups = [[size for size in group if size == smallest or self.modest(shape, *size)] for group in groups]
        groups = [group for group in groups if group]
        top = self.best_at(engine, variant, shape, *groups[0][0])
        if groups == [[smallest]] or (top and (top.steady or not top.places)):
            return top
        least = self.best_at(engine, variant, shape, *smallest)
        if least is None:
            return None

        def good(option: Option | None) -> bool:
            if option is None or option.all_on_gpu < least.all_on_gpu:
                return False
            if not option.steady and not self.modest(shape, option.context, option.slots):
                return False
            return option.offload == least.offload or option.alone <= least.alone * SLOWER

        if good(top):
            return top
        for group in groups:
            # Where the shortest context of so many slots is too much, the longer ones are.
            shortest = self.best_at(engine, variant, shape, *group[-1])
            if good(shortest):
                longer = (self.best_at(engine, variant, shape, *size) for size in group[:-1])
                return next((option for option in longer if good(option)), shortest)
        return least

    def modest(self, shape: Shape, context: int, slots: int) -> bool:
        """Whether the KV cache leaves the RAM to the weights."""
        cache = attempt.cache_size(shape, context, slots, self.pin.wishes.cache_type)
        return cache <= max(shape["weights"] * KV_OF_WEIGHTS, memory.ram(self.hardware) * KV_OF_RAM)

    def refusals(self, engine: str, variant: Mapping[str, Any], shape: Shape, slots: int) -> list[str]:
        """Why this engine, as it is installed here, cannot serve these files."""
        said = engines.refusals(engine, self.hardware, shape, variant, slots, self.asked["kind"])
        return said + ([self.no_gpu[engine]] if engines.RULES[engine].gpu and engine in self.no_gpu else [])

    def engine(self, engine: str, candidates: Sequence[tuple[Mapping[str, Any], Shape]]) -> Found:
        """The first variant that fits in memory."""
        refused: dict[str, list[str]] = {}
        readable = [one for one in candidates if one[1]["format"] in engines.RULES[engine].methods]
        option = None
        # Of files in the wrong format one is enough to say what is wrong with the machine as well.
        for variant, shape in readable or candidates[:1]:
            label = engines.quantisation(shape, variant) if readable else ""
            slots = ladder(self.asked, self.pin, shape)[1][-1]
            reasons = self.refusals(engine, variant, shape, slots)
            if not reasons:
                before = len(self.failed)
                option = self.fitted(engine, variant, shape)
                if option:
                    break
                misses = self.failed[before:]
                near = min(misses, key=_shortage, default=None)
                reasons = [why.lacking(near) if near else why.unequal(engine, self.hardware, shape)]
            refused.setdefault(" ".join(reasons), []).append(label)
        rejected = [
            Rejection(engine=engine, variant=", ".join(labels), reason=reason, better=False)
            for reason, labels in refused.items()
        ]
        return Found(engine, option, rejected)

    def paged(self, candidates: Sequence[tuple[Mapping[str, Any], Shape]]) -> Option | None:
        """The quickest way to run a model that is larger than the memory: llama.cpp, weights from the disk."""
        found = []
        for variant, shape in candidates:
            if engines.refusals("llamacpp", self.hardware, shape, variant, 1, self.asked["kind"]):
                continue
            contexts, slots = ladder(self.asked, self.pin, shape)
            (first,) = self.at("llamacpp", variant, shape, contexts[-1], slots[-1])
            option = attempt.paged(first, self.taken)
            found += [option] if option else []
        return min(found, key=lambda one: one.seconds, default=None)


def _shortage(option: Option) -> int:
    return sum(option.missing.values())


def _other_numa(engine: str, pin: pinned.Pin) -> str:
    """Why the pinned NUMA policy keeps this engine out: engines with experts in RAM have pools and nothing else."""
    policy = (pin.wishes.numa or {}).get("policy")
    pools = engines.RULES[engine].experts_in_ram
    if policy is None or (policy == "pools") == pools:
        return ""
    way_out = "works in pools (pin pools)" if pools else "has no pools (pin none, distribute, interleave or bind)"
    return f"numa {policy} is pinned, and {engines.title(engine)} {way_out}"


def _available(engine: str, asked: Request, allowed: set[str], roles: set[str], what_if: bool) -> str:
    """Why this engine may not be used here; empty when it may."""
    if what_if:
        return ""
    name = engines.title(engine)
    if engine not in roles:
        return f"there is no role for {name} yet"
    return "" if engine in allowed else f"{asked['host']} is no member of the group {engines.group(engine)}"


def decide(
    hardware: Hardware,
    asked: Request,
    candidates: Sequence[tuple[Mapping[str, Any], Shape]],
    allowed: set[str],
    existing_roles: set[str],
    taken: Mapping[str, int],
    allow_paging: bool,
    pin: Mapping[str, Any],
    *,
    no_gpu: Mapping[str, str] | None = None,
    what_if: bool = False,
) -> Placement:
    """What runs this model on this machine, or why nothing can.

    ``candidates`` are the model's variants with their shapes, best quality first; ``taken`` are bytes per device that
    models placed before need; ``no_gpu`` says of engines why their build uses no GPU; with ``what_if`` every engine
    may be chosen. A pin that cannot work gives the verdict no, with the figures.
    """
    fixed, problems = pinned.read(pin)
    wanted = fixed.engine or asked["engine"]
    if wanted != "auto" and wanted not in engines.RULES:
        problems.append(f"There is no engine '{wanted}'. Known: {', '.join(engines.RULES)}.")
    kept = [one for one in candidates if _is_wanted(one, fixed.quantisation)]
    if candidates and not kept:
        there = ", ".join(engines.quantisation(shape, variant) for variant, shape in candidates)
        problems.append(f"Pinned: quantisation {fixed.quantisation}. There is no such variant; there are: {there}.")
    trial = _Trial(hardware, asked, fixed, taken, no_gpu or {})
    problems += list(_impossible(trial, kept)) if not problems else []
    if problems or not kept:
        return why.refused(hardware, asked, fixed, problems or ["No variant could be read, so nothing can be planned."])

    tried = [wanted] if wanted != "auto" else list(engines.ORDER)
    closed = {
        engine: _other_numa(engine, fixed) or _available(engine, asked, allowed, existing_roles, what_if)
        for engine in tried
    }
    found = []
    for engine in tried:
        found.append(trial.engine(engine, kept))
        if engine == "llamacpp" and not closed[engine]:
            trial.llamacpp = found[-1].option
    chosen = _best([one.option for one in found if one.option and not closed[one.engine]])
    if chosen is None and "llamacpp" in tried and not closed["llamacpp"]:
        chosen = trial.paged(kept)
    near = [one for one in trial.failed if not closed[one.engine]]
    rejected = [reason for one in found for reason in one.rejected]
    rejected += _others_than(wanted, "pinned" if fixed.engine else "the model's entry")
    rejected += _not_taken(chosen, [one.option for one in found if one.option and one.option is not chosen], closed)
    alternatives = []
    if chosen is None or chosen.fits != "memory":
        alternatives += _would_fit(trial, [one for one in tried if not closed[one]], candidates, kept)
    alternatives += _without_gpu(trial, chosen, kept)
    if chosen is None:
        bars = [f"{engines.title(engine)} is not available: {bar}." for engine, bar in closed.items() if bar]
        nearest = min(near, key=_shortage, default=None)
        return why.no(hardware, asked, fixed, nearest, rejected, [] if nearest else bars, alternatives)
    extra = engines.usable_gpus(chosen.engine, hardware)[1] if chosen.engine not in trial.no_gpu else []
    extra += _not_all_on_gpu(trial, chosen)
    if chosen.engine not in existing_roles:
        extra.append(f"There is no role for {engines.title(chosen.engine)} yet.")
    return why.placement(hardware, asked, fixed, chosen, taken, rejected, extra, alternatives, allow_paging)


def _others_than(wanted: str, said: str) -> list[Rejection]:
    """Engines that nobody asks, because one is named."""
    if wanted == "auto":
        return []
    reason = f"The engine is {engines.title(wanted)} ({said})."
    return [Rejection(engine=one, variant="", reason=reason, better=False) for one in engines.ORDER if one != wanted]


def _would_fit(
    trial: _Trial,
    open_: Sequence[str],
    candidates: Sequence[tuple[Mapping[str, Any], Shape]],
    kept: Sequence[tuple[Mapping[str, Any], Shape]],
) -> list[str]:
    """What would fit in memory here: less context, fewer slots, another variant. One sentence each."""
    said = []
    contexts, numbers = ladder(trial.asked, trial.pin, kept[0][1])
    context, slots = contexts[-1], numbers[-1]
    lesser = [(context >> n, slots) for n in range(1, 7) if context >> n >= 512]
    lesser += [(context >> n, 1) for n in range(0, 7) if slots > 1 and context >> n >= 512]
    pinned_size = trial.pin.tokens is not None
    for tokens, number in lesser if not pinned_size else []:
        option = _any_at(trial, open_, kept, tokens, number)
        if option:
            said.append(
                f"{tokens} tokens × {number} instead of {context} × {slots} would fit in memory ({_label(option)})."
            )
            break
    if trial.pin.quantisation:
        option = _any_at(trial, open_, [one for one in candidates if one not in kept], context, slots)
        if option:
            said.append(f"Without the pinned {trial.pin.quantisation} it would fit in memory ({_label(option)}).")
    return said


def _label(option: Option) -> str:
    """As in: llama.cpp, Q4_K_M, about 20 tok/s."""
    label = engines.quantisation(option.shape, option.variant)
    return f"{engines.title(option.engine)}, {label}, {why.rate(option)}"


def _any_at(
    trial: _Trial,
    open_: Sequence[str],
    candidates: Sequence[tuple[Mapping[str, Any], Shape]],
    context: int,
    slots: int,
) -> Option | None:
    """The best of all engines and variants with this context and these slots."""
    found = []
    for engine in open_:
        for variant, shape in candidates:
            refused = trial.refusals(engine, variant, shape, slots)
            option = None if refused else trial.best_at(engine, variant, shape, context, slots)
            if option:
                found.append(option)
                break
    return _best(found)


def _without_gpu(trial: _Trial, chosen: Option | None, kept: Sequence[tuple[Mapping[str, Any], Shape]]) -> list[str]:
    """What a build that uses the GPUs would give, where the installed one does not."""
    engine = chosen.engine if chosen else "llamacpp"
    if engine not in trial.no_gpu or not engines.usable_gpus(engine, trial.hardware)[0]:
        return []
    other = _Trial(trial.hardware, trial.asked, trial.pin, trial.taken, {})
    option = other.engine(engine, kept).option
    said = f" With the GPU: {engines.quantisation(option.shape, option.variant)}, {why.rate(option)}." if option else ""
    return [f"{trial.no_gpu[engine]}.{said}"]


def _not_all_on_gpu(trial: _Trial, option: Option) -> list[str]:
    """What keeps layers off the GPUs: the weights, or the KV cache, and then the context at which it would not."""
    cards = [one for one in option.devices if one["device"] != "ram"]
    fixed = option.wishes.gpu_layers is not None or option.wishes.cpu_moe_layers is not None
    if option.engine not in ("llamacpp", "ollama") or option.all_on_gpu or not cards or fixed:
        return []
    room = max(0, sum(one["capacity"] - one["reserve"] - one["others"] - one["overhead"] for one in cards))
    start = "Not everything lies" if option.offload["cpu_moe_layers"] else "Not all layers lie"
    weights = option.shape["weights"] - (0 if option.shape["tied"] else option.shape["embeddings"])
    if weights <= room:
        tokens = option.context * option.slots
        sizes = [(option.context, 1), (4096, option.slots), (4096, 1), (2048, 1)]
        for context, slots in sizes:
            if context * slots >= tokens:
                continue
            (less,) = trial.at(option.engine, option.variant, option.shape, context, slots)
            if less.all_on_gpu and less.fits == "memory":
                cache = memory.kv_bytes(option.shape, tokens, option.slots, option.cache_type)
                return [
                    f"{start} on the GPUs: with {why.size(option)} the KV cache of {why.gib(cache)} is what "
                    f"does not fit beside the weights of {why.gib(weights)} in {why.gib(room)}; "
                    f"with {why.size(less)} all would."
                ]
    return [f"{start} on the GPUs: the weights are {why.gib(weights)}, and {why.gib(room)} are there for all."]


def _is_wanted(candidate: tuple[Mapping[str, Any], Shape], quantisation: str | None) -> bool:
    return quantisation is None or engines.quantisation(candidate[1], candidate[0]).upper() == quantisation.upper()


def _impossible(trial: _Trial, candidates: Sequence[tuple[Mapping[str, Any], Shape]]) -> Iterator[str]:
    """Contexts longer than every variant was trained for, and pinned nodes that are not there."""
    for _, shape in candidates:
        context = ladder(trial.asked, trial.pin, shape)[0][0]
        if context < 1:
            slots = trial.pin.slots or trial.asked["parallel"] or 1
            yield f"Pinned: ctx-size {trial.pin.tokens} for {slots} slots. Pin a larger ctx-size."
            break
        if shape["context"] and context > shape["context"] and not trial.pin.stretched:
            yield (
                f"A context of {context} tokens is longer than the {shape['context']} the model was trained for. "
                f"Take {shape['context']} or less, or pin the flag rope-scaling for a model that can be stretched."
            )
            break
    wanted = (trial.pin.wishes.numa or {}).get("nodes", [])
    there = [node["id"] for node in trial.hardware["numa"] if node["cpus"]]
    if any(node not in there for node in wanted):
        yield (
            f"Pinned: NUMA nodes {', '.join(map(str, wanted))}. Nodes with CPUs here: "
            + (f"{', '.join(map(str, there))}. Pin one of these." if there else "none is known. Pin no nodes.")
        )


def _best(options: Sequence[Option]) -> Option | None:
    """The quickest; of those within a tenth of it the engine that stands first."""
    if not options:
        return None
    times = {id(one): _time(one, options) for one in options}
    quickest = min(times.values())
    return next(one for one in options if times[id(one)] <= quickest * TIE)


def _time(option: Option, among: Sequence[Option]) -> float:
    """Seconds of the typical request; without the prompt where for one of them nobody knows how fast it is read."""
    if option.kind == "chat" and any(one.speed["prefill"] is None for one in among):
        return attempt.ANSWER_TOKENS / max(option.speed["total"], 1e-9)
    return option.seconds


def _not_taken(chosen: Option | None, others: Sequence[Option], closed: Mapping[str, str]) -> Iterator[Rejection]:
    """Engines that could serve it: slower ones, and better ones that are not available."""
    for one in others:
        label = engines.quantisation(one.shape, one.variant)
        name, bar = engines.title(one.engine), closed[one.engine]
        both = [one, chosen] if chosen else [one]
        seconds = _time(one, both)
        better = chosen is None or chosen.fits != "memory" or seconds * TIE < _time(chosen, both)
        if bar and better:
            instead = f" instead of {why.rate(chosen)}" if chosen else ""
            text = f"Would be better, not available: {bar}. {name} with {label}: {why.rate(one)}{instead}."
        elif chosen and not bar and one.engine == "ollama" and one.offload["cpu_moe_layers"]:
            # How much slower is worked out only where llama.cpp may not run.
            text = "Slower: it cannot be told which experts lie where."
        elif chosen and not bar:
            now = _time(chosen, both)
            text = (
                f"About as fast as {engines.title(chosen.engine)}, which stands before it."
                if seconds <= now * TIE
                else f"Slower: {3600 / seconds:.0f} typical requests an hour instead of {3600 / now:.0f}."
            )
        else:
            text = f"Not available: {bar}."
        yield {"engine": one.engine, "variant": label, "reason": text, "better": bool(bar and better)}
