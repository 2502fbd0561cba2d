"""Wrong answers to the tasks of notebook 08: task -> (source, words of the reply)."""

ERRORS = "def relative_errors(x, mean, sample, alphas):\n    a = alphas[:, None, None]\n"
PAIR = "def flow_pair(data, noise, t):\n"
VIEW = "    t = t.view(-1, *[1] * (data.ndim - 1))\n"
RIGHT = "(1 - t) * noise + t * data"
COMPONENTS = (
    "def principal_components(residuals):\n"
    "    patches = F.pixel_unshuffle(residuals, 4).movedim(1, -1).reshape(-1, 48)\n"
    "    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))\n"
    "    std = variances.clamp_min(0).sqrt()\n"
)
RMS = (
    "def sample_rms(train_roughness, train_rms, roughness, noise):\n"
    "    x, y = train_roughness.log(), train_rms.log()\n"
    "    b = ((x - x.mean()) * (y - y.mean())).mean() / (x - x.mean()).square().mean()\n"
    "    a = y.mean() - b * x.mean()\n"
    "    std = (y - a - b * x).std()\n"
)


def compromise(made, result="error.mean((1, 2)) / (mean - x).square().mean()"):
    return ERRORS + f"    error = ({made} - x).square()\n    return {result}"


def integrate(times="torch.arange(steps) / steps", step="x = x + v / steps", start="noise"):
    return (
        "def euler(velocity, noise, steps):\n"
        f"    x = {start}\n    for t in {times}:\n"
        "        v = velocity(x, t.expand(len(x)))\n"
        f"        {step}\n    return x"
    )


def two_steps(
    later="v + (v - previous) / 2",
    point="x + v / steps",
    time="i + 1",
    first="(v + end) / 2",
    kept="v",
    always=False,
):
    return (
        "def multistep(velocity, noise, steps):\n    x, previous = noise, None\n"
        "    for i in range(steps):\n"
        "        v = velocity(x, torch.full((len(x),), i / steps))\n"
        f"        if previous is None{' or True' * always}:\n"
        f"            end = velocity({point}, torch.full((len(x),), ({time}) / steps))\n"
        f"            slope = {first}\n"
        f"        else:\n            slope = {later}\n"
        f"        x, previous = x + slope / steps, {kept}\n    return x"
    )


def invented(
    result="torch.stack(samples).std(0).mean(0)",
    before="    generator = torch.Generator().manual_seed(0)\n",
    inside="",
):
    return (
        "def invented_map(add_detail, decoded, count):\n    samples = []\n"
        f"{before}    for i in range(count):\n{inside}"
        f"        samples.append(add_detail(decoded, generator)[0])\n    return {result}"
    )


AGAIN = "        generator = torch.Generator().manual_seed(0)\n"
SLOPE = "a + b * roughness.log()"

