"""Runs the machine code of a CUDA kernel, without a GPU: what nvdisasm prints, interpreted warp by warp.

It knows the instructions that our kernels consist of, for sm_80 to sm_120, and counts how often each is
issued. What a kernel writes can be compared with what it should; time, caches and occupancy are not
simulated. Lanes of a warp that took different branches run one after the other and meet again at BSYNC.
:mod:`benchmarks.kernel_estimates` uses it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import partial

import numpy as np

from benchmarks.machine_instructions import (
    ALL,
    BASE,
    F32,
    I32,
    I64,
    LANES,
    U32,
    U64,
    UNIFORM,
    WITHOUT_PREFIX,
    Instruction,
    is_predicate,
    make,
    predicate,
    unknown,
)


class Memory:
    """Arrays one after the other, each at a multiple of 256 bytes."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.places, end = {}, 0
        for name, array in arrays.items():
            self.places[name] = (end, array.nbytes, array.dtype, array.shape)
            end += -(-array.nbytes // 256) * 256
        self.bytes = np.zeros(end, np.uint8)
        for name, array in arrays.items():
            self[name][...] = array

    def __getitem__(self, name: str) -> np.ndarray:
        start, size, dtype, shape = self.places[name]
        return self.bytes[start : start + size].view(dtype).reshape(shape)

    def address(self, name: str | None) -> int:
        return 0 if name is None else BASE + self.places[name][0]


class Warp:
    def __init__(self, block: Block, index: int):
        self.block, self.machine, self.constants = block, block.machine, block.machine.constants
        self.r = np.zeros((512, 32), U32)
        self.p = np.zeros((16, 32), bool)
        self.p[7] = self.p[15] = True
        self.thread = index * 32 + LANES
        self.pc = np.zeros(32, I32)
        self.alive, self.ready = ALL.copy(), ALL.copy()
        self.at_barrier = False
        self.members = np.zeros((16, 32), U32)  # of each convergence barrier, as the lane knows it
        self.waits = np.full(32, -1)  # for which one
        self.local = np.zeros((32, 1024), U32)

    def advance(self) -> None:
        """Runs until all lanes have exited or wait for the block."""
        code, counts = self.machine.code, self.machine.counts
        while self.ready.any():
            pc = int(self.pc[self.ready].min())
            mask = self.ready & (self.pc == pc)
            self.go_on = True
            while self.go_on:
                i = code[pc]
                counts[pc] += 1
                pc += 1
                if i.guard is None:
                    active = mask
                else:
                    row, negated = i.guard
                    active = mask & (~self.p[row] if negated else self.p[row])
                if i.control:
                    pc, mask = i.run(self, mask, active, pc)
                elif i.uniform:
                    if active.any():
                        i.run(self, ALL)
                elif active.any():
                    i.run(self, active)

    def release(self) -> None:
        """Lets lanes go whose convergence barrier all of its living members have reached."""
        for lane in np.flatnonzero(self.waits >= 0):
            which = self.waits[lane]
            if which < 0:
                continue
            members = (self.members[which, lane] >> LANES.astype(U32) & U32(1)).astype(bool) & self.alive
            if (self.waits[members] == which).all():
                self.waits[members] = -1
                self.ready |= members


class Block:
    def __init__(self, machine: Machine, index: tuple[int, int, int], threads: int, shared: int):
        self.machine, self.index = machine, index
        self.shared = np.full(shared // 4 + 8, 0xFFFFFFFF, U32)
        self.warps = [Warp(self, i) for i in range(threads // 32)]

    def run(self) -> None:
        while any(warp.alive.any() for warp in self.warps):
            for warp in self.warps:
                if warp.at_barrier:
                    warp.at_barrier = False
                    warp.ready = warp.alive.copy()
                warp.advance()
                if warp.alive.any() and not warp.at_barrier:
                    raise RuntimeError("lanes wait for each other")


class Machine:
    """One kernel's code, its constants (parameters), memory and counters."""

    def __init__(self, code: list[Instruction], memory: Memory, constants: np.ndarray, shared: int):
        self.code, self.memory, self.shared = code, memory, shared
        self.constants = constants.view(U32)
        self.words = memory.bytes.view(U32)
        self.floats = memory.bytes.view(F32)
        self.counts = np.zeros(len(code), I64)
        self.sectors: Counter[str] = Counter()

    def run(self, index: tuple[int, int, int], threads: int) -> None:
        with np.errstate(all="ignore"):
            Block(self, index, threads, self.shared).run()

    def by_name(self) -> Counter[str]:
        names: Counter[str] = Counter()
        for i, count in zip(self.code, self.counts, strict=True):
            names[i.name] += int(count)
        return names


# Control flow: takes the warp, the lanes that are here, those whose predicate holds and the next instruction;
# returns where to go on, and with which lanes.


def branch(i, w, mask, active, pc):
    if "U" in i.modifiers:
        flag = next(o for o in i.operands if is_predicate(o))
        active = active & predicate(flag)(w)
    else:
        flags = [o for o in i.operands if is_predicate(o)]
        for flag in flags:
            active = active & predicate(flag)(w)
    if "DIV" in i.modifiers and (mask == w.alive).all():
        return pc, mask  # only for warps whose lanes are apart
    if not active.any():
        return pc, mask
    if (active == mask).all():
        return i.target, mask
    w.pc[active], w.pc[mask & ~active] = i.target, pc
    w.go_on = False
    return pc, mask


def leave(i, w, mask, active, pc):
    w.alive &= ~active
    w.ready &= ~active
    w.release()
    mask = mask & ~active
    w.pc[mask] = pc
    w.go_on = bool(mask.any()) and not (w.ready & ~mask).any()
    return pc, mask


def bits_of(mask: np.ndarray) -> np.uint32:
    return U32(int((mask.astype(U64) << LANES.astype(U64)).sum()))


def open_barrier(i, w, mask, active, pc):
    w.members[int(i.operands[0][1:])][mask] = bits_of(mask)
    return pc, mask


def close_barrier(i, w, mask, active, pc):
    return meet(w, int(i.operands[0][1:]), mask, active, pc)


def meet(w, which, mask, active, pc):
    """Lanes wait for the barrier's other members that have not exited."""
    members = int(w.members[which][np.flatnonzero(active)[0]]) if active.any() else 0
    if active.any() and (members & ~int(bits_of(active)) & int(bits_of(w.alive))) == 0:
        return pc, mask  # everybody is here
    w.pc[mask] = pc
    w.waits[active] = which
    w.ready &= ~active
    w.release()
    w.go_on = False
    return pc, mask


def break_barrier(i, w, mask, active, pc):
    which = int(next(o for o in i.operands if re.fullmatch(r"B\d+", o))[1:])
    w.members[which] &= ~bits_of(active)
    w.pc[mask] = pc
    w.release()
    return pc, mask


def block_barrier(i, w, mask, active, pc):
    if not (mask == w.alive).all():
        raise RuntimeError("a barrier that not all lanes of a warp reach together")
    w.pc[mask] = pc
    w.ready[:] = False
    w.at_barrier = True
    w.go_on = False
    return pc, mask


def warp_barrier(i, w, mask, active, pc):
    w.members[15][:] = 0xFFFFFFFF
    return meet(w, 15, mask, active, pc)


def vote_here(i, w, mask, active, pc):
    w.voters = active
    i.inner(w, active)
    return pc, mask


def call(i, w, mask, active, pc):
    """Also a branch within the kernel is written so. Subroutines are for divisions near float32's limits."""
    if i.target >= 0 and "`(.L_x" in i.text:
        return branch(i, w, mask, active, pc)
    return unknown(i) if active.any() else (pc, mask)


CONTROL = {
    "BRA": branch, "EXIT": leave, "BSSY": open_barrier, "BSYNC": close_barrier, "BREAK": break_barrier,
    "BAR": block_barrier, "WARPSYNC": warp_barrier,
    "CALL": call, "RET": call,
}  # fmt: skip
HERE = ("VOTEU", "VOTE", "R2UR")


class Kernel:
    """A kernel's instructions, and where its labels are."""

    def __init__(self):
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.literals: list[int] = []  # constant bank 2, byte by byte

    def prepare(self) -> list[Instruction]:
        """Makes the instructions runnable."""
        for i in self.code:
            i.operands = [self.literal(operand) for operand in i.operands]
            i.control = i.name in CONTROL or i.name in HERE
            i.uniform = (i.name.startswith("U") and i.name in UNIFORM) or i.name in WITHOUT_PREFIX
            if i.name in HERE:
                i.inner, i.run = make(i), partial(vote_here, i)
            elif i.control:
                i.run = partial(CONTROL[i.name], i)
                goal = next((re.search(r"`\((.*)\)", o) for o in i.operands if "`(" in o), None)
                if goal and goal[1] in self.labels:
                    i.target = self.labels[goal[1]]
            else:
                i.run = make(i)
        return self.code

    def literal(self, operand: str) -> str:
        found = re.search(r"c\[0x2\]\[(0x[0-9a-f]+)\]", operand)
        if found is None:
            return operand
        at = int(found[1], 16)
        value = int.from_bytes(bytes(self.literals[at : at + 4]), "little")
        return operand.replace(found[0], hex(value))


def kernels(listing: str) -> dict[str, Kernel]:
    """The kernels of what ``nvdisasm`` prints, by their (mangled) names."""
    found: dict[str, Kernel] = defaultdict(Kernel)
    kernel, data = Kernel(), None
    for line in listing.splitlines():
        head = re.match(r"\.(text|nv\.constant2)\.(\S+):\s*$", line)
        if head:
            kernel = found[head[2]]
            data = kernel.literals if head[1] != "text" else None
        elif line.startswith("//------"):
            data, kernel = None, Kernel()
        elif data is not None and (values := re.match(r"\s+/\*[0-9a-f]+\*/\s+\.byte\s+(.*)", line)):
            data += [int(value, 16) for value in values[1].split(",")]
        elif label := re.match(r"(\S+):\s*$", line):
            kernel.labels[label[1]] = len(kernel.code)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+([^.\s].*?)\s*;", line):
            kernel.code.append(Instruction(instruction[1]))
    return {name: kernel for name, kernel in found.items() if kernel.code}
