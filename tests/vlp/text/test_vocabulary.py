"""Vocabularies of three kinds: deterministic, read by transformers and by our own tokenizer."""

import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.vlp.tiny import CAPTIONS
from vlp.config import UserError
from vlp.data.text import SPECIAL_TOKENS, CaptionTokenizer, train_wordpiece
from vlp.text import vocabulary
from vlp.text.vocabulary import VocabularyConfig, segmenter, train_vocabulary

SPANISH = [
    "El año pasado el niño tenía fiebre y dolor abdominal.",
    "Mujer de 39 años con antecedente de bocio y miomas uterinos.",
    "Se realizó una exploración física: buen estado general (afebril).",
]
TEXTS = [*CAPTIONS, *SPANISH] * 4
KINDS = ["wordpiece", "bpe", "unigram"]


def config_of(kind: str, **settings: object) -> VocabularyConfig:
    return VocabularyConfig(kind=kind, **{"size": 420, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [True, False])
def test_reads_alike_everywhere(tmp_path: Path, kind: str, lowercase: bool) -> None:
    train_vocabulary(TEXTS, config_of(kind, lowercase=lowercase), tmp_path)
    ours = CaptionTokenizer(tmp_path, 64)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    packed = ours(TEXTS)
    starts = packed.cu_seqlens.tolist()
    for number, text in enumerate(TEXTS):
        ids = packed.input_ids[starts[number] : starts[number + 1]].tolist()
        assert ids == theirs(text)["input_ids"]
        assert ids[0] == theirs.cls_token_id
        assert ids[-1] == theirs.sep_token_id
        assert theirs.unk_token_id not in ids
        back = theirs.decode(ids, skip_special_tokens=True).replace(" ", "")
        want = unicodedata.normalize("NFKC", text) if kind == "unigram" else text
        assert back == (want.lower() if lowercase else want).replace(" ", "")
    assert [ours.tokenizer.token_to_id(name) for name in SPECIAL_TOKENS] == list(range(5))
    assert theirs.mask_token_id == 4
    assert ours.vocab_size <= 420
    assert theirs.vocab_size == ours.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_accents_are_kept_or_stripped(tmp_path: Path, kind: str) -> None:
    for strip in (False, True):
        train_vocabulary(SPANISH * 9, config_of(kind, strip_accents=strip), tmp_path / str(strip))
        tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / str(strip)))
        assert (tokenizer("año")["input_ids"] == tokenizer("ano")["input_ids"]) == strip


def test_the_same_text_gives_the_same_vocabulary_in_every_process(tmp_path: Path) -> None:
    code = (
        "import json, sys; from vlp.text.vocabulary import *\n"
        "for kind in ('wordpiece', 'bpe', 'unigram'):\n"
        "    config = VocabularyConfig(kind=kind, size=330)\n"
        "    train_vocabulary(json.loads(sys.argv[2]), config, sys.argv[1] + '/' + kind)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "other"), json.dumps(TEXTS)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
    for kind in KINDS:
        train_vocabulary(TEXTS, config_of(kind, size=330), tmp_path / "here" / kind)
        one, other = (
            (tmp_path / run / kind / "tokenizer.json").read_bytes() for run in ("here", "other")
        )
        assert one == other, kind


def test_wordpiece_equals_that_of_captions(tmp_path: Path) -> None:
    """Where no character is rare, it is the vocabulary that `train_wordpiece` trains."""
    config = config_of("wordpiece", size=200, strip_accents=True)
    train_vocabulary(CAPTIONS * 3, config, tmp_path / "own")
    train_wordpiece(CAPTIONS * 3, 200, tmp_path / "captions")
    own, captions = (
        CaptionTokenizer(tmp_path / name, 64).tokenizer.get_vocab() for name in ("own", "captions")
    )
    assert own == captions


def test_rare_characters_take_no_place(tmp_path: Path) -> None:
    texts = [*TEXTS, "a rare \N{SNOWMAN} xğx once"]
    train_vocabulary(texts, config_of("wordpiece"), tmp_path)
    tokens = CaptionTokenizer(tmp_path, 64).tokenizer.get_vocab()
    assert not {"\N{SNOWMAN}", "ğ", "##ğ"} & tokens.keys()
    assert "##ñ" in tokens


def test_segmented_words_bound_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces never cross a word of the segmenter, which reading the text does not need."""
    text = "患者は胸痛を訴えた"
    words = ["患者", "は", "胸痛", "を", "訴え", "た"]
    monkeypatch.setattr(
        vocabulary, "segmenter", lambda language: (lambda t: words * 2) if language else None
    )
    for kind in ("unigram", "bpe"):
        config = config_of(kind, words="japanese", min_frequency=1)
        train_vocabulary([text * 2] * 40, config, tmp_path / kind)
        tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / kind))
        cuts = {0, 2, 3, 5, 6, 8, 9}
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert kind == "unigram" or len(ids) < 9  # so short a text gives it single characters
        length = 0
        for token in ids:
            piece = tokenizer.decode([token]).strip()
            if all(c in text for c in piece):
                length += len(piece)
        assert length == len(text)
        ends = {len(tokenizer.decode(ids[:n]).strip()) for n in range(len(ids) + 1)}
        assert cuts <= ends, kind


@pytest.mark.parametrize(
    ("language", "module", "text", "word"),
    [
        ("japanese", "sudachipy", "患者は胸痛を訴えた。", "胸痛"),
        ("chinese", "rjieba", "患者主诉胸痛和发热。", "患者"),
    ],
)
def test_segmenters(language: str, module: str, text: str, word: str) -> None:
    pytest.importorskip(module)
    cut = segmenter(language)  # type: ignore[arg-type]
    assert cut is not None
    long = text * 3000
    assert "".join(cut(long)) == long
    assert word in cut(text)


def test_a_missing_segmenter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for language, module in (("japanese", "sudachipy"), ("chinese", "rjieba")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=f"words={language}: the package {module} is missing"):
            segmenter(language)  # type: ignore[arg-type]


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="set kind=unigram or kind=bpe"):
        VocabularyConfig(words="japanese")
    with pytest.raises(ValueError, match="256 bytes"):
        VocabularyConfig(kind="bpe", size=200)
    with pytest.raises(UserError, match="no text to train a vocabulary on"):
        train_vocabulary([" "], VocabularyConfig(), "nowhere")


def test_texts_are_read_as_a_stream(tmp_path: Path) -> None:
    """Twice over, never held as a list."""

    class Texts:
        passes = 0

        def __iter__(self) -> Iterator[str]:
            Texts.passes += 1
            yield from TEXTS

    train_vocabulary(Texts(), config_of("wordpiece"), tmp_path)
    assert Texts.passes == 3  # one for the check that there is text
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["mask_token"] == "[MASK]"
