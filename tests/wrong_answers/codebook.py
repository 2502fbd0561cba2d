"""Wrong answers to the tasks of notebook 03: task -> (source, words of the reply)."""

WRONG = {
    "pack_bits": [
        (
            "def pack_bits(codes, bits):\n"
            "    table = codes.numpy()[:, None] >> np.arange(bits) & 1\n"
            "    return np.packbits(table.astype(np.uint8))",
            "least significant bit",
        ),
        (
            "def pack_bits(codes, bits):\n    return codes.numpy().astype(np.uint8)",
            "cannot hold a code of 9 bits",
        ),
        (
            "def pack_bits(codes, bits):\n    return codes.numpy().astype('>u2').view(np.uint8)",
            "starts a new byte",
        ),
        (
            "def pack_bits(codes, bits):\n"
            "    table = codes.numpy()[:, None] >> np.arange(bits - 1, -1, -1) & 1\n"
            "    return table.astype(np.uint8).flatten()",
            "one byte per bit",
        ),
        (
            "def pack_bits(codes, bits):\n"
            "    from vqlib.codes import pack_codes\n"
            "    return pack_codes(codes, bits)",
            "calls vqlib.codes.pack_codes",
        ),
    ],
    "code_perplexity": [
        (
            "def code_perplexity(counts):\n"
            "    p = counts / counts.sum(-1, keepdim=True)\n"
            "    return (-(p * p.log()).sum(-1)).exp()",
            "NaN for codes that are never used",
        ),
        (
            "def code_perplexity(counts):\n"
            "    p = counts / counts.sum(-1, keepdim=True)\n"
            "    return (-(p * (p + 1e-10).log2()).sum(-1)).exp()",
            "Two bases are mixed",
        ),
        (
            "def code_perplexity(counts):\n"
            "    p = counts / counts.sum(-1, keepdim=True)\n"
            "    return 2 ** torch.special.entr(p).sum(-1)",
            "Two bases are mixed",
        ),
        (
            "def code_perplexity(counts):\n"
            "    p = counts / counts.sum(-1, keepdim=True)\n"
            "    return torch.special.entr(p).sum(-1)",
            "This is the entropy",
        ),
        (
            "def code_perplexity(counts):\n"
            "    p = counts / counts.sum()\n"
            "    return torch.special.entr(p).sum(-1).exp()",
            "expected",
        ),
    ],
    "codebook_usage": [
        (
            "def codebook_usage(batches, num_embeddings):\n"
            "    every = [vqlib.quantizer.count_codes(c, num_embeddings) for c in batches]\n"
            "    total = torch.stack(every).sum(0)\n"
            "    mean = torch.stack([vqlib.quantizer.perplexity(c) for c in every]).mean(0)\n"
            "    return (total > 0).sum(-1), mean",
            "average over batches",
        ),
        (
            "def codebook_usage(batches, num_embeddings):\n"
            "    for codes in batches:\n"
            "        counts = vqlib.quantizer.count_codes(codes, num_embeddings)\n"
            "    return (counts > 0).sum(-1), vqlib.quantizer.perplexity(counts)",
            "last batch alone",
        ),
        (
            "def codebook_usage(batches, num_embeddings):\n"
            "    every = [vqlib.quantizer.count_codes(c, num_embeddings) for c in batches]\n"
            "    used = sum((c > 0).sum(-1) for c in every)\n"
            "    return used, vqlib.quantizer.perplexity(sum(every))",
            "counted twice",
        ),
    ],
    "mutual_information": [
        (
            "def mutual_information(a, b):\n"
            "    def entropy(v):\n"
            "        return torch.special.entr(v.bincount() / len(v)).sum()\n"
            "    return float(entropy(a) + entropy(b) - entropy(a * (b.max() + 1) + b))",
            "in nats",
        ),
        (
            "def mutual_information(a, b):\n"
            "    def entropy(v):\n"
            "        return torch.special.entr(v.bincount() / len(v)).sum() / math.log(2)\n"
            "    return float(entropy(a) + entropy(b) - entropy(a + b))",
            "same for different pairs",
        ),
        (
            "def mutual_information(a, b):\n"
            "    def entropy(v):\n"
            "        p = v.bincount() / len(v)\n"
            "        return -(p * p.log2()).sum()\n"
            "    return float(entropy(a) + entropy(b) - entropy(a * (b.max() + 1) + b))",
            "0 log 0",
        ),
        (
            "def mutual_information(a, b):\n"
            "    def entropy(v):\n"
            "        return torch.special.entr(v.bincount() / len(v)).sum() / math.log(2)\n"
            "    return float(entropy(a * (b.max() + 1) + b))",
            "entropy of the pairs",
        ),
    ],
    "restart_dead_codes": [
        (
            "from vqlib.course.tasks.codebook import reference_restart\n"
            "def restart_dead_codes(*arguments, limit=20):\n"
            "    return reference_restart(*arguments, limit=limit)",
            "calls vqlib.course.tasks.codebook.reference_restart",
        ),
        (  # only the codebook is replaced
            "def restart_dead_codes(codebook, sums, sizes, unused, vectors, limit=20):\n"
            "    dead = unused >= limit\n"
            "    new = vectors[torch.randint(len(vectors), (len(codebook),))]\n"
            "    codebook = torch.where(dead[:, None], new, codebook)\n"
            "    return codebook, sums, sizes, torch.where(dead, 0, unused)",
            "jumps away",
        ),
        (
            "def restart_dead_codes(codebook, sums, sizes, unused, vectors, limit=20):\n"
            "    dead = unused >= limit\n"
            "    new = vectors[torch.randint(len(vectors), (1,))]\n"
            "    codebook = torch.where(dead[:, None], new, codebook)\n"
            "    sums = torch.where(dead[:, None], new, sums)\n"
            "    sizes = torch.where(dead, 1.0, sizes)\n"
            "    return codebook, sums, sizes, torch.where(dead, 0, unused)",
            "same vector",
        ),
        (
            "def restart_dead_codes(codebook, sums, sizes, unused, vectors, limit=20):\n"
            "    dead = unused >= limit\n"
            "    new = vectors[torch.randint(len(vectors), (len(codebook),))]\n"
            "    codebook = torch.where(dead[:, None], new, codebook)\n"
            "    sums = torch.where(dead[:, None], new, sums)\n"
            "    return codebook, sums, torch.where(dead, 1.0, sizes), unused",
            "counter",
        ),
        (
            "def restart_dead_codes(codebook, sums, sizes, unused, vectors, limit=20):\n"
            "    dead = unused >= limit\n"
            "    codebook[dead] = vectors[torch.randint(len(vectors), (int(dead.sum()),))]\n"
            "    return codebook, sums, sizes, unused",
            "in place",
        ),
        (
            "def restart_dead_codes(codebook, sums, sizes, unused, vectors, limit=20):\n"
            "    dead = unused > limit\n"
            "    new = vectors[torch.randint(len(vectors), (len(codebook),))]\n"
            "    codebook = torch.where(dead[:, None], new, codebook)\n"
            "    sums = torch.where(dead[:, None], new, sums)\n"
            "    sizes = torch.where(dead, 1.0, sizes)\n"
            "    return codebook, sums, sizes, torch.where(dead, 0, unused)",
            "exactly `limit`",
        ),
    ],
    "start_from_k_means": [
        (
            "def start_from_k_means(vectors, num_embeddings):\n"
            "    codebook = vqlib.quantizer.k_means(vectors[None], num_embeddings)[0]\n"
            "    codes = vqlib.quantizer.nearest_codes(vectors[None], codebook[None])[0]\n"
            "    sizes = codes.bincount(minlength=num_embeddings).float()\n"
            "    return codebook, 1 * codebook, sizes",
            "near 0",
        ),
        (  # the other repair of sizes alone that looks right
            "def start_from_k_means(vectors, num_embeddings):\n"
            "    codebook = vqlib.quantizer.k_means(vectors[None], num_embeddings)[0]\n"
            "    return codebook, codebook.clone(), torch.zeros(num_embeddings)",
            "divides by almost nothing",
        ),
        (
            "def start_from_k_means(vectors, num_embeddings):\n"
            "    codebook = vqlib.quantizer.k_means(vectors[None], num_embeddings)[0]\n"
            "    codes = vqlib.quantizer.nearest_codes(vectors[None], codebook[None])[0]\n"
            "    sizes = codes.bincount(minlength=num_embeddings).float()\n"
            "    return codebook, codebook * len(vectors), sizes",
            "sums / sizes is the codebook vector",
        ),
        (
            "def start_from_k_means(vectors, num_embeddings):\n"
            "    codebook = vqlib.quantizer.k_means(vectors[None], num_embeddings)[0]\n"
            "    codes = vqlib.quantizer.nearest_codes(vectors[None], codebook[None])[0]\n"
            "    sizes = codes.bincount(minlength=num_embeddings).float()\n"
            "    return codebook, codebook * sizes, sizes",
            "RuntimeError",
        ),
    ],
    "to_vectors": [
        (
            "def to_vectors(z, embedding_dim):\n    return z.contiguous().view(-1, embedding_dim)",
            "several positions of one channel",
        ),
        (
            "def to_vectors(z, embedding_dim):\n"
            "    return z.permute(0, 3, 2, 1).reshape(-1, embedding_dim)",
            "rows and columns",
        ),
        (
            "def to_vectors(z, embedding_dim):\n"
            "    parts = z.unflatten(1, (-1, embedding_dim))\n"
            "    return parts.permute(0, 1, 3, 4, 2).reshape(-1, embedding_dim)",
            "(B, H, W, slots)",
        ),
        (
            "def to_vectors(z, embedding_dim):\n"
            "    parts = z.unflatten(1, (embedding_dim, -1))\n"
            "    return parts.permute(0, 3, 4, 2, 1).reshape(-1, embedding_dim)",
            "every slots-th channel",
        ),
    ],
}
