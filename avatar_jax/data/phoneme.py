"""Phonemes, their gestures, and a random grammar that strings them into phrases.

A phoneme is one or two *gestures* (a stop is closure then release, a diphthong is two vowels). A gesture
carries both what is heard (formants, source levels, friction shape) and what is seen (mouth opening and
width), so that the sound and the mouth of an utterance come from one table. Vowel formants are close to the
adult male averages of Peterson and Barney (1952); consonant loci follow the ranges of Klatt (1980); levels
were set against the mel spectra of recorded speech.
"""

from __future__ import annotations

import dataclasses

import numpy as np

FRICTIONS = ("none", "low", "mid", "high", "flat", "sh", "s")  # friction spectra, shaped in formant.py


@dataclasses.dataclass(frozen=True)
class Gesture:
    """One target: formants in Hz, source levels relative to AA, opening in [0, 1], width in [-1, 1]."""

    f1: float
    f2: float
    f3: float
    opening: float
    width: float
    seconds: float
    voice: float = 1.0
    breath: float = 0.0
    friction: float = 0.0
    spectrum: str = "none"
    nasal: float = 0.0
    lips_shut: bool = False


def _vowel(f1: float, f2: float, f3: float, opening: float, width: float, seconds: float) -> Gesture:
    return Gesture(f1, f2, f3, opening, width, seconds)


def _closure(f2: float, f3: float, opening: float, voice: float, *, lips_shut: bool = False) -> Gesture:
    return Gesture(220, f2, f3, opening, 0.0, 0.060, voice=voice, lips_shut=lips_shut)


def _burst(f2: float, f3: float, opening: float, friction: float, spectrum: str, breath: float) -> Gesture:
    return Gesture(350, f2, f3, opening, 0.0, 0.018 + 0.15 * breath, 0.25 - breath, breath, friction, spectrum)


def _fricative(f2: float, mouth: tuple[float, float], voice: float, friction: float, spectrum: str) -> Gesture:
    return Gesture(320, f2, 2550, *mouth, 0.095 - 0.05 * voice, voice, 0.0, friction, spectrum)


VOWELS: dict[str, tuple[Gesture, ...]] = {
    "IY": (_vowel(270, 2290, 3010, 0.30, 0.85, 0.130),),
    "IH": (_vowel(390, 1990, 2550, 0.40, 0.45, 0.090),),
    "EH": (_vowel(530, 1840, 2480, 0.60, 0.35, 0.110),),
    "AE": (_vowel(660, 1720, 2410, 0.85, 0.40, 0.140),),
    "AA": (_vowel(730, 1090, 2440, 1.00, 0.00, 0.145),),
    "AO": (_vowel(570, 840, 2410, 0.75, -0.45, 0.140),),
    "UH": (_vowel(440, 1020, 2240, 0.40, -0.45, 0.090),),
    "UW": (_vowel(300, 870, 2240, 0.25, -0.90, 0.130),),
    "AH": (_vowel(640, 1190, 2390, 0.70, 0.05, 0.105),),
    "ER": (_vowel(490, 1350, 1690, 0.45, -0.25, 0.120),),
    "AX": (_vowel(500, 1450, 2450, 0.40, 0.00, 0.070),),
    "EY": (_vowel(480, 1950, 2550, 0.55, 0.45, 0.080), _vowel(320, 2250, 2900, 0.35, 0.75, 0.070)),
    "OW": (_vowel(540, 950, 2350, 0.65, -0.55, 0.085), _vowel(360, 820, 2250, 0.35, -0.90, 0.065)),
    "AY": (_vowel(730, 1250, 2450, 0.95, 0.10, 0.095), _vowel(360, 2050, 2700, 0.45, 0.60, 0.065)),
    "AW": (_vowel(730, 1300, 2450, 0.95, 0.05, 0.095), _vowel(400, 900, 2300, 0.45, -0.70, 0.065)),
    "OY": (_vowel(560, 850, 2400, 0.70, -0.60, 0.090), _vowel(370, 2050, 2650, 0.45, 0.50, 0.070)),
}

