# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the conventions share: the project's files, its roles, and the variables they name."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml

PROJECT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent.parent for path in PROJECT.glob("roles/*/tasks/main.yml"))
ROLE_NAMES = [role.name for role in ROLES]


class Loader(yaml.SafeLoader):
    """YAML as Ansible reads it: !vault and !unsafe are plain values here."""


Loader.add_constructor("!vault", lambda loader, node: loader.construct_scalar(node))
Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


@functools.cache
def files() -> list[Path]:
    """Every file of the project: what git tracks, and what it would; no links."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=PROJECT, capture_output=True, check=True, text=True
    ).stdout
    paths = [PROJECT / name for name in dict.fromkeys(listed.split("\0")) if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@functools.cache
def text(path: Path) -> str:
    """A file's text, empty for a binary file."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


@functools.cache
def load(path: Path) -> Any:
    return yaml.load(text(path), Loader=Loader) if path.exists() else None


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    """file:line: text of every line in which the pattern is found."""
    compiled = re.compile(pattern)
    return [
        f"{name(path)}:{number}: {line.strip()[:120]}"
        for path in paths
        if compiled.search(text(path))
        for number, line in enumerate(text(path).splitlines(), 1)
        if compiled.search(line)
    ]


def listed(problems: list[str]) -> str:
    return "\n" + "\n".join(problems)


# --- variables

# Keywords whose value is an expression without braces.
EXPRESSIONS = {"when", "that", "failed_when", "changed_when", "until", "break_when", "var"}


class Whichever(dict[str, Any]):
    """Filters and tests: whichever is asked for. Templates are only parsed here."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key, str)


ENVIRONMENT = jinja2.Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"], optimized=False)
ENVIRONMENT.filters = Whichever()
ENVIRONMENT.tests = Whichever()
# Names that Ansible itself defines, or that a template has from Jinja.
MAGIC = re.compile(
    r"ansible_\w+|inventory_(hostname|hostname_short|dir|file)|groups|group_names|hostvars|item|omit|playbook_dir|role_path"
    r"|role_name|play_hosts|lookup|query|q|now|undef|vars|environment|template_\w+|range|dict|namespace|joiner|cycler|loop"
    r"|caller|varargs|kwargs|self|_"
)


@functools.cache
def names_in(template: str) -> frozenset[str]:
    """Variables that a Jinja template takes from outside."""
    return frozenset(jinja2.meta.find_undeclared_variables(ENVIRONMENT.parse(template)))


def names_used(data: Any, expression: bool = False) -> set[str]:
    """Variables named in a piece of YAML: in its braces, and in ``when`` and the like."""
    if isinstance(data, dict):
        found = set()
        for key, value in data.items():
            if isinstance(key, str) and "{" in key:
                found |= names_in(key)
            found |= names_used(value, expression=expression or key in EXPRESSIONS)
        return found
    if isinstance(data, list):
        return set().union(*(names_used(value, expression) for value in data))
    if not isinstance(data, str):
        return set()
    if "{{" in data or "{%" in data:
        return set(names_in(data))
    return set(names_in("{{ " + data + " }}")) if expression else set()


def tasks_of(data: Any) -> Iterator[dict[str, Any]]:
    """Every task in a task file, those in blocks too."""
    for task in data or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks_of(task.get(part))


def module_of(task: dict[str, Any], *names: str) -> Any:
    """The arguments of the first of these modules (short names) that the task calls."""
    for short in names:
        for key in (short, f"ansible.builtin.{short}", f"onprem.llm.{short}"):
            if key in task:
                return task[key]
    return None


class Role:
    """One role's files, and the variables they define and use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.defaults: dict[str, Any] = load(path / "defaults/main.yml") or {}
        self.vars: dict[str, Any] = {}
        for file in sorted(path.glob("vars/*.yml")):
            self.vars.update(load(file) or {})
        self.specs: dict[str, Any] = (load(path / "meta/argument_specs.yml") or {}).get("argument_specs", {})
        self.task_files = {file: load(file) or [] for file in sorted(path.glob("[th]a*/**/*.yml"))}
        self.tasks = [task for data in self.task_files.values() for task in tasks_of(data)]

    @property
    def facts(self) -> set[str]:
        """Names it gives to others with set_fact."""
        return {key for task in self.tasks for key in (module_of(task, "set_fact") or {}) if key != "cacheable"}

    def defined_by_tasks(self) -> set[str]:
        found = set(self.facts)
        for task in self.tasks:
            found.update([task["register"]] if "register" in task else [])
            control = task.get("loop_control") or {}
            found.update(control[key] for key in ("loop_var", "index_var") if key in control)
            if self._passes_on(task) is None:
                found.update(task.get("vars") or {})
        return found

    def _passes_on(self, task: dict[str, Any]) -> str | None:
        """The other role that a task includes, whose variables it may set."""
        included = module_of(task, "include_role", "import_role")
        return included["name"].rpartition(".")[2] if included else None

    def uses(self) -> dict[str, set[str]]:
        """Variables each file takes from outside or from another part of the role: file -> names."""
        found: dict[str, set[str]] = {}
        for file, data in self.task_files.items():
            found[name(file)] = names_used(data)
        for file in [self.path / "defaults/main.yml", *sorted(self.path.glob("vars/*.yml"))]:
            found[name(file)] = names_used(load(file) or {})
        for file in sorted(self.path.glob("templates/**/*")):
            if file.is_file():
                found[name(file)] = set(names_in(text(file)))
        return {file: {n for n in names if not MAGIC.fullmatch(n)} for file, names in found.items()}

    def quoted(self) -> set[str]:
        """Private names that stand in quotes: map('extract', hostvars, '__x') reads a variable of another host."""
        texts = [text(file) for file in self.path.glob("*/**/*") if file.is_file()]
        return {found for content in texts for found in re.findall(r"'(__\w+)'", content)}

    def passed_to_others(self) -> list[tuple[str, str]]:
        """(role, variable) of each variable that an include_role hands over."""
        return [
            (other, key)
            for task in self.tasks
            if (other := self._passes_on(task)) is not None
            for key in task.get("vars") or {}
            if not key.startswith("__")
        ]


