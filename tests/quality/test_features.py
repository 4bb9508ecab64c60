"""Feature networks: every kind opened from a folder of small random weights of its architecture, and every refusal."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from optimize import rng
from optimize.errors import ArtifactError, EnvironmentLacks, OptimizeError, UserError
from optimize.quality import drift, features, prompts
from optimize.quality.evaluate import Evaluator
from optimize.quality.judges import preprocess
from optimize.quality.judges.inception import FidInception
from optimize.quality.judges.lpips import Lpips, _layers
from optimize.quality.metrics import KINDS, FeatureNetwork


def images(n: int = 3, channels: int = 3, side: int = 16, *key: str) -> torch.Tensor:
    return torch.from_numpy(rng.normal((n, channels, side, side), "networks", *key)).mul(0.4).clamp(-1, 1)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two narrow towers, with a tokenizer that knows single letters."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    text = small | {"vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return folder


def test_dinov2_features_are_the_class_token_of_normalized_pixels(dinov2: Path):
    from transformers import Dinov2Model

    config = FeatureNetwork.model_validate({"dinov2": str(dinov2)})
    x = images(side=28)
    found = features.extract(features.open_network(config), x, batch=2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    model = Dinov2Model.from_pretrained(dinov2).eval()
    with torch.inference_mode():
        expected = model(pixel_values=((x + 1) / 2 - mean) / std).pooler_output
    np.testing.assert_allclose(found, expected.double().numpy(), atol=1e-5)
    assert features.extract(features.open_network(config), images(channels=1), batch=3).shape == (3, 16)


def test_clip_features_and_score_are_those_of_transformers_own_forward(clip: Path):
    from transformers import AutoTokenizer, CLIPModel

    config = FeatureNetwork.model_validate({"clip": str(clip)})
    x, wording = images(4, side=32), ("ab", "cde")
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    pixels = preprocess.normalized(x, preprocess.CLIP)
    tokens = tokenizer([wording[i % 2] for i in range(4)], padding=True, return_tensors="pt")
    with torch.inference_mode():
        out = model(pixel_values=pixels, **tokens)
    found = features.extract(features.open_network(config), x, 4)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, out.image_embeds.double().numpy(), atol=1e-5)
    cosine = (out.image_embeds * out.text_embeds).sum(1).clamp(min=0).double().numpy()
    np.testing.assert_allclose(prompts.scores(config, wording, x, None, batch=3), 100 * cosine, atol=1e-3)


def test_prompts_go_by_class_or_in_turn_and_must_reach_every_class():
    np.testing.assert_array_equal(prompts.chosen(("a", "b"), 5, None), [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(prompts.chosen(("a", "b"), 3, np.array([1, 1, 0])), [1, 1, 0])
    with pytest.raises(UserError, match=r"prompts: 2 given, but classes go up to 4"):
        prompts.chosen(("a", "b"), 2, np.array([0, 4]))
    with pytest.raises(UserError, match=r"clip_score needs both"):
        prompts.scores(None, (), images(), None, 2)
    np.testing.assert_allclose(
        prompts.agreement(np.array([[2.0, 0], [1, 1], [1, 0]]), np.array([[1.0, 0], [1, 0], [-1, 0]])),
        [100, 100 / np.sqrt(2), 0],
    )


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network, folder = FidInception(), tmp_path_factory.mktemp("inception")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.05)
            module.running_var.uniform_(0.12, 0.22)  # about what keeps the signal's size through 90 layers
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(
        state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, folder / "model.safetensors"
    )
    return folder


def test_inception_gives_2048_features_with_either_resize_and_has_the_published_size(inception: Path):
    x, found = images(2, side=32), {}
    for resize in ("tensorflow", "antialias"):
        config = FeatureNetwork.model_validate({"inception": str(inception), "resize": resize})
        found[resize] = features.extract(features.open_network(config), x, batch=2)
        assert found[resize].shape == (2, 2048)
    assert np.abs(found["tensorflow"] - found["antialias"]).max() > 1e-4
    # torchvision publishes 27,161,264 for Inception V3; 3,326,696 of them are its auxiliary head, the last its classifier
    assert sum(p.numel() for p in FidInception().parameters()) == 27_161_264 - 3_326_696 - (2048 * 1000 + 1000)


FIDELITY = os.environ.get("TORCH_FIDELITY", "")  # a folder with torch_fidelity, where it is at hand


@pytest.mark.skipif(not FIDELITY, reason="TORCH_FIDELITY names no folder with torch_fidelity")
def test_inception_agrees_with_torch_fidelity(inception: Path, monkeypatch: pytest.MonkeyPatch):
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [f"{FIDELITY}/torch_fidelity"]  # its __init__ asks for torchvision, its Inception does not
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    from safetensors.torch import load_file
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = load_file(inception / "model.safetensors")
    monkeypatch.setattr(torch, "load", lambda *a, **k: state)
    other = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="given above")
    x = images(2, side=40)
    config = FeatureNetwork.model_validate({"inception": str(inception)})
    with torch.inference_mode():
        (expected,) = other(preprocess.eight_bit(x).to(torch.uint8))
    found = features.extract(features.open_network(config), x, batch=2)
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=1e-4, atol=1e-5)


def test_the_tensorflow_resize_reads_at_multiples_of_the_scale():
    x = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4).contiguous()
    row = preprocess.like_tensorflow(x, 6)[0, 0, 0]
    np.testing.assert_allclose(row, [0, 2 / 3, 4 / 3, 2, 8 / 3, 3.0], rtol=1e-6)  # 10/3 would lie past the last column
    assert torch.equal(preprocess.like_tensorflow(x, 4), x)


def test_antialiasing_averages_what_point_sampling_would_miss():
    stripes = torch.tensor([1.0, -1.0]).repeat(32).expand(1, 3, 64, 64)
    assert preprocess.smooth(stripes, 8, 8).abs().max() < 0.05
    assert preprocess.like_tensorflow(stripes, 8).abs().max() == 1.0
    assert preprocess.smooth(stripes, 64, 64) is stripes


def test_clip_takes_the_middle_of_a_wide_image():
    x = torch.cat([torch.full((1, 3, 8, 4), v) for v in (-1.0, 0.5, 0.5, 1.0)], dim=3)
    np.testing.assert_allclose(preprocess.centred(x, 8), 0.5)
    assert preprocess.centred(x, 4).shape == (1, 3, 4, 4)


def test_pixels_are_eight_bit_and_normalized_by_constants():
    np.testing.assert_array_equal(preprocess.eight_bit(torch.tensor([-1.0, 0.0, 1.0, 3.0])), [0, 128, 255, 255])
    x = preprocess.normalized(torch.zeros(1, 3, 1, 1), preprocess.IMAGENET).flatten()
    np.testing.assert_allclose(x, [(0.5 - m) / d for m, d in zip(*preprocess.IMAGENET)], rtol=1e-6)
    with pytest.raises(UserError, match="images have 4 channels"):
        preprocess.rgb(torch.zeros(1, 4, 2, 2))


def torchvision_stand_in(backbone: str) -> types.ModuleType:
    """A `torchvision` whose AlexNet and VGG16 have random weights: all that torchmetrics' LPIPS takes from it."""
    torch.manual_seed(1)
    layers = nn.Sequential(*_layers(backbone))
    module, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    for name in ("alexnet", "vgg16"):
        setattr(models, name, lambda weights=None: types.SimpleNamespace(features=layers))
    module.models = models  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_lpips_agrees_with_torchmetrics(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchmetrics.functional.image import lpips as theirs

    stand_in = torchvision_stand_in(backbone)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: stand_in.models.alexnet().features)
    other = theirs._LPIPS(pretrained=False, net=backbone, pnet_rand=True)
    for parameter in other.lins.parameters():
        parameter.data.uniform_(0, 1)
    state = {k: v.contiguous() for k, v in other.state_dict().items() if not k.startswith("lins.")}
    save_file(state, tmp_path / "model.safetensors")
    ours, a, b = Lpips.load(tmp_path), images(3, 3, 64, "a"), images(3, 3, 64, "b")
    np.testing.assert_allclose(ours(a, b), other(a, b).flatten(), rtol=1e-5)
    assert float(ours(a, a).abs().max()) == 0.0
    assert drift.lpips(ours, images(5, 1), images(5, 1, 16, "b"), batch=2).shape == (5,)
    assert float(ours(images(), F.pad(images()[:, :, 2:], (0, 0, 0, 2))).min()) > 0


