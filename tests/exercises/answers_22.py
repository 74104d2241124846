"""Answers to the exercises of notebook 22: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("softmax-floor", "np.log(", "(", "the logarithm is missing"),
    ("softmax-floor", "1 + (classes - 1) / np.e", "classes", "equal probabilities"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
