"""Searches PubMed Central by NCBI's E-utilities: a query becomes a list of PMC numbers.

ESearch hands out at most 9,999 ids of one search, so larger results are taken in windows of
release dates. Protocol and rates: https://www.ncbi.nlm.nih.gov/books/NBK25497/.
"""

import asyncio
import json
import os
import time
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from data_prep.http import Network, Retry, check_host, open_session, read_reply, with_retries
from data_prep.sources import FileProblem
from vlp.config import UserError

EUTILS = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
_HOSTS = frozenset({"eutils.ncbi.nlm.nih.gov", "localhost", "127.0.0.1"})
_IN_BUCKET = "(open_access[Filter] OR author_manuscript[Filter])"
_MOST = 9_999
_PAGE = 5_000
_MAX_REPLY = 8 << 20
# Release in PMC first; a day on which more was released than ESearch hands out goes by publication.
_WINDOWS = (
    ("pmcrdat", date(1990, 1, 1), date(2100, 1, 1)),
    ("pdat", date(1500, 1, 1), date(2100, 1, 1)),
)


@dataclass(frozen=True)
class Hits:
    """A search that NCBI's history server remembers."""

    count: int
    environment: str
    query_key: str


def search_pmc(query: str, network: Network, url: str = EUTILS) -> list[str]:
    """The PMC numbers (`PMC123`) of all articles in the bucket that a query finds, sorted.

    The environment variables NCBI_API_KEY (10 requests a second instead of 3) and NCBI_EMAIL are
    sent along where they are set; a key on the command line would end up in manifest.json.

    Raises:
        UserError: the query is faulty or too large, or the service failed in every try.
    """
    return asyncio.run(_search(query, network, url))


async def _search(query: str, network: Network, url: str) -> list[str]:
    check_host(url, "eutils")
    if urlsplit(url).hostname not in _HOSTS:
        raise UserError(f"eutils={url}: not a host of NCBI's E-utilities")
    async with open_session(url, network) as session:
        service = ESearch(session, network, url)
        term = f"({query}) AND {_IN_BUCKET}"
        try:
            hits = await service.search(term)
            ids = await service.all_ids(term, hits, 0, *_WINDOWS[0][1:])
        except FileProblem as error:
            raise UserError(f"query={query}: E-utilities: {error}; try again later") from None
    found = sorted(set(ids), key=int)
    if not found:
        raise UserError(f"query={query}: finds no article that the bucket holds")
    if len(found) < hits.count:
        raise UserError(
            f"query={query}: E-utilities counted {hits.count:,} articles but named "
            f"{len(found):,}; try again, or narrow the query"
        )
    return [f"PMC{number}" for number in found]


class ESearch:
    """The ESearch service for the database `pmc`, at the rate that NCBI allows."""

    def __init__(self, session: aiohttp.ClientSession, network: Network, url: str) -> None:
        self._session, self._network = session, network
        self._url = f"{url.rstrip('/')}/esearch.fcgi"
        self._common = {"db": "pmc", "retmode": "json", "tool": "biovlp"}
        for name, variable in (("api_key", "NCBI_API_KEY"), ("email", "NCBI_EMAIL")):
            if os.environ.get(variable):
                self._common[name] = os.environ[variable]
        # A little under the limit: requests must not be bunched on their way.
        self._pause = 1 / 9 if "api_key" in self._common else 1 / 2.8
        self._last = -self._pause

    async def search(self, term: str) -> Hits:
        """Run a search and leave its result on the history server."""
        result = await self._ask({"term": term, "usehistory": "y", "retmax": "0"})
        missing = (result.get("errorlist") or {}).get("phrasesnotfound") or []
        if missing:  # ESearch would silently search for the rest
            raise UserError(f"query: PMC knows nothing of {', '.join(map(repr, missing))}")
        try:
            return Hits(int(result["count"]), str(result["webenv"]), str(result["querykey"]))
        except (KeyError, ValueError):
            raise FileProblem("reply not understood") from None

    async def all_ids(
        self, term: str, hits: Hits, level: int, first: date, last: date
    ) -> list[str]:
        """Ids of a search whose dates of `_WINDOWS[level]` lie from `first` to `last`.

        Where there are more than ESearch hands out, the range of dates is halved.
        """
        if hits.count <= _MOST:
            return await self._pages(hits)
        if first == last:
            level += 1
            if level == len(_WINDOWS):
                raise UserError(f"query: more than {_MOST:,} articles of one day; narrow it")
            term, (first, last) = _within(term, level - 1, first, last), _WINDOWS[level][1:]
        middle = first + timedelta(days=(last - first).days // 2)
        ids = []
        for start, end in ((first, middle), (middle + timedelta(days=1), last)):
            part = await self.search(_within(term, level, start, end))
            ids += await self.all_ids(term, part, level, start, end)
        return ids

    async def _pages(self, hits: Hits) -> list[str]:
        ids: list[str] = []
        while len(ids) < hits.count:
            wanted = min(_PAGE, hits.count - len(ids))
            query = {"WebEnv": hits.environment, "query_key": hits.query_key}
            page = query | {"retstart": str(len(ids)), "retmax": str(wanted)}
            ids += (await self._ask(page, wanted))["idlist"]
        return ids

    async def _ask(self, query: dict[str, str], wanted: int = 0) -> dict[str, Any]:
        """A reply's `esearchresult`, with exactly `wanted` ids in it."""

        async def one_try() -> dict[str, Any]:
            await asyncio.sleep(max(0.0, self._last + self._pause - time.monotonic()))
            self._last = time.monotonic()
            data = await read_reply(self._session, self._url, self._common | query, _MAX_REPLY)
            try:
                reply = json.loads(data)
            except ValueError:  # cut short, or an HTML page of regret
                raise Retry("reply not readable") from None
            result = reply.get("esearchresult") if isinstance(reply, dict) else None
            if not isinstance(result, dict) or "ERROR" in result:
                raise Retry(f"reply is an error: {str(result or reply)[:200]}")
            ids = result.get("idlist")
            if not isinstance(ids, list) or len(ids) != wanted:
                raise Retry(f"{wanted} ids asked for, {len(ids or [])} got")
            if not all(isinstance(name, str) and name.isdecimal() for name in ids):
                raise FileProblem("reply not understood")
            return result

        return await with_retries(self._network, one_try)


def _within(term: str, level: int, first: date, last: date) -> str:
    """`term` within a range of dates."""
    field = _WINDOWS[level][0]
    return f'{term} AND ("{first:%Y/%m/%d}"[{field}] : "{last:%Y/%m/%d}"[{field}])'
