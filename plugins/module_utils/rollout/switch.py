# SPDX-License-Identifier: GPL-3.0-or-later
"""Switches a component of this host to another configuration, asks it, and goes back when it may not serve.

Before anything changes the record says what will be, and how to go back. A run that breaks off at any step is taken up
by the next one: the record still says what is good, and only what passed the gate becomes that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from ansible_collections.onprem.llm.plugins.module_utils import config_files, service, systemctl, transfer
from ansible_collections.onprem.llm.plugins.module_utils.rollout import apply, beside, compare, gate, record
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import Configuration, Record, Service

STEP = 1.0  # seconds between two looks at what is watched
MISSES = 5  # looks in a row without an answer: it stopped answering

FAULTS = (service.ServiceError, config_files.FileError, gate.GateError, OSError)


class SwitchError(Exception):
    """The switch was refused. The text says what, why, and what serves now."""

    def __init__(self, text: str, rolled_back: bool = False) -> None:
        super().__init__(text)
        self.rolled_back = rolled_back


class Refused(Exception):
    """A service did not pass. ``unit`` is whose journal says more; empty when no service is to blame."""

    def __init__(self, unit: str, text: str) -> None:
        super().__init__(text)
        self.unit = unit


@dataclass
class Switch:
    component: str
    folder: str  # of the records
    rules: Mapping[str, Any]  # of the gate: question, expect, tokens, models, speed_ratio, watch
    timeout: float  # seconds a model may take to load
    units: systemctl.Units
    told: Callable[[Record], object] = lambda _: None  # is told each record that was written

    def read(self) -> Record | None:
        return record.read(self.folder, self.component)

    def write(self, now: Record) -> Record:
        record.write(self.folder, now)
        self.told(now)
        return now

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other run switches this component meanwhile: one whose controller died may still be at it."""
        os.makedirs(self.folder, mode=0o755, exist_ok=True)
        with open(Path(self.folder) / f".{self.component}.lock", "w", encoding="utf-8") as file:
            try:
                transfer.lock(file.fileno(), self.timeout)
            except TimeoutError:
                raise SwitchError(
                    f"another run switches {self.component} on this host since {self.timeout:.0f} s. Nothing "
                    f"was changed. Wait for its end; `fuser {file.name}` says which process it is."
                ) from None
            yield

    # --- what the module is asked for

    def look(self, wanted: Configuration, gone: Sequence[compare.Gone]) -> compare.Look:
        return compare.look(self.read(), wanted, gone, self.units.state)

    def present(self, wanted: Configuration, gone: Sequence[compare.Gone]) -> bool:
        """Serve with ``wanted``; whether anything was done. SwitchError when it is refused."""
        with self.alone():
            now = self.read()
            seen = compare.look(now, wanted, gone, self.units.state)
            if seen.needed in (compare.NO, compare.WATCH):
                if now:
                    self.told(now)
                return False
            if missing := compare.missing(wanted):
                raise SwitchError(
                    f"{self.component} cannot be switched to {wanted.version}, and nothing was changed: "
                    f"{'; '.join(missing)}. Run site.yml, which brings it."
                )
            broke_off = now is not None and now.state in record.UNFINISHED
            before = now or self._adopted(wanted, gone, seen)
            if not broke_off:
                before = self._measured(before, wanted, seen.restarts)
            self._to(before, wanted, gone, seen.needed == compare.SWAP, broke_off)
            return True

    def before(self) -> Configuration:
        """What served before; SwitchError when there is nothing."""
        now = self.read()
        # While a switch is not through, what served before is what is good.
        found = now and (now.good if now.state in record.UNFINISHED else now.previous)
        if now and now.wanted and now.good and now.state == record.FAILED and not now.wanted.same(now.good):
            raise SwitchError(
                f"{self.component} {now.wanted.version} was refused here, and {now.good.version} from before it serves "
                f"already: nothing was changed. It was refused because: {now.why}\nAsk in the inventory for what shall "
                "serve, and run site.yml; after that rollback goes further back."
            )
        if now and now.wanted and now.state in (record.SWITCHING, record.WATCHING) and now.wanted.same(now.previous):
            found = now.wanted  # the way back broke off
        if not found:
            raise SwitchError(
                f"{self.component} has nothing to go back to on this host: its record "
                f"({record.path_of(self.folder, self.component)}) knows of no version before this one. Ask for another "
                "version in the inventory and run site.yml."
            )
        return found

    def watched(self) -> bool:
        """Look at what was switched until it served for long enough; whether there was such. SwitchError as above."""
        with self.alone():
            now = self.read()
            if now is None or now.state != record.WATCHING or now.wanted is None:
                return False
            wanted = now.wanted
            missed = dict.fromkeys(now.processes, 0)
            try:
                if now.processes and now.boot != self.units.boot():
                    now = self._up_again(now, wanted)
                # A clock that was set back does not make it longer.
                until = time.monotonic() + min(self.rules["watch"], now.since + self.rules["watch"] - time.time())
                while True:
                    for one in wanted.services:
                        if one.unit in now.processes:
                            self._alive(one, now.processes[one.unit], missed)
                    if time.monotonic() >= until:
                        break
                    time.sleep(STEP)
            except Refused as refused:
                self._back(now, wanted, refused, now.processes)
            self._finish(now, wanted)
            return True

    def beside(self, models: Sequence[str]) -> dict[str, str]:
        """Start copies of services that are good; by ADDRESS:PORT those of the copies. All of them answer, or none."""
        with self.alone():
            now = self.read()
            good = now.good if now and now.good else Configuration("")
            services = [one for one in good.services if one.model in models and one.beside]
            try:
                copies = [beside.copy(good, one) for one in services]
                for its in [one for copy in copies for one in copy.services]:
                    if self.units.state(its.unit).active != "active" and beside.taken(its.url):
                        raise beside.BesideError(f"{its.url} is taken: on this host `ss -ltnp` says by which program")
                # What runs may have lost its files or links since it started; a copy needs them.
                if copies:
                    self._applied(replace(good, services=()), ())
                for copy in copies:
                    self._applied(copy, ())
                    self._ready(copy.services)
                    self._ask(*copy.services)
            except (Refused, beside.BesideError) as error:
                self._without_copies(now)
                raise SwitchError(
                    f"{self.component} was not switched, and serves as before: a copy should answer meanwhile, and "
                    f"does not: {error}\nSet rollout_beside to false to go on without: nobody is answered then while a "
                    "model is replaced that no other host serves."
                ) from error
            return beside.moves(services)

    def copies(self) -> dict[str, str]:
        """Copies that are needed no more: by ADDRESS:PORT of the original that of the copy."""
        now = self.read()
        spare = beside.left(now) if now and now.state != record.RETURNING else []
        return beside.moves([one for one, _, _ in spare])

    def without_copies(self) -> None:
        """Stop the copies and remove what is theirs, but where they alone answer: the way back came to no end."""
        with self.alone():
            now = self.read()
            if now and now.state != record.RETURNING:
                self._without_copies(now)

    # --- steps

    def _up_again(self, now: Record, wanted: Configuration) -> Record:
        """The host went down, not its services: what came up with it is asked, and watched from now on."""
        asked = [one for one in wanted.services if one.unit in now.processes]
        self._ready(asked)
        processes = {one.unit: self.units.process(one.unit) for one in asked}
        for one in asked:
            self._ask(one)
        return self._watch(now, wanted, processes)

    def _watch(self, now: Record, wanted: Configuration, processes: Mapping[str, tuple[int, int]]) -> Record:
        """From now on these processes, and no others of their units, may serve."""
        watching = replace(now, state=record.WATCHING, wanted=wanted, since=time.time())
        return self.write(replace(watching, processes=processes, boot=self.units.boot()))

    def _without_copies(self, now: Record | None) -> None:
        # Its files go last: by them the next run finds it.
        for _, paths, unit in beside.left(now) if now else []:
            self.units.do("disable", "--now", unit)
            for path in paths:
                apply.remove(path)
            self.units.do("daemon-reload")

    def _adopted(self, wanted: Configuration, gone: Sequence[compare.Gone], seen: compare.Look) -> Record:
        """The first record. What serves is good when it passes the gate, and else only what was found."""
        found = compare.snapshot(wanted, gone, self.units.state)
        fresh = Record(self.component)
        if found is None or not seen.changes:
            return fresh
        try:
            for one in found.services:
                self._ask(one)
        except (Refused, *FAULTS):
            return replace(fresh, found=found)
        return replace(fresh, good=found)

    def _measured(self, now: Record, wanted: Configuration, restarts: Sequence[Service]) -> Record:
        """What is good, with the decode speed of what will be replaced."""
        old = now.back
        if old is None:
            return now
        speeds = dict(old.speeds)
        for unit in [one.unit for one in restarts]:
            one = old.service(unit)
            if one and one.url and one.kind == "chat" and wanted.service(unit):
                try:
                    seen = gate.speed(self._server(one), gate.question(self.rules, one.model), tries=2)
                except FAULTS:
                    continue
                speeds.update({unit: seen} if seen else {})
        old = replace(old, speeds=speeds)
        return replace(now, good=old) if now.good else replace(now, found=old)

    def _to(
        self, now: Record, wanted: Configuration, gone: Sequence[compare.Gone], swap: bool, broke_off: bool
    ) -> None:
        """``swap``: nobody else asks meanwhile, so that a speed is the model's own, and what was good is replaced."""
        # What the run before was to bring may be there in part: it is taken away where this one does not want it.
        left = [*compare.leftovers(now.back, wanted, gone), *compare.leftovers(now.wanted, wanted)]
        now = self.write(replace(now, state=record.SWITCHING, wanted=wanted, since=time.time(), why="", processes={}))
        speeds = dict(now.back.speeds) if now.back else {}
        before = {one.unit: self.units.process(one.unit) for one in wanted.services}
        try:
            restarted = self._applied(wanted, left)
            asked = [one for one in wanted.services if one.unit in restarted or broke_off or not wanted.same(now.good)]
            self._ready(asked, restarted)
            processes = {one.unit: self.units.process(one.unit) for one in asked if one.url}
            for one in asked:
                self._ask(one)
                if swap and (one.unit in restarted or broke_off):
                    speeds.update(self._fast_enough(one, now.back))
        except Refused as refused:
            self._back(now, wanted, refused, before)
        except Exception as error:  # whatever it was: what was good serves again
            self._back(now, wanted, Refused("", f"{type(error).__name__}: {error}"), before)
        wanted = replace(wanted, speeds={unit: speed for unit, speed in speeds.items() if wanted.service(unit)})
        if not swap or self.rules["watch"] == 0 or now.back is None or wanted.same(now.good) or not processes:
            self._finish(now, wanted)
        else:
            self._watch(now, wanted, processes)

    def _finish(self, now: Record, wanted: Configuration) -> None:
        previous = now.previous if now.good is None or wanted.same(now.good) else now.good
        self.write(Record(self.component, record.GOOD, time.time(), good=wanted, previous=previous))

    def _back(
        self, now: Record, wanted: Configuration, refused: Refused, before: Mapping[str, tuple[int, int]]
    ) -> NoReturn:
        """Serve again with what is good, and say so. ``before``: the processes that served, by unit."""
        why = f"{self.component} {wanted.version} was refused: {refused}"
        journal = self.units.journal(refused.unit) if refused.unit else ""
        after = f"\nEnd of its journal (journalctl -u {refused.unit}):\n{journal}" if refused.unit else ""
        old = now.back
        failed = replace(now, state=record.FAILED, wanted=wanted, why=str(refused), processes={})
        if old is None or wanted.same(old):
            self._note(failed)
            nothing = "It is what served before" if old else "Nothing that passed served here before"
            end = f"{nothing}, so there is nothing to go back to and it stays as it is."
            if not old and all(one[0] and self.units.process(unit) == one for unit, one in before.items()):
                end = "It was not touched and serves on, but does not count as good."
            raise SwitchError(f"{why}\n{end}{after}") from refused
        self._note(replace(failed, state=record.RETURNING))
        try:
            self._applied(old, compare.leftovers(wanted, old))
            asked = [one for one in old.services if one.url]
            self._ready(asked)
            for one in asked if now.good else []:
                self._ask(one)
        except Refused as again:
            copies = ", ".join(unit for _, _, unit in beside.left(now))
            meanwhile = f" Until then its copy answers on ({copies})." if copies else ""
            raise SwitchError(
                f"{why}\nGoing back to {old.version} did not succeed either: {again}\nRun site.yml again when it is "
                f"mended; it takes this up.{meanwhile}{after}"
            ) from again
        self._note(failed)
        raise SwitchError(f"{why}\nIt serves again with {old.version}.{after}", rolled_back=True) from refused

    def _note(self, now: Record) -> None:
        """Nothing keeps from going back, no full disk either: the record then says that the switch broke off."""
        with suppress(Exception):
            self.write(replace(now, since=time.time()))

    def _applied(self, wanted: Configuration, left: Sequence[compare.Gone]) -> list[str]:
        try:
            return apply.apply(wanted, left, self.units)
        except FAULTS as error:
            raise Refused("", str(error)) from error

    def _ready(self, services: Sequence[Service], fresh: Collection[str] = ()) -> None:
        """``fresh``: units that were just started. They may not die even once: the next load takes as long."""
        for one in services:
            if one.url:
                vital = self._first_life if one.unit in fresh else self.units.vital
                try:
                    service.wait(one.unit, one.url + one.ready, self.timeout, vital)
                except service.ServiceError as error:
                    raise Refused(one.unit, str(error)) from error

    def _first_life(self, unit: str) -> tuple[str, int]:
        state, restarts = self.units.vital(unit)
        return ("failed" if restarts else state), restarts

    def _ask(self, one: Service) -> None:
        if not one.url:
            return
        try:
            gate.check(self._server(one), one.kind, gate.question(self.rules, one.model), one.dimensions)
        except FAULTS as error:
            raise Refused(one.unit, f"{one.unit}: {error} (it is {self.units.state(one.unit).active})") from error

    def _fast_enough(self, one: Service, old: Configuration | None) -> dict[str, float]:
        """Its decode speed by unit; nothing when it cannot be told."""
        if not one.url or one.kind != "chat":
            return {}
        before = old.service(one.unit) if old else None
        known = old.speeds.get(one.unit, 0.0) if old else 0.0
        least = gate.needed_speed(known, self.rules["speed_ratio"], one.predicted, before.predicted if before else None)
        try:
            speed = gate.speed(self._server(one), gate.question(self.rules, one.model), enough=least)
        except FAULTS as error:
            raise Refused(one.unit, f"{one.unit}: {error} (it is {self.units.state(one.unit).active})") from error
        if speed is not None and speed < least:
            raise Refused(
                one.unit,
                f"{one.unit} writes {speed:.1f} tok/s; {known:.1f} tok/s before, so at least {least:.1f} are asked for "
                f"(rollout_speed_ratio: {self.rules['speed_ratio']})",
            )
        return {} if speed is None else {one.unit: speed}

    def _alive(self, one: Service, process: tuple[int, int], missed: dict[str, int]) -> None:
        if self.units.process(one.unit) != process:
            state, restarts = self.units.vital(one.unit)
            raise Refused(
                one.unit, f"{one.unit} died after it had passed the gate (it is {state}, restarted {restarts} times)"
            )
        answered, seen = service.answers(one.url + one.ready)
        missed[one.unit] = 0 if answered else missed[one.unit] + 1
        if missed[one.unit] >= MISSES:
            raise Refused(
                one.unit, f"{one.unit} stopped answering after it had passed the gate: {one.url}{one.ready}: {seen}"
            )

    @staticmethod
    def _server(one: Service) -> gate.Server:
        # The first of several: it stays.
        key = Path(one.key_file).read_text(encoding="utf-8").split()[0] if one.key_file else ""
        return gate.Server(one.url, one.model_name or one.model, key)
