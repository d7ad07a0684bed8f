# SPDX-License-Identifier: GPL-3.0-or-later
"""What a transfer tells of itself."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store.status import WINDOW, Report, read, write_json
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Request

GB = 10**9


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def report(clock: Clock, file: Path | None = None) -> Report:
    chat = Model("chat", "o/chat", "main", files=(File("a", 6 * GB), File("b", 4 * GB)))
    words = Model("words", "o/words", "main", files=(File("c", 2 * GB),))
    return Report(Request("/srv", (chat, words)), file, clock=clock)


def test_a_steady_line_is_told_as_it_is(clock: Clock) -> None:
    """At 100 MB/s each minute's estimate leads to the same end."""
    told = report(clock)
    told.model("chat", "fetching")
    told.busy("chat", "a", "hub")
    ends = []
    for _second in range(50):
        clock.now += 1
        told.arrived(100_000_000)
        told.here("chat", "a", int((clock.now - 100) * 100_000_000))
        status = told.status()
        assert status.eta is not None
        ends.append(clock.now + status.eta)
    assert status.rate == 100_000_000
    assert (status.models[0].done, status.models[0].total, status.remaining) == (5 * GB, 10 * GB, 7 * GB)
    assert set(ends) == {100 + 120}


def test_the_rate_follows_a_line_that_slows_down(clock: Clock) -> None:
    told = report(clock)
    for _second in range(60):
        clock.now += 1
        told.arrived(100)
        told.status()
    for _second in range(int(WINDOW)):
        clock.now += 1
        told.arrived(10)
        status = told.status()
    assert status.rate == 10


def test_nothing_is_known_at_the_start_and_nothing_left_at_the_end(clock: Clock) -> None:
    told = report(clock)
    clock.now += 1
    assert (told.status().rate, told.status().eta) == (0.0, None)
    told.model("chat", "published")
    told.model("words", "published")
    assert (told.status().remaining, told.status().eta) == (0, 0.0)


def test_bytes_that_lay_here_make_no_rate(clock: Clock) -> None:
    told = report(clock)
    clock.now += 1
    told.here("chat", "a", 5 * GB)
    assert (told.status().models[0].done, told.status().rate) == (5 * GB, 0.0)


def test_never_more_than_there_is(clock: Clock) -> None:
    told = report(clock)
    told.here("chat", "a", 7 * GB)
    assert told.status().models[0].done == 6 * GB


def test_what_a_model_does_follows_from_its_files(clock: Clock) -> None:
    told = report(clock)

    def doing() -> tuple[str, str]:
        model = told.status().models[0]
        return model.state, model.source

    assert doing() == ("queued", "")
    told.model("chat", "fetching")
    assert doing() == ("fetching", "")
    told.busy("chat", "a", "waiting")
    assert doing() == ("waiting", "")
    told.busy("chat", "b", "verifying")
    assert doing() == ("verifying", "")
    told.busy("chat", "b", "fleet")
    assert doing() == ("fetching", "fleet")
    told.busy("chat", "a", "")
    told.busy("chat", "b", "")
    assert doing() == ("fetching", "")
    told.model("chat", "failed", "no source has it")
    assert doing() == ("failed", "")
    # What will not come any more is not waited for.
    assert told.status().remaining == 2 * GB


def test_the_fleet_counts_for_the_rate(clock: Clock) -> None:
    told = report(clock)
    told.traffic = lambda: (500, 70)
    clock.now += 10
    status = told.status()
    assert (status.from_fleet, status.to_fleet, status.from_hubs, status.rate) == (500, 70, 0, 50)


def test_who_waits_for_others_reckons_with_waiting_again(clock: Clock) -> None:
    """Of three files of 4, 6 and 2 GB each is fetched by another host at 20 MB/s, then comes at 100 MB/s."""
    told = report(clock)
    came = 0
    told.traffic = lambda: (came, 0)
    told.model("chat", "fetching")
    told.busy("chat", "b", "waiting")
    clock.now += 200
    assert told.status().eta is None
    told.busy("chat", "b", "fleet")
    for _second in range(40):
        clock.now += 1
        came += GB // 10
        told.here("chat", "b", came)
        status = told.status()
    assert (status.rate, status.eta) == (GB // 10, 8 * GB / (4 * GB / 240))
    told.busy("chat", "b", "")
    told.busy("chat", "a", "waiting")
    clock.now += 60
    assert told.status().eta == 8 * GB / (4 * GB / 300)
    # The last of it: nothing more to wait for.
    told.here("chat", "a", 6 * GB)
    told.model("chat", "published")
    told.model("words", "fetching")
    told.busy("words", "c", "fleet")
    told.status()
    for _second in range(int(WINDOW)):
        clock.now += 1
        came += GB // 100
        status = told.status()
    assert status.eta == 2 * GB / (GB // 100)


def test_the_end_of_all_is_the_end_of_each(clock: Clock) -> None:
    told = report(clock)
    told.model("chat", "published")
    told.failed("It was told to stop.")
    status = told.status()
    assert status.state == "failed"
    assert [(model.state, model.message) for model in status.models] == [
        ("published", ""),
        ("failed", "It was told to stop."),
    ]


def test_a_sentence_is_told_once(clock: Clock) -> None:
    told = report(clock)
    for _time in range(2):
        told.note("a")
        told.warn("b")
    assert (told.status().notes, told.status().warnings) == (["a"], ["b"])


def test_who_reads_finds_a_whole_status(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    assert read(file) is None
    told = report(clock, file)
    end = threading.Event()

    def keep_writing() -> None:
        while not end.is_set():
            told.write()

    thread = threading.Thread(target=keep_writing)
    with told:
        thread.start()
        for _time in range(200):
            status = read(file)
            assert status is not None
            assert [model.name for model in status.models] == ["chat", "words"]
        end.set()
        thread.join()
        told.state("done")
    last = read(file)
    assert last is not None
    assert last.state == "done"
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_secret_is_at_no_moment_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    really = json.dump

    def dump(data: object, handle: object, **how: object) -> None:
        modes.append(os.fstat(handle.fileno()).st_mode & 0o777)  # type: ignore[attr-defined]
        really(data, handle, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(json, "dump", dump)
    old = os.umask(0)
    try:
        write_json(tmp_path / "request.json", {}, 0o600)
    finally:
        os.umask(old)
    assert modes == [0o600]
