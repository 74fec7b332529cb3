"""Operations on weights: pure functions of a view, in torch alone."""
