"""The estimate of the echo against automatic differentiation of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lior_jax import learning
from lior_jax.config import replace
from lior_jax.model.operators import FRAME_RATE
from lior_jax.physics import kernel
from lior_jax.physics.action import RELAXATION_TIME
from tests import dense, oracles
from tests.oracles import (
    EVERYTHING,
    PARTS,
    PRODUCTS,
    Agreement,
    agreement,
    assert_trees_close,
    model_changes,
    named_leaves,
    random_batch,
    random_params,
    small_config,
    to64,
    to_numpy,
    trained_looking,
    whole_agreement,
)

PLAIN = small_config()
HOPFIELD = small_config(flow__potential="hopfield", flow__integrator="yoshida4", flow__step_size=0.6, flow__carry_momentum=True)
CARRY = small_config(flow__carry_momentum=True, flow__steps=2, flow__step_size=0.6)
ACTION = {"action_weight": 0.1}
ALL = {name: small_config(ACTION, **changes) for name, changes in EVERYTHING.items()}
CONFIGS = {"plain": PLAIN, "carry": CARRY, "hopfield, fourth order": HOPFIELD} | ALL
BOTH = pytest.mark.parametrize("config", [PLAIN, CARRY], ids=["plain", "carry"])
FOUR = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

# Two float32 gradients of the same loss differ by their rounding, about 1e-7 of the whole gradient. A leaf whose gradient is
# smaller than this share of the whole must be as small in the estimate, but has no direction to compare.
NOISE = 1e-5


def assert_is_the_gradient(estimate, gradient, cosine=0.9999, relative_error=5e-3):
    def good(x: Agreement) -> bool:
        if x.share < NOISE:
            return x.relative_error * (x.share or 1.0) < NOISE
        return x.cosine >= cosine and x.relative_error <= relative_error

    wrong = {name: x for name, x in agreement(estimate, gradient).items() if not good(x)}
    assert not wrong, wrong


def assert_is_nearly_the_gradient(estimate, gradient):
    """With a bias of O(ε), ε₀ = 1e-3: of the whole it is small; of a leaf that is a small share of it, it may not be."""
    assert_is_the_gradient(estimate, gradient, cosine=0.998, relative_error=0.1)
    assert whole_agreement(estimate, gradient).relative_error < 2e-2


def estimate_and_oracle(params, batch, config):
    estimate, info = oracles.estimate(params, batch, config=config)
    loss, gradient = oracles.autodiff(params, *batch, config)
    return estimate, info, gradient, loss


# --- the estimate is the gradient ------------------------------------------------------------------------------------


@st.composite
def configs(draw):
    """All parts and shapes, with a weight for the action or without, and one way or the other with the momentum."""
    steps = draw(st.integers(1, 3))
    flow = {
        "flow__integrator": draw(st.sampled_from(["verlet", "yoshida4"])),
        "flow__steps": steps,
        "flow__step_size": draw(st.sampled_from([0.3, 0.7, 1.0])) if steps < 3 else 0.5,
        "flow__carry_momentum": draw(st.booleans()),
    }
    return small_config({"action_weight": draw(st.sampled_from([0.0, 0.2]))}, **draw(model_changes()) | flow)


@settings(max_examples=1)
@given(config=configs(), length=st.integers(2, 8), seed=st.integers(0, 999))
@example(
    config=small_config(blocks=3, geometry__rank=0, geometry__rotor_layers=0, flow__steps=3, flow__step_size=0.5),
    length=7,
    seed=0,
)
@example(
    config=small_config(blocks=3, flow__carry_momentum=True, heads=3, convolution__taps=9, flow__steps=2), length=5, seed=1
)
def test_estimate_is_the_gradient(config, length, seed):
    """Every leaf, in float32, for random shapes and parameters without symmetry."""
    params, batch = random_params(config.model, seed, scale=0.4), random_batch(config, 2, length, seed)
    estimate, _, gradient, _ = estimate_and_oracle(params, batch, config)
    assert jax.tree.map(jnp.shape, estimate) == jax.tree.map(jnp.shape, params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(estimate))
    assert_is_the_gradient(estimate, gradient)


# The products differ only where they live, and blocks of 2 from blocks of 4 only in their planes.
ALONE = {name: PARTS[name] for name in PARTS if name not in (*PRODUCTS, "blocks_of_4", "derived_blocks")}
ALONE |= {"retrieval__products": {"retrieval__products": PRODUCTS}}
# All but these are parts of `EVERYTHING`, too.
QUICK = {"field", "master", "project", "hopfield", "yoshida4", "curvature", "learned_lowrank", "no_prior"}


@pytest.mark.parametrize("name", oracles.cases({name: name for name in ALONE}, *ALONE.keys() - QUICK))
def test_estimate_is_the_gradient_of_every_part_alone(name):
    config = small_config(**ALONE[name])
    estimate, _, gradient, _ = estimate_and_oracle(trained_looking(config.model), random_batch(config), config)
    assert_is_the_gradient(estimate, gradient)


@FOUR
def test_estimate_is_the_gradient_without_symmetry(config):
    """Of all parts at once too."""
    estimate, _, gradient, _ = estimate_and_oracle(trained_looking(config.model), random_batch(config), config)
    assert_is_the_gradient(estimate, gradient)


@FOUR
def test_estimate_is_the_gradient_at_init(config):
    """Where some gradients vanish by symmetry or nearly so."""
    estimate, _, gradient, _ = estimate_and_oracle(oracles.initial(config.model), random_batch(config), config)
    assert_is_the_gradient(estimate, gradient)


@FOUR
def test_estimate_is_the_gradient_after_training(config):
    """50 steps on a short cycle of tokens. The loss must fall, and the parameters that come out are no longer random."""
    cycle = jnp.asarray(np.tile(np.arange(5, dtype=np.int32), 6))
    windows = jnp.stack([cycle[start : start + 8] for start in range(3)])
    batch = windows[:, :-1], windows[:, 1:]
    params = oracles.initial(config.model)
    rates = replace(config, "optimizer", warmup_steps=5, learning_rate=1e-2).optimizer
    optimizer = learning.make_optimizer(rates, config.training.steps, config.learning)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    losses = []
    for _ in range(50):
        gradient, info = oracles.estimate(params, batch, config=config)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)._replace(carried=info.carried)
        losses.append(float(info.loss))
    assert losses[-1] < 0.5 * losses[0]
    estimate, _, gradient, _ = estimate_and_oracle(params, random_batch(config, length=7), config)
    assert_is_the_gradient(estimate, gradient)


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_is_carried_is_not_learned(name):
    """Its part of the gradient is exactly zero, though the loss depends on it."""
    config = ALL[name]
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info = oracles.estimate(params, batch, config=config)
    assert jax.tree.structure(estimate.carried) == jax.tree.structure(params.carried)
    assert not any(x.any() for x in jax.tree.leaves(estimate.carried))
    other = params._replace(carried=oracles.random_carried(config.model, seed=1))
    assert abs(oracles.estimate(other, batch, config=config)[1].loss - info.loss) > 1e-4


# --- the action in the cost ------------------------------------------------------------------------------------------


WEIGHED = {
    "one step": {},
    "three steps, constitutive": PARTS["constitutive"] | {"flow__steps": 3, "flow__step_size": 0.5},
    "carried momentum, curvature": PARTS["curvature"]
    | {"flow__carry_momentum": True, "flow__steps": 2, "flow__step_size": 0.6},
}


@pytest.mark.parametrize("changes", oracles.cases(WEIGHED, "three steps, constitutive"))
def test_estimate_with_a_weight_on_the_action_is_the_gradient(changes):
    config = small_config({"action_weight": 0.5}, **changes)
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, _, gradient, _ = estimate_and_oracle(params, batch, config)
    assert_is_the_gradient(estimate, gradient)


def test_the_action_has_a_say():
    """At the weight of the tests above the gradient is another than the loss's, by far more than they tolerate."""
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    weighed, _ = oracles.estimate(params, batch, config=replace(PLAIN, "learning", action_weight=0.5))
    bare, _ = oracles.estimate(params, batch, config=PLAIN)
    assert whole_agreement(bare, weighed).relative_error > 0.05


