"""The instructions of :mod:`benchmarks.machine_code`: operands, and what each instruction computes.

Written from what the names of SASS say and from what nvcc makes of our kernels; where an instruction is not
as here, results differ from the PyTorch path, which :mod:`benchmarks.kernel_estimates` shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from benchmarks.machine_code import Warp

LANES = np.arange(32)
ALL = np.ones(32, bool)
U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
RZ, UR, SPARE = 255, 256, 511  # rows of the register file: the zero, uniform register 0, a place for nothing
BASE = 0x7F0000000000  # the address where memory begins

Source = Callable[["Warp"], np.ndarray]


class Instruction:
    """One line of nvdisasm: name with its modifiers, operands, predicate."""

    def __init__(self, text: str):
        self.text = text
        self.uniform_guard = False
        guard = re.match(r"@(!?)(U?P[0-9T]+)\s+", text)
        self.guard = (predicate_row(guard[2]), guard[1] == "!") if guard else None
        text = text[guard.end() :] if guard else text
        name, _, rest = text.partition(" ")
        self.name, *self.modifiers = name.split(".")
        self.operands = [part.strip().replace(".reuse", "") for part in split(rest)]
        self.run: Callable | None = None
        self.target = -1


def split(text: str) -> list[str]:
    """Operands at commas that are not within brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += letter in "[("
        depth -= letter in ")]"
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def predicate_row(name: str) -> int:
    if name.startswith("U"):
        return 15 if name == "UPT" else 8 + int(name[2:])
    return 7 if name == "PT" else int(name[1:])


def register_row(name: str) -> int:
    if name in ("RZ", "URZ"):
        return RZ
    return UR + int(name[2:]) if name.startswith("UR") else int(name[1:])


REGISTER = re.compile(r"U?R(\d+|Z)")
CONSTANT = re.compile(r"c\[0x0\]\[(?:(U?R(?:\d+|Z))\+?)?(-?0x[0-9a-f]+)?\]")


def is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P[0-9T]+", text) is not None


def predicate(text: str) -> Source:
    row, negated = predicate_row(text.lstrip("!")), text.startswith("!")
    return (lambda w: ~w.p[row]) if negated else (lambda w: w.p[row])


def number(text: str) -> float | int:
    text = text.replace("+INF", "inf").replace("-INF", "-inf").replace("QNAN", "nan")
    return int(text, 16) if "0x" in text else float(text)


