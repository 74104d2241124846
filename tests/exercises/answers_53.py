"""Answers to the exercises of notebook 53: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("linear-cka", "x - x.mean(0), y - y.mean(0)", "x, y", "Likely cause: not centered"),
    ("linear-cka", "norms = ", "norms = 2 * ", "2 times too small"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
