# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemctl says of a unit, and what it is told to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ansible_collections.onprem.llm.plugins.module_utils import service

PROPERTIES = (
    "LoadState,ActiveState,UnitFileState,NeedDaemonReload,NRestarts,MainPID,"
    "InactiveExitTimestamp,ExecMainStartTimestamp,StateChangeTimestamp,ReloadResult"
)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Units:
    """``run`` runs a command: its exit status, output and errors."""

    run: Callable[[list[str]], tuple[int, str, str]]

    def show(self, unit: str) -> dict[str, str]:
        _, out, _ = self.run(["systemctl", "show", "--timestamp=us+utc", f"--property={PROPERTIES}", unit])
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def state(self, unit: str) -> service.State:
        said = self.show(unit)

        def moment(name: str) -> float:
            text = said.get(name, "").split(" ", 1)[-1].removesuffix(" UTC")
            try:
                return datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc).timestamp()
            except ValueError:
                return 0.0

        started = max(moment("InactiveExitTimestamp"), moment("ExecMainStartTimestamp"))
        # A reload that failed changes the state too, and is still owed.
        reloaded = moment("StateChangeTimestamp") if said.get("ReloadResult", "success") == "success" else 0.0
        return service.State(
            active="not there yet" if said.get("LoadState") == "not-found" else said.get("ActiveState", "unknown"),
            enabled=said.get("UnitFileState") in ("enabled", "enabled-runtime", "static", "alias", "generated"),
            unit_changed=said.get("NeedDaemonReload") == "yes",
            started=started,
            loaded=max(started, reloaded),
        )

    def vital(self, unit: str) -> tuple[str, int]:
        """ActiveState, and how often systemd restarted it by itself."""
        said = self.show(unit)
        return said.get("ActiveState", "unknown"), int(said.get("NRestarts") or 0)

    def process(self, unit: str) -> tuple[int, int]:
        """Its main process, and how often systemd restarted it by itself: both stay while it lives."""
        said = self.show(unit)
        return int(said.get("MainPID") or 0), int(said.get("NRestarts") or 0)

    def boot(self) -> str:
        """Which boot of the host this is."""
        return BOOT_ID.read_text(encoding="ascii").strip()

    def do(self, *words: str) -> None:
        code, _, err = self.run(["systemctl", *words])
        if code:
            raise service.ServiceError(f"systemctl {' '.join(words)} failed: {err.strip()}")

    def restart(self, unit: str) -> None:
        # One that failed three times may not be started for a while; its cause is likely mended by now.
        self.run(["systemctl", "reset-failed", unit])
        self.do("restart", unit)

    def journal(self, unit: str, lines: int = 25) -> str:
        _, out, _ = self.run(["journalctl", "--no-pager", f"--lines={lines}", "--output=cat", f"--unit={unit}"])
        return out.strip()
