"""Walking over nodes as TeX does: by tokens, arguments and brackets."""

from pure_rllib.rewards.verifier.latex import (
    Node,
    Nodes,
    UnreadableError,
    unwrap,
    written,
)

CLOSING = {
    "(": ")", "[": "]", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil",
}  # fmt: skip


class Cursor:
    """A place among nodes."""

    def __init__(self, nodes: Nodes):
        self.nodes, self.position = nodes, 0

    def peek(self, ahead: int = 0) -> Node | None:
        """Returns the next node, or one further on; None behind the end."""
        at = self.position + ahead
        return self.nodes[at] if at < len(self.nodes) else None

    def next_is(self, signs: str) -> bool:
        """Says whether the next node is one of the signs."""
        node = self.peek()
        return node is not None and node.is_sign(signs)

    def take(self) -> Node:
        """Returns the next node and steps over it."""
        node = self.peek()
        if node is None:
            raise UnreadableError("the formula ends too early")
        self.position += 1
        return node

    def argument(self, signed: bool = False) -> Nodes:
        """Takes what TeX takes as one argument: a group or one token."""
        node = self.take()
        if node.kind == "group":
            return node.parts[0]
        if signed and node.is_sign("+ -"):
            return (node, *self.argument())
        if node.is_sign("( [") and signed:
            return (node, *self.enclosed(node.text), Node("sign", CLOSING[node.text]))
        if node.text in (r"\sqrt", r"\frac", r"\binom"):
            count = 1 if node.text == r"\sqrt" else 2
            start = self.position - 1
            if self.next_is("["):
                self.enclosed(self.take().text)
            for _ in range(count):
                self.argument()
            return self.nodes[start : self.position]
        is_digits = node.kind == "number" and node.text.isdigit()
        if not signed and (node.kind == "word" or is_digits):
            # `\frac xy`, `\frac 12`: one sign each.
            kind = "number" if is_digits else "letter"
            signs = tuple(Node(kind, char) for char in node.text)
            rest = self.nodes[self.position :]
            self.nodes = (*self.nodes[: self.position - 1], *signs, *rest)
            return signs[:1]
        if node.kind == "word":
            rest_of_word = Node(
                "word" if len(node.text) > 2 else "letter", node.text[1:]
            )
            rest = (rest_of_word, *self.nodes[self.position :])
            self.nodes = (*self.nodes[: self.position], *rest)
            return (Node("letter", node.text[0]),)
        return (node,)

    def enclosed(self, opening: str) -> Nodes:
        """Takes what stands up to the closing bracket, and the bracket."""
        closing, level, start = CLOSING[opening], 0, self.position
        while True:
            node = self.take()
            if node.text == closing and level == 0:
                return self.nodes[start : self.position - 1]
            if opening != "|":
                level += (node.text == opening) - (node.text == closing)

    def subscript(self) -> str:
        """Takes a subscript, written as part of a name; "" where there is none."""
        if not self.next_is("_"):
            return ""
        self.take()
        node = self.peek()
        if node is not None and node.kind == "number":
            return "_" + self.take().text
        return "_" + written(unwrap(self.argument())).replace(" ", "")
