"""Evidence to decision: retrain or not, and why. Pure."""

from trimtab_agent.decide.decision import Action, Decision, Why, decide
from trimtab_agent.decide.evidence import Attempt, Concern, Evidence, concerns, gather
from trimtab_agent.decide.incident import next_incident
from trimtab_agent.decide.policy import Policy, policy_of

__all__ = [
    "Action",
    "Attempt",
    "Concern",
    "Decision",
    "Evidence",
    "Policy",
    "Why",
    "concerns",
    "decide",
    "gather",
    "next_incident",
    "policy_of",
]
