"""Answers to the exercises of notebook 45: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("rescale-units", "factors[:, None]", "factors", "each input is scaled, not each unit"),
    ("rescale-units", "lower.bias *= factors", "pass", "its bias is not scaled"),
    ("rescale-units", "*= factors", "/= factors", "it is divided by the factors"),
    ("rescale-units", "upper.weight /= factors", "pass", "the next layer does not undo the factors"),
    ("rescale-units", "upper.weight /= factors", "upper.weight *= factors", "the next layer multiplies once more"),
    (
        "rescale-units",
        "upper.weight /= factors",
        "upper.weight /= factors; upper.bias /= factors.mean()",
        "Does column j of the next weight, and nothing else",
    ),
    ("rescale-units", "copy.deepcopy(network)", "network", "changes its argument network"),
    ("rescale-units", "    return changed", "    return network", "it is as it was|changes its argument"),
    ("one-step-sharpness", "(loss(twin) - value)", "loss(twin)", "the loss after the step, not its rise"),
    ("one-step-sharpness", "theta.abs() * gradient", "gradient", r"\|θ\| is missing in the slope"),
    ("one-step-sharpness", "theta + theta.abs() * step", "theta + step", r"\|θ\| is missing in the step"),
    ("one-step-sharpness", " / slope.norm()", "", "the step is not ρ long"),
    ("one-step-sharpness", ", copy.deepcopy(network)", ", network", "changes its argument network"),
    ("one-step-sharpness", "theta + theta.abs() * step", "theta - theta.abs() * step", "expected"),
]

RIGHT: list[tuple[str, str]] = [
    # exercise, source of a right answer that is written in another way
    (
        "rescale-units",
        """
def rescale_units(network, factors):
    twin = copy.deepcopy(network)
    dense = [name for name, layer in network.named_children() if isinstance(layer, nn.Linear)]
    state = dict(network.state_dict())
    state[f"{dense[0]}.weight"] = torch.diag(factors) @ state[f"{dense[0]}.weight"]
    state[f"{dense[0]}.bias"] = torch.diag(factors) @ state[f"{dense[0]}.bias"]
    state[f"{dense[1]}.weight"] = state[f"{dense[1]}.weight"] @ torch.diag(1 / factors)
    twin.load_state_dict(state)
    return twin
""",
    ),
    (
        "rescale-units",
        """
def rescale_units(network, factors):
    twin = copy.deepcopy(network)
    for j, factor in enumerate(factors.tolist()):
        twin[1].weight.data[j] = twin[1].weight.data[j] * factor
        twin[1].bias.data[j] = twin[1].bias.data[j] * factor
        twin[3].weight.data[:, j] = twin[3].weight.data[:, j] / factor
    return twin
""",
    ),
    (
        "one-step-sharpness",
        """
def one_step_sharpness(loss, network, rho):
    twin = copy.deepcopy(network)
    before = loss(twin)
    before.backward()
    slopes = [p.grad * p.abs() for p in twin.parameters()]
    length = sum((slope**2).sum() for slope in slopes) ** 0.5
    with torch.no_grad():
        for p, slope in zip(twin.parameters(), slopes):
            p += p.abs() * rho * slope / length
        return float(loss(twin)) - float(before)
""",
    ),
    (
        "one-step-sharpness",
        """
def one_step_sharpness(loss, network, rho):
    weights = {name: p.detach() for name, p in network.named_parameters()}

    def moved(u):
        changed = {name: w + w.abs() * u[name] for name, w in weights.items()}
        return loss(lambda x: torch.func.functional_call(network, changed, (x,)))

    zero = {name: torch.zeros_like(w) for name, w in weights.items()}
    slope, start = torch.func.grad_and_value(moved)(zero)
    norm = np.sqrt(sum(float(s.square().sum()) for s in slope.values()))
    return moved({name: rho * s / norm for name, s in slope.items()}) - start
""",
    ),
]