CONSONANTS: dict[str, tuple[Gesture, ...]] = {
    "P": (_closure(900, 2200, 0.0, 0.0, lips_shut=True), _burst(1000, 2250, 0.15, 0.14, "low", 0.12)),
    "B": (_closure(900, 2200, 0.0, 0.14, lips_shut=True), _burst(1000, 2250, 0.15, 0.10, "low", 0.0)),
    "T": (_closure(1750, 2650, 0.15, 0.0), _burst(1750, 2650, 0.20, 0.20, "high", 0.12)),
    "D": (_closure(1750, 2650, 0.15, 0.14), _burst(1750, 2650, 0.20, 0.13, "high", 0.0)),
    "K": (_closure(1900, 2200, 0.22, 0.0), _burst(1850, 2250, 0.28, 0.20, "mid", 0.13)),
    "G": (_closure(1900, 2200, 0.22, 0.14), _burst(1850, 2250, 0.28, 0.12, "mid", 0.0)),
    "F": (_fricative(1100, (0.10, 0.10), 0.0, 0.05, "flat"),),
    "V": (_fricative(1100, (0.10, 0.10), 0.40, 0.02, "flat"),),
    "TH": (_fricative(1400, (0.20, 0.10), 0.0, 0.045, "flat"),),
    "DH": (_fricative(1400, (0.20, 0.10), 0.40, 0.02, "flat"),),
    "S": (_fricative(1700, (0.15, 0.40), 0.0, 0.18, "s"),),
    "Z": (_fricative(1700, (0.15, 0.40), 0.35, 0.09, "s"),),
    "SH": (_fricative(1850, (0.15, -0.40), 0.0, 0.22, "sh"),),
    "ZH": (_fricative(1850, (0.15, -0.40), 0.35, 0.10, "sh"),),
    "HH": (Gesture(500, 1450, 2450, 0.40, 0.0, 0.060, voice=0.05, breath=0.14),),
    "CH": (
        _closure(1800, 2600, 0.15, 0.0),
        Gesture(350, 1850, 2600, 0.15, -0.35, 0.065, 0.0, 0.03, 0.20, "sh"),
    ),
    "JH": (
        _closure(1800, 2600, 0.15, 0.14),
        Gesture(350, 1850, 2600, 0.15, -0.35, 0.045, 0.25, 0.0, 0.14, "sh"),
    ),
    "M": (Gesture(260, 1050, 2200, 0.0, 0.0, 0.070, voice=0.55, nasal=1.0, lips_shut=True),),
    "N": (Gesture(260, 1600, 2600, 0.15, 0.10, 0.065, voice=0.55, nasal=1.0),),
    "NG": (Gesture(260, 1950, 2400, 0.22, 0.05, 0.070, voice=0.50, nasal=1.0),),
    "L": (Gesture(340, 1100, 2650, 0.30, 0.05, 0.060, voice=0.65),),
    "R": (Gesture(330, 1150, 1500, 0.22, -0.45, 0.060, voice=0.65),),
    "W": (Gesture(290, 680, 2200, 0.12, -0.90, 0.060, voice=0.60),),
    "Y": (Gesture(270, 2250, 2950, 0.22, 0.55, 0.055, voice=0.60),),
}

PAUSES: dict[str, tuple[Gesture, ...]] = {
    "SIL": (Gesture(500, 1500, 2500, 0.0, 0.0, 0.0, voice=0.0),),
    "BR": (Gesture(600, 1500, 2500, 0.0, 0.0, 0.0, voice=0.0, breath=0.03),),  # drawn through the nose
}

PHONEMES = {**VOWELS, **CONSONANTS, **PAUSES}
GESTURES = tuple(gesture for parts in PHONEMES.values() for gesture in parts)
_FIRST_ROW = dict(zip(PHONEMES, np.cumsum([0] + [len(p) for p in PHONEMES.values()]).tolist(), strict=False))


def _words(text: str) -> list[list[str]]:
    """Space-separated clusters, phonemes joined by dots."""
    return [cluster.split(".") for cluster in text.split()]


_ONSETS = _words("P B T D K G F V TH DH S Z SH HH CH JH M N L R W Y")
_CODAS = _words("P B T D K G F V TH S Z SH CH JH M N NG L R")
_ONSET_CLUSTERS = _words("P.R P.L B.R B.L T.R D.R K.R K.L G.R G.L F.R F.L S.T S.P S.K S.L S.M S.W S.T.R")
_CODA_CLUSTERS = _words("N.T N.D S.T K.S L.D M.P NG.K T.S N.Z R.T L.Z F.T")
_FULL = [[vowel] for vowel in VOWELS if vowel != "AX"]
_REDUCED = _words("AX AX IH ER UH")
_SYLLABLE_SECONDS = 0.215  # mean syllable of this grammar at the table's durations
_SHORTEST_CLOSURE = 0.048  # above one video frame, so that a frame always sees the lips meet


@dataclasses.dataclass(frozen=True)
class Score:
    """Gestures in time: rows of GESTURES with start times, loudness (1 = stressed) and pitch."""

    row: np.ndarray  # [G] int
    start: np.ndarray  # [G] seconds, increasing
    level: np.ndarray  # [G]
    pitch: np.ndarray  # [G] semitones about the voice's own pitch
    phonemes: tuple[tuple[str, float, float], ...]