WRONG = {
    "relative_errors": [
        (compromise("sample + a * (mean - sample)"), "share of the *sample's*"),
        (
            compromise(
                "mean + a * (sample - mean)",
                "(error.mean(2) / (mean - x).square().mean(1)).mean(1)",
            ),
            "for each row",
        ),
        (
            compromise("mean + a * (sample - mean)", "(error / (mean - x).square()).mean((1, 2))"),
            "for each value",
        ),
        (
            compromise(
                "mean + a * (sample - mean)",
                "(error.mean((1, 2)) / (mean - x).square().mean()).sqrt()",
            ),
            "square root is taken",
        ),
        (
            compromise("mean + a * (sample - mean)", "error.mean((1, 2))"),
            "not divided by that of the mean",
        ),
        (compromise("x + a * (sample - x)"), "does not know it"),
        (compromise("sample + a * (sample - mean)"), "Start from the mean"),
    ],
    "flow_pair": [
        (PAIR + f"    return {RIGHT}, data - noise", "along the last axis"),
        (PAIR + VIEW + "    return t * noise + (1 - t) * data, data - noise", "exchanged"),
        (PAIR + VIEW + "    return noise + t * data, data - noise", "weighted by 1 - t"),
        (
            PAIR + VIEW + "    return (1 - t).sqrt() * noise + t.sqrt() * data, data - noise",
            "square roots of t",
        ),
        (PAIR + VIEW + f"    return {RIGHT}, noise - data", "from the data to the noise"),
        (PAIR + VIEW + f"    x = {RIGHT}\n    return x, data - x", "way that is left"),
        (PAIR + VIEW + f"    return {RIGHT}, t * (data - noise)", "multiplied by t"),
        (PAIR + VIEW + f"    return {RIGHT}, data", "another target"),
        (PAIR + VIEW + f"    return {RIGHT}", "Two tensors"),
    ],
    "euler": [
        (integrate(step="x += v / steps"), "in place"),
        (integrate("torch.linspace(0, 1, steps)"), "start at other times"),
        (integrate("torch.arange(1, steps + 1) / steps"), "end of each step"),
        (integrate(step="x = x + v"), "length of a step"),
        (
            integrate("torch.linspace(0, 1, steps)", "x = x + v / max(steps - 1, 1)"),
            "1/(steps - 1)",
        ),
        (integrate("1 - torch.arange(steps) / steps", "x = x - v / steps"), "backwards"),
    ],
    "multistep": [
        (two_steps("v + (v - previous)"), "*end* of the step"),
        (two_steps("(v + previous) / 2"), "the *previous* step"),
        (two_steps(first="v"), "step of Euler's method, which loses"),
        (two_steps(time="i"), "same time t"),
        (two_steps(point="x"), "same point x"),
        (two_steps(kept="slope"), "slope of the previous step"),
        (two_steps(kept="v if previous is None else previous"), "not updated"),
        (two_steps(always=True), "every step is a step of Heun's"),
        (two_steps("v", first="v"), "every step is a step of Euler's"),
    ],
    "principal_components": [
        (
            COMPONENTS.replace(".movedim(1, -1)", "") + "    return directions.T, std",
            "not patches",
        ),
        (COMPONENTS + "    return directions, std", "in the columns"),
        (COMPONENTS + "    return directions.T, variances", "square roots were asked for"),
        (COMPONENTS + "    return directions.T.flip(0), std", "opposite orders"),
        (
            COMPONENTS.replace(" / len(patches)", "") + "    return directions.T, std",
            "number of patches",
        ),
        (
            COMPONENTS + "    return directions.T * std[:, None], std",
            "orthonormal",
        ),
        (COMPONENTS + "    return torch.eye(48), std", "correlated"),
    ],
    "sample_rms": [
        (RMS + f"    return ({SLOPE} + y.std() * noise).exp()", "explains a part"),
        (RMS + f"    return ({SLOPE}).exp()", "no noise is added"),
        (RMS + f"    return {SLOPE} + std * noise", "logarithm of the rms is returned"),
        (
            RMS.replace(".log()", "") + "    return a + b * roughness + std * noise",
            "not to their logarithms",
        ),
        (RMS + "    return (a + b * roughness + std * noise).exp()", "without its logarithm"),
        (RMS + f"    return ({SLOPE} + noise).exp()", "not scaled"),
        (RMS + f"    return ({SLOPE} + std**2 * noise).exp()", "variance instead of"),
        (RMS + "    return (y.mean() + y.std() * noise).exp()", "roughness is not used"),
    ],
    "invented_map": [
        (invented(before="", inside=AGAIN), "same noise"),
        (invented("torch.stack(samples).std((0, 1))"), "samples and colors together"),
        (invented("torch.stack(samples).std(1).mean(0)"), "over the colors"),
        (invented("torch.stack(samples).mean(1).std(0)"), "before the standard deviation"),
        (invented("torch.stack(samples).var(0).mean(0)"), "variance is returned"),
        (invented("torch.stack(samples).std(0)"), "mean over the colors is missing"),
        (
            invented("(torch.stack(samples) - decoded).abs().mean((0, 1))"),
            "difference from the decoded",
        ),
    ],
}
