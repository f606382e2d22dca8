"""Our own parser as a worker for prep.py: a small process without torch, as data_prep's are.

The requests are those of pubmed_worker.py; `calls` are `article` (figures, captions, mentions,
metadata) and `tree` (lxml's tree of the whole file, and nothing of it).
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lxml import etree

from data_prep.jats import parse_article
from data_prep.markup import safe_parser

CALLS: dict[str, Callable[[bytes], Any]] = {
    "article": parse_article,
    "tree": lambda data: etree.fromstring(data, safe_parser()),
}


def main() -> None:
    """Versions first, then an answer to each request."""
    libxml2 = ".".join(str(part) for part in etree.LIBXML_VERSION)
    versions = {"lxml": f"{etree.__version__}, libxml2 {libxml2}"}
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        calls = [CALLS[name] for name in request["calls"]]
        start = time.process_time()
        for file in request["files"]:
            data = Path(file).read_bytes()
            for call in calls:
                call(data)
        print(json.dumps({"seconds": time.process_time() - start, "failed": 0}), flush=True)


if __name__ == "__main__":
    main()
