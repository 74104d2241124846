"""Answers to the exercises of notebook 41: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("settled-epoch", "below[-1] + 1 if len(below) else 0", "np.argmax(accuracy >= share)", "falls again"),
    ("settled-epoch", "accuracy < share", "accuracy <= share", "equals the share counts as there"),
    ("settled-epoch", "float(epochs[first])", "float(first)", "the position in the arrays"),
    ("settled-epoch", "float(epochs[first]) if", "float(epochs[below[-1]]) if", "the last epoch below"),
    (
        "settled-epoch",
        "float(epochs[first]) if first < len(epochs) else np.nan",
        "float(epochs[min(first, len(epochs) - 1)])",
        "never there: 20.0, expected NaN",
    ),
    ("settled-epoch", "else np.nan", "else np.inf", "inf, expected NaN"),
    ("settled-epoch", "if len(below) else 0", "if len(below) else 1", "there from the beginning: 5, expected 3"),
    ("mislabel", "torch.randint(1,", "torch.randint(0,", "Can a new label be the old one"),
    (
        "mislabel",
        "torch.randperm(len(labels), generator=generator)[:count]",
        "torch.randint(len(labels), (count,))",
        "twice",
    ),
    ("mislabel", "round(share * len(labels))", "int(share * len(labels))", "cut off, not rounded"),
    ("mislabel", "labels.clone()", "labels", "changes its argument labels"),
    ("mislabel", " % classes", "", "wrap around"),
    ("mislabel", ".manual_seed(seed)", "", "another seed must give other labels"),
    ("mislabel", "manual_seed(seed)", "manual_seed(torch.seed() % 2**60)", "same seed must give the same"),
    (
        "mislabel",
        "torch.randperm(len(labels), generator=generator)",
        "torch.arange(len(labels))",
        "example 0 is wrong in 400",
    ),
    (
        "mislabel",
        "chosen = torch.randperm(len(labels), generator=generator)[:count]",
        "chosen = (torch.arange(count) + int(torch.randint(len(labels), (1,), generator=generator))) % len(labels)",
        "examples 1 apart are wrong together",
    ),
    ("mislabel", "torch.randint(1, classes,", "torch.randint(1, 2,", "about equally likely"),
    ("mislabel", "(count,), generator=generator)", "(1,), generator=generator)", "about equally likely"),
    (  # another label of those that are there, which is likelier the more of them there are
        "mislabel",
        "wrong[chosen] = (labels[chosen] + steps) % classes",
        """
    for one in chosen.tolist():
        others = labels[labels != labels[one]]
        wrong[one] = others[torch.randint(len(others), (1,), generator=generator)]
""",
        "about equally likely",
    ),
    ("settled-epoch", "if len(below) else 0", "if len(below) else len(epochs)", "from the beginning: NaN, expected 3"),
    ("settled-epoch", "if first < len(epochs)", "if first < 3", "it stays from epoch .* but you say NaN"),
    ("mislabel", "torch.randint(1, classes,", "torch.randint(1, int(labels.max()) + 1,", "about equally likely"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "settled-epoch",
        """
def settled_epoch(epochs, accuracy, share):
    settled = float("nan")
    for epoch, value in zip(reversed(epochs), reversed(accuracy)):
        if value < share:
            break
        settled = epoch
    return settled
""",
    ),
    (
        "settled-epoch",
        """
def settled_epoch(epochs, accuracy, share):
    least_from_here = np.minimum.accumulate(accuracy[::-1])[::-1]
    there = pd.Series(epochs, dtype=float)[least_from_here >= share]
    return torch.tensor(there.min())
""",
    ),
    (
        "mislabel",
        """
def mislabel(labels, share, classes, seed):
    rng = np.random.default_rng(seed)
    wrong = labels.numpy().copy()
    for i in rng.choice(len(wrong), size=round(share * len(wrong)), replace=False):
        wrong[i] = rng.choice([label for label in range(classes) if label != wrong[i]])
    return wrong
""",
    ),
    (
        "mislabel",
        """
def mislabel(labels, share, classes, seed):
    torch.manual_seed(seed)
    rank = torch.rand(len(labels)).argsort().argsort()
    draw = torch.randint(classes - 1, (len(labels),))
    return torch.where(rank < round(share * len(labels)), draw + (draw >= labels), labels)
""",
    ),
    (
        "mislabel",
        """
def mislabel(labels, share, classes, seed):
    import random
    random.seed(seed)
    wrong = labels.tolist()
    for i in random.sample(range(len(wrong)), k=round(share * len(wrong))):
        wrong[i] = random.choice([*range(wrong[i]), *range(wrong[i] + 1, classes)])
    return wrong
""",
    ),
]
