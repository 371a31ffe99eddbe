r"""Where a response states its answer. Pure.

In this order: the last \boxed{}; what the last "answer is ...", "Answer: ..." or "#### ..." says; else nothing is
stated and the verifier looks for the last expression itself. Thoughts hold no answer, markdown is not part of one.
"""

import re
from dataclasses import dataclass

from megarl.rewards.number_text import plain_characters

_THOUGHT = re.compile(r"<(/?)(?:think|thinking|thoughts?|reasoning)>|\[(/?)THINK\]", re.IGNORECASE)
# MATH's solutions also write \boxed 7, which ends with the word; a mere mention of \boxed is none.
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|[ ]+(?=[-+]?\.?\d|[-+]?\\(?:[dt]?frac|sqrt|pi)\b))")
_BARE_BOX = re.compile(r"(?:(?!\\[)\]])[^\s$])+")
_OR = re.compile(r"[\s$,]*(?:or|\\text\s*\{\s*or\s*\})[\s$]*", re.IGNORECASE)
_TAG = re.compile(r"</?answer>|<\|?(?:begin|end)_of_solution\|?>", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n`]*$", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+(?=[^\d\s#])", re.MULTILINE)  # "#### 34" is GSM8K's answer, no heading
_QUOTE = re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE)
# Emphasis opens after no word, digit or bracket, so that 2**3 and 2*3*4 stay; the text inside touches the
# signs, and is no longer than that a search for its end is cheap.
_EMPHASIS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![\w)\]}^*])\*\*\*(?=[^\s*])([^\n]{1,400}?)(?<=[^\s*])\*\*\*(?!\*)",
        r"(?<![\w)\]}^*])\*\*(?=[^\s*])([^\n]{1,400}?)(?<=[^\s*])\*\*(?!\*)",
        r"(?<![\w)\]}^*\\])\*(?=[^\s*])([^*\n]{1,400}?)(?<=[^\s*])\*(?![\w*(])",
        r"(?<![\w)\]}\\_])__(?=[^\s_{])([^\n]{1,400}?)(?<=[^\s_])__(?![\w{])",
        r"(?<![\w)\]}\\_])_(?=[^\s_{])([^_\n]{1,400}?)(?<=[^\s_])_(?![\w{])",
        r"(?<!`)`{1,2}(?!`)([^`\n]{1,400}?)`{1,2}(?!`)",
        r"~~([^~\n]{1,400}?)~~",
    )
)
_MARKED = re.compile(r"^[ \t]*####[ \t]*(?!\d+[.)][ \t]+[A-Za-z])(?=\S*\d|\\|\$)", re.MULTILINE)
_ANNOUNCED = re.compile(
    r"(?:\b(?:answers?|ans)\b(?:[ ]+(?:to|for|of|in)\b[^.\n:=]{0,60}?)?(?:[ ]+\([^()\n]{0,30}\))?\s*"
    r"(?:(?:is|are|was|would be|will be|must be|should be|equals)\b(?!\s+not\b)"
    r"(?:[ ]+(?:therefore|thus|then|simply|just|clearly|indeed|now|equal to|given by))*[ ]*[:=]?|[:=])"
    r"|答案[ ]*(?:是|为|:|=)+[ ]*:?)",
    re.IGNORECASE,
)
_ALONE = re.compile(r"^[ \t]*(?:the[ ]+)?(?:final[ ]+)?answer[ \t]*[:.]?[ \t]*$", re.IGNORECASE | re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[^\s.])[.!?](?=\s|$)(?!\s*\d)")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a response says its answer is."""

    text: str
    boxed: bool
    """From a \\boxed{}: LaTeX; else the rest of a line of prose."""


def read_visible(response: str, *, thinking: bool = False) -> str:
    """The response without thoughts and markdown, in plain characters.

    A thought that is never closed swallows the rest; one that is closed but never opened, all before. `thinking`: the
    prompt ended inside a thought.
    """
    text = plain_characters(_drop_thoughts(response, inside=thinking)).replace("\r\n", "\n")
    return _drop_markdown(text)


def ends_in_thought(prompt_text: str) -> bool:
    """Whether a prompt's last words open a thought, as some chat templates do."""
    last = None
    for last in _THOUGHT.finditer(prompt_text[-64:]):  # noqa: B007  (the last one counts)
        pass
    return last is not None and not (last[1] or last[2]) and not prompt_text[-64:][last.end() :].strip()


def find_answer(visible: str) -> Answer | None:
    """The stated answer of `read_visible`'s text; None where none is stated. An empty or unclosed last box states
    nothing readable: its text is ""."""
    boxed = _last_box(visible)
    if boxed is not None:
        return Answer(boxed, boxed=True)
    ends = [found.end() for pattern in (_MARKED, _ANNOUNCED, _ALONE) for found in pattern.finditer(visible)]
    if not ends:
        return None
    text = _rest_of_statement(visible[max(ends) :])
    return Answer(text, boxed=False) if text else None


def extract_answer(pattern: re.Pattern[str] | None, response: str) -> str | None:
    """The last match's first group, stripped; the whole response, stripped, without a pattern; None without a match."""
    if pattern is None:
        return response.strip()
    last = None
    for last in pattern.finditer(response):  # noqa: B007  (the last one counts)
        pass
    return last.group(1).strip() if last is not None and last.group(1) is not None else None


def drop_thoughts(response: str, *, thinking: bool = False) -> str:
    """The response outside its thoughts, otherwise as it is; `thinking` as in `read_visible`."""
    return _drop_thoughts(response, inside=thinking)


def _drop_thoughts(response: str, *, inside: bool) -> str:
    kept: list[str] = []
    at = 0
    for tag in _THOUGHT.finditer(response):
        if tag[1] or tag[2]:  # closing
            if not inside:
                kept.clear()
            inside = False
        elif not inside:
            kept.append(response[at : tag.start()])
            inside = True
        at = tag.end()
    if not inside:
        kept.append(response[at:])
    return "".join(kept)


def _drop_markdown(text: str) -> str:
    for pattern in (_FENCE, _TAG, _QUOTE, _HEADING):
        text = pattern.sub("\n" if pattern is _TAG else "", text)
    for pattern in _EMPHASIS:
        text = pattern.sub(r"\1", text)
    return text


def _last_box(text: str) -> str | None:
    """Content of the last box; "" where it is empty or never closed; None without a box. Boxes that "or" joins hold one
    answer of several parts."""
    starts = [found.span() for found in _BOX.finditer(text)]
    if not starts:
        return None
    content, _ = _box_content(text, starts[-1][1])
    for (_, inside), (following, _) in zip(reversed(starts[:-1]), reversed(starts[1:]), strict=True):
        before, end = _box_content(text, inside)
        if not content or _OR.fullmatch(text, end, following) is None:
            break
        content = f"{before}, {content}"
    return content


def _box_content(text: str, start: int) -> tuple[str, int]:
    """From behind the opening brace to the one that closes it, or without braces the next word; and where that ends."""
    if text[start - 1] != "{":
        word = _BARE_BOX.match(text, start)
        return (word[0], word.end()) if word else ("", start)
    depth = 1
    for at in range(start, len(text)):
        if text[at] in "{}" and text[at - 1] != "\\":
            depth += 1 if text[at] == "{" else -1
            if not depth:
                return text[start:at].strip(), at + 1
    return "", len(text)


def _rest_of_statement(tail: str) -> str:
    """Up to the end of the sentence or line; where the line says nothing, the next one that does. Display math spans
    lines."""
    tail = tail.lstrip(" \t\n:*")
    for opening, closing in (("$$", "$$"), (r"\[", r"\]")):
        if tail.startswith(opening) and closing in tail[2:]:
            return tail[2 : tail.index(closing, 2)].strip()
    line = tail.partition("\n")[0]
    end = _SENTENCE_END.search(line)
    return (line[: end.start()] if end else line).strip()
