"""A text, or a model's answer to it, as a recording.

    python -m infer.say --text="Good morning." --output=morning.wav
    python -m infer.say --text="Who are you?" --chat=http://localhost:8000/v1 --chat_model=llama --output=who.wav
    python -m infer.say --text="Hello." --voice=https://api.example.com/v1 --output=hello.wav

`infer.voices` has the flags.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags

from avatar_jax.io.errors import InputError
from infer import door, voices
from infer.talk import conversation, voice

FLAGS = flags.FLAGS


def define() -> None:
    """The flags."""
    flags.DEFINE_string("text", None, "What is said, or asked of --chat (required).")
    flags.DEFINE_string("output", None, "The recording to write, a .wav name (required).")
    voices.define()


def main() -> None:
    """Speaks into a file."""
    import soundfile

    if not (FLAGS.text or "").strip():
        raise InputError("--text is missing; give what is to be said")
    if not (FLAGS.output or "").endswith(".wav"):
        raise InputError("--output: the recording to write, a .wav name")
    model, speaker, heard = voices.make_chat(), voices.make_voice(), []
    if speaker is None:
        raise InputError(voice.MISSING)
    with conversation.Conversation(speaker, heard.append, chat=model) as talk:
        talk.ask(FLAGS.text) if model else talk.say(FLAGS.text)
        talk.idle()
    if not heard:
        raise InputError("nothing was said; the line above has the reason")
    sound = np.concatenate(heard)
    soundfile.write(Path(FLAGS.output), sound, voice.AUDIO_HZ)
    sys.stdout.write(f"{FLAGS.output}\n  {sound.size / voice.AUDIO_HZ:.2f} s at {voice.AUDIO_HZ} Hz\n")


if __name__ == "__main__":
    door.run(main, define)
