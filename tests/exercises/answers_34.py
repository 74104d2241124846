"""Answers to the exercises of notebook 34: wrong ones with what the check says, and unusual right ones."""

FACTOR = "(own / length).view(-1, *[1] * (weight.dim() - 1))"
SOLVED = "torch.linalg.solve(gram, directions @ offset.T).T"
ORTHONORMAL = (
    "offset @ torch.stack([first := directions[0] / directions[0].norm(),"
    " (rest := directions[1] - directions[1] @ first * first) / rest.norm()]).T"
)

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    ("normalize-filters", FACTOR, "(weight.norm() / direction.norm())", "one length for the whole layer"),
    ("normalize-filters", "(own / length)", "own", "the direction's own length is not divided out"),
    ("normalize-filters", "(own / length)", "(1 / length)", "each unit has length 1"),
    ("normalize-filters", "(own / length)", "(length / own)", "the factor is upside down"),
    ("normalize-filters", f"direction * {FACTOR}", "direction.sign() * weight.abs()", "each number, not each unit"),
    ("normalize-filters", "direction.flatten(1).norm", "direction.abs().flatten(1).sum", "Has each unit the length"),
    ("plane-coordinates", "points - origin", "points", "the origin is not subtracted"),
    ("plane-coordinates", SOLVED, "offset @ directions.T", "as if they were orthonormal"),
    ("plane-coordinates", SOLVED, "offset @ directions.T / gram.diagonal()", "as if the directions were orthogonal"),
    ("plane-coordinates", SOLVED, ORTHONORMAL, "along directions that were made orthonormal first"),
    ("plane-coordinates", "norm(dim=1)", "square().sum(1)", "the distance is squared"),
    ("plane-coordinates", "(offset - coordinates @ directions)", "offset", "from the origin, not from the plane"),
    ("plane-coordinates", "(offset - coordinates @ directions)", "(coordinates @ directions)", "within the plane"),
    ("plane-coordinates", "return coordinates, distances", "return coordinates", "return two things"),
]

RIGHT = [
    # exercise, source of a right answer that is written in another way
    (
        "normalize-filters",  # unit by unit
        """
def normalize_filters(direction, weight):
    parts = [d * w.norm() / d.norm() for d, w in zip(direction, weight)]
    return torch.stack(parts)
""",
    ),
    (
        "normalize-filters",  # NumPy
        """
def normalize_filters(direction, weight):
    d, w = direction.numpy(), weight.numpy()
    axes = tuple(range(1, w.ndim))
    return d * np.sqrt((w**2).sum(axes, keepdims=True) / (d**2).sum(axes, keepdims=True))
""",
    ),
    (
        "normalize-filters",
        """
def normalize_filters(direction, weight):
    unit = torch.nn.functional.normalize(direction.flatten(1), dim=1)
    return torch.einsum("ui,u->ui", unit, weight.flatten(1).norm(dim=1)).view_as(weight)
""",
    ),
    (
        "plane-coordinates",
        """
def plane_coordinates(points, origin, directions):
    coordinates = torch.linalg.lstsq(directions.T, (points - origin).T).solution.T
    nearest = origin + coordinates @ directions
    return coordinates, torch.linalg.vector_norm(points - nearest, dim=1)
""",
    ),
    (
        "plane-coordinates",  # by hand: the second direction made orthogonal to the first, lists of floats
        """
def plane_coordinates(points, origin, directions):
    first, second = np.asarray(directions)
    upright = second - (second @ first) / (first @ first) * first
    coordinates, distances = [], []
    for point in np.asarray(points):
        rest = point - np.asarray(origin)
        b = rest @ upright / (upright @ upright)
        a = (rest - b * second) @ first / (first @ first)
        coordinates.append([a, b])
        distances.append(float(np.linalg.norm(rest - a * first - b * second)))
    return [coordinates, distances]
""",
    ),
    (
        "plane-coordinates",  # the distance by Pythagoras
        """
def plane_coordinates(points, origin, directions):
    q, r = torch.linalg.qr(directions.T)
    inside = (points - origin) @ q
    squares = (points - origin).square().sum(1) - inside.square().sum(1)
    return torch.linalg.solve(r, inside.T).T, squares.clamp_min(0).sqrt()
""",
    ),
]
