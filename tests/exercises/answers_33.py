"""Answers to the exercises of notebook 33: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("minimal-ratio", "rtol * values.abs().max()", "0", "zeros that rounding made positive"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
