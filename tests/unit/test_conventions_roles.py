# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract of a role: its folder, its settings, and that it knows no other role."""

from __future__ import annotations

import re
from typing import Any

import conventions
import pytest
import yaml
from conventions import PROJECT, ROLE_NAMES, listed, load, module_of, role

# Roles without settings of their own that an operator could get wrong.
NO_PREFLIGHT = {
    "plan": "the module onprem.llm.placement refuses what cannot work",
}
# Groups that have no role: they only say what other groups may choose from.
# The first says which hosts may serve models, the other which of equal hosts compiles.
NO_ROLE = {"inference", "builder"}
KINDS = {
    "str": str,
    "path": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "dict": dict,
    "raw": object,
}


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_the_folder_is_complete(name: str) -> None:
    missing = [
        file for file in ("meta/main.yml", "meta/argument_specs.yml") if not (PROJECT / "roles" / name / file).is_file()
    ]
    assert not missing, f"roles/{name} lacks {', '.join(missing)}: copy the file from another role and adapt it"
    galaxy = load(PROJECT / f"roles/{name}/meta/main.yml")["galaxy_info"]
    assert galaxy["role_name"] == name
    assert galaxy["license"] == "GPL-3.0-or-later"
    assert galaxy["description"]


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_it_begins_with_a_preflight(name: str) -> None:
    if name in NO_PREFLIGHT:
        assert not (PROJECT / f"roles/{name}/tasks/preflight.yml").exists(), f"take {name} out of NO_PREFLIGHT"
        return
    first = (load(PROJECT / f"roles/{name}/tasks/main.yml") or [{}])[0]
    imported = module_of(first, "import_tasks", "include_tasks")
    assert imported == "preflight.yml" or (imported or {}) == {"file": "preflight.yml"}, (
        f"roles/{name}/tasks/main.yml must begin with `import_tasks: preflight.yml`"
    )
    assert load(PROJECT / f"roles/{name}/tasks/preflight.yml"), f"roles/{name}/tasks/preflight.yml is empty"


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_settings_and_their_description_agree(name: str) -> None:
    this = role(name)
    assert "main" in this.specs, f"roles/{name}/meta/argument_specs.yml describes no `main`"
    options: dict[str, Any] = this.specs["main"].get("options") or {}
    # What a caller must give has no default.
    described = {key for key, option in options.items() if not option.get("required")}
    assert described == set(this.defaults), (
        f"roles/{name}: only in argument_specs: {sorted(described - set(this.defaults))}; "
        f"only in defaults: {sorted(set(this.defaults) - described)}"
    )
    for key in {key for key, option in options.items() if option.get("required")}:
        assert key not in this.defaults, f"roles/{name}: {key} is required and has a default"


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_every_setting_is_described(name: str) -> None:
    this = role(name)
    problems = []
    for entry, spec in this.specs.items():
        if not spec.get("short_description"):
            problems.append(f"{entry}: no short_description")
        for key, option in (spec.get("options") or {}).items():
            if not option.get("description"):
                problems.append(f"{key}: no description")
            if option.get("type") not in KINDS:
                problems.append(f"{key}: type {option.get('type')!r}")
                continue
            if option["type"] == "list" and "elements" not in option:
                problems.append(f"{key}: a list without `elements`")
            value = this.defaults.get(key)
            templated = isinstance(value, str) and "{{" in value
            if (
                key in this.defaults
                and value is not None
                and not templated
                and not isinstance(value, KINDS[option["type"]])
            ):
                problems.append(f"{key}: the default {value!r} is no {option['type']}")
            if "choices" in option and not templated:
                given = value if isinstance(value, list) else [value]
                problems += [
                    f"{key}: {one!r} is none of {option['choices']}" for one in given if one not in option["choices"]
                ]
    assert not problems, f"roles/{name}/meta/argument_specs.yml:" + listed(problems)


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_every_entry_point_is_described(name: str) -> None:
    this = role(name)
    called = {
        included.get("tasks_from", "main").removesuffix(".yml")
        for other in map(role, ROLE_NAMES)
        for task in other.tasks
        if (included := module_of(task, "include_role", "import_role")) and included["name"] == f"onprem.llm.{name}"
    }
    missing = called - set(this.specs)
    assert not missing, f"roles/{name}/meta/argument_specs.yml lacks the entry points {sorted(missing)}"


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_names_begin_with_the_role(name: str) -> None:
    this = role(name)
    # A role that exists to be included may have a parameter with its very name.
    wrong = [key for key in this.defaults if not re.match(rf"{name}(_|$)", key)]
    wrong += [key for key in this.vars if not key.startswith(f"__{name}_")]
    wrong += [key for key in this.defined_by_tasks() if not re.match(rf"(__)?{name}_", key)]
    assert not wrong, (
        f"roles/{name}: {', '.join(sorted(wrong))}: a setting is called {name}_*, anything internal __{name}_*"
    )


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_no_variable_is_undefined(name: str) -> None:
    this = role(name)
    required = {
        key for spec in this.specs.values() for key, o in (spec.get("options") or {}).items() if o.get("required")
    }
    known = {*this.defaults, *this.vars, *required, *this.defined_by_tasks(), *site_wide()}
    problems = [
        f"{file}: {', '.join(sorted(unknown))}" for file, used in this.uses().items() if (unknown := used - known)
    ]
    assert not problems, "defined in no file of the role, nor site-wide:" + listed(problems)


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_no_variable_is_unused(name: str) -> None:
    this = role(name)
    used = this.quoted().union(*this.uses().values())
    internal = {n for n in {*this.vars, *this.defined_by_tasks()} if n.startswith("__")}
    required = {key for spec in this.specs.values() for key in spec.get("options") or {}}
    unused = ({*this.defaults} | internal | required) - used
    assert not unused, f"roles/{name} defines and never reads {', '.join(sorted(unused))}: use it, or take it out"


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_it_knows_no_other_role(name: str) -> None:
    others = [other for other in ROLE_NAMES if other != name]
    foreign = re.compile(rf"(__)?({'|'.join(others)})_\w+")
    own = re.compile(rf"(__)?{name}(_\w+)?")
    problems = [
        f"{file}: {variable}"
        for file, used in role(name).uses().items()
        for variable in sorted(used)
        if foreign.fullmatch(variable) and not own.fullmatch(variable)
    ]
    assert not problems, (
        f"the role {name} reads other roles' variables; give it its own and set that in group_vars/all/wiring.yml:"
        + listed(problems)
    )


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_it_hands_an_included_role_only_what_that_asks_for(name: str) -> None:
    problems = [
        f"{other} has no setting {key}"
        for other, key in role(name).passed_to_others()
        if not any(key in (spec.get("options") or {}) for spec in role(other).specs.values())
    ]
    assert not problems, f"roles/{name}:" + listed(problems)


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_tasks_are_written_alike(name: str) -> None:
    problems = []
    this = role(name)
    for task in this.tasks:
        title = task.get("name", "(a task without a name)")
        module = next((key for key in task if "." in key), "")
        if "name" not in task:
            problems.append(f"a task without a name: {module or sorted(task)}")
        elif not title[0].isupper():
            problems.append(f"'{title}' does not begin with a capital")
        if not module and "block" not in task:
            problems.append(f"'{title}' calls no module by its full name")
        if "register" in task and not task["register"].startswith(f"__{name}_"):
            problems.append(f"'{title}' registers {task['register']}")
        # Where a host may be silent, failed_when is not asked.
        if "ignore_errors" in task and "ignore_unreachable" not in task:
            problems.append(f"'{title}' ignores errors: use failed_when, which says which failure is none")
    assert not problems, f"roles/{name}:" + listed(problems)


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_our_modules_are_given_what_they_require(name: str) -> None:
    problems = []
    for task in role(name).tasks:
        called = next((key for key in task if key.startswith("onprem.llm.")), "")
        source = PROJECT / f"plugins/modules/{called.removeprefix('onprem.llm.')}.py"
        if called and source.exists() and not isinstance(task[called], str):
            text = re.search(r'DOCUMENTATION = r"""(.*?)"""', source.read_text(), re.DOTALL)
            assert text
            options = yaml.safe_load(text[1]).get("options") or {}
            lacking = {key for key, one in options.items() if one.get("required")} - set(task[called] or {})
            problems += [f"'{task['name']}' calls {called} without {', '.join(sorted(lacking))}"] if lacking else []
    assert not problems, f"roles/{name}:" + listed(problems)


