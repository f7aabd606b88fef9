"""Messages between two ranks: send, recv and their asynchronous forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernbench.runtime_api.arguments import Arguments, contiguous, flat
from kernbench.runtime_api.call import Work
from kernbench.runtime_api.group import ProcessGroup
from kernbench.runtime_api.tensor import Tensor


@dataclass(frozen=True)
class P2POp:
    """One message of :meth:`Messages.batch_isend_irecv`; ``op`` is ``isend`` or ``irecv``."""

    op: Any
    tensor: Tensor
    peer: int
    group: ProcessGroup | None = None
    tag: int = 0


class Messages(Arguments):
    """Mixed into Distributed. ``src`` and ``dst`` are global ranks, ``group_src`` and ``group_dst`` the group's."""

    def send(
        self, tensor: Tensor, dst: int | None = None, group: Any = None, tag: int = 0, group_dst: int | None = None
    ) -> None:
        """Returns once the other rank receives."""
        work = self.isend(tensor, dst, group, tag, group_dst)
        if work is not None:
            work.wait()

    def isend(
        self, tensor: Tensor, dst: int | None = None, group: Any = None, tag: int = 0, group_dst: int | None = None
    ) -> Work | None:
        group = self._member(group)
        return None if group is None else self._message("isend", tensor, group, tag, self._root(group, dst, group_dst))

    def recv(
        self, tensor: Tensor, src: int | None = None, group: Any = None, tag: int = 0, group_src: int | None = None
    ) -> int:
        """Returns the global rank that sent. Without ``src``: of the ranks that send to this one, the lowest."""
        group = self._member(group)
        if group is None:
            return -1
        if src is None and group_src is None:
            peer = self._anyone(group, tag)
        else:
            peer = self._root(group, src, group_src)
        self._message("irecv", tensor, group, tag, peer).wait()
        return group.ranks[peer]

    def irecv(
        self, tensor: Tensor, src: int | None = None, group: Any = None, tag: int = 0, group_src: int | None = None
    ) -> Work | None:
        group = self._member(group)
        if group is None:
            return None
        if src is None and group_src is None:
            raise NotImplementedError("irecv from any rank: name src, or use recv(tensor)")
        return self._message("irecv", tensor, group, tag, self._root(group, src, group_src))

    def batch_isend_irecv(self, p2p_op_list: list[P2POp]) -> list[Work]:
        """Start all messages; returns a handle for each."""
        if not p2p_op_list:
            raise IndexError("batch_isend_irecv: the list is empty")
        wrong = [one.op for one in p2p_op_list if one.op not in (self.isend, self.irecv)]
        if wrong:
            raise ValueError(f"P2POp: expected isend or irecv of this context's distributed, got {wrong[0]!r}")
        works = [one.op(one.tensor, one.peer, one.group, one.tag) for one in p2p_op_list]
        return [work for work in works if work is not None]

    def _message(self, name: str, tensor: Tensor, group: ProcessGroup, tag: int, peer: int) -> Work:
        me = self._me()
        mine = group.number_of(me.index)
        if peer == mine:
            raise ValueError(f"{name.lstrip('i')}: rank {me.index} and itself; the peer has to be another rank")
        self._tensor(tensor)
        sender, receiver = (mine, peer) if name == "isend" else (peer, mine)
        members = (group.ranks[sender], group.ranks[receiver])
        channel = f":{members[0]}->{members[1]}" + (f" tag {tag}" if tag else "")
        inputs = [flat(tensor)] if mine == sender else []
        outputs = [contiguous(tensor, "recv's tensor")] if mine == receiver else []
        return group.call(
            me, name[1:], inputs, outputs, collective="send", members=members, channel=channel, result=[tensor]
        )

    def _anyone(self, group: ProcessGroup, tag: int) -> int:
        """The lowest group rank that has a message for this one, once no other rank can move."""
        me = self._me()

        def lowest() -> int | None:
            for number, sender in enumerate(group.ranks):
                channel = f":{sender}->{me.index}" + (f" tag {tag}" if tag else "")
                if group.has_message(sender, me.index, channel):
                    return number
            return None

        while (found := me.ask(lowest)) is None:
            pass
        return int(found)
