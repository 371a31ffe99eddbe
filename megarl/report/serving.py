"""One page, served on this machine alone while it changes: GET of / and nothing else, on 127.0.0.1.

A request never waits for a page to be built: it gets the last one. The page asks every few seconds whether there is
another (by its entity tag) and then loads it, at the place and with the choices of the one before (templates/watch.js).

Only names of this machine are taken for a host: a page of another site, whose name its owner lets point to 127.0.0.1
(DNS rebinding), reads nothing.
"""

import errno
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

ADDRESS = "127.0.0.1"
_HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
"""With any port: a tunnel may end at another one."""
_CLIENT_TIMEOUT_S = 30.0
_POLICY = re.compile(rb"(<meta http-equiv=(['\"])Content-Security-Policy\2\s+content=(['\"])[^>]*?)(\3>)")
_ICON = b"<link rel='icon' href='data:,'>"
"""None: a browser would ask for /favicon.ico."""


class PortTakenError(Exception):
    """Something else listens there."""


class LivePage:
    """The page as it was built last. For one who builds and any number who read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.put(waiting_page("The page is being built."))

    def put(self, html: bytes) -> None:
        """Another page; what follows new ones is put into it."""
        tag = hashlib.sha256(html).hexdigest()[:32]
        served = add_watching(html, tag=tag)
        with self._lock:
            self._page = served, f'"{tag}"'

    def get(self) -> tuple[bytes, str]:
        """(what is served, its entity tag)."""
        with self._lock:
            return self._page


@contextmanager
def serving(page: LivePage, *, port: int) -> Iterator[int]:
    """Serve the page while the block runs; yields the port. port: 0 takes any free one.

    Raises PortTakenError, and OSError where the port may not be used for another reason.
    """
    try:
        server = _Server(page, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortTakenError(f"port {port} of {ADDRESS} is in use") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="megarl-page", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, page: LivePage, port: int) -> None:
        self.page = page
        super().__init__((ADDRESS, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that goes away in the middle is nobody's error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or _HOSTS.fullmatch(hosts[0].strip()) is None:
            self._say(HTTPStatus.FORBIDDEN, "This page is for this machine alone: open it as localhost or 127.0.0.1.")
        elif self.path != "/":
            self._say(HTTPStatus.NOT_FOUND, "There is one page, /.")
        else:
            self._send_page()

    def __getattr__(self, name: str) -> Any:
        """Every other method, also one that nobody has thought of."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET.", Allow="GET")

    def _send_page(self) -> None:
        body, tag = self.server.page.get()
        if tag in self.headers.get("If-None-Match", ""):
            self._begin(HTTPStatus.NOT_MODIFIED, ETag=tag)
            return
        self._begin(HTTPStatus.OK, ETag=tag, **{"Content-Type": "text/html; charset=utf-8"}, length=len(body))
        self.wfile.write(body)

    def _say(self, status: HTTPStatus, text: str, **headers: str) -> None:
        body = (text + "\n").encode()
        self._begin(status, **headers, **{"Content-Type": "text/plain; charset=utf-8"}, length=len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: HTTPStatus, *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {
            "Cache-Control": "no-cache",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            **headers,
        }.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def version_string(self) -> str:
        return "megarl"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a page that asks every few seconds would fill the terminal."""


def add_watching(html: bytes, *, tag: str) -> bytes:
    """The page with the script that follows new ones, of other tags. Its own policy forbids every request; this one is
    let through."""
    code = (files("megarl.report") / "templates" / "watch.js").read_bytes()
    script = b"<script data-tag='%s'>\n%s</script>\n" % (tag.encode(), code)
    html = _POLICY.sub(rb"\1; connect-src 'self'\4", html, count=1).replace(b"</head>", _ICON + b"</head>", 1)
    at = html.rfind(b"</body>")
    return html[:at] + script + html[at:] if at >= 0 else html + script


def waiting_page(text: str) -> bytes:
    """What is served before the first page is built; text: why there is none."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='color-scheme' content='light dark'>"
        f"<title>megarl report</title></head><body><p role='status'>{escaped}</p></body></html>"
    ).encode()
