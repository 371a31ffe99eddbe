"""The scoring processes of a pool: idle ones are handed out, missing ones started, superfluous ones ended."""

import threading

from megarl.config.data import DataConfig
from megarl.config.reward import RewardConfig
from megarl.rewards.item import RewardError
from megarl.rewards.process import ScoringProcess


class Crew:
    """Starts `config.workers` processes and waits until they are ready; `close` ends them all.

    ConfigError or RewardError, with nothing left behind, when one does not start.
    """

    def __init__(self, config: RewardConfig, data: DataConfig) -> None:
        self._config, self._data = config, data
        self._lock = threading.Lock()
        self._closed = False
        self._all: list[ScoringProcess] = []
        self._idle: list[ScoringProcess] = []
        try:
            for _ in range(config.workers):
                self._all.append(ScoringProcess(config, data))
            for process in self._all:
                process.wait_ready()
        except BaseException:
            self.close()
            raise
        self._idle = list(self._all)

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that answer now."""
        with self._lock:
            return [process.pid for process in self._all]

    def take(self) -> ScoringProcess:
        """An idle process, else a new one, which is not yet ready. RewardError once closed."""
        with self._lock:
            if self._closed:
                raise RewardError("the reward pool is closed")
            if self._idle:
                return self._idle.pop()
            process = ScoringProcess(self._config, self._data)
            self._all.append(process)
            return process

    def give_back(self, process: ScoringProcess) -> None:
        """Its question is answered. Those over `workers` end; one whose answer ended it starts anew."""
        with self._lock:
            keep = not self._closed and len(self._all) <= self._config.workers
            if not keep:
                self._all.remove(process)
        if not keep:
            process.close()
            return
        process.restart()
        with self._lock:
            self._idle.append(process)

    def stop(self) -> None:
        """End all processes now; questions in progress return. No more are handed out."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.stop()

    def close(self) -> None:
        """`stop`, then reap and release; the asking threads must have returned."""
        self.stop()
        with self._lock:
            for process in self._all:
                process.close()
            self._all.clear()
