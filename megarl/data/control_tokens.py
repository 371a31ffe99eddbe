"""Control tokens spelled out in ordinary text, where the tokenizer would read them as such.

`<|im_end|>` in a question ends the user's turn in the middle of it; in a solution it teaches the model to stop there.
"""

import re
from typing import Any

_BRACKETED = re.compile(r"<[|｜].+[|｜]>")  # DeepSeek writes them with a full-width bar


class ControlTokens:
    """A tokenizer's control tokens: those it marks special, and added ones written <|...|>.

    Other added tokens (<think>, runs of spaces) are text that has a token of its own.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder
        self.names: dict[int, str] = {
            token: str(entry.content)
            for token, entry in added.items()
            if entry.special or token in tokenizer.all_special_ids or _BRACKETED.fullmatch(entry.content)
        }
        """Text of each control token, by id."""
        self._tokenizer = tokenizer
        # A token that is matched after normalisation may be spelled in other letters; then every text is tokenised.
        self._normalized = any(added[token].normalized for token in self.names)
        self._spelled = re.compile("|".join(map(re.escape, self.names.values()))) if self.names else None

    def find(self, text: str) -> tuple[str, ...]:
        """The control tokens that tokenising `text` gives, each once, in order."""
        if self._spelled is None or not (self._normalized or self._spelled.search(text)):
            return ()
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple(dict.fromkeys(self.names[token] for token in ids if token in self.names))
