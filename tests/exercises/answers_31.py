"""Answers to the exercises of notebook 31: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("path-coordinates", "points - points.mean(0)", "points + 0", "Are the points centered"),
    ("path-coordinates", "vectors[:, ::-1]", "vectors", "is the largest component first"),
    ("path-coordinates", " * np.sqrt(values[::-1][:q])", "", "each column has length 1"),
    ("path-coordinates", "np.sqrt(values[::-1][:q])", "values[::-1][:q]", "λ in place of √λ"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