def site_wide() -> set[str]:
    """Variables that every shipped site has: the root's and those in each site's inventory."""
    sites = [conventions.variables_of(PROJECT / "inventories" / site) for site in ("sandbox", "prod")]
    in_all = set.intersection(*(set().union(*site.values()) for site in sites))
    return set(conventions.root_variables()) | in_all


def test_wiring_feeds_settings_that_exist() -> None:
    settings = {key for name in ROLE_NAMES for key in role(name).defaults}
    wired = [key for key in load(PROJECT / "group_vars/all/wiring.yml") if not key.startswith("__wiring_")]
    unknown = [key for key in wired if key not in settings]
    assert not unknown, f"group_vars/all/wiring.yml sets {', '.join(unknown)}, which no role has"


def test_every_group_has_a_role() -> None:
    groups = set(load(PROJECT / "inventories/groups.yml"))
    assert groups - NO_ROLE <= set(ROLE_NAMES), f"no role for the groups {sorted(groups - NO_ROLE - set(ROLE_NAMES))}"


def test_the_exceptions_still_exist() -> None:
    assert set(NO_PREFLIGHT) <= set(ROLE_NAMES)


# --- units of systemd

FLOOR = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict|full",
    "ProtectHome": "yes|tmpfs",
    "PrivateTmp": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes|strict",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "CapabilityBoundingSet": ".*",
    "RestrictAddressFamilies": ".+",
    "SystemCallFilter": ".+",
    "SystemCallArchitectures": "native",
}
UNITS = [
    file
    for file in conventions.files()
    if file.is_relative_to(PROJECT / "roles")
    and file.parts[-2] in ("templates", "files")
    and re.search(r"(?m)^\[Service\]$", conventions.text(file))
    # A drop-in only adds to a unit that is here as well.
    and "ExecStart" in conventions.text(file)
]


@pytest.mark.parametrize("unit", UNITS, ids=conventions.name)
def test_a_unit_is_sandboxed(unit: Any) -> None:
    text = conventions.text(unit)
    missing = [f"{key}={wanted}" for key, wanted in FLOOR.items() if not re.search(rf"(?m)^{key}=({wanted})$", text)]
    assert not missing, f"{conventions.name(unit)} lacks " + ", ".join(missing)


@pytest.mark.parametrize("unit", UNITS, ids=conventions.name)
def test_a_service_comes_back_and_gives_up(unit: Any) -> None:
    text = conventions.text(unit)
    if "Type=oneshot" in text:
        return
    assert re.search(r"(?m)^Restart=(on-failure|always)$", text), f"{conventions.name(unit)}: add Restart=on-failure"
    # StartLimitIntervalSec=0 tries for ever: for what waits for another host.
    if "ExecStart=" in text:
        limited = re.search(r"(?m)^StartLimit(Burst=\d+|IntervalSec=0)$", text)
        assert limited, f"{conventions.name(unit)}: add StartLimitIntervalSec and StartLimitBurst"
