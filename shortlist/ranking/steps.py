"""What vectors of a processor's whole width do: the steps of one group of leaves, and the ranks of values.

All rows of a block take a step at once, and what is left of their leaves stays in registers; numba's loops would load
and store it at every step, and stop at half of that width. A value is compared with sixteen thresholds at once, twice:
halving the interval eight times waits for one comparison after the other. Any processor can do it: a vector of 64
bytes becomes as many as it takes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from shortlist.features.pointers import splat

WIDTH = 64
"""Rows in a vector, a byte each."""
RUNGS = 16
"""Thresholds that a value is compared with at once."""
I1, I8, I16, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(64)
ROWS, NUMBERS = ir.VectorType(I8, WIDTH), ir.VectorType(I16, WIDTH)


def at(builder: Any, data: Any, vector: int, kind: Any) -> Any:
    """Where the n-th vector of a kind lies, 64 numbers each."""
    return builder.bitcast(builder.gep(data, [ir.Constant(I64, vector * WIDTH)]), kind.as_pointer())


def read(builder: Any, place: Any) -> Any:
    """What lies at an address, wherever that is."""
    held = builder.load(place)
    held.align = 1
    return held


def keep(builder: Any, some: Any, given: Any, place: Any) -> None:
    """Write some of the given numbers to a place in memory, and leave the others there as they are."""
    builder.store(builder.select(some, given, read(builder, place)), place).align = 1


def stepping(vectors: int) -> Any:
    """An intrinsic that takes the steps from `first` to `stop`, those of one group, for so many vectors of rows.

    Step s takes the leaves that are not in `masks[s]` from the rows whose rank in plane `planes_of[s]` is above
    `ranks[s]`. Rows that keep leaves get these as `lowest`, and `group`, the group's number, as `where`.
    """

    def taken(_context, planes, planes_of, ranks, masks, first, stop, group, lowest, where):  # type: ignore[no-untyped-def]
        def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            planes, planes_of, ranks, masks, first, stop, group, lowest, where = arguments
            entry, blocks = builder.block, ("head", "step", "done")
            head, step, done = (builder.append_basic_block(name) for name in blocks)
            builder.branch(head)

            builder.position_at_end(head)
            number, leaves = builder.phi(I64), [builder.phi(ROWS) for _ in range(vectors)]
            builder.cbranch(builder.icmp_signed("<", number, stop), step, done)

            builder.position_at_end(step)
            plane = builder.sext(builder.load(builder.gep(planes_of, [number])), I64)
            rank, mask = (splat(builder, builder.load(builder.gep(data, [number])), ROWS) for data in (ranks, masks))
            start = builder.gep(planes, [builder.mul(plane, ir.Constant(I64, vectors * WIDTH))])
            for vector, rows in enumerate(leaves):
                beyond = builder.icmp_unsigned(">", read(builder, at(builder, start, vector, ROWS)), rank)
                rows.add_incoming(ir.Constant(ROWS, [255] * WIDTH), entry)
                rows.add_incoming(builder.select(beyond, builder.and_(rows, mask), rows), step)
            number.add_incoming(first, entry)
            number.add_incoming(builder.add(number, ir.Constant(I64, 1)), step)
            builder.branch(head)

            builder.position_at_end(done)
            for vector, rows in enumerate(leaves):
                some = builder.icmp_unsigned("!=", rows, ir.Constant(ROWS, [0] * WIDTH))
                keep(builder, some, rows, at(builder, lowest, vector, ROWS))
                keep(builder, some, splat(builder, group, NUMBERS), at(builder, where, vector, NUMBERS))
            return _context.get_dummy_value()

        return types.void(planes, planes_of, ranks, masks, first, stop, group, lowest, where), codegen

    return intrinsic(taken)


def in_place_of_bits(_context, data, first):  # type: ignore[no-untyped-def]
    """Puts in the place of each of the 64 bytes of `data` from `first` on the number of its lowest bit."""

    def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        name, kind = f"llvm.cttz.v{WIDTH}i8", ir.FunctionType(ROWS, [ROWS, I1])
        trailing_zeros = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ROWS.as_pointer())
        builder.store(builder.call(trailing_zeros, [read(builder, place), ir.Constant(I1, 1)]), place).align = 1
        return _context.get_dummy_value()

    return types.void(data, first), codegen


number_lowest_bits: Any = intrinsic(in_place_of_bits)


def those_below(_context, ladder, place, value):  # type: ignore[no-untyped-def]
    """How many of the sixteen numbers of `ladder` from `place` on are less than the value."""

    def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        ladder, place, value = arguments
        kind = ir.VectorType(ir.DoubleType(), RUNGS)
        rungs = builder.load(builder.bitcast(builder.gep(ladder, [place]), kind.as_pointer()))
        rungs.align = 8
        less = builder.fcmp_ordered("<", rungs, splat(builder, value, kind))
        return builder.zext(builder.ctpop(builder.bitcast(less, I16)), I64)

    return types.int64(ladder, place, value), codegen


below: Any = intrinsic(those_below)
take_128, take_256, take_512 = (stepping(rows // WIDTH) for rows in (128, 256, 512))