class _Pen:
    """Writes phonemes one after another; `now` is the time in seconds."""

    def __init__(self, now: float, stretch: float) -> None:
        self.now, self.stretch = now, stretch
        self.gestures: list[tuple[int, float, float, float]] = []
        self.phonemes: list[tuple[str, float, float]] = []

    def write(self, symbol: str, level: float, pitch: float, stretch: float) -> None:
        start = self.now
        for offset, gesture in enumerate(PHONEMES[symbol]):
            self.gestures.append((_FIRST_ROW[symbol] + offset, self.now, level, pitch))
            seconds = gesture.seconds * stretch * self.stretch
            self.now += max(seconds, _SHORTEST_CLOSURE) if gesture.lips_shut else seconds
        self.phonemes.append((symbol, start, self.now))

    def rest(self, symbol: str, seconds: float, level: float = 0.7) -> None:
        self.gestures.append((_FIRST_ROW[symbol], self.now, level, 0.0))
        self.phonemes.append((symbol, self.now, self.now + seconds))
        self.now += seconds


def _pick(rng: np.random.Generator, clusters: list[list[str]]) -> list[str]:
    return clusters[int(rng.random() * len(clusters))]


def _syllable(rng: np.random.Generator, stressed: bool) -> list[str]:
    """Onset, nucleus, coda: 15 % begin and half end with the vowel; clusters are rarer without stress."""
    onset, coda, cluster = rng.random(), rng.random(), 0.15 if stressed else 0.03
    symbols = list(_pick(rng, _ONSET_CLUSTERS if onset < cluster else _ONSETS)) if onset < 0.85 else []
    symbols += _pick(rng, _FULL if stressed or rng.random() < 0.35 else _REDUCED)
    return symbols + (_pick(rng, _CODA_CLUSTERS if coda < 0.7 * cluster else _CODAS) if coda < 0.5 else [])


def _phrase(rng: np.random.Generator, pen: _Pen) -> None:
    """Words of one to three syllables, one stressed each; the voice falls, the last syllable stretches."""
    words = rng.integers(1, 4, size=int(rng.integers(1, 7)))
    total, done = int(words.sum()), 0
    fall, ending, effort = rng.uniform(1, 5), rng.choice([-3.0, -1.5, 4.0]), rng.uniform(0.85, 1.05)
    for syllables in words:
        stress_at = int(rng.integers(syllables))
        for i in range(syllables):
            done += 1
            stressed, last = i == stress_at, done == total
            level = effort * (rng.uniform(0.85, 1.1) if stressed else rng.uniform(0.6, 0.85))
            level -= 0.15 * done / total
            pitch = fall * (0.5 - done / total) + (rng.uniform(0.5, 4.5) if stressed else 0.0) + ending * last
            stretch = (1.15 if stressed else 0.85) * (1.3 if last else 1.0) * rng.uniform(0.85, 1.18)
            for symbol in _syllable(rng, stressed):
                pen.write(symbol, level, pitch, stretch)


def _pause(rng: np.random.Generator, pen: _Pen, long_pauses: float) -> None:
    seconds = rng.uniform(1.0, 3.0) if rng.random() < long_pauses else rng.uniform(0.15, 0.8)
    if seconds > 0.35 and rng.random() < 0.3:
        breath = rng.uniform(0.2, 0.35)
        pen.rest("BR", breath, rng.uniform(0.6, 1.6))
        seconds = max(seconds - breath, 0.08)
    pen.rest("SIL", seconds)


def compose(rng: np.random.Generator, seconds: float, *, syllables_per_second: float, long_pauses: float) -> Score:
    """A random score that covers [0, seconds]; it usually begins inside a phrase.

    `long_pauses` is the chance that a pause lasts 1 to 3 s (others last 0.15 to 0.8 s). The listed phonemes
    are clipped to the span.
    """
    pen = _Pen(-rng.uniform(0.2, 2.5), 1 / (syllables_per_second * _SYLLABLE_SECONDS))
    pen.rest("SIL", 0.1)
    while pen.now < seconds:
        _phrase(rng, pen)
        _pause(rng, pen, long_pauses)
    row, start, level, pitch = (np.asarray(column) for column in zip(*pen.gestures, strict=True))
    kept = tuple((s, max(a, 0.0), min(b, seconds)) for s, a, b in pen.phonemes if b > 0 and a < seconds)
    return Score(row.astype(np.int64), start, level, pitch, kept)


def silence(seconds: float) -> Score:
    """A score without speech."""
    one = np.ones(1)
    return Score(np.array([_FIRST_ROW["SIL"]]), 0 * one, 0.7 * one, 0 * one, (("SIL", 0.0, seconds),))
