"""Answers to the exercises of notebook 31: wrong ones with what the check says, and unusual right ones."""

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    (
        "straightness",
        "return np.linalg.norm(points[-1] - points[0]) / length",
        "return length / np.linalg.norm(points[-1] - points[0])",
        "upside down",
    ),
    (
        "straightness",
        "np.linalg.norm(points[1:] - points[:-1], axis=1).sum()",
        "np.linalg.norm((points[1:] - points[:-1]).sum(0))",
        "the steps are added before their length is taken",
    ),
    (
        "straightness",
        "np.linalg.norm(points[1:] - points[:-1], axis=1).sum()",
        "np.linalg.norm(points[1:] - points[:-1])",
        "the steps' lengths are squared",
    ),
    ("straightness", "norm(points[-1] - points[0])", "norm(points[-1])", "the distance is that of the end from 0"),
    ("straightness", ".sum()", ".mean()", "the mean of the steps' lengths, not their sum"),
    ("straightness", "np.linalg.norm(points[-1] - points[0]) / length", "length", "this is the length alone"),
    ("straightness", ", axis=1).sum()", ", axis=0).sum()", "straightness of 3 points: .*expected"),
    (
        "straightness",
        "np.linalg.norm(points[-1] - points[0])",
        "np.linalg.norm(points - points[0], axis=1).max()",
        "straightness of",
    ),
    ("path-coordinates", "points - points.mean(0)", "points + 0", "the points are not centered"),
    ("path-coordinates", "points - points.mean(0)", "points - points.mean()", "Are the points centered"),
    ("path-coordinates", "points - points.mean(0)", "(points - points.mean(0)) / points.std(0)", "standard deviation"),
    ("path-coordinates", "vectors[:, ::-1]", "vectors", "is the largest component first"),
    ("path-coordinates", "np.sqrt(values[::-1][:q])\n", "np.sqrt(values[::-1][:q])[::-1]\n", "largest component first"),
    (
        "path-coordinates",
        "return vectors[:, ::-1][:, :q] * np.sqrt(values[::-1][:q])",
        "return vectors[:, -q:] * np.sqrt(values[-q:])",
        "the smallest of the q components comes first",
    ),
    ("path-coordinates", " * np.sqrt(values[::-1][:q])", "", "each column has length 1"),
    ("path-coordinates", "np.sqrt(values[::-1][:q])", "values[::-1][:q]", "λ in place of √λ"),
    ("path-coordinates", "centered @ centered.T", "np.cov(centered)", "Are the points centered"),
    (
        "path-coordinates",
        "centered @ centered.T",
        "centered @ centered.T / (len(points) - 1)",
        "divided by n or n − 1, as a covariance is",
    ),
    (
        "path-coordinates",
        "centered = ",
        "if points.shape[1] > 1000:\n        raise MemoryError\n    centered = ",
        "11 points in 218,181 dimensions: out of memory. A P × P matrix",
    ),
]

RIGHT = [
    # exercise, source of a right answer that is written in another way
    (
        "straightness",
        """
def straightness(points):
    points = torch.tensor(points)
    length = 0
    for a, b in zip(points, points[1:]):
        length += (b - a).square().sum().sqrt()
    return torch.dist(points[0], points[-1]) / length
""",
    ),
    (
        "straightness",
        """
def straightness(points):
    steps = np.diff(points, axis=0)
    return np.array(np.sqrt((steps.sum(0) ** 2).sum()) / np.sqrt((steps**2).sum(1)).sum())
""",
    ),
    (
        "path-coordinates",
        """
def path_coordinates(points, q):
    from sklearn.decomposition import PCA

    return PCA(n_components=q, random_state=0).fit_transform(points)
""",
    ),
    (
        "path-coordinates",
        """
def path_coordinates(points, q):
    u, s, _ = np.linalg.svd(points - points.mean(axis=0, keepdims=True), full_matrices=False)
    return -(u * s)[:, :q]
""",
    ),
    (
        "path-coordinates",
        """
def path_coordinates(points, q):
    torch.manual_seed(0)
    points = torch.tensor(points, dtype=torch.float32)
    u, s, v = torch.pca_lowrank(points, q=min(*points.shape, q + 6), niter=6)
    return u[:, :q] * s[:q]
""",
    ),
    (
        "path-coordinates",
        """
def path_coordinates(points, q):
    from scipy.linalg import eigh
    from scipy.spatial.distance import pdist, squareform

    n = len(points)
    distances = squareform(pdist(points)) ** 2  # classical scaling
    center = np.eye(n) - np.ones((n, n)) / n
    values, vectors = eigh(-center @ distances @ center / 2, subset_by_index=[n - q, n - 1])
    return (vectors * np.sqrt(values))[:, ::-1].tolist()
""",
    ),
]
