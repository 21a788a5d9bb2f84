"""Linear self-attention learns regression in context: gradient flow and SGD against the closed forms.

One linear self-attention layer with all its parameters is trained on prompts (x_1, y_1, ..., x_N, y_N, x_q) whose task
changes from prompt to prompt. Theory (Zhang, Frei, Bartlett, 2024, arXiv 2306.09927) says where it ends, how long it takes,
and how it predicts from prompts of another length. Three settings train side by side, each over many seeds:

    isotropic     identity covariance: the whole time course has a closed form
    anisotropic   the covariance of the flags, randomly rotated
    noisy         the same with label noise, which the theorem does not have
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from attnjax.dynamics import linear_attention, linear_attention_theory as theory
from attnjax.tasks import geometric_spectrum, random_rotation, rotated
from experiments import _gradient_flow as gradient_flow, _plotting
from experiments._claim import Claim
from experiments._context import Context, UsageError
from experiments._sgd_ensemble import Ensemble, Trained, flow_time, train
from experiments._statistics import Estimate, mean_over_seeds

PAPER = "Zhang, Frei, Bartlett, 2024, Trained Transformers Learn Linear Models In-Context, JMLR 25(49), arXiv 2306.09927"
SETTINGS = ("isotropic", "anisotropic", "noisy")
ISOTROPIC, ANISOTROPIC, NOISY = range(3)
EXCESS = 0.005  # SGD covers the flow time after which the risk is within this fraction of the least


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the claims hold at others than the defaults too."""

    dimension: int = 5
    """Dimension of the inputs, D."""
    length: int = 20
    """Labeled examples in a training prompt, N."""
    condition_number: float = 4.0
    """Largest over smallest eigenvalue of the anisotropic covariance, whose spectrum is geometric with mean one."""
    spectrum: tuple[float, ...] | None = None
    """Eigenvalues of the anisotropic covariance, D of them; replaces the geometric spectrum."""
    noise: float = 1.0
    """Standard deviation of the label noise in the noisy setting."""
    init_scale: float = 0.15
    """Norm of each of the two blocks at the start."""
    theta: Literal["random", "identity"] = "random"
    """Shape of the start in the rotated settings; a random one does not commute with the covariance."""
    learning_rate: float | None = None
    """Of SGD's first step; it falls linearly to zero. Default: what covers the flow time to within 0.5% of the least risk."""
    steps: int | None = None
    """Steps of SGD, rounded up to a multiple of `checkpoints`. Default: what keeps to `stiffness`."""
    stiffness: float = 0.1
    """First learning rate times the largest curvature, for the default number of steps; small is close to the flow."""
    batch: int = 256
    """Fresh prompts per step and seed."""
    seeds: int = 16
    """Independent SGD runs of each setting; at least 2, and all of them in one vmap."""
    test_lengths: tuple[int, ...] = (5, 10, 40, 100)
    """Prompt lengths at which the trained layer is tested, besides its own."""
    checkpoints: int = 24
    """Points in time at which the test risk is measured."""
    test_prompts: int = 65536
    """Fresh prompts per seed and final risk, rounded up to a multiple of 1024; the curve over time uses an eighth."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in under a minute on two cores."""
        return cls(condition_number=2.0, stiffness=0.07, batch=128, seeds=8, checkpoints=12, test_prompts=32768, test_lengths=(5, 40))

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {"dimension": 1, "length": 1, "seeds": 2, "batch": 1, "checkpoints": 2, "test_prompts": 1, "steps": 1}
        for name, bound in least.items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(self, name)}.")
        for name in ("init_scale", "learning_rate", "stiffness", "noise"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        if not 1 <= self.condition_number < math.inf:
            raise UsageError(f"--condition-number must be at least 1 (the identity), got {self.condition_number}.")
        if not self.test_lengths or min(self.test_lengths) < 1:
            raise UsageError(f"--test-lengths must be one or more positive lengths, got {self.test_lengths}.")
        if self.spectrum is not None and (len(self.spectrum) != self.dimension or not min(self.spectrum) > 0):
            raise UsageError(f"--spectrum must be {self.dimension} (--dimension) positive numbers, got {self.spectrum}.")


class Setting(NamedTuple):
    """One setting and its theory, in float64; curves are over `times`.

    Attributes:
        task: Distribution of the training prompts.
        theta: Shape of the start.
        limit: Gradient flow once nothing moves.
        drift: Largest change of the conserved w^2 - |u|_F^2 along the whole flow.
        times: Flow time, from 0 to where SGD ends `[T]`.
        risks: Risk along gradient flow, on the training distribution.
        products: tr(w u) / D along gradient flow.
        product: w u of gradient flow where SGD ends `[D, D]`.
    """

    task: theory.Task
    theta: np.ndarray
    limit: theory.Blocks
    drift: float
    times: np.ndarray
    risks: np.ndarray
    products: np.ndarray
    product: np.ndarray


class Result(NamedTuple):
    """Everything that the claims and figures are made of; `settings` and the first axis in `sgd` are as in `SETTINGS`."""

    config: Config
    settings: tuple[Setting, ...]
    sgd: Trained


def run(config: Config, context: Context) -> Result:
    """Integrate the flows in float64, then train all settings and seeds in one vmap.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    setting_key, train_key = jax.random.split(context.key)
    with jax.enable_x64(True):
        problems = [problem(name, config, setting_key) for name in SETTINGS]
        steps, rates = schedule(config, problems)
        pairs = list(zip(problems, rates, strict=True))
        settings = tuple(solve(*pair, config, steps) for pair in context.track(pairs, "gradient flow"))
    ensemble = Ensemble(
        covariances=np.stack([setting.task.covariance for setting in settings]),
        noises=np.stack([setting.task.noise for setting in settings]),
        thetas=np.stack([setting.theta for setting in settings]),
        learning_rates=np.asarray(rates),
    )
    return Result(config, settings, train(ensemble, config, steps, train_key, context))


def problem(name: str, config: Config, key: jax.Array) -> tuple[theory.Task, jax.Array]:
    """The task and the shape of the start of one setting; the rotated two share both."""
    d = config.dimension
    if name == "isotropic":
        return theory.Task(jnp.eye(d), config.length), jnp.eye(d)
    rotation_key, theta_key = jax.random.split(key)
    spectrum = geometric_spectrum(d, config.condition_number) if config.spectrum is None else jnp.array(config.spectrum)
    covariance = rotated(spectrum, random_rotation(rotation_key, d))
    theta = linear_attention.random_theta(theta_key, d) if config.theta == "random" else jnp.eye(d)
    return theory.Task(covariance, config.length, noise=config.noise if name == "noisy" else 0.0), theta


def start_of(theta: jax.Array, config: Config) -> theory.Blocks:
    """The balanced start's two blocks."""
    return theory.blocks(linear_attention.init(theta, config.init_scale).params)


def schedule(config: Config, problems: list[tuple[theory.Task, jax.Array]]) -> tuple[int, list[float]]:
    """Number of SGD steps, common to all settings, and the first learning rate of each."""
    needed = [gradient_flow.time_to_risk(start_of(theta, config), task, excess=EXCESS) for task, theta in problems]
    steps = config.steps
    if steps is None:
        stiffest = [gradient_flow.curvatures(task)[1] for task, _ in problems]
        rates = [config.learning_rate or config.stiffness / curvature for curvature in stiffest]
        steps = max(math.ceil(2 * time / rate) for time, rate in zip(needed, rates, strict=True))
    steps = config.checkpoints * math.ceil(steps / config.checkpoints)
    return steps, [config.learning_rate or time / flow_time(steps) for time in needed]


def solve(given: tuple[theory.Task, jax.Array], learning_rate: float, config: Config, steps: int) -> Setting:
    """Integrate one setting's gradient flow, to its limit and over the time that SGD covers."""
    task, theta = given
    start = start_of(theta, config)
    whole = gradient_flow.follow(start, task, jnp.linspace(0.0, gradient_flow.time_to_converge(start, task), gradient_flow.POINTS))
    times = jnp.linspace(0.0, learning_rate * flow_time(steps), gradient_flow.POINTS)
    path = gradient_flow.follow(start, task, times)
    products = path.w[:, None, None] * path.u
    invariant = whole.w**2 - jnp.sum(whole.u**2, axis=(1, 2))
    return Setting(
        task=theory.Task(np.asarray(task.covariance), task.length, noise=task.noise),
        theta=np.asarray(theta),
        limit=jax.tree.map(lambda block: np.asarray(block[-1]), whole),
        drift=float(jnp.max(jnp.abs(invariant - invariant[0]))),
        times=np.asarray(times),
        risks=np.asarray(2 * gradient_flow.losses_along(path, task)),
        products=np.asarray(jnp.trace(products, axis1=1, axis2=2) / config.dimension),
        product=np.asarray(products[-1]),
    )


def claims(result: Result) -> list[Claim]:
    """Closed forms beside gradient flow, then beside SGD.

    Args:
        result: From `run`.

    Returns:
        The claims.
    """
    with jax.enable_x64(True):
        return [*flow_claims(result), *sgd_claims(result), *length_claims(result), *noise_claims(result)]


def flow_claims(result: Result) -> list[Claim]:
    """Gradient flow in float64 against the closed forms; every number is exact but for the integrator."""
    config, setting, isotropic = result.config, result.settings[ANISOTROPIC], result.settings[ISOTROPIC]
    minimum, small = theory.global_minimum(setting.task), scale_is_small(result, ANISOTROPIC)
    off = lambda u: float(np.linalg.norm(u - minimum.u) / np.linalg.norm(minimum.u))
    error = np.max(np.abs(isotropic.products - closed_form(result, isotropic.times))) / closed_form(result, np.inf)
    integrator = "The integrator's relative tolerance is 1e-10."
    where = f"D = {config.dimension}, N = {config.length}"
    return [
        Claim.equal(
            "flow-time-course",
            f"Identity covariance, {where}: the largest departure of gradient flow's product w u from the logistic closed "
            "form, over the limit.",
            f"Own derivation from Lemma 5.2 of {PAPER}",
            predicted=0.0,
            measured=float(error),
            tolerance=1e-6,
            reason=integrator,
        ),
        Claim.equal(
            "flow-corner",
            f"{spectrum_of(result)}, {where}: gradient flow ends at W_PV[D, D] = tr(Gamma^-2)^(1/4).",
            f"Theorem 4.1 of {PAPER}",
            predicted=float(minimum.w),
            measured=float(setting.limit.w),
            relative_tolerance=1e-6,
            reason=integrator,
            assumptions_hold=small,
        ),
        Claim.equal(
            "flow-block",
            f"{spectrum_of(result)}, {where}: gradient flow ends at W_KQ[:D, :D] = tr(Gamma^-2)^(-1/4) Gamma^-1; relative "
            "distance.",
            f"Theorem 4.1 of {PAPER}",
            predicted=0.0,
            measured=off(setting.limit.u),
            tolerance=1e-6,
            reason=integrator,
            assumptions_hold=small,
        ),
        Claim.equal(
            "flow-minimal-loss",
            f"{spectrum_of(result)}, {where}: gradient flow ends at the loss (tr S - tr(S^2 Gamma^-1)) / 2.",
            f"Theorem 4.1 and Lemma 5.2 of {PAPER}",
            predicted=float(theory.minimal_loss(setting.task)),
            measured=float(theory.population_loss(setting.limit, setting.task)),
            relative_tolerance=1e-6,
            reason=integrator,
            assumptions_hold=small,
        ),
        Claim.equal(
            "flow-conserves-balance",
            f"{spectrum_of(result)}, {where}: w^2 - |u|_F^2 stays where it started; largest change.",
            f"Proof of Theorem 4.1 of {PAPER}",
            predicted=0.0,
            measured=setting.drift,
            tolerance=1e-6,
            reason=integrator,
        ),
    ]


def sgd_claims(result: Result) -> list[Claim]:
    """SGD with all parameters free against the closed forms."""
    config, sgd = result.config, result.sgd
    where = f"D = {config.dimension}, N = {config.length}"
    runs = f"{config.seeds} seeds, {sgd.steps} steps of {config.batch} prompts"
    half = float(half_time(result))
    reached = half_times(result)
    half_mean, half_interval = single(reached)
    stray, stray_interval = single(sgd.stray[ANISOTROPIC])
    product, product_interval = single(product_errors(result))
    return [
        Claim.equal(
            "sgd-half-time",
            f"Identity covariance, {where}, {runs}: SGD's product tr(w u) / D is halfway to its limit at the time (sum of "
            "the learning rates) ln(p*/p0 - 1) / (2 sqrt D).",
            f"Own derivation from Lemma 5.2 of {PAPER}",
            predicted=half,
            measured=half_mean,
            interval=half_interval,
            relative_tolerance=0.05,
            reason="A finite learning rate lags behind the flow, and batch noise on the plateau shifts the time of the rise.",
            assumptions_hold=0 < half < sgd.times[ISOTROPIC, -1],
        ),
        *(final_risk_claim(result, index) for index in (ISOTROPIC, ANISOTROPIC)),
        Claim.at_most(
            "sgd-product",
            f"{spectrum_of(result)}, {where}, {runs}: distance of SGD's w u from gradient flow's A at the same time, as "
            "the risk sees it: |S^(1/2) (w u - A) S^(1/2)|_F / |S^(1/2) A S^(1/2)|_F.",
            f"Lemma 5.2 of {PAPER}",
            predicted=0.0,
            measured=product,
            interval=product_interval,
            tolerance=0.1,
            reason="Batch noise keeps SGD moving around the minimum; a tenth in the product is a hundredth in the risk.",
        ),
        Claim.at_most(
            "sgd-other-blocks-stay-zero",
            f"{spectrum_of(result)}, {where}, {runs}: norm of all weights outside the two blocks, over the norm of all.",
            f"Lemma 5.2 of {PAPER}: they stay zero under gradient flow",
            predicted=0.0,
            measured=stray,
            interval=stray_interval,
            tolerance=0.1,
            reason="Batch noise moves them, gradient flow pulls them back; a tenth of the norm is a hundredth of its square.",
        ),
    ]


def final_risk_claim(result: Result, index: int) -> Claim:
    """SGD's test risk at the end against the least risk."""
    config, sgd, setting = result.config, result.sgd, result.settings[index]
    measured, interval = single(sgd.risks_by_length[index, :, 0])
    least = 2 * float(theory.minimal_loss(setting.task))
    return Claim.equal(
        f"sgd-risk-{SETTINGS[index]}",
        f"{'Identity covariance' if index == ISOTROPIC else spectrum_of(result)}, D = {config.dimension}, N = {config.length}, "
        f"{config.seeds} seeds: SGD's test risk at the end is the least possible, tr S - tr(S^2 Gamma^-1).",
        f"Theorem 4.1 of {PAPER}",
        predicted=least,
        measured=measured,
        interval=interval,
        relative_tolerance=0.03,
        reason="Gradient flow at SGD's end is within 0.5%, batch noise leaves SGD a little higher, and the test set is finite.",
        assumptions_hold=bool(setting.risks[-1] <= (1 + 2 * EXCESS) * least) and scale_is_small(result, index),
    )


def length_claims(result: Result) -> list[Claim]:
    """The layer trained at one prompt length, tested at others."""
    config, sgd = result.config, result.sgd
    setting = result.settings[ANISOTROPIC]
    estimates = mean_over_seeds(sgd.risks_by_length[ANISOTROPIC])
    found = []
    for place, length in enumerate(sgd.lengths[1:], start=1):
        measured, interval = estimates.at(place)
        found.append(
            Claim.equal(
                f"sgd-risk-at-length-{length}",
                f"{spectrum_of(result)}, D = {config.dimension}, trained at N = {config.length}, {config.seeds} seeds: test "
                f"risk on prompts of length {length}.",
                f"Own derivation (equality in place of the bound of Theorem 4.2), {PAPER}",
                predicted=float(theory.risk(setting.product, setting.task._replace(length=length))),
                measured=measured,
                interval=interval,
                relative_tolerance=0.03,
                reason="As for the risk at the training length.",
            )
        )
    return found


def noise_claims(result: Result) -> list[Claim]:
    """Label noise: how far the theorem is off without it, and the extended closed form."""
    config, sgd, setting = result.config, result.sgd, result.settings[NOISY]
    measured, interval = single(sgd.risks_by_length[NOISY, :, 0])
    least = 2 * float(theory.minimal_loss(setting.task))
    where = (
        f"{spectrum_of(result)}, D = {config.dimension}, N = {config.length}, label noise {config.noise:g}, "
        f"{config.seeds} seeds"
    )
    return [
        Claim.equal(
            "noise-theorem-as-stated",
            f"{where}: SGD's test risk at the end against the noise-free theorem's, which has no label noise.",
            f"Theorem 4.1 of {PAPER}",
            predicted=2 * float(theory.minimal_loss(setting.task._replace(noise=0.0))),
            measured=measured,
            interval=interval,
            relative_tolerance=0.03,
            reason="The tolerance that the noise-free setting meets.",
            assumptions_hold=config.noise == 0,
        ),
        Claim.equal(
            "noise-extended",
            f"{where}: SGD's test risk at the end is the least possible with Gamma + (noise^2 / N) I in place of Gamma.",
            "Own derivation: label noise adds noise^2 S / N to the second moment of the context",
            predicted=least,
            measured=measured,
            interval=interval,
            relative_tolerance=0.03,
            reason="As in the noise-free setting.",
            assumptions_hold=bool(setting.risks[-1] <= (1 + 2 * EXCESS) * least),
        ),
    ]


def closed_form(result: Result, times: np.ndarray | float) -> np.ndarray:
    """The logistic time course of w u in the isotropic setting."""
    config = result.config
    start = config.init_scale**2 / math.sqrt(config.dimension)
    return np.asarray(
        theory.isotropic_product(jnp.asarray(times), dimension=config.dimension, length=config.length, start=start)
    )


def half_time(result: Result) -> jax.Array:
    """When the closed form is halfway; not positive where it starts beyond."""
    config = result.config
    start = config.init_scale**2 / math.sqrt(config.dimension)
    return jnp.nan_to_num(theory.isotropic_half_time(dimension=config.dimension, length=config.length, start=start))


def half_times(result: Result) -> np.ndarray:
    """When each isotropic SGD run is halfway, by linear interpolation between steps; NaN where it never is `[seeds]`."""
    times, runs = result.sgd.times[ISOTROPIC], result.sgd.products[ISOTROPIC]
    half = float(closed_form(result, np.inf)) / 2
    after = np.argmax(runs > half, axis=1)
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(runs, at[:, None], axis=1)[:, 0] for at in (before, after))
    fraction = (half - low) / np.where(high > low, high - low, 1.0)
    return np.where(after > 0, times[before] + fraction * (times[after] - times[before]), np.nan)


