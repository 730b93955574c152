"""The exception tree.

NfsError                 exit 1   something of ours failed
  InputError             exit 2   the user's files or settings; the message names file and key
    ConfigError                   a configuration file or override
    ArtifactError                 a stage directory that is missing, incomplete or of another kind
  ClipError                       ONE unit (clip, photo) is bad; it is quarantined, the job goes on
  NonFiniteError                  a loss or gradient is not finite; training stops before the step
"""


class NfsError(Exception):
    """Base of all errors that nfs raises on purpose."""

    exit_code = 1


class InputError(NfsError):
    """The user's input is wrong: says what, where and what to do."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration file or an override is wrong."""


class ArtifactError(InputError):
    """A stage directory is missing, incomplete, damaged or of another kind."""


class ClipError(NfsError):
    """One unit of work is bad and is recorded under `status` instead of stopping the job.

    Args:
        status: Short machine-readable reason (`decode_error`, `no_face`, ...).
        message: What was wrong, in the user's words.
    """

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type["ClipError"], tuple[str, str]]:
        """Travel between processes with both arguments."""
        return ClipError, (self.status, str(self))


class NonFiniteError(NfsError):
    """A loss or gradient is not finite.

    Args:
        term: Name of the offending term, e.g. `loss/g`.
        value: Its value.
        where: What the run was doing, e.g. `samples_seen=6400`.
    """

    def __init__(self, term: str, value: float, where: str = ""):
        place = f" at {where}" if where else ""
        super().__init__(
            f"{term} is {value}{place}; the run stopped before the optimiser step and the last "
            "checkpoint is intact. Lower the learning rate or look at the input that caused it."
        )
        self.term, self.value, self.where = term, value, where

    def __reduce__(self) -> tuple[type["NonFiniteError"], tuple[str, float, str]]:
        """Travel between processes with all arguments."""
        return NonFiniteError, (self.term, self.value, self.where)


def own_error(error: BaseException) -> NfsError:
    """Return the NfsError that a failed Ray run carries, so that its message and exit code survive.

    Args:
        error: What Ray raised; causes and the failures of workers (`worker_failures`) are searched.
    """
    seen: list[BaseException | None] = [error]
    failures = getattr(error, "worker_failures", None)
    if failures:
        seen += list(failures.values())
    while seen:
        current = seen.pop()
        if current is None:
            continue
        cause = getattr(current, "cause", None)
        for candidate in (cause, current):  # Ray's own error may pose as its cause
            if isinstance(candidate, NfsError):
                return candidate
        seen += [current.__cause__, cause if isinstance(cause, BaseException) else None]
    return NfsError(f"the Ray run failed: {error}")
