# SPDX-License-Identifier: GPL-3.0-or-later
"""Model hubs: which URL answers what, and what the answers mean.

Pure: the caller brings the function that fetches a URL. So the same code lists a repository from a module
and from a test.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

from ansible_collections.onprem.llm.plugins.module_utils.transfer import redact

KINDS = ("modelscope", "huggingface", "mirror")
#: What each hub calls the branch that a repository begins with.
DEFAULT_BRANCH = {"modelscope": "master", "huggingface": "main"}
#: The cookie in which a hub wants the token too.
TOKEN_COOKIE = {"modelscope": "m_session_id"}

#: ModelScope answers at most this many entries to one listing and does not say that there are more.
MODELSCOPE_LISTING_LIMIT = 3000

#: fetch(url) -> (body, headers with lower-case names)
Fetch = Callable[[str], tuple[bytes, Mapping[str, str]]]


class HubError(Exception):
    """The hub's answer cannot be used, or does not hold what was asked for."""


@dataclass(frozen=True)
class File:
    """One file of a repository, as the hub describes it."""

    path: str
    size: int
    sha256: str = ""
    """Empty where the hub names none."""
    git_blob: str = ""
    """Git's name of the content (SHA-1); Hugging Face gives this, and no sha256, for files outside LFS."""


@dataclass(frozen=True)
class Selection:
    """What a published folder was filled with."""

    include: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Listing:
    """The files of one revision."""

    files: tuple[File, ...]
    commits: tuple[str, ...] = ()
    """Commits the listing mentions, likeliest first; not each need be the revision's own."""
    selections: tuple[Selection, ...] = ()
    """What the listing is complete for; empty: the whole revision."""

    def covers(self, include: Iterable[str], exclude: Iterable[str] = ()) -> bool:
        """Whether every file of the revision that the globs select is sure to be listed."""
        wanted, unwanted = frozenset(include), frozenset(exclude)
        return not self.selections or any(
            have.exclude <= unwanted
            and (not have.include or "*" in have.include or (bool(wanted) and wanted <= have.include))
            for have in self.selections
        )


def is_commit(revision: str) -> bool:
    """Whether the revision names one commit for ever, unlike a branch or a tag."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def clean_path(path: str) -> str:
    """The path as it is, or HubError when it would lead out of the repository's folder."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or not path.isprintable():
        raise HubError(f"the hub lists a file under the unusable path {path!r}")
    return path


def matches(path: str, pattern: str) -> bool:
    """Whether a glob matches: ``*`` also crosses ``/``, and a leading ``**/`` also means no folder at all."""
    if fnmatch.fnmatchcase(path, pattern):
        return True
    return pattern.startswith("**/") and fnmatch.fnmatchcase(path, pattern[3:])


def select(files: Iterable[File], include: Iterable[str], exclude: Iterable[str] = ()) -> list[File]:
    """The files that match an include pattern (none given: all) and no exclude pattern, by path."""
    wanted, unwanted = list(include) or ["*"], list(exclude)
    return sorted(
        (
            file
            for file in files
            if any(matches(file.path, pattern) for pattern in wanted)
            and not any(matches(file.path, pattern) for pattern in unwanted)
        ),
        key=lambda file: file.path,
    )


