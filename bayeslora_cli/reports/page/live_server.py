"""Serves the page of runs that may still be training, to this machine only, read-only.

The page fetches its parts anew every few seconds; what has not changed on the disk costs nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import BayesloraError, UserError
from bayeslora_cli.reports.page.html import Html, element, finite, join, script_json
from bayeslora_cli.reports.page.page import content, document, own_text, plotly_script, sections
from bayeslora_cli.reports.page.records import RUNNING, RunRecord, load_records
from bayeslora_cli.reports.page.sections.summary import lead, title
from bayeslora_cli.runs.directory import RunDir, runs_below

logger = logging.getLogger("bayeslora")

HOST = "127.0.0.1"
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class LivePage:
    """The page's parts, made anew when the runs' files have changed; safe for several threads."""

    def __init__(self, paths: Sequence[Path], at: str) -> None:
        self.paths, self.at = paths, at
        self._lock = threading.Lock()
        self._signature: object = None
        self._parts: dict[str, Any] = {}

    def parts(self) -> dict[str, Any]:
        """Return {"heading", "line", "sections": {anchor: HTML}, "figures"}.

        While a run's files cannot be read, such as in the moment of an overwrite, the parts are
        those of before, and `line` tells the error.

        Raises:
            UserError: nothing could be read at all yet.
        """
        with self._lock:
            signature = _signature(self.paths)
            if signature == self._signature and self._parts:
                return self._parts
            try:
                self._parts = self._made()
                self._signature = signature
            except BayesloraError as error:
                if not self._parts:
                    raise
                self._parts = {**self._parts, "line": _line(f"cannot be read: {error}")}
                self._signature = None
            return self._parts

    def _made(self) -> dict[str, Any]:
        records, results = load_records(self.paths, self.at)
        bodies, figures = content(sections(records, results))
        return {
            "heading": title(records),
            "line": join([lead(records), _line(_state(records))]),
            "sections": bodies,
            "figures": finite(figures),
        }


def _signature(paths: Sequence[Path]) -> object:
    """Return what changes when a file of the runs changes."""
    runs = [run for path in paths for run in _runs(path)]
    found = []
    for run in runs:
        for path in (run.config, run.task, run.environment, run.metrics, run.ranks_history,
                     run.ranks, run.result, run.lock):  # fmt: skip
            try:
                known = path.stat()
            except OSError:
                found.append((str(path), 0, 0))
            else:
                found.append((str(path), known.st_mtime_ns, known.st_size))
        # a killed process leaves its lock file as it was
        from bayeslora_cli.runs.file_lock import holder

        found.append((str(run.path), int(holder(run.lock) is not None), 0))
    return tuple(found)


def _runs(path: Path) -> list[RunDir]:
    return [RunDir(path)] if RunDir(path).started else list(runs_below(path))


def _state(records: Sequence[RunRecord]) -> str:
    running = sum(r.state == RUNNING for r in records)
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    if running:
        return f"training; the files are as of {now}"
    states = ", ".join(dict.fromkeys(r.state for r in records))
    return f"{states}; nothing is training, as of {now}"


def _line(text: str) -> Html:
    return element("p", element("span", text, class_="live"), class_="made")


def first_page(parts: dict[str, Any]) -> str:
    """Return the page that a browser opens; it fetches the later states itself."""
    scripts = [element("script", src=f"/{name}") for name in ("plotly.js", "page.js")]
    return document(
        parts["heading"],
        parts["sections"],
        element("div", parts["line"], id="line", role="status"),
        head=element("meta", name="robots", content="noindex"),
        end=join([script_json(parts["figures"], "figures"), *scripts]),
        live=True,
    )


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; every other method is refused by the base class."""

    server: _Server
    server_version, sys_version = "bayeslora", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answer with the page, its parts as JSON, or a script."""
        name = self.headers.get("Host", "")
        if name not in self.server.names:  # a page from elsewhere that has its name point here
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers to localhost only")
            return
        try:
            made = self._body()
        except BayesloraError as error:
            text = str(error).encode("utf-8", "backslashreplace")
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", text)
            return
        if made is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found")
        else:
            self._send(HTTPStatus.OK, *made)

    do_HEAD = do_GET

    def _body(self) -> tuple[str, bytes] | None:
        path = self.path.partition("?")[0]
        if path == "/":
            return "text/html", first_page(self.server.live.parts()).encode()
        if path == "/parts":
            return "application/json", json.dumps(self.server.live.parts()).encode()
        if path == "/plotly.js":
            return "text/javascript", plotly_script().encode()
        if path == "/page.js":
            return "text/javascript", own_text("page.js").encode()
        return None

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        same = status is HTTPStatus.OK and self.headers.get("If-None-Match") == tag
        self.send_response(HTTPStatus.NOT_MODIFIED if same else status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("ETag", tag)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", "0" if same else str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and not same:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing of the requests."""


class _Server(ThreadingHTTPServer):
    """The server; its threads end with the process."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, port: int, live: LivePage) -> None:
        super().__init__((HOST, port), _Handler)
        self.live = live
        at = self.server_address[1]
        self.names = {f"{host}:{at}" for host in (HOST, "localhost")}
        if at == 80:
            self.names |= {HOST, "localhost"}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away; report everything else."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            logger.exception("a request failed")


def make_server(paths: Sequence[Path], at: str, port: int) -> _Server:
    """Return a server that is bound but does not serve yet.

    Raises:
        UserError: there is no run at the paths, or the port cannot be had.
    """
    live = LivePage(paths, at)
    live.parts()
    try:
        return _Server(port, live)
    except OSError as error:
        taken = {errno.EADDRINUSE: "is taken", errno.EACCES: "needs more rights"}
        why = taken.get(error.errno or 0, str(error.strerror))
        raise UserError(f"--port {port}: {why}; leave it out for a free one") from error


def serve(paths: Sequence[Path], at: str, port: int, started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        started: called with the page's address once it answers.
    Raises:
        UserError: raised by `make_server`.
    """
    with make_server(paths, at, port) as server, suppress(KeyboardInterrupt), _as_ctrl_c():
        started(f"http://{HOST}:{server.server_address[1]}/")
        server.serve_forever()
    logger.info("ended")


@contextmanager
def _as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
