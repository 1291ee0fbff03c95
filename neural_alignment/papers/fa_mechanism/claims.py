"""Claims of Rahmansetayesh et al., judged by the files of their figures."""

from __future__ import annotations

import math

from neural_alignment.papers import claims
from neural_alignment.papers.claims import PaperClaim as Claim
from neural_alignment.papers.fa_mechanism.contrasts import FIRST, LAST, by_layer, labels, own, signals, terms, training
from neural_alignment.papers.fa_mechanism.runs import HIDDEN, PUBLISHED
from neural_alignment.papers.registry import Source
from neural_alignment.reporting import Artifact

UNRELATED = 2.3
"""Degrees within which a layer does not count as aligned.

Twice the standard deviation of the angle of two unrelated matrices of 50 x 50 elements, 57.3 / 50 degrees."""

ABOVE, NOT_ABOVE = claims.above(), claims.not_above(0, UNRELATED)
NONE = claims.Threshold("0 in every seed", high=1e-9, distance=lambda found: 0.0)
"""Criterion of counts: their mean is 0 only if all are."""

TURN, FIGURE = "turn, degrees", "figure"
TOWARDS = "90 degrees minus the angle to B^T"
MORE_TURN = "turn minus that of the control, degrees"
AWAY = "degrees farther from 90 with gates"
HEIGHT = "highest after epoch 30 minus the last, increase in points"

UNSEEN = claims.between(-1, 1)
"""Criterion of shifts that the histograms of Note 1 would not show: half of one of their bins, 2 degrees wide."""

SPIKE = claims.above(5)
"""Criterion of spikes of the test error. BP-TRW has none; its errors vary by about 2 points more than those of
backpropagation, because they are larger."""


def _published(condition: str) -> str:
    mean, deviation = PUBLISHED[condition]
    return f"{mean:.2f}{'' if math.isnan(deviation) else f' ± {deviation:.2f}'} %"


def _angles(*conditions: str) -> str:
    return f"{', '.join(f'{terms.PUBLISHED_LOOP[each]:g}' for each in conditions)} degrees"


def _errors(*fractions: float) -> str:
    return f"about {', '.join(f'{labels.PUBLISHED_RELABELLED[each]:g}' for each in fractions)} %"


