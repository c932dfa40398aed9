"""recvmsg, recvmmsg, sendmsg and sendmmsg for a guest: messages between any endpoint and user memory.

An endpoint of datagrams is a :class:`safemem.datagram.DatagramEndpoint`: a socket, or memory. A stream is a socket.
"""

from safemem.datagram.reader import FaultPolicy
from usermem.messages.recvmsg import TimeoutPolicy, recvmmsg_into_user, recvmsg_into_user
from usermem.messages.sendmsg import sendmmsg_from_user, sendmsg_from_user
from usermem.messages.stream import StreamSocket, recvmsg_stream_into_user, sendmsg_stream_from_user

__all__ = [
    "FaultPolicy",
    "StreamSocket",
    "TimeoutPolicy",
    "recvmmsg_into_user",
    "recvmsg_into_user",
    "recvmsg_stream_into_user",
    "sendmmsg_from_user",
    "sendmsg_from_user",
    "sendmsg_stream_from_user",
]
