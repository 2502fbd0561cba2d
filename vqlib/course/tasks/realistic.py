"""Tasks of notebook 08: perception and distortion, flow matching, residuals, invented detail."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exercises import NotAttempted, Wrong, add_quiz, expect, task


def _tensor(result: object, shape: tuple[int, ...], case: str) -> Tensor:
    """The float tensor that an answer returned; raises `Wrong` or `NotAttempted`."""
    if result is None or result is Ellipsis:
        raise NotAttempted
    if not isinstance(result, Tensor):
        raise Wrong(f"For {case}: a tensor was expected, not {type(result).__name__}.")
    if result.shape != shape:
        raise Wrong(f"For {case}: the shape should be {shape}, not {tuple(result.shape)}.")
    return result


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)


@task(
    "08",
    given='''
    def relative_errors(x, mean, sample, alphas):
        """Squared error of several compromises between a mean and a sample, relative to the mean's.

        x, mean, sample: float (n, D), the truth, the posterior mean, and a sample of the posterior.
        alphas: float (k,). The compromise keeps the share alpha of the sample's difference from the
        mean. Returns float (k,): squared error over all n * D values, divided by that of `mean`.
        """
        ...
    ''',
    solution='''
    def relative_errors(x, mean, sample, alphas):
        """Squared error of several compromises between a mean and a sample, relative to the mean's.

        x, mean, sample: float (n, D), the truth, the posterior mean, and a sample of the posterior.
        alphas: float (k,). The compromise keeps the share alpha of the sample's difference from the
        mean. Returns float (k,): squared error over all n * D values, divided by that of `mean`.
        """
        compromise = mean + alphas[:, None, None] * (sample - mean)  # (k, n, D)
        return (compromise - x).square().mean((1, 2)) / (mean - x).square().mean()
    ''',
    hints=(
        "Which alpha gives the mean itself, and which the sample? Write the compromise for one "
        "alpha first.",
        "mean + alpha * (sample - mean). For all alphas at once, alphas[:, None, None] has the "
        "shape (k, 1, 1).",
        "Divide one mean over all n * D values by another. A mean of n quotients is something "
        "else: it depends most on the few rows where the mean happens to be close to the truth.",
    ),
)
def relative_errors(answer):
    for n, d in ((60, 2), (40, 3)):
        x, mean, sample = (torch.randn(n, d) for _ in range(3))
        mean, sample = 0.5 * mean, 0.8 * sample + 0.3
        alphas = torch.cat([torch.zeros(1), torch.rand(3).sort().values, torch.ones(1)])
        case = f"{n} rows of {d} values and 5 alphas from 0 to 1"
        result = _tensor(answer(x, mean, sample, alphas), (5,), case)
        a = alphas[:, None, None]
        error = (mean + a * (sample - mean) - x).square()
        base = (mean - x).square()
        expected = error.mean((1, 2)) / base.mean()
        toward_truth = (x + a * (sample - x) - x).square().mean((1, 2)) / base.mean()
        reverse = (sample + a * (mean - sample) - x).square().mean((1, 2)) / base.mean()
        mistakes = {
            "alpha = 0 gives the sample and alpha = 1 the mean. It is the share of the *sample's* "
            "detail": reverse,
            "the quotient is computed for each row or value, and then averaged. Divide the mean "
            "error of all rows by that of the mean": (error.mean(2) / base.mean(1)).mean(1),
            "the quotient is computed for each value, and then averaged. Divide the mean "
            "error of all values by that of the mean": (error / base).mean((1, 2)),
            "the square root is taken. The *squared* error was asked for": expected.sqrt(),
            "the squared error is not divided by that of the mean": error.mean((1, 2)),
            "the truth takes the place of the mean. A decoder does not know it": toward_truth,
            "sample - mean is added to the sample. Start from the mean": (
                sample + a * (sample - mean) - x
            )
            .square()
            .mean((1, 2))
            / base.mean(),
        }
        if not _same(result, expected):
            for mistake, wrong in mistakes.items():
                if _same(result, wrong):
                    raise Wrong(f"For {case}: it looks as if {mistake}.")
        idea = "The compromise is mean + alpha * (sample - mean)."
        expect(result, expected, case, idea)


@task(
    "08",
    given='''
    def flow_pair(data, noise, t):
        """A point on the line from noise to data, and the velocity along this line.

        data, noise: float (B, ...), of the same shape and with any number of axes.
        t: float (B,), one time for each element of the batch: 0 at the noise, 1 at the data.
        Returns x_t and the velocity, both with the shape of `data`.
        """
        ...
    ''',
    solution='''
    def flow_pair(data, noise, t):
        """A point on the line from noise to data, and the velocity along this line.

        data, noise: float (B, ...), of the same shape and with any number of axes.
        t: float (B,), one time for each element of the batch: 0 at the noise, 1 at the data.
        Returns x_t and the velocity, both with the shape of `data`.
        """
        t = t.view(-1, *[1] * (data.ndim - 1))  # (B, 1, ..., 1)
        return (1 - t) * noise + t * data, data - noise
    ''',
    hints=(
        "The velocity is the derivative of x_t with respect to t. Does it depend on t?",
        "A tensor of shape (B,) is broadcast along the *last* axis. Give t as many axes as the "
        "data have: t.view(-1, 1) for two axes, t.view(-1, 1, 1, 1) for images.",
        "t.view(-1, *[1] * (data.ndim - 1)) works for any number of axes.",
    ),
)
def flow_pair(answer):
    for shape in ((5, 3), (4, 2, 3, 3), (6, 1), (4, 2, 3, 4), (3, 3)):
        data, noise, t = torch.randn(shape), torch.randn(shape), torch.rand(shape[0])
        case = f"data of shape {shape} and t of shape ({shape[0]},)"
        try:
            result = answer(data, noise, t)
        except RuntimeError as error:
            if "size of tensor" not in str(error):
                raise
            raise Wrong(
                f"For {case}: {error}. A tensor of shape (B,) is broadcast along the last axis."
            ) from error
        if result is None or result is Ellipsis:
            raise NotAttempted
        if not isinstance(result, tuple) or len(result) != 2:
            raise Wrong("Two tensors were expected: x_t and the velocity.")
        at, velocity = (_tensor(each, shape, case) for each in result)
        time = t.view(-1, *[1] * (len(shape) - 1))
        expected = (1 - time) * noise + time * data
        mistakes = {
            "noise and data are exchanged: x_t is the noise at t = 0": (
                time * noise + (1 - time) * data
            ),
            "t is broadcast along the last axis, so that one element of the batch is at several "
            "times (no error is raised where this axis happens to have the length B)": (
                (1 - t) * noise + t * data
                if shape[-1] == shape[0]
                else torch.full(shape, torch.nan)
            ),
            "noise is added to the data without being weighted by 1 - t": noise + time * data,
            "the weights are the square roots of t and 1 - t (a diffusion model with constant "
            "variance). Here the path is a straight line": (
                (1 - time).sqrt() * noise + time.sqrt() * data
            ),
        }
        if not _same(at, expected):
            for mistake, wrong in mistakes.items():
                if _same(at, wrong):
                    raise Wrong(f"For {case}, x_t: it looks as if {mistake}.")
        expect(at, expected, f"{case}, x_t", "x_t = (1 - t) * noise + t * data.")
        of_velocity = {
            "it points from the data to the noise": noise - data,
            "it is the way that is left, data - x_t. Divided by the time that is left, 1 - t, it "
            "would be right": data - expected,
            "it is multiplied by t. Along a straight line the velocity is constant": (
                time * (data - noise)
            ),
            "it is the data. That is another target, which some diffusion models use": data,
        }
        if not _same(velocity, data - noise):
            for mistake, wrong in of_velocity.items():
                if _same(velocity, wrong):
                    raise Wrong(f"For {case}, velocity: it looks as if {mistake}.")
        expect(velocity, data - noise, f"{case}, velocity", "The derivative of x_t.")


def _curved(x: Tensor, t: Tensor) -> Tensor:
    """A velocity that depends on point and time."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    return torch.sin(2 * x) * (1 + 2 * t) + 3 * t.square() - x


