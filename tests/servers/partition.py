"""A link to a server that can be held up or cut: a partition between one client and what all share."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Link:
    """Forwards a free loopback port to another one. Nothing that was sent is lost while it is held, as with TCP."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut = False
        self._open = asyncio.Event()
        self._open.set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._forward, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Bytes get neither there nor back, and connections stay."""
        self._call(self._open.clear)

    def cut(self) -> None:
        """Connections end, and new ones with them."""
        self._call(self._end_all)

    def heal(self) -> None:
        self._cut = False
        self._call(self._open.set)

    def close(self) -> None:
        self.cut()
        self._call(self._loop.stop)
        self._thread.join(5)
        self._server.close()
        self._loop.run_until_complete(self._gather())
        self._loop.close()

    async def _gather(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _call(self, what: object) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (what(), done.set()))  # type: ignore[operator]
        done.wait(5)

    def _end_all(self) -> None:
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._cut:
                return
            await self._open.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(back)
            try:
                pumps = [asyncio.create_task(self._pump(*ends)) for ends in ((reader, back), (there, writer))]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                self._writers.discard(back)
                back.transport.abort()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while content := await reader.read(65536):
                await self._open.wait()
                writer.write(content)
                await writer.drain()
