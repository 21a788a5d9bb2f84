"""The catalog: one record for each mechanism or claim of the literature, and where it is checked.

A record is here when its functions exist, pass the conformance suite, and a test or an experiment checks its claim.

>>> from attnjax import catalog
>>> [record.title for record in catalog.RECORDS if catalog.normalizers.sigmoid in record.functions]
['When Attention Sink Emerges in Language Models: An Empirical View',
 'Theory, Analysis, and Best Practices for Sigmoid Self-Attention']
"""

import dataclasses
from collections.abc import Callable

from attnjax import linear, measures, tasks
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
        functions=(linear.titans,),
        cost=_LINEAR_COST,
        forms=_RECURRENCE,
        checked=(
            _LINEAR + "test_titans_is_gradient_descent_with_momentum",
            _LINEAR + "test_titans_without_momentum_is_a_delta_rule",
            _LINEAR + "test_where_a_memory_with_momentum_diverges",
        ),
        deviation=(
            "The linear memory only, with half of the loss; chunks are exact, where the published ones take gradients "
            "at the state before the chunk. Memories that are networks, and quality after training, are not here."
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
)
"""Every record, by index."""
