"""Searches by E-utilities, against a service on this machine that answers as NCBI's does."""

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from data_prep import search
from data_prep.http import Network
from data_prep.search import search_pmc
from vlp.config import UserError

NETWORK = Network(requests=4, attempts=5, timeout=30, first_wait=0.01)
_RANGE = re.compile(r'"(\d+/\d+/\d+)"\[(\w+)\] : "(\d+/\d+/\d+)"\[(\w+)\]')


class Entrez(ThreadingHTTPServer):
    """ESearch over `articles`: id, release date, publication date."""

    daemon_threads = True

    def __init__(self, articles: list[tuple[int, date, date]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.articles = articles
        self.most, self.faults, self.times = 9_999, list[str](), list[float]()
        self.queries: list[dict[str, str]] = []
        self.history: dict[str, list[int]] = {}

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://127.0.0.1:{self.server_address[1]}/entrez/eutils"

    def find(self, term: str) -> list[int]:
        """Ids within all the ranges of dates in `term`."""
        ids = []
        for number, released, published in self.articles:
            days = {"pmcrdat": released, "pdat": published}
            ranges = _RANGE.findall(term)
            if all(_day(a) <= days[field] <= _day(b) for a, field, b, _ in ranges):
                ids.append(number)
        return ids


def _day(text: str) -> date:
    return date(*map(int, text.split("/")))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Entrez

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        self.server.times.append(time.monotonic())
        self.server.queries.append(query)
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault.isdecimal():
            return self._reply(int(fault), b'{"error":"API rate limit exceeded"}')
        if fault == "html":
            return self._reply(200, b"<html>Service unavailable</html>")
        if fault == "error":
            return self._reply(200, b'{"esearchresult":{"ERROR":"Search Backend failed"}}')
        result: dict[str, Any] = {"idlist": []}
        if "term" in query:
            ids = self.server.find(query["term"])
            name = f"MCID_{len(self.server.history)}"
            self.server.history[name] = ids
            result |= {"count": str(len(ids)), "querykey": "1", "webenv": name}
            if "nosuchword" in query["term"]:
                result["errorlist"] = {"phrasesnotfound": ["nosuchword"], "fieldsnotfound": []}
        else:
            ids = self.server.history[query["WebEnv"]]
            start = int(query["retstart"])
            end = min(start + int(query["retmax"]), self.server.most)
            result["idlist"] = [str(number) for number in ids[start:end]]
        body = json.dumps({"esearchresult": result}).encode()
        if fault == "short" and result["idlist"]:
            result["idlist"].pop()
            body = json.dumps({"esearchresult": result}).encode()
        return self._reply(200, body, len(body) // 2 if fault == "cut" else None)

    def _reply(self, status: int, body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None


@pytest.fixture
def entrez(monkeypatch: pytest.MonkeyPatch) -> Iterator[Entrez]:
    """A service that knows 300 articles, 20 of them released on one day."""
    monkeypatch.delenv("NCBI_API_KEY", raising=False)
    monkeypatch.delenv("NCBI_EMAIL", raising=False)
    articles = []
    for n in range(300):
        released = date(2020, 1, 1) if n < 20 else date(2005 + n % 19, 1 + n % 12, 1 + n % 28)
        articles.append((n, released, date(1990 + n % 30, 1, 1 + n % 30)))
    server = Entrez(articles)
    threading.Thread(target=server.serve_forever, daemon=True, args=(0.02,)).start()
    yield server
    server.shutdown()
    server.server_close()


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client send as fast as it can."""
    real = search.ESearch.__init__

    def quick(self: search.ESearch, *arguments: Any) -> None:
        real(self, *arguments)
        self._pause = 0.0

    monkeypatch.setattr(search.ESearch, "__init__", quick)


def test_a_small_search(entrez: Entrez) -> None:
    found = search_pmc("liver[title]", NETWORK, entrez.url)
    assert found == [f"PMC{n}" for n in range(300)]
    assert [query.get("retmax") for query in entrez.queries] == ["0", "300"]
    term = "(liver[title]) AND (open_access[Filter] OR author_manuscript[Filter])"
    assert entrez.queries[0]["term"] == term
    assert entrez.queries[0]["usehistory"] == "y"
    assert "api_key" not in entrez.queries[0]


@pytest.mark.parametrize("most", [7, 60, 299])
def test_large_searches_go_by_dates(
    entrez: Entrez, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """With the bound of 9,999 made small; 7 is less than were released on one day."""
    without_pauses(monkeypatch)
    monkeypatch.setattr(search, "_MOST", most)
    monkeypatch.setattr(search, "_PAGE", 5)
    entrez.most = most
    assert search_pmc("x", NETWORK, entrez.url) == [f"PMC{n}" for n in range(300)]


@pytest.mark.parametrize("fault", ["429", "503", "500", "html", "error", "cut", "short"])
def test_faults_that_pass(entrez: Entrez, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    without_pauses(monkeypatch)
    entrez.faults = [fault] * 3 if fault != "short" else ["", fault, fault]
    assert len(search_pmc("x", NETWORK, entrez.url)) == 300


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("429", "E-utilities: download failed: HTTP 429; try again later"),
        ("html", "E-utilities: reply not readable; try again later"),
        ("error", "Search Backend failed"),
        ("302", "HTTP 302"),
    ],
)
def test_faults_that_stay(
    entrez: Entrez, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    without_pauses(monkeypatch)
    entrez.faults = [fault] * 5
    with pytest.raises(UserError, match=message):
        search_pmc("x", NETWORK, entrez.url)


def test_queries_that_find_nothing_or_other_than_asked(entrez: Entrez) -> None:
    with pytest.raises(UserError, match="PMC knows nothing of 'nosuchword'"):
        search_pmc("nosuchword", NETWORK, entrez.url)
    entrez.articles = []
    with pytest.raises(UserError, match="finds no article that the bucket holds"):
        search_pmc("x", NETWORK, entrez.url)


def test_ids_that_are_named_twice_are_missed(entrez: Entrez) -> None:
    entrez.articles = [entrez.articles[0]] * 3
    with pytest.raises(UserError, match="counted 3 articles but named 1"):
        search_pmc("x", NETWORK, entrez.url)


@pytest.mark.parametrize(("key", "least"), [("", 1 / 3), ("secret", 1 / 10)])
def test_rates(entrez: Entrez, monkeypatch: pytest.MonkeyPatch, key: str, least: float) -> None:
    monkeypatch.setenv("NCBI_API_KEY", key)
    monkeypatch.setenv("NCBI_EMAIL", "a@example.org")
    monkeypatch.setattr(search, "_PAGE", 60)
    search_pmc("x", NETWORK, entrez.url)
    pauses = [b - a for a, b in zip(entrez.times, entrez.times[1:], strict=False)]
    assert len(pauses) == 5
    assert sum(pauses) / len(pauses) >= least
    assert entrez.queries[0].get("api_key", "") == key
    assert entrez.queries[0]["email"] == "a@example.org"


@pytest.mark.parametrize(
    "url", ["https://example.org/eutils", "http://eutils.ncbi.nlm.nih.gov/entrez", "file:///etc"]
)
def test_other_hosts_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="eutils="):
        search_pmc("x", NETWORK, url)
