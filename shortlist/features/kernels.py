"""The state machine: one interpreter over descriptor arrays folds events into rows of state and reads features off.

`walk` is the only function that touches state. Live updates, live reads and replay all call it, so they cannot
differ. A row of state is `words` 64-bit words, seen as int64 or float64; row 0 of every table is the template: what
a key looks like of which nothing is known. What a window, a missing value or a late event means is written down in
docs/features.md.

A row is a sequence of tile sets, one per (stream, window). A windowed tile set is three words (newest bucket, oldest
bucket that is initialised, slot of the newest) and a ring of tiles; one without a window is a single tile. A tile is a
sequence of lanes, each a partial aggregate of one field.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

NEVER = -(2**62)
"""A time before every event."""

# Columns of the tile-set descriptors.
STREAM, HOP, TILES, RING, BASE, WIDTH, LANES_FROM, LANES_TO, TILESET_FIELDS = range(9)
# Columns of the lane descriptors: SLOT is the record's column, SIZE a count of entries, HALF_LIFE in ms.
OP, SLOT, PLACE, NUMERIC, SIZE, HALF_LIFE, LANE_FIELDS = range(7)
# Columns of the output descriptors: FIRST and SECOND are places of lanes in the tile, DEST a column, EMPTY a word.
READ, TILESET, FIRST, SECOND, LENGTH, DECAY, DEST, EMPTY, OUTPUT_FIELDS = range(9)
# Columns of a record before its values; columns of a read.
OFFSET, AT, VALUES = range(3)
POSITION, NOW, TO, READ_FIELDS = range(4)

# What a lane does with an event.
(
    COUNT, SUM, MIN, MAX, PRESENT, WELFORD, LATEST, EARLIEST, NEWEST, RECENT, REGISTERS, FREQUENT, DECAYED,
    DECAYED_COUNT,
) = range(14)  # fmt: skip
# How an output reads its lanes.
(
    READ_TOTAL, READ_MEAN, READ_STD, READ_MIN, READ_MAX, READ_NUMBER, READ_SINCE, READ_DISTINCT, READ_DECAYED,
    READ_WORD, READ_RECENT, READ_FREQUENT,
) = range(12)  # fmt: skip

AHEAD, MOST_AHEAD = 1, 512
"""While one row is read, the one so many places later is fetched: its first words, so many of them."""

HEADER = 3
"""Words of a windowed tile set before its ring."""

options = {"nogil": True, "error_model": "numpy"}
inner = njit(**options, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def pointer(dtype: Any) -> Any:
    """An intrinsic that gives an array's data as a pointer to `dtype`.

    Inner functions work on pointers: passing arrays to them would count references with two atomic instructions per
    array and event, which cost more than the event. The caller of `walk` keeps the arrays alive.
    """

    @intrinsic
    def data(context, array):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            struct = context.make_array(signature.args[0])(context, builder, arguments[0])
            return builder.bitcast(struct.data, context.get_value_type(dtype).as_pointer())

        return types.CPointer(dtype)(array), codegen

    return data


@intrinsic
def prefetch(context, data, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of `data[index]`, to be read soon."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(8).as_pointer())
        hint = [ir.Constant(ir.IntType(32), number) for number in (0, 3, 1)]  # to read, keep in all levels, data
        kind = ir.FunctionType(ir.VoidType(), [address.type, *(number.type for number in hint)])
        builder.call(builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind), [address, *hint])
        return context.get_dummy_value()

    return types.void(data, index), codegen


integers, reals, octets_of = pointer(types.int64), pointer(types.float64), pointer(types.uint8)
rows_of = pointer(types.int32)


@inner
def mixed(word):  # type: ignore[no-untyped-def]
    """The 64-bit finaliser of MurmurHash3: every input bit moves every output bit."""
    h = np.uint64(word)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


@inner
def cleared(state, row, tiles, width, ring, slot, count):  # type: ignore[no-untyped-def]
    """Make `count` tiles of a ring empty again, from `slot` on: copy them from the template row."""
    before_wrap = min(count, ring - slot)
    for word in range(tiles + slot * width, tiles + (slot + before_wrap) * width):
        state[word] = state[word - row]
    for word in range(tiles, tiles + (count - before_wrap) * width):
        state[word] = state[word - row]


@inner
def tile_of(tilesets, t, state, row, at, late):  # type: ignore[no-untyped-def]
    """The address of the tile for an event at `at`, initialised; -1 where the event is too late for the ring."""
    start = row + tilesets[t + BASE]
    hop = tilesets[t + HOP]
    if hop == 0:
        return start
    bucket = np.int64(np.uint64(at) // np.uint64(hop))
    ring, width = tilesets[t + RING], tilesets[t + WIDTH]
    head, slot = state[start], state[start + 2]
    tiles = start + HEADER
    if bucket > head:
        step = bucket - head
        if step >= ring:
            slot = 0
            state[start + 1] = bucket
            cleared(state, row, tiles, width, ring, 0, 1)
        else:
            cleared(state, row, tiles, width, ring, slot + 1 if slot + 1 < ring else 0, step)
            slot = slot + step if slot + step < ring else slot + step - ring
            state[start + 1] = max(state[start + 1], bucket - ring + 1)
        state[start] = bucket
        state[start + 2] = slot
    elif bucket < head:
        back = head - bucket
        if back >= ring:
            late[t // TILESET_FIELDS] += 1
            return -1
        slot = slot - back if slot >= back else slot - back + ring
        if bucket < state[start + 1]:
            cleared(state, row, tiles, width, ring, slot, state[start + 1] - bucket)
            state[start + 1] = bucket
    return tiles + slot * width


@inner
def recent_inserted(state, a, size, at, word):  # type: ignore[no-untyped-def]
    """Insert into the newest `size` values at `a`: used, newest slot, then (at, value) in a circle; ties: later first."""
    used, newest = state[a], state[a + 1]
    entries = a + 2
    rank = 0
    while rank < used:
        slot = newest - rank if newest >= rank else newest - rank + size
        if state[entries + 2 * slot] <= at:
            break
        rank += 1
    if rank == size:
        return
    newest = newest + 1 if newest + 1 < size else 0
    for k in range(rank):
        slot = newest - k if newest >= k else newest - k + size
        older = slot - 1 if slot >= 1 else size - 1
        state[entries + 2 * slot] = state[entries + 2 * older]
        state[entries + 2 * slot + 1] = state[entries + 2 * older + 1]
    slot = newest - rank if newest >= rank else newest - rank + size
    state[entries + 2 * slot] = at
    state[entries + 2 * slot + 1] = word
    state[a + 1] = newest
    state[a] = min(used + 1, size)


@inner
def frequent_counted(state, a, size, word):  # type: ignore[no-untyped-def]
    """Space-Saving (Metwally et al. 2005): `size` (value, count) pairs; an unseen value takes over the least counted."""
    least = 0
    for k in range(size):
        count = state[a + 2 * k + 1]
        if count == 0 or state[a + 2 * k] == word:
            state[a + 2 * k] = word
            state[a + 2 * k + 1] = count + 1
            return
        if count < state[a + 2 * least + 1]:
            least = k
    state[a + 2 * least] = word
    state[a + 2 * least + 1] += 1


@inner
def register_raised(octets, a, size, word):  # type: ignore[no-untyped-def]
    """HyperLogLog (Flajolet et al. 2007): the first bits of the hash choose a register, the rest its rank."""
    h = mixed(word)
    bits = 0
    while (1 << bits) < size:
        bits += 1
    place = np.int64(h >> np.uint64(64 - bits))
    rest = (h << np.uint64(bits)) | (np.uint64(1) << np.uint64(bits - 1))
    rank = 1
    while rest >> np.uint64(63) == np.uint64(0):
        rest <<= np.uint64(1)
        rank += 1
    if rank > octets[8 * a + place]:
        octets[8 * a + place] = rank


@inner
def welford_added(real, a, x):  # type: ignore[no-untyped-def]
    """Welford's update of (n, mean, sum of squared differences)."""
    n = real[a] + 1.0
    difference = x - real[a + 1]
    real[a] = n
    real[a + 1] += difference / n
    real[a + 2] += difference * (x - real[a + 1])


