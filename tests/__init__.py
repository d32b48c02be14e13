"""The tests, by kind: unit, contract, property, crash, end_to_end, docs; bench measures."""
