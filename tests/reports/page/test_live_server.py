"""The page of a running training: for this machine only, read-only, in every state of a run."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from threading import Thread

import pytest

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.page.live_server import HOST, make_server
from tests.support.page_runs import frozen, write_shown
from tests.support.pages import Page


@pytest.fixture
def unfinished(tmp_path):
    return frozen(tmp_path, "adalora-ivon-snr", "unfinished")


@pytest.fixture
def served():
    """Serve runs: served(path) returns a function that asks for a path."""
    servers = []

    def serve(*paths):
        server = make_server(paths, "best_at_budget", 0)
        servers.append(server)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        port = server.server_address[1]

        def ask(path, method="GET", **headers):
            connection = http.client.HTTPConnection(HOST, port, timeout=20)
            connection.request(method, path, headers={"Host": f"{HOST}:{port}", **headers})
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer.status, body.decode(), answer.headers

        ask.port = port
        return ask

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def parts(ask):
    status, body, _ = ask("/parts")
    assert status == 200
    return json.loads(body)


def test_the_page_and_its_scripts(served, unfinished):
    ask = served(unfinished)
    status, body, headers = ask("/")
    assert status == 200
    found = Page(body)
    assert not found.open
    links = {link for link in found.links if not link.startswith(("#", "data:"))}
    assert links == {"/plotly.js", "/page.js"}
    assert "script-src 'self'; connect-src 'self'" in headers["Content-Security-Policy"]
    for link in links:
        status, body, headers = ask(link)
        assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert ask(link, **{"If-None-Match": headers["ETag"]})[:2] == (304, "")


def test_only_this_machine_is_answered(served, unfinished):
    ask = served(unfinished)
    assert ask("/", Host=f"localhost:{ask.port}")[0] == 200
    for name in ("evil.example", f"evil.example:{ask.port}", HOST, f"{HOST}:1", ""):
        assert ask("/parts", Host=name)[0] == 403, name
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask("/parts", method)[0] == 501
    for path in ("/../config.toml", "/config.toml", "/parts/..", "/%2e%2e/x"):
        assert ask(path)[0] == 404, path
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", ask.port)) != 0  # another address of this machine


def test_a_run_from_its_first_line_to_its_end(served, unfinished, tmp_path):
    whole = tmp_path / "whole"
    shutil.move(unfinished, whole)
    unfinished.mkdir()
    shutil.copy(whole / "config.toml", unfinished)
    ask = served(unfinished)
    found = parts(ask)
    assert set(found["sections"]) == {"contents", "summary", "repeat"}
    assert "stopped" in found["line"]
    (unfinished / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()} since x\n")
    assert "training" in parts(ask)["line"]
    for name in ("task.json", "environment.json", "metrics.jsonl", "ranks.jsonl"):
        shutil.copy(whole / name, unfinished)
    found = parts(ask)
    assert {"curves", "ranks"} <= set(found["sections"])
    assert found["figures"]["ranks"]["runs"][0]["last"] == 12
    _, _, headers = ask("/parts")
    assert ask("/parts", **{"If-None-Match": headers["ETag"]})[0] == 304
    (unfinished / "config.toml").rename(tmp_path / "away")  # as in the moment of an overwrite
    assert "cannot be read" in parts(ask)["line"]
    (tmp_path / "away").rename(unfinished / "config.toml")
    (unfinished / ".lock").unlink()
    assert "stopped" in parts(ask)["line"]
    finished = frozen(tmp_path, "adalora-ivon-snr")
    shutil.copytree(finished, unfinished, dirs_exist_ok=True)
    found = parts(ask)
    assert "finished" in found["line"]
    assert "scores" in found["sections"]


def test_a_sweep_gets_more_runs(served, tmp_path):
    write_shown(tmp_path, seed=1)
    ask = served(tmp_path)
    assert "comparison" not in parts(ask)["sections"]
    write_shown(tmp_path, seed=2)
    assert parts(ask)["heading"].startswith("2 runs of 1 method")


def test_nothing_is_written(served, unfinished):
    def state():
        return {p: p.stat().st_mtime_ns for p in (unfinished, *unfinished.rglob("*"))}

    before = state()
    ask = served(unfinished)
    parts(ask)
    ask("/")
    assert state() == before


def test_what_cannot_be_served(tmp_path, unfinished):
    with pytest.raises(UserError, match="no such directory"):
        make_server([tmp_path / "none"], "last", 0)
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(UserError, match="is taken"):
            make_server([unfinished], "last", taken.getsockname()[1])


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(unfinished, sent):
    command = [sys.executable, "-m", "bayeslora_cli", "report", "--live", str(unfinished)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        address = it.stdout.readline()
        assert address.startswith(f"http://{HOST}:")
        it.send_signal(sent)
        assert it.wait(20) == 0
        said = it.stderr.read()
        assert "Traceback" not in said
        assert said.endswith("ended\n")