@inner
def decayed_added(state, real, a, half_life, at, x):  # type: ignore[no-untyped-def]
    """Add `x` to a sum kept as of its latest event: (latest at, sum)."""
    latest = state[a]
    if latest == NEVER:
        state[a] = at
        real[a + 1] = x
    elif at >= latest:
        state[a] = at
        real[a + 1] = real[a + 1] * np.exp2((latest - at) / half_life) + x
    else:
        real[a + 1] += x * np.exp2((at - latest) / half_life)


@inner
def folded(op, state, real, octets, a, size, half_life, at, x, word):  # type: ignore[no-untyped-def]
    """Fold a value that is not missing (`x` as a number, `word` as its bits) into a lane of the larger kind at `a`."""
    if op == PRESENT:
        real[a] += 1.0
    elif op == NEWEST:
        state[a] = max(state[a], at)
    elif op == WELFORD:
        welford_added(real, a, x)
    elif op == LATEST:
        if at >= state[a]:
            state[a] = at
            state[a + 1] = word
    elif op == EARLIEST:
        if state[a] == NEVER or at < state[a]:
            state[a] = at
            state[a + 1] = word
    elif op == RECENT:
        recent_inserted(state, a, size, at, word)
    elif op == REGISTERS:
        register_raised(octets, a, size, word)
    elif op == FREQUENT:
        frequent_counted(state, a, size, word)
    elif op == DECAYED:
        decayed_added(state, real, a, half_life, at, x)
    else:
        decayed_added(state, real, a, half_life, at, 1.0)