CLAIMS: tuple[Claim, ...] = (
    Claim("1B", "autocorrelated signals align", _angles("constant"),
          "turn minus that of unrelated signals, degrees", ABOVE, terms.beyond_unrelated_signals("constant")),
    Claim("1B", "cross-correlated signals align", _angles("cross_correlated"),
          "turn minus that of unrelated signals, degrees", ABOVE, terms.beyond_unrelated_signals("cross_correlated")),
    Claim("1B", "signals that are neither do not align", _angles("neither"), TURN, NOT_ABOVE,
          lambda files: {"": own(terms.open_loop(files, "neither")[0])}),
    Claim("1B", "the final angles are those of the published code", _angles(*terms.PUBLISHED_LOOP),
          "ours minus the published one, degrees", claims.mean_between(-2, 2), terms.open_loop_differences),
    Claim("2", "at k = 66 all orders align", "all; the published code: not all", "orders at 90 degrees or more", NONE,
          terms.orders_above_90, ".1f"),
    Claim("2", "at k = 2946 the order 60 aligns more than at k = 66", FIGURE, "decrease of its angle, degrees", ABOVE,
          terms.term_changes(0, "epoch", -1)),
    Claim("2", "at k = 2946 the other orders align less than at k = 66", FIGURE,
          "increase of their mean angle, degrees", ABOVE, terms.term_changes(0, "others", 1)),
    Claim("2, S2", "shuffled, the order 60 aligns less at k = 2946 than at k = 66", FIGURE,
          "increase of its angle, degrees", ABOVE, terms.term_changes(1, "epoch", 1)),
    Claim("2, S2", "W and its updates align as far with shuffled data", FIGURE,
          "turn of W, and mean alignment of updates, over those in file order", claims.between(0.75, 1.25),
          terms.shuffled_to_ordered),
    Claim("3", "the remainder is small", FIGURE, "its norm over that of all alignment terms", claims.below(0.2),
          terms.remainder_size, ".3f"),
    Claim("3", "the remainder opposes alignment at first", FIGURE, "angle to B^T minus 90 degrees, mean to k = 66",
          ABOVE, lambda files: by_layer(lambda layer: own(terms.early_opposition(files, layer)))),
    Claim("3", "the opposition of the remainder decreases", FIGURE, "decrease to the last iteration, degrees", ABOVE,
          terms.falling_opposition),
    Claim("3", "the remainder does not align at the last iteration", FIGURE, TOWARDS, NOT_ABOVE,
          terms.part_alignment("remainder")),
    Claim("3", "all alignment terms together align", FIGURE, TOWARDS, ABOVE, terms.part_alignment("alignment")),
    Claim("3C, S6", "the zero-degree term does not align", FIGURE, TOWARDS, NOT_ABOVE,
          terms.part_alignment("zero_degree")),
    Claim("3C, S6", "the alignment terms align more than the zero-degree term", FIGURE, "difference of their angles",
          ABOVE, terms.alignment_beyond_zero_degree),
    Claim("4A", "alignment survives without nonlinearity", FIGURE, TURN, ABOVE, terms.disturbed_turn("linear")),
    Claim("4A", "nonlinearity reduces alignment", FIGURE, MORE_TURN, ABOVE,
          terms.turn_difference("linear", "disturbed", "control")),
    Claim("4B", "alignment survives with other backward weights", FIGURE, TURN, ABOVE,
          terms.disturbed_turn("feedback")),
    Claim("4B", "other backward weights change the amount of alignment only slightly", FIGURE,
          "turn over that of the control", claims.between(0.5, 1.5), terms.kernel_ratio("feedback")),
    Claim("4", "single terms without nonlinearity align", FIGURE, TOWARDS, ABOVE, terms.aligned_terms("linear")),
    Claim("4", "nonlinearity reduces the alignment of single terms", FIGURE,
          "increase of their alignment at k = 66, degrees", ABOVE,
          terms.term_difference("linear", "disturbed", "undisturbed")),
    Claim("4", "single terms with other backward weights align", FIGURE, TOWARDS, ABOVE,
          terms.aligned_terms("feedback")),
    Claim("5", "shuffled errors disrupt alignment", FIGURE, "turn of the control minus that of the kernel, degrees",
          ABOVE, terms.turn_difference("errors", "control", "disturbed")),
    Claim("5", "single terms of shuffled errors align less", FIGURE, "decrease of their alignment at k = 66, degrees",
          ABOVE, terms.term_difference("errors", "undisturbed", "disturbed")),
    Claim("5", "single terms of shuffled errors do not align", FIGURE, TOWARDS, NOT_ABOVE,
          terms.aligned_terms("errors")),
    Claim("5", "no alignment is left with shuffled errors", FIGURE, TURN, NOT_ABOVE, terms.disturbed_turn("errors")),
    Claim("6", "alignment is slower with more labels replaced", FIGURE, "difference of the turns after 2 epochs", ABOVE,
          labels.label_contrasts("figure_6", 2)),
    Claim("6", "alignment is weaker with more labels replaced", FIGURE, "difference of the turns after 10 epochs",
          ABOVE, labels.label_contrasts("figure_6", 10)),
    Claim("6", "in longer training alignment remains weaker with more labels replaced", "not shown",
          "difference of the turns after 100 epochs", ABOVE,
          labels.label_contrasts("figure_6")),
    Claim("6", "with all labels replaced W still aligns slightly", "text", TURN, ABOVE,
          labels.turn_without_labels("figure_6")),
    Claim("6", "with all labels replaced the network learns nothing", _errors(1), "test error minus 90 %, points",
          claims.mean_between(-3, 3), labels.chance_error),
    Claim("6", "at rate 0.0004, test error with 0, 50, 100 % of the labels replaced after 10 epochs",
          _errors(0, 0.5, 1), "ours minus the published one, points", claims.mean_between(-3, 3),
          labels.relabelled_errors("figure_6_rate")),
    Claim("6", "at rate 0.0004 alignment is weaker with more labels replaced", FIGURE,
          "difference of the turns after 10 epochs", ABOVE, labels.label_contrasts("figure_6_rate")),
    Claim("6", "with all labels replaced the term of order 60 aligns", "text", TOWARDS, ABOVE,
          lambda files: by_layer(lambda layer: own(labels.replaced_terms(files, layer)["epoch"]))),
    Claim("6", "with all labels replaced the other terms do not align", "text", TOWARDS, NOT_ABOVE,
          lambda files: by_layer(lambda layer: own(labels.replaced_terms(files, layer)["others"]))),
    Claim("6", "with all labels replaced, inputs of one category are as alike as those of two", "text",
          "excess similarity within categories over that of the true labels", claims.mean_below(0.05),
          labels.similarity_left(1), ".3f"),
    Claim("6", "control: with half of the labels replaced, inputs of one category are more alike", "-",
          "excess similarity within categories over that of the true labels", claims.mean_above(0.05),
          labels.similarity_left(0.5), ".3f"),
    Claim("7A", "normalisation improves the alignment of W", FIGURE, MORE_TURN, ABOVE,
          training.more_turn_with_normalisation),
    Claim("7B", "normalisation improves the alignment of updates", FIGURE,
          "decrease of the angle to backpropagation, degrees", ABOVE, training.closer_updates_with_normalisation),
    Claim("7B", "updates deviate more towards the first layer", FIGURE, "difference of neighbouring layers, degrees",
          ABOVE, training.deviation_per_layer),
    Claim("7C", "BP-TRW ends elsewhere than backpropagation", FIGURE, "distance of the ends over the longer way",
          claims.mean_above(0.5), training.distance_of_ends("C")),
    Claim("7C", "these ends belong to different local minima", FIGURE,
          "distance of the nearest minima over that of the ends", claims.mean_above(0.5), training.other_minimum("C")),
    Claim("7D", "norms of W grow without normalisation", FIGURE, "increase of the norm", ABOVE, training.norm_growth),
    Claim("7D", "norms of W saturate sooner in earlier layers than in the last", FIGURE,
          "epochs earlier than in layer 4 that 90 % of the growth is over", ABOVE, training.later_settling, ".1f"),
    Claim("7F", "with normalisation BP-TRW ends elsewhere", FIGURE, "distance of the ends over the longer way",
          claims.mean_above(0.5), training.distance_of_ends("F")),
    Claim("7F", "these ends belong to different local minima", FIGURE,
          "distance of the nearest minima over that of the ends", claims.mean_above(0.5), training.other_minimum("F")),
    Claim("7E", "BP-TRW learns as the published code does", _published("bp_trw"),
          "ours minus the published one, points", claims.mean_between(-0.6, 0.6),
          training.published_difference("bp_trw")),
    Claim("7E", "normalising W and B lowers the test error of BP-TRW", _published("bp_trw_wb"),
          "decrease of the test error, points", ABOVE, training.lower_errors(("bp_trw", "bp_trw_wb"))),
    Claim("7E", "normalising W alone (`bp_trw_w`) lowers it too, but by less", _published("bp_trw_w"),
          "decrease of the test error, points", ABOVE,
          training.lower_errors(("bp_trw", "bp_trw_w"), ("bp_trw_w", "bp_trw_wb"))),
    Claim("7E", "normalising B alone (`bp_trw_b`), which is not in the paper, lowers it too, but by less", "-",
          "decrease of the test error, points", ABOVE,
          training.lower_errors(("bp_trw", "bp_trw_b"), ("bp_trw_b", "bp_trw_wb"))),
    Claim("7E", "backpropagation learns as the published code does, rate 0.0004", _published("bp"),
          "ours minus the published one, points", claims.mean_between(-0.6, 0.6), training.published_difference("bp")),
    Claim("7E", "normalisation makes the test error of backpropagation less robust", "spikes over 30 % in every seed",
          HEIGHT, SPIKE, training.spikes("bp_w"), ".1f"),
    Claim("7E", "normalisation also makes it less robust at rate 0.0003 and γ 0.6, as in the figure", FIGURE,
          HEIGHT, SPIKE, training.spikes("bp_w_slow"), ".1f"),
    Claim("S1", "the eigenvalues of the symmetric part decide its angle", FIGURE, "correlation",
          claims.mean_above(0.95), signals.eigenvalue_correlation, ".3f"),
    Claim("S1", "a skew part turns B^T M away from B^T", FIGURE, "angle minus that of the symmetric part, degrees",
          ABOVE, signals.loss_by_skew_part, ".1f"),
    Claim("S3", "errors a whole epoch apart resemble each other more than half an epoch apart", FIGURE,
          "difference of their angles at last, degrees", ABOVE, signals.epoch_against_half, ".1f"),
    Claim("S3", "errors a whole epoch apart come to resemble each other more", FIGURE,
          "decrease of their angle, degrees", ABOVE, signals.errors_become_similar, ".1f"),
    Claim("S4", "at first similarity terms within categories are positive, between them negative", "text",
          "mean over all pairs, lag 30", ABOVE, signals.similarity_signs, ".3g"),
    Claim("S4", "at lag 30 their sum is positive at first", "text", "mean over all pairs", ABOVE, signals.first_sums,
          ".2g"),
    Claim("S4", "at lag 30 their sum falls", "text", "decrease of the mean over all pairs", ABOVE,
          signals.falling_sums, ".2g"),
    Claim("S5", "at first errors within categories are alike", FIGURE, "mean similarity", ABOVE,
          signals.similarity_contrast("first", "error", lambda means: means["within"]), ".3g"),
    Claim("S5", "at first errors between categories are opposed", FIGURE, "minus the mean similarity", ABOVE,
          signals.similarity_contrast("first", "error", lambda means: -means["between"]), ".3g"),
    Claim("S5", "at first outputs are more alike within categories than between them", FIGURE,
          "difference of the mean similarities", ABOVE,
          signals.similarity_contrast("first", "output", lambda means: means["within"] - means["between"]), ".3g"),
    Claim("S5", "late in training, errors of poorly classified pairs are larger", FIGURE,
          "ratio of the mean similarities to well classified pairs", claims.above(1), signals.poor_errors, ".0f"),
    Claim("S5", "late in training, outputs of poorly classified pairs of one category are less alike", FIGURE,
          "difference of the mean similarities", ABOVE,
          signals.similarity_contrast("last", "output", lambda means: means["within/well"] - means["within/poor"]),
          ".3g"),
    Claim("S5", "at lags of 1 and more, at first errors within categories are alike", FIGURE, "mean similarity", ABOVE,
          signals.lag_contrast(FIRST, "error", lambda means: means["within"]), ".2g"),
    Claim("S5", "at lags of 1 and more, at first errors between categories are opposed", FIGURE,
          "minus the mean similarity", ABOVE, signals.lag_contrast(FIRST, "error", lambda means: -means["between"]),
          ".2g"),
    Claim("S5", "at lags of 1 and more, at first outputs are more alike within categories", FIGURE,
          "difference of the mean similarities", ABOVE,
          signals.lag_contrast(FIRST, "output", lambda means: means["within"] - means["between"]), ".2g"),
    Claim("S5", "at lags of 1 and more, late in training, errors of poorly classified pairs of one category are larger",
          FIGURE, "difference of the mean similarities", ABOVE,
          signals.lag_contrast(LAST, "error", lambda means: means["within/poor"] - means["within/well"]), ".2g"),
    Claim("S5", "at lags of 1 and more, late in training, outputs of poorly classified pairs are less alike", FIGURE,
          "difference of the mean similarities", ABOVE,
          signals.lag_contrast(LAST, "output", lambda means: means["within/well"] - means["within/poor"]), ".2g"),
    Claim("S7", "gates do not change the mean of the angle of products", "no difference", AWAY,
          claims.mean_between(-0.1, 0.1), terms.gate_shift, ".3f"),
    Claim("S7", "gates change its variance", FIGURE, "ratio of the variances", claims.mean_above(1.5),
          terms.gate_variance),
    Claim("Note 1", "gates do not change the mean at some angles of the factors", "t-test, p > 0.1", AWAY,
          UNSEEN, terms.shift_by_gates),
    Claim("Note 2", "terms of higher degree are small", "text", "their norm over that of the alignment terms",
          claims.below(0.2), terms.higher_terms, ".2g"),
    Claim("Note 2", "higher degrees make the remainder smaller", "text", "remainder after degree 1 over that after it",
          claims.above(1), terms.smaller_remainders),
    Claim("S8", "normalisation lowers the error of BP-TRW", FIGURE, "error without it minus that at γ 1, points", ABOVE,
          training.gamma_contrast(("bp_trw",), None, 1.0)),
    Claim("S8", "with a small γ the performance drops", "text", "error at γ 0.6 minus that at γ 1, points", ABOVE,
          training.gamma_contrast(("bp", "bp_trw"), 0.6, 1.0)),
    Claim("S8", "label smoothing makes the error depend less on rate and γ", "text",
          "range of the errors without it minus that with it, points", ABOVE, training.range_reduction),
    Claim("S8", "label smoothing lowers the error", "not claimed", "decrease of the error, points", ABOVE,
          training.smoothing_gain),
    Claim("direct", "products of W come to align with F^T", "text, no figure", TURN, ABOVE,
          terms.direct_turn("product_angle")),
    Claim("direct", "W comes to align with Q^T where Q is not F", "text, no figure", TURN, ABOVE,
          terms.direct_turn("weight_angle", HIDDEN[:-1])),
    Claim("direct", "W comes to align with Q^T where Q is F", "text, no figure", TURN, ABOVE,
          terms.direct_turn("weight_angle", HIDDEN[-1:])),
    Claim("S17", "the part of the products aligns with Q^T", "text, no figure", "90 degrees minus the angle to Q^T",
          ABOVE, terms.direct_part("product_product")),
    *(Claim("S17", f"the parts with the rest of F do not: past {past}, current {current}", "text, no figure",
            "90 degrees minus the angle to Q^T", NOT_ABOVE, terms.direct_part(f"{past}_{current}"))
      for past, current in (("rest", "product"), ("product", "rest"), ("rest", "rest"))),
)  # fmt: skip
"""Every claim of the paper that is examined, in the order of its figures."""


def table(source: Source) -> Artifact:
    """Every claim, judged by the files of the figures in the folder of results.

    Raises:
        InputError: if there is no such file.
    """
    return claims.table_of(CLAIMS, "fa_mechanism/claims", source.output, "fa_mechanism/1b")
