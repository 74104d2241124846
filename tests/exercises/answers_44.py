"""Answers to the exercises of notebook 44: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("input-sensitivity", '"sum"', '"mean"', "the loss is averaged, not summed"),
    ("input-sensitivity", "norm(dim=1).mean()", "norm(dim=1).sum()", "a sum, not a mean"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