@inner
def update(tilesets, count, lanes, state, real, octets, row, records, values, record, mask_at, late):  # type: ignore[no-untyped-def]
    """Fold the record that starts at word `record` into the row of state at `row`."""
    at = records[record + AT]
    mask = records[record + mask_at] if mask_at > 0 else np.int64(1)
    for t in range(0, count * TILESET_FIELDS, TILESET_FIELDS):
        if (mask >> tilesets[t + STREAM]) & 1 == 0:
            continue
        tile = tile_of(tilesets, t, state, row, at, late)
        if tile < 0:
            continue
        for k in range(tilesets[t + LANES_FROM] * LANE_FIELDS, tilesets[t + LANES_TO] * LANE_FIELDS, LANE_FIELDS):
            op = lanes[k + OP]
            a = tile + lanes[k + PLACE]
            if op == COUNT:
                real[a] += 1.0
                continue
            x = values[record + lanes[k + SLOT]]  # slot 0 is the offset: a number, which lanes without a value ignore
            if op == SUM:
                real[a] += x if x == x else 0.0
            elif op == MIN:
                real[a] = x if x < real[a] else real[a]
            elif op == MAX:
                real[a] = x if x > real[a] else real[a]
            else:
                word = records[record + lanes[k + SLOT]]
                if x == x if lanes[k + NUMERIC] == 1 else word != 0:
                    folded(op, state, real, octets, a, lanes[k + SIZE], lanes[k + HALF_LIFE], at, x, word)


@inner
def total(real, a, end, width, ring, count):  # type: ignore[no-untyped-def]
    """The sum of one lane over `count` tiles from `a` on, oldest first; `end` is the lane's place behind the ring."""
    result = 0.0
    for _ in range(count):
        result += real[a]
        a += width
        if a == end:
            a -= ring
    return result


@inner
def deviation(real, a, end, width, ring, count):  # type: ignore[no-untyped-def]
    """The population standard deviation over tiles by Chan's merge of (n, mean, squares); NaN where there is none."""
    n, mean, squares = 0.0, 0.0, 0.0
    for _ in range(count):
        if real[a] > 0.0:
            merged = n + real[a]
            difference = real[a + 1] - mean
            mean += difference * (real[a] / merged)
            squares += real[a + 2] + difference * difference * (n * real[a] / merged)
            n = merged
        a += width
        if a == end:
            a -= ring
    return np.sqrt(squares / n) if n > 0.0 else np.nan


