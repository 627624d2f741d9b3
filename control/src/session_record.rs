//! What of a session outlives the process (DESIGN I13): who the peer is, and the reply that it was sent last.
//!
//! The record is where the reply is kept, so that keeping it costs one copy of as many bytes as it has. There are two
//! places for replies, and the low bit of their count says which is in force: a daemon killed while it writes one leaves
//! the reply before, whole.

use std::{
    fmt,
    sync::atomic::{Ordering, compiler_fence},
};

use rnic_abi::{CONTROL_MAGIC, MAX_PACKET, Op, ReplyHeader};
use rnic_transport::{BadField, FieldPath, Record, record};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::session::Peer;

/// Bytes of the name of a program, the zero at its end included (TASK_COMM_LEN).
const COMM: usize = 16;
/// Bytes a reply's body may have.
const ROOM: usize = MAX_PACKET - size_of::<ReplyHeader>();

/// What descriptors a reply brought. They are not in the arena; whoever takes a session over makes them anew.
#[derive(Copy, Clone, Debug, PartialEq, Eq, TryFromBytes, KnownLayout, Immutable)]
#[repr(u8)]
pub enum Descriptors {
    /// None.
    None,
    /// The client's region, its event socket, and the wake socket of each core.
    Context,
    /// The client's end of a completion channel.
    Channel,
}

impl Descriptors {
    /// What a reply to this request brings, if it brings any.
    const fn of(op: Op) -> Self {
        match op {
            Op::Hello => Descriptors::Context,
            Op::CreateCompChannel => Descriptors::Channel,
            _ => Descriptors::None,
        }
    }

    /// What they are, in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Descriptors::None => "none",
            Descriptors::Context => "region, event socket and wake sockets",
            Descriptors::Channel => "completion channel",
        }
    }
}

impl Record for Descriptors {
    fn invalid(bytes: &[u8]) -> Option<FieldPath> {
        TryFromBytes::try_read_from_bytes(bytes).map_or(Some(FieldPath::HERE), |_: Descriptors| None)
    }
}

record! {
    /// A reply as it was sent.
    #[derive(Copy, Clone)]
    pub struct KeptReply {
        /// Sequence of the request it answers.
        pub sequence: u64,
        /// Bytes of the packet.
        len: u32,
        /// Descriptors that went with it: how many, and which.
        pub fds: u32,
        pub descriptors: Descriptors,
        packet: [u8; MAX_PACKET],
    }
}

record! {
    /// A session: a connection of the verbs socket.
    #[derive(Copy, Clone)]
    pub struct SessionRecord {
        /// Its number, told in the hello's reply.
        pub number: u64,
        /// The connection.
        pub connection: u32,
        /// Index of the client on the poll cores, once it was greeted.
        pub client: u32,
        /// Whether the hello was answered with success.
        pub greeted: bool,
        /// The process at the other end.
        pid: u32,
        uid: u32,
        /// The name of its program, filled up with zeros.
        comm: [u8; COMM],
        /// Replies kept so far; the low bit is the one in force.
        count: u64,
        replies: [KeptReply; 2],
    }
}

impl KeptReply {
    const NONE: KeptReply = KeptReply {
        sequence: 0,
        len: 0,
        fds: 0,
        descriptors: Descriptors::None,
        packet: [0; MAX_PACKET],
    };

    /// The packet.
    pub fn packet(&self) -> &[u8] {
        self.packet.get(..self.len as usize).unwrap_or_default()
    }

    fn check(&self, number: u64) -> Result<(), BadField> {
        let len = self.len as usize;
        let fits = (size_of::<ReplyHeader>()..=MAX_PACKET).contains(&len);
        BadField::unless(
            fits,
            "replies.len",
            self.len,
            "a header's, up to that of a packet",
        )?;
        let header = ReplyHeader::read_from_prefix(self.packet());
        let header = header.map(|(header, _)| header).unwrap_or_default();
        let magic = header.magic;
        BadField::unless(magic == CONTROL_MAGIC, "replies.magic", magic, "that of replies")?;
        BadField::unless(
            header.session == number,
            "replies.session",
            header.session,
            "number",
        )?;
        let sequence = header.sequence;
        BadField::unless(
            sequence == self.sequence,
            "replies.sequence",
            sequence,
            "that of the packet",
        )?;
        let body = len - size_of::<ReplyHeader>();
        BadField::unless(
            header.body_len as usize == body,
            "replies.body_len",
            header.body_len,
            "the rest of the packet",
        )?;
        let op = u16::try_from(header.op).ok().and_then(Op::from_u16);
        let Some(op) = op else {
            return BadField::unless(false, "replies.op", header.op, "that of a request");
        };
        let expected = match self.fds {
            0 => Descriptors::None,
            _ => Descriptors::of(op),
        };
        let right = self.descriptors == expected && (self.fds == 0 || expected != Descriptors::None);
        BadField::unless(
            right,
            "replies.fds",
            self.fds,
            "what a reply to this request brings",
        )
    }
}

