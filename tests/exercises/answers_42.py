"""Answers to the exercises of notebook 42: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("example-mean", "examples - (len(batch_losses) - 1) * batch_size", "batch_size", "expected"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
