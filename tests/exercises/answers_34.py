"""Answers to the exercises of notebook 34: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("normalize-filters", "weight.reshape(units, -1).norm(dim=1)", "1", "Has each unit the length"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
