# SPDX-License-Identifier: GPL-3.0-or-later
"""A small host for rollout_switch: model servers that really answer, and a systemctl that starts and stops them.

A unit serves what its link `served/<model>` leads to with the engine that `current` leads to, as both are when it
starts. Its model is a file that says how it behaves, all but ``answer`` optional:

    {"answer": "Paris", "speed": 200.0, "models": ["a"], "starts": false, "dies": true, "lives": 1.0, "vectors": [[1]]}

``systemctl`` is a program on PATH that asks this process; so a module that is killed leaves the services as they are.
"""

from __future__ import annotations

import http.server
import itertools
import json
import os
import socket
import socketserver
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

QUESTION = "What is the capital of France?"
GATE = {"question": QUESTION, "expect": "paris", "tokens": 24, "models": {}, "speed_ratio": 0.01, "watch": 0}
KEY = "sk-0123456789abcdef"
GOOD = {"answer": "The capital is Paris."}
CTL = """#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\t' "${{0##*/}}" "$@" >&3
printf '\n' >&3
read -r code <&3
cat <&3
exit "$code"
"""


@dataclass
class Unit:
    """A service as systemd sees it."""

    host: Host
    name: str
    active: str = "inactive"
    enabled: bool = False
    pid: int = 0
    restarts: int = 0
    started: float = 0.0
    reload: bool = False
    server: http.server.ThreadingHTTPServer | None = None
    behaviour: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.name.split("@")[1].removesuffix(".service")

    def start(self) -> None:
        self.stop()
        host = self.host
        self.pid, self.started, self.restarts = next(host.pids), time.time(), 0
        served = host.root / "served" / self.model.removesuffix("--beside")
        try:
            engine = (host.root / "engine/current/engine").read_text()
            host.log.append(f"{self.name} starts {os.readlink(served)} {engine}")
            port = int(host.env(self.model).read_text().split("--port ")[1])
            self.behaviour = {**json.loads((served / "weights.json").read_text()), "engine": engine}
        except (OSError, ValueError) as error:
            host.log.append(f"{self.name} cannot load: {error}")
            self.active = "failed"
            return
        if not self.behaviour.get("starts", True):
            self.active = "failed"
            return
        try:
            self.server = Server(("127.0.0.1", port), self)
        except OSError as error:
            host.log.append(f"{self.name} cannot listen: {error}")
            self.active = "failed"
            return
        self.active = "active"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        if "lives" in self.behaviour:
            threading.Timer(self.behaviour["lives"], self.crash, [self.pid]).start()

    def stop(self, state: str = "inactive") -> None:
        self.active, self.pid = state, 0
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def crash(self, pid: int) -> None:
        """Dies, and is restarted at once."""
        if self.pid == pid:
            self.stop("failed")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that goes away before the end is none."""

    def __init__(self, address: tuple[str, int], unit: Unit) -> None:
        self.unit = unit
        super().__init__(address, Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self) -> None:
        unit = self.server.unit
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
        elif self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, {"error": "no key"})
        else:
            self.answer(
                200,
                {
                    "data": [
                        {"id": one} for one in unit.behaviour.get("models") or [unit.model.removesuffix("--beside")]
                    ]
                },
            )

    def do_POST(self) -> None:
        unit = self.server.unit
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        unit.host.asked.append((unit.name, body))
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.answer(401, {"error": "no key"})
        if self.path == "/v1/embeddings":
            found = unit.behaviour["vectors"]
            return self.answer(200, {"data": [{"index": n, "embedding": one} for n, one in enumerate(found)]})
        self.send_response(200)
        self.end_headers()
        pieces = [unit.behaviour["answer"]] if not body.get("ignore_eos") else [" and"] * body["max_tokens"]
        for piece in pieces:
            if unit.behaviour.get("dies"):
                unit.crash(unit.pid)
                return None
            self.event({"choices": [{"delta": {"content": piece}}]})
            time.sleep(1 / unit.behaviour.get("speed", 4000) if len(pieces) > 1 else 0)
        self.event({"choices": [], "usage": {"completion_tokens": len(pieces)}})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def event(self, said: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(said).encode() + b"\n\n")


class Host:
    """Folder of a host, its systemd, and what a test says of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.units: dict[str, Unit] = {}
        self.ports: dict[str, int] = {}
        self.log: list[str] = []
        self.asked: list[tuple[str, Any]] = []
        self.pids = itertools.count(1000)
        self.fails = ""  # a verb of systemctl that fails the next time
        (root / "bin").mkdir()
        (root / "key").write_text(KEY + "\n")
        host = self

        class Control(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                code, said = host.control(self.rfile.readline().decode().split("\t")[:-1])
                self.wfile.write(f"{code}\n{said}".encode())

        self.ctl = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Control)
        for program in ("systemctl", "journalctl"):
            path = root / "bin" / program
            path.write_text(CTL.format(port=self.ctl.server_address[1]))
            path.chmod(0o755)
        threading.Thread(target=self.ctl.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.ctl.shutdown()
        self.ctl.server_close()
        for unit in self.units.values():
            unit.stop()

    # --- systemd

    def control(self, words: list[str]) -> tuple[int, str]:
        if words[0] == "journalctl":
            return 0, "the journal of " + words[-1].split("=")[1]
        verb, unit = words[1], self.units.get(words[-1])
        if unit is None and verb in ("enable", "restart") and "@" in words[-1]:
            unit = self.units[words[-1]] = Unit(self, words[-1])
        if verb == self.fails:
            self.fails = ""
            return 1, ""
        if verb == "daemon-reload":
            return 0, ""
        if unit is None:
            return (0, "LoadState=not-found\nActiveState=inactive\n") if verb == "show" else (5, "no such unit")
        self.log += [f"{verb} {unit.name}"] if verb not in ("show", "reset-failed") else []
        if verb == "show":
            moment = datetime.fromtimestamp(unit.started, timezone.utc).strftime("%a %Y-%m-%d %H:%M:%S.%f UTC")
            said = {
                **{"LoadState": "loaded", "ActiveState": unit.active, "NeedDaemonReload": "no"},
                **{"UnitFileState": "enabled" if unit.enabled else "disabled", "NRestarts": unit.restarts},
                **{"MainPID": unit.pid, "ExecMainStartTimestamp": moment if unit.started else ""},
            }
            return 0, "".join(f"{name}={value}\n" for name, value in said.items())
        if verb in ("enable", "disable"):
            unit.enabled = verb == "enable"
        if verb == "restart":
            unit.start()
        if "--now" in words or verb == "stop":
            unit.stop()
        return 0, ""

    # --- what a test puts there, and asks for

    def env(self, model: str) -> Path:
        return self.root / "etc" / f"{model}.env"

    def weights(self, model: str, revision: str, **behaviour: Any) -> str:
        """A published model; where it is."""
        folder = self.root / "models" / model / revision
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.json").write_text(json.dumps({**GOOD, **behaviour}))
        return str(folder)

    def engine(self, version: str) -> str:
        (self.root / "engine" / version).mkdir(parents=True, exist_ok=True)
        (self.root / "engine" / version / "engine").write_text(version)
        return version

    def unit(self, model: str) -> Unit:
        name = f"engine@{model}.service"
        return self.units.setdefault(name, Unit(self, name))

    def port(self, model: str) -> int:
        """Its own, and the one a thousand further is free too."""
        while model not in self.ports:
            with socket.socket() as one, socket.socket() as other, suppress(OSError, OverflowError):
                one.bind(("127.0.0.1", 0))
                other.bind(("127.0.0.1", one.getsockname()[1] + 1000))
                self.ports[model] = one.getsockname()[1]
        return self.ports[model]

    def start_text(self, model: str, place: str) -> str:
        """What its service starts with."""
        return f"MODEL={place}\nOPTIONS=--port {self.port(model)}\n"

    def wanted(self, engine: str, models: dict[str, str], **services: Any) -> dict[str, Any]:
        """The module's options for an engine's version and the revision of each model."""
        current = str(self.root / "engine/current")
        links = {current: self.engine(engine)}
        files, listed = [], []
        for model, place in models.items():
            served, env = str(self.root / "served" / model), str(self.env(model))
            links[served] = place
            files.append({"path": env, "content": self.start_text(model, place)})
            listed.append(
                {
                    **{"unit": self.unit(model).name, "model": model, "restart_on": [current, served, env]},
                    **{"url": f"http://127.0.0.1:{self.port(model)}", "key_file": str(self.root / "key")},
                    **services,
                }
            )
        return {"version": engine, "links": links, "files": files, "services": listed}

    def serves(self, model: str) -> str:
        """Engine and revision that a model is served with at this moment; empty when it is not."""
        unit = self.unit(model)
        if unit.active != "active":
            return ""
        return next(line for line in reversed(self.log) if line.startswith(f"{unit.name} starts ")).split("starts ")[1]

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "record/engine.json").read_text())
        return found