def test_weights_that_are_not_lpips_or_not_inception_are_refused_with_how_to_make_them(tmp_path: Path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"not the weights of LPIPS on AlexNet or VGG16\. Save"):
        Lpips.load(tmp_path)
    config = FeatureNetwork.model_validate({"inception": str(tmp_path)})
    with pytest.raises(ArtifactError, match=r"do not fit the network.*convert them once: python -c"):
        features.open_network(config)
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"never loaded.*convert them once"):
        features.open_network(FeatureNetwork.model_validate({"inception": str(tmp_path / "w.pth")}))


def test_a_folder_of_another_model_is_refused(dinov2: Path, clip: Path, tmp_path: Path):
    with pytest.raises(ArtifactError, match="holds a clip, not a dinov2"):
        features.open_network(FeatureNetwork.model_validate({"dinov2": str(clip)}))
    with pytest.raises(ArtifactError, match="does not hold a dinov2 that transformers can load"):
        features.open_network(FeatureNetwork.model_validate({"dinov2": str(tmp_path)}))


def test_a_path_that_leads_nowhere_and_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    with pytest.raises(UserError, match=r"\./nowhere does not exist .* and is no hub id"):
        features.located("./nowhere")

    def silent(*a: object, **k: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", silent)
    with pytest.raises(EnvironmentLacks, match=r"the hub does not answer .*`hf download owner/name`"):
        features.located("owner/name")
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **k: asked.update(k) or "/x")
    features.located("owner/name", "v2")
    assert asked["revision"] == "v2" and not any(p.endswith((".bin", ".pt", "*")) for p in asked["allow_patterns"])


