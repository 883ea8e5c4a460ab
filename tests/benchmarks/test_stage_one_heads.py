from benchmarks.stage_one_heads import head_parameters


def test_private_heads_cost_a_vocabulary_each_and_shared_ones_a_norm() -> None:
    assert head_parameters("shared", 3, 100, 16) == 3 * 2 * 16
    assert head_parameters("private", 3, 100, 16) == 3 * (16 + 1) * 100
