"""Which rows state the same problem: equal messages, role by role and text by text."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping


class Copies:
    """Problems in order of first appearance, and those whose rows do not agree on the answer."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._answers = array("q")
        self.differing: dict[int, str] = {}
        """By the number of the problem: where the first other answer stands."""

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, key: bytes, answer: str, *, place: Callable[[], str]) -> int:
        """Count in a row; the number of its problem, which counts from 0."""
        number = self._numbers.setdefault(key, len(self._numbers))
        known = hash(answer)
        if number == len(self._answers):
            self._answers.append(known)
        elif self._answers[number] != known and number not in self.differing:
            self.differing[number] = place()
        return number


def problem_key(messages: Iterable[Mapping[str, str]]) -> bytes:
    """16 bytes that tell problems apart. UnicodeEncodeError for text that is none (half a surrogate pair)."""
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        for part in (message["role"], message["content"]):
            data = part.encode("utf-8")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.digest()
