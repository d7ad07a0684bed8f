# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts from which nothing leads out install model and engine from the bundle, answer, and never try to leave."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import testinfra
import yaml
from conftest import INVENTORY, SSH_CONFIG, one_line, playbook

NAMES = ("gpu1", "gpu2")
MIRROR = "https://10.77.207.11:8470"
SITE = yaml.safe_load((INVENTORY / "group_vars/all/lock.yml").read_text())
COMMIT = SITE["lock_model_revision"]
FOLDER = f"onprem/tiny-rag-GGUF/{COMMIT}"
ENTRY = "F16/tiny-rag-F16-00001-of-00002.gguf"
# As in the inventory.
BUNDLE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onprem-llm/airgap"
ASK = """
import json, urllib.request
chat = {"model": "tiny-chat", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
key = open("/etc/onprem-llm/llamacpp/api_key").read().strip()
port = PORT
request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(chat).encode())
request.add_header("Authorization", "Bearer " + key)
request.add_header("Content-Type", "application/json")
print(json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["message"]["content"])
"""
GET = """
import ssl, sys, urllib.request, urllib.error
trust = ssl.create_default_context(cafile="/etc/onprem-llm/tls/ca.crt")
for url in sys.argv[1:]:
    try:
        answer = urllib.request.urlopen(url, timeout=5, context=trust)
        print(answer.status, len(answer.read()))
    except urllib.error.HTTPError as error:
        print(error.code)
    except OSError as error:
        print("none:", error)
"""


def python(host, code, *arguments):
    coded = base64.b64encode(code.encode()).decode()
    return host.check_output(f"echo {coded} | base64 -d | python3 - {' '.join(arguments)}")


def left() -> int:
    """Packets that tried to leave the lab so far."""
    said = subprocess.run(
        ["nft", "--json", "list", "counter", "inet", "airgap", "left"], capture_output=True, check=True, text=True
    )
    return next(one["counter"]["packets"] for one in json.loads(said.stdout)["nftables"] if "counter" in one)


@pytest.fixture(scope="module")
def hosts():
    return {
        name: testinfra.get_host(
            f"ansible://{name}", ansible_inventory=str(INVENTORY), ssh_config=str(SSH_CONFIG), sudo=True
        )
        for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_model_answers(hosts, name):
    start = hosts[name].file("/etc/onprem-llm/llamacpp/tiny-chat.env").content_string
    port = re.search(r"--port (\d+)", start).group(1)
    assert "Paris" in python(hosts[name], ASK.replace("PORT", port))


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_is_the_one_of_the_lock(hosts, name):
    marker = json.loads(hosts[name].check_output("cat /opt/onprem-llm/llamacpp/current/.complete"))
    assert marker["sha256"] == SITE["lock_llamacpp"]["sha256"]


@pytest.mark.parametrize(
    ("limit", "source"),
    [
        pytest.param((), "fleet", id="fleet", marks=pytest.mark.long),
        pytest.param(("--limit", "gpu2"), "hubs", id="mirror"),
    ],
)
def test_a_host_without_models_on_its_disk_takes_them_from_the_other(hosts, limit, source):
    """While that takes part, from the fleet; else, as a host that joins late, from the mirror: for it a source."""
    assert not hosts["gpu2"].file("/mnt/bundle/models").exists
    hosts["gpu2"].check_output("rm -rf /srv/llm/models/onprem")
    done = playbook("playbooks/models.yml", *limit)
    assert done.returncode == 0, done.stdout[-3000:]
    hosts["gpu2"].check_output(f"test -f /srv/llm/models/{FOLDER}/{ENTRY}")
    status = json.loads(hosts["gpu2"].file("/run/model_store/status.json").content_string)
    assert {one for one in ("fleet", "hubs") if status[f"from_{one}"]} == {source}, status


def test_a_mirror_holds_what_it_does_not_serve(hosts):
    assert hosts["gpu1"].file(f"/srv/llm/models/{FOLDER}/README.md").exists
    assert not hosts["gpu1"].file("/etc/onprem-llm/llamacpp/tiny-embedding.env").exists


def test_the_mirror_gives_published_files_to_the_fleet_only(hosts):
    urls = [f"{MIRROR}/{FOLDER}/manifest.json", f"{MIRROR}/{FOLDER}/{ENTRY}", f"{MIRROR}/.staging", f"{MIRROR}/"]
    manifest, entry, *others = python(hosts["gpu2"], GET, *urls).splitlines()
    size = hosts["gpu1"].file(f"/srv/llm/models/{FOLDER}/{ENTRY}").size
    assert manifest.startswith("200 ") and entry == f"200 {size}" and others == ["404", "404"]
    # This machine is no host of the fleet.
    looked = subprocess.run(["timeout", "2", "bash", "-c", "</dev/tcp/10.77.207.11/8470"], capture_output=True)
    assert looked.returncode == 124


def test_the_mirror_is_sandboxed_and_alone(hosts):
    text = hosts["gpu1"].check_output("systemd-analyze security --no-pager model_mirror.service | tail -n 1")
    assert float(re.search(r"(\d+\.\d)", text).group(1)) <= 1.6, text
    assert not hosts["gpu1"].service("nginx").is_running and not hosts["gpu1"].service("nginx").is_enabled
    assert "root" not in hosts["gpu1"].check_output("ps -o user= -C nginx").split()


def test_the_bundle_is_what_its_list_says():
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=BUNDLE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_second_bundle_changes_nothing_and_asks_nobody():
    """The hub's address is a dead one here."""
    nobody = {"model_sources": {"hub": {"type": "modelscope", "url": "http://127.0.0.1:9"}}, "bundle_systems": []}
    done = playbook("playbooks/bundle.yml", "-e", f"bundle_dir={BUNDLE}", "-e", json.dumps(nobody))
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"localhost\s+: ok=\d+\s+changed=0 ", done.stdout), done.stdout[-3000:]


def test_a_bundle_of_a_bundle_is_refused(tmp_path):
    done = playbook("playbooks/bundle.yml", "-e", f"bundle_dir={tmp_path / 'new'}")
    assert done.returncode != 0
    assert "The source hub of `model_sources` is the folder of a bundle" in one_line(done.stdout)
    assert not (tmp_path / "new").exists()


def test_nothing_tried_to_leave(hosts):
    """Last: all of the above counts. Then somebody does try, to see that it would have been noticed."""
    assert left() == 0
    assert hosts["gpu1"].run("timeout 2 bash -c '</dev/tcp/192.0.2.1/443'").rc == 124
    assert hosts["gpu1"].run("timeout 2 bash -c '</dev/tcp/10.77.207.1/8097'").rc == 124
    assert left() >= 2
    subprocess.run(["nft", "reset", "counter", "inet", "airgap", "left"], capture_output=True, check=True)
