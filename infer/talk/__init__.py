"""Words to sound, outside the engine: voices, a language model's answers, and what joins them to a call."""
