"""A `prompt` / `completion` row: two texts that follow each other as they are, in no frame."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRow:
    """One checked row; nothing stands between its two texts."""

    prompt: str
    completion: str

    @property
    def instruction(self) -> str:
        """What decides the split and the kind of task."""
        return self.prompt

    @property
    def input(self) -> str:
        """Completion rows have none."""
        return ""

    @property
    def response(self) -> str:
        """What the model learns to write, before the end token."""
        return self.completion
