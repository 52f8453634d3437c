"""Names of the rules by which a request or a response is abnormal, as counted in `PaneState.rules`.

`REQUEST` and `RESPONSE` count the rows that broke at least one of their rules; a row may break several.
"""

REQUEST = "request"
RESPONSE = "response"

MISSING_REQUIRED = "request:missing_required"
OUT_OF_RANGE = "request:out_of_range"
UNSEEN_CATEGORY = "request:unseen_category"
TYPE_ERROR = "request:type_error"
NOT_FINITE = "request:not_finite"
IMPOSSIBLE = "request:impossible"
"""A combination of values that the contract declares impossible."""
OUTLIER = "request:outlier"
"""Unlike the reference in several features at once (`stats.outliers`). It breaks no rule, so `REQUEST` leaves it out."""
REQUEST_RULES = (
    MISSING_REQUIRED,
    OUT_OF_RANGE,
    UNSEEN_CATEGORY,
    TYPE_ERROR,
    NOT_FINITE,
    IMPOSSIBLE,
)

ERROR = "response:error"
TIMEOUT = "response:timeout"
REJECTED = "response:rejected"
MISSING_PREDICTION = "response:missing_prediction"
UNKNOWN_CLASS = "response:unknown_class"
BAD_SCORE = "response:bad_score"
RESPONSE_RULES = (ERROR, TIMEOUT, REJECTED, MISSING_PREDICTION, UNKNOWN_CLASS, BAD_SCORE)
