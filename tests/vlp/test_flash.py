"""The CUDA path of the text towers on the CPU: varlen_attn and torch.compile over kernels of ours.

The reference is the exact fallback, or Hugging Face's own BertModel whose attention is replaced by
ours (so that only packing is compared: difference 0), both in the same type.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from tests.vlp.flash_cpu import flash_on_cpu
from tests.vlp.test_towers import spread
from tests.vlp.tiny import MODEL
from vlp.data.text import PackedText
from vlp.models.attention import attend, plan, uses_flash
from vlp.models.dual_encoder import DualEncoder
from vlp.models.gpt import GptTower
from vlp.models.text_tower import PackedBert, TextConfig, TextTower

CONFIG = TextConfig(
    vocab_size=50, context_length=40, max_positions=40, width=32, layers=3, heads=2, mlp_width=64
)
GPT = dataclasses.replace(CONFIG, kind="gpt", proj="linear")


def pack(lengths: list[int]) -> PackedText:
    torch.manual_seed(sum(lengths))
    ids = torch.randint(1, 50, (sum(lengths),))
    return PackedText(ids, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), 40)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    with flash_on_cpu(monkeypatch) as calls:
        yield calls


def build(config: TextConfig) -> nn.Module:
    torch.manual_seed(0)
    tower = GptTower(config, 16) if config.kind == "gpt" else TextTower(config, 16)
    spread(tower)
    return tower


def run(tower: nn.Module, text: PackedText) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients under bf16 autocast, as on CUDA."""
    tower.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = tower(text)
    out.float().square().sum().backward()
    return out.detach().float(), {name: p.grad for name, p in tower.named_parameters()}


def close(got: dict[str, Tensor], want: dict[str, Tensor], share: float) -> None:
    largest = max(grad.abs().max() for grad in want.values())
    for name, grad in want.items():
        assert (got[name] - grad).abs().max() <= share * largest, name


@pytest.mark.parametrize("causal", [False, True])
def test_varlen_attention_equals_the_fallback(flash: Counter[str], causal: bool) -> None:
    """bf16 has 8 bits; both sides accumulate in fp32, so 0.02 of values of size 1."""
    cu = torch.tensor([0, 3, 4, 17, 57]).to(torch.int32)
    q, k, v = torch.randn(3, 57, 2, 16)
    half = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    full = [x.detach().float().requires_grad_() for x in half]
    flashed, exact = plan(cu, 40, torch.bfloat16), plan(cu, 40, torch.float32)
    assert flashed.groups is None
    assert exact.groups is not None
    upstream = torch.randn(57, 2, 16)
    got = attend(*half, flashed, causal=causal)
    want = attend(*full, exact, causal=causal)
    assert (got - want).abs().max() <= 0.02
    (got * upstream).sum().backward()
    (want * upstream).sum().backward()
    for mine, other in zip(half, full, strict=True):
        assert (mine.grad - other.grad).abs().max() <= 0.02 * other.grad.abs().max()
    ends = exact.lasts if causal else exact.firsts
    asking = [half[0][ends], full[0][ends]]
    one = attend(asking[0], *half[1:], flashed, one_query=True)
    assert (one - attend(asking[1], *full[1:], exact, one_query=True)).abs().max() <= 0.02
    if causal:  # the last row sees all rows anyway
        assert (one - got[ends]).abs().max() <= 0.02
    assert flash["forward"] == 2
    assert flash["one query"] == 1
    assert flash["causal"] == causal
    assert flash["backward"] == 1


