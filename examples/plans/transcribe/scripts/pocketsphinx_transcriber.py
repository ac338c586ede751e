"""Transcribes English speech with CMU PocketSphinx, on the CPU and without a network: prints a line
for each stretch of speech. Needs `pip install pocketsphinx`, whose wheel holds its model.

Takes WAV (16-bit PCM); anything else goes through ffmpeg, if that is there. It is small and old:
clear, close speech works, music and noise do not. For real recordings use Whisper.
"""

import argparse
import array
import io
import math
import shutil
import subprocess
import sys
import wave

RATE = 16000
# Zero crossings of the resampling filter on each side.
HALF = 16


def read_wav(path):
    """The samples of a WAV file as mono, and their rate."""
    with wave.open(path) as recording:
        channels, width, rate = recording.getnchannels(), recording.getsampwidth(), recording.getframerate()
        if width != 2:
            raise wave.Error(f"{8 * width}-bit samples")
        samples = array.array("h", recording.readframes(recording.getnframes()))
    if sys.byteorder == "big":
        samples.byteswap()
    if channels > 1:
        sums = (sum(samples[at:at + channels]) // channels for at in range(0, len(samples), channels))
        samples = array.array("h", sums)
    return samples, rate


def resample(samples, rate):
    """To RATE, by a windowed-sinc filter: what lies above the new band would come back as noise."""
    if rate == RATE:
        return samples
    step = math.gcd(rate, RATE)
    up, down = RATE // step, rate // step
    cutoff = min(1.0, RATE / rate) * 0.95
    half = math.ceil(HALF / cutoff)
    filters = []
    for phase in range(up):
        taps = []
        for tap in range(1 - half, half + 1):
            x = tap - phase / up
            sinc = cutoff if x == 0 else math.sin(math.pi * cutoff * x) / (math.pi * x)
            taps.append(sinc * (0.5 + 0.5 * math.cos(math.pi * x / half)) if abs(x) < half else 0.0)
        filters.append(taps)
    padded = [0] * half + list(samples) + [0] * (half + 1)
    resampled = array.array("h")
    for n in range(len(samples) * up // down):
        at, phase = divmod(n * down, up)
        value = sum(a * b for a, b in zip(filters[phase], padded[at + 1:at + 1 + 2 * half]))
        resampled.append(max(-32768, min(32767, round(value))))
    return resampled


def read_audio(path):
    try:
        return resample(*read_wav(path))
    except (wave.Error, EOFError) as error:
        ffmpeg = shutil.which("ffmpeg")
        if not ffmpeg:
            sys.exit(f"pocketsphinx_transcriber: {path} is no 16-bit WAV ({error}) and there is no ffmpeg to convert it")
    converted = subprocess.run(
        [ffmpeg, "-nostdin", "-loglevel", "error", "-i", path, "-ac", "1", "-ar", str(RATE), "-f", "s16le", "-"],
        stdout=subprocess.PIPE, check=False)
    if converted.returncode:
        sys.exit(f"pocketsphinx_transcriber: ffmpeg could not read {path}")
    return array.array("h", converted.stdout[:len(converted.stdout) // 2 * 2])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audio")
    arguments = parser.parse_args()
    try:
        from pocketsphinx import Decoder, Segmenter
    except ImportError:
        sys.exit(f"pocketsphinx_transcriber: run `{sys.executable} -m pip install pocketsphinx` first")
    samples = read_audio(arguments.audio)
    if sys.byteorder == "big":
        samples.byteswap()
    decoder = Decoder(samprate=RATE, loglevel="FATAL")
    said = False
    segmenter = Segmenter(sample_rate=RATE)
    stream = samples.tobytes()
    # Speech up to the very end comes out only with the last frame, and only if that is not a whole one.
    stream += bytes(segmenter.frame_bytes - len(stream) % segmenter.frame_bytes - 2 or 2)
    for segment in segmenter.segment(io.BytesIO(stream)):
        decoder.start_utt()
        decoder.process_raw(segment.pcm, full_utt=True)
        decoder.end_utt()
        if decoder.hyp() and decoder.hyp().hypstr:
            print(decoder.hyp().hypstr, flush=True)
            said = True
    if not said:
        print()  # silence, and not a failure


if __name__ == "__main__":
    main()
