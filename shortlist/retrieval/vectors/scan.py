"""The kernel that looks at every code: products of a query's weights with 4-bit numbers, 64 vectors at a time.

A block of 64 vectors lies together, two dimensions after two. In 64 bytes, byte 2i holds vector i's number of the
first dimension in its lower four bits and vector i + 32's in its upper ones, byte 2i + 1 those of the second. So one
load, and one multiplication of pairs of bytes for each half, take 64 vectors two dimensions further (the layout of
Faiss' fast scan, with numbers in place of codewords: André, Kermarrec, Le Scouarnec, Quicker ADC, 2019). A processor
with AVX-512BW multiplies and adds pairs of bytes in one instruction; any other takes the same sums of 16-bit numbers.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

from shortlist.features.pointers import pointer, prefetch_once

BLOCK = 64
"""Vectors of a block, and bytes that hold two dimensions of them."""
LEVELS = 16
MOST = 2**15 - 1
"""The greatest sum that fits."""
STEEPEST = 127
"""The greatest weight that a signed byte holds."""
AHEAD = 16_384
"""Bytes that are asked for before their turn."""
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}

octets, words = pointer(types.uint8), pointer(types.int16)
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
BYTES, SUMS = ir.VectorType(I8, 64), ir.VectorType(I16, 32)


def has_byte_products() -> bool:
    """Whether the processor that numba compiles for multiplies and adds 64 pairs of bytes at once."""
    features: str | None = vars(config)["CPU_FEATURES"]  # as NUMBA_CPU_FEATURES says, for another processor than this
    if features is not None:
        return "+avx512bw" in features
    return bool(llvm.get_host_cpu_features().get("avx512bw", False))


def splat(builder: Any, number: Any) -> Any:
    """A vector of 32 times the same 16-bit number."""
    nothing = ir.Constant(SUMS, ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(I32, 32), [0] * 32))


def constant(number: int) -> Any:
    """A vector of 32 times the same constant."""
    return ir.Constant(SUMS, [number] * 32)


def pair_products(builder: Any, numbers: Any, pair: Any) -> Any:
    """Of 32 pairs of 4-bit numbers, bytes that hold nothing else, the sum of their products with a pair of weights."""
    if has_byte_products():
        kind = ir.FunctionType(SUMS, [BYTES, BYTES])
        name = "llvm.x86.avx512.pmaddubs.w.512"
        multiply = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        weights = builder.bitcast(splat(builder, pair), BYTES)
        return builder.call(multiply, [builder.bitcast(numbers, BYTES), weights])
    eight = ir.Constant(I16, 8)
    first = splat(builder, builder.ashr(builder.shl(pair, eight), eight))
    second = splat(builder, builder.ashr(pair, eight))
    even, odd = builder.and_(numbers, constant(0xFF)), builder.lshr(numbers, constant(8))
    return builder.add(builder.mul(even, first), builder.mul(odd, second))


def sums_of_block(_context, data, _start, _pairs, weights, out):  # type: ignore[no-untyped-def]
    """The sums of the block that begins at byte `start`, of so many `pairs` of dimensions: 64 into `out`.

    `weights` are signed bytes, two dimensions in each 16-bit number. Returns the greatest sum.
    """

    def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        data, start, pairs, weights, out = arguments
        base = builder.gep(data, [start])
        before, body, after = builder.block, builder.append_basic_block("pair"), builder.append_basic_block("all")
        builder.branch(body)
        builder.position_at_end(body)
        number, lower, upper = builder.phi(I64), builder.phi(SUMS), builder.phi(SUMS)
        place = builder.gep(base, [builder.mul(number, ir.Constant(I64, BLOCK))])
        held = builder.load(builder.bitcast(place, SUMS.as_pointer()))
        held.align = 1
        pair = builder.load(builder.gep(weights, [number]))
        low = builder.and_(held, constant(0x0F0F))
        high = builder.and_(builder.lshr(held, constant(4)), constant(0x0F0F))
        sums = (
            builder.add(lower, pair_products(builder, low, pair)),
            builder.add(upper, pair_products(builder, high, pair)),
        )
        following = builder.add(number, ir.Constant(I64, 1))
        for phi, begin, again in zip(
            (number, lower, upper),
            (ir.Constant(I64, 0), constant(0), constant(0)),
            (following, *sums),
            strict=True,
        ):
            phi.add_incoming(begin, before)
            phi.add_incoming(again, body)
        builder.cbranch(builder.icmp_signed("<", following, pairs), body, after)
        builder.position_at_end(after)
        target = builder.bitcast(out, SUMS.as_pointer())
        for half, total in enumerate(sums):
            builder.store(total, builder.gep(target, [ir.Constant(I32, half)])).align = 2
        greater = builder.select(builder.icmp_signed(">", *sums), *sums)
        name = "llvm.vector.reduce.smax.v32i16"
        kind = ir.FunctionType(I16, [SUMS])
        return builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [greater])

    return types.int16(data, types.int64, types.int64, weights, out), codegen


block_sums: Any = intrinsic(sums_of_block)


@njit("int64(uint8[::1], int64, int64, int16[::1], int64, int32[::1], int16[::1])", **OPTIONS)
def scan(codes, step, count, weights, least, rows, scores):  # type: ignore[no-untyped-def]
    """The vectors whose sum is at least `least`, in order: their number; `rows` and `scores` hold them.

    Looks at every `step`-th block, of `count` vectors in all. Returns -1 when there is no room for what it finds.
    """
    data, asked, pairs = octets(codes), words(weights), len(weights)
    sums = np.empty(BLOCK, np.int16)
    out, size, found = words(sums), pairs * BLOCK, 0
    for block in range(0, (count + BLOCK - 1) // BLOCK, step):
        start = block * size
        for place in range(start + AHEAD, start + AHEAD + size, BLOCK):
            prefetch_once(data, place)
        if block_sums(data, start, pairs, asked, out) < least:
            continue
        if found + BLOCK > len(rows):
            return -1
        for number in range(min(BLOCK, count - block * BLOCK)):
            if sums[number] >= least:
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
