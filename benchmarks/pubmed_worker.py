"""pubmed_parser as a worker for prep.py; it runs in the peer's environment.

Reads one JSON request per line on standard input and answers each with one JSON line on standard
output. `{"files": [...], "calls": [...]}`, with names of its functions, gives the CPU seconds that
calling all of them on all files took, and the number of calls that raised. With `"figures": true`
the answer also holds what the calls found: for each file a list of [id, caption, graphic], or the
error.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import lxml.etree
import pubmed_parser


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One round over the files."""
    calls = [getattr(pubmed_parser, name) for name in request["calls"]]
    found: list[Any] = []
    failed = 0
    start = time.process_time()
    for file in request["files"]:
        for call in calls:
            try:
                result = call(file)
            except Exception as error:  # noqa: BLE001  whatever it is, the article is lost
                result = f"{type(error).__name__}: {error}"
                failed += 1
            if request.get("figures"):
                found.append(result)
    reply: dict[str, Any] = {"seconds": time.process_time() - start, "failed": failed}
    if request.get("figures"):
        reply["figures"] = [
            result
            if isinstance(result, str)
            else [[f["fig_id"], f["fig_caption"], f["graphic_ref"]] for f in result or []]
            for result in found
        ]
    return reply


def main() -> None:
    """Versions first, then an answer to each request."""
    versions = {
        "pubmed_parser": version("pubmed_parser"),
        "lxml": f"{lxml.etree.__version__}, libxml2 "
        + ".".join(str(part) for part in lxml.etree.LIBXML_VERSION),
    }
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
