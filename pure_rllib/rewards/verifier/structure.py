r"""The outline of an answer: what stands outside of all brackets, and `\\pm`."""

from pure_rllib.rewards.verifier.latex import Node, Nodes, UnreadableError

_OPENING = r"( [ \{ \langle \lfloor \lceil"
_CLOSING = r") ] \} \rangle \rfloor \rceil"
_MAX_SIGNS = 4
_JOINING = {"and", "or"}


def split(nodes: Nodes, separators: str) -> list[Nodes]:
    """Splits nodes at signs that stand outside of all brackets."""
    parts: list[Nodes] = []
    start = level = 0
    for at, node in enumerate(nodes):
        level += node.is_sign(_OPENING)
        level -= node.is_sign(_CLOSING)
        if level <= 0 and node.is_sign(separators):
            parts.append(nodes[start:at])
            start = at + 1
    parts.append(nodes[start:])
    return parts


def outer(nodes: Nodes) -> Nodes:
    """Returns the nodes outside of all brackets, brackets included."""
    level, found = 0, []
    for node in nodes:
        level -= node.is_sign(_CLOSING)
        if level <= 0:
            found.append(node)
        level += node.is_sign(_OPENING)
    return tuple(found)


def list_items(nodes: Nodes) -> tuple[list[Nodes], bool]:
    """Splits a bare list, and says whether an "or" joins it."""
    items: list[Nodes] = []
    start = level = 0
    alternative = False
    for at, node in enumerate(nodes):
        level += node.is_sign(_OPENING) - node.is_sign(_CLOSING)
        joining = node.kind in ("word", "text") and node.text.lower() in _JOINING
        if level == 0 and (joining or node.is_sign(r", ; \wedge \vee")):
            alternative |= node.text.lower() in ("or", r"\vee")
            items.append(nodes[start:at])
            start = at + 1
    items.append(nodes[start:])
    return [item for item in items if item], alternative


def signed_variants(nodes: Nodes) -> list[Nodes]:
    r"""Writes `\pm` and `\mp` out: all with plus, all with minus, or in any mixture."""
    count = _count_signs(nodes)
    if count == 0:
        return [nodes]
    if count > _MAX_SIGNS:
        raise UnreadableError("too many signs that are open")
    if _count_signs(nodes, r"\mp"):
        choices = [(True,) * count, (False,) * count]
    else:
        choices = [
            tuple(bool(n >> bit & 1) for bit in range(count)) for n in range(2**count)
        ]
    return [_with_signs(nodes, list(choice)) for choice in choices]


def _count_signs(nodes: Nodes, signs: str = r"\pm \mp") -> int:
    return sum(
        node.is_sign(signs) + sum(_count_signs(part, signs) for part in node.parts)
        for node in nodes
    )


def _with_signs(nodes: Nodes, plus: list[bool]) -> Nodes:
    found: list[Node] = []
    for node in nodes:
        if node.is_sign(r"\pm \mp"):
            sign = "+" if plus.pop(0) == (node.text == r"\pm") else "-"
            node = Node("sign", sign, (), node.spaced)
        elif node.parts:
            parts = tuple(_with_signs(part, plus) for part in node.parts)
            node = Node(
                node.kind, node.text, parts, node.spaced, node.upright, node.widths
            )
        found.append(node)
    return tuple(found)


def is_closed_by_last(nodes: Nodes) -> bool:
    """Says whether the first node opens a bracket that the last one closes."""
    level = 0
    for at, node in enumerate(nodes):
        level += node.is_sign(_OPENING) - node.is_sign(_CLOSING)
        if level == 0:
            return at == len(nodes) - 1
    return False
