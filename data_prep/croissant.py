"""card.json: a shard folder described in Croissant 1.0, MLCommons' JSON-LD for data sets."""

import hashlib
import re
from pathlib import Path
from typing import Any

from data_prep.shards import INDEX, INDEX_SCHEMA

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "conformsTo": "dct:conformsTo",
    "equivalentProperty": "cr:equivalentProperty",
}
CONTEXT |= {
    name: f"cr:{name}"
    for name in (
        *("citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet"),
        *("format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path"),
        *("recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator"),
        *("source", "subField", "transform"),
    )
}

_TYPES = {"int64": "sc:Integer", "int32": "sc:Integer", "uint64": "sc:Integer"}


def croissant(folder: Path, about: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    """The description, as a JSON object.

    Args:
        folder: the shard folder.
        about: name, description, licences, date and citation, as card.py knows them.
        manifest: of the folder.
    """
    digest = hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"pairs/{column.name}",
            "name": f"pairs/{column.name}",
            "description": f"column {column.name} of {INDEX}; see the shard format",
            "dataType": _TYPES.get(str(column.type), "sc:Text"),
            "source": {"fileObject": {"@id": INDEX}, "extract": {"column": column.name}},
        }
        for column in INDEX_SCHEMA
    ]
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": about["name"],
        "description": about["description"],
        "url": about["url"],
        "version": "1.0.0",
        "datePublished": about["date"],
        "license": [licence_url(name) for name in about["licences"]],
        "creator": about["creator"] and {"@type": "sc:Organization", "name": about["creator"]},
        "citeAs": about["citation"],
        "keywords": ["biomedical", "figures", "captions", "vision-language"],
        "distribution": [
            _file(INDEX, "application/x-parquet", (folder / INDEX).stat().st_size, digest),
            *(
                _file(shard["name"], "application/x-tar", shard["bytes"], shard["sha256"])
                for shard in manifest["shards"]
            ),
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "pairs",
                "name": "pairs",
                "description": "One record per image-caption pair: where its image, caption and "
                "provenance lie in the tars, and what is known of it.",
                "key": {"@id": "pairs/key"},
                "field": fields,
            }
        ],
    }
    return {key: value for key, value in content.items() if value}


def licence_url(name: str) -> str:
    """The address of a Creative Commons licence whose version is known; other names as they are."""
    match = re.fullmatch(r"CC (BY(?:-NC)?(?:-SA|-ND)?) (\d\.\d)", name)
    if match:
        return f"https://creativecommons.org/licenses/{match[1].lower()}/{match[2]}/"
    if name.startswith("CC0"):
        return "https://creativecommons.org/publicdomain/zero/1.0/"
    return name or "unknown"


def _file(name: str, kind: str, size: int, digest: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": kind,
        "sha256": digest,
    }
