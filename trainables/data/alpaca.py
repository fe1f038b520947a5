"""An Alpaca row: instruction, input where there is one, and output, in the prompt frame of Stanford Alpaca."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One checked Alpaca row; `input` is "" where there is none."""

    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """What the model reads before it answers."""
        context = f"### Input:\n{self.input}\n\n" if self.input else ""
        return f"### Instruction:\n{self.instruction}\n\n{context}### Response:\n"

    @property
    def response(self) -> str:
        """What the model learns to write, before the end token."""
        return self.output
