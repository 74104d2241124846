"""Answers to the exercises of notebook 11: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("delta-recursion", "[-2 * (y", "[2 * (y", r"δ\[\d\] of \d layers: first wrong entry .* Likely cause: the sign"),
    ("delta-recursion", "[-2 * (y", "[-(y", "all 2 times too small"),
    ("delta-recursion", " * (1 - below**2)", "", "f′ of this layer is missing"),
    ("delta-recursion", "return delta", "return delta[::-1]", r"δ\[\d\] of \d layers: "),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
