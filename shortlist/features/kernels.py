"""The state machine: one interpreter over descriptor arrays folds events into rows of state and reads features off.

`update` and `read` are the only functions that touch state. `walk` calls them for live updates and for replay, and
`answer` calls the same `read` for live reads, so they cannot differ. A row of state is `words` 64-bit words, seen as
int64 or float64; row 0 of every table is the template: what a key looks like of which nothing is known. What a window,
a missing value or a late event means is written down in docs/features.md.

A row is a sequence of tile sets, one per (stream, window). A windowed tile set is three words (newest bucket, oldest
bucket that is initialised, slot of the newest) and a ring of tiles; one without a window is a single tile. A tile is a
sequence of lanes, each a partial aggregate of one field.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from shortlist.features.descriptors import (
    AHEAD,
    AT,
    BASE,
    COUNT,
    DECAY,
    DEST,
    FIRST,
    HALF_LIFE,
    HEADER,
    HOP,
    LANE_FIELDS,
    LANES_FROM,
    LANES_TO,
    LENGTH,
    MAX,
    MIN,
    MOST_AHEAD,
    NEVER,
    NOW,
    NUMERIC,
    OFFSET,
    OP,
    OUTPUT_FIELDS,
    PLACE,
    POSITION,
    READ,
    READ_DECAYED,
    READ_DISTINCT,
    READ_FIELDS,
    READ_MAX,
    READ_MEAN,
    READ_MIN,
    READ_NUMBER,
    READ_SINCE,
    READ_STD,
    READ_TOTAL,
    RING,
    SECOND,
    SIZE,
    SLOT,
    STREAM,
    SUM,
    TILES,
    TILESET,
    TILESET_FIELDS,
    TO,
    WIDTH,
)
from shortlist.features.lanes import deviation, distinct, folded, inner, listed, options, total
from shortlist.features.pointers import integers, octets_of, prefetch, reals, rows_of, words_of

SLOTS_AHEAD = 16
"""While one key is looked up, the slot of the one so many places later is fetched."""


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
def read(  # type: ignore[no-untyped-def]
    tilesets, outputs, count_of, state, real, octets, row, now, out, to, step, copies, apart, lists, list_at, merged
):
    """Write every output as of `now` from the row of state at `row`.

    Column c goes to `out[to + c * step]` and `copies` places that lie `apart`, lists from `lists[list_at]` on.
    """
    last, start, first, count, width, ring, end = -1, 0, 0, 0, 0, 0, 0
    for o in range(0, count_of * OUTPUT_FIELDS, OUTPUT_FIELDS):
        t = outputs[o + TILESET] * TILESET_FIELDS
        if t != last:
            last = t
            start = row + tilesets[t + BASE]
            first, count, width = start, 1, tilesets[t + WIDTH]
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
    "void(Array(uint64, 1, 'C', readonly=True), uint64[:,::1], int64[::1], int64[:,::1], int64[:,::1], int64[::1],"
    " int64, int64, float64[:,:], int64[:,::1], uint8[::1])",
    cache=True,
    **options,
)
def answer(keys, slots, moments, tilesets, outputs, state, words, copies, out, lists, registers):  # type: ignore[no-untyped-def]
    """What `walk` answers to reads that know everything: read i is of `keys[i]` as of its moment, or the one for all.

    `slots` say which row of `state` a key has (`index.KeyIndex`). It is written to `out[:, i]` (and the next
    `copies` - 1 columns) and `lists[i]`. `registers` is scratch space for the widest HyperLogLog.
    """
    asked, each, mask = len(keys), np.int64(len(moments) > 1), np.uint64(len(slots) - 1)
    step, apart, list_words = out.strides[0] // 8, out.strides[1] // 8, lists.shape[1]
    found = np.empty(asked, np.int64)
    tileset_p, output_p, slot_p = integers(tilesets), integers(outputs), words_of(slots)
    state_p, real_p, octets_p = integers(state), reals(state), octets_of(state)
    out_p, list_p, registers_p, moment_p = reals(out), integers(lists), octets_of(registers), integers(moments)
    for i in range(asked):
        if i + SLOTS_AHEAD < asked:
            prefetch(slot_p, np.int64(keys[i + SLOTS_AHEAD] & mask) * 2)
        key, place = keys[i], np.int64(keys[i] & mask)
        while slot_p[2 * place] != key and slot_p[2 * place] != np.uint64(0):
            place = (place + 1) & np.int64(mask)
        known = key != np.uint64(0) and slot_p[2 * place] == key
        found[i] = np.int64(slot_p[2 * place + 1]) * words if known else 0
    for i in range(asked):
        if i + AHEAD < asked:
            ahead = found[i + AHEAD]
            for word in range(ahead, ahead + min(words, MOST_AHEAD), 8):
                prefetch(state_p, word)
        read(
            tileset_p, output_p, len(outputs), state_p, real_p, octets_p, found[i], moment_p[i * each],
            out_p, i * apart, step, copies, apart, list_p, i * list_words, registers_p,
        )  # fmt: skip


@njit(
    "void(int64[:,::1], int64[:,::1], int64[:,::1], int64[::1], int64, boolean, int32[::1], int64[:,::1], int64,"
    " int32[::1], int64[:,::1], int64, float64[:,:], int64[:,::1], int64[::1], uint8[::1])",
    cache=True,
    **options,
)
def walk(  # type: ignore[no-untyped-def]
    tilesets, lanes, outputs, state, words, keep, event_rows, records, mask_at, read_rows, reads, copies, out, lists,
    late, registers,
):  # fmt: skip
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
