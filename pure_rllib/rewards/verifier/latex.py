r"""Tokens of LaTeX and of what people write in its place.

An answer becomes a list of nodes; `{...}` is one node that holds others. Signs, fonts
and spaces that mean nothing are gone: `\left(`, `\dfrac`, `\,`, `＝`, `−` come out as
`(`, `\frac`, a space, `=`, `-`. What the nodes mean is for `read` to say.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pure_rllib.rewards.verifier.names import (
    FONTS,
    ITALIC,
    LAYOUT,
    SPACES,
    SYNONYMS,
    plain,
)

# Deeper or longer answers are left to Math-Verify: nobody writes them by hand.
MAX_DEPTH = 40
MAX_CHARS = 1000

Nodes = tuple["Node", ...]


class UnreadableError(ValueError):
    """The text is no answer of a kind that is read here."""


class BeyondError(UnreadableError):
    """The text may be mathematics, but more than is read here: sums, integrals."""


@dataclass(frozen=True, slots=True)
class Node:
    r"""One token.

    Attributes:
        kind: `number` (digits, point, exponent), `letter`, `word` (letters in a row),
            `text` (an upright word, as in `\text{cm}`), `command` (`\frac`), `sign`,
            `group` (`{...}`) or `rows` (a matrix or aligned lines).
        text: as written; a command's name has its backslash.
        parts: of a group its nodes in one tuple; of `rows` one tuple per cell.
        spaced: whether white space stands before it.
        upright: whether a letter was set upright.
        widths: of `rows`, how many cells each row has.
    """

    kind: str
    text: str
    parts: tuple[Nodes, ...] = ()
    spaced: bool = False
    upright: bool = False
    widths: tuple[int, ...] = ()

    def is_sign(self, signs: str) -> bool:
        """Says whether this is one of the signs, which are parted by spaces."""
        return self.kind in ("sign", "command") and self.text in signs.split()


_THOUSANDS = r"(?:(?:\s*\{\s*,\s*\}|,\s*\\!|\\[,;:! ])\s*\d{3}(?!\d))"
_COMMAS = r"(?:,\d{3}(?![\d]))"
_EXPONENT = r"(?:[eE][+-]?\d+(?![\dA-Za-z^_]|\.\d))?"
_TOKEN = re.compile(
    rf"(?P<number>(?:\d{{1,3}}{_THOUSANDS}+|\d{{1,3}}(?:\ \d{{3}}(?![\d]))+|\d+)"
    rf"(?:\.\d+|\.(?![.\d]))?{_EXPONENT}|\.\d+{_EXPONENT})"
    r"|(?P<command>\\(?:q?quad(?=[a-zA-Z])|[A-Za-z]+\*?|.))"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<foreign>[^\x00-\x7f]+)"
    r"|(?P<space>\s+|~)"
    r"|(?P<sign><=|>=|!=|=>|->|\*\*|==|\.\.\.|.)",
    re.DOTALL,
)
_WITH_COMMAS = re.compile(rf"(?<![\d.,])\d{{1,3}}{_COMMAS}+(?:\.\d+)?{_EXPONENT}")
_SIGNS = {
    "<=": r"\le", ">=": r"\ge", "!=": r"\ne", "**": "^", "==": "=", "...": r"\ldots",
    "=>": r"\Rightarrow", "->": r"\rightarrow",
}  # fmt: skip
_ENVIRONMENT = re.compile(r"\s*\{([a-zA-Z]+\*?)\}")
_ROW_SPACING = re.compile(r"\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm|in|mu|bp)\s*\]")
_COLUMNS = re.compile(r"\s*(?:\[[a-z]\]\s*)?\{[lcr|\s]*\}")


def tokens(text: str, *, join_thousands: bool = True) -> Nodes:
    r"""Reads a text's tokens.

    Args:
        text: an answer, LaTeX or plain.
        join_thousands: whether `1,234` outside of brackets is one number.

    Raises:
        BeyondError: the text is longer or deeper than what is read here.
        UnreadableError: braces or environments do not match.
    """
    if len(text) > MAX_CHARS:
        raise BeyondError(f"{len(text)} characters")
    reader = _Reader(plain(text), join_thousands)
    return tuple(_with_primes(reader.nodes(closing=None, depth=0)))


def _with_primes(nodes: Iterable[Node]) -> Iterator[Node]:
    r"""Writes `f^{\prime}` as `f'`."""
    raised: Node | None = None
    for node in nodes:
        primes = unwrap((node,))
        if raised and primes and all(n.is_sign(r"\prime '") for n in primes):
            yield from (Node("sign", "'") for _ in primes)
            raised = None
            continue
        if raised:
            yield raised
        raised = node if node.is_sign("^") else None
        if not raised:
            parts = tuple(tuple(_with_primes(part)) for part in node.parts)
            yield replace(node, parts=parts) if parts else node
    if raised:
        yield raised


class _Reader:
    """Walks once over a text. See `tokens`."""

    def __init__(self, text: str, join_thousands: bool):
        self.text, self.position = text, 0
        self.join_thousands, self.brackets = join_thousands, 0

    def nodes(self, closing: str | None, depth: int) -> list[Node]:
        """Reads up to a closing brace, or `&`, a row's or an environment's end."""
        if depth > MAX_DEPTH:
            raise BeyondError("braces in braces")
        found: list[Node] = []
        for kind, text, spaced in self._tokens():
            if text == "{":
                inner = tuple(self.nodes("}", depth + 1))
                found.append(Node("group", "", (inner,), spaced))
            elif text == "}":
                if closing != "}":
                    raise UnreadableError("a brace that nothing opened")
                return found
            elif closing == "row" and text in ("&", "\\\\", r"\end"):
                self.stop = text
                return found
            elif kind == "command":
                found += self._command(text[1:], spaced, depth)
            else:
                self.brackets += (text in "([") - (text in ")]")
                found.append(self._plain_node(kind, text, spaced))
        if closing is not None:
            raise UnreadableError("a brace or an environment that is not closed")
        return found

    def _tokens(self) -> Iterator[tuple[str, str, bool]]:
        spaced = False
        while self.position < len(self.text):
            match = None
            if self.join_thousands and self.brackets <= 0:
                match = _WITH_COMMAS.match(self.text, self.position)
            kind = "number"
            if match is None:
                match = _TOKEN.match(self.text, self.position)
                assert match is not None and match.lastgroup is not None
                kind = match.lastgroup
            self.position = match.end()
            text = match[0]
            name = text[1:] if kind == "command" else ""
            if kind == "space" or name in SPACES:
                spaced = True
            elif name not in LAYOUT or not name:
                yield kind, text, spaced
                spaced = False
            elif name in ("left", "right") and self._next_is_point():
                # `\left.` is an empty bracket.
                self.position = self.text.index(".", self.position) + 1

    def _next_is_point(self) -> bool:
        return self.text[self.position :].lstrip()[:1] == "."

    def _plain_node(self, kind: str, text: str, spaced: bool) -> Node:
        if kind == "number":
            return Node("number", re.sub(r"[{},\s!;:\\]", "", text), (), spaced)
        if kind == "word":
            return Node("letter" if len(text) == 1 else "word", text, (), spaced)
        if kind == "foreign":
            return Node("text", text, (), spaced)
        return _sign(_SIGNS.get(text, text), spaced)

    def _command(self, name: str, spaced: bool, depth: int) -> list[Node]:
        name = SYNONYMS.get(name, name)
        if name in FONTS:
            return self._font(name, spaced, depth)
        if name == "begin":
            return [self._environment(spaced, depth)]
        if name in ("mathbb", "Bbb", "mathds"):
            match = re.compile(r"\s*\{?\s*([A-Z])\s*\}?").match(
                self.text, self.position
            )
            if match is None:
                raise UnreadableError("a letter is missing")
            self.position = match.end()
            return [Node("command", f"\\mathbb{match[1]}", (), spaced)]
        if name in ("phantom", "hspace", "vspace", "label", "tag"):
            self._group(depth)
            return []
        if name in ("degree", "degrees"):
            return [Node("sign", "^", (), spaced), Node("command", r"\circ")]
        if name in ("{", "}"):
            self.brackets += 1 if name == "{" else -1
        if len(name) == 1:
            if name == "i":
                return [Node("letter", "i", (), spaced)]
            escaped = {"{": r"\{", "}": r"\}", "\\": r"\\"}
            return [_sign(escaped.get(name, name), spaced)]
        return [Node("command", f"\\{name}", (), spaced)]

    def _group(self, depth: int) -> str | None:
        """Takes a following `{...}` as it stands, or None."""
        start = self.position
        match = re.compile(r"\s*\{").match(self.text, start)
        if match is None:
            return None
        level, position = 1, match.end()
        while level and position < len(self.text):
            char = self.text[position]
            level += (char == "{") - (char == "}")
            position += 1
        if level:
            raise UnreadableError("a brace that is not closed")
        self.position = position
        return self.text[match.end() : position - 1]

    def _font(self, name: str, spaced: bool, depth: int) -> list[Node]:
        r"""Reads `\text{...}` and its like: words are text, the rest is mathematics."""
        content = self._group(depth)
        if content is None:
            return []
        bare = re.sub(r"\\(?![A-Za-z])[,;: !]?|~", " ", content)
        wordy = re.search(r"[A-Za-z]{2}|[^\x00-\x7f]", bare) is not None
        if wordy and "\\" not in bare and name not in ("underline", "mathcal"):
            lead = spaced or bare[:1].isspace()
            return [Node("text", " ".join(bare.split()), (), lead)]
        inner = _Reader(content, self.join_thousands).nodes(None, depth + 1)
        upright = name not in ITALIC
        spaced = spaced or content[:1].isspace()
        return [
            Node(n.kind, n.text, n.parts, n.spaced or (spaced and i == 0), upright)
            for i, n in enumerate(inner)
        ]

    def _environment(self, spaced: bool, depth: int) -> Node:
        match = _ENVIRONMENT.match(self.text, self.position)
        if match is None:
            raise UnreadableError("an environment without a name")
        self.position = match.end()
        name = match[1].rstrip("*")
        if name in ("array", "tabular"):
            columns = _COLUMNS.match(self.text, self.position)
            self.position = columns.end() if columns else self.position
        cells: list[Nodes] = []
        widths = [0]
        while True:
            cells.append(tuple(self.nodes("row", depth + 1)))
            widths[-1] += 1
            if self.stop == "\\\\":
                # `\\[3pt]` moves the next row; `\\[3]` begins one with a bracket.
                spacing = _ROW_SPACING.match(self.text, self.position)
                self.position = spacing.end() if spacing else self.position
                widths.append(0)
            elif self.stop == r"\end":
                ending = _ENVIRONMENT.match(self.text, self.position)
                if ending is None or ending[1] != match[1]:
                    raise UnreadableError("environments that do not match")
                self.position = ending.end()
                break
        if widths[-1] == 1 and not cells[-1] and len(widths) > 1:
            # The last row ended with `\\`.
            cells.pop()
            widths.pop()
        return Node("rows", name, tuple(cells), spaced, False, tuple(widths))


def _sign(text: str, spaced: bool) -> Node:
    kind = "command" if len(text) > 1 and text[1:].isalpha() else "sign"
    return Node(kind, text, (), spaced)


def unwrap(nodes: Nodes) -> Nodes:
    """Takes off braces around the whole."""
    while len(nodes) == 1 and nodes[0].kind == "group":
        nodes = nodes[0].parts[0]
    return nodes


def written(nodes: Nodes) -> str:
    """Writes nodes in one way: equal texts are the same signs."""
    parts = []
    for node in nodes:
        if node.kind == "group":
            inner = written(node.parts[0])
            parts.append(inner if len(node.parts[0]) == 1 else f"{{{inner}}}")
        elif node.kind == "rows":
            cells = ",".join(written(cell) for cell in node.parts)
            parts.append(f"[{node.widths}:{cells}]")
        else:
            parts.append(node.text)
    return " ".join(parts)