def raw(text: str) -> Source:
    """32 bits of a register, a constant or an immediate number, without signs."""
    if REGISTER.match(text):
        row = register_row(REGISTER.match(text)[0])
        return lambda w: w.r[row]
    constant = CONSTANT.fullmatch(text)
    if constant:
        offset = int(constant[2] or "0", 16)
        if constant[1] is None:
            return lambda w: w.constants[offset // 4]
        row = register_row(constant[1])
        return lambda w: w.constants.take((w.r[row].astype(I32) + offset) // 4, mode="wrap")
    value = U32(int(text, 16) & 0xFFFFFFFF) if "0x" in text else F32(number(text)).view(U32)
    wide = np.full(32, value, U32)
    return lambda w: wide


def integer(text: str) -> Source:
    if text.startswith("-") and not text.startswith("-0x"):
        of = raw(text[1:])
        return lambda w: U32(0) - of(w)
    if text.startswith("~"):
        of = raw(text[1:])
        return lambda w: ~of(w)
    return raw(text)


def signed(text: str) -> Source:
    of = integer(text)
    return lambda w: np.asarray(of(w)).view(I32)


def summand(text: str) -> Source:
    """For sums whose carry counts: what is negated has 33 bits."""
    if text.startswith("-") and not text.startswith("-0x"):
        of = raw(text[1:])
        return lambda w: (~of(w)).astype(U64) + U64(1)
    of = integer(text)
    return lambda w: np.asarray(of(w)).astype(U64)


def wide(text: str) -> Source:
    """64 bits: a pair of registers or constants."""
    name = text.removesuffix(".64")
    if REGISTER.fullmatch(name):
        row = register_row(name)
        if row == RZ:
            return lambda w: np.zeros(32, U64)
        return lambda w: w.r[row].astype(U64) | w.r[row + 1].astype(U64) << U64(32)
    constant = CONSTANT.fullmatch(name)
    if constant:
        at = int(constant[2], 16) // 4
        return lambda w: np.full(32, int(w.constants[at]) | int(w.constants[at + 1]) << 32, U64)
    value = np.full(32, int(name, 16) & (2**64 - 1), U64)
    return lambda w: value


def long(text: str, signed: bool) -> Source:
    of = wide(text)
    return (lambda w: of(w).view(I64)) if signed else of


def real(text: str) -> Source:
    negated, text = text.startswith("-") and not re.match(r"-[\d.]|-INF|-QNAN", text), text
    text = text[1:] if negated else text
    absolute = text.startswith("|")
    bits = raw(text.strip("|"))

    def value(w):
        x = np.asarray(bits(w)).view(F32)
        x = np.abs(x) if absolute else x
        return -x if negated else x

    return value


def half(text: str) -> Source:
    sign = -1 if text.startswith("-") else 1
    shift = U32(16 if text.endswith("H1_H1") else 0)
    bits = raw(text.lstrip("-").split(".")[0])
    return lambda w: sign * (bits(w) >> shift & U32(0xFFFF)).astype(np.uint16).view(np.float16).astype(F32)


COMPARE = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal,
    "EQ": np.equal, "NE": np.not_equal,
}  # fmt: skip


class Writer:
    """Puts results into registers, of the lanes of a mask."""

    def __init__(self, text: str):
        self.row = register_row(text.removesuffix(".64"))

    def __call__(self, w, mask, value) -> None:
        if self.row != RZ:
            np.copyto(w.r[self.row], np.asarray(value).view(U32), where=mask)

    def wide(self, w, mask, value) -> None:
        if self.row != RZ:
            np.copyto(w.r[self.row], (value & U64(0xFFFFFFFF)).astype(U32), where=mask)
            np.copyto(w.r[self.row + 1], (value >> U64(32)).astype(U32), where=mask)


def set_predicate(w, mask, text: str, value) -> None:
    row = predicate_row(text)
    if row not in (7, 15):
        np.copyto(w.p[row], value, where=mask)


def rounded_up(x: np.ndarray) -> np.ndarray:
    y = x.astype(F32)
    return np.where(y.astype(F64) < x.astype(F64), np.nextafter(y, F32(np.inf)), y)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x).view(U32)
    return np.where(np.isnan(x), U32(0x7FFF), bits + U32(0x7FFF) + (bits >> U32(16) & U32(1)) >> U32(16))


def table(lut: int, a, b, c) -> np.ndarray:
    """Bitwise function of three numbers (or truth values) by its truth table."""
    if a.dtype == bool:
        return (lut >> (a * 4 + b * 2 + c * 1)) & 1 != 0
    result = np.zeros(32, U32)
    for i in range(8):
        if lut >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


ADDRESS = re.compile(r"(?:desc\[UR\d+\])?\[(.*)\]")


def address(text: str) -> Source:
    """The sum of what stands in brackets: 64 bits for global memory, else 32."""
    parts = ADDRESS.fullmatch(text)[1].replace("+-", "+~").split("+")
    offset, sources = 0, []
    for part in parts:
        if part.startswith(("0x", "~0x")):
            offset += -int(part[1:], 16) if part[0] == "~" else int(part, 16)
        elif part.endswith(".64"):
            sources.append(wide(part))
        elif ".X" in part:
            scale, of = int(part.split(".X")[1]), raw(part.split(".")[0])
            sources.append(lambda w, of=of, scale=scale: of(w).astype(U64) * U64(scale))
        elif part.endswith(".U32"):
            of = raw(part.removesuffix(".U32"))
            sources.append(lambda w, of=of: of(w).astype(U64))
        else:
            of = raw(part)
            sources.append(lambda w, of=of: of(w).astype(U64))

    def value(w):
        total = np.full(32, offset, I64).view(U64)
        for of in sources:
            total = total + of(w)
        return total

    return value


