"""The mathematics of trimtab: pure functions of values, numpy and scipy only.

`cuts` fixes the bins, `aggregate` counts in them and merges, `tests` compares two counts,
`performance` turns joined labels into figures, `intervals` says how sure a figure is.
This package knows nothing of Kafka, SQL or of the product's records.
"""
