"""Answers to the exercises of notebook 51: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    (
        "pair-targets",
        "(labels[:, None] == torch.tensor(pair)).float()",
        "F.one_hot(labels % 2, len(pair))",
        "remainder by two is not its place in the pair",
    ),
    (
        "pair-targets",
        "(labels[:, None] == torch.tensor(pair)).float()",
        "F.one_hot((labels == max(pair)).long(), 2).float()",
        "column 0 belongs to the first digit",
    ),
    (
        "pair-targets",
        "(labels[:, None] == torch.tensor(pair)).float()",
        "F.one_hot((labels == pair[1]).long()).float()",
        r"shape \(\d, 1\), expected \(\d, 2\)",
    ),
    ("two-groups", '"lr": readout', '"lr": rest', "the last layer has the rate of the rest"),
    ("two-groups", "lr=rest", "lr=readout", "the rest has the rate of the last layer"),
    ("two-groups", "    ### BEGIN SOLUTION", "    readout, rest = rest, readout", "the two rates are exchanged"),
    ("two-groups", "torch.optim.SGD(groups", "torch.optim.SGD(groups[:1]", "this layer is not trained"),
    ("two-groups", "model[:-1].parameters()", "model[1].parameters()", "this layer is not trained"),
    ("two-groups", "lr=rest)", "lr=rest, momentum=0.9)", "Is it plain gradient descent"),
    ("two-groups", "torch.optim.SGD(", "torch.optim.Adam(", "Is it plain gradient descent"),
    ("centered-alignment", "features - features.mean(0), ", "features, ", "the features are not centered"),
    ("centered-alignment", "y - y.mean(0)", "y", "the labels are not centered"),
    ("centered-alignment", " ** 2 / norms", " / norms", "the square in the numerator is missing"),
    ("centered-alignment", "F.one_hot(labels)", "labels[:, None]", "class numbers, not one-hot"),
    ("centered-alignment", "F.one_hot(labels)", "(labels[:, None] > 0)", "classes .*expected"),
    ("pair-targets", ".float()", "", "bool, expected floating-point numbers"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "pair-targets",
        """
def pair_targets(labels, pair):
    return [[1.0 if label == digit else 0.0 for digit in pair] for label in labels.tolist()]
""",
    ),
    (
        "pair-targets",
        """
def pair_targets(labels, pair):
    return np.eye(2)[(labels.numpy() != pair[0]).astype(int)]
""",
    ),
    (
        "two-groups",
        """
def two_rates(model, readout, rest):
    last = set(model[-1].parameters())
    return torch.optim.SGD([{"params": [p], "lr": readout if p in last else rest} for p in model.parameters()])
""",
    ),
    (
        "two-groups",
        """
def two_rates(model, readout, rest):
    optimizer = torch.optim.SGD(model[-1].parameters(), readout)
    for layer in list(model)[:-1]:
        if list(layer.parameters()):
            optimizer.add_param_group({"params": list(layer.parameters()), "lr": rest})
    return optimizer
""",
    ),
    (
        "centered-alignment",
        """
def centered_alignment(features, labels):
    phi, y = features.numpy(), np.eye(int(labels.max()) + 1)[labels.numpy()]
    n = len(phi)
    h = np.eye(n) - 1 / n
    k, l = h @ phi @ phi.T @ h, h @ y @ y.T @ h
    return np.sum(k * l) / np.sqrt(np.sum(k * k) * np.sum(l * l))
""",
    ),
    (
        "centered-alignment",
        """
def centered_alignment(features, labels):
    same = (labels[:, None] == labels).to(features.dtype)
    gram = features @ features.T
    for matrix in (same, gram):
        matrix -= matrix.mean(0, keepdim=True)
        matrix -= matrix.mean(1, keepdim=True)
    return F.cosine_similarity(same.flatten(), gram.flatten(), dim=0)
""",
    ),
]