def width_of(i: Instruction) -> tuple[int, type]:
    """Bytes per lane, and the type of what is less than a register."""
    for name, size, kind in (("128", 16, U32), ("64", 8, U32), ("U16", 2, np.uint16), ("U8", 1, np.uint8)):
        if name in i.modifiers:
            return size, kind
    for name, size, kind in (("S8", 1, np.int8), ("S16", 2, np.int16)):
        if name in i.modifiers:
            return size, kind
    return 4, U32


# Instructions: each takes the warp and the lanes that execute it.


def make(i: Instruction) -> Callable:
    """How to run an instruction."""
    name = i.name
    if name in UNIFORM:
        name = UNIFORM[name]
    if name not in MAKERS:
        return partial(unknown, i)
    return MAKERS[name](i, i.operands, set(i.modifiers))


def unknown(i: Instruction, *_):
    raise ValueError(f"an instruction that is not known here: {i.text}")


UNIFORM = {name: name[1:] for name in (
    "UIADD3", "UIMAD", "UISETP", "ULEA", "ULOP3", "UMOV", "UPLOP3", "UPRMT", "USEL", "USHF", "UVIMNMX",
    "ULDC", "UIADD", "UIABS", "UVIADD", "UFSETP", "UFADD", "UFMUL", "UFFMA", "UFSEL", "UI2F", "UI2FP", "UF2I",
    "UFMNMX", "UFRND", "UR2UR", "UPOPC", "UFLO", "UBREV", "UVIADDMNMX",
)} | {"LDCU": "LDC"}  # fmt: skip
WITHOUT_PREFIX = ("VOTEU", "S2UR", "R2UR", "LDCU", "REDUX", "CREDUX")


def simple(function: Callable, kinds: str) -> Callable:
    """An instruction that computes one register from these operands: i(nteger), s(igned), f(loat)."""
    readers = {"i": integer, "s": signed, "f": real}

    def maker(i, operands, modifiers):
        put, sources = Writer(operands[0]), [readers[k](o) for k, o in zip(kinds, operands[1:], strict=False)]
        if len(sources) == 1:
            (a,) = sources
            return lambda w, m: put(w, m, function(a(w)))
        if len(sources) == 2:
            a, b = sources
            return lambda w, m: put(w, m, function(a(w), b(w)))
        a, b, c = sources
        return lambda w, m: put(w, m, function(a(w), b(w), c(w)))

    return maker


def fused(a, b, c):
    return (a.astype(F64) * b.astype(F64) + c.astype(F64)).astype(F32)


def iadd3(i, operands, modifiers):
    if "64" in modifiers:
        return iadd(i, [o for o in operands if not is_predicate(o)], modifiers)
    put, rest = Writer(operands[0]), operands[1:]
    carries = []
    while is_predicate(rest[0]):
        carries.append(rest.pop(0))
    sources = [summand(o) for o in rest if not is_predicate(o)]
    extra = [predicate(o) for o in rest if is_predicate(o)]

    def run(w, m):
        total = sources[0](w)
        for of in sources[1:]:
            total = total + of(w)
        for of in extra:
            total = total + of(w).astype(U64)
        put(w, m, total.astype(U32))
        for k, carry in enumerate(carries):
            set_predicate(w, m, carry, total >> U64(32) > U64(k))

    return run


def iadd(i, operands, modifiers):
    put = Writer(operands[0])
    a, b = (wide(o.lstrip("-")) for o in operands[1:3])
    signs = [o.startswith("-") for o in operands[1:3]]

    def run(w, m):
        x, y = a(w), b(w)
        put.wide(w, m, (U64(0) - x if signs[0] else x) + (U64(0) - y if signs[1] else y))

    return run


def imad(i, operands, modifiers):
    put, rest = Writer(operands[0]), operands[1:]
    carry = rest.pop(0) if is_predicate(rest[0]) else None
    if "WIDE" in modifiers:
        kind = integer if "U32" in modifiers else signed
        a, b, c = kind(rest[0]), kind(rest[1]), wide(rest[2])
        wider = U64 if "U32" in modifiers else I64

        def run(w, m):
            product = (a(w).astype(wider) * b(w).astype(wider)).view(U64)
            total = product + c(w)
            put.wide(w, m, total)
            if carry:
                set_predicate(w, m, carry, total < product)

        return run
    if "HI" in modifiers:
        if "U32" not in modifiers:
            return partial(unknown, i)
        a, b, c = integer(rest[0]), integer(rest[1]), wide(rest[2])
        return lambda w, m: put(w, m, (a(w).astype(U64) * b(w).astype(U64) + c(w) >> U64(32)).astype(U32))
    a, b, c = (integer(o) for o in rest[:3])
    if "X" in modifiers:
        extra = predicate(rest[3])
        return lambda w, m: put(w, m, a(w) * b(w) + c(w) + extra(w).astype(U32))
    return lambda w, m: put(w, m, a(w) * b(w) + c(w))


