"""What one session is told, in one order: what waits to be sent, and what was sent and may be wanted again.

Life-cycle messages stay until they are sent. A latest-wins message takes the place of an unsent one with
the same key. Both stores are bounded; where something had to go, a gap stands in its place. Used on the
event loop alone.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from .message import END, EVENT, GAP, PREVIEW, Message, MessageId, gap_body


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a store may hold."""

    messages: int
    size: int  # bytes


CONNECTED = Bound(10_000, 256 << 20)  # 64 pictures of 1024x1024 may be ready all at once
AWAY = Bound(5_000, 64 << 20)  # of a session without a connection
HEAVY = 1 << 10  # bytes: an event with a picture in it, say, which goes before the small ones
SENT = Bound(1_000, 8 << 20)  # what a connection that breaks may take with it is far less


class Outbox:
    """The messages of one session.

    Attributes:
        seq: The number of the message that was sent last.
    """

    __slots__ = ("_given_up", "_replay", "_sent", "_sent_size", "_waiting", "_waiting_size", "bound", "seq")

    def __init__(self) -> None:
        self.seq = 0
        self.bound = CONNECTED
        self._waiting: dict[Hashable, Message] = {}  # in order of arrival
        self._waiting_size = 0
        self._sent: dict[Hashable, Message] = {}  # in order of seq
        self._sent_size = 0
        self._given_up = 0  # the last message so far, not counting latest-wins ones, that has been sent and is not kept
        self._replay: list[Message] = []  # last first

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send, not even again."""
        return not self._waiting and not self._replay

    @property
    def waiting_size(self) -> int:
        """Bytes that wait to be sent."""
        return self._waiting_size

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory, roughly."""
        return self._waiting_size + self._sent_size

    def put(self, message: Message) -> None:
        """Add a message."""
        key = message if message.key is None else message.key
        old = self._waiting.get(key)
        if old is not None:
            if message.revision is not None and old.revision is not None and message.revision < old.revision:
                return
            self._remove_waiting(key)
        self._waiting[key] = message
        self._waiting_size += message.body.size
        self.make_room()

    def next(self) -> Message | None:
        """The message to send now, with its number; None where nothing waits."""
        if self._replay:
            return self._replay.pop()
        if not self._waiting:
            return None
        message = self._waiting.pop(next(iter(self._waiting)))
        self._waiting_size -= message.body.size
        if message.lost:
            message.body = gap_body(self.seq + 1, self.seq + message.lost)
            message.rank = EVENT  # the numbers themselves show it from now on
        self.seq += max(message.lost, 1)
        message.seq = self.seq
        self._keep(message)
        return message

    def number(self) -> int:
        """A number for a message that is sent past the outbox and never again."""
        self.seq += 1
        return self.seq

    def rewind(self, seen: int) -> None:
        """Send again, before all else, what came after the message number `seen`."""
        replay: list[Message] = []
        following = seen + 1
        for message in self._sent.values():
            if message.seq > seen:
                first = message.seq - max(message.lost, 1) + 1
                replay += self._hole(following, first - 1)
                replay.append(message)
                following = message.seq + 1
        self._replay = [*replay, *self._hole(following, self.seq)][::-1]

    def drop(self, message_id: MessageId, keys: Iterable[Hashable]) -> None:
        """Take back a command's latest-wins messages; a newer revision's may have the same keys, and stay."""
        for key in keys:
            if key in self._waiting and self._waiting[key].id == message_id:
                self._remove_waiting(key)
            if key in self._sent and self._sent[key].id == message_id:
                message = self._sent.pop(key)
                self._sent_size -= message.body.size
                if message in self._replay:
                    self._replay.remove(message)

    def make_room(self, bound: Bound | None = None) -> None:
        """Give up what is beyond the bound of waiting messages, and put gaps where it was.

        Args:
            bound: In place of its own, this once.
        """
        bound = bound or self.bound
        if len(self._waiting) <= bound.messages and self._waiting_size <= bound.size:
            return
        gone = _surplus(self._waiting, self._waiting_size, bound)
        waiting, self._waiting, self._waiting_size = self._waiting, {}, 0
        last: Message | None = None
        for key, message in waiting.items():
            if message in gone and message.rank == PREVIEW:
                continue
            lost = 1 if message in gone else message.lost
            if lost and last is not None and last.lost:
                last.lost += lost
                continue
            if message in gone:
                key = message = Message(None, gap_body(0, 0))
                message.lost, message.rank = 1, GAP
            self._waiting[key] = last = message
            self._waiting_size += message.body.size

    def _keep(self, message: Message) -> None:
        """Remember a message that is being sent."""
        key = message if message.key is None else message.key
        old = self._sent.pop(key, None)
        self._sent[key] = message
        self._sent_size += message.body.size - (old.body.size if old else 0)
        if len(self._sent) <= SENT.messages and self._sent_size <= SENT.size:
            return
        for gone in _surplus(self._sent, self._sent_size, SENT):
            del self._sent[gone if gone.key is None else gone.key]
            self._sent_size -= gone.body.size
            if gone.rank != PREVIEW:
                self._given_up = max(self._given_up, gone.seq)

    def _hole(self, first: int, last: int) -> list[Message]:
        """A gap for those of the sent messages from `first` to `last` that were given up; previews may be among them.

        Others are missing because newer ones have taken their places, and nobody is told of that.
        """
        last = min(last, self._given_up)
        if first > last:
            return []
        gap = Message(None, gap_body(first, last))
        gap.seq = last
        return [gap]

    def _remove_waiting(self, key: Hashable) -> None:
        self._waiting_size -= self._waiting.pop(key).body.size


def _surplus(messages: dict[Hashable, Message], size: int, bound: Bound) -> dict[Message, None]:
    """Whom to give up, so that a store of so many bytes is a tenth below its bound: it is not done for each message.

    Previews go first, then heavy events, the ends of commands last, and of each the oldest. The newest message stays,
    whatever its size: it may be on its way just now.
    """
    most, largest = bound.messages * 9 // 10, bound.size * 9 // 10
    too_many = len(messages) - most if len(messages) > bound.messages else 0
    too_large = size - largest if size > bound.size else 0
    newest = next(reversed(messages.values()))
    gone: dict[Message, None] = {}
    for rank, least in ((PREVIEW, 0), (EVENT, HEAVY), (EVENT, 0), (END, 0)):
        for message in messages.values():
            if too_many <= 0 and too_large <= 0:
                return gone
            wanted = message not in gone and (too_many > 0 or message.body.size >= least)
            if message.rank == rank and wanted and message is not newest:
                gone[message] = None
                too_many -= 1
                too_large -= message.body.size
    return gone
