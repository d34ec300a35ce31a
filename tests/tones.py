"""Sounds with names, made here: three octaves of notes in four timbres."""

import csv
import wave

import numpy as np

RATE, SECONDS = 16_000, 0.4
NOTES = "c d e f g a b".split()
STEPS = (0, 2, 4, 5, 7, 9, 11)
TIMBRES = {
    "flute": lambda phase, t: np.sin(phase),
    "clarinet": lambda phase, t: np.sign(np.sin(phase)) * 0.6,
    "harp": lambda phase, t: sum(np.sin(k * phase) / k for k in range(1, 9)) * np.exp(-9 * t),
    "drone": lambda phase, t: np.sin(phase) * (1 + np.sin(2 * np.pi * 11 * t)) / 2,
}
OCTAVES = {"low": 3, "middle": 4, "high": 5}


def tone(note: str, octave: str, timbre: str) -> np.ndarray:
    """(samples,) float, at RATE."""
    t = np.arange(int(RATE * SECONDS)) / RATE
    semitones = 12 * (OCTAVES[octave] - 4) + STEPS[NOTES.index(note)] - 9
    return 0.5 * TIMBRES[timbre](2 * np.pi * 440 * 2 ** (semitones / 12) * t, t)


def write_tones(folder):
    """A manifest of WAV files: sound, name, and the timbre as label."""
    with open(folder / "tones.csv", "w", newline="") as table:
        out = csv.writer(table)
        out.writerow(["id", "sound", "name", "label"])
        for timbre in TIMBRES:
            for octave in OCTAVES:
                for note in NOTES:
                    name = f"{octave} {note} on a {timbre}"
                    file = f"{octave}-{note}-{timbre}.wav"
                    samples = (tone(note, octave, timbre) * 30000).clip(-32767, 32767).astype("<i2")
                    with wave.open(str(folder / file), "wb") as sound:
                        sound.setnchannels(1)
                        sound.setsampwidth(2)
                        sound.setframerate(RATE)
                        sound.writeframes(samples.tobytes())
                    out.writerow([name, file, name, timbre])
    return folder / "tones.csv"
