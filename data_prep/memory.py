"""A bound on the memory of what was fetched ahead of its use."""

import asyncio

from data_prep.sources import FileProblem


class ArticleTooLarge(FileProblem):
    """The files of one article exceed what one article may have."""


class Memory:
    """Bytes that may be held; lives in one event loop, and is not for other threads.

    Articles are used in order, so the first in line always gets its bytes: otherwise those after
    it could fill the memory and wait for it forever. The most that is held is thus `limit` and
    one article.
    """

    def __init__(self, limit: int, article_limit: int) -> None:
        self.limit, self.article_limit = limit, article_limit
        self.held = self.most_held = 0
        self._changed = asyncio.Condition()

    async def let_first(self, ticket: "Ticket") -> None:
        """From now on this ticket's article is the one that is waited for."""
        async with self._changed:
            ticket.first = True
            self._changed.notify_all()

    async def free(self, ticket: "Ticket") -> None:
        """The article was used; its bytes are free."""
        async with self._changed:
            ticket.give(ticket.held)
            self._changed.notify_all()

    async def wait_for_room(self, ticket: "Ticket", size: int) -> None:
        """Return when `ticket.take(size)` could succeed."""
        async with self._changed:
            await self._changed.wait_for(lambda: ticket.first or self.held + size <= self.limit)


class Ticket:
    """One article's share of a Memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.held = 0
        self.first = False

    def take(self, size: int) -> bool:
        """Take `size` bytes if there are as many.

        Raises:
            ArticleTooLarge: the article would hold more than one article may.
        """
        memory = self._memory
        if self.held + size > memory.article_limit:
            raise ArticleTooLarge(f"article larger than {memory.article_limit:,} bytes")
        if not self.first and memory.held + size > memory.limit:
            return False
        self.held += size
        memory.held += size
        memory.most_held = max(memory.most_held, memory.held)
        return True

    def give(self, size: int) -> None:
        """Give bytes back that were taken."""
        self.held -= size
        self._memory.held -= size

    async def room(self, size: int) -> None:
        """Wait until `size` bytes, which could not be taken, can be."""
        await self._memory.wait_for_room(self, size)
