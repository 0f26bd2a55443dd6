"""The kernel that looks at every code: products of a query's weights with 4-bit numbers, 64 vectors at a time.

A block of 64 vectors lies together, four dimensions after four. In the first 64 bytes of these, byte 4i + j holds
vector i's number of the j-th dimension in its lower four bits and vector i + 16's in its upper ones; the next 64 hold
vectors 32 + i and 48 + i (the layout of Faiss' fast scan, with numbers in place of codewords: André, Kermarrec, Le
Scouarnec, Quicker ADC, 2019). A processor with AVX-512 VNNI multiplies four bytes and adds them to a sum in one
instruction: the bytes as they are give both vectors' products at once, their upper bits alone give one's, and the other
is what is left. Any other processor takes the same sums of 16-bit numbers.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

from shortlist.features.pointers import octets_of, pointer, rows_of, splat

BLOCK = 64
"""Vectors of a block."""
LEVELS = 16
MOST = 2**15 - 1
"""The greatest sum that fits."""
STEEPEST = 127
"""The greatest weight that a signed byte holds."""
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}

words = pointer(types.int16)
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
SUMS = ir.VectorType(I32, 16)
LINES = BLOCK // 32
"""Cache lines that hold four dimensions of a block."""


def has_byte_products() -> bool:
    """Whether the processor that numba compiles for multiplies 64 bytes, and adds them by four, at once."""
    features: str | None = vars(config)["CPU_FEATURES"]  # as NUMBA_CPU_FEATURES says, for another processor than this
    if features is not None:
        return "+avx512vnni" in features
    return bool(llvm.get_host_cpu_features().get("avx512vnni", False))


def constant(number: int, kind: Any) -> Any:
    """A vector of `kind`, every element of which is the same constant."""
    return ir.Constant(kind, [number] * kind.count)


class ByteProducts:
    """Sums of 32 vectors where bytes can be multiplied: of both halves, the upper one times 16, and of that alone."""

    KIND = SUMS

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def add(self, sums: tuple[Any, Any], held: Any, weights: Any) -> tuple[Any, Any]:
        """The sums with the products of four more dimensions."""
        upper = self.builder.and_(held, constant(0xF0F0F0F0, SUMS))
        return self._products(sums[0], held, weights), self._products(sums[1], upper, weights)

    def halves(self, sums: tuple[Any, Any]) -> tuple[Any, Any]:
        """The sums of the 16 vectors in lower bits, and of the 16 in upper ones."""
        return self.builder.sub(*sums), self.builder.ashr(sums[1], constant(4, SUMS))

    def _products(self, sums: Any, held: Any, weights: Any) -> Any:
        name, kind = "llvm.x86.avx512.vpdpbusd.512", ir.FunctionType(SUMS, [SUMS, SUMS, SUMS])
        multiply = self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name)
        return self.builder.call(multiply, [sums, held, splat(self.builder, weights, SUMS)])


class PlainProducts:
    """The same anywhere: of the lower half, and of the upper, of each vector two sums of 16 bits."""

    KIND = ir.VectorType(I16, 32)

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def add(self, sums: tuple[Any, Any], held: Any, weights: Any) -> tuple[Any, Any]:
        """The sums with the products of four more dimensions."""
        pairs = self.builder.bitcast(held, self.KIND)
        signed = self.builder.bitcast(splat(self.builder, weights, SUMS), self.KIND)
        eight = constant(8, self.KIND)
        even, odd = self.builder.ashr(self.builder.shl(signed, eight), eight), self.builder.ashr(signed, eight)
        return self._add(sums[0], pairs, 0, even, odd), self._add(sums[1], pairs, 4, even, odd)

    def halves(self, sums: tuple[Any, Any]) -> tuple[Any, Any]:
        """The sums of the 16 vectors in lower bits, and of the 16 in upper ones."""
        return self._joined(sums[0]), self._joined(sums[1])

    def _add(self, sums: Any, pairs: Any, bits: int, even: Any, odd: Any) -> Any:
        for shift, weights in ((bits, even), (bits + 8, odd)):
            numbers = self.builder.and_(
                self.builder.lshr(pairs, constant(shift, self.KIND)), constant(LEVELS - 1, self.KIND)
            )
            sums = self.builder.add(sums, self.builder.mul(numbers, weights))
        return sums

    def _joined(self, sums: Any) -> Any:
        both, sixteen = self.builder.bitcast(sums, SUMS), constant(16, SUMS)
        first = self.builder.ashr(self.builder.shl(both, sixteen), sixteen)
        return self.builder.add(first, self.builder.ashr(both, sixteen))


def sums_of_block(_context, data, _start, _quads, weights, _least, out):  # type: ignore[no-untyped-def]
    """Which of a block's 64 sums are at least `least`, as bits; where there are any, `out` gets all sums.

    The block begins at byte `start` and has so many `quads` of dimensions. `weights` are signed bytes, four in each
    32-bit number.
    """

    def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        data, start, quads, weights, least, out = arguments
        products = ByteProducts(builder) if has_byte_products() else PlainProducts(builder)
        base = builder.gep(data, [start])
        before, body, after = (builder.block, *(builder.append_basic_block(name) for name in ("quad", "all")))
        builder.branch(body)
        builder.position_at_end(body)
        number = builder.phi(I64)
        sums = [(builder.phi(products.KIND), builder.phi(products.KIND)) for _ in range(LINES)]
        place = builder.gep(base, [builder.mul(number, ir.Constant(I64, LINES * 64))])
        asked, following = builder.load(builder.gep(weights, [number])), builder.add(number, ir.Constant(I64, 1))
        number.add_incoming(ir.Constant(I64, 0), before)
        number.add_incoming(following, body)
        grown = []
        for line, phis in enumerate(sums):
            held = builder.load(builder.bitcast(builder.gep(place, [ir.Constant(I64, line * 64)]), SUMS.as_pointer()))
            held.align = 64
            grown.append(products.add(phis, held, asked))
            for phi, sum_ in zip(phis, grown[-1], strict=True):
                phi.add_incoming(constant(0, products.KIND), before)
                phi.add_incoming(sum_, body)
        builder.cbranch(builder.icmp_signed("<", following, quads), body, after)
        builder.position_at_end(after)
        parts = [half for pair in grown for half in products.halves(pair)]
        enough = splat(builder, least, SUMS)
        bits = ir.Constant(I64, 0)
        for place, part in enumerate(parts):
            reached = builder.bitcast(builder.icmp_signed(">=", part, enough), I16)
            bits = builder.or_(bits, builder.shl(builder.zext(reached, I64), ir.Constant(I64, 16 * place)))
        with builder.if_then(builder.icmp_unsigned("!=", bits, ir.Constant(I64, 0))):
            target = builder.bitcast(out, ir.VectorType(I16, 16).as_pointer())
            for place, part in enumerate(parts):
                narrow = builder.trunc(part, ir.VectorType(I16, 16))
                builder.store(narrow, builder.gep(target, [ir.Constant(I32, place)])).align = 2
        return bits

    return types.uint64(data, types.int64, types.int64, weights, types.int32, out), codegen


block_sums: Any = intrinsic(sums_of_block)


def place_of_lowest(_context, _bits):  # type: ignore[no-untyped-def]
    """The place of the lowest bit that is set."""

    def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.Constant(I1, 1))

    return types.int64(types.uint64), codegen


lowest: Any = intrinsic(place_of_lowest)


@njit("int64(uint8[::1], int64, int64, int32[::1], int64, int32[::1], int16[::1])", **OPTIONS)
def scan(codes, step, count, weights, least, rows, scores):  # type: ignore[no-untyped-def]
    """The vectors whose sum is at least `least`, in order: their number; `rows` and `scores` hold them.

    Looks at every `step`-th block, of `count` vectors in all. Returns -1 when there is no room for what it finds.
    """
    data, asked, quads = octets_of(codes), rows_of(weights), len(weights)
    sums = np.empty(BLOCK, np.int16)
    out, size, found = words(sums), quads * LINES * 64, 0
    for block in range(0, (count + BLOCK - 1) // BLOCK, step):
        bits = block_sums(data, block * size, quads, asked, np.int32(least), out)
        if bits == 0:
            continue
        if found + BLOCK > len(rows):
            return -1
        while bits != 0:
            number = lowest(bits)
            bits &= bits - np.uint64(1)
            if block * BLOCK + number < count:
                rows[found] = block * BLOCK + number
                scores[found] = sums[number]
                found += 1
    return found


@njit("void(float32[::1], int8[::1])", **OPTIONS)
def as_bytes(weights, out):  # type: ignore[no-untyped-def]
    """Weights as signed bytes in proportion, as great as they can be without any sum becoming too great."""
    steep, up, down = np.float32(0), np.float64(0), np.float64(0)
    for i in range(len(weights)):
        steep = max(steep, abs(weights[i]))
        up += max(weights[i], np.float32(0))
        down -= min(weights[i], np.float32(0))
    out[:] = 0
    if steep > 0:
        scale = min(STEEPEST / steep, (MOST - LEVELS // 2 * len(weights)) / ((LEVELS - 1) * max(up, down)))
        for i in range(len(weights)):
            out[i] = np.int8(np.rint(weights[i] * scale))


@njit("int64(int16[::1], int64)", **OPTIONS)
def nth_greatest(sums, n):  # type: ignore[no-untyped-def]
    """The n-th greatest of some sums, n from 1: by counting upper bytes, and then the lower ones of those that matter.

    Sorting halves of tens of thousands takes five times as long.
    """
    upper, lower = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for i in range(len(sums)):
        upper[(sums[i] >> 8) + 128] += 1
    high = 255
    while n > upper[high]:
        n -= upper[high]
        high -= 1
    for i in range(len(sums)):
        if (sums[i] >> 8) + 128 == high:
            lower[sums[i] & 255] += 1
    low = 255
    while n > lower[low]:
        n -= lower[low]
        low -= 1
    return (high - 128) * 256 + low
