# SPDX-License-Identifier: GPL-3.0-or-later
"""The Shapes of a site's model variants: from what is published on this host, from directories, or from hubs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from ansible_collections.onprem.llm.plugins.module_utils import gguf, hubs, ranges, transfer
from ansible_collections.onprem.llm.plugins.module_utils.placement.models import variant_key
from ansible_collections.onprem.llm.plugins.module_utils.shape import safetensors
from ansible_collections.onprem.llm.plugins.module_utils.shape.classify import ShapeError
from ansible_collections.onprem.llm.plugins.module_utils.shape.read import Open, parts_of, read_shape
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

#: Bytes that one variant may cost.
VARIANT_BUDGET = 10_000_000
#: The longest a server that is busy is waited for.
PATIENCE = 5.0


class Result(TypedDict):
    key: str
    shape: Shape | None
    error: str | None
    """Why there is no shape."""
    bytes: int
    """What came over the network for it."""
    requests: int


class Reader:
    """Reads variants one after the other within one budget; asks nobody twice who did not answer."""

    def __init__(
        self,
        sources: Mapping[str, Any],
        tokens: Mapping[str, str],
        models_dir: str | None = None,
        budget: int = 2 * VARIANT_BUDGET,
        *,
        timeout: float = 20.0,
        attempts: int = 2,
        transport: transfer.Transport | None = None,
    ) -> None:
        self.sources, self.tokens, self.transport = sources, tokens, transport
        self.models_dir = Path(models_dir) if models_dir else None
        self.budget, self.timeout, self.attempts = budget, timeout, attempts
        self.transferred = 0
        self._known: dict[str, Result] = {}
        self._away: dict[str, str] = {}
        self._tables: gguf.Tables = {}

    def read(self, variant: Mapping[str, Any]) -> Result:
        """The variant's Shape, or why it cannot be had."""
        lacking = [name for name in ("source", "repo", "revision", "include") if not variant.get(name)]
        if lacking:
            said = f"the variant {variant.get('repo', '')!r} lacks {', '.join(lacking)}"
            return {"key": "", "shape": None, "error": said, "bytes": 0, "requests": 0}
        key = variant_key(variant)
        if key in self._known:
            return {**self._known[key], "bytes": 0, "requests": 0}
        name = str(variant["source"])
        traffic = ranges.Traffic(min(VARIANT_BUDGET, max(self.budget - self.transferred, 0)))
        result = self._tried(key, traffic, lambda: self._variant(variant, traffic))
        self._known[key] = result
        if result["shape"] is None and name in self._away:
            result["error"] = self._away[name]
        return result

    def read_file(self, path: str) -> Result:
        """The Shape of a GGUF file on this host and its other parts."""
        here, traffic = Path(path), ranges.Traffic(0)
        names = parts_of(here.name)
        return self._tried(path, traffic, lambda: read_shape(_folder(here.parent), names))

    def _tried(self, key: str, traffic: ranges.Traffic, what: Callable[[], Shape]) -> Result:
        result: Result = {"key": key, "shape": None, "error": None, "bytes": 0, "requests": 0}
        try:
            result["shape"] = what()
        except (ShapeError, ranges.RangeError, hubs.HubError, OSError) as error:
            result["error"] = str(error)
        result["bytes"], result["requests"] = traffic.transferred, traffic.requests
        self.transferred += traffic.transferred
        return result

    def _variant(self, variant: Mapping[str, Any], traffic: ranges.Traffic) -> Shape:
        entry = str(variant.get("entry") or "")
        if variant.get("format", "gguf") == "safetensors":
            return safetensors.read(self._opener(variant, ["config.json"], traffic), traffic)
        if not entry:
            raise ShapeError(f"{variant['repo']}: the variant names no `entry`, the first file of the model")
        names = parts_of(entry)
        opener = self._opener(variant, names, traffic)
        return read_shape(opener, names, traffic=traffic, tables=self._tables)

    def _opener(self, variant: Mapping[str, Any], names: list[str], traffic: ranges.Traffic) -> Open:
        """Opens files of the variant's repository, the nearest place first."""
        repo, revision, name = str(variant["repo"]), str(variant["revision"]), str(variant["source"])
        for part in names:
            hubs.clean_path(part)
        hubs.clean_path(f"{repo}/{revision}")
        if self.models_dir is not None and _published(self.models_dir / repo / revision, names):
            return _folder(self.models_dir / repo / revision)
        source = self.sources.get(name)
        if not isinstance(source, dict):
            raise ShapeError(f"the source '{name}' is not among model_sources: {', '.join(self.sources) or 'none'}")
        if source.get("type") == "directory":
            root = Path(str(source.get("path")))
            tried = [root / repo / revision, root / repo]
            return _folder(next((one for one in tried if one.is_dir()), tried[0]))
        hub = hubs.Hub(str(source.get("type")), str(source.get("url")), repo, revision)
        identity = transfer.Source(
            token=str(self.tokens.get(name) or ""),
            cookie=hubs.TOKEN_COOKIE.get(hub.kind, ""),
            attempts=self.attempts,
            timeout=self.timeout,
            sleep=lambda seconds: time.sleep(min(seconds, PATIENCE)),
            way=transfer.Way(str(source.get("ca") or "")),
        )

        def open_part(part: str) -> ranges.File:
            if name in self._away:
                raise ranges.RangeError(self._away[name])
            if not traffic.budget:
                spent = transfer.human(self.budget)
                raise ranges.RangeError(f"{repo}: the {spent} for the headers of all models are spent; allow more")
            try:
                return ranges.RemoteFile(hub.download_url(part), identity, traffic, self.transport)
            except ranges.RangeError as error:
                if error.unreachable:
                    self._away[name] = f"the source '{name}' did not answer: {error}"
                raise

        return open_part


def _folder(folder: Path) -> Open:
    return lambda name: ranges.LocalFile(folder / name)


def _published(home: Path, names: list[str]) -> bool:
    """Whether the manifest of a published revision vouches for the files, and they lie there as it says."""
    try:
        files = json.loads((home / "manifest.json").read_text())["files"]
        sizes = {entry["path"]: entry["size"] for entry in files}
        return all((home / name).stat().st_size == sizes[name] for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        return False