@pytest.mark.parametrize("share", [0.01, 0.0])
def test_action_beside_a_loss_that_hardly_pulls(share):
    """A readout that is small or zero: what nudges is the action alone, or nearly so. The size of the nudge must follow it."""
    config = small_config({"action_weight": 0.5})
    params, batch = trained_looking(config.model), random_batch(config)
    params = params._replace(readout=share * params.readout)
    estimate, _, gradient, _ = estimate_and_oracle(params, batch, config)
    assert_is_the_gradient(estimate, gradient)


def test_action_where_some_positions_are_sure():
    """Without a pull of the loss there, to the last bit; the others and the action pull as ever."""
    config = small_config({"action_weight": 0.5})
    params, batch = sure_of_some(trained_looking(config.model), random_batch(config), config)
    estimate, _, gradient, _ = estimate_and_oracle(params, batch, config)
    assert_is_the_gradient(estimate, gradient)


def test_one_sided_echo_with_a_weight_on_the_action_is_reversible():
    """The free one of the two runs must stay free: carried momentum rebuilds the input of every block from it."""
    config = small_config({"action_weight": 0.5}, **WEIGHED["carried momentum, curvature"])
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info, gradient, _ = estimate_and_oracle(params, batch, replace(config, "learning", nudge="one_sided"))
    assert_is_nearly_the_gradient(estimate, gradient)
    assert info.reversibility < 1e-4