def _json(body: bytes, url: str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        start = body[:60].decode("utf-8", "replace")
        raise HubError(f"{redact(url)} did not answer with JSON but with {start!r}…") from error


def _file(path: Any, size: Any, sha256: Any = "", git_blob: Any = "") -> File:
    if not isinstance(path, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise HubError(f"the hub lists a file without a usable path and size: {path!r}, {size!r}")
    sha256 = str(sha256 or "").lower()
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise HubError(f"the hub's sha256 of {path!r} is none: {sha256!r}")
    return File(clean_path(path), size, sha256, str(git_blob or ""))


@dataclass(frozen=True)
class Hub:
    """One revision of one repository on one hub."""

    kind: str
    endpoint: str
    repo: str
    revision: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HubError(f"'{self.kind}' is no kind of hub; known: {', '.join(KINDS)}")
        if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", self.endpoint):
            raise HubError(f"the hub's address {redact(self.endpoint)!r} must begin with https:// or http://")
        object.__setattr__(self, "endpoint", self.endpoint.rstrip("/"))

    def download_url(self, path: str) -> str:
        """Where the bytes of one file are."""
        if self.kind == "modelscope":
            query = f"Revision={quote_plus(self.revision)}&FilePath={quote_plus(path)}"
            return f"{self.endpoint}/api/v1/models/{self.repo}/repo?{query}"
        if self.kind == "huggingface":
            return f"{self.endpoint}/{self.repo}/resolve/{quote(self.revision, safe='')}/{quote(path)}"
        return f"{self.endpoint}/{self.repo}/{quote(self.revision, safe='')}/{quote(path)}"

    def listing(self, fetch: Fetch) -> Listing:
        """Every file of the revision."""
        if self.kind == "modelscope":
            return self._modelscope(fetch)
        if self.kind == "huggingface":
            return self._huggingface(fetch)
        return self._mirror(fetch)

    def commit(self, fetch: Fetch, here: Listing | None = None) -> str:
        """The commit the revision stands for now, proven where the hub does not simply say it.

        ``here`` is the revision's listing, if the caller has it.
        """
        if is_commit(self.revision):
            return self.revision
        if self.kind == "huggingface":
            url = f"{self.endpoint}/api/models/{self.repo}/revision/{quote(self.revision, safe='')}"
            answer = _json(fetch(url)[0], url)
            commit = answer.get("sha") if isinstance(answer, dict) else None
            if isinstance(commit, str) and is_commit(commit):
                return commit
        else:
            # ModelScope names commits file by file; the one meant is the one whose own listing is the same.
            here = here or self.listing(fetch)
            for commit in here.commits[:20]:
                try:
                    there = Hub(self.kind, self.endpoint, self.repo, commit).listing(fetch)
                except HubError:
                    continue
                if set(there.files) == set(here.files):
                    return commit
        raise HubError(f"{redact(self.endpoint)} names no commit for revision '{self.revision}' of {self.repo}")

    def _modelscope(self, fetch: Fetch) -> Listing:
        found: dict[str, File] = {}
        commits: dict[str, float] = {}

        def page(root: str, recursive: bool) -> tuple[int, list[str]]:
            query = f"Revision={quote_plus(self.revision)}&Recursive={recursive}"
            url = f"{self.endpoint}/api/v1/models/{self.repo}/repo/files?{query}"
            if root:
                url += f"&Root={quote_plus(root)}"
            answer = _json(fetch(url)[0], url)
            data = answer.get("Data") if isinstance(answer, dict) else None
            entries = data.get("Files") if isinstance(data, dict) else None
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                said = answer.get("Message") if isinstance(answer, dict) else None
                raise HubError(f"{redact(url)} answered without a file list ({said or 'no message'})")
            folders = []
            for entry in entries:
                if entry.get("Type") == "tree":
                    folders.append(clean_path(str(entry.get("Path"))))
                    continue
                file = _file(entry.get("Path"), entry.get("Size"), entry.get("Sha256"))
                found[file.path] = file
                commit, date = str(entry.get("Revision", "")), entry.get("CommittedDate")
                if is_commit(commit):
                    age = float(date) if isinstance(date, (int, float)) else 0.0
                    commits[commit] = max(age, commits.get(commit, age))
            return len(entries), folders

        def walk(root: str) -> None:
            count, _ignored = page(root, recursive=True)
            if count < MODELSCOPE_LISTING_LIMIT:
                return
            count, folders = page(root, recursive=False)
            if count >= MODELSCOPE_LISTING_LIMIT:
                raise HubError(
                    f"the folder '{root or '/'}' of {self.repo} has {count} entries or more, "
                    "beyond what ModelScope lists: the listing would be incomplete"
                )
            for folder in folders:
                walk(folder)

        walk("")
        return Listing(tuple(found.values()), tuple(sorted(commits, key=lambda c: -commits[c])))

    def _huggingface(self, fetch: Fetch) -> Listing:
        base = f"{self.endpoint}/api/models/{self.repo}/tree/{quote(self.revision, safe='')}?recursive=true"
        url, files, pages = base, [], set()
        while url:
            if url in pages:
                raise HubError(f"{redact(url)} continues its file list with itself")
            pages.add(url)
            body, headers = fetch(url)
            entries = _json(body, url)
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise HubError(f"{redact(url)} answered without a file list")
            for entry in entries:
                if entry.get("type") != "file":
                    continue
                lfs = entry.get("lfs") or {}
                if lfs:
                    files.append(_file(entry.get("path"), lfs.get("size"), lfs.get("oid")))
                else:
                    files.append(_file(entry.get("path"), entry.get("size"), git_blob=entry.get("oid")))
            following = re.search(r'<([^>]+)>;\s*rel="?next"?', headers.get("link", ""))
            # Mirrors pass on the address of the hub they mirror; only what follows the question mark is the page.
            page = urlsplit(following.group(1)).query if following else ""
            url = f"{base.partition('?')[0]}?{page}" if page else ""
        return Listing(tuple(files))

    def _mirror(self, fetch: Fetch) -> Listing:
        """A mirror is any web server over a tree of published models: it serves our own manifest."""
        url = self.download_url("manifest.json")
        body, _headers = fetch(url)
        return parse_manifest(body, redact(url))


def parse_manifest(body: bytes, where: str) -> Listing:
    """The files of a manifest.json, as the model store writes it."""
    manifest = _json(body, where)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, list) or not all(isinstance(entry, dict) for entry in files):
        raise HubError(f"{where} is no manifest: it has no list 'files'")
    commit = manifest.get("commit") or ""
    selections = manifest.get("selections") or []
    if not isinstance(selections, list) or not all(isinstance(entry, dict) for entry in selections):
        raise HubError(f"{where} is no manifest: its 'selections' are no list of globs")
    return Listing(
        tuple(
            _file(entry.get("path"), entry.get("size"), entry.get("sha256"), entry.get("git_blob")) for entry in files
        ),
        (commit,) if isinstance(commit, str) and is_commit(commit) else (),
        tuple(
            Selection(frozenset(map(str, entry.get("include") or ())), frozenset(map(str, entry.get("exclude") or ())))
            for entry in selections
        ),
    )
