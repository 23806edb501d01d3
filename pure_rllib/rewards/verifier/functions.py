"""What names in a formula stand for: functions, constants, accents, matrices."""

from collections.abc import Callable
from typing import Any

import sympy

from pure_rllib.rewards.verifier.latex import Node

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot,
    "sec": sympy.sec, "csc": sympy.csc, "sinh": sympy.sinh, "cosh": sympy.cosh,
    "tanh": sympy.tanh, "coth": sympy.coth, "exp": sympy.exp, "log": sympy.log,
    "gcd": sympy.gcd, "lcm": sympy.lcm,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan,
    "arccot": sympy.acot, "arcsec": sympy.asec, "arccsc": sympy.acsc,
    "asin": sympy.asin, "acos": sympy.acos, "atan": sympy.atan,
    "arcsinh": sympy.asinh, "arccosh": sympy.acosh, "arctanh": sympy.atanh,
    "ln": sympy.log, "lg": lambda x: sympy.log(x, 10), "sqrt": sympy.sqrt,
    "abs": sympy.Abs, "floor": sympy.floor, "ceil": sympy.ceiling,
    "Re": sympy.re, "Im": sympy.im, "det": lambda m: m.det(), "cbrt": sympy.cbrt,
    "min": sympy.Min, "max": sympy.Max, "arg": sympy.arg,
    "factorial": sympy.factorial,
    "cis": lambda x: sympy.cos(x) + sympy.I * sympy.sin(x),
}  # fmt: skip
FUNCTION_NAMES = frozenset(FUNCTIONS) | {"np", "math", "pi"}
INVERSES = {
    sympy.sin: sympy.asin, sympy.cos: sympy.acos, sympy.tan: sympy.atan,
    sympy.cot: sympy.acot, sympy.sec: sympy.asec, sympy.csc: sympy.acsc,
    sympy.sinh: sympy.asinh, sympy.cosh: sympy.acosh, sympy.tanh: sympy.atanh,
}  # fmt: skip
TAKES_DEGREES = {*INVERSES, FUNCTIONS["cis"]}
CONSTANTS = {
    r"\pi": sympy.pi, r"\infty": sympy.oo, "pi": sympy.pi, "inf": sympy.oo,
    "infinity": sympy.oo, "Pi": sympy.pi, "PI": sympy.pi, "oo": sympy.oo,
}  # fmt: skip
BEYOND = {
    "sum", "prod", "int", "iint", "iiint", "oint", "lim", "limsup", "liminf", "sup",
    "inf", "pmod",
}  # fmt: skip
ACCENTS = {
    "dot", "ddot", "hat", "tilde", "overline", "widehat", "check", "acute", "breve",
}  # fmt: skip
MATRICES = {
    "pmatrix", "bmatrix", "matrix", "vmatrix", "array", "Bmatrix", "smallmatrix",
    "Vmatrix",
}  # fmt: skip
DROPPED_ACCENTS = {r"\vec", r"\overrightarrow", r"\mathbf"}
SHAPES = {r"\angle", r"\triangle", r"\measuredangle", r"\overarc", r"\widehat"}
APPLIED = set("fghFGH")


def is_function(node: Node) -> bool:
    """Says whether a node is the name of a function."""
    return node.kind != "letter" and node.text.removeprefix("\\") in FUNCTIONS
