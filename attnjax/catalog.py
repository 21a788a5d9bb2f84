"""The catalog: one record for each mechanism or claim of the literature, and where it is checked.

A record is here when its functions exist, pass the conformance suite, and a test or an experiment checks its claim.

>>> from attnjax import catalog
>>> [record.title for record in catalog.RECORDS if catalog.normalizers.sigmoid in record.functions]
['When Attention Sink Emerges in Language Models: An Empirical View',
 'Theory, Analysis, and Best Practices for Sigmoid Self-Attention']
"""

import dataclasses
from collections.abc import Callable

from attnjax import linear, measures, mechanisms, tasks
from attnjax.attention import attend, attention_weights, explain, masks, normalizers, scores, statistics
from attnjax.dynamics import (
    abrupt_learning,
    abrupt_learning_theory,
    autoregressive_attention,
    autoregressive_attention_theory,
    implicit_update,
    joint_mlp_attention,
    joint_mlp_attention_theory,
    linear_attention,
    linear_attention_theory,
    linear_transformer,
    linear_transformer_theory,
    scan_and_snap,
    scan_and_snap_theory,
    softmax_attention,
    softmax_attention_theory,
)

__all__ = ["RECORDS", "Cost", "Record", "Source"]

STREAMING = ("dense", "rows", "blocks")
"""The implementations that serve every normalizer that folds over keys."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A paper.

    Attributes:
        authors: the first author and "et al.", or both.
        year: of the first version.
        arxiv: arXiv identifier, four digits, a dot, five digits.
    """

    authors: str
    year: int
    arxiv: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """Formulas in the package's axis letters, for one batch entry, forward; memory is temporary, without the output."""

    time: str
    memory: str


@dataclasses.dataclass(frozen=True)
class Record:
    """A mechanism or claim of the literature.

    Attributes:
        index: number in the project's catalog of the literature.
        title: of the paper.
        source: who, when, where.
        functions: the public functions that are it, or that compose to it.
        cost: time and temporary memory.
        forms: implementations of ``attend``, or forms of ``linear.attend``, that serve it; empty for a measure.
        checked: where its claim is checked, ``file::function`` of tests or experiments.
        deviation: where it differs from the source, and which part of the claim is not checked; empty for nowhere.
    """

    index: int
    title: str
    source: Source
    functions: tuple[Callable, ...]
    cost: Cost
    forms: tuple[str, ...]
    checked: tuple[str, ...]
    deviation: str = ""


CONFORMANCE = "tests/attention/test_conformance.py::test_case"
_PAPERS = "tests/measures/test_papers.py::"
_SINKS = "tests/measures/test_sinks.py::"
_DEVIATION = "tests/measures/test_deviation.py::"

_DYNAMICS = "tests/dynamics/"
_LINEAR = "tests/linear/test_mechanisms.py::"
_EVERY_FORM = "tests/linear/test_forms.py::test_every_form_is_the_recurrence"
_FEATURES = "tests/linear/test_features.py::"
_SPACES = "tests/linear/test_state_spaces.py::"
_CONVOLUTIONS = "tests/linear/test_convolutions.py::"
_AVERAGES = "tests/linear/test_moving_average.py::"
_MEMORIES = "tests/linear/test_memories.py::"
_HEBBIAN = "tests/linear/test_hebbian.py::"
_CAPACITY = "experiments/memory_capacity/verdicts.py::claims"
_MECHANISMS = "tests/mechanisms/"
_RECURRENCE = ("parallel", "chunked", "recurrent", "scan")
_LINEAR_COST = Cost("O(N T (C + H) (H + V)) in chunks of C", "O(N T (C + H + V) + N (T / C) H V)")

