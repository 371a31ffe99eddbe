"""Which sockets the processes of a run listen on, and what README says of them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

README = Path(__file__).parent.parent.parent / "README.md"
HEADING = "## Who can reach a run"


@dataclass(frozen=True, order=True)
class Listening:
    """One socket."""

    process: str
    """Its command line, or what the process calls itself."""
    kind: str
    """tcp, udp or unix."""
    address: str
    """Of a TCP or UDP socket; the path of a Unix one (@ for an abstract one)."""


@dataclass(frozen=True)
class Row:
    """One of README's."""

    kind: str
    processes: tuple[str, ...]
    """Words of a process's command line."""
    address: str
    """On which interface (or, of a Unix socket, with which word in its path) it is on one machine."""

    def names(self, socket: Listening) -> bool:
        named = any(word in socket.process for word in self.processes)
        if self.kind != socket.kind or not named:
            return False
        return self.address in socket.address if self.kind == "unix" else self.address == socket.address


def read_rows() -> list[Row]:
    """The table under HEADING: kind | processes in backticks | purpose | address on one machine in backticks | ..."""
    _, section = README.read_text(encoding="utf-8").split(f"\n{HEADING}\n")
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("|")][2:]
    rows = []
    for line in lines:
        kind, processes, _, address, *_ = (cell.strip() for cell in line.strip("|").split(" | "))
        (where,) = re.findall(r"`([^`]+)`", address)
        rows.append(Row(kind, tuple(re.findall(r"`([^`]+)`", processes)), where))
    return rows


def list_sockets(processes: Iterable[psutil.Process]) -> list[Listening]:
    """What they listen on now; a process that ends meanwhile has none."""
    found = set()
    for process in processes:
        try:
            name = " ".join(process.cmdline()).strip()
            connections = process.net_connections(kind="all")
        except psutil.Error:
            continue
        listening_unix = _listening_unix(process.pid)
        for connection in connections:
            if connection.family.name == "AF_UNIX":
                if connection.laddr and connection.laddr in listening_unix:
                    found.add(Listening(name, "unix", connection.laddr))
            elif connection.status == psutil.CONN_LISTEN:
                # Ray's are IPv6 sockets bound to an IPv4 address.
                found.add(Listening(name, "tcp", connection.laddr.ip.removeprefix("::ffff:")))
            elif connection.type.name == "SOCK_DGRAM" and not connection.raddr:
                found.add(Listening(name, "udp", connection.laddr.ip))
    return sorted(found)


def _listening_unix(pid: int) -> set[str]:
    """Paths of Unix sockets that accept connections, of the process's network namespace (flag 0x10000)."""
    lines = Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
    rows = [line.split(maxsplit=7) for line in lines]
    return {row[7] for row in rows if len(row) == 8 and int(row[3], 16) & 0x10000}


def unnamed(sockets: Sequence[Listening], rows: Sequence[Row]) -> list[Listening]:
    """Those that no row names, or on another interface than it says."""
    return [socket for socket in sockets if not any(row.names(socket) for row in rows)]
