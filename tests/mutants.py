"""Which small changes of a module's code some test should notice; `tests/mutation.py` tries them.

Left out is what nobody but a reader sees: annotations, docstrings, texts, logging, the messages of
asserts, `__repr__`, `__slots__`, what only a type checker reads, and how a field of a dataclass is
made.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parent.parent
SWAPS: dict[type[ast.AST], list[type[ast.AST]]] = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Pow: [ast.Mult],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
TEXTS = {"logger", "msg", "what", "why", "TypeVar", "cast", "repr", "__slots__", "__all__"}
TEXTS |= {"field"}
UNSEEN = {"annotation", "returns", "msg", "ctx", "decorator_list"}
NONE, NOTHING = ast.Constant(None), ast.Tuple([], ast.Load())


@dataclass
class Mutant:
    """One node of a module's tree in place of another."""

    module: str
    number: int
    line: int
    lines: range
    """Of its statement; a test that reaches none of them cannot tell."""
    inside: bool
    """Whether it is the code of a function, which can be exchanged in a running process."""
    owner: Any
    field: str
    index: int | None
    old: ast.AST
    new: ast.AST

    def put(self, node: ast.AST) -> None:
        """Change the tree."""
        if self.index is None:
            setattr(self.owner, self.field, node)
        else:
            getattr(self.owner, self.field)[self.index] = node

    def code(self, tree: ast.Module) -> CodeType:
        """The module's, with the change."""
        self.put(self.new)
        return compile(ast.fix_missing_locations(tree), path_of(self.module), "exec")

    def __str__(self) -> str:
        before = self._shown(self.old)
        self.put(self.new)
        after = self._shown(self.new)
        self.put(self.old)
        return f"{self.module}:{self.line}: {before}  ->  {after}"

    def _shown(self, node: ast.AST) -> str:
        whole = node if isinstance(node, ast.stmt | ast.excepthandler) else self.owner
        return ast.unparse(whole).split("\n", maxsplit=1)[0][:100]


def path_of(module: str) -> str:
    """Return the source of a module of the core."""
    return str(ROOT / "asyncpool" / "_core" / f"{module}.py")


def mutants(module: str) -> tuple[ast.Module, list[Mutant]]:
    """The tree of a module, and all that may be changed in it."""
    tree = ast.parse(Path(path_of(module)).read_text())
    found: list[Mutant] = []

    def visit(owner: Any, first: int, last: int, inside: bool) -> None:
        for field, value in ast.iter_fields(owner):
            if field in UNSEEN:
                continue
            within = inside or (
                field == "body"
                and isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            )
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(node, ast.AST) or is_left_out(node):
                    continue
                line = getattr(node, "lineno", last)
                end = getattr(node, "end_lineno", last)
                start = line if isinstance(node, ast.stmt | ast.ExceptHandler) else first
                if isinstance(node, ast.For | ast.ExceptHandler):
                    end = line
                for new in changes(node, owner, field):
                    spot = (module, len(found), line, range(start, end + 1), within)
                    found.append(Mutant(*spot, owner, field, index, node, new))
                visit(node, start, end, within)

    visit(tree, 0, 0, False)
    return tree, found


def is_left_out(node: ast.AST) -> bool:
    """Whether nothing in it matters to anybody but a person who reads."""
    match node:
        case (
            ast.JoinedStr()
            | ast.Import()
            | ast.ImportFrom()
            | ast.FunctionDef(name="__repr__")
            | ast.Expr(value=ast.Constant())
            | ast.Constant(value=str())
            | ast.If(test=ast.Name(id="TYPE_CHECKING"))
        ):
            return True
        case ast.Expr(value=ast.Call() as call):
            return is_left_out(call)
        case (
            ast.Call(func=ast.Name(id=name) | ast.Attribute(value=ast.Name(id=name)))
            | ast.Assign(targets=[ast.Name(id=name)])
        ):
            return name in TEXTS
    return False


def changes(node: ast.AST, owner: ast.AST, field: str) -> Iterator[ast.AST]:
    """Return the changes that may stand in place of a node."""
    if isinstance(node, ast.stmt):
        yield from of_statement(node)
    elif isinstance(node, ast.expr):
        if field == "test" and not isinstance(owner, ast.Assert) | isinstance(node, ast.Compare):
            yield ast.UnaryOp(ast.Not(), node)
        if field == "ifs":
            yield ast.Constant(True)
        if field == "value" and isinstance(owner, ast.Assign | ast.AnnAssign):
            if not isinstance(node, ast.Constant):
                yield NONE
            elif node.value is None:
                yield ast.Constant("")
        yield from of_expression(node)
    elif isinstance(node, ast.ExceptHandler) and node.type is not None:
        handler = copy.copy(node)
        handler.type = NOTHING
        yield handler
    for swap in SWAPS.get(type(node), []):
        yield swap()


def of_expression(node: ast.expr) -> Iterator[ast.AST]:
    """Another value; a call with less."""
    match node:
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.Lambda(args=arguments) if ast.unparse(node.body) != "None":
            yield ast.Lambda(arguments, NONE)
        case ast.Call(func=func, args=args, keywords=keywords):
            if isinstance(func, ast.Name) and func.id in NAMES:
                yield ast.Call(ast.Name(NAMES[func.id], ast.Load()), args, keywords)
            for i, arg in enumerate(args):
                if not isinstance(arg, ast.Constant | ast.JoinedStr):
                    yield ast.Call(func, [*args[:i], NONE, *args[i + 1 :]], keywords)
            for i in range(len(keywords)):
                yield ast.Call(func, args, keywords[:i] + keywords[i + 1 :])


def of_statement(node: ast.stmt) -> Iterator[ast.AST]:
    """Another statement, or none."""
    match node:
        case ast.Assign(targets=[target]) | ast.AnnAssign(target=target, value=ast.expr()):
            if isinstance(target, ast.Attribute | ast.Subscript):
                yield ast.Pass()
        case ast.AugAssign(target=target, value=value):
            yield ast.Assign([target], value, lineno=node.lineno)
            yield ast.Pass()
        case ast.Return(value=ast.expr() as value):
            if not isinstance(value, ast.Constant):
                yield ast.Return(NONE)
        case ast.Return() | ast.Expr() | ast.Delete() | ast.Raise():
            yield ast.Pass()
        case ast.For():
            loop = copy.copy(node)
            loop.iter = NOTHING
            yield loop
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
