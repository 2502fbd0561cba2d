"""Wrong answers to the tasks of notebook 05: task -> (source, words of the reply)."""

SEQUENCE = (
    "def sample_sequence(prior, n, length):\n"
    "    codes = torch.zeros(n, length, dtype=torch.long)\n"
    "    for i in range(length):\n"
)
GRID = (
    "def sample_grid(prior, n, height, width, slots):\n"
    "    codes = torch.zeros(n, height, width, slots, dtype=torch.long)\n"
)
GRID_STEP = (
    "    p = prior(codes)[:, row, column, slot].softmax(-1)\n"
    "    codes[:, row, column, slot] = torch.multinomial(p, 1)[:, 0]\n"
)


def grid_loops(*loops):
    """A sampler with these loops, outermost first."""
    ranges = {"row": "height", "column": "width", "slot": "slots"}
    lines = [
        f"{'    ' * (i + 1)}for {name} in range({ranges[name]}):\n" for i, name in enumerate(loops)
    ]
    step = "".join("            " + line + "\n" for line in GRID_STEP.splitlines())
    return GRID + "".join(lines) + step + "    return codes"


WRONG = {
    "sample_sequence": [
        (
            SEQUENCE + "        codes[:, i] = prior(codes)[:, i].argmax(-1)\n    return codes",
            "not sampling",
        ),
        (
            SEQUENCE
            + "        p = prior(codes)[:, i].softmax(0)\n"
            + "        codes[:, i] = torch.multinomial(p, 1)[:, 0]\n    return codes",
            "axis",
        ),
        (
            "def sample_sequence(prior, n, length):\n"
            "    p = prior(torch.zeros(n, length, dtype=torch.long)).softmax(-1)\n"
            "    return torch.multinomial(p.flatten(0, 1), 1).view(n, length)",
            "written into the input",
        ),
        (
            SEQUENCE
            + "        p = prior(codes)[:, -1].softmax(-1)\n"
            + "        codes[:, i] = torch.multinomial(p, 1)[:, 0]\n    return codes",
            "own position",
        ),
        (
            SEQUENCE
            + "        p = (2 * prior(codes)[:, i]).softmax(-1)\n"
            + "        codes[:, i] = torch.multinomial(p, 1)[:, 0]\n    return codes",
            "frequencies differ",
        ),
    ],
    "sample_grid": [
        (
            GRID
            + "    p = prior(codes).softmax(-1).flatten(0, 3)\n"
            + "    return torch.multinomial(p, 1).view(codes.shape)",
            "from one pass",
        ),
        (grid_loops("slot", "row", "column"), "slots are in the outermost loop"),
        (grid_loops("column", "row", "slot"), "columns are in the outer loop"),
        (
            grid_loops("row", "column", "slot").replace(
                "torch.multinomial(p, 1)[:, 0]", "p.argmax(-1)"
            ),
            "not sampling",
        ),
        (
            "def sample_grid(prior, n, height, width, slots):\n"
            "    return vqlib.sample(prior, n, grid=(height, width))",
            "calls vqlib.sampling.sample",
        ),
    ],
    "conv_step": [
        (
            "def conv_step(window, x, weight, bias):\n"
            "    y = window.flatten(1) @ weight.flatten(1).T + bias\n"
            "    return y, torch.cat([window[:, :, 1:], x[:, :, None]], 2)",
            "before the new input",
        ),
        (
            "def conv_step(window, x, weight, bias):\n"
            "    window = torch.cat([x[:, :, None], window[:, :, :-1]], 2)\n"
            "    return window.flatten(1) @ weight.flatten(1).T + bias, window",
            "newest one has to be last",
        ),
        (
            "def conv_step(window, x, weight, bias):\n"
            "    new = torch.cat([window[:, :, 1:], x[:, :, None]], 2)\n"
            "    return new.flip(2).flatten(1) @ weight.flatten(1).T + bias, new",
            "kernel is reversed",
        ),
        (
            "def conv_step(window, x, weight, bias):\n"
            "    new = torch.cat([window[:, :, 1:], x[:, :, None]], 2)\n"
            "    return new.flatten(1) @ weight.flatten(1).T, new",
            "bias is missing",
        ),
        (
            "def conv_step(window, x, weight, bias):\n"
            "    window[:, :, :-1] = window[:, :, 1:].clone()\n"
            "    window[:, :, -1] = x\n"
            "    return window.flatten(1) @ weight.flatten(1).T + bias, window",
            "in place",
        ),
    ],
    "tempered": [
        (
            "def tempered(logits, temperature):\n"
            "    return (logits.softmax(-1) / temperature).softmax(-1)",
            "Compare the odds",
        ),
        (
            "def tempered(logits, temperature):\n    return (logits * temperature).softmax(-1)",
            "wrong direction",
        ),
        (
            "def tempered(logits, temperature):\n"
            "    p = logits.softmax(-1) ** (1 / temperature)\n"
            "    return p / p.sum(-1, keepdim=True)",
            "NaN",
        ),
        (
            "def tempered(logits, temperature):\n    return logits.softmax(-1) / temperature",
            "sum to 1",
        ),
    ],
    "nucleus": [
        (
            "def nucleus(p, top_p):\n"
            "    ordered, order = p.sort(-1, descending=True)\n"
            "    ordered = ordered * (ordered.cumsum(-1) <= top_p)\n"
            "    kept = torch.zeros_like(p).scatter(-1, order, ordered)\n"
            "    return kept / kept.sum(-1, keepdim=True)",
            "crosses the threshold",
        ),
        (
            "def nucleus(p, top_p):\n"
            "    ordered, order = p.sort(-1, descending=True)\n"
            "    ordered = ordered * (ordered.cumsum(-1) - ordered < top_p)\n"
            "    return ordered / ordered.sum(-1, keepdim=True)",
            "undo the sorting",
        ),
        (
            "def nucleus(p, top_p):\n"
            "    ordered, order = p.sort(-1, descending=True)\n"
            "    ordered = ordered * (ordered.cumsum(-1) - ordered < top_p)\n"
            "    return torch.zeros_like(p).scatter(-1, order, ordered)",
            "not to 1",
        ),
        (
            "def nucleus(p, top_p):\n"
            "    ordered, order = p.sort(-1, descending=True)\n"
            "    before = (ordered.cumsum(-1) - ordered).roll(1, -1)\n"
            "    before[..., 0] = 0\n"
            "    ordered = ordered * (before < top_p)\n"
            "    kept = torch.zeros_like(p).scatter(-1, order, ordered)\n"
            "    return kept / kept.sum(-1, keepdim=True)",
            "should be the smallest",
        ),
        (
            "def nucleus(p, top_p):\n"
            "    kept = p * (p >= 1 - top_p)\n"
            "    return kept / kept.sum(-1, keepdim=True)",
            "reach",
        ),
    ],
    "guided_logits": [
        (
            "def guided_logits(conditional, unconditional, guidance):\n"
            "    return unconditional + guidance * (conditional - unconditional)",
            "w = 1 gives the conditional",
        ),
        (
            "def guided_logits(conditional, unconditional, guidance):\n"
            "    return conditional - guidance * (conditional - unconditional)",
            "Look at the sign",
        ),
        (
            "def guided_logits(conditional, unconditional, guidance):\n"
            "    c, u = conditional.softmax(-1), unconditional.softmax(-1)\n"
            "    return (1 + guidance) * c - guidance * u",
            "sum of logits",
        ),
        (
            "def guided_logits(conditional, unconditional, guidance):\n"
            "    return (1 + guidance) * unconditional - guidance * conditional",
            "arguments exchanged",
        ),
    ],
    "importance_weights": [
        (
            "def importance_weights(bits):\n"
            "    likelihood = 2.0 ** -bits.double().sum(-1)\n"
            "    return likelihood / likelihood.sum(-1, keepdim=True)",
            "underflow",
        ),
        ("def importance_weights(bits):\n    return (-bits.sum(-1)).softmax(-1)", "nats"),
        (
            "def importance_weights(bits):\n    return (-bits.mean(-1) * math.log(2)).softmax(-1)",
            "mean of the bits",
        ),
        (
            "def importance_weights(bits):\n    return (bits.sum(-1) * math.log(2)).softmax(-1)",
            "long codes are preferred",
        ),
        (
            "def importance_weights(bits):\n    return (-bits.sum(-1) * math.log(2)).softmax(0)",
            "over the images",
        ),
    ],
}
