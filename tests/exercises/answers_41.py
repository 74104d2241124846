"""Answers to the exercises of notebook 41: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("mislabel", "torch.randint(1,", "torch.randint(0,", "Can a new label be the old one"),
    ("mislabel", "labels.clone()", "labels", "changes its argument labels"),
    ("mislabel", " % classes", "", "wrap around"),
    ("mislabel", "torch.randint(1, classes,", "torch.randint(1, 2,", "about equally likely"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
]