def lea(i, operands, modifiers):
    put, rest = Writer(operands[0]), operands[1:]
    carry = rest.pop(0) if is_predicate(rest[0]) else None
    extra = predicate(rest.pop()) if "X" in modifiers else None
    while is_predicate(rest[-1]):
        rest.pop()
    shift = U64(int(rest.pop(), 16))
    a, b = integer(rest[0]), summand(rest[1])
    upper = integer(rest[2]) if len(rest) > 2 else None

    def run(w, m):
        low = a(w)
        if "HI" in modifiers:
            pair = low.astype(U64)
            if upper is not None:
                pair = pair | np.asarray(upper(w)).astype(U64) << U64(32)
            elif "SX32" in modifiers:
                pair = low.view(I32).astype(I64).view(U64)
            shifted = pair << shift >> U64(32)
        else:
            shifted = (low << shift.astype(U32)).astype(U64)
        total = shifted + b(w)
        if extra is not None:
            total = total + extra(w).astype(U64)
        put(w, m, total.astype(U32))
        if carry:
            set_predicate(w, m, carry, total >> U64(32) != U64(0))

    return run


def shf(i, operands, modifiers):
    put, (low, by, high) = Writer(operands[0]), (integer(o) for o in operands[1:4])

    def run(w, m):
        lower, upper = low(w).astype(U64), np.asarray(high(w)).astype(U64)
        shift = np.asarray(by(w)).astype(U64)
        shift = (
            shift & U64(63 if modifiers & {"U64", "S64"} else 31)
            if "W" in modifiers
            else np.minimum(shift, U64(63))
        )
        if "L" in modifiers:
            pair = (upper << U64(32) | lower) << shift
            put(w, m, (pair >> U64(32) if "HI" in modifiers else pair).astype(U32))
        else:
            pair = upper << U64(32) | lower
            pair = (
                (pair.view(I64) >> shift.view(I64)).view(U64) if modifiers & {"S32", "S64"} else pair >> shift
            )
            put(w, m, (pair >> U64(32) if "HI" in modifiers else pair).astype(U32))

    return run


def lop3(i, operands, modifiers):
    rest = list(operands)
    flag = rest.pop(0) if is_predicate(rest[0]) else None
    put = Writer(rest[0])
    a, b, c = (integer(o) for o in rest[1:4])
    lut, also = int(rest[4], 16), predicate(rest[5])

    def run(w, m):
        value = table(lut, a(w), b(w), c(w))
        put(w, m, value)
        if flag:
            set_predicate(w, m, flag, (value != 0) | also(w))

    return run


def plop3(i, operands, modifiers):
    sources = [predicate(o) for o in operands[2:5]]
    first, second = (int(o, 16) for o in operands[5:7])

    def run(w, m):
        values = [of(w).copy() for of in sources]
        set_predicate(w, m, operands[0], table(first, *values))
        set_predicate(w, m, operands[1], table(second, *values))

    return run