RECORDS: tuple[Record, ...] = (
    Record(
        index=3,
        title="JoMA: Demystifying Multilayer Transformers via JOint Dynamics of MLP and Attention",
        source=Source("Tian et al.", 2023, "2310.00535"),
        functions=(
            joint_mlp_attention.step,
            joint_mlp_attention_theory.implied_logits,
            joint_mlp_attention_theory.nonlinear_flow,
            joint_mlp_attention_theory.nonlinear_clock,
            joint_mlp_attention_theory.linear_path,
            joint_mlp_attention_theory.blow_up_time,
        ),
        cost=Cost("O(C M K) per step of C classes, M tokens, K units", "O(C M + M K)"),
        forms=(),
        checked=(
            _DYNAMICS + "test_joint_mlp_attention.py::test_the_invariant_has_no_velocity",
            _DYNAMICS + "test_joint_mlp_attention.py::test_every_clock_ticks_alike",
            _DYNAMICS + "test_joint_mlp_attention.py::test_linear_path_solves_its_flow_and_blows_up_when_told",
            "experiments/joint_dynamics/verdicts.py::claims",
        ),
        deviation=(
            "The softmax invariant has no weight of the query in |V|^2, which the authors' code adds. The hierarchy "
            "of latent variables and the language models of the paper are not trained."
        ),
    ),
    Record(
        index=10,
        title="In-Context Linear Regression Demystified: Training Dynamics and Mechanistic Interpretability of "
        "Multi-Head Softmax Attention",
        source=Source("He et al.", 2025, "2503.12734"),
        functions=(
            softmax_attention.step,
            softmax_attention.circuits,
            softmax_attention_theory.moments,
            softmax_attention_theory.debiased_step,
            softmax_attention_theory.ridge_risk,
            softmax_attention_theory.best_rates,
            tasks.several_regressions,
        ),
        cost=Cost("O(B H N D) per step of B prompts of N examples", "O(B H N)"),
        forms=(),
        checked=(
            _DYNAMICS + "test_softmax_attention.py::test_moments_give_the_risk_of_heads",
            _DYNAMICS + "test_softmax_attention.py::test_a_weak_opposite_pair_is_one_debiased_step",
            _DYNAMICS + "test_softmax_attention.py::test_weak_heads_take_the_rates",
            "experiments/softmax_regression/verdicts.py::claims",
        ),
        deviation=(
            "Losses are held against the least at finite dimension and length, not against the paper's formula for "
            "large dimension, which is 8 to 10% lower at D = 5. For several tasks the paper reports superposition "
            "without a formula; that weak heads take any rates of rank H - 1 is derived here."
        ),
    ),
    Record(
        index=23,
        title="Linear attention is (maybe) all you need (to understand transformer optimization)",
        source=Source("Ahn et al.", 2023, "2310.01082"),
        functions=(
            linear_transformer.step,
            linear_transformer.descent,
            linear_transformer_theory.best_rates,
            linear_transformer_theory.best_transforming_rates,
            tasks.linear_regression,
        ),
        cost=Cost("O(L B N D^2) per step of B prompts of N examples", "O(B N D)"),
        forms=(),
        checked=(
            _DYNAMICS + "test_linear_transformer.py::test_residual_is_that_of_the_layers",
            _DYNAMICS + "test_linear_transformer.py::test_best_rates_are_the_best",
            "experiments/linear_transformer/verdicts.py::claims",
        ),
        deviation="Directional smoothness and smoothness against the gradient's norm are not measured.",
    ),
    Record(
        index=33,
        title="Scan and Snap: Understanding Training Dynamics and Token Composition in 1-layer Transformer",
        source=Source("Tian et al.", 2023, "2305.16380"),
        functions=(
            scan_and_snap.step,
            scan_and_snap.ascent,
            scan_and_snap_theory.decoder_height,
            scan_and_snap_theory.drive,
            scan_and_snap_theory.snapping_time,
            scan_and_snap_theory.scanned,
            tasks.token_classes,
            tasks.sequences,
        ),
        cost=Cost("O(B (T + M)) per step of B sequences of T tokens out of M", "O(B M + M^2)"),
        forms=(),
        checked=(
            _DYNAMICS + "test_scan_and_snap.py::test_the_closed_form_gradient_is_that_of_the_layer_on_tokens",
            _DYNAMICS + "test_scan_and_snap_theory.py::test_scanned_solves_its_equation",
            "experiments/scan_and_snap/verdicts.py::claims",
        ),
        deviation="The closed form of B(t) covers both branches of the paper's; no text is learned.",
    ),
    Record(
        index=34,
        title="Learning without training: The implicit dynamics of in-context learning",
        source=Source("Dherin et al.", 2025, "2507.16003"),
        functions=(implicit_update.implicit_update, implicit_update.implicit_gradients, implicit_update.updated),
        cost=Cost("O(F E) per query", "O(F E)"),
        forms=(),
        checked=(
            _DYNAMICS + "test_implicit_update.py::test_the_updated_weights_do_without_the_context",
            _DYNAMICS + "test_implicit_update.py::test_any_attention_will_do",
            _DYNAMICS + "test_implicit_update.py::test_token_by_token_it_is_gradient_descent",
            "experiments/implicit_update/verdicts.py::claims",
        ),
    ),
    Record(
        index=60,
        title="Hydra: A 1.6B-Parameter State-Space Language Model with Sparse Attention, Mixture-of-Experts, and "
        "Memory",
        source=Source("Chaudhary and Browning", 2025, "2508.15099"),
        functions=(
            mechanisms.route_chunks,
            mechanisms.chunk_experts,
            mechanisms.product_key_memory,
            mechanisms.top_products,
        ),
        cost=Cost("O(T D E / C + N T (M H + k^2)) for E experts and M^2 slots", "O(T D + N T (M + k^2 + k V))"),
        forms=(),
        checked=(
            _MECHANISMS + "test_hybrid_stack.py::test_two_code_books_find_the_greatest_of_all_products",
            _MECHANISMS + "test_hybrid_stack.py::test_a_memory_of_products_is_attention_over_its_greatest_scores",
            _MECHANISMS + "test_hybrid_stack.py::test_chunks_go_to_the_expert_of_their_mean",
            _MECHANISMS + "test_hybrid_stack.py::test_the_balance_loss_evens_the_load",
        ),
        deviation=(
            "From the abstract, which gives no equations. The parts that are new beside attention and state spaces; a "
            "workspace is keys put in front of the others. The crossover of throughput is not measured."
        ),
    ),
    Record(
        index=62,
        title="Why Low-Precision Transformer Training Fails: An Analysis on Flash Attention",
        source=Source("Qiu and Yao", 2025, "2510.04212"),
        functions=(normalizers.softmax, measures.emulate),
        cost=Cost("O(N T S (H + V))", "O(N T V + tile) in blocks"),
        forms=STREAMING,
        checked=(
            CONFORMANCE,
            _DEVIATION + "test_two_tied_maxima_bias_the_output_and_delta",
            _DEVIATION + "test_the_modified_maximum_removes_the_bias_of_two_tied_maxima",
            _DEVIATION + "test_three_tied_maxima_stay_biased",
            _DEVIATION + "test_the_modified_maximum_of_large_logits_loses_no_row",
            _DEVIATION + "test_the_modified_maximum_changes_nothing_in_float32",
        ),
        deviation=(
            "softmax(tie_factor=2): the maximum is raised by 16 at most, as twice a maximum near 100 "
            "underflows every exponential. In emulation the bias of two tied maxima falls to less than an "
            "eighth; that of three does not go away, because the row's sum is rounded with the same bias. No "
            "training run is made to explode."
        ),
    ),
    Record(
        index=89,
        title="On Mesa-Optimization in Autoregressively Trained Transformers: Emergence and Capability",
        source=Source("Zheng et al.", 2024, "2405.16845"),
        functions=(
            autoregressive_attention.step,
            autoregressive_attention_theory.flow,
            autoregressive_attention_theory.limit,
            autoregressive_attention_theory.product_at,
            tasks.linear_sequences,
        ),
        cost=Cost("O(B T D^2) per step of B sequences of T states", "O(B T D^2)"),
        forms=(),
        checked=(
            _DYNAMICS + "test_autoregressive_attention.py::test_loss_and_flow_are_exact_averages",
            _DYNAMICS + "test_autoregressive_attention.py::test_the_closed_form_solves_the_flow",
            "experiments/mesa_optimization/verdicts.py::claims",
        ),
        deviation="Fresh batches and a falling learning rate in place of one fixed set and a constant rate.",
    ),
    Record(
        index=90,
        title="Trained Transformers Learn Linear Models In-Context",
        source=Source("Zhang et al.", 2023, "2306.09927"),
        functions=(
            linear_attention.step,
            linear_attention_theory.flow,
            linear_attention_theory.global_minimum,
            linear_attention_theory.risk,
            tasks.linear_regression,
        ),
        cost=Cost("O(B N D) per step of B prompts of N examples", "O(B N D)"),
        forms=(),
        checked=(
            _DYNAMICS + "test_linear_attention_theory.py::test_flow_ends_at_the_global_minimum",
            _DYNAMICS + "test_linear_attention.py::test_risk_at_any_length_by_sampling",
            "experiments/in_context_regression/verdicts.py::claims",
        ),
        deviation="Covariances drawn at random for every prompt are not trained on.",
    ),
    Record(
        index=104,
        title="Understanding the differences in Foundation Models: Attention, State Space Models, and Recurrent Neural "
        "Networks",
        source=Source("Sieber et al.", 2024, "2405.15731"),
        functions=(
            linear.simulate,
            linear.mixing_matrix,
            linear.attention_system,
            linear.normalized_attention_system,
            linear.selective_system,
            linear.gated_system,
            linear.rg_lru_system,
        ),
        cost=Cost("O(T K H V) by a scan", "O(T K H V); the explicit matrix O(K H T^2)"),
        forms=(),
        checked=(
            _SPACES + "test_every_mechanism_is_a_system",
            _SPACES + "test_where_attention_and_a_state_space_are_the_same_system",
            _SPACES + "test_a_gated_recurrence_with_a_reversed_gate_is_a_state_space",
            _LINEAR + "test_how_near_to_softmax_cut_off_exponentials_are",
        ),
        deviation=(
            "Divisors and gates are arguments, not functions of tokens; the quasi-LSTM follows its name, as its "
            "equations were not at hand. Trained models are not compared."
        ),
    ),
    Record(
        index=119,
        title="What Happens During the Loss Plateau? Understanding Abrupt Learning in Transformers",
        source=Source("Gopalani and Hu", 2025, "2506.13688"),
        functions=(
            abrupt_learning.step,
            abrupt_learning.write,
            abrupt_learning.attention_progress,
            abrupt_learning.collapse,
            abrupt_learning_theory.plateau_loss,
            abrupt_learning_theory.repetition,
            tasks.window_sums,
        ),
        cost=Cost("O(B T E (E + T)) per step of B sequences", "O(B T (E + T))"),
        forms=(),
        checked=(
            _DYNAMICS + "test_abrupt_learning.py::test_forward_follows_the_definition",
            _DYNAMICS + "test_abrupt_learning.py::test_exact_numbers_are_those_of_all_sequences",
            "experiments/loss_plateau/verdicts.py::claims",
        ),
        deviation="Sums over a moving window with linear attention; the paper's other tasks are not trained.",
    ),
    Record(
        index=125,
        title="FAST: Factorizable Attention for Speeding up Transformers",
        source=Source("Gerami et al.", 2024, "2402.07901"),
        functions=(
            linear.fastmax,
            linear.taylor_features,
        ),
        cost=Cost("O(N T H^2 (C + V)) of order 2", "O(N T H^2 + N (T / C) H^2 V)"),
        forms=_RECURRENCE,
        checked=(
            _EVERY_FORM,
            _LINEAR + "test_features_against_their_weights",
            _LINEAR + "test_how_near_to_softmax_cut_off_exponentials_are",
        ),
        deviation=("Queries and keys are not standardized by the function. Quality after training is not compared."),
    ),
    Record(
        index=133,
        title="Understanding Transformers through the Lens of Pavlovian Conditioning",
        source=Source("Qiao", 2025, "2508.08289"),
        functions=(
            linear.hebbian.hebb,
            linear.hebbian.delta,
            linear.hebbian.covariance,
            linear.hebbian.oja,
            linear.hebbian.ridge,
            linear.hebbian.read,
            linear.hebbian.interference,
            linear.memory_theory.sum_noise,
            linear.memory_theory.capacity,
            linear.memory_theory.guaranteed_capacity,
            linear.memory_theory.decay_noise,
            linear.memory_theory.delta_noise,
            linear.memory_theory.covariance_noise,
            linear.memory_theory.chain_noise,
            linear.memory_theory.oja_angle,
        ),
        cost=Cost("O(K S H V) to write, O(N T H V) to read", "O(K H V)"),
        forms=(),
        checked=(
            _LINEAR + "test_the_noise_of_a_sum_of_products",
            _LINEAR + "test_corrected_writes_leave_less_noise_than_sums_and_the_last_one_none",
            _HEBBIAN + "test_writes_leave_what_linear_attention_holds",
            _HEBBIAN + "test_values_of_one_size_never_outweigh_keys_with_little_interference",
            _HEBBIAN + "test_oja_turns_to_the_first_components",
            _HEBBIAN + "test_the_noise_of_corrected_writes_by_age",
            _HEBBIAN + "test_the_noise_that_layers_add",
            _HEBBIAN + "test_how_many_pairs_are_safe_grows_as_the_root_of_the_features",
            _CAPACITY,
        ),
        deviation=(
            "Read from its abstract: the closed forms are derived here, with their constants, and the rules are the "
            "textbooks'. The delta rule leaves less squared error than Hebb's sum, but with as many pairs as features "
            "it finds fewer words again; transformers are not trained."
        ),
    ),
    Record(
        index=146,
        title="Latent Attention for Linear Time Transformers",
        source=Source("Dolga et al.", 2024, "2402.17512"),
        functions=(linear.latte,),
        cost=_LINEAR_COST,
        forms=_RECURRENCE,
        checked=(
            _LINEAR + "test_light_net_and_latte_are_softmax_over_keys_for_each_feature",
            _LINEAR + "test_the_rank_of_latent_attention",
        ),
        deviation=("Quality after training is not compared."),
    ),
    Record(
        index=153,
        title="Mega: Moving Average Equipped Gated Attention",
        source=Source("Ma et al.", 2022, "2209.10655"),
        functions=(
            mechanisms.mega,
            mechanisms.gated_attention,
            linear.moving_average,
            linear.moving_average_kernel,
            normalizers.laplace,
        ),
        cost=Cost("O(T D (log T + E + D + V) + T C (H + V)) in chunks of C", "O(T D E + T V + tile)"),
        forms=STREAMING,
        checked=(
            CONFORMANCE,
            _AVERAGES + "test_every_form_is_the_recurrence",
            _AVERAGES + "test_gradients_by_fourier_are_those_of_the_recurrence",
            _MECHANISMS + "test_mega.py::test_laplace_touches_the_squared_relu_and_is_bounded",
            _MECHANISMS + "test_mega.py::test_mega_is_what_is_written",
            _MECHANISMS + "test_mega.py::test_one_chunk_of_everything_is_no_chunk",
            _MECHANISMS + "test_mega.py::test_the_moving_average_carries_what_chunks_cut_off",
            _MECHANISMS + "test_mega.py::test_a_sign_chunks_back_is_learned_through_the_average_alone",
        ),
        deviation=(
            "Causal only; averages are divided by sqrt(E), as in the authors' code. One head is not compared with "
            "several at equal parameters."
        ),
    ),
    Record(
        index=157,
        title="Short-Long Convolutions Help Hardware-Efficient Linear Attention to Focus on Long Sequences",
        source=Source("Liu et al.", 2024, "2406.08128"),
        functions=(mechanisms.chela, mechanisms.short_long_kernel, linear.attend),
        cost=Cost("O(T D (log T + D + V) + T (C + H) (H + V)) in chunks of C", "O(T (D + C + H + V) + (T / C) H V)"),
        forms=_RECURRENCE,
        checked=(
            _EVERY_FORM,
            _MECHANISMS + "test_mega.py::test_two_kernels_are_one",
            _MECHANISMS + "test_mega.py::test_chela_is_what_is_written",
            _MECHANISMS + "test_mega.py::test_work_in_chunks_is_linear_in_the_length",
        ),
        deviation=(
            "From the abstract: kernels are plain parameters, features are elu + 1, weights sum to one, the gates are "
            "Mega's. Quality and speed on accelerators are not compared."
        ),
    ),
    Record(
        index=167,
        title="More Expressive Attention with Negative Weights",
        source=Source("Lv et al.", 2024, "2411.07176"),
        functions=(normalizers.signed_softmax,),
        cost=Cost("O(N T S (H + V))", "O(N T V + tile) in blocks"),
        forms=STREAMING,
        checked=(
            CONFORMANCE,
            _PAPERS + "test_signed_weights_have_unit_l1_norm",
            _PAPERS + "test_one_signed_head_subtracts_and_softmax_cannot",
            _PAPERS + "test_an_early_token_is_more_visible_after_one_signed_layer_and_less_after_four",
        ),
        deviation=(
            "A score of exactly 0 counts as positive. That an early token stays more visible does not hold for random "
            "weights: it does after one layer and is reversed after four. No trained language models are compared."
        ),
    ),
    Record(
        index=169,
        title="Linear Log-Normal Attention with Unbiased Concentration",
        source=Source("Nahshan et al.", 2023, "2311.13541"),
        functions=(
            linear.log_normal,
            linear.log_normal_scales,
        ),
        cost=_LINEAR_COST,
        forms=_RECURRENCE,
        checked=(
            _LINEAR + "test_features_against_their_weights",
            _LINEAR + "test_log_normal_weights_vary_as_softmax_does",
        ),
        deviation=(
            "Standard deviations are arguments. The variance of the logs is within a factor of 1.5 of softmax's, no "
            "nearer. The average with block-diagonal softmax is left to the caller."
        ),
    ),
    Record(
        index=173,
        title="Is Flash Attention Stable?",
        source=Source("Golden et al.", 2024, "2405.02803"),
        functions=(measures.deviation, measures.sweep, measures.compare, measures.golden, measures.emulate),
        cost=Cost("O(T S (H + V)) for one head", "O(T S) untiled, O(T (V + tile)) tiled"),
        forms=(),
        checked=(
            _DEVIATION + "test_tiled_attention_in_bfloat16_deviates_more_than_untiled",
            _DEVIATION + "test_the_excess_grows_with_the_number_of_tiles",
            _DEVIATION + "test_the_excess_vanishes_with_float32_accumulators",
        ),
        deviation=(
            "Rounding is emulated. The excess depends on the number of tiles: the RMS ratio of tiled to "
            "untiled is from 1.5 (16 tiles of 16 keys) to 7 (256 tiles), where the paper reports about 10. "
            "The distance between the weights of trained models is not measured."
        ),
    ),
    Record(
        index=179,
        title="Self-attention Does Not Need O(n^2) Memory",
        source=Source("Rabe and Staats", 2021, "2112.05682"),
        functions=(attend,),
        cost=Cost("O(N T S (H + V))", "O(N T V + tile), forward and backward"),
        forms=("rows", "blocks"),
        checked=(
            CONFORMANCE,
            _PAPERS + "test_any_chunking_gives_the_same_output_and_gradients",
            "tests/attention/test_memory.py::test_temporary_memory_is_linear",
        ),
        deviation=(
            "The backward pass recomputes tiles from the row's logsumexp instead of rematerializing whole "
            "chunks; tiles that the mask leaves empty are not visited."
        ),
    ),
    Record(
        index=188,
        title="Titans: Learning to Memorize at Test Time",
        source=Source("Behrouz et al.", 2025, "2501.00663"),
        functions=(
            linear.titans,
            linear.neural_memory,
            linear.mlp_memory,
            linear.mlp_memory_init,
            linear.memory_theory.descent_curve,
        ),
        cost=Cost(
            "O(N T (C + H) (H + V)) of a linear memory; else T gradients and N T reads of it",
            "O(N T (C + H + V) + N (T / C) H V); of P parameters O(K C P), and O(K (T / C) P) backward",
        ),
        forms=_RECURRENCE,
        checked=(
            _LINEAR + "test_titans_is_gradient_descent_with_momentum",
            _LINEAR + "test_titans_without_momentum_is_a_delta_rule",
            _LINEAR + "test_where_a_memory_with_momentum_diverges",
            _MEMORIES + "test_a_linear_memory_is_titans",
            _MEMORIES + "test_a_perceptron_as_memory_against_its_loop",
            _MEMORIES + "test_chunks_of_gradients_are_another_memory_the_further_the_longer_they_are",
            _MEMORIES + "test_a_memory_learns_regression_in_context_and_forgets_by_decay",
            _CAPACITY,
        ),
        deviation=(
            "Half of the loss. The linear memory is exact in chunks of any size and has all forms; other memories are "
            "exact token by token, or in the published chunks, whose gradients are those at the memory before them. "
            "Arrangements with window attention, and quality after training, are not here."
        ),
    ),
    Record(
        index=195,
        title="When Attention Sink Emerges in Language Models: An Empirical View",
        source=Source("Gu et al.", 2024, "2410.10781"),
        functions=(
            measures.received,
            measures.mean_received,
            measures.row_shares,
            measures.sink_rate,
            statistics.mass_on,
            statistics.key_mass,
            normalizers.softmax,
            normalizers.sigmoid,
            normalizers.from_monoid,
        ),
        cost=Cost("O(N T S (H + V)), key_mass a second pass", "O(N T V + N S + tile) in blocks"),
        forms=STREAMING,
        checked=(
            _SINKS + "test_the_three_ways_agree_with_the_formula",
            _SINKS + "test_the_paper_s_threshold_is_crossed_where_the_formula_says",
            _SINKS + "test_a_key_bias_takes_the_sink",
            _SINKS + "test_variants_of_the_similarity",
            _SINKS + "test_a_sink_of_sigmoid_attention_needs_a_much_larger_score",
            "experiments/language_model/verdicts.py::claims",
        ),
        deviation=(
            "softmax(sink=) is a key bias with value 0 whose logit does not depend on the query; one that "
            "does is a learned key with value 0 in front of the others. ELU + 1 and normalized similarities "
            "are monoids. The experiment trains on bytes of text and follows the weight on the first "
            "position, with softmax and sigmoid."
        ),
    ),
    Record(
        index=196,
        title="The Hidden Attention of Mamba Models",
        source=Source("Ali et al.", 2024, "2403.01590"),
        functions=(linear.hidden_attention, linear.hidden_rollout, linear.selective_state_space),
        cost=Cost("O(D T^2 H)", "O(D T^2)"),
        forms=("parallel",),
        checked=(
            _SPACES + "test_hidden_attention_is_what_multiplies_the_inputs",
            _SPACES + "test_hidden_attention_of_two_scans_is_their_sum",
            _SPACES + "test_rollout_is_a_product_of_shares",
            "tests/linear/test_oracles.py::test_mamba",
        ),
        deviation=(
            "The state space alone: the convolution before it and the gate after it are not part of the matrix. No "
            "trained model is explained; weighing by gradients is left to the caller."
        ),
    ),
    Record(
        index=202,
        title="Fast Transformer Decoding: One Write-Head is All You Need",
        source=Source("Shazeer", 2019, "1911.02150"),
        functions=(attend,),
        cost=Cost("O(N T S (H + V)); a decoding step reads S K (H + V) numbers", "O(N T V + tile) in blocks"),
        forms=(*STREAMING, "cudnn"),
        checked=(
            CONFORMANCE,
            _PAPERS + "test_multi_query_attention_is_attention_with_tied_projections",
            _PAPERS + "test_the_cache_shrinks_by_the_number_of_heads",
            "tests/test_benchmarks.py::test_every_section",
        ),
        deviation="K = 1, or any divisor of N. The quality of a trained model is not compared.",
    ),
    Record(
        index=203,
        title="Folded context condensation in Path Integral formalism for infinite context transformers",
        source=Source("Paeng et al.", 2024, "2405.04620"),
        functions=(mechanisms.folded_context,),
        cost=Cost("O(T D N (H + V) + N T (R + C) (H + V)) in segments of C", "O(T D + N (R + C) (H + V + C))"),
        forms=(),
        checked=(
            _MECHANISMS + "test_folded_context.py::test_it_is_what_is_written",
            _MECHANISMS
            + "test_folded_context.py::test_no_memory_is_attention_in_blocks_and_all_inputs_are_causal_attention",
            _MECHANISMS + "test_folded_context.py::test_what_a_token_depends_on",
            _MECHANISMS + "test_folded_context.py::test_twelve_tokens_at_a_time_carry_over_a_hundred_and_fifty",
            _MECHANISMS + "test_folded_context.py::test_a_sign_many_segments_back_is_learned_through_outputs_alone",
        ),
        deviation=(
            "From the abstract: a layer sees its own outputs of earlier segments; how they are condensed, by the mean, "
            "is a choice made here. Passkeys and summaries of text are not tried."
        ),
    ),
    Record(
        index=204,
        title="Flowformer: Linearizing Transformers with Conservation Flows",
        source=Source("Wu et al.", 2022, "2202.06258"),
        functions=(linear.flow_attention, linear.flows),
        cost=_LINEAR_COST,
        forms=_RECURRENCE,
        checked=(
            _FEATURES + "test_flow_attention_is_its_matrix",
            _FEATURES + "test_causal_flow_attention_is_its_recurrence",
            _FEATURES + "test_flow_attention_of_sequences_that_end_early",
            _FEATURES + "test_competition_lowers_the_entropy_of_rows",
            _FEATURES + "test_what_the_clip_of_sources_takes",
        ),
        deviation=(
            "eps is added to means, not to sums. The bound of 1 on what sources compete by, which the authors' code "
            "has, halves the fall of the entropy where there are as many queries as keys. Quality is not compared."
        ),
    ),
    Record(
        index=217,
        title="Attention as an RNN",
        source=Source("Feng et al.", 2024, "2405.13956"),
        functions=(linear.aaren,),
        cost=Cost("O(N T V)", "O(N T V)"),
        forms=_RECURRENCE,
        checked=(_LINEAR + "test_causal_softmax_attention_of_one_query_is_a_state_of_one_feature",),
        deviation=("Quality after training is not compared."),
    ),
    Record(
        index=218,
        title="Pay Less Attention with Lightweight and Dynamic Convolutions",
        source=Source("Wu et al.", 2019, "1901.10430"),
        functions=(linear.light_conv, linear.dynamic_conv),
        cost=Cost("O(T L D) for L taps", "O(T (L N + D))"),
        forms=(),
        checked=(
            _CONVOLUTIONS + "test_kernels_for_each_token",
            _CONVOLUTIONS + "test_kernels_without_content_are_fixed_positions",
            _CONVOLUTIONS + "test_the_first_tokens_see_less_than_a_whole_kernel",
            _CONVOLUTIONS + "test_a_state_is_where_tokens_go_on",
            _CONVOLUTIONS + "test_recall_takes_a_comparison_of_keys",
        ),
        deviation=(
            "The layer's projections and gate are not here. Recall is by weights set by hand; nothing is trained."
        ),
    ),
    Record(
        index=232,
        title="The Linear Attention Resurrection in Vision Transformer",
        source=Source("Zheng", 2025, "2501.16182"),
        functions=(linear.enhanced_linear_attention, linear.local_concentration, linear.concentration),
        cost=_LINEAR_COST,
        forms=_RECURRENCE,
        checked=(
            _FEATURES + "test_enhanced_linear_attention_is_its_matrix",
            _FEATURES + "test_linear_attention_concentrates_less_than_softmax",
            _FEATURES + "test_the_local_module_puts_mass_on_the_neighborhood",
            _FEATURES + "test_local_parts_are_convolutions_by_channel",
        ),
        deviation=(
            "Batch normalization as it is after training. Concentration, and what the local module adds to it, is "
            "measured on random numbers, not in trained models."
        ),
    ),
    Record(
        index=233,
        title="Bridging the Divide: Reconsidering Softmax and Linear Attention",
        source=Source("Han et al.", 2024, "2412.06590"),
        functions=(linear.injective_attention, linear.local_residual),
        cost=_LINEAR_COST,
        forms=_RECURRENCE,
        checked=(
            _FEATURES + "test_injective_attention_is_its_matrix",
            _FEATURES + "test_which_weights_tell_a_query_from_three_times_it",
            _FEATURES + "test_local_parts_are_convolutions_by_channel",
        ),
        deviation=(
            "The causal form is ours: each row is that of the tokens so far. The network that predicts the weights of "
            "the local residual is the layer's; trained models are not compared."
        ),
    ),
    Record(
        index=266,
        title="Zoology: Measuring and Improving Recall in Efficient Language Models",
        source=Source("Arora et al.", 2023, "2312.04927"),
        functions=(
            tasks.multi_query_recall,
            tasks.slot_probabilities,
            linear.base_conv,
            linear.implicit_kernel,
            linear.short_convolution,
            linear.long_convolution,
        ),
        cost=Cost("O(T D (D + L)) with L taps, O(T D (D + log T)) with as many as tokens", "O(T D)"),
        forms=(),
        checked=(
            "tests/tasks/test_recall.py::test_multi_query_recall_is_what_it_says",
            "tests/tasks/test_recall.py::test_where_recall_is_asked",
            _CONVOLUTIONS + "test_base_conv_is_a_gate_times_a_convolution",
            _CONVOLUTIONS + "test_long_is_short_and_both_begin_anew_at_segments",
            _CONVOLUTIONS + "test_an_implicit_kernel_is_a_network_of_positions",
            _CONVOLUTIONS + "test_recall_takes_a_comparison_of_keys",
            "experiments/associative_recall/verdicts.py::_by_hand",
            "experiments/associative_recall/verdicts.py::_learned",
            "experiments/associative_recall/verdicts.py::_ordered",
            "experiments/associative_recall/verdicts.py::_selected",
        ),
        deviation=(
            "Trained on shorter sequences and with a gated convolution below attention, without which it stays on its "
            "plateau for longer than an experiment may take; how width must grow with length is not fitted. Tokens are "
            "selected after training."
        ),
    ),
    Record(
        index=282,
        title="Superiority of Softmax: Unveiling the Performance Edge Over Linear Attention",
        source=Source("Deng et al.", 2023, "2310.11685"),
        functions=(tasks.separation, tasks.separation_readout),
        cost=Cost("O(B T)", "O(B T)"),
        forms=(),
        checked=(
            "tests/tasks/test_separation.py::test_what_attention_reads",
            "tests/tasks/test_separation.py::test_a_readout_learns_from_softmax_and_not_from_linear_scores",
        ),
        deviation=(
            "The construction is ours; the paper's data set was not at hand. Scores are given, only the readout "
            "learns: linear attention that adds a constant to scores, as elu + 1 does, tells the classes apart."
        ),
    ),
    Record(
        index=290,
        title="Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention",
        source=Source("Qin et al.", 2024, "2405.17381"),
        functions=(
            linear.retention,
            linear.lightning_decay,
        ),
        cost=_LINEAR_COST,
        forms=_RECURRENCE,
        checked=(
            _EVERY_FORM,
            _LINEAR + "test_slopes_of_lightning_attention",
            _LINEAR + "test_retention_is_attention_with_weights_that_decay",
            "tests/linear/test_oracles.py::test_flash_linear_attention",
        ),
        deviation=("The attention alone; the model's norms and gates, and speed on accelerators, are not here."),
    ),
    Record(
        index=295,
        title="AttentionEngine: A Versatile Framework for Efficient Attention Mechanisms on Diverse Hardware Platforms",
        source=Source("Chen et al.", 2025, "2502.15349"),
        functions=(
            attend,
            attention_weights,
            explain,
            masks.from_function,
            scores.from_function,
            normalizers.from_monoid,
        ),
        cost=Cost("O(visited tiles * tile * (H + V))", "O(N T V + tile) in blocks"),
        forms=STREAMING,
        checked=(CONFORMANCE, _PAPERS + "test_one_template_serves_every_mechanism"),
        deviation=(
            "The parallel form only, not the linear one with chunks. Tile sizes come from the mask and the "
            "shapes, not from a search on the device. Speed on accelerators is not measured."
        ),
    ),
    Record(
        index=296,
        title="Efficient Attention: Attention with Linear Complexities",
        source=Source("Shen et al.", 2018, "1812.01243"),
        functions=(linear.latte,),
        cost=Cost("O(N T (C + H) (H + V)), twice: one state from each end", "O(N T (C + H + V) + N (T / C) H V)"),
        forms=_RECURRENCE,
        checked=(_LINEAR + "test_light_net_and_latte_are_softmax_over_keys_for_each_feature",),
        deviation=(
            "It is latte with causal=False. The variant that divides by sqrt(n) is not here; quality is not compared."
        ),
    ),
    Record(
        index=340,
        title="You Only Scan Once: Efficient Multi-dimension Sequential Modeling with LightNet",
        source=Source("Qin et al.", 2024, "2405.21022"),
        functions=(linear.light_net,),
        cost=_LINEAR_COST,
        forms=_RECURRENCE,
        checked=(
            _LINEAR + "test_light_net_and_latte_are_softmax_over_keys_for_each_feature",
            _LINEAR + "test_the_last_state_of_light_net_does_not_know_the_order_of_tokens",
            _FEATURES + "test_one_scan_of_a_grid_sees_all_of_it_in_any_order",
        ),
        deviation=(
            "The greatest key is kept beside the state instead of the log of the sum. Their encodings of several "
            "dimensions are not here; quality is not compared."
        ),
    ),
    Record(
        index=378,
        title="Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
        source=Source("Ramapuram et al.", 2024, "2409.04431"),
        functions=(normalizers.sigmoid, scores.alibi),
        cost=Cost("O(N T S (H + V))", "O(N T V + tile) in blocks"),
        forms=STREAMING,
        checked=(
            CONFORMANCE,
            _PAPERS + "test_the_bias_keeps_sigmoid_outputs_bounded",
            _PAPERS + "test_sigmoid_attention_is_smoother_than_softmax_in_a_tied_row",
        ),
        deviation=(
            "The bound on the Jacobian is not evaluated: its measured norm is compared with softmax's on one "
            "family of inputs. There is no fused kernel."
        ),
    ),
    Record(
        index=379,
        title=(
            "It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias, Retention, and Online "
            "Optimization"
        ),
        source=Source("Behrouz et al.", 2025, "2504.13173"),
        functions=(
            linear.moneta,
            linear.yaad,
            linear.memora,
            linear.elastic_net,
            linear.residual_memory,
            linear.memory_theory.descent_noise,
        ),
        cost=Cost("O(N T H V) of a linear memory; else T gradients and N T reads of it", "O(K C P) for P parameters"),
        forms=("chunked", "recurrent"),
        checked=(
            _MEMORIES + "test_miras_against_its_loop",
            _MEMORIES + "test_a_memory_of_products_is_linear_attention",
            _MEMORIES + "test_moneta_of_squares_is_the_delta_rule",
            _MEMORIES + "test_the_dual_image_is_the_mirror_map_of_its_norm_and_the_printed_one_is_not",
            _MEMORIES + "test_yaad_steps_do_not_jump_at_the_threshold",
            _MEMORIES + "test_memora_stays_a_distribution_for_thousands_of_steps_in_float32",
            _MEMORIES + "test_elastic_net_retention_against_its_loop",
            _MEMORIES + "test_a_step_with_elastic_net_retention_solves_its_problem",
            _MEMORIES + "test_a_bent_loss_survives_outliers_that_squares_do_not",
            _CAPACITY,
        ),
        deviation=(
            "Equations from a public note of the paper. Numbers for each head, not for each channel; in chunks only "
            "gradients are those at the memory before them, the map to parameters is taken at every token. Moneta's "
            "printed map is not the dual of its norm: both are there, by name. No models are trained."
        ),
    ),
)
"""Every record, by index."""
