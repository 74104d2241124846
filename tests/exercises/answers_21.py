"""Answers to the exercises of notebook 21: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("count-parameters", "(widths[i] + 1)", "widths[i]", "the biases are missing"),
    ("count-parameters", "return sum", "return widths[0] + sum", "the inputs have no biases"),
    ("count-parameters", "return sum", "return -widths[-1] + sum", "the outputs have biases, too"),
    ("count-parameters", "range(len(widths) - 1)", "range(len(widths) - 2)", "parameters of .*expected"),
    ("initial-std", "return (2 / (", "return (1 / (", "forward, slope 0.0: .*Likely cause: which square is halved"),
    ("initial-std", "2 / ((1 + slope**2) * n)", "2 / n", r"slope 0.5: 1.1\d+, expected 1. .*the slope is not used"),
    ("initial-std", "2 / ((1 + slope**2) * n)", "1 / n", "which square is halved by f"),
    ("initial-std", ") * n)) ** 0.5", ") * n))", "this is the variance"),
    ("initial-std", '"forward": fan_in', '"forward": fan_out', "forward.* n and m are exchanged"),
    ("initial-std", '"backward": fan_out', '"backward": fan_in', "backward.* n and m are exchanged"),
    ("initial-std", "(fan_in + fan_out) / 2", "fan_in + fan_out", "the sum of n and m, not their mean"),
    ("initial-std", "(fan_in + fan_out) / 2", "(fan_in * fan_out) ** 0.5", "the geometric mean of n and m"),
    ("initial-std", "1 + slope**2", "1 + slope", "standard deviation, forward|factor of a layer, forward, slope 0.5"),
    ("initial-std", " * n)", " * (n + 1))", r"standard deviation, forward, \d+ to \d+"),
    ("own-claim", 'loss["deep"] / loss["shallow"]', 'loss["shallow"] / loss["deep"]', "above= goes with shallow over"),
    (
        "own-claim",
        'loss["deep"] / loss["shallow"]',
        'end[end.network == "deep"].loss.to_numpy() / end[end.network == "shallow"].loss.to_numpy()',
        "losses of different seeds are divided",
    ),
    ("own-claim", '(table.part == "train")', '(table.part == "running")', "the part 'train', at the last epoch"),
    (
        "own-claim",
        "table.epoch.max(), table",
        "table.epoch.min(), table",
        "measured, in rising order: .*at the last epoch",
    ),
    (
        "own-claim",
        'loss["deep"] / loss["shallow"]',
        '[loss["deep"].mean() / loss["shallow"].mean()]',
        r"measured, one a seed: shape \(1,\), expected \(8,\)",
    ),
    ("own-claim", 'kind="ratio"', 'kind="mean"', "kind is 'mean', expected 'ratio'"),
    ("own-claim", "below=0.5", "above=0.5", "above= goes with shallow over deep"),
    ("own-claim", "below=0.5", "below=1.0", "the threshold is 1, not from 0.1 to 0.9"),
    ("own-claim", "below=0.5", "within=(0.1, 0.5)", "within= has two thresholds"),
    (
        "own-claim",
        "below=0.5",
        'below=min(0.9, max(0.1, float((loss["deep"] / loss["shallow"]).max()) + 0.01))',
        "the threshold depends on the losses",
    ),
    ("own-claim", "The deep network ends", "It ends", "begins with 'it': name what it is about"),
    ("own-claim", "on {data}, ", "", "does not say 'sinc'"),
    ("own-claim", "after {epochs:,} epochs", "at the end", "does not say '300'"),
    ("own-claim", "{epochs:,} epochs", "300 epochs", "does not say '120'"),
    ("own-claim", "at most half the", "a lower", "does not say its threshold 0.5"),
    ("own-claim", "at most half the", "at most a third of the", "does not say its threshold 0.5"),
    ("own-claim", '"deep over shallow, training loss"', '""', "unit is empty"),
    ("own-claim", "return run.claim(", "run.claim(", "own_claim returns None"),
]

RIGHT = [
    # exercise, source of a right answer that is written in another way
    (
        "count-parameters",
        """
def mlp_parameters(widths):
    layers = [torch.nn.Linear(n, m) for n, m in zip(widths[:-1], widths[1:])]
    return sum(p.numel() for layer in layers for p in layer.parameters())
""",
    ),
    (
        "count-parameters",
        """
def mlp_parameters(widths):
    widths = np.array(widths)
    return np.dot(widths[:-1], widths[1:]) + widths[1:].sum()
""",
    ),
    (
        "initial-std",
        """
def initial_std(fan_in, fan_out, slope, keep):
    if keep == "forward":
        n = fan_in
    elif keep == "backward":
        n = fan_out
    else:
        n = 0.5 * fan_in + 0.5 * fan_out
    return torch.sqrt(torch.tensor(2.0, dtype=torch.float64) / (1 + slope * slope)) / torch.tensor(float(n)).sqrt()
""",
    ),
    (
        "initial-std",
        """
def initial_std(fan_in, fan_out, slope, keep):
    mean_square = np.mean([1.0, slope**2])  # of f, for z of variance 1
    variances = 1 / (np.array([fan_in, fan_out]) * mean_square)
    return np.sqrt({"forward": variances[0], "backward": variances[1], "both": 2 / np.sum(1 / variances)}[keep])
""",
    ),
    (
        "own-claim",
        """
def own_claim(run, table):
    last = table.epoch.max()
    ratios = []
    for seed in table.seed.unique():
        rows = table.query(f"part == 'train' and epoch == {last} and seed == {seed}").set_index("network")
        ratios.append(rows.loss["shallow"] / rows.loss["deep"])
    return run.claim(
        "shallow-four-times",
        f"Shallow networks end with at least 4 times the training loss of deep ones on {table['data'].iloc[0]} after "
        f"{last} epochs.",
        source="me",
        measured=ratios,
        above=4,
        kind="ratio",
        unit="shallow over deep",
    )
""",
    ),
    (
        "own-claim",
        """
def own_claim(run, table):
    table = table[table.part == "train"].sort_values("epoch")
    end = table.groupby(["network", "seed"]).last()["loss"].unstack("network")
    [data] = table["data"].unique()
    text = f"On {data}, the deep loss is below two thirds of the shallow one, {table.epoch.max()} epochs"
    return run.claim(
        id="deep-below-shallow", text=text, source="own", measured=torch.tensor((end.deep / end.shallow).to_numpy()),
        below=2 / 3, kind="ratio", unit="deep / shallow", key=True,
    )
""",
    ),
]
