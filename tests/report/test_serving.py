"""One page on 127.0.0.1: who gets it, who does not, and that nobody waits for the next."""

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from megarl.report.serving import ADDRESS, LivePage, PortTakenError, add_watching, serving
from megarl.report.templates import render_template

PAGE = b"<!doctype html><title>t</title><body><main>one</main></body>"


@pytest.fixture
def live() -> LivePage:
    page = LivePage()
    page.put(PAGE)
    return page


@pytest.fixture
def port(live: LivePage) -> Iterator[int]:
    with serving(live, port=0) as found:
        yield found


def ask(
    port: int, *, method: str = "GET", path: str = "/", **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def test_the_page_with_what_follows_it(port: int) -> None:
    status, body, headers = ask(port)
    assert status == 200
    assert body.startswith(PAGE[:-7])
    assert b"location.reload()" in body
    assert body.endswith(b"</body>")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Length"] == str(len(body))
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["ETag"].strip('"').encode() in body


def test_who_has_the_page_is_told_when_there_is_another(live: LivePage, port: int) -> None:
    tag = ask(port)[2]["ETag"]
    status, body, _ = ask(port, If_None_Match=tag)
    assert (status, body) == (304, b"")
    live.put(PAGE)
    assert ask(port, If_None_Match=tag)[0] == 304
    live.put(PAGE.replace(b"one", b"two"))
    status, body, headers = ask(port, If_None_Match=tag)
    assert status == 200
    assert b"<main>two</main>" in body
    assert headers["ETag"] != tag


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:9000", "127.0.0.1:65535"])
def test_names_of_this_machine_are_taken(port: int, host: str) -> None:
    assert ask(port, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "localhost.evil", "", "127.0.0.1@evil", "0.0.0.0"],
)
def test_other_hosts_are_refused(port: int, host: str) -> None:
    status, body, _ = ask(port, Host=host)
    assert status == 403
    assert b"one" not in body.replace(b"alone", b"")


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET http://localhost/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_a_host_that_is_not_said_once_is_refused(port: int, request_text: bytes) -> None:
    with socket.create_connection((ADDRESS, port), timeout=10) as client:
        client.sendall(request_text)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"<main>" not in answer
    assert answer.split(b" ", 2)[1:2] in ([b"403"], [b"400"]) or b"Bad request" in answer


@pytest.mark.parametrize("path", ["/state.json", "/../etc/passwd", "/?a", "/index.html", "http://localhost/"])
def test_there_is_one_page(port: int, path: str) -> None:
    assert ask(port, path=path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS", "INVENTED"])
def test_only_get(port: int, method: str) -> None:
    status, body, headers = ask(port, method=method)
    assert status == 405
    assert headers["Allow"] == "GET"
    assert b"<main>" not in body


def test_only_this_machine_can_connect(live: LivePage) -> None:
    with serving(live, port=0) as port:
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        addresses = [line.split()[1] for line in listening if line.split()[3] == "0A"]
        assert f"0100007F:{port:04X}" in addresses
        assert f"00000000:{port:04X}" not in addresses


def test_a_port_that_is_taken_is_said(live: LivePage, port: int) -> None:
    with pytest.raises(PortTakenError, match=f"port {port} of 127.0.0.1 is in use"), serving(live, port=port):
        pass


def test_it_ends_with_its_block(live: LivePage) -> None:
    with serving(live, port=0) as port:
        pass
    with pytest.raises(ConnectionRefusedError):
        ask(port)
    assert "megarl-page" not in [thread.name for thread in threading.enumerate()]
    with serving(live, port=port):  # at once again
        assert ask(port)[0] == 200


def test_a_client_that_says_nothing_stops_nobody(port: int) -> None:
    with socket.create_connection((ADDRESS, port), timeout=10):
        assert ask(port)[0] == 200


def test_before_the_first_page_it_says_so() -> None:
    with serving(LivePage(), port=0) as port:
        status, body, _ = ask(port)
    assert status == 200
    assert b"The page is being built." in body
    assert b"location.reload()" in body


def test_the_policy_of_megarls_pages_lets_the_asking_through() -> None:
    html = render_template("page.html").encode()
    served = add_watching(html, tag="t")
    if b"Content-Security-Policy" in html:
        assert html.count(b"connect-src") == 0
        assert served.count(b"; connect-src 'self'\">") == 1
    assert served.rindex(b"<script data-tag='t'>") < served.rindex(b"</body>")
