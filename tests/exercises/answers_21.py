"""Answers to the exercises of notebook 21: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("count-parameters", "(widths[i] + 1)", "widths[i]", "the biases are missing"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
