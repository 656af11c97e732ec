"""The package's errors: one family, each message says what is wrong, the value, and how to fix it."""


class DiffuGTSError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(DiffuGTSError, ValueError):
    """A scan, mask or argument that cannot be used as it is."""


class PromptError(DiffuGTSError, ValueError):
    """A prompt that cannot be understood."""


class WeightsError(DiffuGTSError, RuntimeError):
    """Model files that are missing, damaged or of another network."""
