"""The Ray cluster to join: where its address comes from, and whether Ray answers there, found out with a limit.

Ray itself tries for minutes, through which no signal is heard, and then ends the process.
"""

import asyncio
import os
import re
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megarl.config.base import ConfigError

_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 45.0
_REMEDY = (
    "Start it with `ray start --head`, correct the address, or leave cluster.ray_address and RAY_ADDRESS unset: then "
    "the run starts Ray on this machine"
)


@dataclass(frozen=True, slots=True)
class RayAddress:
    """host:port, or "auto"."""

    text: str
    origin: str
    """The setting it comes from."""
    is_guarded: bool = False
    """Of a Ray that a keeper has started as runs do (`ray_token.guard_local_ray`): only this machine reaches it."""

    def __str__(self) -> str:
        return f'{self.origin} "{self.text}"'


def environment_address() -> str | None:
    """RAY_ADDRESS, where it names a cluster to join."""
    given = os.environ.get("RAY_ADDRESS")
    return None if given in ("", "local") else given


def find_address(configured: str | None) -> RayAddress | None:
    """cluster.ray_address, else RAY_ADDRESS, else None: Ray is to be started here. ConfigError for what is none."""
    text, origin = configured, "cluster.ray_address"
    given = environment_address()
    if not text or (text == "auto" and given):  # Ray, too, prefers it to looking itself
        text, origin = given, "RAY_ADDRESS (environment)"
    if not text or text == "local":
        return None
    if text != "auto" and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):\d{1,5}", text):
        raise ConfigError(f'{origin} "{text}": expected "auto" or host:port, the address of a Ray head. {_REMEDY}')
    return RayAddress(text, origin)


async def check_address(address: RayAddress) -> None:
    """Return when a Ray head answers; ConfigError within a minute when none does."""
    where = _read_current_cluster() if address.text == "auto" else address.text
    if where is not None:
        await _connect(address, where)
    await _ask_ray(address)


def _read_current_cluster() -> str | None:
    """What `ray start` wrote down; None where Ray has to look for its processes itself."""
    path = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip() or None
    return None


async def _connect(address: RayAddress, where: str) -> None:
    host, _, port = where.rpartition(":")
    try:
        opening = asyncio.open_connection(host.strip("[]"), int(port))
        _, writer = await asyncio.wait_for(opening, _CONNECT_TIMEOUT_S)
    except (OSError, ValueError, OverflowError, socket.gaierror) as error:
        reason = str(error) or f"no answer within {_CONNECT_TIMEOUT_S:g} s"
        seen = "" if where == address.text else f" ({where})"
        raise ConfigError(f"{address}{seen}: nothing answers there ({reason}). {_REMEDY}") from None
    writer.close()


async def _ask_ray(address: RayAddress) -> None:
    """By Ray's own `ray status`, in a process that can be ended: Ray cannot be told to stop trying."""
    arguments = [] if address.text == "auto" else ["--address", address.text]
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", *arguments]
    environment = os.environ | {"RAY_ADDRESS": ""} if address.text != "auto" else os.environ
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _ANSWER_TIMEOUT_S)
    except TimeoutError:
        raise ConfigError(
            f"{address}: something listens there, but no Ray head answered within {_ANSWER_TIMEOUT_S:g} s. {_REMEDY}"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
        raise ConfigError(f"{address}: Ray cannot be joined: {lines[-1] if lines else 'no reason given'}. {_REMEDY}")
