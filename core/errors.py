"""Every error that latentwire raises on purpose.

    LatentwireError                 code                    raised when
    ├── MessageError
    │   ├── BadMessage              bad_message             a frame is no msgpack map of the protocol's shape
    │   ├── MessageTooLarge         message_too_large       a frame is over the host's limit
    │   ├── UnknownCommand          unknown_command         nobody answers to the command's name
    │   ├── InvalidParams           invalid_params          params do not fit the command's model
    │   ├── InvalidGraph            invalid_graph           a graph's nodes do not fit together
    │   └── DuplicateId             duplicate_id            the id is still in use in this session
    ├── SettingsError               bad_settings            plugins.toml, environment or command line are wrong
    ├── PluginError                 plugin_failed           a plugin raised; names the plugin and the hook
    ├── Unauthorized            unauthorized            the token, the key or the ticket is missing or wrong
    ├── UnknownSubscription         unknown_subscription    the caller has no such subscription
    ├── ModelError
    │   ├── UnknownModel            unknown_model           no configured model has the name
    │   ├── ModelLoadError          model_load_failed       the files are missing, broken or not allowed
    │   ├── NotLoaded               not_loaded              no loaded ControlNet or adapter has the name
    │   └── InUse                   in_use                  a job still uses what shall be unloaded
    ├── UnknownImage                unknown_image           no uploaded or made picture has the id
    ├── JobError
    │   ├── UnknownJob              unknown_job             the caller has no such job
    │   ├── TooManyJobs             too_many_jobs           the client or the host has enough to do
    │   ├── JobCancelled            cancelled               the job was cancelled
    │   ├── Superseded              superseded              a newer request of its slot took the job's place
    │   ├── OutOfMemory             out_of_memory           the picture needs more memory than there is
    │   ├── NotFinite               not_finite              the picture came to hold NaN or infinite values
    │   ├── EngineRestarted         engine_restarted        the engine was started anew while the job was under way
    │   └── JobFailed               job_failed              the pipeline raised
    ├── HostClosing                 host_closing            the host is shutting down
    └── InternalError               internal_error          a fault of latentwire's own; please report it

`code` is stable: clients branch on it. `message` is a sentence for a person: what was got, what was
wanted, what to do. `details` is a list of `{"path", "message", "got"}` whose paths point into `params`;
that of plugin_failed holds one `{"plugin", "hook"}`, those of invalid_graph are `{"node", "input", "message", "got"}`.
`about` holds further keys of the message that tells of the error: the `job` that it ended, and that one's `slot` and
`revision`.
"""

from typing import Any, ClassVar


class LatentwireError(Exception):
    """The root of the tree above.

    Args:
        message: A sentence for a person.
        details: What is wrong where; each entry's `path` points into `params`.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, details: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or []
        self.about: dict[str, Any] = {}


def copied(error: LatentwireError) -> LatentwireError:
    """A fresh error that says the same, without frames, and nobody else's to change."""
    kind = type(error)
    copy = kind.__new__(kind)
    copy.args = error.args
    copy.__dict__.update(error.__dict__, details=list(error.details), about=dict(error.about))
    return copy


def one_line(error: BaseException) -> str:
    """An error in one line, for the log and for clients."""
    text = error.message if isinstance(error, LatentwireError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


class MessageError(LatentwireError):
    """A message that the host cannot act on."""

    code = "bad_message"


class BadMessage(MessageError):
    """A frame is no msgpack map of the protocol's shape."""


class MessageTooLarge(MessageError):
    """A frame is over the host's limit."""

    code = "message_too_large"


class UnknownCommand(MessageError):
    """Nobody answers to the command's name."""

    code = "unknown_command"


class InvalidParams(MessageError):
    """The params do not fit the command's model; `details` say where."""

    code = "invalid_params"


class InvalidGraph(MessageError):
    """A graph's nodes do not fit together; `details` say which."""

    code = "invalid_graph"


class DuplicateId(MessageError):
    """The id is still in use in this session."""

    code = "duplicate_id"


class SettingsError(LatentwireError):
    """plugins.toml, the environment or the command line are wrong."""

    code = "bad_settings"


class PluginError(LatentwireError):
    """A plugin raised, or its shape is wrong.

    Args:
        plugin: The plugin's name.
        hook: The hook that was running; None in a command or a scheduler of the plugin, or while it was loading.
    """

    code = "plugin_failed"

    def __init__(self, message: str, *, plugin: str, hook: str | None = None) -> None:
        super().__init__(message, [{"plugin": plugin, "hook": hook}])
        self.plugin = plugin
        self.hook = hook


class ModelError(LatentwireError):
    """Something about a model."""

    code = "model_load_failed"


class UnknownModel(ModelError):
    """No configured model has the name."""

    code = "unknown_model"


class ModelLoadError(ModelError):
    """A model's files are missing, broken or not allowed."""


class NotLoaded(ModelError):
    """No loaded ControlNet or adapter has the name."""

    code = "not_loaded"


class InUse(ModelError):
    """A job still uses what shall be unloaded."""

    code = "in_use"


class UnknownSubscription(LatentwireError):
    """The caller has no such subscription."""

    code = "unknown_subscription"


class Unauthorized(LatentwireError):
    """The token, the key or the ticket is missing or wrong."""

    code = "unauthorized"


class UnknownSession(LatentwireError):
    """No session has the token, or no longer."""

    code = "unknown_session"


class UnknownImage(LatentwireError):
    """No uploaded or made picture has the id, or no longer."""

    code = "unknown_image"


class JobError(LatentwireError):
    """Something about a job."""

    code = "job_failed"


class UnknownJob(JobError):
    """The caller has no such job."""

    code = "unknown_job"


class TooManyJobs(JobError):
    """The client or the host has enough to do."""

    code = "too_many_jobs"


class JobCancelled(JobError):
    """The job was cancelled."""

    code = "cancelled"


class Superseded(JobError):
    """A newer request of its slot took the job's place.

    Args:
        keeps_previews: Whether previews that have not been sent yet shall still be.
    """

    code = "superseded"

    def __init__(self, message: str, keeps_previews: bool = False) -> None:
        super().__init__(message)
        self.keeps_previews = keeps_previews


class OutOfMemory(JobError):
    """The picture needs more memory than there is."""

    code = "out_of_memory"


class NotFinite(JobError):
    """The picture came to hold NaN or infinite values."""

    code = "not_finite"


class EngineRestarted(JobError):
    """The engine was started anew while the job was under way."""

    code = "engine_restarted"


class JobFailed(JobError):
    """The pipeline raised."""


class HostClosing(LatentwireError):
    """The host is shutting down."""

    code = "host_closing"


class InternalError(LatentwireError):
    """A fault of latentwire's own; please report it."""
