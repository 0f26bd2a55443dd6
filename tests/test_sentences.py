"""Sentence encoders: ONNX says what the published architecture says; what is no encoder is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from shortlist.cli import main
from shortlist.events.labels import ObservedPositives
from shortlist.events.log import MemoryLog
from shortlist.events.schema import Entity
from shortlist.features.definitions import EventType
from shortlist.features.entities import Entities
from shortlist.features.hashing import hash_strings
from shortlist.project import Project, load_project
from shortlist.retrieval.models.item_tower import ItemTower
from shortlist.retrieval.models.sentences import ENCODER, TOKENIZER, SentenceEncoder, vectors_of
from shortlist.retrieval.models.towers import Towers
from shortlist.retrieval.specs import TwoTower
from shortlist.training.dataset import survey
from shortlist.training.rankers.fitting import NothingToLearnError
from shortlist.training.sources.fitting import fit_source
from shortlist.training.towers.sentence_model import CONFIG, POOLING, WEIGHTS, read_weights, write_sentence_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "##ish", "apple", "car"]
SHAPE = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "layer_norm_eps": 1e-12,
}


def published(folder: Path, seed: int = 0) -> Path:
    """A folder as sentence-transformers publishes it, with drawn weights."""
    safetensors = pytest.importorskip("safetensors.numpy")
    folder.mkdir()
    rng, width = np.random.default_rng(seed), 12
    sizes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (300, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in (f"encoder.layer.{number}" for number in range(2)):
        for name in ("query", "key", "value"):
            sizes |= {f"{layer}.attention.self.{name}.{part}": (width,) * n for part, n in (("weight", 2), ("bias", 1))}
        for name, out, into in (("attention.output", 12, 12), ("intermediate", 20, 12), ("output", 12, 20)):
            sizes |= {f"{layer}.{name}.dense.weight": (out, into), f"{layer}.{name}.dense.bias": (out,)}
        for name in ("attention.output", "output"):
            sizes |= {f"{layer}.{name}.LayerNorm.{part}": (width,) for part in ("weight", "bias")}
    tensors: dict[str, Any] = {name: rng.normal(0, 0.5, size).astype(np.float32) for name, size in sizes.items()}
    tensors["embeddings.position_ids"] = np.arange(300)
    safetensors.save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(SHAPE))
    return folder


def expected(folder: Path, ids: list[int]) -> Any:
    """BERT (Devlin et al., NAACL 2019), one text at a time, and the mean of its tokens at length 1."""
    w = {name: torch.from_numpy(np.array(value)) for name, value in read_weights(folder / WEIGHTS).items()}

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (12,), w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"], 1e-12)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings", x + w["embeddings.token_type_embeddings.weight"][0])
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        q, k, v = (
            linear(f"{layer}.attention.self.{name}", x).reshape(-1, 3, 4).transpose(0, 1)
            for name in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(-1, 12)
        x = norm(f"{layer}.attention.output", x + linear(f"{layer}.attention.output.dense", mixed))
        inner = functional.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output", x + linear(f"{layer}.output.dense", inner))
    return functional.normalize(x.mean(dim=0), dim=0).numpy()


def encoder(tmp_path: Path) -> tuple[Path, SentenceEncoder]:
    """The published folder, and the encoder that a release would hold."""
    tokenizers = pytest.importorskip("tokenizers")
    folder, place = published(tmp_path / "published"), tmp_path / "release"
    place.mkdir()
    write_sentence_encoder(folder, place / ENCODER)
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(dict(zip(WORDS, range(9), strict=True)), unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(place / TOKENIZER))
    return folder, SentenceEncoder.load(place)


def test_onnx_says_what_bert_says_however_texts_are_batched(tmp_path: Path) -> None:
    folder, model = encoder(tmp_path)
    texts = ["Red apple", "greenish car", "", "red", "a car, a greenish apple: red " * 90]
    found = model.encode(texts)
    assert found.shape == (5, model.dimensions) == (5, 12)
    for text, ids in (("Red apple", [2, 4, 7, 3]), ("greenish car", [2, 5, 6, 8, 3]), ("", [2, 3]), ("red", [2, 4, 3])):
        assert np.abs(found[texts.index(text)] - expected(folder, ids)).max() < 1e-5
    assert np.abs(model.encode(texts[1:2]) - found[1]).max() < 1e-6
    assert np.isfinite(found).all()
    assert model.encode([]).shape == (0, 12)


def test_texts_of_entities_become_vectors_and_none_becomes_zero(tmp_path: Path) -> None:
    _, model = encoder(tmp_path)
    film = Entity("film", title=str)
    log, known = MemoryLog([film.schema]), Entities(film)
    log.append([{"kind": "film", "at": 0, "film": "a", "title": "red car"}, {"kind": "film", "at": 0, "film": "b"}])
    for batch in log.scan():
        known.update(batch)
    found = vectors_of(known, ("title",), hash_strings(["b", "a", "nowhere", "a"]), model)["title_vector"]
    assert found.shape == (4, 12)
    assert not found[[0, 2]].any()
    assert np.allclose(found[[1, 3]], model.encode(["red car"]))


def test_towers_read_sentences_and_so_does_what_is_new(tmp_path: Path) -> None:
    """What training says of an item and what serving makes of it is the same, words, numbers and sentences together."""
    folder, _ = encoder(tmp_path)
    (folder / TOKENIZER).write_bytes((tmp_path / "release" / TOKENIZER).read_bytes())
    user, film = Entity("user"), Entity("film", title=str, year=int, genre=str)
    watch = EventType("watch", user, film)
    history = watch.by(user).last("film", 4)
    towers = TwoTower(history, (), ("genre", "year"), ("title",), str(folder), dimensions=8, batch=16)
    project = Project("films", user, film, [watch], ObservedPositives({watch: 1.0}), [history], sources=[towers])
    assert project.problems() == []
    log, titles = MemoryLog(project.schemas), ["red apple", "green car", "Greenish"]
    for n in range(9):
        about = {"title": titles[n % 3], "year": 1990 + n, "genre": f"g{n % 2}"} if n < 8 else {}
        log.append([{"kind": "film", "at": 0, "film": f"f{n}", **about}])
    log.append([{"kind": "watch", "at": n, "user": f"u{n % 5}", "film": f"f{n % 9}"} for n in range(1, 90)])
    lesson, place = survey(project, log, 0, lambda *_: None).lesson, tmp_path / "towers"
    fit_source(towers, lesson, place, None, lambda *_: None)
    learned = Towers.load(place)
    item_tower = ItemTower.load(place, learned)
    made = item_tower.vectors(lesson.known.items, learned.items)
    assert np.abs(made - learned.item_vectors).max() < 2e-3  # ids are kept in half precision
    with_sentence, without = (
        item_tower.vectors(known_of(film, title), hash_strings(["new"]))[0] for title in ("red car", None)
    )
    assert np.abs(with_sentence - without).max() > 0.01
    (place / TOKENIZER).unlink()
    with pytest.raises(ValueError, match="train again"):
        ItemTower.load(place, learned)


def known_of(film: Entity, title: str | None) -> Entities:
    """One new film."""
    log, known = MemoryLog([film.schema]), Entities(film)
    log.append([{"kind": "film", "at": 0, "film": "new", **({"title": title} if title else {})}])
    for batch in log.scan():
        known.update(batch)
    return known


@pytest.mark.parametrize(
    ("text", "encoder_of", "reason"),
    [((), "somewhere", "nothing for it to read"), (("title",), 5, "path of a folder")],
)
def test_a_text_encoder_without_texts_is_a_mistake(text: tuple[str, ...], encoder_of: Any, reason: str) -> None:
    user, film = Entity("user"), Entity("film", title=str)
    watch = EventType("watch", user, film)
    towers = TwoTower(watch.by(user).last("film", 4), item_text=text, text_encoder=encoder_of)
    project = Project("films", user, film, [watch], ObservedPositives({watch: 1.0}), sources=[towers])
    assert [reason in str(problem) for problem in project.problems()] == [True]


def test_a_folder_without_an_encoder_leaves_the_towers_out(tmp_path: Path) -> None:
    user, film = Entity("user"), Entity("film", title=str)
    watch = EventType("watch", user, film)
    history = watch.by(user).last("film", 4)
    towers = TwoTower(history, item_text=("title",), text_encoder=str(tmp_path / "nowhere"))
    project = Project("films", user, film, [watch], ObservedPositives({watch: 1.0}), [history], sources=[towers])
    log = MemoryLog(project.schemas)
    log.append([{"kind": "watch", "at": 1, "user": "u", "film": "f"}])
    with pytest.raises(NothingToLearnError, match="no sentence encoder"):
        fit_source(towers, survey(project, log, 0, lambda *_: None).lesson, tmp_path / "t", None, lambda *_: None)


@pytest.mark.parametrize("damage", ["missing", "kind", "pooling", "half", "cut", "library"])
def test_what_is_no_encoder_is_refused_with_what_was_found(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published(tmp_path / "published")
    reason = "no sentence encoder"
    if damage == "missing":
        (folder / WEIGHTS).unlink()
    elif damage == "kind":
        (folder / CONFIG).write_text(json.dumps({**SHAPE, "model_type": "mpnet"}))
        reason = "mpnet"
    elif damage == "pooling":
        (folder / POOLING).parent.mkdir()
        (folder / POOLING).write_text(json.dumps({"pooling_mode_mean_tokens": False}))
        reason = "mean of the tokens"
    elif damage == "half":
        tensors = {name: np.array(value, np.float16) for name, value in read_weights(folder / WEIGHTS).items()}
        pytest.importorskip("safetensors.numpy").save_file(tensors, folder / WEIGHTS)
        reason = "F16"
    elif damage == "cut":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])
        reason = "cut off"
    else:
        monkeypatch.setitem(sys.modules, "safetensors", None)
        reason = "shortlist\\[text\\]"
    with pytest.raises(ValueError, match=reason):
        write_sentence_encoder(folder, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_release_without_its_encoder_is_refused(tmp_path: Path) -> None:
    encoder(tmp_path)
    (tmp_path / "release" / TOKENIZER).unlink()
    with pytest.raises(ValueError, match="train again"):
        SentenceEncoder.load(tmp_path / "release")


def encoder_project(folder: Path) -> Project:
    """A project in a folder of its own, with the towers' encoder beside it."""
    folder.mkdir()
    (folder / "project.py").write_text(
        "from shortlist import *\n"
        'user, film = Entity("user"), Entity("film", title=str)\n'
        'watch = EventType("watch", user, film)\n'
        'towers = TwoTower(watch.by(user).last("film", 4), item_text=("title",), text_encoder="models/small")\n'
        'project = Project("films", user, film, [watch], ObservedPositives({watch: 1.0}), sources=[towers])\n'
    )
    return load_project(folder)


