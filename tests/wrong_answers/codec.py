"""Wrong answers to the tasks of notebook 06: task -> (source, words of the reply)."""

SIGN = "def mean_psnr(images, targets):\n"
CODEC = "def linear_codec(patches, mean, components, step):\n"
SCAN = "def highest_quality(encode, budget, header=0):\n"
PAIR = "def difference_interval(ours, theirs):\n"
NARROW = "def narrow(low, width, counts, symbol):\n    total = sum(counts)\n"
ADAPT = (
    "def encode_adaptive(codes, num_embeddings, low, width):\n    counts = [1] * num_embeddings\n"
)
INDICES = "    indices = ((patches - mean) @ components.T / step).round().long()\n"

WRONG = {
    "mean_psnr": [
        (
            SIGN + "    return 10 * torch.log10(1 / (images - targets).pow(2).mean())",
            "PSNR of the mean MSE",
        ),
        (
            SIGN + "    mse = (255 * (images - targets)).pow(2).mean((1, 2, 3))\n"
            "    return 10 * torch.log10(1 / mse).mean()",
            "the same unit for both",
        ),
        (
            SIGN + "    mse = (images - targets).pow(2).mean((1, 2, 3))\n"
            "    return 10 * torch.log10(1 / mse)",
            "Return their mean",
        ),
        (
            SIGN + "    mse = (images - targets).pow(2).mean((1, 2, 3))\n"
            "    return 10 * torch.log(1 / mse).mean()",
            "base 10",
        ),
        (
            SIGN + "    return vqlib.metrics.psnr(images, targets).mean()",
            "calls vqlib.metrics.psnr",
        ),
    ],
    "code_length": [
        (
            "def code_length(codes, tables):\n"
            "    return -tables[torch.arange(codes.shape[1]), codes].log().sum(1)",
            "nats",
        ),
        (
            "def code_length(codes, tables):\n"
            "    return -tables[torch.arange(codes.shape[1]), codes].log2().mean(1)",
            "mean length of a code",
        ),
        (
            "def code_length(codes, tables):\n"
            "    return (-(tables * tables.log2()).sum()).expand(len(codes))",
            "the expected length",
        ),
        (
            "def code_length(codes, tables):\n"
            "    return tables[torch.arange(codes.shape[1]), codes].log2().sum(1)",
            "sign",
        ),
    ],
    "linear_codec": [
        (
            CODEC + "    indices = (patches @ components.T / step).round().long()\n"
            "    return indices, indices * step @ components",
            "mean was not subtracted",
        ),
        (CODEC + INDICES + "    return indices, indices * step @ components", "add it back"),
        (
            CODEC + "    columns = components if len(components) == len(mean) else components.T\n"
            "    indices = ((patches - mean) @ columns / step).round().long()\n"
            "    return indices, indices * step @ columns.T + mean",
            "projects on the columns",
        ),
        (
            CODEC + "    indices = ((patches - mean) @ components.T / step).long()\n"
            "    return indices, indices * step @ components + mean",
            "truncated",
        ),
        (
            CODEC + INDICES + "    return indices, indices.float() @ components + mean",
            "by the step",
        ),
    ],
    "highest_quality": [
        (
            SCAN + "    low, high = 0, 100\n"
            "    if len(encode(0)) - header > budget:\n        return None\n"
            "    while low < high:\n"
            "        middle = (low + high + 1) // 2\n"
            "        fits = len(encode(middle)) - header <= budget\n"
            "        low, high = (middle, high) if fits else (low, middle - 1)\n"
            "    return low, encode(low)",
            "sizes that do not always grow",
        ),
        (
            SCAN + "    for quality in range(100, -1, -1):\n"
            "        if len(encode(quality)) - header < budget:\n"
            "            return quality, encode(quality)",
            "expected quality",
        ),
        (
            SCAN + "    for quality in range(100, -1, -1):\n"
            "        if len(encode(quality)) <= budget:\n"
            "            return quality, encode(quality)",
            "a header that is not counted",
        ),
        (
            SCAN + "    for quality in range(100, 0, -1):\n"
            "        if len(encode(quality)) - header <= budget:\n"
            "            return quality, encode(quality)",
            "only quality 0",
        ),
    ],
    "difference_interval": [
        (
            PAIR + "    both = ~(ours.isnan() | theirs.isnan())\n"
            "    ours, theirs = ours[both], theirs[both]\n"
            "    mean = (ours - theirs).mean()\n"
            "    error = ((ours.var() + theirs.var()) / len(ours)).sqrt()\n"
            "    return mean, mean - 1.96 * error, mean + 1.96 * error",
            "two independent sets",
        ),
        (
            PAIR + "    d = ours - theirs\n"
            "    e = 1.96 * d.std() / len(d) ** 0.5\n"
            "    return d.mean(), d.mean() - e, d.mean() + e",
            "NaN",
        ),
        (
            PAIR + "    d = (ours - theirs)[~ours.isnan()]\n"
            "    mean = ours.nanmean() - theirs.nanmean()\n"
            "    e = 1.96 * d.std() / len(d) ** 0.5\n"
            "    return mean, mean - e, mean + e",
            "over different images",
        ),
        (
            PAIR + "    d = (ours - theirs)[~ours.isnan()]\n"
            "    return d.mean(), d.mean() - 1.96 * d.std(), d.mean() + 1.96 * d.std()",
            "√n",
        ),
    ],
    "narrow": [
        (
            NARROW + "    share = sum(counts[:symbol]) / total\n"
            "    return low + width * share, width * (counts[symbol] / total)",
            "float",
        ),
        (
            NARROW + "    return (low + width * sum(counts[: symbol + 1]) / total,\n"
            "            width * counts[symbol] / total)",
            "without its own",
        ),
        (
            NARROW + "    one = width / width\n"
            "    return low + width * sum(counts[:symbol]) / total, one * counts[symbol] / total",
            "share of the old width",
        ),
        (
            NARROW + "    one = width / width\n"
            "    return (low + one * sum(counts[:symbol]) / total,\n"
            "            width * counts[symbol] / total)",
            "shares of the old width",
        ),
    ],
    "encode_adaptive": [
        (
            ADAPT.replace("num_embeddings\n", "(max(codes) + 1)\n") + "    for code in codes:\n"
            "        low, width = narrow(low, width, counts, code)\n"
            "        counts[code] += 1\n"
            "    return low, width",
            "up to this code only",
        ),
        (
            ADAPT + "    for each in codes:\n"
            "        counts[each] += 1\n"
            "        low, width = narrow(low, width, counts, each)\n"
            "    return low, width",
            "on the code itself",
        ),
        (
            ADAPT + "    for code in codes:\n"
            "        low, width = narrow(low, width, counts, code)\n"
            "    return low, width",
            "never change",
        ),
        (
            ADAPT + "    for code in codes:\n        counts[code] += 1\n"
            "    for code in codes:\n"
            "        low, width = narrow(low, width, counts, code)\n"
            "    return low, width",
            "the future",
        ),
    ],
}