@inner
def distinct(octets, a, end, width, ring, count, size, merged):  # type: ignore[no-untyped-def]
    """How many different values the merged registers saw: Ertl's improved estimator (2017), unbiased from 0 on."""
    for k in range(size):
        merged[k] = 0
    for _ in range(count):
        place = 8 * a
        for k in range(size):
            merged[k] = max(merged[k], octets[place + k])
        a += width
        if a == end:
            a -= ring
    counts = np.zeros(66, np.int64)
    for k in range(size):
        counts[merged[k]] += 1
    if counts[0] == size:
        return 0.0
    bits = 0
    while (1 << bits) < size:
        bits += 1
    top = 64 - bits
    z = 0.0
    share = 1.0 - counts[top + 1] / size
    if 0.0 < share < 1.0:
        y, z, before = 1.0, 1.0 - share, 2.0
        while z != before:
            share = np.sqrt(share)
            before = z
            y *= 0.5
            z -= (1.0 - share) * (1.0 - share) * y
        z = size * z / 3.0
    for k in range(top, 0, -1):
        z = 0.5 * (z + counts[k])
    share = counts[0] / size
    y, before, empty = 1.0, -1.0, share
    while empty != before:
        share *= share
        before = empty
        empty += share * y
        y += y
    return size / (2.0 * np.log(2.0)) * (size / (z + size * empty))


@inner
def listed(outputs, o, state, a, lists, place):  # type: ignore[no-untyped-def]
    """Write a list feature from `lists[place]` on, best first, and EMPTY behind its end."""
    dest, size, wanted = place + outputs[o + DEST], outputs[o + SECOND], outputs[o + LENGTH]
    written = 0
    if outputs[o + READ] == READ_WORD:
        if state[a] != NEVER:
            lists[dest] = state[a + 1]
            written = 1
    elif outputs[o + READ] == READ_RECENT:
        newest = state[a + 1]
        while written < state[a]:
            slot = newest - written if newest >= written else newest - written + size
            lists[dest + written] = state[a + 2 + 2 * slot + 1]
            written += 1
    else:
        bound, after = np.int64(2**62), np.int64(-1)
        while written < wanted:
            best = np.int64(-1)
            for k in range(size):
                count = state[a + 2 * k + 1]
                below = count < bound or (count == bound and k > after)
                if count > 0 and below and (best < 0 or count > state[a + 2 * best + 1]):
                    best = k
            if best < 0:
                break
            lists[dest + written] = state[a + 2 * best]
            bound, after = state[a + 2 * best + 1], best
            written += 1
    for k in range(written, wanted):
        lists[dest + k] = outputs[o + EMPTY]