@pytest.mark.parametrize("config", [CONFIG, GPT], ids=["bert", "gpt"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_towers_on_the_flash_path(
    flash: Counter[str], config: TextConfig, checkpointing: bool
) -> None:
    """Against the same tower and type on the fallback: rounding of attention alone, 2%."""
    tower, text = build(config), pack([7, 3, 40, 1, 12])
    tower.set_grad_checkpointing(checkpointing)
    got, got_grads = run(tower, text)
    again = 3 if checkpointing else 0
    assert flash == {
        "forward": 3 + again,
        "one query": 1 + again // 3,
        "causal": (2 + again * 2 // 3) * (config.kind == "gpt"),
        "backward": 3,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlp.models.attention.uses_flash", lambda *_: False)
        want, want_grads = run(tower, text)
    assert flash["forward"] == 3 + again
    assert (got - want).abs().max() <= 0.02 * want.abs().max()
    close(got_grads, want_grads, 0.02)


@pytest.mark.parametrize("half", [False, True])
def test_hugging_faces_own_bert_packed(flash: Counter[str], half: bool) -> None:
    """Stock BertModel, one row of all tokens, our attention registered: no difference but rounding.

    fp32 takes the fallback, bf16 the flash path; each on both sides.
    """
    text = pack([7, 3, 40, 1, 12])

    def varlen(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
    ) -> tuple[Tensor, None]:
        assert mask is None
        rows = (x[0].transpose(0, 1) for x in (query, key, value))  # [1, heads, T, d] -> [T, ...]
        return attend(*rows, plan(text.cu_seqlens, 40, query.dtype))[None], None

    AttentionInterface.register("varlen_oracle", varlen)
    AttentionMaskInterface.register("varlen_oracle", lambda *_, **__: None)
    torch.manual_seed(0)
    ours = PackedBert(CONFIG)
    spread(ours)
    theirs = BertModel(BertConfig(**CONFIG.hugging_face()), add_pooling_layer=False).eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.set_attn_implementation("varlen_oracle")
    places = torch.cat([torch.arange(int(n)) for n in text.cu_seqlens.diff()])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        got = ours(text)
        hidden = theirs(input_ids=text.input_ids[None], position_ids=places[None])
    want = hidden.last_hidden_state[0][text.cu_seqlens[:-1].long()]
    # One row or many in a product: BLAS may sum in another order, and bf16 then rounds that.
    assert (got - want).abs().max() <= (0.02 if half else 1e-6) * want.abs().max()
    assert flash["forward"] == (6 if half else 0)


@pytest.mark.parametrize("config", [CONFIG, GPT], ids=["bert", "gpt"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_graph_whatever_the_lengths(
    flash: Counter[str], config: TextConfig, checkpointing: bool
) -> None:
    """Batches of other token and caption counts compile nothing anew and break nowhere."""
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    model = DualEncoder(dataclasses.replace(MODEL, text=config))
    spread(model)
    model.set_grad_checkpointing(checkpointing)
    batches = [pack(lengths) for lengths in ([7, 3, 40, 1], [2, 2, 9, 30], [5] * 11, [40, 1])]
    plain = [run(model.text, text) for text in batches]
    model.compile_towers(backend=backend, fullgraph=True)
    flash.clear()
    for text, (want, want_grads) in zip(batches, plain, strict=True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            got = model.encode_text(text)
        got.float().square().sum().backward()
        assert (got.float() - want).abs().max() <= 0.02 * want.abs().max()
        grads = {name: p.grad for name, p in model.text.named_parameters()}
        close(grads, want_grads, 0.02)
    assert len(graphs) == 1
    assert flash["forward"] == 4 * 3 * (2 if checkpointing else 1)


def test_the_image_tower_is_one_graph() -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    model = DualEncoder(MODEL)
    images = torch.randn(2, 3, 160, 160)
    want = model.encode_image(images)
    model.compile_towers(backend=backend, fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(model.encode_image(images), want)
    assert len(graphs) == 1


def test_compiled_on_the_fallback() -> None:
    """Where flash attention is not, graphs break at attention, and the results are the same."""
    torch._dynamo.reset()
    model = DualEncoder(dataclasses.replace(MODEL, text=CONFIG))
    batches = [pack([7, 3, 40]), pack([2, 2, 9, 30])]
    want = [model.encode_text(text) for text in batches]
    keys = list(model.state_dict())
    model.compile_towers(backend="eager")
    assert list(model.state_dict()) == keys
    for text, plain in zip(batches, want, strict=True):
        torch.testing.assert_close(model.encode_text(text), plain)


def test_the_device_decides() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert uses_flash(cuda, torch.bfloat16)
    assert uses_flash(cuda, torch.float16)
    assert not uses_flash(cuda, torch.float32)
    assert not uses_flash(cpu, torch.bfloat16)
