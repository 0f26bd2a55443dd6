"""What is written to a connection, and when it is sent."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from shortlist.serving.protocol import Together


class Sent:
    """A transport that remembers what was done to it."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done

    def get_extra_info(self, name: str) -> Any:
        return f"its {name}"


def test_what_is_written_in_one_turn_of_the_loop_is_sent_at_once_and_before_the_end() -> None:
    sent = Sent()

    async def answers() -> None:
        transport = Together(cast("asyncio.Transport", sent), asyncio.get_running_loop())
        transport.write(b"head ")
        transport.write(b"body")
        assert sent.done == []
        await asyncio.sleep(0)
        assert sent.done == [b"head body"]
        assert transport.get_extra_info("peername") == "its peername"
        transport.write(b"last words")
        transport.close()
        assert sent.done == [b"head body", b"last words", "closed"]
        transport.write(b"too late")
        await asyncio.sleep(0)
        assert sent.done[-1] == "closed"

    asyncio.run(answers())