@inner
def read(tilesets, outputs, count_of, state, real, octets, row, now, out, to, step, copies, apart, lists, list_at, merged):  # type: ignore[no-untyped-def]
    """Write every output as of `now` from the row of state at `row`.

    Column c goes to `out[to + c * step]` and `copies` places that lie `apart`, lists from `lists[list_at]` on.
    """
    last = np.int64(-1)
    start = first = count = width = ring = end = np.int64(0)
    for o in range(0, count_of * OUTPUT_FIELDS, OUTPUT_FIELDS):
        t = outputs[o + TILESET] * TILESET_FIELDS
        if t != last:
            last = t
            start = row + tilesets[t + BASE]
            first, count, width = start, np.int64(1), tilesets[t + WIDTH]
            ring = width
            if tilesets[t + HOP] > 0:
                newest = np.int64(np.uint64(now) // np.uint64(tilesets[t + HOP]))
                oldest = max(newest - tilesets[t + TILES], state[start + 1])
                head, slot = state[start], state[start + 2]
                count = max(min(newest, head) - oldest + 1, 0)
                slot -= head - oldest if count > 0 else 0
                first = start + HEADER + (slot if slot >= 0 else slot + tilesets[t + RING]) * width
                start += HEADER
                ring = tilesets[t + RING] * width
            end = start + ring
        how = outputs[o + READ]
        place = outputs[o + FIRST]
        a = first + place
        value = np.nan
        if how == READ_TOTAL:
            value = total(real, a, end + place, width, ring, count)
        elif how == READ_MEAN:
            n = total(real, a, end + place, width, ring, count)
            if n > 0.0:
                second = outputs[o + SECOND]
                value = total(real, first + second, end + second, width, ring, count) / n
        elif how == READ_MIN:
            value = np.inf
            for _ in range(count):
                value = min(value, real[a])
                a += width
                if a == end + place:
                    a -= ring
            value = value if value != np.inf else np.nan
        elif how == READ_MAX:
            value = -np.inf
            for _ in range(count):
                value = max(value, real[a])
                a += width
                if a == end + place:
                    a -= ring
            value = value if value != -np.inf else np.nan
        elif how == READ_STD:
            value = deviation(real, a, end + place, width, ring, count)
        elif how == READ_NUMBER:
            value = real[a + 1] if state[a] != NEVER else np.nan
        elif how == READ_SINCE:
            value = max(now - state[a], 0) / 1000.0 if state[a] != NEVER else np.nan
        elif how == READ_DECAYED:
            value = 0.0
            if state[a] != NEVER:
                value = real[a + 1] * np.exp2(min(state[a] - now, 0) / outputs[o + DECAY])
        elif how == READ_DISTINCT:
            value = distinct(octets, a, end + place, width, ring, count, outputs[o + LENGTH], merged)
        else:
            listed(outputs, o, state, a, lists, list_at)
            continue
        target = to + outputs[o + DEST] * step
        for copy in range(copies):
            out[target + copy * apart] = value


@njit(
    "void(int64[:,::1], int64[:,::1], int64[:,::1], int64[::1], int64, boolean, int32[::1], int64[:,::1], int64,"
    " int32[::1], int64[:,::1], int64, float64[:,:], int64[:,::1], int64[::1], uint8[::1])",
    cache=True,
    **options,
)
def walk(
    tilesets, lanes, outputs, state, words, keep, event_rows, records, mask_at, read_rows, reads, copies, out, lists,
    late, registers,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Fold events and answer reads, in order.

    `event_rows[i]` is the state row of `records[i]` (offset, at, values; column `mask_at` says which streams it is in,
    0 where there is only one); events of row 0 have no key and are skipped. `reads[j]` = (position, now, to) asks for
    row `read_rows[j]` knowing exactly the events with offset < position, and is written to `out[:, to]` (and the next
    `copies` - 1 columns) and `lists[to]`. Where both are given, both must be sorted by row, then by log order. Without
    `keep`, `state` holds the template and one scratch row, which starts anew at every change of row. `registers` is
    scratch space for the widest HyperLogLog.
    """
    events, asked, width = len(event_rows), len(read_rows), records.shape[1]
    step, apart, list_words = out.strides[0] // 8, out.strides[1] // 8, lists.shape[1]
    tileset_p, lane_p, output_p, late_p = integers(tilesets), integers(lanes), integers(outputs), integers(late)
    state_p, real_p, octets_p = integers(state), reals(state), octets_of(state)
    record_p, value_p, read_p = integers(records), reals(records), integers(reads)
    event_rows_p, read_rows_p = rows_of(event_rows), rows_of(read_rows)
    out_p, list_p, registers_p = reals(out), integers(lists), octets_of(registers)
    i, j, current = 0, 0, np.int64(-1)
    while i < events or j < asked:
        folding = j == asked
        if not folding and i < events:
            folding = event_rows_p[i] < read_rows_p[j] or (
                event_rows_p[i] == read_rows_p[j] and record_p[i * width + OFFSET] < read_p[j * READ_FIELDS + POSITION]
            )
        row = np.int64(event_rows_p[i] if folding else read_rows_p[j])
        place = row * words
        if not keep and row > 0:
            place = words
            if row != current:
                current = row
                for word in range(words):
                    state_p[words + word] = state_p[word]
        if folding:
            if row > 0:
                update(
                    tileset_p, len(tilesets), lane_p, state_p, real_p, octets_p, place, record_p, value_p, i * width,
                    mask_at, late_p,
                )  # fmt: skip
            i += 1
        else:
            if keep and j + AHEAD < asked:
                ahead = np.int64(read_rows_p[j + AHEAD]) * words
                for word in range(ahead, ahead + min(words, MOST_AHEAD), 8):
                    prefetch(state_p, word)
            to = read_p[j * READ_FIELDS + TO]
            read(
                tileset_p, output_p, len(outputs), state_p, real_p, octets_p, place, read_p[j * READ_FIELDS + NOW],
                out_p, to * apart, step, copies, apart, list_p, to * list_words, registers_p,
            )  # fmt: skip
            j += 1
