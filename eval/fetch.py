"""`python -m eval fetch task=NAME`: download a task's data where its makers let anyone do so."""

import hashlib
import http.client
import importlib
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import get_session
from omegaconf import MISSING
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from eval.catalogue import all_tasks, fetchable, has_data, named
from eval.config import TaskConfig
from eval.readers.base import inside
from eval.unpack import unpack
from vlp.config import UserError, load_config

CHUNK = 1 << 20
ATTEMPTS = 6
PAUSE = 2.0
"""Seconds before the second attempt; doubled before each further one."""
AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which it is worth to ask again."""


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Download the data of a task: python -m eval fetch task=NAME data_root=..."""

    task: str = MISSING
    """A task of configs/eval/tasks; `python -m eval list` shows which can be fetched."""
    data_root: str = "."
    """Where it goes; the paths of the tasks are relative to it."""
    again: bool = False
    """Download also what is there."""
    hub_files: list[str] = field(default_factory=list)
    """Files of the Hub in place of the task's, which are those of the split that is scored: a probe
    needs [data/train-*], too."""
    most_gb: float = 50.0
    """A download, and what is unpacked of it, may have so many GB."""
    mirror: str = ""
    """A server in place of the scheme and host of every URL, and of the Hugging Face Hub."""
    timeout: float = 60.0
    """Seconds to wait for an answer, and for each piece of it."""


def main(argv: list[str]) -> None:
    """Download, compare with the makers' MD5, unpack.

    Raises:
        UserError: a task whose data can't be had so; a server that says no; a damaged download.
    """
    config = load_config(FetchConfig, argv, "python -m eval fetch")
    task = named(all_tasks(), config.task)
    root = Path(config.data_root)
    if not fetchable(task):
        what = task.origin.get or "see its page"
        raise UserError(f"task={config.task}: can't be fetched: {what} {task.origin.page}".rstrip())
    print(f"{config.task}: {task.origin.licence or 'licence not stated'}; {task.origin.page}")
    # What comes from the hub may be there in part: the hub's client knows.
    if has_data(task.data, root) and not config.again and not task.origin.hub:
        print(f"{root / task.data.path} is there; again=true downloads it once more")
        return
    root.mkdir(parents=True, exist_ok=True)
    fetch(task, root, config)
    if not has_data(task.data, root):
        raise UserError(f"{root / task.data.path}: still missing: its makers changed the files")
    print(
        f"{config.task}: in {root}; next: python -m eval list task={config.task} data_root={root}"
    )


def fetch(task: TaskConfig, root: Path, config: FetchConfig) -> None:
    """Everything that `origin` names, into `root`."""
    origin = task.origin
    with _progress() as progress:
        for name, url in origin.files.items():
            target = inside(root, name, root)
            if config.again or not _right(target, origin.md5.get(name, "")):
                download(_mirrored(url, config.mirror), target, config, progress)
                _compare(target, origin.md5.get(name, ""))
    if origin.hub:
        _from_hub(task, root, config)
    for archive, folder in origin.unpack.items():
        file, target = inside(root, archive, root), inside(root, folder, root)
        unpack(file, target, config.most_gb, replace=config.again)


def download(url: str, target: Path, config: FetchConfig, progress: Progress) -> None:
    """A URL to a file: resumed where a former attempt broke off, complete or not there at all.

    Raises:
        UserError: the server says no, or too much, or can't be reached.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    bar = progress.add_task(target.name, total=None)
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            if _continue(url, partial, config, progress, bar):
                os.replace(partial, target)
                return
            reason = "the connection broke"
        except urllib.error.HTTPError as error:
            reason = f"status {error.code}"
            if error.code == 416:  # the partial file is of something else
                partial.unlink(missing_ok=True)
            elif error.code not in AGAIN:
                raise UserError(f"{url}: {reason}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
    raise UserError(f"{url}: {reason}, {ATTEMPTS} times; the same command goes on from there")


def _continue(
    url: str, partial: Path, config: FetchConfig, progress: Progress, bar: TaskID
) -> bool:
    """Append what is missing; whether all of it is there now."""
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "biovlp"})  # noqa: S310
    if start:
        request.add_header("Range", f"bytes={start}-")
    with _OPENER.open(request, timeout=config.timeout) as answer:
        goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if answer.status != 206 or not goes_on:
            start = 0  # the server sends all of it
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        most = config.most_gb * 1e9
        free = shutil.disk_usage(partial.parent).free
        if (total or 0) > most:
            raise UserError(f"{url}: {(total or 0) / 1e9:.1f} GB; allow it with most_gb=...")
        if (total or 0) - start > free:
            raise UserError(f"{partial.parent}: {free / 1e9:.1f} GB are free, too little for {url}")
        progress.update(bar, total=total, completed=start)
        size = start
        with partial.open("ab" if start else "wb") as file:
            while block := answer.read(CHUNK):
                size += len(block)
                if size > most:
                    raise UserError(f"{url}: more than {config.most_gb} GB; see most_gb")
                file.write(block)
                progress.update(bar, completed=size)
    return total is None or size == total


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirection to the web only, and never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            raise UserError(f"{req.full_url}: redirects to {newurl}, which isn't followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler(),
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _Redirects(),
):
    _OPENER.add_handler(_handler)


def _mirrored(url: str, mirror: str) -> str:
    """The URL at another server; only http and https are spoken."""
    if mirror:
        there, here = urlsplit(mirror), urlsplit(url)
        url = urlunsplit(here._replace(scheme=there.scheme, netloc=there.netloc))
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: neither http nor https")
    return url


def _right(file: Path, md5: str) -> bool:
    """Whether a file is there and as its makers say."""
    return file.is_file() and (not md5 or _md5(file) == md5)


def _compare(file: Path, md5: str) -> None:
    if not md5:
        return
    found = _md5(file)
    if found != md5:
        file.unlink()
        raise UserError(f"{file}: MD5 {found}, its makers say {md5}; deleted, fetch it again")


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # what the makers publish; not against forgery
    with file.open("rb") as content:
        while block := content.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _from_hub(task: TaskConfig, root: Path, config: FetchConfig) -> None:
    origin = task.origin
    name, _, revision = origin.hub.partition("@")
    try:
        # Asked first: without the hub, snapshot_download is content with an old folder.
        commit = HfApi(config.mirror or None).dataset_info(name, revision=revision or None).sha
        print(f"{name} at {commit}")
        snapshot_download(
            name,
            repo_type="dataset",
            revision=commit,
            allow_patterns=list(config.hub_files) or list(origin.hub_files) or None,
            local_dir=inside(root, origin.hub_folder or name, root),
            endpoint=config.mirror or None,
            force_download=config.again,
        )
    except (HfHubHTTPError, HFValidationError, OSError, _client_error()) as error:
        reason = str(error).strip().splitlines()[0]
        hint = f"; {task.origin.get}" if task.origin.get else ""
        raise UserError(f"{name}: can't be fetched from the hub: {reason}{hint}") from None


def _client_error() -> type[Exception]:
    """What huggingface_hub lets through where there is no connection: an error of its HTTP client,
    which is another package in each of its major versions."""
    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    error: type[Exception] = client.HTTPError
    return error


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    )
