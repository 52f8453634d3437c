"""Reports over HTTP: ask for one, see how far it is, open it."""

from typing import Any

from litestar import Response, Router, get, post
from litestar.datastructures import State
from litestar.params import FromPath

from trimtab.api.joint import JointFigure, joint_figure
from trimtab.api.outliers import OutlierRows, outlier_rows
from trimtab.api.reports import Reports, ReportState
from trimtab.errors import NotFoundError
from trimtab.records import Role
from trimtab.store.verdicts import verdict_history

REPORT_SECURITY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'none'"
)
"""Evidently's page is one file with its scripts inside: it may run them, and reach nothing."""


@post(
    "/models/{model:str}/windows/{start_ms:int}/reports",
    sync_to_thread=True,
    role=Role.OPERATOR,
    status_code=202,
)
def make(state: State, model: FromPath[str], start_ms: FromPath[int]) -> ReportState:
    """Begin an Evidently report of a window against the baseline; answers at once."""
    if not verdict_history(state.store, model, start_ms):
        raise NotFoundError(f"{model} has no closed window that starts at {start_ms} ms.")
    reports: Reports = state.reports
    return reports.start(model, start_ms)


@get("/models/{model:str}/windows/{start_ms:int}/reports", sync_to_thread=True)
def report_state(state: State, model: FromPath[str], start_ms: FromPath[int]) -> ReportState:
    """Get how far a window's report is: missing, working, done or failed."""
    reports: Reports = state.reports
    return reports.state(model, start_ms)


@get("/models/{model:str}/windows/{start_ms:int}/joint", sync_to_thread=True)
def joint(state: State, model: FromPath[str], start_ms: FromPath[int]) -> JointFigure:
    """Compare the joint distribution of a window's sampled rows with the baseline's: energy test."""
    return joint_figure(state.store, model, start_ms)


@get("/models/{model:str}/windows/{start_ms:int}/outliers", sync_to_thread=True)
def outliers(state: State, model: FromPath[str], start_ms: FromPath[int]) -> OutlierRows:
    """Get the outliers among a window's sampled rows, and what makes each one."""
    return outlier_rows(state.store, model, start_ms)


def report_html(state: State, model: str, start_ms: int) -> Response[Any]:
    """The report's page; raises NotFoundError while there is none."""
    reports: Reports = state.reports
    path = reports.path(model, start_ms)
    if not path.is_file():
        raise NotFoundError("There is no report of this window. Ask for one with POST …/reports.")
    headers = {"content-security-policy": REPORT_SECURITY}
    return Response(path.read_bytes(), media_type="text/html", headers=headers)


@get(
    "/models/{model:str}/windows/{start_ms:int}/report.html",
    sync_to_thread=True,
    media_type="text/html",
    include_in_schema=False,
)
def get_report(state: State, model: FromPath[str], start_ms: FromPath[int]) -> Response[Any]:
    """Get the report's page."""
    return report_html(state, model, start_ms)


reporting = Router("/", route_handlers=[make, report_state, joint, outliers, get_report])
