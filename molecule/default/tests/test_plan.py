# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan, on a host that serves: it says what is true, changes nothing, and stops a run before a download."""

from __future__ import annotations

import json
import subprocess

from conftest import PROJECT, environment, one_line, playbook, untouched

testinfra_hosts = ["ansible://box"]

# 671 billion parameters on a test host with two cores.
TOO_BIG = {"name": "giant", "catalogue": "deepseek-r1", "source": "nowhere"}


def test_the_plan_is_what_runs(host, tmp_path):
    output, page = tmp_path / "plan.json", tmp_path / "plan.html"
    with untouched(host):
        result = playbook("playbooks/plan.yml", "-e", f"plan_output={output}", "-e", f"plan_page={page}")
    assert result.returncode == 0, result.stdout + result.stderr
    plan = json.loads(output.read_text())
    assert [(one["model"], one["host"], one["engine"], one["fits"]) for one in plan["placements"]] == [
        ("tiny-chat", "box", "llamacpp", "memory"),
        ("tiny-embedding", "box", "llamacpp", "memory"),
    ]
    for one in plan["placements"]:
        words = host.check_output(f"systemctl show -P ExecStart llamacpp@{one['model']}")
        assert words
        command = host.check_output(
            f"tr '\\0' ' ' < /proc/$(systemctl show -P MainPID llamacpp@{one['model']})/cmdline"
        )
        for name, value in one["flags"].items():
            assert f" --{name} " + ("" if value is True else f"{value} ") in command + " ", command
    said = one_line(result.stdout)
    assert "Nothing would change." in said, said
    assert "tiny-chat" in page.read_text() and "://" not in page.read_text()


def test_what_would_change_is_said_and_nothing_is_changed(host):
    with untouched(host):
        result = playbook(
            "playbooks/plan.yml",
            "-e",
            json.dumps({"placements": [{"model": "tiny-chat", "host": "box", "threads": 2, "flags": {"poll": 0}}]}),
        )
    assert result.returncode == 0, result.stdout + result.stderr
    said = one_line(result.stdout)
    assert "box: tiny-chat: threads 1 -> 2" in said, said
    assert "temp 0 is dropped" in said, said


def test_what_does_not_fit_stops_the_run_before_a_download(host):
    with untouched(host):
        result = playbook(
            "site.yml",
            "-e",
            json.dumps(
                {
                    "models": [TOO_BIG],
                    "placements": [],
                    "model_sources": {"nowhere": {"type": "mirror", "url": "http://127.0.0.1:9"}},
                }
            ),
        )
    assert result.returncode == 2, result.stdout + result.stderr
    said = one_line(result.stdout + result.stderr)
    assert "Not everything can be served. Nothing was downloaded or changed." in said, said
    assert "giant on box:" in said and "GiB" in said, said
    assert "PLAY [Prepare" not in said and "PLAY [Store" not in said, said


def test_a_pin_that_cannot_work_is_refused_with_the_numbers(host):
    pins = [{"model": "tiny-chat", "host": "box", "context": 1_000_000}]
    with untouched(host):
        result = playbook("playbooks/plan.yml", "-e", json.dumps({"placements": pins}))
    assert result.returncode == 2, result.stdout + result.stderr
    assert "1000000" in one_line(result.stdout + result.stderr).replace(",", "")


def test_machines_that_are_not_there(tmp_path):
    """No inventory, no host: only the file."""
    output = tmp_path / "plan.json"
    machines = json.loads((PROJECT / "tests/fixtures/hardware/machines.json").read_text())
    wanted = [one for one in machines if one["id"] in ("spr-2s-xeon-gold-6430", "hsx-2s-e5-2696v3")]
    assert len(wanted) == 2
    recorded = tmp_path / "machines.json"
    recorded.write_text(json.dumps(wanted))
    result = subprocess.run(
        [
            str(PROJECT / ".venv/bin/ansible-playbook"),
            "playbooks/plan.yml",
            "-e",
            f"plan_hardware={recorded}",
            "-e",
            f"plan_output={output}",
        ],
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    placements = json.loads(output.read_text())["placements"]
    assert {one["host"] for one in placements} == {one["id"] for one in wanted}
    assert all(one["reasons"] for one in placements)
    assert "box" not in result.stdout