MODULE = """
def mean(images): return images.mean(dim=(2, 3))
def flat(images): return images
def single(images): return images[:1].mean(dim=(2, 3))
def broken(images): return images.mean(dim=(2, 3)) / 0
constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"judge_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_any_callable_of_the_working_directory_is_a_feature_network(module: str):
    config = FeatureNetwork.model_validate({"import": f"{module}:mean"})
    before = list(sys.path)
    found = features.extract(features.open_network(config), images(5), batch=2)
    np.testing.assert_allclose(found, images(5).mean(dim=(2, 3)).numpy(), rtol=1e-6)
    assert sys.path == before
    first = features.fingerprint(config)
    assert len(first["code"]) == 64
    assert first != features.fingerprint(config.model_copy(update={"revision": "2"}))


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("flat", UserError, r"gives \(3, 3, 16, 16\) for images of shape \(3, 3, 16, 16\); it must give .* here \(3, D\)"),
        ("single", UserError, r"gives \(1, 3\) for images"),
        ("broken", OptimizeError, "gives NaN or infinities for finite images"),
        ("constant", UserError, "is no callable"),
        ("meen", UserError, 'has no meen. Did you mean "mean"'),
    ],
)  # fmt: skip
def test_what_cannot_be_a_feature_network_is_named(module: str, name: str, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        network = features.open_network(FeatureNetwork.model_validate({"import": f"{module}:{name}"}))
        features.extract(network, images(), batch=3)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no_such_module_here cannot be imported"):
        features.imported("no_such_module_here:f")


@pytest.mark.parametrize(
    ("given", "back"),
    [
        ("examples/digits/features", "examples/digits/features"),
        ({"classifier": "a/b"}, "a/b"),
        ({"dinov2": "facebook/dinov2-large", "revision": "main"}, {"dinov2": "facebook/dinov2-large", "revision": "main"}),
        ({"inception": "w", "resize": "antialias"}, {"inception": "w", "resize": "antialias"}),
        ({"import": "a.b:c"}, {"import": "a.b:c"}),
    ],
)  # fmt: skip
def test_a_network_is_one_line_that_reads_back_to_itself(given: object, back: object):
    config = FeatureNetwork.model_validate(given)
    assert config.to_json() == back
    assert FeatureNetwork.model_validate(config.to_json()) == config


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dinov": "x"}, 'Did you mean "dinov2"'),
        ({"dinov2": "x", "clip": "y"}, "one of classifier, .* is expected, given dinov2, clip"),
        ({"revision": "x"}, "given none"),
        ({"import": "no colon"}, "is no import path. Give `package.module:name`"),
        ({"dinov2": "x", "resize": "antialias"}, "resize is an option of inception"),
    ],
)
def test_a_network_that_is_written_wrong_is_explained(given: object, says: str):
    with pytest.raises(ValueError, match=says):
        FeatureNetwork.model_validate(given)


def test_how_images_reach_a_network_is_stated_for_every_kind():
    for kind in KINDS:
        config = FeatureNetwork.model_validate({kind: "a.b:c" if kind == "import" else "a/b"})
        assert len(config.about) > 20
    plain, smooth = (
        FeatureNetwork.model_validate({"inception": "w", "resize": r}) for r in ("tensorflow", "antialias")
    )
    assert "as TensorFlow 1 resizes" in plain.about and "with antialiasing" in smooth.about


def test_the_evaluator_judges_with_dinov2_clip_and_lpips_together(dinov2: Path, clip: Path, tmp_path: Path):
    torch.manual_seed(0)
    weights = {k: v.abs() if k.startswith("lin") else v for k, v in Lpips("alex").state_dict().items()}
    save_file(weights, tmp_path / "lpips.safetensors")
    for name in ("held_out", "training"):
        save_file({"images": images(20, 1, 16, name)}, tmp_path / f"{name}.safetensors")
    judge = Evaluator(
        FeatureNetwork.model_validate({"dinov2": str(dinov2)}), None, tmp_path / "held_out.safetensors", tmp_path / "training.safetensors",
        replicates=20, batch=10, metrics=("fd", "precision_recall", "lpips", "clip_score"), further={"seen": FeatureNetwork.model_validate({"clip": str(clip)})},
        lpips=str(tmp_path / "lpips.safetensors"), clip=FeatureNetwork.model_validate({"clip": str(clip)}), wording=("ab", "c"),
    )  # fmt: skip
    x, labels = images(20, 1, 16, "made"), np.arange(20) % 2
    found = judge.measure(x, labels, baseline=images(20, 1, 16, "base"))
    figures = {
        "fd",
        "fd_held_out",
        "fd_training",
        "precision",
        "recall",
        "fd_seen",
        "precision_seen",
        "recall_seen",
        "lpips",
        "clip_score",
    }
    assert set(found) == figures | {"difference"}
    assert all(found[k]["low"] <= found[k]["value"] <= found[k]["high"] for k in figures)
    assert (
        found["lpips"]["value"] > 0.0
        and found["difference"]["clip_score"]["low"] <= found["difference"]["clip_score"]["high"]
    )
    same = judge.measure(x, labels, baseline=x)
    assert same["lpips"]["value"] == 0.0 and same["difference"]["clip_score"]["value"] == 0.0
    assert found["clip_score"]["value"] == pytest.approx(
        prompts.scores(judge._clip, ("ab", "c"), x, labels, 7).mean(), rel=1e-5
    )
