"""Answers to the exercises of notebook 51: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("two-groups", '"lr": readout', '"lr": rest', "Does its layer have the rate"),
    ("centered-alignment", "features - features.mean(0), ", "features, ", "expected"),
    ("centered-alignment", " ** 2 / norms", " / norms", "expected"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
