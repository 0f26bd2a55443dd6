"""Arrays as bare pointers, and what else the compiler's own language is needed for in inner functions.

Passing arrays to them would count references with two atomic instructions per array and event, which cost more than
the event itself. The caller of the outermost function keeps the arrays alive. One that is made in there is freed behind
its last use as an array, whatever pointers there are to it: do not take the pointer of an array that is not used later.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def pointer(dtype: Any) -> Any:
    """An intrinsic that gives an array's data as a pointer to `dtype`."""

    @intrinsic
    def data(_context, array):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            struct = context.make_array(signature.args[0])(context, builder, arguments[0])
            return builder.bitcast(struct.data, context.get_value_type(dtype).as_pointer())

        return types.CPointer(dtype)(array), codegen  # type: ignore[no-untyped-call]

    return data


def ask_for_line(_context, data, index):  # type: ignore[no-untyped-def]
    """Asks for the cache line of `data[index]`."""

    def codegen(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(8).as_pointer())
        hint = [ir.Constant(ir.IntType(32), number) for number in (0, 3, 1)]  # to read, into all levels of cache, data
        kind = ir.FunctionType(ir.VoidType(), [address.type, *(number.type for number in hint)])
        builder.call(builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind), [address, *hint])
        return context.get_dummy_value()

    return types.void(data, index), codegen


prefetch: Any = intrinsic(ask_for_line)


def splat(builder: Any, number: Any, kind: Any) -> Any:
    """A vector of `kind`, every element of which is the same number."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        one, nothing, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    )


integers, reals, octets_of = pointer(types.int64), pointer(types.float64), pointer(types.uint8)
words_of = pointer(types.uint64)
rows_of, numbers_of = pointer(types.int32), pointer(types.uint16)


def same_bits(came: Any, becomes: Any) -> Any:
    """An intrinsic that takes the 64 bits of a number of one type for those of a number of another."""

    @intrinsic
    def taken(_context, number):  # type: ignore[no-untyped-def]  # noqa: ARG001
        def codegen(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            return builder.bitcast(arguments[0], context.get_value_type(becomes))

        return becomes(came), codegen

    return taken


bits_of, real_of = same_bits(types.float64, types.int64), same_bits(types.int64, types.float64)
