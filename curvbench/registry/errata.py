"""What is wrong in the papers of the methods, by id: as printed, then as it has to be.

E-G, E-Q: Ginger, and QNG as Ginger restates it. E-L: LNGD. E-F: FNGD. E-C: CW-NGD. A probe names in ``about`` the ids
that concern it. Numbers of equations, sections and tables are the papers' own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Erratum(NamedTuple):
    """``severity``: A changes an implementation, B an analysis or a claim, C is typographical; empty: confirmed."""

    severity: Literal["A", "B", "C", ""]
    text: str


ERRATA: dict[str, Erratum] = {
    "E-G1": Erratum("C", "after Eq. 5, 'putting (6) into (5)': it is (5) into (4) that gives (6)"),
    "E-G2": Erratum("A", "h = G_t^-1 d: the new matrix is not known yet; it is that of t - 1"),
    "E-G3": Erratum("A", "below Eq. 17, beta = (1/alpha) / (alpha + (1 - alpha) h^T d): read 1/alpha - 1 above"),
    "E-G4": Erratum("A", "Eq. 17, first line: gamma counts twice; gamma I + alpha G holds for the undamped G only"),
    "E-G5": Erratum("A", "Algorithm 1 mixes two scales: h without 1/alpha beside the text's beta, and K without it"),
    "E-G6": Erratum("C", "r1u returns rows and columns 1..tau of U: it is all rows, columns 1..tau"),
    "E-G7": Erratum("C", "Algorithm 1, main loop: sigma lacks its index, a stray pair after drt, t counted twice"),
    "E-G8": Erratum("C", "Lemma 1 and Eq. 28 name the eigenvalues of G where those of its inverse are meant"),
    "E-G9": Erratum("B", "Table 1: FLOPs grow linearly in the rank, not quadratically as the text has it"),
    "E-G10": Erratum("B", "'second-best training loss on ResNet-50': Table 1 has it as the best"),
    "E-G11": Erratum("A", "gamma is never reported; the text starts from the identity, Algorithm 1 from zero"),
    "E-G12": Erratum("A", "Eq. 18 cancels: float32 loses the largest eigenvalues; the recursion on sigma does not"),
    "E-Q1": Erratum("A", "beta: the root spans both terms, (sqrt(alpha + (1 - alpha) |q|^2) - sqrt(alpha)) / |q|^2"),
    "E-Q2": Erratum("", "Eq. 10 holds with G_0 = I and G_t = A_(t+1) A_(t+1)^T, without truncation"),
    "E-Q3": Erratum("B", "Observation 1: the rank above the floor is at most min(tau, t), not twice that"),
    "E-Q4": Erratum("C", "Eq. 13 lacks transposes and a bracket"),
    "E-Q5": Erratum("A", "the public code applies each factor to the original vector: right for one only"),
    "E-Q6": Erratum("B", "the last tau matrices are not decayed: a window, not a truncated average"),
    "E-L1": Erratum("A", "Psi is said to be of the order of the inputs: it is diagonal, of the order of the outputs"),
    "E-L2": Erratum("B", "before Eq. 7: the factor 2 does not belong there; Eq. 7 is right"),
    "E-L3": Erratum("C", "Eq. 10: Theta_l is made of layer 1 throughout; it is of layer l"),
    "E-L4": Erratum("B", "proof of Theorem 1: the sign is reversed; it needs a positive block-diagonal Hessian"),
    "E-L5": Erratum("A", "Eq. 14 names the new estimate twice: epsilon weighs the old, 1 - epsilon the new"),
    "E-L6": Erratum("A", "Eq. 13: the mean over samples of the squares is missing; it is per layer"),
    "E-L7": Erratum("C", "damping lacks the identity, n is each factor's order; '(13)' for element-wise rates is (7)"),
    "E-L8": Erratum("B", "Eqs. 18 and 19: the convergence proof has the full Psi, not the diagonal of the method"),
    "E-L9": Erratum("B", "the last condition on the step drops the condition number and turns the inequality round"),
    "E-L10": Erratum("C", "Fig. 1: the layer shown is the second one, of 20 x 20 weights, without biases"),
    "E-L11": Erratum("B", "Tables 1 and 6: epochs times time per epoch is not the total of four methods"),
    "E-L12": Erratum("C", "the 'exponential' schedule (1 - t / T)^E is polynomial"),
    "E-L13": Erratum("C", "Appendix B.1, EKFAC: a basis is missing: E[(((U_A (x) U_B)^T grad)_i)^2]"),
    "E-L14": Erratum("C", "Algorithm 1 takes an unused damping, and has one momentum buffer for all layers"),
    "E-L15": Erratum("C", "Lemma 4: half the eigenvalue, not the root of the half"),
    "E-L16": Erratum("A", "tr Psi = 1: its damping is 1/M within the bounds, whatever the data"),
    "E-L17": Erratum("B", "nothing needs to be sampled, and the local Fisher is no estimate of the Fisher of Eq. 1"),
    "E-F1": Erratum("A", "Sec. IV-D drops 1/M: the matrix is lambda I + U^T U / M"),
    "E-F2": Erratum("A", "Eq. 14 has no 1/M, but Eq. 9 damps U^T U / M: as printed the step is nearly SGD's"),
    "E-F3": Erratum("B", "the complexity of Eq. 12 is O((O + I) M^2), down from O(O I M^2)"),
    "E-F4": Erratum("B", "the identity of Eq. 12 does hold for convolutions, as a sum over pairs of positions"),
    "E-F5": Erratum("B", "coefficients by position in shuffled batches are exchangeable: their mean nears a constant"),
    "E-F6": Erratum("B", "Appendix (c): |I - (lambda M I + G)^-1 G| has no square root"),
    "E-F7": Erratum("B", "part 2 of the proof: the bound is lambda_max / (lambda M + lambda_max)"),
    "E-F8": Erratum("B", "Lemma 3: the last inequality fails; with the factor of E-F6 corrected it closes"),
    "E-F9": Erratum("C", "the proof's J~ = J~ K is J = J~ K"),
    "E-F10": Erratum("B", "'up to' 2.07, 1.64 and 1.50 times are means; Tables II and III give different ratios"),
    "E-F11": Erratum("C", "Eqs. 4 and 5 omit the learning rate"),
    "E-F12": Erratum("A", "Sec. IV-D says both: 1/lambda goes into the learning rate, and the step is eta / lambda"),
    "E-F13": Erratum("C", "Table IV: the caption says ResNet-110, the row ResNet-32"),
    "E-F14": Erratum("C", "Sec. V: the gradient carries 1/M, the loss does not"),
    "E-F15": Erratum("A", "Algorithm 1 has no layer index; layer_weight does not exist; mean losses need the factor M"),
    "E-C1": Erratum("A", "Eq. 1 is a sum, the gradient a mean: in effect damping and rate are divided by N"),
    "E-C2": Erratum("C", "Eq. 4: D_i D_j^T is a number for rows D; it is D_i^T D_j"),
    "E-C3": Erratum("A", "'chaining rows of W' scatters the units: columns of W, the rows of PyTorch's weight"),
    "E-C4": Erratum("B", "Eqs. 5 to 7 need the model's labels, Eq. 1 has the data's; blocks between units stay"),
    "E-C5": Erratum("B", "cost: the blocks have the order of the layer's inputs; statistics and memory are left out"),
    "E-C6": Erratum("A", "Algorithm 1 stops at layer 2: the first layer would never be updated"),
    "E-C7": Erratum("C", "the length of theta omits the biases that the matrices include"),
    "E-C8": Erratum("C", "K-FAC's factors are called vectors: they are matrices"),
    "E-C9": Erratum("C", "the cost of the full matrix is the cube of all parameters, not a sum of two cubes"),
    "E-C10": Erratum("B", "'one-third fewer iterations' is about one third of the iterations"),
    "E-C11": Erratum("C", "Eq. 3 is labelled as the empirical Fisher: Eq. 1 is, and is what the method uses"),
    "E-C12": Erratum("C", "Algorithm 1, line 9 must be one outer product per sample"),
}
