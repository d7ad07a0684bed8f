# SPDX-License-Identifier: GPL-3.0-or-later
"""The program on a host: ``model-store fetch``, ``model-store verify``, ``model-store status``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import damage, unit
from ansible_collections.onprem.llm.plugins.module_utils.model_store.curl import Curl, MissingError
from ansible_collections.onprem.llm.plugins.module_utils.model_store.fetch import fetch
from ansible_collections.onprem.llm.plugins.module_utils.model_store.fleet import Fleet
from ansible_collections.onprem.llm.plugins.module_utils.model_store.progress import percent, span
from ansible_collections.onprem.llm.plugins.module_utils.model_store.status import Report, read
from ansible_collections.onprem.llm.plugins.module_utils.model_store.store import LINKS, STAGING
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import (
    Request,
    Status,
    StoreError,
    as_json,
    request_from,
)
from ansible_collections.onprem.llm.plugins.module_utils.model_store.verify import verify

DAMAGE = "damage.json"
STATE = Path("/var/lib/model_store")


def run_folder() -> Path:
    """Where the request and the status are; systemd says so to its own."""
    return Path(os.environ.get("RUNTIME_DIRECTORY") or unit.RUN)


def findings() -> Path:
    """Where verifications keep what they found."""
    return Path(os.environ.get("STATE_DIRECTORY") or STATE) / DAMAGE


def main(argv: Sequence[str] | None = None) -> int:
    """0: all is well; 1: it is not, and the last lines say why."""
    parser = argparse.ArgumentParser(prog="model-store", description="The models of this host.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="do what request.json asks (started by model_store.service)")
    checking = commands.add_parser("verify", help="read every published file again and note what is damaged")
    checking.add_argument("--store", type=Path, required=True, help="folder of published models")
    showing = commands.add_parser("status", help="how far the transfer is, and what is damaged")
    showing.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(argv)
    # Engines run as other users: what is published can be read, whatever the umask of the caller.
    os.umask(0o022)
    if given.command == "fetch":
        return _fetch()
    if given.command == "verify":
        return _verify(given.store)
    return _status(given.json)


# fetch ------------------------------------------------------------------------------------------------------------


def _fetch() -> int:
    folder = run_folder()
    asked = folder / unit.REQUEST
    try:
        request = request_from(json.loads(asked.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return _fail(f"{asked} is not there: nothing is asked for. A playbook writes it and starts this service.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _fail(f"{asked} cannot be read: {error}. Run the playbook again, it writes it anew.")
    report = Report(request, folder / unit.STATUS, tell=lambda text: print(text, flush=True))
    _end_quickly(report, asked)
    with report:
        try:
            _carry_out(request, report)
        except (StoreError, MissingError, transfer.TransferError, OSError) as error:
            report.failed(str(error))
            # Seen to its end: it needs nobody who starts it again.
            asked.unlink(missing_ok=True)
            return _fail(str(error))
        except BaseException as error:
            report.failed(
                f"{type(error).__name__}: {error}. This is a mistake in the program: journalctl -u {unit.UNIT}"
            )
            asked.unlink(missing_ok=True)
            raise
        report.state("done")
    asked.unlink(missing_ok=True)
    return 0


def _carry_out(request: Request, report: Report) -> None:
    transport = Curl(
        rate_limit=request.rate_limit,
        proxy=request.proxy,
        no_proxy=request.no_proxy,
        stall_seconds=request.stall_seconds,
        minimum_rate=request.minimum_rate,
    )
    store = Path(request.store)
    with transfer.alone(store, store / STAGING):
        if request.fleet is None:
            fetch(request, report, findings=findings(), transport=transport)
            return
        with closing(Fleet(request.fleet, store / STAGING / LINKS)) as fleet:
            report.traffic = lambda: (fleet.received, fleet.sent)
            fetch(request, report, findings=findings(), transport=transport, fleet=fleet)


def _end_quickly(report: Report, asked: Path) -> None:
    """When told to stop, stop: what came is in its files, and the next run goes on from there."""

    def stop(number: int, _frame: FrameType | None) -> None:
        report.failed("It was told to stop. What came is kept; the next run goes on from there.")
        with suppress(OSError):
            report.write()
            asked.unlink(missing_ok=True)
        # So that systemd sees a service that was stopped, not one that failed.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


# verify -----------------------------------------------------------------------------------------------------------


def _verify(store: Path) -> int:
    try:
        seen = verify(store, findings())
    except OSError as error:
        return _fail(f"{store} could not be verified: {error}")
    print(f"{seen.files} files, {transfer.human(seen.size)}, were read")
    if not seen.damaged:
        return 0
    mends = "it fetches the damaged pieces of what is placed here again"
    return _fail(f"Damaged: {len(seen.damaged)}. Run playbooks/models.yml: {mends}.")


# status -----------------------------------------------------------------------------------------------------------


def _status(as_data: bool) -> int:
    status, found = read(run_folder() / unit.STATUS), damage.read(findings())
    if as_data:
        print(json.dumps(as_json(status) if status is not None else None))
        return 0
    if status is None:
        print("No transfer since this host was started.")
    else:
        print("\n".join(lines(status, time.time())))
    for one in found.damaged:
        print(f"damaged: {one.repo} {one.revision} {one.path} (run playbooks/models.yml: it mends what is placed here)")
    if found.checked:
        print(f"verified last: {time.strftime('%Y-%m-%d %H:%M', time.localtime(found.checked))}")
    return 0


def lines(status: Status, now: float) -> list[str]:
    """A status for people."""
    shown = [f"{status.state}, {max(now - status.updated, 0):.0f} s ago; {transfer.human(int(status.rate))}/s"]
    if status.state == "running" and status.eta is not None:
        shown[0] += f", {span(status.eta)} to go"
    for model in status.models:
        line = f"  {model.name}: {percent(model):.1f} % of {transfer.human(model.total)}, {model.state}"
        shown.append(line + (f" from {model.source}" if model.source else ""))
        if model.message:
            shown.append(f"    {model.message}")
    return shown + [f"  {text}" for text in (*status.warnings, *status.notes)]
