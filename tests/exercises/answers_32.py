"""Answers to the exercises of notebook 32: wrong ones with what the check says, and unusual right ones."""

NORM = "torch.cat([gradient.flatten() for gradient in gradients]).norm()"
HALF = "sum(gradient.square().sum() for gradient in gradients) / 2"
VECTOR = "torch.cat([product.flatten() for product in products])"

MISTAKES = [
    # exercise, what stands in the solution, what a student writes there, what the check says (a pattern)
    (
        "total-gradient-norm",
        NORM,
        "sum(gradient.norm() for gradient in gradients)",
        "this is the sum of the layers' norms",
    ),
    ("total-gradient-norm", NORM, "max(gradient.norm() for gradient in gradients)", "this is the largest of"),
    ("total-gradient-norm", NORM, "torch.stack([g.norm() for g in gradients]).mean()", "this is the mean of"),
    ("total-gradient-norm", ".norm().item()", ".square().sum().item()", "the root is missing"),
    ("total-gradient-norm", ".norm().item()", ".norm(1).item()", "a sum of absolute values, not the root"),
    ("total-gradient-norm", "in gradients]", "in gradients if gradient.dim() > 1]", "the biases are missing"),
    ("squared-norm-gradient", " / 2", "", "the factor ½ is missing"),
    ("squared-norm-gradient", HALF, f"({HALF} * 2).sqrt()", "this is the norm"),
    ("squared-norm-gradient", HALF, "gradients[-1].square().sum() / 2", "only the last parameter counts"),
    ("squared-norm-gradient", "grad(half, ", "grad(2 * half, ", "that of ‖g‖², without the factor ½"),
    ("squared-norm-gradient", "grad(half, ", "grad((2 * half).sqrt(), ", "that of ‖g‖, not of ½‖g‖²"),
    (
        "squared-norm-gradient",
        "grad(half, ",
        "grad(sum(g.sum() for g in gradients), ",
        "of the sum of the entries of g: the vector is all ones",
    ),
    (
        "squared-norm-gradient",
        "torch.autograd.grad(half, parameters, materialize_grads=True)",
        "[torch.autograd.grad(g.square().sum() / 2, p, retain_graph=True)[0] for p, g in zip(parameters, gradients)]",
        "grad is called 5 times: two will do. Is there a loop over parameters",
    ),
    ("squared-norm-gradient", VECTOR, "torch.cat([gradient.flatten() for gradient in gradients])", "gradient itself"),
    (
        "squared-norm-gradient",  # row by row, the whole Hessian
        "    products = torch.autograd.grad(half, parameters, materialize_grads=True)",
        """    entries = torch.cat([gradient.flatten() for gradient in gradients])
    products = [0 * p for p in parameters]
    for entry in entries:
        row = torch.autograd.grad(entry, parameters, materialize_grads=True, retain_graph=True)
        products = [p + entry.detach() * r for p, r in zip(products, row)]""",
        "grad is called .* times: two will do",
    ),
    ("squared-norm-gradient", ', "materialize_grads": True', "", "Ask for zeros there"),
    ("squared-norm-gradient", "parameters, materialize_grads=True)", "parameters)", "Ask for zeros there"),
    (
        "squared-norm-gradient",
        "    products =",
        "    from torch.autograd import grad\n"
        "    for p in parameters:\n"
        "        grad(half, p, retain_graph=True, materialize_grads=True)\n"
        "    products =",
        "is called 6 times: two will do",
    ),
    ("squared-norm-gradient", "return half, ", "return ", "return two things"),
]

RIGHT = [
    # exercise, source of a right answer that is written in another way
    (
        "total-gradient-norm",  # a sum of squares, by NumPy
        """
def total_gradient_norm(loss, model):
    squares = 0.0
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        squares += float(np.sum(gradient.numpy() ** 2))
    return np.sqrt(squares)
""",
    ),
    (
        "total-gradient-norm",  # the norm of norms, as a tensor
        """
def total_gradient_norm(loss, model):
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    model.zero_grad()
    return norm
""",
    ),
    (
        "total-gradient-norm",
        """
def total_gradient_norm(loss, model):
    gradients = torch.autograd.grad(loss, model.parameters())
    return torch.nn.utils.get_total_norm(gradients)
""",
    ),
    (
        "squared-norm-gradient",  # the product with the gradient as a constant vector
        """
def squared_norm_gradient(loss, model):
    parameters = tuple(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    g = torch.nn.utils.parameters_to_vector(gradients)
    products = torch.autograd.grad(g, parameters, g.detach(), allow_unused=True)
    filled = [torch.zeros_like(p) if h is None else h for p, h in zip(parameters, products)]
    return 0.5 * torch.dot(g, g).item(), torch.nn.utils.parameters_to_vector(filled)
""",
    ),
    (
        "squared-norm-gradient",  # a list of a number and an array
        """
def squared_norm_gradient(loss, model):
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    used = [g for g in first if g is not None]
    half = 0.5 * torch.stack([(g * g).sum() for g in used]).sum()
    second = torch.autograd.grad(half, parameters, allow_unused=True)
    flat = [np.zeros(p.numel()) if h is None else h.numpy().ravel() for p, h in zip(parameters, second)]
    return [half.item(), np.concatenate(flat)]
""",
    ),
]
