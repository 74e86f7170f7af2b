"""A text, or a model's answer to it, as a recording.

    python -m infer.say --text="Good morning." --output=morning.wav
    python -m infer.say --text="Who are you?" --chat_url=http://localhost:8000/v1 --chat_model=llama --output=who.wav
    python -m infer.say --text="Hello." --speech_url=https://api.example.com/v1 --output=hello.wav

Keys of services are read from AVATAR_CHAT_KEY and AVATAR_SPEECH_KEY.
"""

import os
import sys
from pathlib import Path

import numpy as np
from absl import flags

from avatar_jax.io.errors import InputError
from infer import door
from infer.talk import chat, conversation, voice

FLAGS = flags.FLAGS


def define() -> None:
    """The flags."""
    flags.DEFINE_string("text", None, "What is said, or asked of --chat_url (required).")
    flags.DEFINE_string("output", None, "The recording to write, a .wav name (required).")
    flags.DEFINE_string("voice", "en", "Voice: of eSpeak (en, de, en-us+f3, ...), or of the speech service.")
    flags.DEFINE_string("speech_url", None, "An OpenAI-compatible service that speaks instead of the bundled voice.")
    flags.DEFINE_string("speech_model", "tts-1", "Its model.")
    flags.DEFINE_string("chat_url", None, "An OpenAI-compatible service that answers --text.")
    flags.DEFINE_string("chat_model", None, "Its model.")
    flags.DEFINE_string("system", "Answer in one or two short spoken sentences.", "What the model is told first.")


def make_voice() -> voice.Voice:
    """The voice that the flags name. Raises InputError."""
    if FLAGS.speech_url is None:
        return voice.Espeak(voice=FLAGS.voice)
    key = os.environ.get("AVATAR_SPEECH_KEY", "")
    return voice.Service(FLAGS.speech_url, key=key, model=FLAGS.speech_model, voice=FLAGS.voice)


def make_chat() -> chat.Chat | None:
    """The model that the flags name, if any. Raises InputError."""
    if FLAGS.chat_url is None:
        return None
    if not FLAGS.chat_model:
        raise InputError("--chat_model is missing; name a model of the service")
    return chat.Chat(
        FLAGS.chat_url, model=FLAGS.chat_model, key=os.environ.get("AVATAR_CHAT_KEY", ""), system=FLAGS.system
    )


def main() -> None:
    """Speaks into a file."""
    import soundfile

    if not (FLAGS.text or "").strip():
        raise InputError("--text is missing; give what is to be said")
    if not (FLAGS.output or "").endswith(".wav"):
        raise InputError("--output: the recording to write, a .wav name")
    model, heard = make_chat(), []
    with conversation.Conversation(make_voice(), heard.append, chat=model) as talk:
        talk.ask(FLAGS.text) if model else talk.say(FLAGS.text)
        talk.idle()
    if not heard:
        raise InputError("nothing was said; the line above has the reason")
    sound = np.concatenate(heard)
    soundfile.write(Path(FLAGS.output), sound, voice.AUDIO_HZ)
    sys.stdout.write(f"{FLAGS.output}\n  {sound.size / voice.AUDIO_HZ:.2f} s at {voice.AUDIO_HZ} Hz\n")


if __name__ == "__main__":
    door.run(main, define)
