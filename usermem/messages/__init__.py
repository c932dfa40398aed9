"""recvmsg, recvmmsg, sendmsg and sendmmsg for a guest: datagrams between any endpoint and user memory.

An endpoint is a :class:`safemem.datagram.DatagramEndpoint`: a socket, or memory.
"""

from safemem.datagram.reader import FaultPolicy
from usermem.messages.recvmsg import TimeoutPolicy, recvmmsg_into_user, recvmsg_into_user
from usermem.messages.sendmsg import sendmmsg_from_user, sendmsg_from_user

__all__ = [
    "FaultPolicy",
    "TimeoutPolicy",
    "recvmmsg_into_user",
    "recvmsg_into_user",
    "sendmmsg_from_user",
    "sendmsg_from_user",
]