# --- the nudge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "low", "high"), [pytest.param("one_sided", 1.7, 2.4, marks=pytest.mark.slow), ("centred", 3.4, 4.7)]
)
def test_order_of_the_nudge(mode, low, high, float64):
    """Half the nudge: half the error one-sided, a quarter centred. In float64, where rounding hides nothing; with carried
    momentum, where the rebuilt states err too."""
    small = {"blocks": 2, "geometry__rotor_layers": 1, "width": 6, "convolution__taps": 2, "flow__carry_momentum": True}
    base = small_config(**small)
    params, batch = to64(trained_looking(base.model)), random_batch(base, 2, 5)
    _, gradient = oracles.autodiff(params, *batch, base)
    errors = []
    for size in (0.01, 0.005):
        estimate, _ = oracles.estimate(params, batch, config=small_config({"nudge": mode, "nudge_size": size}, **small))
        errors.append(whole_agreement(estimate, gradient).relative_error)
    assert low < errors[0] / errors[1] < high, errors
    assert errors[0] < (0.1 if mode == "one_sided" else 0.01)


@BOTH
def test_one_sided_estimate_is_close(config):
    """Its bias is O(ε), with ε₀ = 1e-3."""
    one_sided = replace(config, "learning", nudge="one_sided")
    estimate, _, gradient, _ = estimate_and_oracle(trained_looking(config.model), random_batch(config), one_sided)
    assert_is_nearly_the_gradient(estimate, gradient)


# --- precision and memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", oracles.cases({"plain": PLAIN} | ALL, "rotor_curvature_carry"))
def test_chunks_change_nothing(config):
    params, batch = trained_looking(config.model), random_batch(config)
    whole, info = oracles.estimate(params, batch, config=config)
    pieces, pieces_info = oracles.estimate(params, batch, config=replace(config, "learning", chunk=1))
    # The rounding of the nudged runs, 1e-7 and some, amplified by 1 / ε₀.
    assert_trees_close(pieces, whole, 5e-4)
    assert_trees_close(pieces_info._replace(reversibility=info.reversibility, residual=info.residual), info, 1e-5)
    np.testing.assert_allclose(pieces_info.reversibility, info.reversibility, atol=2e-5)


@pytest.mark.parametrize("config", [PLAIN, *ALL.values()], ids=["plain", *ALL])
@pytest.mark.slow
def test_tiles_learn_what_all_at_once_would(config):
    """The estimate of a network that retrieves by tiles is the gradient of the one that does not."""
    params, batch = trained_looking(config.model), random_batch(config)
    loss, gradient = oracles.autodiff(params, *batch, replace(config, "model.retrieval", tile=None))
    estimate, info = oracles.estimate(params, batch, config=replace(config, "model.retrieval", tile=3))
    assert_is_the_gradient(estimate, gradient)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-5)


KEPT = {
    "gated": {},
    "hopfield, fourth order": {"flow__potential": "hopfield", "flow__integrator": "yoshida4", "flow__step_size": 0.6},
    "everything": next(changes for changes in EVERYTHING.values() if not changes.get("flow__carry_momentum")),
}