def product_errors(result: Result) -> np.ndarray:
    """|S^(1/2) (w u - A) S^(1/2)|_F / |S^(1/2) A S^(1/2)|_F of each anisotropic run `[seeds]`."""
    setting = result.settings[ANISOTROPIC]
    root = np.linalg.cholesky(setting.task.covariance)
    seen = lambda product: root.T @ product @ root
    departures = seen(result.sgd.final_products[ANISOTROPIC] - setting.product)
    return np.linalg.norm(departures, axis=(-2, -1)) / np.linalg.norm(seen(setting.product))


def scale_is_small(result: Result, index: int) -> bool:
    """Whether the start satisfies the theorem's condition scale^2 |Gamma|_op sqrt(D) < 2."""
    task = result.settings[index].task
    return result.config.init_scale < float(theory.largest_init_scale(task))


def spectrum_of(result: Result) -> str:
    """The anisotropic covariance in words."""
    eigenvalues = np.linalg.eigvalsh(result.settings[ANISOTROPIC].task.covariance)[::-1]
    return f"Covariance with eigenvalues {', '.join(f'{value:.3g}' for value in eigenvalues)}"


def single(samples: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean and 95% interval over seeds of one number."""
    return mean_over_seeds(samples[:, None]).at(0)


def plot(result: Result) -> dict[str, Figure]:
    """Loss over time, the abrupt rise, and the risk by prompt length.

    Args:
        result: From `run`.

    Returns:
        Figures by file stem.
    """
    with jax.enable_x64(True):
        return {"loss_over_time": plot_loss(result), "abrupt_rise": plot_rise(result), "risk_by_length": plot_lengths(result)}


def plot_loss(result: Result) -> Figure:
    """Test loss of SGD over gradient flow's, one panel per setting."""
    figure, panels = _plotting.new_figure(3, width=4.6)
    for index, axes in enumerate(panels):
        setting = result.settings[index]
        least = float(theory.minimal_loss(setting.task))
        axes.axhline(least, color="gray", linestyle=":", label=f"least possible, {least:.3f}")
        _plotting.theory(axes, setting.times, setting.risks / 2, label="gradient flow (theory)")
        losses = mean_over_seeds(result.sgd.risks[index] / 2)
        draw(axes, result.sgd.times[index, result.sgd.checkpoints], losses, f"SGD, {result.config.seeds} seeds, 95%")
        axes.set_ylim(bottom=0)
        _plotting.label(axes, "time: sum of the learning rates", "loss: half squared error", SETTINGS[index])
    return figure


def plot_rise(result: Result) -> Figure:
    """The isotropic product over time: logistic closed form through SGD's points."""
    figure, axes = _plotting.new_figure()
    setting, sgd = result.settings[ISOTROPIC], result.sgd
    _plotting.theory(axes, setting.times, closed_form(result, setting.times), label="closed form")
    products = mean_over_seeds(sgd.products[ISOTROPIC][:, sgd.checkpoints])
    draw(axes, sgd.times[ISOTROPIC, sgd.checkpoints], products, "SGD, mean and 95%")
    _plotting.label(axes, "time: sum of the learning rates", "product of the blocks, tr(w u) / D", "one abrupt rise")
    return figure


def plot_lengths(result: Result) -> Figure:
    """Risk by test length, theory through the points."""
    figure, axes = _plotting.new_figure()
    setting, sgd = result.settings[ANISOTROPIC], result.sgd
    grid = np.geomspace(min(sgd.lengths) * 0.8, max(sgd.lengths) * 1.25, 200)
    at = jax.vmap(lambda length: theory.risk(jnp.asarray(setting.product), setting.task._replace(length=length)))
    _plotting.theory(axes, grid, np.asarray(at(jnp.asarray(grid))), label="closed form")
    draw(axes, np.asarray(sgd.lengths), mean_over_seeds(sgd.risks_by_length[ANISOTROPIC]), "SGD, mean and 95%")
    axes.axvline(result.config.length, color="gray", linestyle=":", label="training length")
    axes.set_xscale("log")
    _plotting.label(axes, "labeled examples in the test prompt", "test risk: squared error", "anisotropic")
    return figure


def draw(axes, x: np.ndarray, estimate: Estimate, label: str) -> None:
    """Measured points with their interval."""
    _plotting.measured(axes, x, estimate.mean, low=estimate.low, high=estimate.high, label=label)
