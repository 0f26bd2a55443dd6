"""The steps of one group of leaves, for all rows of a block at once; what is left of them stays in registers.

numba's loops would load and store it at every step, and stop at half of the width of a processor's vectors. Any
processor can do it: a vector of 64 bytes becomes as many as it takes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from shortlist.features.pointers import splat

WIDTH = 64
"""Rows in a vector, a byte each."""
I8, I64 = ir.IntType(8), ir.IntType(64)
ROWS = ir.VectorType(I8, WIDTH)


def at(builder: Any, data: Any, vector: int) -> Any:
    """Where a vector of some bytes lies."""
    return builder.bitcast(builder.gep(data, [ir.Constant(I64, vector * WIDTH)]), ROWS.as_pointer())


def stepping(vectors: int) -> Any:
    """An intrinsic that takes the steps from `first` to `stop` for so many vectors of rows; `left` is what stays.

    Step s takes the leaves that are not in `masks[s]` from the rows whose rank in plane `planes_of[s]` is above
    `ranks[s]`. `least` and `greatest` are those of each plane: a step that all rows take, or none, looks at none of
    them, as what is said of the user is the same for every candidate.
    """

    def taken(_context, planes, planes_of, ranks, masks, least, greatest, first, stop, left):  # type: ignore[no-untyped-def]
        def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            planes, planes_of, ranks, masks, least, greatest, first, stop, left = arguments
            entry, blocks = builder.block, ("head", "step", "look", "next", "done")
            head, step, look, following, done = (builder.append_basic_block(name) for name in blocks)
            everything = ir.Constant(ROWS, [255] * WIDTH)
            builder.branch(head)

            builder.position_at_end(head)
            number, of_all = builder.phi(I64), builder.phi(I8)
            leaves = [builder.phi(ROWS) for _ in range(vectors)]
            builder.cbranch(builder.icmp_signed("<", number, stop), step, done)

            builder.position_at_end(step)
            plane = builder.sext(builder.load(builder.gep(planes_of, [number])), I64)
            rank, mask = (builder.load(builder.gep(data, [number])) for data in (ranks, masks))
            low, high = (builder.load(builder.gep(data, [plane])) for data in (least, greatest))
            all_rows = builder.icmp_unsigned(">", low, rank)
            now_of_all = builder.select(all_rows, builder.and_(of_all, mask), of_all)
            some_rows = builder.and_(builder.icmp_unsigned(">", high, rank), builder.not_(all_rows))
            builder.cbranch(some_rows, look, following)

            builder.position_at_end(look)
            start = builder.gep(planes, [builder.mul(plane, ir.Constant(I64, vectors * WIDTH))])
            kept, above = [], splat(builder, rank, ROWS)
            for vector, rows in enumerate(leaves):
                held = builder.load(at(builder, start, vector))
                held.align = 1
                beyond = builder.icmp_unsigned(">", held, above)
                kept.append(builder.select(beyond, builder.and_(rows, splat(builder, mask, ROWS)), rows))
            builder.branch(following)

            builder.position_at_end(following)
            joined = [builder.phi(ROWS) for _ in range(vectors)]
            for phi, before, after in zip(joined, leaves, kept, strict=True):
                phi.add_incoming(before, step)
                phi.add_incoming(after, look)
            another = builder.add(number, ir.Constant(I64, 1))
            builder.branch(head)

            begun = (first, ir.Constant(I8, 255), *[everything] * vectors)
            for phi, begin, again in zip((number, of_all, *leaves), begun, (another, now_of_all, *joined), strict=True):
                phi.add_incoming(begin, entry)
                phi.add_incoming(again, following)

            builder.position_at_end(done)
            for vector, rows in enumerate(leaves):
                builder.store(builder.and_(rows, splat(builder, of_all, ROWS)), at(builder, left, vector)).align = 1
            return _context.get_dummy_value()

        return types.void(planes, planes_of, ranks, masks, least, greatest, first, stop, left), codegen

    return intrinsic(taken)


take_128, take_256, take_512 = (stepping(rows // WIDTH) for rows in (128, 256, 512))