@pytest.mark.parametrize(
    ("name", "nudge"),
    [
        ("gated", "one_sided"),
        pytest.param("hopfield, fourth order", "centred", marks=pytest.mark.slow),
        pytest.param("gated", "centred", marks=pytest.mark.slow),
        pytest.param("hopfield, fourth order", "one_sided", marks=pytest.mark.slow),
        pytest.param("everything", "centred", marks=pytest.mark.slow),
    ],
)
def test_kept_units_change_nothing(name, nudge):
    """At every kick, with an action along the path, masks and chunks. What is kept is exact, so the error is no larger."""
    learning = {"nudge": nudge, "action_weight": 0.1, "dropout": 0.3, "chunk": 1}
    config = small_config(learning, **KEPT[name])
    params, batch, key = trained_looking(config.model), random_batch(config), jax.random.key(7)
    ends, info = oracles.estimate(params, batch, config, key)
    units, info_of_units = oracles.estimate(params, batch, replace(config, "learning", keep="units"), key)
    assert_trees_close(units, ends, 5e-4)
    health = {"reversibility": info.reversibility, "residual": info.residual}  # rounding, and no other
    assert info_of_units.reversibility < max(2 * info.reversibility, 1e-6)
    assert_trees_close(info_of_units._replace(**health), info, 1e-4)
    _, gradient = oracles.autodiff(params, *batch, config, oracles.dropout_masks(key, batch[0], config))
    before, after = (whole_agreement(estimate, gradient).relative_error for estimate in (ends, units))
    assert after < max(1.2 * before, 1e-4)


@pytest.mark.parametrize("potential", ["gated", "hopfield"])
def test_kept_units_save_a_quarter_of_the_flows_products(potential):
    """12 of 16, and 6 of 8, counted in what is traced."""
    config = small_config(flow__potential=potential, flow__units=23)
    params, batch = jax.eval_shape(lambda: oracles.initial(config.model)), random_batch(config)

    def products(keep):
        rule = replace(config, "learning", keep=keep).learning
        traced = jax.make_jaxpr(learning.estimate, static_argnums=(2, 3))(params, batch, config.model, rule)
        shapes = [
            [x.aval.shape for x in (*equation.invars, *equation.outvars)]
            for equation in oracles.equations(traced.jaxpr)
            if equation.primitive.name == "dot_general"
        ]
        return sum(any(23 in shape for shape in of) for of in shapes)

    assert (products("units"), products("ends")) == ((12, 16) if potential == "gated" else (6, 8))


@pytest.mark.parametrize("changes", EVERYTHING.values(), ids=EVERYTHING)
def test_nothing_is_as_large_as_the_square_of_the_context(changes):
    """With all parts at once, whatever is computed on the way: memory is linear in the length."""
    length, tile = 1024, 64
    config = small_config(**changes, retrieval__tile=tile, context=length, blocks=2)
    params = jax.eval_shape(lambda: oracles.initial(config.model))
    batch = (jax.ShapeDtypeStruct((1, length), jnp.int32),) * 2
    traced = jax.make_jaxpr(learning.estimate, static_argnums=(2, 3))(params, batch, config.model, config.learning)
    largest = max(x.aval.size for equation in oracles.equations(traced.jaxpr) for x in equation.outvars)
    assert largest <= config.model.heads * length * max(2 * tile, kernel.TILE)


def test_bfloat16_products():
    """The gradient of the float32 loss, at the default nudge. The products see mean and slope, so 8 bits are enough."""
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    _, gradient = oracles.autodiff(params, *batch, PLAIN)
    estimate, _ = oracles.estimate(params, batch, config=small_config(precision="bfloat16"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(estimate))
    assert whole_agreement(estimate, gradient).cosine >= 0.9995


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only a CPU has no TF32")
def test_tf32_is_float32_on_a_cpu():
    params, batch = trained_looking(PLAIN.model), random_batch(PLAIN)
    full, _ = oracles.estimate(params, batch, config=PLAIN)
    fast, _ = oracles.estimate(params, batch, config=small_config(precision="tf32"))
    assert_trees_close(fast, full, 1e-4)


# --- diagnostics -----------------------------------------------------------------------------------------------------


@FOUR
def test_info(config):
    params, batch = trained_looking(config.model), random_batch(config)
    estimate, info, _, loss = estimate_and_oracle(params, batch, config)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(x * x) for x in named_leaves(estimate).values()))
    np.testing.assert_allclose(info.gradient_norm, norm, rtol=1e-5)
    assert 0 <= info.reversibility <= 1e-4
    np.testing.assert_allclose(info.residual.max(), 0 if config.model.flow.carry_momentum else info.reversibility)
    assert info.nudge.shape == info.residual.shape == info.action.shape == (config.model.blocks,)

    expected = dense.network(params, batch[0], config.model)
    np.testing.assert_allclose(info.action, expected.actions.sum(-1), rtol=1e-4)
    assert jax.tree.structure(info.carried) == jax.tree.structure(params.carried)
    (frame, state), (old_frame, old_state) = to_numpy((info.carried, params.carried))
    if frame is not None:
        member = np.arange(config.model.geometry.chart_dim) // config.model.geometry.block
        moments = expected.moments * (member[:, None] == member[None])
        covariance = (1 - FRAME_RATE) * old_frame.covariance + FRAME_RATE * moments
        np.testing.assert_allclose(frame.covariance, covariance, rtol=1e-3, atol=1e-4)
        assert np.abs(frame.covariance - old_frame.covariance).max() > 1e-3
        assert (frame.axes != old_frame.axes).any()
    if state is not None:
        tau = config.model.flow.steps * config.model.flow.step_size
        np.testing.assert_allclose(state.integral, old_state.integral + expected.actions, rtol=1e-5)
        np.testing.assert_allclose(state.elapsed, old_state.elapsed + tau, rtol=1e-6)
        excess = expected.actions / tau / (state.integral / state.elapsed) - 1
        target = dense.logistic(excess)
        order = target + (old_state.order - target) * np.exp(-tau / RELAXATION_TIME)
        np.testing.assert_allclose(state.order, order, rtol=1e-5)


