# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment file of Open WebUI, and proof that no address it leaves out defaults to somebody else's.

Open WebUI fills in the addresses of public services for every feature whose address is not set, also by way of other
settings. Which ones, differs from version to version; so the installed version's own source is asked.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

NOWHERE = "http://127.0.0.1:9"
LOOPBACK = re.compile(r"^(localhost|127(\.\d+){3}|\[?::1\]?|0\.0\.0\.0)$")
ADDRESS_NAME = re.compile(r"(URL|URLS|URI|ENDPOINT|HOST)$")
SECRET_NAME = re.compile(r"(KEY|KEYS|PASSWORD|SECRET|TOKEN|DATABASE_URL|DB_URL|_DN)$")

# Read by libraries, not by Open WebUI itself.
FOREIGN = {
    "ANONYMIZED_TELEMETRY",
    "DO_NOT_TRACK",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "OMP_NUM_THREADS",
    "REQUESTS_CA_BUNDLE",
    "SCARF_NO_ANALYTICS",
    "SSL_CERT_FILE",
    "TZ",
}


class OpenWebuiEnvError(Exception):
    """The file must not land like this. The text says why and what to do."""


def quote(value: str) -> str:
    """A value as systemd's EnvironmentFile reads it back."""
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'


def parse(text: str) -> dict[str, str]:
    """Names and values of an environment file as :func:`quote` writes it: NAME="value", one after another."""
    found: dict[str, str] = {}
    place = 0
    pattern = re.compile(r'[ \t]*(?:([#;][^\n]*)?\n|([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"[ \t]*\n)', re.DOTALL)
    while place < len(text):
        match = pattern.match(text, place)
        if not match:
            line = text.count("\n", 0, place) + 1
            raise OpenWebuiEnvError(f'Line {line} of the environment file is neither a comment nor NAME="value".')
        if match[2]:
            if match[2] in found:
                raise OpenWebuiEnvError(f"{match[2]} stands twice in the environment file.")
            found[match[2]] = re.sub(r"\\(.)", r"\1", match[3], flags=re.DOTALL)
        place = match.end()
    return found


def is_outside(address: str) -> bool:
    """Whether an address names a host other than this one."""
    if not re.match(r"^(https?|wss?)://", address):
        return False
    return not LOOPBACK.match(urlsplit(address).hostname or "")


def outside_defaults(source: str) -> dict[str, str]:
    """Environment variables that, left out, make ``source`` use an address on another host: {name: that address}.

    A default may stand in the call itself, or come from another name that such an address was given to.
    """
    tree = ast.parse(source)
    tainted: dict[str, str] = {}
    found: dict[str, str] = {}
    for name, value in _assignments(tree):
        address = _outside(value, tainted)
        if address:
            tainted.setdefault(name, address)
            found.update({key: address for key, _ in _lookups(value) if key not in found})
    for key, default in _lookups(tree):
        address = (_outside(default, tainted) if default is not None else "") or tainted.get(key, "")
        if address:
            found.setdefault(key, address)
    return {key: address for key, address in sorted(found.items()) if ADDRESS_NAME.search(key)}


def _assignments(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Assign, ast.AnnAssign))]
    for node in sorted(nodes, key=lambda node: node.lineno):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                yield target.id, node.value


def _lookups(tree: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Each os.getenv(NAME, DEFAULT) and os.environ.get(NAME, DEFAULT)."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("getenv", "get")
            and ast.unparse(node.func) in ("os.getenv", "os.environ.get")
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            yield node.args[0].value, node.args[1] if len(node.args) > 1 else None


def _outside(expression: ast.AST, tainted: Mapping[str, str]) -> str:
    """An outside address that the expression may yield, or ''."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and is_outside(node.value):
            return node.value
        if isinstance(node, ast.Name) and node.id in tainted:
            return tainted[node.id]
    return ""


def check(settings: Mapping[str, str], sources: Iterable[str]) -> None:
    """Raise unless every address that would default to another host is set."""
    wanted: dict[str, str] = {}
    for source in sources:
        wanted.update(outside_defaults(source))
    missing = [f"{key} ({address})" for key, address in wanted.items() if not settings.get(key, "").strip()]
    if missing:
        raise OpenWebuiEnvError(
            "Left to itself, Open WebUI would use addresses that nobody set, and send what its users write there: "
            f"{', '.join(missing)}. Nothing was written. Give each a value in openwebui_settings; {NOWHERE} switches "
            "it off."
        )


def unread(settings: Iterable[str], sources: Iterable[str]) -> list[str]:
    """Settings that no source names: mistyped, or renamed by a newer version."""
    left = {name for name in settings if name not in FOREIGN}
    for source in sources:
        left = {name for name in left if f"'{name}'" not in source and f'"{name}"' not in source}
        if not left:
            break
    return sorted(left)


def hides(value: str) -> bool:
    """Whether a value may hold a secret whatever its name: an address with a login, or JSON with anything in it."""
    return bool(re.search(r"://\S*@", value)) or value.lstrip().startswith(("{", "["))


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, str]:
    """Both sides of a diff: only what differs, without secrets."""
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    sides = []
    for side, word in ((before, "old"), (after, "new")):
        lines = []
        for key in changed:
            if key in side:
                secret = side[key] and (SECRET_NAME.search(key) or hides(side[key]))
                lines.append(f"{key}={f'({word} secret)' if secret else side[key]}\n")
        sides.append("".join(lines))
    return sides[0], sides[1]
