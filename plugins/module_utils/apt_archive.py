# SPDX-License-Identifier: GPL-3.0-or-later
"""A part of a Debian archive: the packages asked for with all they need, under the archive's own signature.

The index is the archive's, whole and signed, so a host checks what it installs as it always does. Only the packages
themselves are few. apt does the work, with a state of its own: nothing of this machine changes, no root is needed.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ansible_collections.onprem.llm.plugins.module_utils import transfer

HELPER = "/usr/lib/apt/apt-helper"
SOURCES = Path("/etc/apt")
LIST = "binary-amd64/Packages.xz"
#: Parts of an archive; those of Debian, and of Ubuntu.
COMPONENTS = ("main", "universe")
#: Keys of a distribution's own archive.
OWN_KEY = re.compile(r"/usr/share/keyrings/(debian|ubuntu)-archive-\S+")

#: run(argv, folder) -> output; an error is an ArchiveError
Run = Callable[[Sequence[str], Path], str]


class ArchiveError(Exception):
    """The packages cannot be had; the message says what apt said, and the way out."""


@dataclass(frozen=True)
class Deb:
    """One package to download."""

    url: str
    name: str
    size: int

    def spec(self) -> str:
        """How apt calls it: NAME:ARCHITECTURE=VERSION."""
        package, version, architecture = unquote(self.name).removesuffix(".deb").split("_")
        return f"{package}:{'amd64' if architecture == 'all' else architecture}={version}"


@dataclass(frozen=True)
class Suite:
    """One suite of an archive and one of its components, as apt names them."""

    archive: str
    """Address of the archive, with a slash at its end."""
    release: str
    component: str

    def folder(self) -> str:
        """Name of the archive's folder: the end of its address."""
        return urlsplit(self.archive).path.rstrip("/").rpartition("/")[2] or "archive"


@dataclass
class Outcome:
    changed: bool = False
    packages: list[str] = field(default_factory=list)
    size: int = 0
    fetched: int = 0
    """Bytes that came over the network."""


def run(argv: Sequence[str], folder: Path) -> str:
    """The output of a command."""
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E: ")] or done.stderr.splitlines()
        raise ArchiveError(f"`{Path(argv[0]).name}` failed: " + " ".join(said[-3:]))
    return done.stdout


def codename() -> str:
    """Of this machine's release; empty where it has none."""
    found = re.search(r'(?m)^VERSION_CODENAME="?([^"\n]*)', Path("/etc/os-release").read_text())
    return found[1] if found else ""


def own_sources(folder: Path, codename: str, release: str, components: Sequence[str] = ()) -> str:
    """This machine's apt sources in the deb822 form, for another release of its distribution; or nothing.

    Archives of others are passed over: those with a key of their own, or with no component of a distribution.
    ``components`` come to those: they have the same address and key, whether or not this machine takes them.
    """
    blocks = []
    for file in sorted((folder / "sources.list.d").glob("*.sources")):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        blocks += re.split(r"\n\s*\n", "\n".join(lines).strip())
    for file in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]:
        for line in file.read_text().splitlines() if file.is_file() else ():
            found = re.fullmatch(
                r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<parts>.*)", line.strip()
            )
            if found and not found["uri"].startswith("cdrom:"):
                signed = re.search(r"signed-by=(\S+)", found["options"] or "")
                key = f"\nSigned-By: {signed[1]}" if signed else ""
                blocks.append(
                    f"Types: deb\nURIs: {found['uri']}\nSuites: {found['suite']}\nComponents: {found['parts']}{key}"
                )
    kept = []
    for block in blocks:
        fields = dict(re.findall(r"(?m)^(\S+):[ \t]*(.*)$", block))
        suites = [
            one for one in fields.get("Suites", "").split() if re.fullmatch(rf"{codename}(-updates|-security)?", one)
        ]
        parts = [one for one in fields.get("Components", "").split() if one in COMPONENTS]
        own = "Signed-By" not in fields or OWN_KEY.fullmatch(fields["Signed-By"].strip())
        enabled = "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no"
        if not (suites and parts and own and enabled):
            continue
        lines = ["Types: deb", f"URIs: {fields['URIs']}"]
        lines.append(f"Suites: {' '.join(one.replace(codename, release, 1) for one in suites)}")
        lines.append(f"Components: {' '.join([*parts, *components])}")
        if "Signed-By" in fields:
            lines.append(f"Signed-By: {fields['Signed-By']}")
        kept.append("\n".join(lines) + "\n")
    return "\n".join(kept)


def host_sources(suites: Sequence[Suite], place: str) -> str:
    """What a host writes below /etc/apt/sources.list.d to take its packages from ``place``.

    No key is named: the archive's are among those that every host of the distribution trusts.
    """
    blocks = []
    for archive in dict.fromkeys(suite.archive for suite in suites):
        mine = [suite for suite in suites if suite.archive == archive]
        blocks.append(
            f"Types: deb\nURIs: file:{place}/{mine[0].folder()}\n"
            f"Suites: {' '.join(dict.fromkeys(one.release for one in mine))}\n"
            f"Components: {' '.join(dict.fromkeys(one.component for one in mine))}\n"
            "Architectures: amd64\n"
            # The disk holds one form of each list, and grows older than its signature.
            "Languages: none\nBy-Hash: no\nCheck-Valid-Until: no\n"
        )
    return "\n".join(blocks)


