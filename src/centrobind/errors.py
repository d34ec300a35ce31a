"""Every error that a user can cause, and how it is worded.

    CentrobindError           says: expected ..., got ..., where, and what to do next
    ├── DataError             the arrays, names, labels or shapes that were handed in
    ├── StoreError            a folder that is not a sound store
    ├── CheckpointError       a file that is not a sound checkpoint or binder
    ├── ConfigError           a run's YAML or a --set
    ├── RunError              a run that cannot start, or cannot go on
    └── ExtraError            an optional package that is not there, or broken

All are ValueErrors, so code that knows nothing of centrobind can still catch them. On the command
line they end the program with exit code 2 and no traceback. Anything else that escapes is our bug.
"""


class CentrobindError(ValueError):
    """A mistake that the user can correct; the message says how."""

    said = False  # whether another rank says it already


class DataError(CentrobindError):
    """The arrays, names, labels or shapes that were handed in do not fit together."""


class StoreError(CentrobindError):
    """A folder is not a sound store: foreign, incomplete, damaged or from a newer version."""


class CheckpointError(CentrobindError):
    """A file is not a sound checkpoint or binder: foreign, truncated, damaged or newer."""


class ConfigError(CentrobindError):
    """A run's configuration has unknown keys or values out of range."""


class RunError(CentrobindError):
    """A run cannot start, or cannot go on."""


class Stopped(BaseException):
    """Somebody pressed Ctrl-C or sent SIGTERM: no failure, but the work is not done either.

    No ValueError and no Exception, because a loop over runs that continues after an error must not continue after it.
    """

    said = False
    binder: object = None  # with the best weights until then


class ExtraError(CentrobindError):
    """An optional package is not installed, or does not work; the message has the pip command."""


class CentrobindWarning(UserWarning):
    """Something was fixed or left out on the way, and the user should know."""
