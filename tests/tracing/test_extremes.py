from precaudit.tracing.extremes import largest, largest_by_name, widest


def test_unmeasured_values_are_ignored():
    assert largest([None, 2.0, -1.0]) == 2.0
    assert largest([None, None]) is largest([]) is None


def test_measures_by_name_keep_the_largest_of_each():
    assert largest_by_name(({"a": 1.0, "b": 5.0}, {"b": 2.0, "c": 3.0}, {})) == {"a": 1.0, "b": 5.0, "c": 3.0}


def test_range_covers_all_measured_values():
    assert widest([(1.0, 4.0), None, (0.5, 2.0)]) == (0.5, 4.0)
    assert widest([None]) is None
