# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules and plugins: documented, honest about check mode, and documented as they are."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ansible.module_utils.basic
import conventions
import pytest
import yaml
from conventions import PROJECT, name

MODULES = sorted(path.stem for path in PROJECT.glob("plugins/modules/*.py") if path.stem != "__init__")
# Where an action plugin does the work alone, the module of that name is its documentation.
CALLED = [module for module in MODULES if "def main(" in (PROJECT / f"plugins/modules/{module}.py").read_text()]
PACKAGE = "ansible_collections.onprem.llm.plugins"
ATTRIBUTES = {"check_mode", "diff_mode", "idempotent"}
FILTERS = [
    filter_name
    for path in sorted(PROJECT.glob("plugins/filter/*.py"))
    for filter_name in importlib.import_module(f"{PACKAGE}.filter.{path.stem}").FilterModule().filters()
]


class Declared(Exception):
    """Carries what a module tells AnsibleModule of itself."""


def declaration(module: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    code = importlib.import_module(f"{PACKAGE}.modules.{module}")

    def stop(*_: Any, **given: Any) -> None:
        raise Declared(given)

    monkeypatch.setattr(code, "AnsibleModule", stop, raising=True)
    with pytest.raises(Declared) as caught:
        code.main()
    given: dict[str, Any] = caught.value.args[0]
    return given


def documentation(module: str) -> tuple[dict[str, Any], Any, Any]:
    code = importlib.import_module(f"{PACKAGE}.modules.{module}")
    return yaml.safe_load(code.DOCUMENTATION), yaml.safe_load(code.EXAMPLES), yaml.safe_load(code.RETURN)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_documented(module: str) -> None:
    text, examples, returned = documentation(module)
    assert text["module"] == module
    assert text["short_description"] and text["description"] and text["author"] and text["version_added"]
    assert not text["short_description"].endswith("."), "short_description is no sentence"
    assert examples, "EXAMPLES is empty"
    for task in examples:
        assert "name" in task, "every example has a name"
        assert f"onprem.llm.{module}" in task or any("." in key for key in task), (
            "examples call modules by their full names"
        )
    assert any(f"onprem.llm.{module}" in task for task in examples)
    assert all({"description", "type", "returned"} <= set(value) for value in (returned or {}).values())


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_does_in_check_mode(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = documentation(module)[0].get("attributes") or {}
    assert set(attributes) >= ATTRIBUTES, f"attributes lack {ATTRIBUTES - set(attributes)}"
    for attribute, said in attributes.items():
        assert said["support"] in ("full", "partial", "none", "N/A"), f"{attribute}: {said['support']}"
        assert said.get("description"), f"{attribute}: no description; say what it means for this module"
    if module not in CALLED:
        return
    supports = bool(declaration(module, monkeypatch).get("supports_check_mode"))
    assert supports == (attributes["check_mode"]["support"] in ("full", "partial")), (
        "check_mode in DOCUMENTATION and supports_check_mode disagree"
    )


DEFAULTS = {"type": "str", "required": False, "default": None, "elements": None, "choices": None}


def described(options: dict[str, Any], spec: dict[str, Any], where: str = "") -> list[str]:
    """Where the documentation of options and the argument spec disagree."""
    problems = [f"{where}{key}: only in the argument spec" for key in sorted(set(spec) - set(options))]
    problems += [f"{where}{key}: only in DOCUMENTATION" for key in sorted(set(options) - set(spec))]
    for key in sorted(set(options) & set(spec)):
        said, real = options[key], spec[key]
        problems += [
            f"{where}{key}: DOCUMENTATION says {field}: {said.get(field)!r}, the argument spec {real.get(field)!r}"
            for field, default in DEFAULTS.items()
            if said.get(field, default) != real.get(field, default)
        ]
        if not said.get("description"):
            problems.append(f"{where}{key}: no description")
        if real.get("options"):
            problems += described(said.get("suboptions") or {}, real["options"], f"{where}{key}.")
    return problems


@pytest.mark.parametrize("module", CALLED)
def test_a_module_is_documented_as_it_is(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = described(
        documentation(module)[0].get("options") or {}, declaration(module, monkeypatch).get("argument_spec") or {}
    )
    assert not problems, conventions.listed(problems)


@pytest.mark.parametrize("module", CALLED)
def test_a_secret_option_is_kept_out_of_logs(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = declaration(module, monkeypatch).get("argument_spec") or {}
    told = [
        key for key, option in spec.items() if any(word in key for word in ("password", "token", "secret", "api_key"))
    ]
    open_ = [key for key in told if "no_log" not in spec[key]]
    assert not open_, f"say no_log: true (or, where it is no secret, false) for {open_}"


def test_a_filter_is_documented() -> None:
    missing = [n for n in FILTERS if not (PROJECT / f"plugins/filter/{n}.yml").is_file()]
    assert not missing, f"plugins/filter/ lacks {', '.join(f'{n}.yml' for n in missing)}"


def test_ansible_doc_reads_them_all() -> None:
    """The check that the documentation is what Ansible expects is Ansible's own."""
    program = str(Path(sys.executable).parent / "ansible-doc")
    done = subprocess.run(
        [program, "-t", "module", "--json", *(f"onprem.llm.{module}" for module in MODULES)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {f"onprem.llm.{module}" for module in MODULES}, done.stderr


UTILS = sorted(path for path in PROJECT.glob("plugins/module_utils/**/*.py"))


@pytest.mark.parametrize("path", UTILS, ids=name)
def test_module_utils_know_nothing_of_ansible(path: Path) -> None:
    found = [
        line for line in conventions.text(path).splitlines() if line.startswith(("import ansible.", "from ansible."))
    ]
    assert not found, f"{name(path)}: pure Python only, nothing of Ansible: {found}"


assert ansible.module_utils.basic  # imported first: modules bind AnsibleModule from it
