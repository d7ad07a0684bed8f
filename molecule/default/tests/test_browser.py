# SPDX-License-Identifier: GPL-3.0-or-later
"""A person at the browser: logs in, attaches a knowledge base, asks, reads the cited answer.

Debian's Chromium, driven by Selenium. The site's CA is put into a throw-away NSS store, so TLS is really verified.
The screenshot is kept in .cache/test/chat.png.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PROJECT, ask
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

URL = "https://10.77.1.11"
# A word: the random id of the collection stands in the prompt too, and the tiny model takes its digits for a code.
CODE = "Malor"
FACT = f"The access code of the Kelora server is {CODE}."
QUESTION = "What is the access code of the Kelora server?"
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--lang=en-US",
    "--force-device-scale-factor=1.5",
    "--window-size=1180,760",
    # The driver is in another network than its browser.
    "--remote-debugging-pipe",
]


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A program that starts Chromium in a network of its own, on the lab's bridge: Chromium drops what it loads when
    an interface comes or goes, and other labs' do."""
    name, address = "onprem-desk", "10.77.1.250"
    bridge = json.loads(run("ip", "-json", "route", "get", URL.removeprefix("https://")))[0]["dev"]
    # What a run that was killed left.
    for left in ("netns", "link"):
        subprocess.run(["ip", left, "delete", name], check=False, capture_output=True)
    run("ip", "netns", "add", name)
    try:
        # An IPv6 address arrives a second or two after its interface, which is such a change too.
        without_ipv6 = ["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"]
        subprocess.run(["ip", "netns", "exec", name, "sysctl", "-q", "-e", "-w", *without_ipv6], check=False)
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", name, "master", bridge, "up")
        run("ip", "-netns", name, "address", "add", f"{address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            run("ip", "-netns", name, "link", "set", interface, "up")
        program = tmp_path_factory.mktemp("desk") / "chromium"
        program.write_text(f'#!/bin/sh\nexec ip netns exec {name} /usr/bin/chromium "$@"\n')
        program.chmod(0o755)
        yield program
    finally:
        run("ip", "netns", "delete", name)


@contextmanager
def chromium(program: Path, home: Path, ca_file: Path | None) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that trusts the system's CAs and ``ca_file``, and is told to overlook nothing."""
    store = home / ".pki/nssdb"
    store.mkdir(parents=True)
    subprocess.run(["certutil", "-d", f"sql:{store}", "-N", "--empty-password"], check=True)
    if ca_file:
        trust = ["certutil", "-d", f"sql:{store}", "-A", "-t", "C,,", "-n", "site", "-i", str(ca_file)]
        subprocess.run(trust, check=True)
    options = webdriver.ChromeOptions()
    options.binary_location = str(program)
    for argument in [*ARGUMENTS, f"--user-data-dir={home}/profile"]:
        options.add_argument(argument)
    service = Service("/usr/bin/chromedriver", env={**os.environ, "HOME": str(home)})
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_page_load_timeout(60)
    browser.implicitly_wait(30)
    try:
        yield browser
    finally:
        browser.quit()


def upload(token: str, ca_file: Path, name: str, text: str) -> str:
    """Id of an uploaded text file, after its text was turned into vectors."""
    boundary = uuid.uuid4().hex
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: text/plain\r\n\r\n{text}\r\n--{boundary}--\r\n"
    )
    request = urllib.request.Request(f"{URL}/api/v1/files/?process=true&process_in_background=false", body.encode())
    request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    status, answer = ask(request, ca_file, token=token)
    assert status == 200, answer
    return answer["id"]


@pytest.fixture(scope="module")
def sign_in(secrets, ca_file):
    def token(name: str) -> str:
        status, answer = ask(f"{URL}/api/v1/auths/ldap", ca_file, {"user": name, "password": secrets(f"user_{name}")})
        assert status == 200, answer
        return answer["token"]

    return token


@pytest.fixture(scope="module")
def knowledge(ca_file, sign_in):
    """Alice's knowledge base with one document; taken away afterwards."""
    alice = sign_in("alice")
    status, base = ask(f"{URL}/api/v1/knowledge/create", ca_file, {"name": "Handbook", "description": "IT"}, alice)
    assert status == 200, base
    file = upload(alice, ca_file, "handbook.txt", f"{FACT} Internal use only.")
    status, answer = ask(f"{URL}/api/v1/knowledge/{base['id']}/file/add", ca_file, {"file_id": file}, alice)
    assert status == 200, answer
    yield base["id"]
    ask(f"{URL}/api/v1/knowledge/{base['id']}/delete", ca_file, token=alice, method="DELETE")
    ask(f"{URL}/api/v1/files/{file}", ca_file, token=alice, method="DELETE")


def test_a_person_gets_a_cited_answer(desk, tmp_path, ca_file, secrets, knowledge):
    picture = PROJECT / ".cache/test/chat.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    with chromium(desk, tmp_path, ca_file) as browser:
        browser.get(URL)
        browser.find_element(By.ID, "username").send_keys("alice")
        browser.find_element(By.ID, "password").send_keys(secrets("user_alice") + Keys.ENTER)
        box = browser.find_element(By.ID, "chat-input")
        box.click()
        box.send_keys("#Handbook")
        # The list of what can be attached opens; a click takes the knowledge base and empties the box.
        browser.find_element(By.XPATH, "//button[contains(., 'Handbook') and not(contains(., '#'))]").click()
        WebDriverWait(browser, 20).until(lambda _: "#" not in box.text)
        box.send_keys(QUESTION + Keys.ENTER)
        page = browser.find_element(By.TAG_NAME, "body")
        try:
            WebDriverWait(browser, 60).until(lambda _: CODE in page.text and "1 Source" in page.text)
        finally:
            browser.save_screenshot(str(picture))
        assert "handbook.txt" in page.text


def test_a_browser_that_does_not_trust_the_ca_refuses(desk, tmp_path):
    with chromium(desk, tmp_path, None) as browser:
        try:
            browser.get(URL)
            said = browser.page_source
        except WebDriverException as error:
            said = str(error)
        assert "ERR_CERT_AUTHORITY_INVALID" in said


def test_nobody_reads_what_belongs_to_another(ca_file, sign_in, knowledge):
    bob = sign_in("bob")
    assert ask(f"{URL}/api/v1/knowledge/{knowledge}", ca_file, token=bob)[0] in (400, 401, 403, 404)
    chat = {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": QUESTION}],
        "files": [{"type": "collection", "id": knowledge}],
    }
    status, answer = ask(f"{URL}/api/chat/completions", ca_file, chat, bob)
    assert CODE not in str(answer), (status, answer)
