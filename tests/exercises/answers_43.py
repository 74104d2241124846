"""Answers to the exercises of notebook 43: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("mix-networks", "(1 - alpha) * parameter + alpha * b", "alpha * parameter + (1 - alpha) * b", "exchanged"),
    ("mix-networks", "copy.deepcopy(model_a)", "model_a", "changes its argument model_a"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
