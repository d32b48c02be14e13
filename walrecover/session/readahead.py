"""Something between a loop and its body that fetches items before they are used: noticed, refused.

Owns how it is told from what only passes items on. That of another thread is noticed by `loops`.
"""

from __future__ import annotations

from types import CodeType, FrameType

from walrecover.errors import BadInput


class ReadAhead:
    """Notices something between a loop and its body that fetches items before they are used.

    What reads ahead asks more often before the first step than before the second, while what only
    passes items on (tqdm), or groups them, asks as often before each. The code that asked is
    something between where it is no longer at work when the step is made: a plain `for`, which may
    well skip its first item, is.
    """

    def __init__(self) -> None:
        self.reader: CodeType | None = None
        self.asked_since = 0
        self.first: int | None = None
        self.checked = False

    def asked(self, reader: FrameType) -> None:
        self.reader = reader.f_code
        self.asked_since += 1

    def stepped(self, caller: FrameType) -> None:
        """Raises BadInput where items were read ahead of the step."""
        count, self.asked_since = self.asked_since, 0
        if self.first is None:
            self.first = count
            return
        self.checked = True
        if self.first > count and self.reader is not None and not self._at_work(caller):
            raise BadInput(
                f"{self.reader.co_qualname} in {self.reader.co_filename} reads ahead of "
                f"run.loop(): it had fetched {self.first} items before the first step and {count} "
                f"before the second, so that the position is not the training's. Let run.loop() "
                f"be the outermost reader"
            )

    def _at_work(self, caller: FrameType) -> bool:
        frame: FrameType | None = caller
        while frame is not None:
            if frame.f_code is self.reader:
                return True
            frame = frame.f_back
        return False
