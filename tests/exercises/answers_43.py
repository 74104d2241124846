"""Answers to the exercises of notebook 43: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("mix-networks", "(1 - alpha) * parameter + alpha * b", "alpha * parameter + (1 - alpha) * b", "exchanged"),
    ("mix-networks", "copy.deepcopy(model_a)", "model_a", "changes its argument model_a"),
    (
        "mix-networks",
        "parameter.copy_((1 - alpha) * parameter + alpha * b)",
        "parameter = (1 - alpha) * parameter + alpha * b",
        "still has the weights of the first network: write into it",
    ),
    ("mix-networks", "(1 - alpha) * parameter + alpha * b", "b", "the weights of the second network alone"),
    (
        "mix-networks",
        "    mixed = ",
        "    if alpha == 0:\n        return model_a\n    mixed = ",
        "at α = 0, the result shares weights with model_a",
    ),
    (
        "mix-networks",
        "    mixed = ",
        "    if alpha == 1:\n        return model_b\n    mixed = ",
        "at α = 1, the result shares weights with model_b",
    ),
    (
        "mix-networks",
        "    return mixed",
        "    box = nn.Module()\n    box.all = nn.Parameter(parameters_to_vector(mixed.parameters()))\n    return box",
        "return a network like the given ones, not a Module",
    ),
    (
        "mix-networks",
        "mixed.parameters(), model_b.parameters()",
        "[mixed[1].weight], [model_b[1].weight]",
        "first wrong entry",
    ),
    (  # right for a chain of layers, and for nothing else
        "mix-networks",
        "for parameter, b in zip(mixed.parameters(), model_b.parameters(), strict=True):",
        """for own, other in zip(mixed, model_b):
          for parameter, b in zip(own._parameters.values(), other._parameters.values()):""",
        "still has the weights of the first network",
    ),
    ("match-hidden", "[:h, h:]", "[h:, :h]", "the order is inverted"),
    (
        "match-hidden",
        "    matched[1].bias.data = model_b[1].bias.data[order]\n",
        "",
        "takes along its weights, its bias",
    ),
    (
        "match-hidden",
        "    matched[3].weight.data = model_b[3].weight.data[:, order]\n",
        "",
        "its column in the next layer",
    ),
    ("match-hidden", ", maximize=True", "", "is the sum of all correlations the largest, or the smallest"),
    ("match-hidden", "linear_sum_assignment(similar, maximize=True)", "similar.max(dim=1)", "every unit is used once"),
    ("match-hidden", "linear_sum_assignment(similar, maximize=True)", "None, torch.arange(h)", "none was moved"),
    ("match-hidden", "torch.corrcoef", "torch.cov", "the mean correlation .* not covariances"),
    (
        "match-hidden",
        "model_a[:3](x), model_b[:3](x)",
        "model_a[:2](x), model_b[:2](x)",
        "the mean correlation .* behind the tanh",
    ),
    ("match-hidden", "(similar, maximize", "(similar.abs(), maximize", "the mean correlation .* expected"),
    (
        "match-hidden",
        "_, order = linear_sum_assignment(similar, maximize=True)",
        """
    order = torch.zeros(h, dtype=torch.int64)
    for _ in range(h):
        i, j = divmod(int(similar.argmax()), h)
        order[i], similar[i], similar[:, j] = j, -2, -2
""",
        "the mean correlation .* not the most similar ones first",
    ),
    ("match-hidden", "copy.deepcopy(model_b)", "model_b", "changes its argument model_b"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "mix-networks",
        """
def mix_networks(model_a, model_b, alpha):
    a, b = (parameters_to_vector(net.parameters()) for net in (model_a, model_b))
    mixed = copy.deepcopy(model_b)
    nn.utils.vector_to_parameters(a + alpha * (b - a), mixed.parameters())
    return mixed
""",
    ),
    (
        "mix-networks",
        """
def mix_networks(model_a, model_b, alpha):
    mixed, b = copy.deepcopy(model_a), model_b.state_dict()
    mixed.load_state_dict({name: torch.lerp(a, b[name], float(alpha)) for name, a in model_a.state_dict().items()})
    return mixed
""",
    ),
    (
        "mix-networks",
        """
def mix_networks(model_a, model_b, alpha):
    mixed = copy.deepcopy(model_a)
    for own, other in zip(mixed.parameters(), model_b.parameters()):
        own.data = torch.from_numpy((1 - alpha) * own.detach().numpy() + alpha * other.detach().numpy()).float()
    return mixed
""",
    ),
    (
        "match-hidden",
        """
def match_hidden(model_a, model_b, x):
    with torch.no_grad():
        a, b = (net[:3](x).double().numpy() for net in (model_a, model_b))
        a, b = ((units - units.mean(axis=0)) / units.std(axis=0) for units in (a, b))
        mine, theirs = linear_sum_assignment(-b.T @ a)
        matched = copy.deepcopy(model_b)
        for j, i in zip(mine, theirs):
            matched[1].weight[i] = model_b[1].weight[j]
            matched[1].bias[i] = model_b[1].bias[j]
            matched[3].weight[:, i] = model_b[3].weight[:, j]
    return matched
""",
    ),
    (
        "match-hidden",
        """
def match_hidden(model_a, model_b, x):
    a, b = (pd.DataFrame(net[:3](x).detach().numpy()) for net in (model_a, model_b))
    table = a.apply(lambda unit: b.corrwith(unit))  # rows: units of b
    order = torch.tensor(linear_sum_assignment(1 - table.T.to_numpy())[1])
    state = {name: value.clone() for name, value in model_b.state_dict().items()}
    state["1.weight"], state["1.bias"] = state["1.weight"][order], state["1.bias"].index_select(0, order)
    state["3.weight"] = state["3.weight"] @ torch.eye(len(order))[order].T
    matched = copy.deepcopy(model_a)
    matched.load_state_dict(state)
    return matched
""",
    ),
]