def test_a_relative_encoder_is_beside_the_project_file_wherever_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = encoder_project(tmp_path / "films")
    monkeypatch.chdir(tmp_path)
    log = MemoryLog(project.schemas)
    log.append([{"kind": "watch", "at": 1, "user": "u", "film": "f"}])
    (towers,) = survey(project, log, 0, lambda *_: None).sources
    assert isinstance(towers, TwoTower)
    assert towers.text_encoder == str((tmp_path / "films" / "models" / "small").resolve())
    assert towers.beside(tmp_path) == towers  # where it is absolute it stays


def test_validate_says_what_of_an_encoder_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "films"
    place = folder / "models" / "small"
    project = encoder_project(folder)  # who serves has the encoder in the release: it loads
    assert project.problems() == []
    assert main(["validate", "-p", str(folder)]) == 1
    said = capsys.readouterr().err
    assert f"there is no folder {place.resolve()}" in said
    assert "project.py:5" in said
    place.mkdir(parents=True)
    (place / CONFIG).write_text("{}")
    assert main(["validate", "-p", str(folder), "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert f"{place.resolve()} has no {WEIGHTS} and no {TOKENIZER}" in problem["found"]
    for name in (WEIGHTS, TOKENIZER):
        (place / name).write_text("")
    assert main(["validate", "-p", str(folder)]) == 0