def parse_uris(text: str) -> list[Deb]:
    """What ``apt-get --print-uris`` answers."""
    return [Deb(url, name, int(size)) for url, name, size in re.findall(r"(?m)^'([^']+)' (\S+) (\d+)", text)]


def index_hash(release: str, component: str) -> str:
    """The sha256 that a Release file gives for a component's list of packages."""
    section = release.partition("\nSHA256:")[2]
    found = re.search(rf"(?m)^ ([0-9a-f]{{64}})\s+\d+ {re.escape(component)}/{re.escape(LIST)}$", section)
    if found is None:
        raise ArchiveError(f"the archive's Release file names no {component}/{LIST}")
    return found[1]


class Archive:
    """One release's packages in one folder."""

    def __init__(
        self,
        folder: Path,
        release: str,
        codename: str,
        *,
        components: Sequence[str] = (),
        sources: Path = SOURCES,
        call: Run = run,
        check: bool = False,
    ) -> None:
        self.folder, self.release = folder, release
        self.text = own_sources(sources, codename, release, components)
        self.call, self.check = call, check
        if not self.text:
            raise ArchiveError(
                f"This machine's apt sources name no archive of {codename} under the distribution's own key, so the "
                f"packages of {release} cannot be had from here. Run it on a machine of that distribution, or give the "
                f"hosts an apt mirror and take {release} out of `bundle_systems`."
            )

    def fill(self, packages: Sequence[str], place: str) -> Outcome:
        """Make the folder hold exactly what these packages need; ``place`` is where hosts will find it."""
        done = Outcome()
        with tempfile.TemporaryDirectory(prefix="apt-") as scratch:
            state = Path(scratch)
            options = self._options(state)
            self.call(["apt-get", "-qq", *options, "update"], state)
            debs = parse_uris(
                self.call(
                    ["apt-get", "-qq", *options, "--no-install-recommends", "--print-uris", "install", *packages], state
                )
            )
            suites = self._suites(options, state)
            done.size, done.packages = sum(deb.size for deb in debs), sorted(unquote(deb.name) for deb in debs)
            wanted = {self._place(deb, suites): deb for deb in debs}
            missing = {
                path: deb for path, deb in wanted.items() if not path.is_file() or path.stat().st_size != deb.size
            }
            done.fetched = sum(deb.size for deb in missing.values())
            done.changed = bool(missing) or not self.folder.exists()
            if self.check:
                return done
            if missing:
                self.call(["apt-get", "-qq", *options, "download", *(deb.spec() for deb in missing.values())], state)
            for path, deb in missing.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._move(state / deb.name, path)
            for suite in suites:
                done.changed |= self._index(suite, options, state)
            text = host_sources(suites, place)
            done.changed |= self._write(self.folder / "onprem-llm.sources", text.encode())
            for old in sorted(self.folder.glob("*/pool/**/*.deb")):
                if old not in wanted:
                    old.unlink()
                    done.changed = True
        return done

    def _options(self, state: Path) -> list[str]:
        for name in ("lists/partial", "cache/archives/partial", "parts", "none"):
            (state / name).mkdir(parents=True)
        (state / "status").touch()
        (state / "parts/own.sources").write_text(self.text)
        settings = {
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": state / "parts",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": state / "none",
            "Dir::State": state,
            "Dir::State::lists": state / "lists",
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            "Acquire::Languages": "none",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "true",
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def _suites(self, options: Sequence[str], state: Path) -> list[Suite]:
        line = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
        said = self.call(["apt-get", *options, "indextargets", "--format", line, "Created-By: Packages"], state)
        return [Suite(*line.split()) for line in said.splitlines()]

    def _place(self, deb: Deb, suites: Sequence[Suite]) -> Path:
        for suite in suites:
            if deb.url.startswith(suite.archive):
                return self.folder / suite.folder() / unquote(deb.url.removeprefix(suite.archive))
        raise ArchiveError(f"{deb.url} is in none of the archives {', '.join(one.archive for one in suites)}")

    def _index(self, suite: Suite, options: Sequence[str], state: Path) -> bool:
        """The signed list of a suite, which apt has verified; whether it changed."""
        address = f"{suite.archive}dists/{suite.release}"
        # apt's own name of the file: the address without its scheme, with _ for /.
        stem = re.sub(r"^\w+://(?:[^@/]*@)?", "", address).replace("_", "%5f").replace("/", "_")
        signed = (state / "lists" / f"{stem}_InRelease").read_bytes()
        checksum = index_hash(signed.decode(), suite.component)
        home = self.folder / suite.folder() / "dists" / suite.release
        target = home / suite.component / LIST
        here = transfer.hash_file(target, transfer.Hashes(None)).sha256() if target.is_file() else ""
        if here != checksum:
            draft = state / "Packages.xz"
            self.call(
                [
                    HELPER,
                    *options,
                    "download-file",
                    f"{address}/{suite.component}/{LIST}",
                    str(draft),
                    f"SHA256:{checksum}",
                ],
                state,
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            self._move(draft, target)
        return self._write(home / "InRelease", signed) or here != checksum

    @staticmethod
    def _write(path: Path, content: bytes) -> bool:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.write_bytes(content)
        draft.replace(path)
        return True

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        """Into its place, whole or not at all; the two may lie on different disks."""
        draft = target.with_name(f".{target.name}.new")
        draft.write_bytes(source.read_bytes())
        draft.chmod(0o644)
        draft.replace(target)