def setp(kind: Callable) -> Callable:
    def maker(i, operands, modifiers):
        words = list(i.modifiers)
        name = words[0]
        unordered = kind is real and name.endswith("U") and name[:-1] in COMPARE
        compare = COMPARE[name[:-1] if unordered else name]
        reader = kind
        if kind is signed and "U32" in modifiers:
            reader = integer
        if modifiers & {"S64", "U64"}:
            reader = partial(long, signed="S64" in modifiers)
        a, b, other = reader(operands[2]), reader(operands[3]), predicate(operands[4])
        lower = predicate(operands[5]) if "EX" in modifiers else None
        join = (
            np.logical_or if "OR" in modifiers else np.logical_xor if "XOR" in modifiers else np.logical_and
        )

        def run(w, m):
            x, y = np.asarray(a(w)), np.asarray(b(w))
            if kind is real:
                result = compare(x, y)
                nan = np.isnan(x) | np.isnan(y)
                result = result | nan if unordered else result & ~nan
            elif lower is None:
                result = compare(x, y)
            elif name == "EQ":
                result = (x == y) & lower(w)
            elif name == "NE":
                result = (x != y) | lower(w)
            else:
                result = (x > y if name in ("GT", "GE") else x < y) | ((x == y) & lower(w))
            second = other(w).copy()
            set_predicate(w, m, operands[0], join(result, second))
            set_predicate(w, m, operands[1], join(~result, second))

        return run

    return maker


def sel(kind: Callable) -> Callable:
    def maker(i, operands, modifiers):
        put, a, b, which = Writer(operands[0]), kind(operands[1]), kind(operands[2]), predicate(operands[3])
        return lambda w, m: put(w, m, np.where(which(w), a(w), b(w)))

    return maker


def minmax(kind: Callable, count: int, adds: bool = False) -> Callable:
    def maker(i, operands, modifiers):
        put, rest = Writer(operands[0]), operands[1:]
        while is_predicate(rest[0]):
            rest.pop(0)
        reader = integer if kind is signed and "U32" in modifiers else kind
        sources = [reader(o) for o in rest[:count]]
        least = predicate(rest[count]) if len(rest) > count else None

        def run(w, m):
            values = [np.asarray(of(w)) for of in sources]
            if adds:
                values = [values[0] + values[1], values[2]]
            low = high = values[0]
            smaller, larger = (np.fmin, np.fmax) if kind is real else (np.minimum, np.maximum)
            for x in values[1:]:
                low, high = smaller(low, x), larger(high, x)
            value = np.where(least(w), low, high) if least is not None else low
            if "RELU" in modifiers:
                value = np.maximum(value, 0)
            put(w, m, np.ascontiguousarray(value.astype(values[0].dtype)))

        return run

    return maker


def mufu(i, operands, modifiers):
    put, of = Writer(operands[0]), real(operands[1])
    functions = {"EX2": np.exp2, "RCP": lambda x: F64(1) / x, "RSQ": lambda x: 1 / np.sqrt(x)}
    (function,) = (functions[m] for m in modifiers if m in functions)
    return lambda w, m: put(w, m, function(of(w).astype(F64)).astype(F32))


def f2i(i, operands, modifiers):
    put, of = Writer(operands[0]), real(operands[1])
    how = np.floor if "FLOOR" in modifiers else np.trunc
    low, high = (0, 2**32 - 1) if "U32" in modifiers else (-(2**31), 2**31 - 1)

    def run(w, m):
        x = np.nan_to_num(how(of(w).astype(F64)), nan=0.0, posinf=high, neginf=low)
        put(w, m, np.clip(x, low, high).astype(I64).astype(U32))

    return run


def i2f(i, operands, modifiers):
    put, of = Writer(operands[0]), (integer if "U32" in modifiers else signed)(operands[1])
    convert = rounded_up if "RP" in modifiers else (lambda x: x.astype(F32))
    return lambda w, m: put(w, m, convert(np.asarray(of(w))))


def prmt(i, operands, modifiers):
    put, a, how, c = Writer(operands[0]), *(integer(o) for o in operands[1:4])

    def run(w, m):
        pair, choice = (
            a(w).astype(U64) | np.asarray(c(w)).astype(U64) << U64(32),
            np.asarray(how(w)).astype(U64),
        )
        value = np.zeros(32, U64)
        for k in range(4):
            nibble = choice >> U64(4 * k) & U64(15)
            byte = pair >> (nibble & U64(7)) * U64(8) & U64(255)
            byte = np.where(nibble & U64(8), np.where(byte & U64(128), U64(255), U64(0)), byte)
            value |= byte << U64(8 * k)
        put(w, m, value.astype(U32))

    return run