@functools.cache
def role(role_name: str) -> Role:
    return Role(PROJECT / "roles" / role_name)


def variables_of(folder: Path, of_hosts: bool = True) -> dict[str, set[str]]:
    """Variables an inventory sets, with or without those of single hosts: file -> names."""
    own = [path for path in files() if path.suffix == ".yml" and path.is_relative_to(folder)]
    found = {
        name(path): set(load(path) or {})
        for path in own
        if path.relative_to(folder).parts[0] in (("group_vars", "host_vars") if of_hosts else ("group_vars",))
    }
    hosts = folder / "hosts.yml"
    if hosts.exists():
        found[name(hosts)] = set(_inventory_vars(load(hosts) or {}, of_hosts))
    return found


def _inventory_vars(data: Any, of_hosts: bool = True) -> Iterator[str]:
    if isinstance(data, dict):
        for key, value in data.items():
            if key == "vars" and isinstance(value, dict):
                yield from value
            elif key == "hosts" and isinstance(value, dict):
                for host in value.values():
                    yield from (host or {}) if of_hosts else ()
            else:
                yield from _inventory_vars(value, of_hosts)


def inventories() -> list[Path]:
    """Every inventory of the project: the sites and those of the molecule scenarios."""
    found = [*PROJECT.glob("inventories/*/"), *PROJECT.glob("molecule/*/inventory/")]
    return sorted(path for path in found if path.is_dir())


def root_variables() -> dict[str, str]:
    """Variables of the root group_vars: name -> file."""
    return {key: name(file) for file in sorted(PROJECT.glob("group_vars/**/*.yml")) for key in (load(file) or {})}