impl SessionRecord {
    /// A connection that has not said hello.
    pub fn new(number: u64, connection: u32, peer: &Peer) -> Self {
        let mut comm = [0; COMM];
        // The last byte stays zero: the kernel's names are no longer.
        for (to, from) in comm.iter_mut().take(COMM - 1).zip(peer.comm.bytes()) {
            *to = from;
        }
        SessionRecord {
            number,
            connection,
            client: 0,
            greeted: false,
            pid: peer.pid as u32,
            uid: peer.uid,
            comm,
            count: 0,
            replies: [KeptReply::NONE; 2],
        }
    }

    /// The process at the other end.
    pub fn peer(&self) -> Peer {
        let name = self.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        Peer {
            pid: self.pid as i32,
            uid: self.uid,
            comm: String::from_utf8_lossy(name).into_owned(),
        }
    }

    /// Keeps the reply to a request: copies its bytes, and no more. What does not fit a packet, which no reply is too
    /// long for, is cut off.
    pub fn keep(&mut self, op: Op, sequence: u64, status: i32, body: &[u8], fds: usize) {
        debug_assert!(
            body.len() <= ROOM,
            "a reply of {} bytes fits no packet",
            body.len()
        );
        let body = &body[..body.len().min(ROOM)];
        let header = ReplyHeader {
            magic: CONTROL_MAGIC,
            status,
            session: self.number,
            sequence,
            body_len: body.len() as u32,
            op: op as u32,
        };
        let next = self.count.wrapping_add(1);
        let kept = &mut self.replies[(next & 1) as usize];
        let (head, rest) = kept.packet.split_at_mut(size_of::<ReplyHeader>());
        head.copy_from_slice(header.as_bytes());
        rest[..body.len()].copy_from_slice(body);
        (kept.sequence, kept.fds) = (sequence, fds as u32);
        kept.len = (size_of::<ReplyHeader>() + body.len()) as u32;
        kept.descriptors = match fds {
            0 => Descriptors::None,
            _ => Descriptors::of(op),
        };
        // Whoever is killed between any two of these stores leaves the reply before in force.
        compiler_fence(Ordering::Release);
        self.count = next;
    }

    /// The last reply.
    pub fn last(&self) -> Option<&KeptReply> {
        (self.count > 0).then(|| &self.replies[(self.count & 1) as usize])
    }

    /// Checks values against each other.
    pub fn check(&self) -> Result<(), BadField> {
        BadField::unless(self.number != 0, "number", self.number, "that of a session")?;
        BadField::unless(
            i32::try_from(self.pid).is_ok(),
            "pid",
            self.pid,
            "a process number",
        )?;
        let answered = !self.greeted || self.count > 0;
        BadField::unless(answered, "greeted", self.greeted, "0 before the first reply")?;
        self.last().map_or(Ok(()), |kept| kept.check(self.number))
    }
}

impl fmt::Debug for SessionRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Session");
        out.field("number", &self.number)
            .field("connection", &self.connection);
        out.field("client", &self.greeted.then_some(self.client));
        out.field("peer", &self.peer()).field("replies", &self.count);
        if let Some(kept) = self.last() {
            out.field("sequence", &kept.sequence)
                .field("fds", &(kept.fds, kept.descriptors));
            out.field("packet", &kept.packet());
        }
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SessionRecord {
        let peer = Peer {
            pid: 77,
            uid: 1000,
            comm: "a name longer than the kernel has".into(),
        };
        SessionRecord::new(9, 3, &peer)
    }

    #[test]
    fn the_peer_comes_back_with_the_name_the_kernel_has_room_for() {
        let peer = record().peer();
        assert_eq!(
            (peer.pid, peer.uid, peer.comm.as_str()),
            (77, 1000, "a name longer t")
        );
    }

    #[test]
    fn the_reply_before_is_whole_until_the_next_one_is() {
        let mut session = record();
        assert!(session.last().is_none());
        session.keep(Op::AllocPd, 1, 0, b"first", 0);
        let before = session;
        session.keep(Op::AllocPd, 2, 0, b"the second", 0);
        // As if killed before the last store.
        let mut killed = session;
        killed.count = before.count;
        assert_eq!(killed.check(), Ok(()));
        assert_eq!(killed.last().unwrap().packet(), before.last().unwrap().packet());
        assert!(session.last().unwrap().packet().ends_with(b"the second"));
        assert_eq!(session.check(), Ok(()));
    }

    #[test]
    fn a_kept_reply_whose_packet_is_another_ones_is_refused() {
        let mut session = record();
        session.keep(Op::CreateCompChannel, 4, 0, &[5; 8], 1);
        assert_eq!(session.check(), Ok(()));
        type Change = fn(&mut SessionRecord);
        let changes: [(&str, Change); 8] = [
            ("number", |s| s.number = 0),
            ("pid", |s| s.pid = u32::MAX),
            ("replies.len", |s| s.replies[1].len = MAX_PACKET as u32 + 1),
            ("replies.len", |s| s.replies[1].len = 31),
            ("replies.magic", |s| s.replies[1].packet[0] ^= 1),
            ("replies.sequence", |s| s.replies[1].sequence = 5),
            ("replies.body_len", |s| s.replies[1].len += 1),
            ("replies.fds", |s| s.replies[1].fds = 0),
        ];
        for (field, change) in changes {
            let mut damaged = session;
            change(&mut damaged);
            assert_eq!(damaged.check().unwrap_err().field, field);
        }
    }
}
