"""python -m eval demo model=... [shards=FOLDER] [port=8765] [key=value]

Opens nothing by itself: it prints the address of the page, and ends with Ctrl-C.
"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING
from rich.progress import Progress

from eval.data_config import DataConfig
from eval.demo.engine import Engine, Figures
from eval.demo.server import DemoServer
from eval.embed import Embedder
from eval.readers import open_dataset
from vlp.config import UserError, load_config


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """A local page on which a model looks at one image: python -m eval demo model=..."""

    model: str = MISSING
    """As in `python -m eval`: a folder, or any open_clip model."""
    shards: str = ""
    """A shard folder in which the figures nearest to the image are looked up; empty: none."""
    split: str = "train"
    """The split of the shards."""
    cache: str = ""
    """Where embeddings of the shards' figures are kept. Empty: demo-cache beside a model's folder,
    or eval-results/demo-cache."""
    host: str = "127.0.0.1"
    """The address to listen on. The default is for this machine alone; another one shows model and
    figures to all who can reach it, without a password."""
    port: int = 8765
    """0 takes any free one."""
    neighbours: int = 8
    """How many of the nearest figures are shown."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes cuda where there is one."""
    batch_size: int = 64
    """Figures per forward pass."""
    workers: int = 2
    """Processes that decode figures."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port}: set one from 0 to 65535")
        if not 1 <= self.neighbours <= 50:
            raise ValueError(f"neighbours={self.neighbours}: set 1 to 50")


def main(argv: list[str]) -> None:
    """Load, embed the shards' figures unless they are in the cache, and serve until Ctrl-C."""
    config = load_config(DemoConfig, argv, "python -m eval demo")
    with start(config) as server:
        print(f"page: {server.address} (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


def start(config: DemoConfig) -> DemoServer:
    """The server of the page, ready to serve.

    Raises:
        UserError: a model or shards that don't load, or a port that is taken.
    """
    dataset = None
    if config.shards:
        data = DataConfig(reader="shards", path=config.shards, split=config.split)
        dataset = open_dataset(data, Path())

    from eval.model import load_model  # imports open_clip, which takes seconds

    model = load_model(config.model, config.device)
    figures = None
    if dataset is not None:
        beside = model.folder.resolve().parent if model.folder else Path("eval-results")
        cache = Path(config.cache) if config.cache else beside / "demo-cache"
        with Progress() as progress:
            embedder = Embedder(model, cache, config.batch_size, config.workers, progress)
            figures = Figures(dataset, embedder.images(dataset, config.shards).features)
    try:
        return DemoServer(config.host, config.port, Engine(model, figures, config.neighbours))
    except OSError as error:
        raise UserError(f"host={config.host} port={config.port}: {error.strerror}") from None
