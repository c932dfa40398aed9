"""A supervisor for a real process: seccomp user notification over ProcessIO. Start with :class:`Supervisor`."""

from supervisor.arguments import SIGNATURES, Parameter, Signature
from supervisor.listener import CallGone
from supervisor.supervisor import CONTINUE, Answer, Call, Give, Handler, Supervisor

__all__ = [
    "CONTINUE",
    "SIGNATURES",
    "Answer",
    "Call",
    "CallGone",
    "Give",
    "Handler",
    "Parameter",
    "Signature",
    "Supervisor",
]
