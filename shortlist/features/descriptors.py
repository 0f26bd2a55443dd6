"""The vocabulary that programs are written in and the kernels interpret: columns of descriptors, and operations.

Compiled into the kernels: numba looks only at the kernels' own file to know whether its cache is still good, so touch
kernels.py after a change here.
"""

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

AHEAD, MOST_AHEAD = 4, 512
"""While one row is read, the one so many places later is fetched: its first words, so many of them."""

HEADER = 3
"""Words of a windowed tile set before its ring."""
