"""A process that writes a rank's part of each checkpoint out of the rank's staging memory.

It reads requests on stdin until that closes, and answers each on stdout. It ends when the rank does, by the kernel,
whatever it is busy with. See `writer_process` for the rank's end.
"""

import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from megarl.checkpoint.dist_writer import DistWriter
from megarl.checkpoint.staging import map_memory, view_staged
from megarl.checkpoint.writer_messages import Done, Failed, Reply, WriteRequest, reply_line
from megarl.telemetry.lifeline import be_first_to_die_of_memory, die_with_parent


def main(memory_fd: int, num_bytes: int, life_fd: int) -> None:
    """Serve until stdin closes. life_fd: the read end of a pipe that only the rank holds open."""
    die_with_parent(life_fd)
    be_first_to_die_of_memory()
    torch.set_num_threads(1)
    memory = map_memory(memory_fd, num_bytes)
    answers = os.dup(sys.stdout.fileno())
    # What a library prints must not mix with the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin.buffer:
        _send(answers, reply_line(_answer(WriteRequest.parse(line), memory)))


def _answer(request: WriteRequest, memory: torch.Tensor) -> Reply:
    try:
        with DistWriter(Path(request.directory), rank=request.rank) as writer:
            for piece in request.pieces:
                writer.write(piece.key, view_staged(memory, piece), shape=piece.shape, offsets=piece.offsets)
            return Done(asdict(writer.finish()))
    except OSError as error:
        return Failed(f"{error.filename or request.directory}: {error.strerror or error}")
    except Exception as error:
        traceback.print_exc()
        return Failed(f"{type(error).__name__}: {error}")


def _send(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