def _counted(calls: list[float]):
    """`_curved`, which records the times at which it is called."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        if not isinstance(t, Tensor) or t.shape != (len(x),):
            shape = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise Wrong(f"`velocity` takes a time for each element, of shape ({len(x)},): {shape}.")
        calls.append(round(float(t[0]), 4))
        return _curved(x, t)

    return velocity


def _integrate(noise: Tensor, times: list[float], step: float) -> Tensor:
    x = noise.clone()
    for t in times:
        x = x + step * _curved(x, torch.full((len(x),), t))
    return x


@task(
    "08",
    given='''
    def euler(velocity, noise, steps):
        """Integrate dx/dt = velocity(x, t) from the noise at t = 0 to t = 1, in equal steps.

        noise: float (B, ...). velocity: takes x (B, ...) and t (B,), returns the shape of x.
        """
        x = noise
        for t in torch.linspace(0, 1, steps):
            x += velocity(x, t.expand(len(x))) / steps
        return x
    ''',
    solution='''
    def euler(velocity, noise, steps):
        """Integrate dx/dt = velocity(x, t) from the noise at t = 0 to t = 1, in equal steps.

        noise: float (B, ...). velocity: takes x (B, ...) and t (B,), returns the shape of x.
        """
        x = noise
        for t in torch.arange(steps) / steps:
            x = x + velocity(x, t.expand(len(x))) / steps
        return x
    ''',
    hints=(
        "Call the function twice with the same noise. Is the result the same? What is the "
        "difference between `x += v` and `x = x + v` for a tensor?",
        "Print torch.linspace(0, 1, 4). Four steps from 0 to 1 have the length 1/4. At which times "
        "do they start?",
        "The steps start at 0, 1/4, 2/4 and 3/4: torch.arange(steps) / steps. No step starts at 1.",
    ),
    hides=("vqlib.beyond.realistic.RealisticDecoder.sample",),
)
def euler(answer):
    for shape, steps in (((5, 2), 4), ((3, 2, 2, 2), 3), ((4, 1), 1), ((4, 1), 7)):
        noise, calls = torch.randn(shape), []
        kept = noise.clone()
        case = f"noise of shape {shape} and {steps} step{'s' * (steps > 1)}"
        result = _tensor(answer(_counted(calls), noise, steps), shape, case)
        if not torch.equal(noise, kept):
            raise Wrong(
                f"For {case}: `noise` has changed. The caller's tensor is the start of the next "
                "experiment."
            )
        h = 1 / steps
        starts = [i * h for i in range(steps)]
        expected = _integrate(noise, starts, h)
        if _same(result, expected):
            continue
        bad_times = torch.linspace(0, 1, steps).tolist()
        mistakes = {
            "the velocity is evaluated at the end of each step (its time is the next one)": (
                _integrate(noise, [t + h for t in starts], h)
            ),
            f"the velocity is evaluated at the times {[round(t, 2) for t in bad_times]}. Steps of "
            f"length 1/{steps} start at other times": _integrate(noise, bad_times, h),
            "the steps have the length 1/(steps - 1), but there are `steps` of them": (
                _integrate(noise, bad_times, 1 / max(steps - 1, 1))
            ),
            "the velocity is not multiplied by the length of a step": _integrate(noise, starts, 1),
            "the integration runs backwards, from t = 1 to t = 0. The noise is at t = 0": (
                _integrate(noise, [1 - t for t in starts], -h)
            ),
        }
        for mistake, wrong in mistakes.items():
            if _same(result, wrong):
                raise Wrong(f"For {case}: it looks as if {mistake}.")
        idea = "Each step adds velocity(x, t) / steps, with t at the start of the step."
        expect(result, expected, case, idea)


def _two_step(
    noise: Tensor, steps: int, *, factor: float = 0.5, first: str = "heun", keep: str = "velocity"
) -> Tensor:
    """The multistep method, or a typical mistake."""
    x, h, previous = noise.clone(), 1 / steps, None
    for i in range(steps):
        now, later = (torch.full((len(x),), t) for t in (i * h, (i + 1) * h))
        velocity = _curved(x, now)
        slope = velocity
        if previous is not None:
            slope = velocity + factor * (velocity - previous)
        elif first == "heun":
            slope = (velocity + _curved(x + h * velocity, later)) / 2
        elif first == "same time":
            slope = (velocity + _curved(x + h * velocity, now)) / 2
        elif first == "same point":
            slope = (velocity + _curved(x, later)) / 2
        if keep == "velocity":
            previous = velocity
        elif keep == "slope":
            previous = slope
        elif previous is None:
            previous = velocity
        x = x + h * slope
    return x


@task(
    "08",
    given='''
    def multistep(velocity, noise, steps):
        """Integrate dx/dt = velocity(x, t) from the noise at t = 0 to t = 1, with second order.

        noise: float (B, ...). velocity: takes x (B, ...) and t (B,), returns the shape of x; it is
        called twice in the first step (Heun) and once in each of the others (Adams-Bashforth).
        """
        x, previous = noise, None
        for i in range(steps):
            v = velocity(x, torch.full((len(x),), i / steps))
            if previous is None:
                slope = ...
            else:
                slope = ...
            x, previous = x + slope / steps, v
        return x
    ''',
    solution='''
    def multistep(velocity, noise, steps):
        """Integrate dx/dt = velocity(x, t) from the noise at t = 0 to t = 1, with second order.

        noise: float (B, ...). velocity: takes x (B, ...) and t (B,), returns the shape of x; it is
        called twice in the first step (Heun) and once in each of the others (Adams-Bashforth).
        """
        x, previous = noise, None
        for i in range(steps):
            v = velocity(x, torch.full((len(x),), i / steps))
            if previous is None:
                end = velocity(x + v / steps, torch.full((len(x),), (i + 1) / steps))
                slope = (v + end) / 2
            else:
                slope = v + (v - previous) / 2
            x, previous = x + slope / steps, v
        return x
    ''',
    hints=(
        "There are two cases: in the first step `previous` is None.",
        "Later steps: from the previous point to this one the velocity has changed by v - previous "
        "in a whole step. By how much does it change until the middle of the next step?",
        "slope = v + (v - previous) / 2. In the first step: go to the end of the step with v, "
        "compute the velocity there at the time (i + 1) / steps, and use the mean of both.",
    ),
    hides=("vqlib.beyond.realistic.RealisticDecoder.sample",),
)
def multistep(answer):
    for shape, steps in (((5, 2), 4), ((3, 2, 2, 2), 6), ((4, 1), 1), ((4, 2), 2)):
        noise, calls = torch.randn(shape), []
        case = f"noise of shape {shape} and {steps} step{'s' * (steps > 1)}"
        result = _tensor(answer(_counted(calls), noise, steps), shape, case)
        expected = _two_step(noise, steps)
        if _same(result, expected) and len(calls) == steps + 1:
            continue
        if _same(result, expected):
            raise Wrong(
                f"For {case}: the result is right, but `velocity` is called {len(calls)} times "
                f"instead of {steps + 1}."
            )
        heun = noise.clone()
        for i in range(steps):
            now, later = (torch.full((len(noise),), (i + j) / steps) for j in (0, 1))
            v = _curved(heun, now)
            heun = heun + (v + _curved(heun + v / steps, later)) / 2 / steps
        mistakes = {
            "every step is a step of Heun's method, with two evaluations. Use `previous` instead "
            "of the second one": heun,
            "the first step is a step of Euler's method, which loses the second order": (
                _two_step(noise, steps, first="euler")
            ),
            "the velocity is extrapolated to the *end* of the step. Half of the change leads to "
            "its middle": _two_step(noise, steps, factor=1),
            "the mean of this and the previous velocity is used, which belongs to the middle of "
            "the *previous* step": _two_step(noise, steps, factor=-0.5),
            "in the first step both velocities are computed at the same time t": (
                _two_step(noise, steps, first="same time")
            ),
            "in the first step both velocities are computed at the same point x. The second one "
            "belongs to the point at which v arrives": _two_step(noise, steps, first="same point"),
            "`previous` is the slope of the previous step. It should be the velocity at the "
            "previous point": _two_step(noise, steps, keep="slope"),
            "`previous` is not updated": _two_step(noise, steps, keep="first"),
            "every step is a step of Euler's method": (
                _integrate(noise, [i / steps for i in range(steps)], 1 / steps)
            ),
        }
        found = [mistake for mistake, wrong in mistakes.items() if _same(result, wrong)]
        if len(found) == 1 or (found and steps > 2):
            raise Wrong(f"For {case}: it looks as if {found[0]}.")
        idea = "First step: mean of the velocities at its two ends. Later: v + (v - previous) / 2."
        expect(result, expected, case, idea)


@task(
    "08",
    given='''
    def principal_components(residuals):
        """Principal components of patches of 4x4 pixels, without subtracting a mean.

        residuals: float (B, 3, H, W). Returns the basis, (48, 48), one direction in each *row*, and
        the standard deviation along each direction, (48,).
        """
        patches = F.pixel_unshuffle(residuals, 4).reshape(-1, 48)  # one patch in each row
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        return directions, variances.clamp_min(0).sqrt()
    ''',
    solution='''
    def principal_components(residuals):
        """Principal components of patches of 4x4 pixels, without subtracting a mean.

        residuals: float (B, 3, H, W). Returns the basis, (48, 48), one direction in each *row*, and
        the standard deviation along each direction, (48,).
        """
        patches = F.pixel_unshuffle(residuals, 4).movedim(1, -1).reshape(-1, 48)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        return directions.T, variances.clamp_min(0).sqrt()
    ''',
    hints=(
        "Print the shape of F.pixel_unshuffle(residuals, 4). Which axis has the 48 values of one "
        "patch? Which values are next to each other in memory, and so in one row after reshape?",
        "Move the axis of the 48 values to the end before the reshape: .movedim(1, -1). Then read "
        "in the documentation of torch.linalg.eigh where the eigenvectors are.",
        "torch.linalg.eigh returns one eigenvector in each *column*. The rows were asked for: "
        "directions.T.",
    ),
)
def principal_components(answer):
    for size in ((3, 3, 32, 48), (2, 3, 64, 64)):
        smooth = F.interpolate(torch.randn(size[0], 1, size[2] // 4, size[3] // 4), size=size[2:])
        residuals = 0.5 * smooth + torch.randn(size) * torch.tensor([0.4, 0.2, 0.1])[:, None, None]
        residuals = residuals + 0.3 * F.avg_pool2d(torch.randn(size), 3, 1, 1)
        case = f"residuals of shape {size}"
        result = answer(residuals)
        if result is None or result is Ellipsis:
            raise NotAttempted
        if not isinstance(result, tuple) or len(result) != 2:
            raise Wrong("Two tensors were expected: the basis and the standard deviations.")
        basis = _tensor(result[0], (48, 48), f"{case}, basis").double()
        std = _tensor(result[1], (48,), f"{case}, standard deviations").double()
        wrong_rows = F.pixel_unshuffle(residuals, 4).reshape(-1, 48).double()
        patches = F.pixel_unshuffle(residuals, 4).movedim(1, -1).reshape(-1, 48).double()

        def covariance(rows: Tensor) -> Tensor:
            return rows.T @ rows / len(rows)

        if not torch.allclose(basis @ basis.T, torch.eye(48, dtype=torch.float64), atol=1e-3):
            raise Wrong(
                f"For {case}: the directions should be orthonormal: basis @ basis.T is the "
                "identity. The standard deviations are returned separately."
            )

        def diagonal(rows: Tensor, directions: Tensor) -> Tensor | None:
            """The variances along the directions, if these components are uncorrelated."""
            projected = directions @ covariance(rows) @ directions.T
            off = projected - projected.diag().diag()
            return projected.diag() if off.abs().max() < 1e-3 * projected.diag().max() else None

        variances = diagonal(patches, basis)
        if variances is None:
            if diagonal(wrong_rows, basis) is not None or diagonal(wrong_rows, basis.T) is not None:
                raise Wrong(
                    f"For {case}: the rows that are analyzed are not patches. "
                    "F.pixel_unshuffle returns (B, 48, H/4, W/4), and a row of the reshaped tensor "
                    "has the same pixel of 48 neighboring patches."
                )
            if diagonal(patches, basis.T) is not None:
                raise Wrong(
                    f"For {case}: the directions are in the columns of the basis, and its rows "
                    "were asked for."
                )
            raise Wrong(
                f"For {case}: the components of patches along the rows of the basis are "
                "correlated. Principal components are uncorrelated."
            )
        if torch.allclose(std, variances, rtol=1e-2):
            raise Wrong(f"For {case}: variances are returned. Their square roots were asked for.")
        if torch.allclose(std, variances.sqrt().flip(0), rtol=1e-2):
            raise Wrong(f"For {case}: basis and standard deviations are in opposite orders.")
        if torch.allclose(std, (variances * len(patches)).sqrt(), rtol=1e-2):
            raise Wrong(f"For {case}: divide by the number of patches.")
        idea = "std[i] belongs to the direction basis[i]."
        expect(std, variances.sqrt(), f"{case}, standard deviations", idea, rtol=1e-2, atol=1e-4)


@task(
    "08",
    given='''
    def sample_rms(train_roughness, train_rms, roughness, noise):
        """Sample the rms of residuals from a log-normal distribution that depends on the roughness.

        train_roughness, train_rms: float (n,), of training images. roughness: float (m,), of the
        new images. noise: float (m,), standard normal. Returns float (m,).
        """
        ...
    ''',
    solution='''
    def sample_rms(train_roughness, train_rms, roughness, noise):
        """Sample the rms of residuals from a log-normal distribution that depends on the roughness.

        train_roughness, train_rms: float (n,), of training images. roughness: float (m,), of the
        new images. noise: float (m,), standard normal. Returns float (m,).
        """
        x, y = train_roughness.log(), train_rms.log()
        b = ((x - x.mean()) * (y - y.mean())).mean() / (x - x.mean()).square().mean()
        a = y.mean() - b * x.mean()
        std = (y - a - b * x).std()  # of what the roughness does not explain
        return (a + b * roughness.log() + std * noise).exp()
    ''',
    hints=(
        "Fit a straight line to the *logarithms*: log rms = a + b * log roughness + error.",
        "b is the covariance of the two logarithms divided by the variance of log roughness, and a "
        "follows from the means. What is the standard deviation of the error?",
        "Around the line, log rms varies less than around its mean. Use the standard deviation of "
        "y - a - b * x, and exp at the end.",
    ),
    hides=("vqlib.beyond.realistic.RealisticDecoder.sample_rms",),
)
def sample_rms(answer):
    for _ in range(2):
        n, m = 400, 30
        slope, error = float(0.5 + 0.4 * torch.rand(())), float(0.15 + 0.1 * torch.rand(()))
        log_roughness = -5 + 0.5 * torch.randn(n)
        log_rms = -0.3 + slope * log_roughness + error * torch.randn(n)
        roughness, noise = (-5 + 0.5 * torch.randn(m)).exp(), torch.randn(m)
        noise[0], noise[1] = 2.0, -2.0
        case = f"{n} training images and {m} new ones"
        arguments = (log_roughness.exp(), log_rms.exp(), roughness, noise)
        result = _tensor(answer(*arguments), (m,), case)

        def line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            b = ((x - x.mean()) * (y - y.mean())).mean() / (x - x.mean()).square().mean()
            a = y.mean() - b * x.mean()
            return a, b, (y - a - b * x).std()

        a, b, std = line(log_roughness, log_rms)
        mean = a + b * roughness.log()
        expected = (mean + std * noise).exp()
        plain = line(log_roughness.exp(), log_rms.exp())
        reverse = line(log_rms, log_roughness)
        mistakes = {
            "the noise is scaled by the standard deviation of log rms. The roughness explains a "
            "part of it: use that of the error": (mean + log_rms.std() * noise).exp(),
            "no noise is added. All images with the same roughness would have the same "
            "rms": mean.exp(),
            "the logarithm of the rms is returned": mean + std * noise,
            "the line is fitted to the values, not to their logarithms. This distribution is "
            "symmetric and can be negative": plain[0] + plain[1] * roughness + plain[2] * noise,
            "the roughness of the new images is used without its logarithm": (
                a + b * roughness + std * noise
            ).exp(),
            "the noise is not scaled by the standard deviation of the error": (mean + noise).exp(),
            "the noise is scaled by the variance instead of the standard deviation": (
                mean + std.square() * noise
            ).exp(),
            "the roughness is not used: mean and standard deviation of log rms": (
                log_rms.mean() + log_rms.std() * noise
            ).exp(),
            "the roughness is predicted from the rms: exchange x and y": (
                reverse[0] + reverse[1] * roughness.log() + reverse[2] * noise
            ).exp(),
        }
        if not torch.allclose(result, expected, rtol=0.01):
            for mistake, wrong in mistakes.items():
                if torch.allclose(result, wrong, rtol=0.01):
                    raise Wrong(f"For {case}: it looks as if {mistake}.")
        idea = (
            "exp(a + b * log roughness + std * noise), with a, b and std from the training images."
        )
        expect(result, expected, case, idea, rtol=0.01)


@task(
    "08",
    given='''
    def invented_map(add_detail, decoded, count):
        """Where the detail is invented: how much each pixel differs between samples.

        add_detail: takes decoded images (1, 3, H, W) and a generator, returns a sample of the same
        shape. Returns float (H, W): standard deviation over `count` samples, mean over the colors.
        """
        samples = []
        for _ in range(count):
            generator = torch.Generator().manual_seed(0)
            samples.append(add_detail(decoded, generator)[0])
        return torch.stack(samples).std((0, 1))
    ''',
    solution='''
    def invented_map(add_detail, decoded, count):
        """Where the detail is invented: how much each pixel differs between samples.

        add_detail: takes decoded images (1, 3, H, W) and a generator, returns a sample of the same
        shape. Returns float (H, W): standard deviation over `count` samples, mean over the colors.
        """
        samples = []
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            samples.append(add_detail(decoded, generator)[0])
        return torch.stack(samples).std(0).mean(0)
    ''',
    hints=(
        "Are the samples different? Compare samples[0] with samples[1].",
        "A generator with the same seed produces the same noise. Create it once, before the loop.",
        "torch.stack(samples) has the shape (count, 3, H, W). Which of these axes counts the "
        "samples? .std((0, 1)) also measures how much red, green and blue differ in a pixel.",
    ),
    hides=("vqlib.beyond.realistic.RealisticDecoder.sample",),
)
def invented_map(answer):
    height, width = 6, 5
    for count in (4, 7):
        made = torch.rand(count, 3, height, width)
        states, decoded = [], torch.rand(1, 3, height, width)

        def add_detail(images, generator, made=made, states=states, decoded=decoded):
            if not isinstance(generator, torch.Generator):
                raise Wrong("`add_detail` takes a torch.Generator as its second argument.")
            if images.shape != decoded.shape:
                raise Wrong(f"`add_detail` takes images of shape {tuple(decoded.shape)}.")
            states.append(bytes(generator.get_state().numpy()))
            torch.randn(3, generator=generator)
            return made[[(len(states) - 1) % len(made)]]

        result = answer(add_detail, decoded, count)
        if result is None or result is Ellipsis:
            raise NotAttempted
        case = f"{count} samples of shape (1, 3, {height}, {width})"
        if len(states) != count:
            raise Wrong(f"For {case}: `add_detail` should be called {count} times.")
        if len(set(states)) < count:
            raise Wrong(
                f"For {case}: two samples start from the same noise, because the generator had the "
                "same state. They are equal."
            )
        if isinstance(result, Tensor) and result.shape == (3, height, width):
            raise Wrong(f"For {case}: the mean over the colors is missing.")
        result = _tensor(result, (height, width), case)
        expected = made.std(0).mean(0)
        mistakes = {
            "the standard deviation is taken over samples and colors together. It is then large "
            "wherever a pixel is not gray, such as on skin": made.std((0, 1)),
            "the standard deviation is taken over the colors": made.std(1).mean(0),
            "the colors are averaged before the standard deviation is taken. Detail in color "
            "then cancels": made.mean(1).std(0),
            "the variance is returned": made.var(0).mean(0),
            "the difference from the decoded image is returned. It is the same for any sampler "
            "that always adds the same detail": (made - decoded).abs().mean((0, 1)),
        }
        if not _same(result, expected):
            for mistake, wrong in mistakes.items():
                if _same(result, wrong):
                    raise Wrong(f"For {case}: it looks as if {mistake}.")
        expect(result, expected, case, "Standard deviation over samples, then mean over colors.")


add_quiz(
    "08.1",
    "Which of the two images of each lesion has the higher PSNR to its photograph?",
    {
        "the sharp one": "No. It looks more like a photograph, but not like *this* photograph: its "
        "fine detail is at other positions.",
        "the smooth one": "Right. Detail at the wrong position costs more than no detail. Section "
        "2 shows why.",
        "they are about equal": "No, the difference is one of the clearest of this workbook.",
    },
)

add_quiz(
    "08.2",
    "A perfect sampler returns another photograph with the same codes, chosen at random. How large "
    "is its squared error, compared with that of the mean?",
    {
        "smaller: it is a real photograph": "No. No guess has a smaller squared error than the "
        "mean.",
        "1.4 times": "No, but the square root of the right answer.",
        "2 times": "Right, exactly, whatever the distribution is. In decibels: 3 dB.",
        "it depends on the distribution": "Surprisingly it does not: the quotient is the same for "
        "every distribution with a finite variance.",
    },
)

add_quiz(
    "08.3",
    "The trained network takes one Euler step from t = 0 to t = 1. Where do the points arrive?",
    {
        "on one of the branches": "No. At t = 0 the point is only noise, and the network cannot "
        "know yet to which branch it will belong.",
        "between the branches, on the mean": "Right. At t = 0 the velocity is the mean of (data - "
        "noise) over all data, so that one step leads to the mean. One step is the faithful "
        "decoder again.",
        "at random places": "No. The noise cancels, see the text below.",
    },
)

add_quiz(
    "08.4",
    "Noise of 196,608 standard normal numbers is as large as an image. How much does its energy "
    "(the mean square) differ between two samples of the noise?",
    {
        "by a factor of several, like that of the residuals": "No. The energy is a mean over "
        "196,608 independent numbers.",
        "by about 10 %": "No. The standard deviation of a mean falls with the square root of the "
        "number of values.",
        "by less than 1 %": "Right: the standard deviation is the square root of 2 / 196,608, that "
        "is 0.3 %. All samples of the noise are equally strong.",
    },
)

add_quiz(
    "08.5",
    "At one place of the map all samples agree, so that it is dark there. Is the detail at this "
    "place true?",
    {
        "yes, the decoder is certain": "No. It only shows what this network would sample again. A "
        "hair that the codes do not contain is missing in all samples.",
        "not necessarily": "Right. The map shows disagreement between samples. An error that all "
        "samples share does not appear in it, such as a structure that the encoder lost.",
        "no, dark means invented": "No, invented detail differs between the samples and is bright.",
    },
)
