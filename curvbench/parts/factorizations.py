"""Costs of factorizations of a matrix of order n in n^3 multiply-adds, half the FLOP that ``FlopMeter`` counts.

G. H. Golub, C. F. Van Loan, Matrix Computations, 4.2 and 8.3.
"""

CHOLESKY = 1 / 6
INVERSE = 1 / 2  # of a positive definite matrix, its Cholesky factor included
EIGH = 9 / 2  # eigenvalues and eigenvectors of a symmetric matrix
POWER = EIGH + 1  # any power of a positive semi-definite matrix: eigenvectors, and the product with them
