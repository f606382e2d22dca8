"""The local page: the numbers of the evaluation, bounds, strangers, and a browser that uses it."""

import asyncio
import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from eval.data_config import DataConfig
from eval.demo import server as demo_server
from eval.demo.engine import KEPT, Engine, Figures, Refused
from eval.demo.program import DemoConfig, start
from eval.demo.server import DemoServer
from eval.grounding import similarity_map
from eval.model import Model, load_model
from eval.readers import open_dataset
from tests.browser import page
from tests.eval.tiny import draw, embed_images, fails, write_model
from tests.shard_factory import make_samples, write_shards
from vlp.config import load_config

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> & </textarea>"


def png(seed: int, width: int = 48, height: int = 40) -> bytes:
    buffer = io.BytesIO()
    draw(seed, width, height).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(str(write_model(tmp_path_factory.mktemp("model") / "model")), "cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = make_samples(6)
    # Figure 3 is an image that is dropped on the page; its caption is hostile.
    changed = {"image": png(3), "extension": "png", "width": 48, "height": 40, "caption": HOSTILE}
    samples[3] = type(samples[3])(**{**vars(samples[3]), **changed, "article": "PMC123.1"})
    return write_shards(tmp_path_factory.mktemp("shards"), [("train", samples)])


@pytest.fixture(scope="module")
def engine(model: Model, shards: Path) -> Engine:
    data = DataConfig(reader="shards", path=str(shards), split="train")
    dataset = open_dataset(data, Path())
    pixels = [Image.open(io.BytesIO(dataset.images.read(i))).convert("RGB") for i in range(6)]
    return Engine(model, Figures(dataset, embed_images(model, pixels)), neighbours=4)


@pytest.fixture
def address(engine: Engine) -> Iterator[tuple[str, int]]:
    with DemoServer("127.0.0.1", 0, engine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield "127.0.0.1", server.server_address[1]
        server.shutdown()
        thread.join()


def test_an_image_finds_itself(engine: Engine) -> None:
    found = engine.add(png(3))
    assert (found["width"], found["height"]) == (48, 40)
    first, *others = found["neighbours"]
    assert first["index"] == 3
    assert first["cosine"] == pytest.approx(1, abs=1e-6)
    assert first["caption"] == HOSTILE
    assert first["link"] == "https://pmc.ncbi.nlm.nih.gov/articles/PMC123/"
    assert first["licence"] == "CC BY 4.0"
    assert [figure["link"] for figure in others] == [""] * 3
    cosines = [figure["cosine"] for figure in found["neighbours"]]
    assert cosines == sorted(cosines, reverse=True)
    assert Image.open(io.BytesIO(engine.figure(3))).size == (48, 40)
    assert Image.open(io.BytesIO(engine.jpeg(found["id"]))).format == "JPEG"


def test_scores_are_those_of_the_model(engine: Engine, model: Model) -> None:
    name = engine.add(png(1))["id"]
    labels = ["a lesion", "nuclei", "the liver"]
    found = engine.scores(name, [*labels, "", "nuclei"], "a figure of {c}")
    texts = model.embed_texts([f"a figure of {label}" for label in labels])
    cosines = texts @ embed_images(model, [draw(1)])[0]
    shares = (model.scale * cosines).softmax(dim=0)
    want = dict(zip(labels, zip(cosines.tolist(), shares.tolist(), strict=True), strict=True))
    assert [row["name"] for row in found] == sorted(want, key=lambda key: -want[key][0])
    for row in found:
        assert (row["cosine"], row["probability"]) == pytest.approx(want[row["name"]], abs=1e-5)
    (yes, _) = engine.scores(name, ["yes", "no"], "{question} {option}", "Is it?")
    assert yes["text"] == f"Is it? {yes['name']}"


def test_map_lies_where_the_model_looked(engine: Engine, model: Model) -> None:
    """48 x 40 pixels become 38 x 32, of which the middle 32 columns are the model's input."""
    name = engine.add(png(2))["id"]
    found = engine.heat(name, "a lesion")
    region = found["region"]
    assert region["left"] == pytest.approx(3 / 38)
    assert region["width"] == pytest.approx(32 / 38)
    assert (region["top"], region["height"]) == (0, 1)
    patches = model.embed_patches(model.transform(draw(2))[None])[0]
    want = similarity_map(patches, model.embed_texts(["a lesion"])[0])
    assert torch.allclose(torch.tensor(found["rows"]), want, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "template", "question", "message"),
    [
        (["a"], "{c}", "", "write two different lines or more"),
        (["a", " a "], "{c}", "", "write two different lines or more"),
        (["a", "b"], "{x}", "", "unknown placeholder {x}; there is {c}"),
        (["a", "b"], "{c.__class__}", "", "unknown placeholder"),
        (["a", "b"], "{c", "", "expected '}'"),
        (["a", "b"], "{question}", "Is it?", "no placeholder {option}"),
        ([str(i) for i in range(201)], "{c}", "", "201 lines; 200 at most"),
        (["a", "b" * 2001], "{c}", "", "longer than 2000 characters"),
    ],
)
def test_texts_that_do_not_fit(
    engine: Engine, names: list[str], template: str, question: str, message: str
) -> None:
    name = engine.add(png(1))["id"]
    with pytest.raises(Refused) as caught:
        engine.scores(name, names, template, question)
    assert message in str(caught.value)


def test_old_images_are_forgotten(model: Model) -> None:
    engine = Engine(model, None)
    first = engine.add(png(0))
    assert first["neighbours"] == []
    for seed in range(1, KEPT + 1):
        engine.add(png(seed))
    assert len(engine.images) == KEPT
    with pytest.raises(Refused, match="not remembered any more"):
        engine.heat(first["id"], "x")
    for data, message in ((b"", "not an image"), (png(1)[:60], "damaged image")):
        with pytest.raises(Refused, match=message):
            engine.add(data)


# --- HTTP -----------------------------------------------------------------------------------


def ask(
    address: tuple[str, int], path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, http.client.HTTPMessage]:
    """(status, content, headers) of one request; `_` in names of headers stands for `-`."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    connection.request("GET" if body is None else "POST", path, body, named)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    if reply.headers.get_content_type() == "application/json":
        content = json.loads(content)
    return reply.status, content, reply.headers


def test_http(address: tuple[str, int]) -> None:
    status, content, headers = ask(address, "/")
    assert status == 200
    assert b"<!doctype html>" in content
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask(address, "/about")[1]["figures"] == 6
    status, found, _ = ask(address, "/image", png(3))
    assert (status, found["neighbours"][0]["index"]) == (200, 3)
    asked = {"image": found["id"], "names": ["a", "b"], "template": "{c}"}
    json_type = {"Content_Type": "application/json"}
    status, scores, _ = ask(address, "/scores", json.dumps(asked).encode(), **json_type)
    assert status == 200
    assert {row["name"] for row in scores["answers"]} == {"a", "b"}
    asked = {"image": found["id"], "text": "a"}
    assert ask(address, "/heat", json.dumps(asked).encode(), **json_type)[0] == 200
    assert ask(address, f"/image/{found['id']}")[2]["Content-Type"] == "image/jpeg"
    assert ask(address, "/figure/0")[2]["Content-Type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("path", "body", "headers", "message"),
    [
        ("/../program.py", None, {}, "no such page"),
        ("/page.html/../../../../etc/passwd", None, {}, "no such page"),
        ("/figure/6", None, {}, "no such figure"),
        ("/figure/-1", None, {}, "no such page"),
        ("/figure/%D9%A3", None, {}, "no such page"),
        ("/image/none", None, {}, "not remembered"),
        ("/image", b"not an image", {}, "not an image"),
        ("/image", b"", {"Content_Length": "999999999999"}, "larger than 64 MiB"),
        ("/image", b"", {"Content_Length": "-1"}, "the length of the request is needed"),
        ("/image", b"x", {"Content_Length": "1" * 5000}, "the length of the request is needed"),
        ("/scores", b"{}", {}, "JSON is needed"),
        ("/scores", b"{", {"Content_Type": "application/json"}, "not JSON"),
        ("/scores", b"[" * 9999, {"Content_Type": "application/json"}, "not JSON"),
        ("/scores", b"[]", {"Content_Type": "application/json"}, "an object is needed"),
        ("/scores", b"{}", {"Content_Type": "application/json"}, "names: a list of texts"),
        ("/heat", b'{"image": 3}', {"Content_Type": "application/json"}, "image: a text"),
        ("/about", None, {"Host": "evil.example"}, "open the page at the address"),
        ("/about", None, {"Origin": "http://evil.example"}, "from the page itself only"),
        ("/image", b"x", {"Origin": "null"}, "from the page itself only"),
    ],
)
def test_what_is_refused(
    address: tuple[str, int], path: str, body: bytes | None, headers: dict, message: str
) -> None:
    status, content, _ = ask(address, path, body, **headers)
    assert status == 400
    assert message in content["error"]


def test_a_silent_client_is_dropped(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_server.Handler, "timeout", 0.2)
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.putrequest("POST", "/image")
    connection.putheader("Content-Length", "100")
    connection.endheaders()
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        connection.getresponse()
    assert ask(address, "/about")[0] == 200


def test_the_program(model: Model, shards: Path, tmp_path: Path) -> None:
    arguments = [f"model={model.name}", f"shards={shards}", f"cache={tmp_path / 'cache'}"]
    config = load_config(DemoConfig, [*arguments, "port=0", "workers=0"])
    with start(config) as server:
        assert server.address == f"http://127.0.0.1:{server.server_address[1]}/"
        assert server.hosts is not None
        assert server.engine.add(png(3))["neighbours"][0]["index"] == 3
        taken = load_config(DemoConfig, [*arguments, f"port={server.server_address[1]}"])
        with fails("Address already in use"):
            start(taken)
    assert list((tmp_path / "cache").glob("images-*.safetensors"))
    with fails("no samples in split 'dev'"):
        start(load_config(DemoConfig, [*arguments, "split=dev"]))
    with fails("port=70000: set one from 0 to 65535"):
        load_config(DemoConfig, ["model=x", "port=70000"])


# --- a browser ------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)])
def test_a_person_at_the_page(
    address: tuple[str, int], tmp_path: Path, width: int, height: int
) -> None:
    image = tmp_path / "dropped.png"
    image.write_bytes(png(3))
    asyncio.run(use(f"http://127.0.0.1:{address[1]}/", image, width, height))


async def use(url: str, image: Path, width: int, height: int) -> None:
    async with page(url, width, height) as tab:
        await tab.until("document.getElementById('model').textContent.includes('model')")
        await tab.value("document.getElementById('ask').click()")
        await tab.until("!document.getElementById('error').hidden")
        assert await tab.value("document.getElementById('error').textContent") == (
            "drop an image first"
        )
        await tab.choose_file("#file", image)
        await tab.until("document.querySelectorAll('#answers button').length == 7")
        shares = await tab.value(
            "[...document.querySelectorAll('#answers .how')].map(e => parseFloat(e.textContent))"
        )
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(100, abs=0.5)
        captions = "[...document.querySelectorAll('.card .caption')].map(e => e.textContent)"
        assert (await tab.value(captions))[0] == HOSTILE, "shown as text"

        before = await tab.value("document.getElementById('canvas').toDataURL()")
        await tab.value("document.querySelector('#answers button').click()")
        await tab.until("!document.getElementById('legend').hidden")
        assert await tab.value("document.getElementById('canvas').toDataURL()") != before
        await tab.value("document.getElementById('clear').click()")
        assert await tab.value("document.getElementById('canvas').toDataURL()") == before

        await tab.value("document.getElementById('tab-question').click()")
        await tab.value("document.getElementById('question').value = 'Is there a lesion?'")
        await tab.value("document.getElementById('ask').click()")
        await tab.until("document.querySelectorAll('#answers button').length == 2")
        titles = "[...document.querySelectorAll('#answers button')].map(e => e.title).sort()"
        assert await tab.value(titles) == ["Is there a lesion? no", "Is there a lesion? yes"]

        await tab.until("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert await tab.value("document.documentElement.scrollWidth") <= width
        assert await tab.value("document.title") != "owned"
        assert all(asked.startswith((url, "data:")) for asked in tab.requested)
        assert tab.problems == []
