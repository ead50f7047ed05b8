"""Damaged images thrown at the decoder: each must become pixels or a typed error, and nothing else may happen."""