def f2fp(i, operands, modifiers):
    put, a, b = Writer(operands[0]), real(operands[1]), real(operands[2])

    def run(w, m):
        if "BF16" in modifiers:
            low, high = to_bfloat16(b(w)), to_bfloat16(a(w))
        else:
            low, high = (x(w).astype(np.float16).view(np.uint16).astype(U32) for x in (b, a))
        put(w, m, high << U32(16) | low & U32(0xFFFF))

    return run


def hfma2(i, operands, modifiers):
    """Only as the compiler writes constants: -0 * 0 + two halves."""
    if [operands[1], operands[2]] != ["-RZ", "RZ"]:
        return partial(unknown, i)
    put = Writer(operands[0])
    high, low = (int(np.float16(number(o)).view(np.uint16)) for o in operands[3:5])
    value = np.full(32, high << 16 | low, U32)
    return lambda w, m: put(w, m, value)


def hadd2(i, operands, modifiers):
    put, a, b = Writer(operands[0]), half(operands[1]), half(operands[2])
    return lambda w, m: put(w, m, (a(w) + b(w)).astype(F32))


def move_wide(i, operands, modifiers):
    put = Writer(operands[0])
    if operands[1] == "SRZ":
        if "32" in modifiers:
            return lambda w, m: put(w, m, np.zeros(32, U32))
        return lambda w, m: put.wide(w, m, np.zeros(32, U64))
    of = wide(operands[1])
    return lambda w, m: put.wide(w, m, of(w))


def mov(i, operands, modifiers):
    if "64" in modifiers:
        return move_wide(i, operands, modifiers)
    return simple(lambda x: x, "i")(i, operands[:2], modifiers)