@BOTH
def test_nudge_is_relative_to_the_state(config):
    """At the top the pull is the loss's alone, so ε follows in closed form; below it scales with ε₀."""
    params, batch = trained_looking(config.model), random_batch(config)
    _, info = oracles.estimate(params, batch, config=config)
    default = config.learning.nudge_size
    _, twice = oracles.estimate(params, batch, config=replace(config, "learning", nudge_size=2 * default))
    assert (info.nudge > 0).all()
    np.testing.assert_allclose(twice.nudge, 2 * info.nudge, rtol=1e-2)

    logits, states, *_ = dense.network(params, batch[0], config.model)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pull = probability - np.eye(config.model.vocab_size)[np.asarray(batch[1])]
    pull = pull @ np.asarray(params.readout, np.float64) / batch[1].size
    s, s_hat = states[-1], oracles.rms_hat(states[-1])
    c_s = (pull - s_hat * np.mean(pull * s_hat, -1, keepdims=True)) / np.sqrt(np.mean(s * s, -1, keepdims=True) + 1e-6)
    smaller = np.minimum(np.linalg.norm(s, axis=-1), np.linalg.norm(states[-2], axis=-1))  # the block's end or its start
    epsilon = default * smaller / np.linalg.norm(c_s, axis=-1)
    np.testing.assert_allclose(info.nudge[-1], epsilon.mean(), rtol=1e-3)


def test_reversibility_measures_the_rebuilt_state():
    """A flow with larger forces loses more digits on the way back; a wrong way back would lose all of them."""
    params, batch = trained_looking(CARRY.model), random_batch(CARRY)
    _, info = oracles.estimate(params, batch, config=CARRY)
    _, one_sided = oracles.estimate(params, batch, config=replace(CARRY, "learning", nudge="one_sided"))
    assert 0 < info.reversibility < 1e-4
    assert 0 < one_sided.reversibility < 1e-4


# --- positions without a pull ----------------------------------------------------------------------------------------


@BOTH
def test_no_pull_at_all(config):
    """A readout of zero has a gradient itself, and gives none to anything else."""
    params, batch = trained_looking(config.model), random_batch(config)
    params = params._replace(readout=jnp.zeros_like(params.readout))
    estimate, info, gradient, _ = estimate_and_oracle(params, batch, config)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((estimate, info)))
    assert_trees_close(estimate, gradient, 1e-4)
    # Two runs that are not pushed apart differ by rounding at most, and that is divided by a large ε.
    assert max(np.abs(x).max() for x in jax.tree.leaves((estimate.blocks, estimate.embedding))) < 1e-9


def sure_of_some(params, batch, config):
    """Parameters and a batch with a readout so large that the softmax is one-hot to the last bit: where it is right, at every
    other position, the pull is exactly zero."""
    tokens, targets = batch
    params = params._replace(readout=100 * params.readout)
    best = jnp.argmax(oracles.logits(params, tokens, config=config.model), -1)
    return params, (tokens, targets.at[:, ::2].set(best[:, ::2]))


@BOTH
def test_some_positions_without_a_pull(config):
    params, batch = sure_of_some(trained_looking(config.model), random_batch(config), config)
    estimate, info, gradient, _ = estimate_and_oracle(params, batch, config)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((estimate, info)))
    assert_is_the_gradient(estimate, gradient)
