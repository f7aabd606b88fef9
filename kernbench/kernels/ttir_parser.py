"""The parser behind :func:`kernbench.kernels.ttir.parse`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from kernbench.kernels.errors import KernelError
from kernbench.kernels.ttir import (
    NOWHERE,
    Arg,
    Block,
    Function,
    Loc,
    Module,
    Op,
    Opaque,
    Pointer,
    Region,
    Scalar,
    Tensor,
    Type,
    Value,
    parse_type,
)

# An angle-bracketed group, nested up to three deep, without a dictionary inside (that is ``<{...}>``).
_ANGLE = r"<(?!\{)(?:[^<>\n]|<(?:[^<>\n]|<[^<>\n]*>)*>)*>"
_TOKEN = re.compile(
    rf"""
      (?P<skip>[ \t\r]+|//[^\n]*)
    | (?P<newline>\n)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<value>%[\w$.\-]+(?:\#\d+)?)
    | (?P<count>:\d+(?=[ ,]*(?:=|,[ ]*%)))
    | (?P<block>\^\w+)
    | (?P<symbol>@(?:"[^"]*"|[\w.$\-]+))
    | (?P<arrow>->)
    | (?P<number>-?(?:0x[0-9A-Fa-f]+|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)(?![\w]))
    | (?P<word>[!\#]?[A-Za-z_][\w.$]*(?:{_ANGLE})?)
    | (?P<angle>{_ANGLE})
    | (?P<punct>[()\[\]{{}}<>,:=+*\-])
    """,
    re.VERBOSE,
)


def _number(text: str) -> int | float:
    if text.lstrip("-").startswith("0x"):
        return int(text, 16)
    return float(text) if any(c in text for c in ".eE") else int(text)


_FLOAT_BITS = {"f16": ("u2", "f2"), "f32": ("u4", "f4"), "f64": ("u8", "f8")}


def _literal(text: str, elem: Scalar) -> int | float:
    """A number of a constant; a hexadecimal one is the bit pattern of a float."""
    if text in ("true", "false"):
        return int(text == "true")
    if text.startswith("0x") and not elem.name.startswith(("i", "u")):
        bits = int(text, 16)
        if elem.name in _FLOAT_BITS:
            unsigned, real = _FLOAT_BITS[elem.name]
            return float(np.array(bits, unsigned).view(real))
        import ml_dtypes

        name = "bfloat16" if elem.name == "bf16" else f"float8_{elem.name.removeprefix('f8').lower()}"
        unsigned = "u2" if elem.name == "bf16" else "u1"
        return float(np.array(bits, unsigned).view(getattr(ml_dtypes, name)).astype(np.float32))
    return _number(text)


def _constant(text: str, kind: Type) -> int | float | np.ndarray:
    """The value of ``arith.constant``: a number (also for a block filled with one), or an array of its shape."""
    elem = kind.elem if isinstance(kind, Tensor) else kind
    assert isinstance(elem, Scalar)
    if not text.startswith("dense<"):
        return _literal(text, elem)
    body = text[len("dense<") : -1].strip()
    if not body.startswith(("[", '"')):
        return _literal(body, elem)
    assert isinstance(kind, Tensor)
    if body.startswith('"'):
        raw = bytes.fromhex(body.strip('"')[2:])
        names = {"i1": "?", "bf16": None}
        code = names.get(elem.name, elem.name.replace("i", "<i").replace("f", "<f"))
        if code is None or elem.name.startswith("f8"):
            raise KernelError(f"a dense constant of {elem.name} given as raw bytes is not supported")
        width = {"<i8": "<i1", "<i16": "<i2", "<i32": "<i4", "<i64": "<i8", "<f16": "<f2", "<f32": "<f4", "<f64": "<f8"}
        return np.frombuffer(raw, width.get(code, code)).reshape(kind.shape).copy()
    numbers = [_literal(t, elem) for t in re.findall(r"[^\s,\[\]]+", body)]
    return np.array(numbers).reshape(kind.shape)


class Parser:
    """Recursive descent over tokens. An operation is one line, except for the regions it opens with ``{`` at the end
    of a line; that is how MLIR prints, and it lets unknown operations parse."""

    def __init__(self, text: str) -> None:
        self.kinds: list[str] = []
        self.texts: list[str] = []
        self.lines: list[int] = []
        line, at = 1, 0
        while at < len(text):
            m = _TOKEN.match(text, at)
            if m is None:
                raise KernelError(f"TTIR line {line}: cannot read {text[at : at + 20]!r}")
            at, kind = m.end(), m.lastgroup or ""
            if kind != "skip":
                self.kinds.append(kind)
                self.texts.append(m.group())
                self.lines.append(line)
            line += kind == "newline"
        self.kinds.append("end")
        self.texts.append("")
        self.lines.append(line)
        self.at = 0
        self.aliases: dict[str, Callable[[], Loc]] = {}
        self.resolved: dict[str, Loc] = {}
        self.pending: list[tuple[Any, Callable[[], Loc]]] = []

    def peek(self, text: str) -> bool:
        return self.texts[self.at] == text and self.kinds[self.at] != "string"

    def accept(self, text: str) -> bool:
        if self.peek(text):
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.error(f"expected {text!r}")

    def take(self, kind: str) -> str:
        if self.kinds[self.at] != kind:
            raise self.error(f"expected a {kind}")
        self.at += 1
        return self.texts[self.at - 1]

    def error(self, what: str) -> KernelError:
        return KernelError(f"TTIR line {self.lines[self.at]}: {what}, found {self.texts[self.at]!r}")

    def newlines(self) -> None:
        while self.kinds[self.at] == "newline":
            self.at += 1

    def module(self) -> Module:
        functions: dict[str, Function] = {}
        while True:
            self.newlines()
            if self.kinds[self.at] == "end":
                break
            text = self.texts[self.at]
            if text.startswith("#"):
                self.at += 1
                self.expect("=")
                if self.peek("loc"):
                    self.aliases[text] = self.location()
                else:
                    self.skip_line()
            elif text == "tt.func":
                function = self.function()
                functions[function.name] = function
            elif text == "module":
                while not self.peek("{") or self.kinds[self.at + 1] != "newline":
                    self.at += 1
                self.at += 1
            elif text == "}":
                self.at += 1
                self.optional_location()
            elif text.startswith("{-#"):
                self.skip_line()
            else:
                raise self.error("expected a function")
        for thing, where in self.pending:
            thing.loc = where()
        if not any(f.public for f in functions.values()):
            raise KernelError("the TTIR text holds no public function, so there is no kernel to run")
        return Module(functions)

    def skip_line(self) -> None:
        while self.kinds[self.at] not in ("newline", "end"):
            self.at += 1

    def function(self) -> Function:
        self.expect("tt.func")
        public = not self.accept("private")
        self.accept("public")
        name = self.take("symbol")[1:].strip('"')
        self.scopes: list[dict[str, Value]] = [{}]
        self.labels: list[dict[str, Block]] = []
        args, values = [], []
        self.expect("(")
        while not self.accept(")"):
            value_name = self.take("value")
            self.expect(":")
            kind = self.type()
            attrs = self.dictionary() if self.peek("{") else {}
            self.optional_location()
            args.append(Arg(value_name[1:], kind, attrs))
            values.append(self.define(value_name, kind))
            self.accept(",")
        results = tuple(self.type_list()) if self.accept("->") else ()
        if self.accept("attributes"):
            self.dictionary()
        function = Function(name, tuple(args), Region(), results, public)
        if self.peek("{"):
            function.body = self.region(tuple(values))
        self.pending.append((function, self.optional_location()))
        return function

    def region(self, args: tuple[Value, ...] = ()) -> Region:
        """``{`` blocks ``}``. ``args`` are the entry block's where the text does not print them."""
        self.expect("{")
        self.scopes.append({a.name: a for a in args})
        self.labels.append({})
        region = Region([Block(args)])
        block = region.entry
        while True:
            self.newlines()
            if self.accept("}"):
                break
            if self.kinds[self.at] == "block":
                label = self.take("block")
                printed = self.block_args()
                self.expect(":")
                if label == "^bb0" and not block.ops and len(region.blocks) == 1:
                    block.args = printed or args
                    self.labels[-1][label] = block
                else:
                    block = self.labels[-1].setdefault(label, Block(()))
                    block.args = printed
                    region.blocks.append(block)
            else:
                block.ops.append(self.op())
        self.scopes.pop()
        self.labels.pop()
        return region

    def block_args(self) -> tuple[Value, ...]:
        args = []
        if self.accept("("):
            while not self.accept(")"):
                name = self.take("value")
                self.expect(":")
                args.append(self.define(name, self.type()))
                self.optional_location()
                self.accept(",")
        return tuple(args)

    def define(self, name: str, kind: Type) -> Value:
        seen = self.scopes[-1].get(name)
        if seen is not None and isinstance(seen.type, Opaque) and seen.type.text == "?":
            seen.type = kind  # a block further up in the text used it before
            return seen
        value = Value(name, kind)
        self.scopes[-1][name] = value
        return value

    def use(self, name: str) -> Value:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        self.scopes[-1][name] = value = Value(name, Opaque("?"))
        return value

    def op(self) -> Op:
        result_names: list[str] = []
        while self.kinds[self.at] == "value":  # `%x, %y = ...` or `%x:2 = ...`
            base = self.take("value")
            if self.kinds[self.at] == "count":
                result_names += [f"{base}#{i}" for i in range(int(self.take("count")[1:]))]
            else:
                result_names.append(base)
            self.accept(",")
        if result_names:
            self.expect("=")
        if self.kinds[self.at] == "string":
            name, generic = self.take("string")[1:-1], True
        else:
            name, generic = self.take("word"), False
        op = Op(name, (), (), {})
        if generic:
            types = self.generic_form(op)
        elif name == "scf.for":
            types = self.scf_for(op)
        elif name == "scf.while":
            types = self.scf_while(op)
        else:
            types = self.short_form(op)
        self.pending.append((op, self.optional_location()))
        kinds = _result_types(op, types, len(result_names))
        if len(kinds) < len(result_names):
            raise self.error(f"{name}: {len(result_names)} results but {len(kinds)} types")
        op.results = tuple(self.define(n, t) for n, t in zip(result_names, kinds, strict=False))
        if name == "arith.constant":
            op.attrs["value"] = _constant(op.attrs["value"], kinds[0])
        return op

    def generic_form(self, op: Op) -> list[Type]:
        operands = []
        self.expect("(")
        while not self.accept(")"):
            operands.append(self.use(self.take("value")))
            self.accept(",")
        op.operands = tuple(operands)
        if self.accept("<"):
            op.attrs |= self.dictionary()
            self.expect(">")
        if self.accept("("):
            regions = [self.region()]
            while self.accept(","):
                regions.append(self.region())
            self.expect(")")
            op.regions = tuple(regions)
        if self.peek("{"):
            op.attrs |= self.dictionary()
        self.expect(":")
        self.type_list()
        self.expect("->")
        return self.type_list()

    def scf_for(self, op: Op) -> list[Type]:
        op.attrs["unsigned"] = self.accept("unsigned")
        induction = self.take("value")
        bounds = []
        for word in ("=", "to", "step"):
            self.expect(word)
            bounds.append(self.use(self.take("value")))
        carried = self.carried() if self.accept("iter_args") else []
        types = self.type_list() if self.accept("->") else []
        index: Type = self.type() if self.accept(":") else Scalar("index")
        args = [Value(induction, index), *(Value(n, t) for (n, _), t in zip(carried, types, strict=True))]
        op.operands = (*bounds, *(v for _, v in carried))
        op.regions = (self.region(tuple(args)),)
        if self.peek("{"):
            op.attrs |= self.dictionary()
        return types

    def scf_while(self, op: Op) -> list[Type]:
        carried = self.carried() if self.peek("(") else []
        self.expect(":")
        before = self.type_list()
        self.expect("->")
        types = self.type_list()
        op.operands = tuple(v for _, v in carried)
        args = tuple(Value(n, t) for (n, _), t in zip(carried, before, strict=True))
        first = self.region(args)
        self.expect("do")
        op.regions = (first, self.region())
        if self.accept("attributes"):
            op.attrs |= self.dictionary()
        return types

    def carried(self) -> list[tuple[str, Value]]:
        """``(%a = %b, ...)``: names inside the loop and what they start with."""
        pairs = []
        self.expect("(")
        while not self.accept(")"):
            name = self.take("value")
            self.expect("=")
            pairs.append((name, self.use(self.take("value"))))
            self.accept(",")
        return pairs

    def short_form(self, op: Op) -> list[Type]:
        """Everything between the name and the types, read by the kind of its tokens."""
        operands: list[Value] = []
        words: list[str] = []
        groups: list[int] = []
        regions: list[Region] = []
        successors: list[tuple[Block, tuple[Value, ...]]] = []
        types: list[Type] | None = None
        while (kind := self.kinds[self.at]) not in ("newline", "end"):
            text = self.texts[self.at]
            if text == "loc" or text == "}":
                break
            if kind == "value":
                operands.append(self.use(text))
                self.at += 1
            elif kind == "block":
                successors.append(self.successor())
            elif kind == "symbol":
                op.attrs["callee"] = text[1:].strip('"')
                self.at += 1
            elif kind == "string":
                op.attrs.setdefault("strings", []).append(text[1:-1])
                self.at += 1
            elif text == "{" and self.kinds[self.at + 1] == "newline":
                regions.append(self.region())
                if not (self.accept("else") or self.accept(",")):
                    if self.peek("{"):
                        op.attrs |= self.dictionary()
                    break
            elif text == "{":
                op.attrs |= self.dictionary()
            elif text == "<" and self.texts[self.at + 1] == "{":
                self.at += 1
                op.attrs |= self.dictionary()
                self.expect(">")
            elif text == ":" and self.kinds[self.at + 1] != "value":
                self.at += 1
                types = self.trailing_types()
            elif text == "->":
                self.at += 1
                types = self.type_list()
            elif kind in ("word", "number") and self.texts[self.at + 1] == "=":
                self.at += 2
                op.attrs[text] = self.attribute(typed=False)
            elif kind in ("word", "number", "angle"):
                if text == "scale":  # of tt.dot_scaled: says which operands are scales
                    groups.append(len(operands))
                words.append(text)
                self.at += 1
            else:
                if text == "[":
                    groups.append(len(operands))
                self.at += 1
        op.operands, op.regions, op.successors = tuple(operands), tuple(regions), tuple(successors)
        if words:
            op.attrs["words"] = tuple(words)
        if groups:
            op.attrs["groups"] = tuple(groups)
        if op.name == "arith.constant":
            op.attrs["value"] = words[0] if words else "0"
            if types is None:
                types = [Scalar("i1")]
        return types or []

    def successor(self) -> tuple[Block, tuple[Value, ...]]:
        block = self.labels[-1].setdefault(self.take("block"), Block(()))
        values: list[Value] = []
        if self.accept("("):
            while not self.accept(")"):
                if self.kinds[self.at] == "value":
                    values.append(self.use(self.texts[self.at]))
                self.at += 1
        return block, tuple(values)

    def trailing_types(self) -> list[Type]:
        """What follows ``:``. The types after ``->`` or ``to`` where there are some, else those listed."""
        types = self.type_list()
        while True:
            if self.accept("->") or self.accept("to"):
                types = self.type_list()
            elif self.accept(",") or self.accept("*"):
                types = types + self.type_list()
            else:
                return types

    def type_list(self) -> list[Type]:
        if not self.accept("("):
            return [self.type()]
        types = []
        while not self.accept(")"):
            types.append(self.type())
            self.accept(",")
        return types

    def type(self) -> Type:
        if self.kinds[self.at] not in ("word", "angle"):
            raise self.error("expected a type")
        self.at += 1
        return parse_type(self.texts[self.at - 1])

    def dictionary(self) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        self.expect("{")
        while not self.accept("}"):
            self.newlines()
            key = self.texts[self.at].strip('"')
            self.at += 1
            entries[key] = self.attribute() if self.accept("=") else True
            self.accept(",")
            self.newlines()
        return entries

    def attribute(self, typed: bool = True) -> Any:
        kind, text = self.kinds[self.at], self.texts[self.at]
        value: Any
        if text == "[":
            self.at += 1
            items = []
            while not self.accept("]"):
                items.append(self.attribute())
                self.accept(",")
            return items
        if text == "{":
            return self.dictionary()
        if text == "loc":
            return self.location()()
        self.at += 1
        if kind == "string":
            value = text[1:-1]
        elif kind == "number":
            value = _number(text)
        elif text in ("true", "false"):
            value = text == "true"
        elif text.startswith("array<"):
            body = text[len("array<") : -1].partition(":")[2]
            value = [t == "true" if t in ("true", "false") else _number(t) for t in re.findall(r"[^\s,]+", body)]
        else:
            value = text
        if typed and self.accept(":"):
            self.type()
        return value

    def optional_location(self) -> Callable[[], Loc]:
        return self.location() if self.peek("loc") else lambda: NOWHERE

    def location(self) -> Callable[[], Loc]:
        """A location, resolved once all aliases are known: they may be defined below their use."""
        self.expect("loc")
        self.expect("(")
        where = self.location_body()
        self.expect(")")
        return where

    def location_body(self) -> Callable[[], Loc]:
        kind, text = self.kinds[self.at], self.texts[self.at]
        self.at += 1
        if kind == "string":
            if self.kinds[self.at] == "count" or self.accept(":"):
                line = int(self.take("number"))
                while not self.peek(")") and not self.peek(",") and not self.peek("]") and not self.peek("at"):
                    self.at += 1
                return lambda: (text[1:-1], line)
            if self.accept("("):
                inner = self.location_body()
                self.expect(")")
                return inner
            return lambda: NOWHERE
        if text.startswith("#"):
            return lambda: self.alias(text)
        if text == "callsite":
            self.expect("(")
            callee = self.location_body()
            self.expect("at")
            caller = self.location_body()
            self.expect(")")
            return lambda: _outside_triton(callee(), caller())
        if text.startswith("fused"):
            self.expect("[")
            parts = [self.location_body()]
            while self.accept(","):
                parts.append(self.location_body())
            self.expect("]")
            return parts[0]
        return lambda: NOWHERE

    def alias(self, name: str) -> Loc:
        if name not in self.resolved:
            where = self.aliases.get(name)
            self.resolved[name] = where() if where else NOWHERE
        return self.resolved[name]


def _outside_triton(callee: Loc, caller: Loc) -> Loc:
    """Of an inlined call: the callee's line, unless that is Triton's own library (``tl.sum``) or unknown."""
    inside = "/triton/language/" in callee[0].replace("\\", "/") or callee == NOWHERE
    return caller if inside and caller != NOWHERE else callee


def _result_types(op: Op, written: list[Type], count: int) -> list[Type]:
    """Result types of an operation from the types its short form prints, which for some are those of operands."""
    if count == 0:
        return []
    if op.name == "tt.load":
        return [_loaded(op.operands[0].type)]
    if op.name in ("arith.cmpi", "arith.cmpf"):
        kind = written[-1]
        return [Tensor(kind.shape, Scalar("i1")) if isinstance(kind, Tensor) else Scalar("i1")]
    if op.name in ("tt.addptr", "tt.advance"):
        return [op.operands[0].type]
    if op.name == "tt.make_tensor_descriptor":
        text = str(written[-1])
        return [parse_type(text) if text.startswith("!") else parse_type(f"!tt.tensordesc{text}")]
    if op.name == "tt.make_tensor_ptr":
        text = str(written[-1])
        return [parse_type(text) if text.startswith("!") else parse_type(f"!tt.ptr{text}")]
    if op.name == "arith.select":
        return [written[-1]]
    if len(written) == 1 and count > 1:
        return written * count
    return written if len(written) == count else written[-count:]


def _loaded(pointer: Type) -> Type:
    if isinstance(pointer, Pointer):
        return pointer.pointee
    if isinstance(pointer, Tensor) and isinstance(pointer.elem, Pointer):
        kind = pointer.elem.pointee
        if isinstance(kind, Scalar):
            return Tensor(pointer.shape, kind)
    return Opaque(f"what {pointer} points to")