def ldc(i, operands, modifiers):
    put, of = Writer(operands[0]), operands[1]
    size, kind = width_of(i)
    constant = CONSTANT.fullmatch(of)
    if constant is None:
        return partial(unknown, i)
    offset, row = int(constant[2] or "0", 16), register_row(constant[1]) if constant[1] else RZ

    def run(w, m):
        at = w.r[row].astype(I32) + offset
        if size < 4:
            put(w, m, w.constants.view(kind)[at // size].astype(I64).astype(U32))
            return
        for k in range(size // 4):
            np.copyto(w.r[put.row + k], w.constants.take(at // 4 + k, mode="wrap"), where=m)

    return run


def s2r(i, operands, modifiers):
    put, name = Writer(operands[0]), operands[1]
    x = {
        "SR_TID.X": lambda w: w.thread,
        "SR_LANEID": lambda w: LANES,
        "SR_EQMASK": lambda w: 1 << LANES,
        "SR_LTMASK": lambda w: (1 << LANES) - 1,
        "SR_CTAID.X": lambda w: np.full(32, w.block.index[0]),
        "SR_CTAID.Y": lambda w: np.full(32, w.block.index[1]),
        "SR_CTAID.Z": lambda w: np.full(32, w.block.index[2]),
        "SR_CgaCtaId": lambda w: np.zeros(32, I64),
    }.get(name)
    if x is None:
        return partial(unknown, i)
    return lambda w, m: put(w, m, x(w).astype(U32))


def shfl(i, operands, modifiers):
    put, a, b, c = Writer(operands[1]), *(integer(o) for o in operands[2:5])
    (mode,) = modifiers & {"IDX", "BFLY", "UP", "DOWN"}

    def run(w, m):
        control, by = np.asarray(c(w)).astype(I64), np.asarray(b(w)).astype(I64) & 31
        segment, clamp = control >> 8 & 31, control & 31
        first = LANES & segment
        last = first | clamp & ~segment
        source = {"IDX": first | by & ~segment, "BFLY": LANES ^ by, "UP": LANES - by, "DOWN": LANES + by}[
            mode
        ]
        valid = source >= last if mode == "UP" else source <= last
        source = np.where(valid, source, LANES)
        if not m[source[m]].all():
            raise RuntimeError(f"a shuffle from a lane that is elsewhere: {i.text}")
        set_predicate(w, m, operands[0], valid)
        put(w, m, a(w)[source])

    return run


def vote(i, operands, modifiers):
    """Of the lanes that vote; the others do not count."""
    register = next((o for o in operands if REGISTER.fullmatch(o)), None)
    flag = operands[0] if is_predicate(operands[0]) else None
    of = predicate(operands[-1])

    def run(w, m):
        voters = w.voters
        votes = of(w) & voters
        if register and register_row(register) != RZ:
            w.r[register_row(register)][:] = U32(int((votes.astype(U64) << LANES.astype(U64)).sum()))
        if flag:
            result = votes.any() if "ANY" in modifiers else (votes == voters).all()
            set_predicate(w, ALL, flag, np.full(32, result))

    return run


def r2ur(i, operands, modifiers):
    put, of = Writer(operands[0]), integer(operands[1])

    def run(w, m):
        put(w, ALL, np.full(32, of(w)[np.flatnonzero(w.voters)[0]]))

    return run


def r2p(i, operands, modifiers):
    register, _, byte = operands[1].partition(".B")
    of, which = raw(register), int(operands[2], 16)

    def run(w, m):
        bits = of(w) >> U32(8 * int(byte or 0))
        for k in range(7):
            if which >> k & 1:
                np.copyto(w.p[k], (bits >> U32(k) & U32(1)).astype(bool), where=m)

    return run


def p2r(i, operands, modifiers):
    register, _, byte = operands[0].partition(".B")
    put, shift, which, old = (
        Writer(register),
        U32(8 * int(byte or 0)),
        int(operands[3], 16),
        integer(operands[2]),
    )

    def run(w, m):
        value = np.asarray(old(w)).copy()
        for k in range(7):
            if which >> k & 1:
                bit = U32(1) << (shift + U32(k))
                value = np.where(w.p[k], value | bit, value & ~bit)
        put(w, m, value)

    return run


def flo(i, operands, modifiers):
    put, of = Writer(operands[0]), integer(operands[1])
    return lambda w, m: put(
        w, m, np.array([int(x).bit_length() - 1 for x in np.broadcast_to(of(w), 32)], I64).astype(U32)
    )


def popc(i, operands, modifiers):
    put, of = Writer(operands[0]), integer(operands[1])
    return lambda w, m: put(w, m, np.array([int(x).bit_count() for x in np.broadcast_to(of(w), 32)], U32))


def count_sectors(w, kind: str, at: np.ndarray, size: int) -> None:
    """Sectors of 32 bytes that one instruction touches."""
    last = np.unique(np.concatenate([at >> 5, (at + size - 1) >> 5]))
    w.machine.sectors[kind] += len(last)


def ldg(i, operands, modifiers):
    put, of, (size, kind) = Writer(operands[0]), address(operands[1]), width_of(i)

    def run(w, m):
        at = (of(w) - U64(BASE)).view(I64)[m]
        count_sectors(w, "loads", at, size)
        if size < 4:
            w.r[put.row][m] = w.machine.memory.bytes.view(kind)[at // size].astype(I64).astype(U32)
            return
        for k in range(size // 4):
            w.r[put.row + k][m] = w.machine.words[at // 4 + k]

    return run


def stg(i, operands, modifiers):
    of, row, (size, kind) = address(operands[0]), register_row(operands[1]), width_of(i)

    def run(w, m):
        at = (of(w) - U64(BASE)).view(I64)[m]
        count_sectors(w, "stores", at, size)
        if size < 4:
            w.machine.memory.bytes.view(kind)[at // size] = w.r[row][m].astype(kind)
            return
        for k in range(size // 4):
            w.machine.words[at // 4 + k] = w.r[row + k if row != RZ else RZ][m]

    return run


def red(i, operands, modifiers):
    of, row = address(operands[0]), register_row(operands[1])
    vector = next((int(m[4:]) for m in modifiers if m.startswith("F32x")), 1)

    def run(w, m):
        at = (of(w) - U64(BASE)).view(I64)[m]
        count_sectors(w, "additions", at, 4 * vector)
        for k in range(vector):
            np.add.at(w.machine.floats, at // 4 + k, w.r[row + k].view(F32)[m])

    return run


def lds(i, operands, modifiers):
    put, of, (size, kind) = Writer(operands[0]), address(operands[1]), width_of(i)

    def run(w, m):
        at = (of(w) & U64(0xFFFFFF)).astype(I64)[m]
        if size < 4:
            w.r[put.row][m] = w.block.shared.view(kind)[at // size].astype(I64).astype(U32)
            return
        for k in range(size // 4):
            w.r[put.row + k][m] = w.block.shared[at // 4 + k]

    return run


def sts(i, operands, modifiers):
    of, row, (size, kind) = address(operands[0]), register_row(operands[1]), width_of(i)

    def run(w, m):
        at = (of(w) & U64(0xFFFFFF)).astype(I64)[m]
        if size < 4:
            w.block.shared.view(kind)[at // size] = w.r[row][m].astype(kind)
            return
        for k in range(size // 4):
            w.block.shared[at // 4 + k] = w.r[row + k if row != RZ else RZ][m]

    return run


def atoms(i, operands, modifiers):
    put, of, add = (
        Writer(operands[0]),
        address(operands[1]),
        integer(operands[2]) if len(operands) > 2 else None,
    )
    if not modifiers & {"ADD", "INC"}:
        return partial(unknown, i)

    def run(w, m):
        at = (of(w) & U64(0xFFFFFF)).astype(I64) // 4
        more = np.broadcast_to(add(w) if add else U32(1), 32)
        for lane in np.flatnonzero(m):
            before = w.block.shared[at[lane]]
            w.block.shared[at[lane]] = U32((int(before) + int(more[lane])) & 0xFFFFFFFF)
            if put.row != RZ:
                w.r[put.row][lane] = before

    return run


def ldl(i, operands, modifiers):
    put, of, (size, _) = Writer(operands[0]), address(operands[1]), width_of(i)

    def run(w, m):
        at = (of(w) & U64(0xFFF)).astype(I64) // 4
        for k in range(size // 4):
            w.r[put.row + k][m] = w.local[LANES, at + k][m]

    return run


def stl(i, operands, modifiers):
    of, row, (size, _) = address(operands[0]), register_row(operands[1]), width_of(i)

    def run(w, m):
        at = (of(w) & U64(0xFFF)).astype(I64) // 4
        for k in range(size // 4):
            w.local[LANES[m], at[m] + k] = w.r[row + k][m]

    return run


MAKERS = {
    "IADD3": iadd3,
    "IADD": iadd,
    "IMAD": imad,
    "LEA": lea,
    "SHF": shf,
    "LOP3": lop3,
    "PLOP3": plop3,
    "ISETP": setp(signed),
    "FSETP": setp(real),
    "SEL": sel(integer),
    "FSEL": sel(real),
    "VIADD": simple(np.add, "ii"),
    "IABS": simple(lambda x: np.abs(x), "s"),
    "MOV": mov,
    "CS2R": move_wide,
    "FADD": simple(np.add, "ff"),
    "FMUL": simple(np.multiply, "ff"),
    "FFMA": simple(fused, "fff"),
    "FMNMX": minmax(real, 2),
    "FMNMX3": minmax(real, 3),
    "IMNMX": minmax(signed, 2),
    "VIMNMX": minmax(signed, 2),
    "VIMNMX3": minmax(signed, 3),
    "VIADDMNMX": minmax(signed, 3, adds=True),
    "MUFU": mufu,
    "F2I": f2i,
    "I2F": i2f,
    "I2FP": i2f,
    "FRND": simple(np.floor, "f"),
    "PRMT": prmt,
    "F2FP": f2fp,
    "HFMA2": hfma2,
    "HADD2": hadd2,
    "LDC": ldc,
    "S2R": s2r,
    "S2UR": s2r,
    "SHFL": shfl,
    "VOTEU": vote,
    "VOTE": vote,
    "R2UR": r2ur,
    "R2P": r2p,
    "P2R": p2r,
    "FLO": flo,
    "POPC": popc,
    "LDG": ldg,
    "STG": stg,
    "RED": red,
    "REDG": red,
    "LDS": lds,
    "STS": sts,
    "ATOMS": atoms,
    "LDL": ldl,
    "STL": stl,
    "FCHK": lambda i, o, m: (
        lambda w, mask: set_predicate(w, mask, o[0], np.zeros(32, bool))
    ),  # no division is a special case
    "NOP": lambda *_: lambda w, m: None,
    "YIELD": lambda *_: lambda w, m: None,
}
